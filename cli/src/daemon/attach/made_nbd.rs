//! An nbd driver that is made up, for [`super::tests`] and [`super::tests_nbd`].

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use kagami_nbd_server::kernel::Transport;
use kagami_nbd_server::kernel::client::is_hung_up;
use kagami_nbd_server::kernel::wire::{Attribute, Builder, ERROR, Messages};

use super::lock;
use super::made::DEADLINE;

/// The nbd driver: what it holds for each device that is set up.
#[derive(Debug, Default)]
pub(super) struct NbdDriver {
    pub(super) devices: BTreeMap<u32, (String, UnixStream)>,
    pub(super) reconfigured: usize,
    /// Its sender waits for room in the socket, and has the lock that taking a device down needs.
    pub(super) sender_is_stuck: bool,
    /// Somebody has it open: it keeps its files when it is taken down.
    pub(super) is_open: bool,
    /// A device is not taken down, and why.
    pub(super) keeps_up: Option<i32>,
}

impl NbdDriver {
    /// `NBD_CMD_DISCONNECT`: what sends is to end first. The kernel waits for that for ever.
    fn take_down(&mut self, index: u32) -> i32 {
        let Some((_, held)) = self.devices.get(&index) else {
            return 22;
        };
        let deadline = Instant::now() + DEADLINE / 6;
        while self.sender_is_stuck && !is_hung_up(held).expect("asked") {
            if Instant::now() > deadline {
                return 110;
            }
            std::thread::yield_now();
        }
        if let Some(errno) = self.keeps_up {
            return errno;
        }
        self.devices.remove(&index);
        0
    }
}

/// The files of a device of `sysfs` can't be read for a while, as where no descriptor is left.
pub(super) struct Unreadable<'a> {
    sysfs: &'a Path,
    index: u32,
    /// What they hold, where there are any.
    texts: Vec<(&'static str, Option<String>)>,
}

impl<'a> Unreadable<'a> {
    pub(super) fn from_now(sysfs: &'a Path, index: u32) -> Self {
        let device = sysfs.join(format!("block/nbd{index}"));
        let texts = ["pid", "backend"].map(|name| {
            let (file, new) = (device.join(name), device.join(format!("{name}.new")));
            let text = fs::read_to_string(&file).ok();
            // It leads to itself: who reads it gets an error, and not the one of a file that is not there.
            std::os::unix::fs::symlink(&file, &new).expect("made");
            fs::rename(&new, &file).expect("in its place");
            (name, text)
        });
        let texts = texts.into();
        Self {
            sysfs,
            index,
            texts,
        }
    }

    pub(super) fn no_more(self) {
        let device = self.sysfs.join(format!("block/nbd{}", self.index));
        for (name, text) in self.texts {
            let (file, new) = (device.join(name), device.join(format!("{name}.new")));
            let Some(text) = text else {
                fs::remove_file(&file).expect("removed");
                continue;
            };
            fs::write(&new, text).expect("written");
            fs::rename(&new, &file).expect("in its place");
        }
    }
}

/// One netlink socket to it.
pub(super) struct Asking {
    pub(super) driver: Arc<Mutex<NbdDriver>>,
    pub(super) sysfs: PathBuf,
    pub(super) answers: VecDeque<Vec<u8>>,
}

/// `NLMSG_ERROR`
pub(super) fn acknowledgement(sequence: u32, errno: i32) -> Vec<u8> {
    let mut bytes = 20u32.to_ne_bytes().to_vec();
    bytes.extend(ERROR.to_ne_bytes());
    bytes.extend([0, 0]);
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend((-errno).to_ne_bytes());
    bytes
}

/// The kernel's own reference to a descriptor of the caller's.
pub(super) fn taken(number: u32) -> UnixStream {
    let me = rustix::process::getpid();
    let me = rustix::process::pidfd_open(me, rustix::process::PidfdFlags::empty()).expect("me");
    let flags = rustix::process::PidfdGetfdFlags::empty();
    let number = i32::try_from(number).expect("a descriptor");
    let fd = rustix::process::pidfd_getfd(me.as_fd(), number, flags).expect("its socket");
    UnixStream::from(fd)
}

impl Asking {
    pub(super) fn set_up(&self, index: u32, backend: Option<&str>) {
        let device = self.sysfs.join(format!("block/nbd{index}"));
        if let Some(backend) = backend {
            fs::write(device.join("pid"), "4711\n").expect("written");
            fs::write(device.join("backend"), backend).expect("written");
        } else {
            let _ = fs::remove_file(device.join("pid"));
            let _ = fs::remove_file(device.join("backend"));
        }
    }

    pub(super) fn carry_out(&mut self, request: &[u8]) -> (u32, i32) {
        let message = Messages(request).next().expect("one").expect("whole");
        let (command, attributes) = message.generic().expect("generic");
        let sequence = message.sequence;
        if message.kind == 16 {
            let family = Builder::new(16, sequence, 1, 2).bytes(1, &0x22u16.to_ne_bytes());
            self.answers.push_back(family.finish());
            return (sequence, 0);
        }
        let index = attributes.find(1).and_then(Attribute::u32).expect("index");
        let identifier = attributes.find(10).and_then(Attribute::text);
        let socket = || {
            let list = attributes.find(7).expect("sockets").nested();
            let item = list.find(1).expect("one").nested();
            taken(item.find(1).and_then(Attribute::u32).expect("a number"))
        };
        let mut driver = lock(&self.driver);
        let errno = match command {
            1 if driver.devices.contains_key(&index) => 16,
            1 => {
                let identifier = identifier.expect("always given");
                driver
                    .devices
                    .insert(index, (identifier.to_owned(), socket()));
                self.set_up(index, Some(identifier));
                0
            }
            2 => {
                let errno = driver.take_down(index);
                if errno == 0 && !driver.is_open {
                    self.set_up(index, None);
                }
                errno
            }
            3 => match driver.devices.get_mut(&index) {
                Some((known, held)) if Some(known.as_str()) == identifier => {
                    if is_hung_up(held).expect("asked") {
                        *held = socket();
                        driver.reconfigured += 1;
                    }
                    0
                }
                _ => 22,
            },
            other => panic!("command {other}"),
        };
        (sequence, errno)
    }
}

impl Transport for Asking {
    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        let (sequence, errno) = self.carry_out(request);
        self.answers.push_back(acknowledgement(sequence, errno));
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        self.answers
            .pop_front()
            .ok_or_else(|| io::ErrorKind::TimedOut.into())
    }
}
