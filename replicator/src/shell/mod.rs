//! The shell: disks, the link, metadata, time. It holds no policy.

pub mod arbiter;
pub mod boot;
pub mod buffers;
pub mod disk;
pub mod engine;
pub mod etcd;
pub mod fence;
mod fields;
pub mod identity;
pub mod metadata;
pub mod pairing;
pub mod probe;
pub mod quic;
mod race;
pub mod runtime;
pub mod signature;
pub mod storage;
pub mod store;
pub mod time;
pub mod tls;
pub mod uring;
pub mod witness;
