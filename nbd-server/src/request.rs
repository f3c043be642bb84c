//! Requests of the transmission phase: 28 bytes in, a checked command or its error out. Pure.
//!
//! What gets through [`RequestHeader::check`] is inside the device, aligned, not empty, within the
//! limits, and its flags belong to its command ("Request types", "Error values").

use crate::device::{DeviceInfo, Errno, IoError};
use crate::error::ClientFault;
use crate::negotiate::Terms;
use crate::proto::{REQUEST_MAGIC, Reader, cmd, cmd_flag};

/// Bytes of a request's header.
pub const REQUEST_LEN: usize = 28;

/// A request as sent, magic checked and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Command flags.
    pub flags: u16,
    /// Request type.
    pub command: u16,
    /// The client's own; goes back in the reply.
    pub cookie: u64,
    /// Bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

/// What a checked request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `NBD_CMD_READ`.
    Read {
        /// At most one content chunk in the reply.
        dont_fragment: bool,
    },
    /// `NBD_CMD_WRITE`.
    Write {
        /// Durable when answered.
        fua: bool,
    },
    /// `NBD_CMD_FLUSH`.
    Flush,
    /// `NBD_CMD_TRIM`.
    Trim {
        /// Durable when answered.
        fua: bool,
    },
    /// `NBD_CMD_CACHE`.
    Cache,
    /// `NBD_CMD_WRITE_ZEROES`.
    WriteZeroes {
        /// Durable when answered.
        fua: bool,
        /// Must stay allocated.
        no_hole: bool,
        /// Fast or not at all.
        fast: bool,
    },
    /// `NBD_CMD_BLOCK_STATUS`.
    BlockStatus {
        /// One extent for each context.
        one: bool,
    },
    /// `NBD_CMD_DISC`.
    Disconnect,
}

impl RequestHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// Another magic: nobody knows where the next request starts.
    pub fn decode(bytes: &[u8; REQUEST_LEN]) -> Result<Self, ClientFault> {
        let mut reader = Reader(bytes);
        let magic = reader.u32();
        let fields = (
            reader.u16(),
            reader.u16(),
            reader.u64(),
            reader.u64(),
            reader.u32(),
        );
        match (magic, fields) {
            (
                Some(REQUEST_MAGIC),
                (Some(flags), Some(command), Some(cookie), Some(offset), Some(len)),
            ) => Ok(Self {
                flags,
                command,
                cookie,
                offset,
                len,
            }),
            _ => Err(ClientFault::RequestMagic {
                found: magic.unwrap_or_default(),
            }),
        }
    }

    /// Bytes of payload that follow the header.
    pub fn payload_len(&self) -> u32 {
        if self.command == cmd::WRITE {
            self.len
        } else {
            0
        }
    }

    /// Checks the request against the export and what was negotiated.
    ///
    /// # Errors
    /// What the client is answered; the connection goes on.
    pub fn check(&self, info: &DeviceInfo, terms: Terms) -> Result<Command, IoError> {
        let command = self.command()?;
        self.check_flags(command, info, terms)?;
        match command {
            Command::Disconnect => return Ok(command),
            Command::Flush if self.offset == 0 && self.len == 0 => return Ok(command),
            Command::Flush => return Err(invalid("a flush with an offset or a length")),
            Command::BlockStatus { .. } if terms.contexts.is_empty() => {
                return Err(invalid(
                    "block status without a metadata context negotiated",
                ));
            }
            Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. }
                if info.read_only =>
            {
                return Err(IoError::new(Errno::Perm, "the export is read-only"));
            }
            _ => {}
        }
        self.check_payload(command, info, terms)?;
        self.check_range(command, info)?;
        Ok(command)
    }

    fn command(&self) -> Result<Command, IoError> {
        let has = |flag| self.flags & flag != 0;
        let fua = has(cmd_flag::FUA);
        Ok(match self.command {
            cmd::READ => Command::Read {
                dont_fragment: has(cmd_flag::DF),
            },
            cmd::WRITE => Command::Write { fua },
            cmd::DISC => Command::Disconnect,
            cmd::FLUSH => Command::Flush,
            cmd::TRIM => Command::Trim { fua },
            cmd::CACHE => Command::Cache,
            cmd::WRITE_ZEROES => Command::WriteZeroes {
                fua,
                no_hole: has(cmd_flag::NO_HOLE),
                fast: has(cmd_flag::FAST_ZERO),
            },
            cmd::BLOCK_STATUS => Command::BlockStatus {
                one: has(cmd_flag::REQ_ONE),
            },
            other => return Err(invalid(format!("unknown command {other}"))),
        })
    }

    /// FUA may come with every command; any other flag belongs to one.
    fn check_flags(
        &self,
        command: Command,
        info: &DeviceInfo,
        terms: Terms,
    ) -> Result<(), IoError> {
        let known = match command {
            // Nothing answers it.
            Command::Disconnect => return Ok(()),
            Command::Read { .. } if terms.structured => cmd_flag::DF,
            Command::WriteZeroes { .. } if info.fast_zero => {
                cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO
            }
            Command::WriteZeroes { .. } => cmd_flag::NO_HOLE,
            Command::BlockStatus { .. } => cmd_flag::REQ_ONE,
            _ => 0,
        };
        let unknown = self.flags & !(known | cmd_flag::FUA);
        if unknown == 0 {
            return Ok(());
        }
        Err(invalid(format!(
            "flags {unknown:#x} do not belong to this command here"
        )))
    }

    fn check_payload(
        &self,
        command: Command,
        info: &DeviceInfo,
        terms: Terms,
    ) -> Result<(), IoError> {
        let code = match command {
            // "permitted to reject large read requests up front with NBD_EOVERFLOW"
            Command::Read { .. } if terms.structured => Errno::Overflow,
            Command::Read { .. } | Command::Write { .. } => Errno::Inval,
            _ => return Ok(()),
        };
        if self.len <= info.max_payload {
            return Ok(());
        }
        let (len, max) = (self.len, info.max_payload);
        Err(IoError::new(
            code,
            format!("{len} bytes in one request; the maximum is {max}"),
        ))
    }

    fn check_range(&self, command: Command, info: &DeviceInfo) -> Result<(), IoError> {
        if self.len == 0 {
            return Err(invalid("a length of 0"));
        }
        let (offset, len) = (self.offset, u64::from(self.len));
        let unit = u64::from(info.min_block);
        if !offset.is_multiple_of(unit) || !len.is_multiple_of(unit) {
            return Err(invalid(format!(
                "offset {offset} and length {len} must be multiples of {unit}"
            )));
        }
        if offset.checked_add(len).is_some_and(|end| end <= info.size) {
            return Ok(());
        }
        let code = match command {
            Command::Write { .. } | Command::WriteZeroes { .. } => Errno::NoSpc,
            _ => Errno::Inval,
        };
        let size = info.size;
        Err(IoError::new(
            code,
            format!("{len} bytes at {offset} reach past the end at {size}"),
        ))
    }
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> IoError {
    IoError::new(Errno::Inval, message)
}
