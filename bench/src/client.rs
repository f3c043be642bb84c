//! The one NBD client that measures every candidate: pipelined, over a Unix socket, on one thread.
//!
//! It asks for simple replies, writes any number of requests with one system call and takes any
//! number of replies, with the data that reads bring, with one. It looks at no data: what it spends
//! per request stays small beside what it measures.

use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use kagami_nbd_server::proto::{
    INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_MAGIC, Reader, SIMPLE_REPLY_MAGIC, cmd,
    handshake_flag, info, opt, rep, transmission_flag,
};

use crate::error::BenchError;

/// How long any answer may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a request's header.
const REQUEST: usize = 28;
/// Bytes of a simple reply.
const REPLY: usize = 16;
/// Bytes taken from the socket at once.
const RECEIVED: usize = 1 << 20;
/// Bytes of random data that payloads are cut from.
const DATA: usize = 16 << 20;
/// Pieces handed to the kernel at once; its own bound.
const PIECES: usize = 1024;

/// A connection to an export.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    size: u64,
    can_flush: bool,
    /// What payloads are cut from.
    data: Vec<u8>,
    /// Headers of requests that were not sent yet, and where in `data` their payload lies.
    headers: Vec<u8>,
    payloads: Vec<(usize, usize)>,
    received: Vec<u8>,
    /// Bytes of `received` that hold replies, or a part of one.
    filled: usize,
    /// Bytes of data that the reply to each read in flight brings, by its cookie.
    awaited: Vec<u32>,
    /// A reply whose data has not come whole: its cookie, and the bytes to come.
    partly: Option<(u64, usize)>,
}

impl Client {
    /// Connects to `export` at the socket, as soon as there is a server within `patience`.
    ///
    /// # Errors
    /// There is no such server, or it refuses.
    pub fn connect(socket: &Path, export: &str, patience: Duration) -> Result<Self, BenchError> {
        let deadline = Instant::now() + patience;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => {
                    return Err(BenchError::io(format!("{}", socket.display()))(error));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let set = |result: io::Result<()>| result.map_err(BenchError::io("a socket"));
        set(stream.set_read_timeout(Some(PATIENCE)))?;
        set(stream.set_write_timeout(Some(PATIENCE)))?;
        let mut client = Self {
            stream,
            size: 0,
            can_flush: false,
            data: random_data(),
            headers: Vec::new(),
            payloads: Vec::new(),
            received: vec![0; RECEIVED],
            filled: 0,
            awaited: Vec::new(),
            partly: None,
        };
        client.negotiate(export)?;
        Ok(client)
    }

    /// Bytes of the export.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Queues a write of `len` bytes at `offset`; `draw` chooses the data.
    pub fn write(&mut self, cookie: u64, offset: u64, len: u32, draw: u64) {
        let len = len as usize;
        // Another start for nearly every write: no two blocks of a disk are the same.
        let at = (draw as usize % (DATA - len)) & !7;
        self.request(cmd::WRITE, cookie, offset, len);
        self.payloads.push((at, len));
    }

    /// Queues a read of `len` bytes at `offset`. Cookies of reads are small: each has a place of its own.
    pub fn read(&mut self, cookie: u64, offset: u64, len: u32) {
        let place = cookie as usize;
        if self.awaited.len() <= place {
            self.awaited.resize(place + 1, 0);
        }
        self.awaited[place] = len;
        self.request(cmd::READ, cookie, offset, len as usize);
        self.payloads.push((0, 0));
    }

    /// Queues a flush.
    pub fn flush(&mut self, cookie: u64) {
        self.request(cmd::FLUSH, cookie, 0, 0);
        self.payloads.push((0, 0));
    }

    fn request(&mut self, command: u16, cookie: u64, offset: u64, len: usize) {
        self.headers.extend(REQUEST_MAGIC.to_be_bytes());
        self.headers.extend(0_u16.to_be_bytes());
        self.headers.extend(command.to_be_bytes());
        self.headers.extend(cookie.to_be_bytes());
        self.headers.extend(offset.to_be_bytes());
        self.headers.extend((len as u32).to_be_bytes());
    }

    /// Sends what is queued.
    ///
    /// # Errors
    /// The server is gone.
    pub fn send(&mut self) -> Result<(), BenchError> {
        let mut pieces = Vec::with_capacity(2 * self.payloads.len());
        for (header, (at, len)) in self.headers.chunks_exact(REQUEST).zip(&self.payloads) {
            pieces.push(IoSlice::new(header));
            if *len > 0 {
                pieces.push(IoSlice::new(&self.data[*at..*at + *len]));
            }
        }
        let mut pieces = &mut pieces[..];
        while !pieces.is_empty() {
            let count = pieces.len().min(PIECES);
            let sent = again(|| self.stream.write_vectored(&pieces[..count]))
                .map_err(BenchError::io("sending to the NBD server"))?;
            IoSlice::advance_slices(&mut pieces, sent);
        }
        self.headers.clear();
        self.payloads.clear();
        Ok(())
    }

    /// Waits for replies and gives the cookies of all that are there.
    ///
    /// # Errors
    /// The server is gone, or answers with an error.
    pub fn receive(&mut self, cookies: &mut Vec<u64>) -> Result<(), BenchError> {
        let before = cookies.len();
        while cookies.len() == before {
            let count = again(|| self.stream.read(&mut self.received[self.filled..]))
                .map_err(BenchError::io("receiving from the NBD server"))?;
            if count == 0 {
                return Err(BenchError::Nbd("the server closed the connection".into()));
            }
            self.filled += count;
            self.take_replies(cookies)?;
        }
        Ok(())
    }

    /// Takes every reply that is there whole; keeps the start of the next.
    fn take_replies(&mut self, cookies: &mut Vec<u64>) -> Result<(), BenchError> {
        let mut at = 0;
        loop {
            if let Some((cookie, rest)) = self.partly {
                let here = rest.min(self.filled - at);
                at += here;
                if here < rest {
                    self.partly = Some((cookie, rest - here));
                    break;
                }
                self.partly = None;
                cookies.push(cookie);
            }
            let Some(reply) = self.received[at..self.filled].first_chunk::<REPLY>() else {
                break;
            };
            let mut reader = Reader(reply);
            let (magic, error) = (reader.u32(), reader.u32());
            if magic != Some(SIMPLE_REPLY_MAGIC) {
                return Err(BenchError::Nbd(format!("a reply starts with {magic:x?}")));
            }
            if error != Some(0) {
                return Err(BenchError::Nbd(format!("a request failed with {error:?}")));
            }
            let cookie = reader.u64().expect("sixteen bytes");
            let data = self.awaited.get_mut(cookie as usize);
            let data = data.map(std::mem::take).unwrap_or_default();
            self.partly = Some((cookie, data as usize));
            at += REPLY;
        }
        self.received.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(())
    }

    /// Flushes, with nothing else in flight.
    ///
    /// # Errors
    /// As [`Client::receive`].
    pub fn flush_now(&mut self) -> Result<(), BenchError> {
        if self.can_flush {
            self.flush(u64::MAX);
            self.send()?;
            self.receive(&mut Vec::new())?;
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], BenchError> {
        let mut bytes = [0; N];
        self.stream
            .read_exact(&mut bytes)
            .map_err(BenchError::io("the NBD handshake"))?;
        Ok(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), BenchError> {
        self.stream
            .write_all(bytes)
            .map_err(BenchError::io("the NBD handshake"))
    }

    /// Fixed newstyle, `NBD_OPT_GO`.
    fn negotiate(&mut self, export: &str) -> Result<(), BenchError> {
        let wanted = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        let greeting = [self.take::<8>()?, self.take::<8>()?];
        let flags = u16::from_be_bytes(self.take()?);
        if greeting != [INIT_MAGIC.to_be_bytes(), OPTION_MAGIC.to_be_bytes()]
            || flags & wanted != wanted
        {
            return Err(BenchError::Nbd("not a fixed newstyle server".into()));
        }
        self.put(&u32::from(wanted).to_be_bytes())?;
        let mut option = OPTION_MAGIC.to_be_bytes().to_vec();
        option.extend(opt::GO.to_be_bytes());
        option.extend((export.len() as u32 + 6).to_be_bytes());
        option.extend((export.len() as u32).to_be_bytes());
        option.extend(export.as_bytes());
        option.extend(0_u16.to_be_bytes());
        self.put(&option)?;
        loop {
            let magic = u64::from_be_bytes(self.take()?);
            let _option = self.take::<4>()?;
            let kind = u32::from_be_bytes(self.take()?);
            let len = u32::from_be_bytes(self.take()?) as usize;
            if magic != OPTION_REPLY_MAGIC || len > 1 << 16 {
                return Err(BenchError::Nbd(
                    "garbage instead of an option's reply".into(),
                ));
            }
            let mut data = vec![0; len];
            self.stream
                .read_exact(&mut data)
                .map_err(BenchError::io("the NBD handshake"))?;
            match kind {
                rep::ACK => break,
                rep::INFO => self.on_info(&data),
                _ => {
                    let words = String::from_utf8_lossy(&data);
                    return Err(BenchError::Nbd(format!(
                        "export '{export}' refused ({kind:#x}): {words}"
                    )));
                }
            }
        }
        if self.size == 0 {
            return Err(BenchError::Nbd(format!("export '{export}' has no size")));
        }
        Ok(())
    }

    fn on_info(&mut self, data: &[u8]) {
        let mut reader = Reader(data);
        if reader.u16() != Some(info::EXPORT) {
            return;
        }
        if let (Some(high), Some(low), Some(flags)) = (reader.u32(), reader.u32(), reader.u16()) {
            self.size = u64::from(high) << 32 | u64::from(low);
            self.can_flush = flags & transmission_flag::SEND_FLUSH != 0;
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.headers.clear();
        self.request(cmd::DISC, 0, 0, 0);
        // The server may be gone already.
        let _ = self.stream.write_all(&self.headers);
    }
}

/// A ring on this thread interrupts system calls when it has something to deliver.
fn again(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn random_data() -> Vec<u8> {
    let mut data = Vec::with_capacity(DATA);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    while data.len() < DATA {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend(state.to_le_bytes());
    }
    data
}
