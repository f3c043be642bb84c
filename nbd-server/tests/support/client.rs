//! A client that says exactly what a test wants, right or wrong.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use kagami_nbd_server::proto::{
    OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
    chunk, opt, rep,
};

use super::DEADLINE;

pub trait Wire: Read + Write {}
impl<T: Read + Write> Wire for T {}

pub struct Client {
    pub stream: Box<dyn Wire>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    Simple {
        error: u32,
        cookie: u64,
    },
    Chunk {
        flags: u16,
        kind: u16,
        cookie: u64,
        payload: Vec<u8>,
    },
}

pub fn unix_stream(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).expect("a connection");
    stream.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    stream
        .set_write_timeout(Some(DEADLINE))
        .expect("a time-out");
    stream
}

pub fn tcp_stream(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    stream.set_nodelay(true).expect("no delay");
    stream
}

impl Client {
    pub fn unix(path: &Path) -> Self {
        Self {
            stream: Box::new(unix_stream(path)),
        }
    }

    /// Connected, greeted, fixed newstyle without zeroes.
    pub fn greeted(path: &Path) -> Self {
        let mut client = Self::unix(path);
        client.greet(3);
        client
    }

    /// In the transmission phase of `export`, with structured replies or without.
    pub fn connected(path: &Path, export: &str, structured: bool) -> Self {
        let mut client = Self::greeted(path);
        if structured {
            client.expect_ack(opt::STRUCTURED_REPLY, &[]);
        }
        client.go(export);
        client
    }

    pub fn greet(&mut self, flags: u32) {
        assert_eq!(&self.take(18), b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&flags.to_be_bytes());
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sent");
    }

    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream
            .read_exact(&mut bytes)
            .expect("bytes of the server");
        bytes
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().expect("2"))
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().expect("4"))
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take(8).try_into().expect("8"))
    }

    pub fn send_option(&mut self, option: u32, data: &[u8]) {
        self.send(&option_bytes(option, data));
    }

    /// The next reply to an option: type and data.
    pub fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        assert_eq!(self.u64(), OPTION_REPLY_MAGIC);
        assert_eq!(self.u32(), option);
        let kind = self.u32();
        let len = self.u32() as usize;
        (kind, self.take(len))
    }

    /// Sends an option and gives all its replies.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send_option(option, data);
        self.option_replies(option)
    }

    pub fn option_replies(&mut self, option: u32) -> Vec<(u32, Vec<u8>)> {
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply(option);
            let last = reply.0 == rep::ACK || reply.0 >> 31 == 1;
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    pub fn expect_ack(&mut self, option: u32, data: &[u8]) {
        assert_eq!(
            self.option(option, data).last().expect("a reply").0,
            rep::ACK
        );
    }

    pub fn go(&mut self, export: &str) {
        self.expect_ack(opt::GO, &export_data(export, &[3]));
    }

    pub fn request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, len: u32) {
        self.send(&request_bytes(flags, command, cookie, offset, len));
    }

    /// The next reply; the data of a simple one is left in the stream.
    pub fn reply(&mut self) -> Reply {
        match self.u32() {
            SIMPLE_REPLY_MAGIC => Reply::Simple {
                error: self.u32(),
                cookie: self.u64(),
            },
            STRUCTURED_REPLY_MAGIC => {
                let (flags, kind, cookie) = (self.u16(), self.u16(), self.u64());
                let len = self.u32() as usize;
                Reply::Chunk {
                    flags,
                    kind,
                    cookie,
                    payload: self.take(len),
                }
            }
            other => panic!("a reply starts with {other:#x}"),
        }
    }

    /// The error number of the next reply, of either kind; 0 for success without data.
    pub fn error(&mut self, expected_cookie: u64) -> u32 {
        match self.reply() {
            Reply::Simple { error, cookie } => {
                assert_eq!(cookie, expected_cookie);
                error
            }
            Reply::Chunk {
                flags,
                kind,
                cookie,
                payload,
            } => {
                assert_eq!(cookie, expected_cookie);
                assert_eq!(flags, chunk::FLAG_DONE);
                assert!(
                    kind == chunk::ERROR || kind == chunk::ERROR_OFFSET,
                    "chunk {kind}"
                );
                u32::from_be_bytes(payload[..4].try_into().expect("4"))
            }
        }
    }

    /// The server has closed the connection, after perhaps saying something.
    pub fn expect_closed(&mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("not closed: {error}"),
        }
    }

    /// The connection still works: a read of the first sector is answered.
    pub fn expect_alive(&mut self) {
        self.request(0, 3, 0xa11e, 0, 0);
        assert_eq!(self.error(0xa11e), 0);
    }
}

pub fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

pub fn request_bytes(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// Data of INFO and GO.
pub fn export_data(export: &str, requests: &[u16]) -> Vec<u8> {
    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend(export.as_bytes());
    data.extend((requests.len() as u16).to_be_bytes());
    data.extend(requests.iter().flat_map(|request| request.to_be_bytes()));
    data
}

/// Data of the metadata context options.
pub fn context_data(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend(export.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

/// A write request with its payload.
pub fn write_bytes(flags: u16, cookie: u64, offset: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = request_bytes(
        flags,
        kagami_nbd_server::proto::cmd::WRITE,
        cookie,
        offset,
        payload.len() as u32,
    );
    bytes.extend(payload);
    bytes
}
