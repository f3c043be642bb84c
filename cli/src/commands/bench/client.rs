//! A small NBD client: what `kagami bench` and `kagami demo` do to a mirror goes through it.
//!
//! It speaks the baseline protocol over a Unix socket (fixed newstyle, `GO`, simple replies) and keeps as
//! many writes and flushes in flight as its user submits; it is blocking, and shares no code with the
//! server, so that what it proves, it proves about the bytes on the socket.

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
const GREETING: &[u8; 8] = b"NBDMAGIC";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
/// The longest option reply that is read; the protocol's strings end at 4 KiB.
const LONGEST_REPLY: u32 = 64 << 10;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const FLAG_FUA: u16 = 1;

/// The most bytes of one request: every server takes 32 MiB, this client asks for less.
pub const LONGEST: usize = 4 << 20;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is nothing to connect to, or the server hung up.
    #[error("{socket}: {error}")]
    Broken {
        /// Which socket.
        socket: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// No answer within the client's time.
    #[error("{socket}: no answer within {after:?}")]
    TimedOut {
        /// Which socket.
        socket: PathBuf,
        /// How long it waited.
        after: Duration,
    },
    /// The server would not serve the export.
    #[error("{socket}: the server refused export {export}: {why}")]
    Refused {
        /// Which socket.
        socket: PathBuf,
        /// Which export.
        export: String,
        /// The server's words, or the code of its answer.
        why: String,
    },
    /// A request failed.
    #[error("{socket}: {request} failed with NBD error {code} ({})", meaning(*code))]
    Failed {
        /// Which socket.
        socket: PathBuf,
        /// What was asked.
        request: &'static str,
        /// The protocol's error number.
        code: u32,
    },
    /// The server said what the protocol does not allow.
    #[error("{socket}: not NBD: {what}")]
    Garbage {
        /// Which socket.
        socket: PathBuf,
        /// What was wrong.
        what: &'static str,
    },
}

/// The NBD protocol's error numbers in words.
fn meaning(code: u32) -> &'static str {
    match code {
        1 => "not permitted",
        5 => "I/O error",
        12 => "no memory",
        22 => "invalid request",
        28 => "no space",
        75 => "too large",
        95 => "not supported",
        108 => "the server is shutting down",
        _ => "unknown",
    }
}

/// One connection in the transmission phase.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    patience: Duration,
    size: u64,
    cookie: u64,
    pending: HashMap<u64, &'static str>,
}

impl Client {
    /// Connects to `export` behind a Unix socket. Every later wait for the server ends after `patience`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect(socket: &Path, export: &str, patience: Duration) -> Result<Self, ClientError> {
        let broken = |error| ClientError::Broken {
            socket: socket.to_owned(),
            error,
        };
        let writer = UnixStream::connect(socket).map_err(broken)?;
        writer.set_read_timeout(Some(patience)).map_err(broken)?;
        writer.set_write_timeout(Some(patience)).map_err(broken)?;
        let reader = BufReader::with_capacity(64 << 10, writer.try_clone().map_err(broken)?);
        let mut client = Self {
            socket: socket.to_owned(),
            reader,
            writer,
            patience,
            size: 0,
            cookie: 0,
            pending: HashMap::new(),
        };
        client.negotiate(export)?;
        Ok(client)
    }

    /// Bytes of the export.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Requests that were submitted and not yet answered.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    fn negotiate(&mut self, export: &str) -> Result<(), ClientError> {
        let mut greeting = [0; 18];
        self.receive(&mut greeting)?;
        if &greeting[..8] != GREETING || greeting[8..16] != OPTION_MAGIC.to_be_bytes() {
            return Err(self.garbage("the greeting"));
        }
        // Fixed newstyle, no zeroes: the same two bits that the server offered.
        let offered = u32::from(u16::from_be_bytes([greeting[16], greeting[17]])) & 3;
        let mut hello = offered.to_be_bytes().to_vec();
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend(OPT_GO.to_be_bytes());
        hello.extend((export.len() as u32 + 6).to_be_bytes());
        hello.extend((export.len() as u32).to_be_bytes());
        hello.extend(export.as_bytes());
        hello.extend(0_u16.to_be_bytes());
        self.send(&hello)?;
        loop {
            let mut head = [0; 20];
            self.receive(&mut head)?;
            if head[..8] != REPLY_MAGIC.to_be_bytes() {
                return Err(self.garbage("the answer to GO"));
            }
            let kind = u32::from_be_bytes([head[12], head[13], head[14], head[15]]);
            let len = u32::from_be_bytes([head[16], head[17], head[18], head[19]]);
            if len > LONGEST_REPLY {
                return Err(self.garbage("an answer to GO without end"));
            }
            let mut data = vec![0; len as usize];
            self.receive(&mut data)?;
            match kind {
                REP_ACK => return Ok(()),
                REP_INFO if data.len() == 12 && data[..2] == INFO_EXPORT.to_be_bytes() => {
                    let (_, rest) = data.split_at(2);
                    self.size = rest[..8]
                        .iter()
                        .fold(0, |size, byte| size << 8 | u64::from(*byte));
                }
                REP_INFO => {}
                other => {
                    let words = String::from_utf8_lossy(&data).into_owned();
                    return Err(ClientError::Refused {
                        socket: self.socket.clone(),
                        export: export.to_owned(),
                        why: if words.is_empty() {
                            format!("reply {other:#x}")
                        } else {
                            words
                        },
                    });
                }
            }
        }
    }

    /// Sends a write of `data` at byte `offset`, with `fua` durable before its answer; gives its cookie.
    ///
    /// # Errors
    /// The connection broke.
    pub fn submit_write(
        &mut self,
        offset: u64,
        data: &[u8],
        fua: bool,
    ) -> Result<u64, ClientError> {
        assert!(data.len() <= LONGEST, "a request of {} bytes", data.len());
        let flags = if fua { FLAG_FUA } else { 0 };
        let cookie = self.request("a write", CMD_WRITE, flags, offset, data.len() as u32)?;
        self.send(data)?;
        Ok(cookie)
    }

    /// Sends a flush; gives its cookie.
    ///
    /// # Errors
    /// The connection broke.
    pub fn submit_flush(&mut self) -> Result<u64, ClientError> {
        self.request("a flush", CMD_FLUSH, 0, 0, 0)
    }

    /// Waits for the next answer of a write or flush, in whatever order the server gives them; says which.
    ///
    /// # Errors
    /// That request failed, or the connection broke.
    pub fn next_answer(&mut self) -> Result<u64, ClientError> {
        let mut head = [0; 16];
        self.receive(&mut head)?;
        if head[..4] != SIMPLE_REPLY_MAGIC.to_be_bytes() {
            return Err(self.garbage("a reply"));
        }
        let code = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        let cookie = head[8..]
            .iter()
            .fold(0, |cookie, byte| cookie << 8 | u64::from(*byte));
        let Some(request) = self.pending.remove(&cookie) else {
            return Err(self.garbage("a reply to no request"));
        };
        if code != 0 {
            return Err(ClientError::Failed {
                socket: self.socket.clone(),
                request,
                code,
            });
        }
        Ok(cookie)
    }

    /// Waits until nothing is in flight.
    ///
    /// # Errors
    /// The first request that failed, or the connection broke.
    pub fn settle(&mut self) -> Result<(), ClientError> {
        while self.in_flight() > 0 {
            self.next_answer()?;
        }
        Ok(())
    }

    /// Writes and waits.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        self.submit_write(offset, data, false)?;
        self.settle()
    }

    /// Waits for what is in flight, then flushes and waits.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.settle()?;
        self.submit_flush()?;
        self.settle()
    }

    /// Fills `data` from byte `offset`; nothing else may be in flight.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), ClientError> {
        assert_eq!(self.in_flight(), 0, "a read among writes");
        assert!(data.len() <= LONGEST, "a request of {} bytes", data.len());
        self.request("a read", CMD_READ, 0, offset, data.len() as u32)?;
        self.next_answer()?;
        self.receive(data)
    }

    /// Says goodbye. Dropping a client without it is what a client's death looks like.
    pub fn disconnect(mut self) {
        // The server may be gone already; that is what we are telling it about ourselves.
        let _ = self.request("a goodbye", CMD_DISC, 0, 0, 0);
    }

    fn request(
        &mut self,
        what: &'static str,
        command: u16,
        flags: u16,
        offset: u64,
        len: u32,
    ) -> Result<u64, ClientError> {
        self.cookie += 1;
        let mut head = [0; 28];
        head[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        head[4..6].copy_from_slice(&flags.to_be_bytes());
        head[6..8].copy_from_slice(&command.to_be_bytes());
        head[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        head[16..24].copy_from_slice(&offset.to_be_bytes());
        head[24..].copy_from_slice(&len.to_be_bytes());
        self.send(&head)?;
        self.pending.insert(self.cookie, what);
        Ok(self.cookie)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.writer
            .write_all(bytes)
            .map_err(|error| self.fault(error))
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<(), ClientError> {
        self.reader
            .read_exact(bytes)
            .map_err(|error| self.fault(error))
    }

    fn fault(&self, error: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::TimedOut {
                socket,
                after: self.patience,
            },
            _ => ClientError::Broken { socket, error },
        }
    }

    fn garbage(&self, what: &'static str) -> ClientError {
        ClientError::Garbage {
            socket: self.socket.clone(),
            what,
        }
    }
}
