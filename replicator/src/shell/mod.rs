//! The shell: disks, the link, metadata, time. It holds no policy.

pub mod identity;
pub mod quic;
pub mod tls;
