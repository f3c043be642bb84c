//! The shell: disks, the link, metadata, time. It holds no policy.

pub mod buffers;
pub mod fence;
pub mod probe;
pub mod uring;
