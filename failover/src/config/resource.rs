//! What a group is made of: every kind of resource with its fields, and what is done when one
//! can't be activated or deactivated.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::value::{Ms, Network};

/// What is done when everything else was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Final {
    /// Nothing, and the resources that follow are not activated.
    #[default]
    Nothing,
    /// Nothing, and the resources that follow are activated all the same.
    ActivateNext,
    /// The group is stopped.
    StopGroup,
    /// The failover manager of this node stops, and with it the groups here.
    StopManager,
    /// The manager stops, and the node is shut down.
    Shutdown,
    /// The manager stops, and the node reboots.
    Reboot,
}

/// What all resources have.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Common {
    /// Resources of the group that must be active first.
    pub depends: Vec<String>,
    /// Activation is tried again this often, on each node. Default: 5 for a floating address, else 0.
    pub retries: Option<u32>,
    /// From a failed activation to the next try.
    pub retry_pause: Ms,
    /// The group fails over this often because of this resource.
    pub failovers: u32,
    /// Then this.
    #[serde(rename = "final")]
    pub final_action: Final,
    /// Deactivation is tried again this often.
    pub stop_retries: u32,
    /// Then this: two active copies are worse than none.
    pub stop_final: Final,
    /// A monitor's recovery may reactivate it, or fail its group over.
    pub recovery: bool,
    /// Runs before it is activated.
    pub before_start: Option<PathBuf>,
    /// Runs when it is active.
    pub after_start: Option<PathBuf>,
    /// Runs before it is deactivated.
    pub before_stop: Option<PathBuf>,
    /// Runs when it is inactive.
    pub after_stop: Option<PathBuf>,
    /// How long each of these four may take.
    pub script_timeout: Ms,
}

impl Common {
    /// The keys that every kind has.
    pub const KEYS: &[&str] = &[
        "depends",
        "retries",
        "retry-pause",
        "failovers",
        "final",
        "stop-retries",
        "stop-final",
        "recovery",
        "before-start",
        "after-start",
        "before-stop",
        "after-stop",
        "script-timeout",
    ];
}

impl Default for Common {
    fn default() -> Self {
        Self {
            depends: Vec::new(),
            retries: None,
            retry_pause: Ms::seconds(5),
            failovers: 1,
            final_action: Final::Nothing,
            stop_retries: 0,
            stop_final: Final::Shutdown,
            recovery: true,
            before_start: None,
            after_start: None,
            before_stop: None,
            after_stop: None,
            script_timeout: Ms::seconds(1800),
        }
    }
}

/// A resource of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its name, unique in its group.
    pub name: String,
    /// What all resources have.
    pub common: Common,
    /// What it is.
    pub kind: Kind,
}

impl Resource {
    /// How often its activation is tried again on a node.
    pub fn retries(&self) -> u32 {
        let usual = match self.kind {
            Kind::FloatingIp(_) => 5,
            _ => 0,
        };
        self.common.retries.unwrap_or(usual)
    }

    /// How long an activation and a deactivation may take before the manager gives them up.
    pub fn time_outs(&self) -> (Ms, Ms) {
        let mount = |m: &Mount| {
            let tries = u64::from(m.mount_retries) + 1;
            let up = m.fsck_timeout.0 + m.mount_timeout.0 * tries;
            // The last try comes after the mount's users were ended.
            let down = m.unmount_timeout.0 * (u64::from(m.unmount_retries) + 2);
            (Ms(up), Ms(down))
        };
        match &self.kind {
            Kind::FloatingIp(f) => (f.timeout, f.timeout),
            Kind::Exec(e) => (e.start_timeout, e.stop_timeout),
            Kind::Mirror(m) => mount(&m.mount),
            Kind::Disk(d) => mount(&d.mount),
            Kind::Ocf(Ocf { timeouts: t, .. })
            | Kind::Systemd(Systemd { timeouts: t, .. })
            | Kind::Action(ActionScript { timeouts: t, .. })
            | Kind::Service(Service { timeouts: t, .. })
            | Kind::Package(Package { timeouts: t, .. }) => (t.start, t.stop),
            Kind::Files(f) => (f.timeout, f.timeout),
        }
    }

    /// A mirror without scripts of the operator's: it is mounted, and no user of the group notices.
    pub fn answers_nobody(&self) -> bool {
        let common = &self.common;
        let scripts = [&common.before_start, &common.after_start];
        matches!(self.kind, Kind::Mirror(_)) && scripts.iter().all(|script| script.is_none())
    }

    /// Every program that it names and the manager runs itself, with the key that names it.
    pub fn scripts(&self) -> Vec<(&'static str, &PathBuf)> {
        let common = &self.common;
        let mut all: Vec<(&'static str, &PathBuf)> = [
            ("before-start", &common.before_start),
            ("after-start", &common.after_start),
            ("before-stop", &common.before_stop),
            ("after-stop", &common.after_stop),
        ]
        .into_iter()
        .filter_map(|(key, path)| path.as_ref().map(|path| (key, path)))
        .collect();
        match &self.kind {
            Kind::Exec(exec) => {
                all.push(("start", &exec.start));
                all.extend(exec.stop.as_ref().map(|stop| ("stop", stop)));
            }
            Kind::Action(action) => all.push(("script", &action.script)),
            Kind::FloatingIp(_)
            | Kind::Mirror(_)
            | Kind::Disk(_)
            | Kind::Ocf(_)
            | Kind::Systemd(_)
            | Kind::Service(_)
            | Kind::Package(_)
            | Kind::Files(_) => {}
        }
        all
    }
}

/// What a resource is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `floating-ip`
    FloatingIp(FloatingIp),
    /// `exec`
    Exec(Exec),
    /// `mirror`
    Mirror(Mirror),
    /// `disk`
    Disk(Disk),
    /// `ocf`
    Ocf(Ocf),
    /// `systemd`
    Systemd(Systemd),
    /// `action`
    Action(ActionScript),
    /// `service`
    Service(Service),
    /// `package`
    Package(Package),
    /// `files`
    Files(Files),
}

impl Kind {
    /// How the file spells the kinds.
    pub const NAMES: &[&str] = &[
        "floating-ip",
        "exec",
        "mirror",
        "disk",
        "ocf",
        "systemd",
        "action",
        "service",
        "package",
        "files",
    ];

    /// How the file spells this kind.
    pub fn name(&self) -> &'static str {
        Self::NAMES[match self {
            Self::FloatingIp(_) => 0,
            Self::Exec(_) => 1,
            Self::Mirror(_) => 2,
            Self::Disk(_) => 3,
            Self::Ocf(_) => 4,
            Self::Systemd(_) => 5,
            Self::Action(_) => 6,
            Self::Service(_) => 7,
            Self::Package(_) => 8,
            Self::Files(_) => 9,
        }]
    }
}

/// An address that moves with the group.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FloatingIp {
    /// The address with its prefix.
    pub address: Network,
    /// The interface it is added to; without it the one whose network has the address.
    pub interface: Option<String>,
    /// How long nobody may answer for it before it is added.
    #[serde(default = "probe_time")]
    pub probe_time: Ms,
    /// How often it is announced.
    #[serde(default = "announcements")]
    pub announcements: u32,
    /// How long adding or removing it may take.
    #[serde(default = "ip_timeout")]
    pub timeout: Ms,
}

fn probe_time() -> Ms {
    Ms(500)
}
fn announcements() -> u32 {
    5
}
fn ip_timeout() -> Ms {
    Ms::seconds(60)
}

/// Start and stop scripts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Exec {
    /// The start script.
    pub start: PathBuf,
    /// The stop script; without one, stopping ends what start left running.
    pub stop: Option<PathBuf>,
    /// Whether the start script's process is the service.
    #[serde(default)]
    pub mode: Mode,
    /// How long the start script may take.
    #[serde(default = "half_an_hour")]
    pub start_timeout: Ms,
    /// How long the stop script may take.
    #[serde(default = "half_an_hour")]
    pub stop_timeout: Ms,
    /// Who runs it; without it the manager's own user.
    pub user: Option<String>,
    /// Where it runs.
    pub directory: Option<PathBuf>,
    /// What is added to its environment.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

fn half_an_hour() -> Ms {
    Ms::seconds(1800)
}

/// How a start script is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It ends, with 0, when the service runs.
    #[default]
    Sync,
    /// Its process is the service, which the pid monitor watches.
    Async,
}

/// A file system on a device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Mount {
    /// Where it is mounted; without it only the device is there.
    pub mount: Option<PathBuf>,
    /// Its type; without it what the device shows.
    pub filesystem: Option<String>,
    /// Mount options.
    pub options: Vec<String>,
    /// Whether it is checked before it is mounted.
    pub fsck: Fsck,
    /// How long a mount may take.
    pub mount_timeout: Ms,
    /// How often it is tried again.
    pub mount_retries: u32,
    /// How long an unmount may take.
    pub unmount_timeout: Ms,
    /// How often it is tried again before its users are ended.
    pub unmount_retries: u32,
    /// How long a check may take.
    pub fsck_timeout: Ms,
}

impl Mount {
    /// Its keys.
    pub const KEYS: &[&str] = &[
        "mount",
        "filesystem",
        "options",
        "fsck",
        "mount-timeout",
        "mount-retries",
        "unmount-timeout",
        "unmount-retries",
        "fsck-timeout",
    ];
}

impl Default for Mount {
    fn default() -> Self {
        Self {
            mount: None,
            filesystem: None,
            options: Vec::new(),
            fsck: Fsck::Auto,
            mount_timeout: Ms::seconds(120),
            mount_retries: 3,
            unmount_timeout: Ms::seconds(300),
            unmount_retries: 3,
            fsck_timeout: Ms::seconds(7200),
        }
    }
}

/// When a file system is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fsck {
    /// As its type demands: preen, or a journal's replay.
    #[default]
    Auto,
    /// Each time.
    Always,
    /// Never.
    Never,
}

/// A mirror: promoted, attached, checked, mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Its own fields.
    pub disk: MirrorDisk,
    /// Its file system.
    pub mount: Mount,
}

/// A mirror's own fields.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MirrorDisk {
    /// The NAME of a `[mirror.NAME]` of each node's kagami.toml.
    pub mirror: String,
    /// How the kernel sees it.
    #[serde(default)]
    pub driver: Driver,
    /// The kernel's device; without it a free one.
    pub device: Option<PathBuf>,
    /// A file system is made at the first activation, where there is none.
    #[serde(default)]
    pub initial_mkfs: bool,
}

/// How the kernel sees a mirror.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// The kernel's nbd driver.
    #[default]
    Nbd,
    /// Its ublk driver.
    Ublk,
}

impl Driver {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Nbd => "/dev/nbd",
            Self::Ublk => "/dev/ublkb",
        }
    }

    /// Whether a device is one of its devices, by its name.
    pub fn has(self, device: &Path) -> bool {
        let digits = device
            .to_str()
            .and_then(|text| text.strip_prefix(self.prefix()));
        digits.is_some_and(|digits| {
            !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
        })
    }

    /// How its devices are called.
    pub fn devices(self) -> String {
        format!("{}N", self.prefix())
    }
}

impl fmt::Display for Driver {
    /// As it is configured.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nbd => "nbd",
            Self::Ublk => "ublk",
        })
    }
}

/// A shared block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The device.
    pub device: PathBuf,
    /// Whether it is reserved against the other node.
    pub reserve: Reserve,
    /// [`DISK_RISK`]: what it may come to where it is not.
    pub accepted_risk: Option<String>,
    /// Its file system.
    pub mount: Mount,
}

/// The words that accept that a shared disk which is not reserved may be written by a node that has lost the right
/// and has not stopped yet, while the other one has it mounted.
pub const DISK_RISK: &str = "both nodes may write the disk at once and what is on it may be lost";

/// Whether a shared disk is reserved against the other node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reserve {
    /// Where it knows reservations. Not every disk says in so many words that it knows none.
    #[default]
    IfKnown,
    /// It has to be.
    Always,
    /// Never.
    Never,
}

impl fmt::Display for Reserve {
    /// As it is configured.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IfKnown => "if-known",
            Self::Always => "always",
            Self::Never => "never",
        })
    }
}

/// A shared block device's own fields.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DiskDevice {
    pub device: PathBuf,
    #[serde(default)]
    pub reserve: Reserve,
    pub accepted_risk: Option<String>,
}

/// How long starting, stopping and checking may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Timeouts {
    /// Starting.
    pub start: Ms,
    /// Stopping.
    pub stop: Ms,
    /// Checking.
    pub check: Ms,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            start: half_an_hour(),
            stop: half_an_hour(),
            check: Ms::seconds(60),
        }
    }
}

/// An OCF resource agent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ocf {
    /// `PROVIDER:NAME`, as in `heartbeat:pgsql`.
    pub agent: String,
    /// Its `OCF_RESKEY_*`.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// How long it may take.
    #[serde(default)]
    pub timeouts: Timeouts,
}

/// A systemd unit.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Systemd {
    /// Its name.
    pub unit: String,
    /// How long it may take.
    #[serde(default)]
    pub timeouts: Timeouts,
}

/// An action script with the verbs start, stop, check and clean (Oracle Clusterware).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ActionScript {
    /// The script.
    pub script: PathBuf,
    /// How often it is checked while it is active.
    #[serde(default = "check_interval")]
    pub check_interval: Ms,
    /// How long a verb may take.
    #[serde(default)]
    pub timeouts: Timeouts,
}

fn check_interval() -> Ms {
    Ms::seconds(60)
}

/// Start, stop and probe commands (Sun Cluster's generic data service).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Service {
    /// The start command, with its arguments.
    pub start_command: String,
    /// The stop command; without one its processes are ended.
    pub stop_command: Option<String>,
    /// The probe; without one its processes are watched.
    pub probe_command: Option<String>,
    /// How often it is probed.
    #[serde(default = "check_interval")]
    pub probe_interval: Ms,
    /// It is restarted this often …
    #[serde(default = "retry_count")]
    pub retry_count: u32,
    /// … in this time, before its group fails over.
    #[serde(default = "retry_interval")]
    pub retry_interval: Ms,
    /// How long a command may take.
    #[serde(default)]
    pub timeouts: Timeouts,
}

fn retry_count() -> u32 {
    2
}
fn retry_interval() -> Ms {
    Ms::seconds(370)
}

/// A package control file (HP Serviceguard).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Package {
    /// The file with `SERVICE_NAME[n]`, `SERVICE_CMD[n]` and `SERVICE_RESTART[n]`.
    pub control_file: PathBuf,
    /// How long its functions may take.
    #[serde(default)]
    pub timeouts: Timeouts,
}

/// Small files that must be the same on both nodes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Files {
    /// Which, from the active node.
    pub files: Vec<File>,
    /// How long a copy may take.
    #[serde(default = "ip_timeout")]
    pub timeout: Ms,
}

/// A synchronised file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct File {
    /// Where it is, on both nodes.
    pub path: PathBuf,
    /// Its owner on the other node; without it the same.
    pub owner: Option<String>,
    /// Its group on the other node; without it the same.
    pub group: Option<String>,
    /// Its mode on the other node, in octal; without it the same.
    pub mode: Option<String>,
}
