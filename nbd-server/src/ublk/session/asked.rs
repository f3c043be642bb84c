//! What a descriptor asks for, checked as a [`BlockDevice`](crate::BlockDevice) may expect it.

use super::super::abi::{Descriptor, SECTOR, io_flag, op};
use super::super::endpoint::Tag;
use crate::device::{DeviceInfo, Request};

/// A request that the device can be given.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Answered with bytes.
    Read { offset: u64, len: u32 },
    /// Needs memory, and its bytes.
    Write(Write),
    /// Whole as it is, answered without bytes.
    Other(Request),
}

/// A write whose bytes are still the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) tag: Tag,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) fua: bool,
}

impl Asked {
    /// Whatever a descriptor says: `max_io` bounds a payload.
    ///
    /// # Errors
    /// The number that the kernel gets for it.
    pub(super) fn of(
        tag: Tag,
        descriptor: &Descriptor,
        info: &DeviceInfo,
        max_io: u32,
    ) -> Result<Self, i32> {
        let Descriptor {
            op,
            flags,
            sectors,
            start,
        } = *descriptor;
        let fua = flags & io_flag::FUA != 0;
        match op {
            op::READ | op::WRITE | op::DISCARD | op::WRITE_ZEROES => {}
            // Its range means nothing.
            op::FLUSH => return Ok(Self::Other(Request::Flush)),
            _ => return Err(libc::EOPNOTSUPP),
        }
        if info.read_only && op != op::READ {
            return Err(libc::EROFS);
        }
        let longest = match op {
            op::READ | op::WRITE => max_io.min(info.max_payload).min(i32::MAX as u32),
            _ => u32::MAX,
        };
        let len = u32::try_from(u64::from(sectors) * SECTOR).map_err(|_| libc::EINVAL)?;
        if len == 0 || len > longest {
            return Err(libc::EINVAL);
        }
        let end = start
            .checked_mul(SECTOR)
            .and_then(|offset| offset.checked_add(u64::from(len)));
        let Some(end) = end.filter(|end| *end <= info.size) else {
            return Err(libc::EIO);
        };
        let offset = end - u64::from(len);
        let block = u64::from(info.min_block);
        if !offset.is_multiple_of(block) || !u64::from(len).is_multiple_of(block) {
            return Err(libc::EINVAL);
        }
        Ok(match op {
            op::READ => Self::Read { offset, len },
            op::WRITE => Self::Write(Write {
                tag,
                offset,
                len,
                fua,
            }),
            op::DISCARD => Self::Other(Request::Trim { offset, len, fua }),
            _ => Self::Other(Request::WriteZeroes {
                offset,
                len,
                fua,
                no_hole: flags & io_flag::NOUNMAP != 0,
                fast: false,
            }),
        })
    }
}
