//! The kernel's interface in bytes (include/uapi/linux/ublk_cmd.h of Linux 6.12).

/// `UBLK_IO_OP_*`: what a request is, the low eight bits of a descriptor's first word.
pub mod op {
    /// Read.
    pub const READ: u8 = 0;
    /// Write.
    pub const WRITE: u8 = 1;
    /// Flush; has no range.
    pub const FLUSH: u8 = 2;
    /// Discard.
    pub const DISCARD: u8 = 3;
    /// Write zeroes.
    pub const WRITE_ZEROES: u8 = 5;
}

/// `UBLK_IO_F_*`: flags of a descriptor's first word, where they stand in it.
pub mod io_flag {
    /// Durable when answered.
    pub const FUA: u32 = 1 << 13;
    /// Zeroes that stay allocated.
    pub const NOUNMAP: u32 = 1 << 15;
}

/// Bytes of the unit that descriptors and parameters count in, whatever the device's block.
pub const SECTOR: u64 = 512;

/// A request as the kernel describes it (`struct ublksrv_io_desc`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// One of [`op`], or one that this version does not know.
    pub op: u8,
    /// The first word without the operation: [`io_flag`].
    pub flags: u32,
    /// How many sectors.
    pub sectors: u32,
    /// The first sector; `u64::MAX` for a flush.
    pub start: u64,
}
