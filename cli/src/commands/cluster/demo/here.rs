//! Whether this machine can show a cluster: its rights, its kernel, its programs.

use std::fs;

use crate::commands::demo::fault::DemoError;
use crate::control::driver::Wanted;
use crate::daemon::attach::device::{DeviceFault, Kernel};

/// What is needed to make networks and devices: `CAP_NET_ADMIN`, `CAP_SYS_ADMIN`.
const RIGHTS: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];
/// What is run, and in which of Debian's packages it is.
const PROGRAMS: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
];

/// The rights that a process lacks, by its `/proc/PID/status`.
fn lacking_rights(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
        .unwrap_or(0);
    let lacks = RIGHTS.iter().filter(|(bit, _)| effective & (1 << bit) == 0);
    lacks.map(|(_, name)| *name).collect()
}

/// Why a cluster can't be shown on this machine itself; none: it can.
pub fn lacking() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rights = lacking_rights(&status);
    if !rights.is_empty() {
        return Some(format!(
            "this process may not make networks and devices (it lacks {}): root may",
            rights.join(" and ")
        ));
    }
    match Kernel::default().check(Wanted::default(), "") {
        Ok(()) => None,
        Err(DeviceFault::Refused(refusal)) => {
            let what = refusal.what.strip_prefix("not attached: ");
            Some(what.unwrap_or(&refusal.what).to_owned())
        }
        Err(DeviceFault::Gone) => Some("the kernel's nbd does not answer".to_owned()),
    }
}

/// Packages with programs that are not in `path`.
fn missing_packages(path: &str, has: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let folders: Vec<&str> = path.split(':').chain(["/usr/sbin", "/sbin"]).collect();
    let is_there = |name: &str| {
        folders
            .iter()
            .any(|folder| has(&format!("{folder}/{name}")))
    };
    let missing = PROGRAMS.iter().filter(|(name, _)| !is_there(name));
    let mut packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    packages.dedup();
    packages
}

/// Makes sure that the programs are there that are run, here or in a virtual machine with this one's files.
///
/// # Errors
/// Which packages are missing.
pub fn programs() -> Result<(), DemoError> {
    let path = std::env::var("PATH").unwrap_or_default();
    let missing = missing_packages(&path, |file| fs::metadata(file).is_ok());
    if missing.is_empty() {
        return Ok(());
    }
    Err(DemoError::Lacking {
        why: format!(
            "it needs Debian packages that are not here: {}",
            missing.join(" ")
        ),
        next: format!("apt-get install {}", missing.join(" ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_read_from_the_effective_set() {
        let status =
            |set: &str| format!("Name:\tkagami\nCapPrm:\t000001ffffffffff\nCapEff:\t{set}\n");
        assert_eq!(
            lacking_rights(&status("000001ffffffffff")),
            Vec::<&str>::new()
        );
        assert_eq!(
            lacking_rights(&status("0000000000000000")),
            ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]
        );
        // What a container's root has.
        assert_eq!(
            lacking_rights(&status("00000000a80425fb")),
            ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]
        );
        assert_eq!(
            lacking_rights(&status("0000000000001000")),
            ["CAP_SYS_ADMIN"]
        );
        assert_eq!(lacking_rights("").len(), 2);
    }

    #[test]
    fn missing_programs_are_named_by_package_once() {
        let none = missing_packages("/usr/bin", |_| false);
        assert_eq!(none, ["iproute2", "util-linux", "e2fsprogs"]);
        let without_ip = missing_packages("/bin", |file| {
            file.starts_with("/sbin/") && file != "/sbin/ip"
        });
        assert_eq!(without_ip, ["iproute2"]);
    }
}
