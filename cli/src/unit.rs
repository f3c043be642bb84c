//! Who starts and stops the daemon, for what people are told: systemd by its unit, or they themselves. A daemon that
//! systemd runs would come back beside its unit by `kagami up`, and systemd would then neither restart it nor stop it after
//! what is mounted.

use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use crate::config::places;

/// Who does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Starter {
    /// systemd.
    Unit,
    /// A person.
    Hand,
}

impl Starter {
    /// Of the daemon that this process is. Where it is none, nobody's word is better than a person's.
    pub fn of_this_process() -> Self {
        static OWN: OnceLock<Starter> = OnceLock::new();
        *OWN.get_or_init(|| Self::of("self"))
    }

    /// Of a daemon that runs.
    pub fn of_process(pid: u32) -> Self {
        Self::of(&pid.to_string())
    }

    fn of(process: &str) -> Self {
        let cgroups = std::fs::read_to_string(format!("/proc/{process}/cgroup"));
        Self::by_cgroups(&cgroups.unwrap_or_default())
    }

    /// By the control groups of a process, as /proc has them.
    fn by_cgroups(cgroups: &str) -> Self {
        let is_its = |line: &str| line.ends_with("/kagami.service");
        if cgroups.lines().any(is_its) {
            Self::Unit
        } else {
            Self::Hand
        }
    }

    /// Of the daemon that is to run by `file` (the unit's runs by the system's), where none runs: the unit, where it is enabled.
    pub fn of_file(file: &Path) -> Self {
        if !rustix::process::geteuid().is_root() || file != Path::new(places::SYSTEM) {
            return Self::Hand;
        }
        let mut asks = Command::new("systemctl");
        asks.args(["is-enabled", "--quiet", "kagami.service"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self::by_enabled(asks.status())
    }

    /// By how `systemctl is-enabled` ended.
    fn by_enabled(asked: io::Result<ExitStatus>) -> Self {
        if asked.is_ok_and(|status| status.success()) {
            Self::Unit
        } else {
            Self::Hand
        }
    }

    /// Stops it.
    pub fn down(self) -> &'static str {
        match self {
            Self::Unit => "systemctl stop kagami",
            Self::Hand => "kagami down",
        }
    }

    /// Starts it.
    pub fn up(self) -> &'static str {
        match self {
            Self::Unit => "systemctl start kagami",
            Self::Hand => "kagami up",
        }
    }

    /// Both, one after the other.
    pub fn restart(self) -> &'static str {
        match self {
            Self::Unit => "systemctl restart kagami",
            Self::Hand => "kagami down && kagami up",
        }
    }

    /// Starts it anew, or at all, at `place`; `if_running`: what is said of one that runs.
    pub fn anew(self, place: &str, if_running: &str) -> String {
        match self {
            Self::Unit => format!("`systemctl restart kagami` {place}"),
            Self::Hand => format!("`kagami up` {place} (`kagami down` first {if_running})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn a_daemon_of_systemd_is_told_from_one_of_a_shell() {
        for own in [
            "0::/system.slice/kagami.service\n",
            "12:pids:/\n1:name=systemd:/system.slice/kagami.service\n",
        ] {
            assert_eq!(Starter::by_cgroups(own), Starter::Unit, "{own}");
        }
        for other in [
            "",
            "0::/user.slice/user-0.slice/session-4.scope\n",
            "0::/system.slice/kagami-failover.service\n",
        ] {
            assert_eq!(Starter::by_cgroups(other), Starter::Hand, "{other}");
        }
        // Whatever the unit is: it runs by another file.
        assert_eq!(Starter::of_file(Path::new("/tmp/k.toml")), Starter::Hand);
    }

    #[test]
    fn a_unit_that_is_enabled_starts_it() {
        let ended = |status| Starter::by_enabled(Ok(ExitStatus::from_raw(status)));
        assert_eq!(ended(0), Starter::Unit);
        // Disabled or not installed; no systemd.
        assert_eq!(ended(1 << 8), Starter::Hand);
        let without = Err(io::ErrorKind::NotFound.into());
        assert_eq!(Starter::by_enabled(without), Starter::Hand);
    }

    #[test]
    fn what_systemd_runs_is_not_started_by_hand() {
        let unit = Starter::Unit;
        let told = [unit.down(), unit.up(), unit.restart()].join(" ") + &unit.anew("on beta", "");
        assert!(
            !told.contains("kagami up") && !told.contains("kagami down"),
            "{told}"
        );
    }
}
