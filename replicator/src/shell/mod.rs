//! The shell: disks, the link, metadata, time. It holds no policy.
