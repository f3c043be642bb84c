//! Heartbeats over a serial line: a tty in raw mode, frames between marks.
//!
//! A frame is sent as RFC 1055 (SLIP) has it: an END before and after, and END and ESC within it
//! spelled as two bytes. Whatever is lost or added on the line, the next END begins anew; what lies
//! between two of them is believed only if it is signed.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::termios::{OptionalActions, tcflush, tcgetattr, tcsetattr};
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use super::{AGAIN, Ear, Newest};

/// The longest frame, in bytes.
pub const FRAME_MAX: usize = 4096;

const END: u8 = 0xC0;
const ESC: u8 = 0xDB;
const ESC_END: u8 = 0xDC;
const ESC_ESC: u8 = 0xDD;

type Tty = AsyncFd<rustix::fd::OwnedFd>;

/// Sends and receives for as long as there is something to send.
pub(super) async fn run(path: PathBuf, baud: u32, ear: Ear, mut newest: Newest) {
    let mut told = false;
    loop {
        let error = match open(&path, baud) {
            Ok(tty) => {
                tokio::select! {
                    ended = send(&tty, &mut newest) => match ended {
                        Ok(()) => return,
                        Err(error) => error,
                    },
                    Err(error) = receive(&tty, &ear, &mut told) => error,
                }
            }
            Err(error) => error,
        };
        ear.failed(&mut told, &path.display().to_string(), &error);
        sleep(AGAIN).await;
    }
}

fn open(path: &Path, baud: u32) -> io::Result<Tty> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tty = rustix::fs::open(path, flags, Mode::empty())?;
    let mut modes = tcgetattr(&tty)?;
    modes.make_raw();
    modes.set_speed(baud)?;
    tcsetattr(&tty, OptionalActions::Now, &modes)?;
    // What was received before is older than this manager.
    tcflush(&tty, rustix::termios::QueueSelector::IFlush)?;
    // What was found unsound is a descriptor that is closed meanwhile: an OwnedFd is not.
    #[allow(deprecated)]
    AsyncFd::new(tty)
}

async fn send(tty: &Tty, newest: &mut Newest) -> io::Result<()> {
    loop {
        if newest.changed().await.is_err() {
            return Ok(());
        }
        let bytes = spell(&newest.borrow_and_update().clone());
        let mut left = &bytes[..];
        while !left.is_empty() {
            let mut ready = tty.writable().await?;
            match ready.try_io(|tty| rustix::io::write(tty, left).map_err(io::Error::from)) {
                Ok(written) => left = &left[written?..],
                Err(_would_block) => {}
            }
        }
    }
}

async fn receive(tty: &Tty, ear: &Ear, told: &mut bool) -> io::Result<std::convert::Infallible> {
    let mut reader = Reader::default();
    let mut buffer = [0; 512];
    loop {
        let mut ready = tty.readable().await?;
        let read =
            ready.try_io(|tty| rustix::io::read(tty, &mut buffer[..]).map_err(io::Error::from));
        let Ok(read) = read else {
            continue;
        };
        let length = read?;
        if length == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "hung up"));
        }
        for byte in &buffer[..length] {
            if let Some(frame) = reader.take(*byte) {
                *told = false;
                ear.hear(&frame, false);
            }
        }
    }
}

fn spell(frame: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(frame.len() + 16);
    bytes.push(END);
    for byte in frame {
        match *byte {
            END => bytes.extend([ESC, ESC_END]),
            ESC => bytes.extend([ESC, ESC_ESC]),
            byte => bytes.push(byte),
        }
    }
    bytes.push(END);
    bytes
}

/// Puts frames together again.
#[derive(Debug, Default)]
struct Reader {
    frame: Vec<u8>,
    escaped: bool,
    /// What has come since the last mark is no frame.
    lost: bool,
}

impl Reader {
    fn take(&mut self, byte: u8) -> Option<Vec<u8>> {
        if byte == END {
            let frame = std::mem::take(&mut self.frame);
            let whole = !self.lost && !self.escaped && !frame.is_empty();
            self.lost = false;
            self.escaped = false;
            return whole.then_some(frame);
        }
        if self.lost {
            return None;
        }
        let plain = match (self.escaped, byte) {
            (false, ESC) => {
                self.escaped = true;
                return None;
            }
            (false, byte) => byte,
            (true, ESC_END) => END,
            (true, ESC_ESC) => ESC,
            (true, _) => {
                self.lost = true;
                return None;
            }
        };
        self.escaped = false;
        if self.frame.len() == FRAME_MAX {
            self.lost = true;
        } else {
            self.frame.push(plain);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut reader = Reader::default();
        bytes.iter().filter_map(|b| reader.take(*b)).collect()
    }

    #[test]
    fn every_byte_can_be_in_a_frame() {
        let frame: Vec<u8> = (0..=255).chain(0..=255).collect();
        assert_eq!(read(&spell(&frame)), [frame]);
    }

    #[test]
    fn a_frame_after_noise_is_read_whole() {
        let frame = vec![1, END, 2, ESC, 3];
        for noise in [
            &b"noise"[..],
            &[ESC],
            &[ESC, 1, 2],
            &[END, END],
            &vec![7; 3 * FRAME_MAX][..],
        ] {
            let mut bytes = noise.to_vec();
            bytes.extend(spell(&frame));
            assert_eq!(read(&bytes).last(), Some(&frame));
        }
        // Cut in the middle, then the next one.
        let spelled = spell(&frame);
        for cut in 0..spelled.len() {
            let mut bytes = spelled[..cut].to_vec();
            bytes.extend(&spelled);
            assert_eq!(read(&bytes).last(), Some(&frame), "cut at {cut}");
        }
    }
}
