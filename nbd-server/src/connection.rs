//! A client's byte stream: TCP or Unix socket, in clear or under TLS; and reading from it through
//! a buffer.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// A connected stream socket.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// Unix.
    Unix(UnixStream),
}

/// A client's stream.
#[derive(Debug)]
pub enum Connection {
    /// In clear.
    Clear(Socket),
    /// Encrypted.
    Tls(Box<TlsStream<Socket>>),
}

macro_rules! delegate {
    ($type:ty, $a:ident, $b:ident) => {
        impl AsyncRead for $type {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::$a(stream) => Pin::new(stream).poll_read(cx, buf),
                    Self::$b(stream) => Pin::new(stream).poll_read(cx, buf),
                }
            }
        }

        impl AsyncWrite for $type {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::$a(stream) => Pin::new(stream).poll_write(cx, buf),
                    Self::$b(stream) => Pin::new(stream).poll_write(cx, buf),
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::$a(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
                    Self::$b(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    Self::$a(stream) => stream.is_write_vectored(),
                    Self::$b(stream) => stream.is_write_vectored(),
                }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::$a(stream) => Pin::new(stream).poll_flush(cx),
                    Self::$b(stream) => Pin::new(stream).poll_flush(cx),
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::$a(stream) => Pin::new(stream).poll_shutdown(cx),
                    Self::$b(stream) => Pin::new(stream).poll_shutdown(cx),
                }
            }
        }
    };
}

delegate!(Socket, Tcp, Unix);
delegate!(Connection, Clear, Tls);

impl Connection {
    fn socket(&self) -> BorrowedFd<'_> {
        let socket = match self {
            Self::Clear(socket) => socket,
            Self::Tls(stream) => stream.get_ref().0,
        };
        match socket {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}

/// How often a client that is not read from is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Waits until the client's end is closed or reset, without reading: the end of what it sends is none,
/// since it may still take answers. (A TCP client's close looks like that until keepalive meets its reset.)
pub async fn hung_up(connection: &RefCell<Connection>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if is_hung_up(connection) {
            return;
        }
    }
}

/// Whether the client's end is closed or reset by now, as far as can be told.
pub fn is_hung_up(connection: &RefCell<Connection>) -> bool {
    let connection = connection.borrow();
    let mut socket = [PollFd::from_borrowed_fd(
        connection.socket(),
        PollFlags::empty(), // these two are told unasked
    )];
    let at_once = Some(&Timespec::default());
    let is_gone = PollFlags::HUP | PollFlags::ERR;
    // An error: it is looked at again.
    rustix::event::poll(&mut socket, at_once).is_ok() && socket[0].revents().intersects(is_gone)
}

/// Size of the read buffer: sixteen pipelined 4 KiB writes, or thousands of reads, come with one
/// system call. The heap touches its pages only as far as a client fills them.
const INBOX_LEN: usize = 64 << 10;

/// A rest of a payload that is at least this long is read to where it belongs, past the buffer;
/// copying a shorter one costs less than the system call that it saves.
const DIRECT_LEN: usize = 16 << 10;

/// What happened to a read.
#[derive(Debug)]
pub enum Filled {
    /// The bytes are there.
    Full,
    /// The stream ended before the first of them.
    End,
    /// The stream ended among them.
    Cut,
}

/// Bytes that were read from a client and not yet used.
#[derive(Debug)]
pub struct Inbox {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            buf: vec![0; INBOX_LEN].into(),
            start: 0,
            end: 0,
        }
    }
}

impl Inbox {
    /// Bytes that are there.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Takes the next `N` bytes, waiting for them.
    pub async fn array<const N: usize>(
        &mut self,
        connection: &RefCell<Connection>,
        out: &mut [u8; N],
    ) -> io::Result<Filled> {
        const { assert!(N <= DIRECT_LEN) };
        while self.len() < N {
            if self.fill(connection).await? == 0 {
                return Ok(if self.len() == 0 {
                    Filled::End
                } else {
                    Filled::Cut
                });
            }
        }
        out.copy_from_slice(&self.buf[self.start..self.start + N]);
        self.start += N;
        Ok(Filled::Full)
    }

    /// Fills `out` with the next bytes, waiting for them; `moved` is told of each step.
    pub async fn read_into(
        &mut self,
        connection: &RefCell<Connection>,
        mut out: &mut [u8],
        mut moved: impl FnMut(),
    ) -> io::Result<Filled> {
        while !out.is_empty() {
            if self.len() > 0 {
                let len = self.len().min(out.len());
                out[..len].copy_from_slice(&self.buf[self.start..self.start + len]);
                self.start += len;
                out = &mut out[len..];
            } else if out.len() >= DIRECT_LEN {
                let len = read(connection, out).await?;
                if len == 0 {
                    return Ok(Filled::Cut);
                }
                moved();
                out = &mut out[len..];
            } else {
                if self.fill(connection).await? == 0 {
                    return Ok(Filled::Cut);
                }
                moved();
            }
        }
        Ok(Filled::Full)
    }

    /// Drops the next `len` bytes, waiting for them; `moved` is told of each step.
    pub async fn skip(
        &mut self,
        connection: &RefCell<Connection>,
        mut len: usize,
        mut moved: impl FnMut(),
    ) -> io::Result<Filled> {
        loop {
            let skipped = self.len().min(len);
            self.start += skipped;
            len -= skipped;
            if len == 0 {
                return Ok(Filled::Full);
            }
            if self.fill(connection).await? == 0 {
                return Ok(Filled::Cut);
            }
            moved();
        }
    }

    /// Reads once into the free part of the buffer.
    async fn fill(&mut self, connection: &RefCell<Connection>) -> io::Result<usize> {
        // Headers that straddle the end are moved to the front: at most a few bytes.
        self.buf.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let len = read(connection, &mut self.buf[self.end..]).await?;
        self.end += len;
        Ok(len)
    }
}

async fn read(connection: &RefCell<Connection>, out: &mut [u8]) -> io::Result<usize> {
    poll_fn(|cx| {
        let mut buf = ReadBuf::new(out);
        ready!(Pin::new(&mut *connection.borrow_mut()).poll_read(cx, &mut buf))?;
        Poll::Ready(Ok(buf.filled().len()))
    })
    .await
}
