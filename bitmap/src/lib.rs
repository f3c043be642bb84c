//! Dirty bitmap, activity log and superblock.
