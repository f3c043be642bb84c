//! The shell: disks, the link, metadata, time. It holds no policy.

pub mod arbiter;
pub mod boot;
mod fields;
pub mod identity;
pub mod pairing;
pub mod quic;
mod race;
pub mod time;
pub mod tls;
pub mod witness;
