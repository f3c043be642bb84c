//! What crosses the link: frames and the messages in them. Pure encoding and decoding.

pub mod frame;
pub mod limits;
pub mod message;
