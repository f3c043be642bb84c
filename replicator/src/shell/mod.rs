//! The shell: disks, the link, metadata, time. It holds no policy.

pub mod buffers;
pub mod disk;
pub mod fence;
pub mod metadata;
pub mod probe;
pub mod signature;
pub mod storage;
pub mod store;
pub mod uring;
pub mod identity;
pub mod quic;
pub mod tls;
