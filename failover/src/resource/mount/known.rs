//! A device as it was when a resource took it: a link below /dev/disk is udev's, and may be taken away while the
//! device is in use.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use super::table;

/// A block device by the kernel's own number and name, which stay as long as the device does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::resource) struct Known {
    pub number: String,
    pub path: PathBuf,
}

impl Known {
    /// Of one that is open; `None`: it is no block device.
    pub fn of(device: &fs::File) -> Option<Self> {
        let number = table::number_in(&device.metadata().ok()?)?;
        let path = fs::read_link(format!("/proc/self/fd/{}", device.as_raw_fd())).ok()?;
        Some(Self { number, path })
    }

    /// In a line, for [`Self::from_words`].
    pub fn words(&self) -> String {
        format!("{} {}", self.number, self.path.display())
    }

    /// What was written down; `None`: nothing was.
    pub fn from_words(words: &str) -> Option<Self> {
        let (number, path) = words.split_once(' ')?;
        Some(Self {
            number: number.to_owned(),
            path: path.into(),
        })
    }
}
