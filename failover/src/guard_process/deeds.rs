//! What a guard does to the machine.

use std::fs::{self, File};
use std::future::Future;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::message::Watched;

/// `ip` may take so long.
const IP_WITHIN: Duration = Duration::from_secs(2);

/// A guard's hands.
pub trait Deeds: Send + 'static {
    /// No process of the group runs on, or they run again.
    ///
    /// # Errors
    /// It has no control group, or the kernel refuses.
    fn freeze(&mut self, group: &Watched, frozen: bool) -> io::Result<()>;
    /// The group's floating addresses are removed, wherever they are.
    fn drop_addresses(&mut self, group: &Watched) -> impl Future<Output = ()> + Send;
    /// The watchdog counts anew; it is held from the first call on.
    fn feed(&mut self);
    /// Nothing is watched any more: the watchdog is given back.
    fn rest(&mut self);
    /// The node is reset, at once if that is possible. No call follows.
    fn reset(&mut self, why: &str);
}

/// What may reset the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resetter {
    /// The watchdog's device, and beside it the kernel's own reboot, which is faster.
    Watchdog(PathBuf),
    /// Nothing: for trying things out. A group that does not stop goes on.
    Nothing,
}

/// This machine.
#[derive(Debug)]
pub struct Machine {
    resetter: Resetter,
    watchdog: Option<File>,
    told: bool,
}

impl Machine {
    /// This machine, reset by that.
    pub fn new(resetter: Resetter) -> Self {
        Self {
            resetter,
            watchdog: None,
            told: false,
        }
    }
}

impl Deeds for Machine {
    fn freeze(&mut self, group: &Watched, frozen: bool) -> io::Result<()> {
        let Some(folder) = &group.control_group else {
            return Err(io::Error::other("it has no control group"));
        };
        if !folder.exists() {
            // No process of it was ever started.
            return Ok(());
        }
        fs::write(folder.join("cgroup.freeze"), if frozen { "1" } else { "0" })
    }

    async fn drop_addresses(&mut self, group: &Watched) {
        for address in &group.addresses {
            if let Err(error) = drop_address(*address).await {
                tracing::error!("group {}: {address} was not removed: {error}", group.group);
            }
        }
    }

    fn feed(&mut self) {
        let Resetter::Watchdog(device) = &self.resetter else {
            return;
        };
        if self.watchdog.is_none() {
            match File::options().write(true).open(device) {
                Ok(file) => self.watchdog = Some(file),
                Err(error) if !self.told => {
                    self.told = true;
                    tracing::warn!(
                        "no watchdog {}: {error}: a guard that dies resets nothing",
                        device.display()
                    );
                }
                Err(_) => {}
            }
        }
        if let Some(watchdog) = &mut self.watchdog
            && let Err(error) = watchdog.write_all(b".")
        {
            tracing::error!("the watchdog was not fed: {error}");
        }
    }

    fn rest(&mut self) {
        // The magic close: without it, closing lets the watchdog reset the node.
        if let Some(mut watchdog) = self.watchdog.take()
            && let Err(error) = watchdog.write_all(b"V")
        {
            tracing::error!("the watchdog was not given back: {error}");
        }
    }

    fn reset(&mut self, why: &str) {
        if self.resetter == Resetter::Nothing {
            tracing::error!("the node would be reset now: {why}");
            return;
        }
        tracing::error!("the node is reset: {why}");
        // At once, with nothing written back: the disk is the other node's by now. Where this is not
        // permitted the watchdog, which nobody feeds any more, does it.
        if let Err(error) = fs::write("/proc/sysrq-trigger", "b") {
            tracing::error!("/proc/sysrq-trigger: {error}: the watchdog is waited for");
        }
    }
}

async fn ip(arguments: &[&str]) -> io::Result<String> {
    let run = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(IP_WITHIN, run)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!(
        "ip {}: {words}",
        arguments.join(" ")
    )))
}

async fn drop_address(address: IpAddr) -> io::Result<()> {
    let family = if address.is_ipv4() { "-4" } else { "-6" };
    let shown = ip(&["-o", family, "address", "show", "to", &address.to_string()]).await?;
    for (interface, prefixed) in shown.lines().filter_map(place_of) {
        ip(&[family, "address", "del", prefixed, "dev", interface]).await?;
    }
    Ok(())
}

/// The interface and the address with its prefix, of a line of `ip -o address`.
fn place_of(line: &str) -> Option<(&str, &str)> {
    // 2: eth0    inet 10.0.0.10/24 scope global secondary eth0 …
    let mut words = line.split_whitespace();
    let interface = words.nth(1)?;
    let prefixed = words.nth(1)?;
    // A VLAN or a pair's end is shown as `name@other`.
    let interface = interface.split('@').next()?;
    Some((interface, prefixed))
}

/// Where the usual watchdog is.
pub fn usual_watchdog() -> &'static Path {
    Path::new("/dev/watchdog")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_an_address_is_read() {
        let line = "2: eth0    inet 10.0.0.10/24 scope global secondary eth0\\       valid_lft";
        assert_eq!(place_of(line), Some(("eth0", "10.0.0.10/24")));
        let line = "7: lan@if3    inet6 fd00::10/64 scope global nodad \\ valid_lft forever";
        assert_eq!(place_of(line), Some(("lan", "fd00::10/64")));
        assert_eq!(place_of(""), None);
    }

    #[test]
    fn the_freezer_is_written_and_the_watchdog_fed_and_given_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let group = folder.path().join("g");
        fs::create_dir(&group).expect("made");
        let watchdog = folder.path().join("watchdog");
        fs::write(&watchdog, "").expect("made");
        let mut machine = Machine::new(Resetter::Watchdog(watchdog.clone()));
        let mut watched = Watched {
            group: "g".to_owned(),
            mirrors: Vec::new(),
            control_group: Some(group.clone()),
            addresses: Vec::new(),
            margin_ms: 1,
            bound_ms: 1,
            lease_ends_ms: None,
        };
        for frozen in [true, false] {
            machine.freeze(&watched, frozen).expect("written");
            let found = fs::read_to_string(group.join("cgroup.freeze")).expect("there");
            assert_eq!(found, if frozen { "1" } else { "0" });
        }
        watched.control_group = None;
        assert!(machine.freeze(&watched, true).is_err());
        machine.feed();
        machine.feed();
        machine.rest();
        assert_eq!(fs::read_to_string(&watchdog).expect("there"), "..V");
    }
}
