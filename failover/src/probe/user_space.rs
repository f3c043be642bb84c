//! The watchdog's device: whoever opens it has to come back in time, or the node is reset.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use crate::config::Ms;
use crate::lock;
use crate::place::{Pending, Watchdog};

/// `WDIOC_SETTIMEOUT` of linux/watchdog.h: seconds in, what the device made of them out.
const SET_TIMEOUT: Opcode = opcode::read_write::<i32>(b'W', 6);

/// Watchdog devices that this process holds itself.
///
/// When it is dropped in order the device is told that nobody will come any more; a process that
/// dies tells it nothing, and the node is reset.
#[derive(Debug, Default)]
pub struct Devices(Mutex<HashMap<PathBuf, File>>);

impl Devices {
    fn pet(&self, device: &Path, timeout: Ms) -> Result<(), String> {
        let mut held = lock(&self.0);
        let shown = device.display();
        if !held.contains_key(device) {
            let file = OpenOptions::new().write(true).open(device);
            let file = file.map_err(|error| {
                format!("{shown}: {error}\n  next: load the watchdog's driver (softdog, if the machine has none), and see that no other program holds it")
            })?;
            let seconds = i32::try_from(timeout.0.div_ceil(1000)).unwrap_or(i32::MAX);
            if let Err(error) = set_timeout(&file, seconds) {
                tracing::warn!(device = %shown, %error, "the watchdog keeps the time-out that it has");
            }
            held.insert(device.to_owned(), file);
        }
        let Some(file) = held.get_mut(device) else {
            return Ok(());
        };
        // Any byte but `V`, which would say that nobody comes any more.
        file.write_all(b"k")
            .map_err(|error| format!("{shown}: {error}"))
    }
}

#[allow(unsafe_code)]
fn set_timeout(file: &File, mut seconds: i32) -> rustix::io::Result<()> {
    // SAFETY: the request reads and writes one int, which `Updater` passes for as long as it runs; the
    // number is that of linux/watchdog.h for it.
    unsafe { ioctl(file, Updater::<SET_TIMEOUT, i32>::new(&mut seconds)) }
}

impl Watchdog for Devices {
    fn alive(&self, device: &Path, timeout: Ms) -> Pending<'static, Result<(), String>> {
        Box::pin(std::future::ready(self.pet(device, timeout)))
    }

    fn rest(&self) {
        let mut held = lock(&self.0);
        for (_, mut file) in held.drain() {
            // Where the kernel does not allow it the node is reset, as it was set up to be.
            let _ = file.write_all(b"V");
        }
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.rest();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_device_is_kept_alive_and_left_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("watchdog");
        let devices = Devices::default();
        let timeout = Ms::seconds(90);
        assert!(devices.alive(&device, timeout).await.is_err(), "none there");
        std::fs::write(&device, "").unwrap();
        devices.alive(&device, timeout).await.unwrap();
        devices.alive(&device, timeout).await.unwrap();
        devices.rest();
        assert_eq!(std::fs::read(&device).unwrap(), b"kkV");
        std::fs::write(&device, "").unwrap();
        devices.alive(&device, timeout).await.unwrap();
        drop(devices);
        assert_eq!(std::fs::read(&device).unwrap(), b"kV");
    }
}
