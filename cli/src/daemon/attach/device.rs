//! A mirror's device in the kernel: found, set up, given a new socket, taken down.
//!
//! Everything here blocks for a moment and is called on a thread that may. Nothing here opens the device
//! (see [`super::helper`]).

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kagami_nbd_server::kernel::client::is_hung_up;
use kagami_nbd_server::kernel::holders::Procfs;
use kagami_nbd_server::kernel::sysfs::Owner as ByNbd;
use kagami_nbd_server::kernel::{
    Connect, KernelFault, Nbd, NetlinkSocket, Reconfigure, Sysfs, Transport,
};
use kagami_nbd_server::proto::transmission_flag as flag;
use kagami_replicator::core::event::Refusal;
use kagami_replicator::shell::engine::DeviceFacts;
use tracing::{debug, error, warn};

use super::helper::{self, Held, HelperFault, Stuck};
use super::lock;
use super::over_ublk::told as told_by_ublk;
use super::ublk::{ByChild, Mark, UblkControl};
use crate::control::driver::{DeviceId, Driver, Wanted};

/// Seconds for which the kernel keeps requests while no daemon answers: thirty days. At its end they
/// fail, so it is longer than anybody lets a service hang.
const DEAD_TIMEOUT: u64 = 30 * 24 * 3600;
/// The kernel notices the end of a daemon's socket within; then a new one can be given.
const NOTICE_PATIENCE: Duration = Duration::from_secs(5);
/// How often a new socket is offered meanwhile.
const OFFER_EVERY: Duration = Duration::from_millis(20);
/// A child that touches the device is given up after.
const HELPER_PATIENCE: Duration = Duration::from_secs(20);
/// A device has its settings and its link within: two children look after that.
pub(super) const DRESS_PATIENCE: Duration = Duration::from_secs(2 * HELPER_PATIENCE.as_secs());
/// The same where the device is not served and need not answer.
const PROBE_PATIENCE: Duration = Duration::from_secs(3);

/// Opens a way to the driver.
pub type Open = dyn Fn() -> io::Result<Box<dyn Transport>> + Send + Sync;

/// The kernel as the daemon reaches it: two drivers and three trees of files.
#[derive(Clone)]
pub struct Kernel {
    /// Opens a socket to ask the nbd driver with.
    pub open: Arc<Open>,
    /// The ublk driver.
    pub ublk: Arc<dyn UblkControl>,
    /// `/sys`
    pub sysfs: PathBuf,
    /// `/proc`
    pub procfs: PathBuf,
    /// `/dev`
    pub dev: PathBuf,
    /// The program that has `kernel-device`.
    pub helper: PathBuf,
    /// Devices of nbd that this daemon has disconnected, for good: who has one open still gets errors, and nothing that it
    /// holds is ever written.
    pub disconnected: Arc<Mutex<BTreeSet<u32>>>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel")
            .field("sysfs", &self.sysfs)
            .field("dev", &self.dev)
            .finish_non_exhaustive()
    }
}

impl Default for Kernel {
    fn default() -> Self {
        // The very file that runs, also after another was put in its place.
        let helper = PathBuf::from("/proc/self/exe");
        let sysfs = PathBuf::from("/sys");
        Self {
            open: Arc::new(|| Ok(Box::new(NetlinkSocket::new()?))),
            ublk: Arc::new(ByChild {
                program: helper.clone(),
                sysfs: sysfs.clone(),
                stuck: Stuck::default(),
            }),
            sysfs,
            procfs: "/proc".into(),
            dev: "/dev".into(),
            helper,
            disconnected: Arc::default(),
        }
    }
}

/// Who has a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// It is not set up.
    Nobody,
    /// The mirror on this node; served or not.
    Ours,
    /// Somebody else.
    Another,
}

/// What was asked of a device and not done.
#[derive(Debug)]
pub enum DeviceFault {
    /// In words for a person.
    Refused(Refusal),
    /// It is no longer ours: another program took it down.
    Gone,
}

fn refused(what: impl Into<String>, facts: Vec<String>, next: impl Into<String>) -> DeviceFault {
    DeviceFault::Refused(Refusal {
        what: what.into(),
        facts,
        next: next.into(),
    })
}

impl Kernel {
    fn nbd(&self) -> Result<Nbd<Box<dyn Transport>>, KernelFault> {
        let doing = "opening a netlink socket";
        let transport = (self.open)().map_err(|error| KernelFault::Io { doing, error })?;
        Nbd::new(transport)
    }

    /// The files of a driver's devices.
    pub(super) fn sysfs(&self, driver: Driver) -> Sysfs {
        Sysfs::new(&self.sysfs, driver.kind())
    }

    /// The device that is set up under an identifier; `remembered` may be, where the kernel does not say.
    pub fn find(&self, identifier: &str, remembered: Option<DeviceId>) -> Option<DeviceId> {
        let found = self.find_nbd(identifier, remembered);
        found.or_else(|| self.find_by_ublk(Mark::of(identifier), remembered))
    }

    fn find_nbd(&self, identifier: &str, remembered: Option<DeviceId>) -> Option<DeviceId> {
        let sysfs = self.sysfs(Driver::Nbd);
        sysfs.find(identifier).map_or_else(
            |error| {
                error!("whose the devices of nbd are can't be told: {error}");
                remembered.filter(|id| id.driver == Driver::Nbd && sysfs.exists(id.index))
            },
            |found| found.map(DeviceId::nbd),
        )
    }

    /// Who has a device.
    ///
    /// # Errors
    /// It can't be told.
    pub fn owner(&self, id: DeviceId, identifier: &str) -> Result<Owner, DeviceFault> {
        if id.driver == Driver::Ublk {
            let owner = self.owner_by_ublk(id.index, Mark::of(identifier));
            return owner.map_err(|fault| told_by_ublk("not looked at", fault));
        }
        let owner = self.sysfs(id.driver).owner(id.index);
        Ok(match owner.map_err(not_looked_at)? {
            ByNbd::Nobody => Owner::Nobody,
            ByNbd::Connected {
                backend: Some(backend),
                ..
            } if backend == identifier => Owner::Ours,
            ByNbd::Connected { .. } => Owner::Another,
        })
    }

    /// The device's path.
    pub fn path(&self, id: DeviceId) -> PathBuf {
        self.dev.join(id.name())
    }

    /// The link that is named for the mirror.
    pub fn link(&self, mirror: &str) -> PathBuf {
        self.dev.join("kagami").join(mirror)
    }

    /// Where a device is mounted, as `ext4 on /srv`.
    pub fn mounted(&self, id: DeviceId) -> Vec<String> {
        Procfs::new(&self.procfs).mounted(&self.sysfs(id.driver), id.index)
    }

    /// Who uses a device, a line each.
    pub fn users(&self, id: DeviceId) -> Vec<String> {
        Procfs::new(&self.procfs).users(&self.sysfs(id.driver), id.index)
    }

    /// Whether a device could be set up as far as can be told without doing it.
    ///
    /// # Errors
    /// No module, no right, the device is another's.
    pub fn check(&self, wanted: Wanted, identifier: &str) -> Result<(), DeviceFault> {
        if wanted.driver() == Driver::Ublk {
            return self.check_ublk(wanted.index, Mark::of(identifier));
        }
        self.nbd().map_err(|fault| told(&fault, Vec::new()))?;
        if self.lacks_admin() {
            return Err(told(&KernelFault::NotPermitted, Vec::new()));
        }
        self.check_nbd(wanted.index, identifier)
    }

    /// Whether the mirror has no device of nbd yet, and nobody the wanted one.
    fn check_nbd(&self, wanted: Option<u32>, identifier: &str) -> Result<(), DeviceFault> {
        let sysfs = self.sysfs(Driver::Nbd);
        let found = sysfs.find_beside(identifier, &lock(&self.disconnected));
        if let Some(index) = found.map_err(not_looked_at)? {
            // A second device of one mirror: what the kernel holds for the first would be written over it later.
            return Err(self.has_it_still(DeviceId::nbd(index)));
        }
        if let Some(index) = wanted
            && let ByNbd::Connected { pid, backend } = sysfs.owner(index).map_err(not_looked_at)?
        {
            return Err(self.taken(DeviceId::nbd(index), pid, backend.as_deref()));
        }
        Ok(())
    }

    /// The mirror is a device already, which no keeper has.
    pub(super) fn has_it_still(&self, id: DeviceId) -> DeviceFault {
        refused(
            format!(
                "not attached: the kernel has it still, as {}",
                self.path(id).display()
            ),
            vec!["an attach or detach before this one was not finished".to_owned()],
            "restart the daemon: it takes the device over, and then it can be detached",
        )
    }

    /// Whether this process surely lacks `CAP_SYS_ADMIN`.
    fn lacks_admin(&self) -> bool {
        const CAP_SYS_ADMIN: u32 = 21;
        let status = fs::read_to_string(self.procfs.join("self/status")).unwrap_or_default();
        let effective = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
        effective.is_some_and(|set| set & (1 << CAP_SYS_ADMIN) == 0)
    }

    /// Sets up a device of nbd under `identifier`: the one of that number, else a free one. The number
    /// says which it became.
    ///
    /// # Errors
    /// In use, no module, no right, ...
    pub fn connect(
        &self,
        wanted: Option<u32>,
        identifier: &str,
        facts: &DeviceFacts,
        socket: &UnixStream,
    ) -> Result<u32, DeviceFault> {
        let mut nbd = self.nbd().map_err(|fault| told(&fault, Vec::new()))?;
        self.check_nbd(wanted, identifier)?;
        let mut flags = flag::HAS_FLAGS
            | flag::SEND_FLUSH
            | flag::SEND_FUA
            | flag::SEND_TRIM
            | flag::SEND_WRITE_ZEROES;
        if facts.rotational {
            flags |= flag::ROTATIONAL;
        }
        let mut connect = |index| {
            let connected = nbd.connect(&Connect {
                index,
                size: facts.size,
                block_size: u64::from(facts.logical_block),
                flags,
                dead_timeout: DEAD_TIMEOUT,
                identifier,
                socket: socket.as_fd(),
            });
            if let Ok(index) = &connected {
                lock(&self.disconnected).remove(index);
            }
            connected
        };
        if let Some(index) = wanted {
            let id = DeviceId::nbd(index);
            return connect(Some(index)).map_err(|fault| {
                let mut users = self.users(id);
                if users.is_empty() && matches!(fault, KernelFault::Busy) {
                    users.push(format!(
                        "{} is not set up, but a program that this daemon can't see has it open, or it was taken down while in use",
                        self.path(id).display()
                    ));
                }
                told(&fault, users)
            });
        }
        let sysfs = self.sysfs(Driver::Nbd);
        for index in sysfs.devices().map_err(not_looked_at)? {
            let is_free = matches!(sysfs.owner(index), Ok(ByNbd::Nobody))
                && matches!(sysfs.size(index), Ok(0));
            if !is_free {
                continue;
            }
            match connect(Some(index)) {
                // Somebody was quicker, or has it open.
                Err(KernelFault::Busy) => {}
                Err(fault) => return Err(told(&fault, Vec::new())),
                Ok(index) => return Ok(index),
            }
        }
        // All are taken: the kernel makes one.
        connect(None).map_err(|fault| told(&fault, Vec::new()))
    }

    pub(super) fn taken(
        &self,
        id: DeviceId,
        pid: Option<u32>,
        backend: Option<&str>,
    ) -> DeviceFault {
        let mut facts = Vec::new();
        if let Some(pid) = pid {
            let comm = self.procfs.join(pid.to_string()).join("comm");
            facts.push(match fs::read_to_string(comm) {
                Ok(name) => format!("process {pid} ({}) set it up", name.trim()),
                Err(_) => format!("process {pid}, which has ended, set it up"),
            });
        }
        if let Some(backend) = backend {
            facts.push(format!("its backend is `{backend}`"));
        }
        facts.extend(self.users(id));
        refused(
            format!(
                "not attached: {} is in use by another program",
                self.path(id).display()
            ),
            facts,
            "name another device with --device, or none: then a free one is taken",
        )
    }

    /// Gives a device of nbd a new socket, when the kernel holds the old connection for dead. Waits for that.
    ///
    /// `ours` is the end that is served, `kernel` the other.
    ///
    /// # Errors
    /// The device is no longer ours, or the old connection lives on.
    pub fn reconfigure(
        &self,
        index: u32,
        identifier: &str,
        pair: &dyn Fn() -> io::Result<(UnixStream, UnixStream)>,
    ) -> Result<UnixStream, DeviceFault> {
        let mut nbd = self.nbd().map_err(|fault| told(&fault, Vec::new()))?;
        let deadline = Instant::now() + NOTICE_PATIENCE;
        let sockets = |error: io::Error| {
            let next = "raise the limit of open files";
            refused(format!("no socket can be made: {error}"), Vec::new(), next)
        };
        loop {
            let (kernel, ours) = pair().map_err(sockets)?;
            let offered = nbd.reconfigure(&Reconfigure {
                index,
                identifier,
                socket: kernel.as_fd(),
            });
            match offered {
                Ok(()) => {}
                Err(KernelFault::NotOurs) => return Err(DeviceFault::Gone),
                Err(fault) => return Err(told(&fault, Vec::new())),
            }
            drop(kernel);
            // The kernel drops without a word what it has no dead connection for.
            if !is_hung_up(&ours).map_err(sockets)? {
                return Ok(ours);
            }
            if Instant::now() >= deadline {
                return Err(refused(
                    format!(
                        "{}: the kernel holds to another connection",
                        self.path(DeviceId::nbd(index)).display()
                    ),
                    vec!["a process that serves it lives on".to_owned()],
                    "end the other daemon; this one tries again by itself",
                ));
            }
            std::thread::sleep(OFFER_EVERY);
        }
    }

    /// Settings and link; what fails is a warning, the device works without.
    pub fn dress(&self, mirror: &str, id: DeviceId, facts: &DeviceFacts) {
        let is_new = !self.sysfs(id.driver).is_tuned(id.index);
        // Before the settings: they say that this was done. What was found outlives the daemon.
        if is_new && id.driver == Driver::Ublk {
            self.find_partitions(mirror, id);
        }
        if is_new {
            let max_kb = u32::try_from(facts.max_payload / 1024).unwrap_or(u32::MAX);
            let (program, sysfs) = (&self.helper, &self.sysfs);
            if let Err(fault) = helper::tune(program, sysfs, id, max_kb, HELPER_PATIENCE) {
                warn!(
                    mirror,
                    "{}: a setting could not be made: {fault}; after a restart of the daemon its requests wait up to 30 s",
                    self.path(id).display()
                );
            }
        }
        match self.make_link(mirror, id) {
            Ok(false) => {}
            Ok(true) => self.announce(id),
            Err(error) => warn!(
                mirror,
                "{} could not be made: {error}",
                self.link(mirror).display()
            ),
        }
    }

    fn find_partitions(&self, mirror: &str, id: DeviceId) {
        if let Err(fault) = self.ublk.partitions(id.index, HELPER_PATIENCE) {
            warn!(
                mirror,
                "whether {} has partitions is not known: {fault}; `partx --update {id}` looks for them",
                self.path(id).display()
            );
        }
    }

    /// Lets udev look at a device again: its rule takes the mirror's name from the link, and makes the
    /// unit `dev-kagami-NAME.device` that a line of fstab waits for.
    fn announce(&self, id: DeviceId) {
        if let Err(fault) = self.sysfs(id.driver).announce(id.index) {
            debug!("udev is not told of a change: {fault}");
        }
    }

    /// The name of the mirror that a device is, by the link that was made for it.
    pub fn name(&self, id: DeviceId) -> Option<String> {
        let target = Path::new("..").join(id.name());
        let links = fs::read_dir(self.dev.join("kagami")).ok()?;
        links.filter_map(Result::ok).find_map(|link| {
            let leads_there = fs::read_link(link.path()).is_ok_and(|now| now == target);
            let name = link.file_name().into_string().ok()?;
            // A name that begins with a dot is a link that is being made.
            (leads_there && !name.starts_with('.')).then_some(name)
        })
    }

    /// Whether the link is new, or led elsewhere.
    fn make_link(&self, mirror: &str, id: DeviceId) -> io::Result<bool> {
        let link = self.link(mirror);
        let target = Path::new("..").join(id.name());
        if fs::read_link(&link).is_ok_and(|now| now == target) {
            return Ok(false);
        }
        let folder = self.dev.join("kagami");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&folder)?;
        let new = folder.join(format!(".{mirror}.new"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(&target, &new)?;
        fs::rename(&new, &link)?;
        Ok(true)
    }

    /// Removes the link, if it is this device's.
    pub fn remove_link(&self, mirror: &str, id: DeviceId) {
        let link = self.link(mirror);
        let target = Path::new("..").join(id.name());
        if fs::read_link(&link).is_ok_and(|now| now == target) {
            // It stays, and leads nowhere: the next attach replaces it.
            let _ = fs::remove_file(link);
            self.announce(id);
        }
    }

    /// Makes sure that nobody uses a device, and that nobody begins to while the answer is held.
    /// `served`: the device answers, so what the kernel holds for it is written back first.
    ///
    /// # Errors
    /// Who uses it.
    pub fn hold(&self, id: DeviceId, served: bool) -> Result<Held, DeviceFault> {
        let path = self.path(id);
        let next =
            "end that use first (`umount`, `vgchange -an`, `swapoff`, ...), then detach again";
        let in_use = |facts| {
            let what = format!("not detached: {} is in use", path.display());
            refused(what, facts, next)
        };
        let users = self.users(id);
        if !users.is_empty() {
            return Err(in_use(users));
        }
        let patience = if served {
            HELPER_PATIENCE
        } else {
            PROBE_PATIENCE
        };
        helper::hold(&self.helper, &path, served, patience).map_err(|fault| match fault {
            HelperFault::Busy => {
                let mut users = self.users(id);
                if users.is_empty() {
                    users.push("another program has it for itself (a mount in another namespace, perhaps)".to_owned());
                }
                in_use(users)
            }
            HelperFault::NoAnswer => refused(
                format!("not detached: {} does not answer now", path.display()),
                vec!["it can't be told whether somebody uses it, and what the kernel holds for it can't be written".to_owned()],
                "see in `kagami status` what the mirror waits for; `--force` takes the device down and fails what waits there",
            ),
            why @ (HelperFault::Failed(_) | HelperFault::Stuck { .. }) => refused(
                format!("not detached: {} can't be looked at: {why}", path.display()),
                Vec::new(),
                "`--force` takes it down without looking who uses it",
            ),
        })
    }

    /// Takes a device of nbd down.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn disconnect(&self, index: u32) -> Result<(), DeviceFault> {
        let down = self.nbd().and_then(|mut nbd| nbd.disconnect(index));
        match down {
            Ok(()) => {
                lock(&self.disconnected).insert(index);
                Ok(())
            }
            Err(KernelFault::NotOurs) => Err(DeviceFault::Gone),
            Err(fault) => {
                let next = "put that right, and detach it again; it is attached until then";
                Err(refused(format!("not detached: {fault}"), Vec::new(), next))
            }
        }
    }
}

/// The kernel's refusal of an attach in the daemon's words.
fn told(fault: &KernelFault, facts: Vec<String>) -> DeviceFault {
    refused(format!("not attached: {fault}"), facts, fault.next())
}

/// No word about who has a device.
fn not_looked_at(error: io::Error) -> DeviceFault {
    refused(
        format!("not looked at: {error}"),
        vec!["whose the kernel's devices are can't be told now".to_owned()],
        "raise the limit of open files, or free memory; then again",
    )
}
