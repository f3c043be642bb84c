//! What a guard does to the machine.

use std::collections::BTreeMap;
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
use crate::config::Ms;
use crate::process::{Deadline, Failure};
use crate::resource::apart::Apart;

/// `ip` may take so long.
const IP_WITHIN: Duration = Duration::from_secs(2);
/// A group's addresses are gone by then, or it is tried again.
const DROP_WITHIN: Duration = Duration::from_secs(10);

/// Where systemd reads units from, so far as people and packages put names of units there.
const UNIT_FILES: [&str; 4] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
];
/// How the names of units end that have processes.
const UNIT_KINDS: [&str; 6] = ["service", "scope", "slice", "socket", "mount", "swap"];

/// A guard's hands.
pub trait Deeds: Send + 'static {
    /// No process of the group runs on, or they run again.
    ///
    /// # Errors
    /// It has no control group, or the kernel refuses one; it is done with the others all the same.
    fn freeze(&mut self, group: &Watched, frozen: bool) -> io::Result<()>;
    /// A group is to be watched, or has become another: what is on the system's disk about it is read now, while that answers.
    fn learn(&mut self, group: &Watched);
    /// Whether anything of the group is frozen: by a guard that has died since, for one.
    fn is_frozen(&self, group: &Watched) -> bool;
    /// The group's floating addresses are removed, wherever they are. Whatever is in its way is in the way of nothing
    /// else. The future's error: one of them may still be there.
    fn drop_addresses(
        &mut self,
        group: &Watched,
    ) -> impl Future<Output = io::Result<()>> + Send + 'static;
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
    /// Where systemd's slices are.
    slices: Option<PathBuf>,
    /// Where its units are read from.
    unit_files: Vec<PathBuf>,
    /// Units' names, as they were when their group was learned of.
    names: BTreeMap<String, Vec<String>>,
    /// Removals of addresses, by their group.
    apart: Apart,
}

impl Machine {
    /// This machine, reset by that.
    pub fn new(resetter: Resetter) -> Self {
        Self {
            resetter,
            watchdog: None,
            told: false,
            slices: crate::place::control_group_mount(),
            unit_files: UNIT_FILES.map(PathBuf::from).into(),
            names: BTreeMap::new(),
            apart: Apart::default(),
        }
    }

    /// A unit's name, and the one that it is another name of.
    fn names_of(&self, unit: &str) -> Vec<String> {
        let known = self.names.get(unit).cloned();
        known.unwrap_or_else(|| self.look_for_names(unit))
    }

    fn look_for_names(&self, unit: &str) -> Vec<String> {
        // As systemctl completes it.
        let kind = unit.rsplit_once('.').map(|(_, kind)| kind);
        let name = if kind.is_some_and(|kind| UNIT_KINDS.contains(&kind)) {
            unit.to_owned()
        } else {
            format!("{unit}.service")
        };
        let links = self.unit_files.iter().map(|folder| folder.join(&name));
        let aliases = links.filter_map(|link| {
            let file = fs::read_link(link).ok()?;
            Some(file.file_name()?.to_str()?.to_owned())
        });
        let mut names: Vec<String> = aliases.collect();
        names.push(name);
        names
    }

    fn freeze_unit(&self, unit: &str, frozen: bool) -> io::Result<()> {
        let Some(slices) = &self.slices else {
            return Err(io::Error::other(format!(
                "unit {unit}: there are no control groups of version 2"
            )));
        };
        let mut found = Vec::new();
        find_units(slices, &self.names_of(unit), &mut found)?;
        let mut done = Ok(());
        for group in found {
            done = done.and(freeze_group(&group, frozen));
        }
        done
    }
}

impl Deeds for Machine {
    fn freeze(&mut self, group: &Watched, frozen: bool) -> io::Result<()> {
        let mut done = match &group.control_group {
            Some(folder) => freeze_group(folder, frozen),
            None => Err(io::Error::other("it has no control group")),
        };
        for unit in &group.units {
            done = done.and(self.freeze_unit(unit, frozen));
        }
        done
    }

    fn learn(&mut self, group: &Watched) {
        for unit in &group.units {
            let names = self.look_for_names(unit);
            self.names.insert(unit.clone(), names);
        }
    }

    fn is_frozen(&self, group: &Watched) -> bool {
        let of_units = || {
            let slices = self.slices.as_deref()?;
            let mut found = Vec::new();
            for unit in &group.units {
                // What can't be looked at can't be frozen either.
                let _ = find_units(slices, &self.names_of(unit), &mut found);
            }
            Some(found)
        };
        let is_frozen = |folder: &Path| {
            let said = fs::read_to_string(folder.join("cgroup.freeze"));
            said.is_ok_and(|said| said.trim() == "1")
        };
        let own = group.control_group.as_deref();
        own.is_some_and(is_frozen)
            || of_units().is_some_and(|found| found.iter().any(|folder| is_frozen(folder)))
    }

    fn drop_addresses(
        &mut self,
        group: &Watched,
    ) -> impl Future<Output = io::Result<()>> + Send + 'static {
        // To begin a program is to read it from the system's disk, and who begins it waits for that.
        let (apart, name, addresses) = (
            self.apart.clone(),
            group.group.clone(),
            group.addresses.clone(),
        );
        async move {
            if addresses.is_empty() {
                return Ok(());
            }
            let within = Deadline::after(Ms(DROP_WITHIN.as_millis() as u64));
            match apart.run(&name, within, move || drop_all(&addresses)).await {
                Ok(dropped) => dropped,
                Err(Failure::Failed(why) | Failure::Warned(why)) => Err(io::Error::other(why)),
                Err(Failure::TimedOut) => Err(io::ErrorKind::TimedOut.into()),
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
        // After it nobody says anything; the queue before the log takes it, or drops it, without a wait.
        tracing::error!("the node is reset: {why}");
        // At once, with nothing written back: the disk is the other node's by now. Where this is not
        // permitted the watchdog, which nobody feeds any more, does it.
        if let Err(error) = fs::write("/proc/sysrq-trigger", "b") {
            tracing::error!("/proc/sysrq-trigger: {error}: the watchdog is waited for");
        }
    }
}

fn freeze_group(folder: &Path, frozen: bool) -> io::Result<()> {
    let written = fs::write(folder.join("cgroup.freeze"), if frozen { "1" } else { "0" });
    match written {
        // No process of it was ever started, or none is left.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The control groups of units with one of these names, in whichever slice each is. They are looked for when
/// they are needed: a unit has one only while it is active, and systemd may be what does not answer.
fn find_units(slice: &Path, names: &[String], found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(slice)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            continue;
        };
        // Systemd escapes names that would be a file's of the kernel.
        let is_one = |unit: &String| name == unit || name.strip_prefix('_') == Some(unit);
        if names.iter().any(is_one) {
            found.push(entry.path());
        } else if name
            .rsplit_once('.')
            .is_some_and(|(_, kind)| kind == "slice")
        {
            match find_units(&entry.path(), names, found) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
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

/// Each of them, whatever becomes of the others; in a thread that may wait.
fn drop_all(addresses: &[IpAddr]) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut done = Ok(());
    for address in addresses {
        let dropped = runtime.block_on(drop_address(*address));
        let dropped = dropped.map_err(|error| io::Error::other(format!("{address}: {error}")));
        done = done.and(dropped);
    }
    done
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
            units: Vec::new(),
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

    #[test]
    fn units_are_frozen_with_their_group_in_whatever_slice_they_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let (slices, files) = (folder.path().join("slices"), folder.path().join("files"));
        let units = [
            "system.slice/postgresql@15-main.service",
            "system.slice/system-shop.slice/shop@1.service",
            "system.slice/mariadb.service",
            "shop.slice",
            "system.slice/other.service",
        ];
        for unit in units {
            fs::create_dir_all(slices.join(unit)).expect("made");
        }
        fs::write(slices.join("cgroup.procs"), "").expect("made");
        fs::create_dir(&files).expect("made");
        std::os::unix::fs::symlink("/usr/lib/mariadb.service", files.join("mysql.service"))
            .expect("made");
        let mut machine = Machine::new(Resetter::Nothing);
        machine.slices = Some(slices.clone());
        machine.unit_files = vec![folder.path().join("none"), files];
        let group = folder.path().join("g");
        let names = [
            "postgresql@15-main",
            "shop@1.service",
            "mysql",
            "shop.slice",
            "stopped",
        ];
        let watched = Watched {
            group: "g".to_owned(),
            mirrors: Vec::new(),
            // A group all of whose processes are units' has none.
            control_group: Some(group.clone()),
            units: names.map(str::to_owned).into(),
            addresses: Vec::new(),
            margin_ms: 1,
            bound_ms: 1,
            lease_ends_ms: None,
        };
        for (frozen, word) in [(true, "1"), (false, "0")] {
            machine.freeze(&watched, frozen).expect("written");
            for unit in &units[..4] {
                let found = fs::read_to_string(slices.join(unit).join("cgroup.freeze"));
                assert_eq!(found.expect(unit), word);
            }
        }
        assert!(!slices.join(units[4]).join("cgroup.freeze").exists());
        // What was learned is known without the disk.
        machine.learn(&watched);
        machine.unit_files.clear();
        machine.freeze(&watched, true).expect("written");
        let found = fs::read_to_string(slices.join(units[2]).join("cgroup.freeze"));
        assert_eq!(found.expect("there"), "1");
        // Where the group's own can't be frozen the units are.
        let none = Watched {
            control_group: None,
            ..watched
        };
        assert!(machine.freeze(&none, true).is_err());
        let found = fs::read_to_string(slices.join(units[0]).join("cgroup.freeze"));
        assert_eq!(found.expect("there"), "1");
    }
}
