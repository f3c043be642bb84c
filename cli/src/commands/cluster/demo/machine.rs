//! A node with a machine of its own, as far as one kernel allows: a network, what is mounted, a boot; a
//! daemon and a failover manager. It can be killed and boot again.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kagami_failover::control::{Answer, Ask, Client, ClusterReport};
use kagami_nbd_server::kernel::Sysfs;
use kagami_nbd_server::kernel::sysfs::{Kind, Owner};
use tokio::runtime::Runtime;

use super::network::Network;
use crate::commands::demo::fault::DemoError;
use crate::commands::demo::node::{Node, wait_until};
use crate::commands::demo::process::{Inside, Process};
use crate::commands::demo::scratch::MIRROR;
use crate::config::Config;
use crate::daemon::attach::device::Kernel;
use crate::daemon::attach::identifier;

/// What a node sees differently from its neighbours: the network's devices, the links to mirrors' devices,
/// the boot. The process ends with its standard input; what was mounted lasts.
const SEE: &str = "mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /dev/kagami && \
    mount --bind \"$0\" /proc/sys/kernel/random/boot_id && echo ready && read -r _";
/// Where the daemon makes links to devices.
pub const LINKS: &str = "/dev/kagami";
/// A question to a manager is answered within.
const ASK_PATIENCE: Duration = Duration::from_secs(5);

/// A node and what it runs on.
#[derive(Debug)]
pub struct Machine {
    /// Its daemon, its commands.
    pub node: Node,
    manager: Option<Process>,
    is_up: bool,
}

fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> DemoError {
    DemoError::system(doing)
}

/// A boot's name, as the kernel spells it.
fn new_boot() -> Result<String, DemoError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        DemoError::system("drawing a boot's name")(io::Error::other(error.to_string()))
    })?;
    Ok(spell_boot(u128::from_be_bytes(bytes)))
}

fn spell_boot(number: u128) -> String {
    let digits = format!("{number:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
    parts.join("-") + "\n"
}

/// Makes a place's network one that programs can be put in; with `boot`, the file of a boot's name, also
/// what is mounted is its own.
///
/// # Errors
/// The system does not let this process.
pub fn inside(network: &Network, place: &str, boot: Option<&Path>) -> Result<Inside, DemoError> {
    let file = network.file(place);
    let doing = || system(format!("a machine of its own for {place}"));
    let own_network = OwnedFd::from(File::open(&file).map_err(doing())?);
    let Some(boot) = boot else {
        return Ok(Inside::new(own_network, None));
    };
    let mut child = Command::new("nsenter")
        .arg(format!("--net={}", file.display()))
        .args([
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            SEE,
        ])
        .arg(boot)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(doing())?;
    let mut said = String::new();
    let out = child.stdout.take().expect("piped");
    let read = BufReader::new(out).read_line(&mut said);
    let mounts = File::open(format!("/proc/{}/ns/mnt", child.id()));
    let ended = child.wait_with_output().map_err(doing())?;
    read.map_err(doing())?;
    if said != "ready\n" {
        return Err(DemoError::Tool {
            command: format!(
                "nsenter --net={} unshare --mount sh -c '{SEE}'",
                file.display()
            ),
            end: ended.status.to_string(),
            words: String::from_utf8_lossy(&ended.stderr).trim_end().to_owned(),
        });
    }
    let mounts = OwnedFd::from(mounts.map_err(doing())?);
    Ok(Inside::new(own_network, Some(mounts)))
}

impl Machine {
    /// Puts a node on a machine, which boots.
    ///
    /// # Errors
    /// See [`Machine::boot`].
    pub fn new(node: Node, network: &Network) -> Result<Self, DemoError> {
        let mut machine = Self {
            node,
            manager: None,
            is_up: false,
        };
        machine.boot(network)?;
        Ok(machine)
    }

    /// Its name, and its place's.
    pub fn name(&self) -> &str {
        self.node.name()
    }

    /// Switches it on: a new boot, nothing mounted, nothing runs yet.
    ///
    /// # Errors
    /// The system does not let this process.
    pub fn boot(&mut self, network: &Network) -> Result<(), DemoError> {
        assert!(!self.is_up, "{} is up", self.name());
        let boot = self.node.folder().join("boot-id");
        fs::write(&boot, new_boot()?).map_err(system(format!("writing {}", boot.display())))?;
        self.empty_run_folder();
        network.plug(self.node.name(), true)?;
        self.is_up = true;
        let inside = inside(network, self.node.name(), Some(&boot))?;
        self.node.live_in(Some(inside));
        Ok(())
    }

    /// A real machine's /run is empty after a boot.
    fn empty_run_folder(&self) {
        let entries = fs::read_dir(self.node.folder());
        let paths = entries
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()));
        for path in paths.filter(|path| path.extension().is_some_and(|end| end == "unbroken")) {
            // One that stays: the daemon takes it for another boot's.
            let _ = fs::remove_file(path);
        }
    }

    /// Starts the daemon and the failover manager.
    ///
    /// # Errors
    /// The system would not start them.
    pub fn start(&mut self) -> Result<(), DemoError> {
        self.node.start(&["up"])?;
        // The machine's own reset would be this whole machine's.
        let (manager, _) = self.node.begin(&["failover", "--no-reset"])?;
        self.manager = Some(manager);
        Ok(())
    }

    /// The last words of its manager and of a group's service, for error messages.
    pub fn last_words(&self, group: &str) -> String {
        let manager = self.manager.as_ref();
        let manager = manager.map_or_else(String::new, Process::last_words);
        let log = format!("failover/logs/{group}@server.log");
        let service = fs::read_to_string(self.node.folder().join(log)).unwrap_or_default();
        let lines: Vec<&str> = service.lines().collect();
        let last = lines[lines.len().saturating_sub(12)..].join("\n");
        format!("{manager}\nthe service on {}:\n{last}", self.name())
    }

    /// The whole machine dies at once: every process on it, its network, its part of the kernel.
    ///
    /// # Errors
    /// A process does not die, or its device stays.
    pub fn kill(&mut self, network: &Network) -> Result<(), DemoError> {
        if !self.is_up {
            return Ok(());
        }
        let device = self.device();
        let died = network.kill(self.node.name(), || {
            // What waits in it fails, as it would be lost with that node's own kernel.
            if let Some(index) = device {
                let _ = Kernel::default().disconnect(index);
            }
        });
        // They are dead: only waited for.
        if self.node.daemon_id().is_some() {
            self.node.kill()?;
        }
        if let Some(manager) = self.manager.take() {
            manager
                .kill()
                .map_err(system(format!("killing the manager of {}", self.name())))?;
        }
        died?;
        // What was mounted goes with it.
        self.node.live_in(None);
        self.is_up = false;
        network.unplug(self.node.name())
    }

    /// The number of its mirror's device, if the kernel has it.
    fn device(&self) -> Option<u32> {
        let config = Config::load(&self.node.config()).ok()?;
        let mirror = config.mirror(MIRROR)?;
        let sysfs = Sysfs::new("/sys", Kind::Nbd);
        let found = sysfs.find(&identifier(&mirror.uuid, config.node.id));
        let index = found.ok().flatten()?;
        matches!(sysfs.owner(index), Ok(Owner::Connected { .. })).then_some(index)
    }

    /// What its manager says of the cluster.
    pub fn cluster(&self, runtime: &Runtime) -> Option<ClusterReport> {
        let socket = self.node.folder().join("failover.sock");
        runtime.block_on(async {
            let asked = async { Client::connect(&socket).await?.ask(Ask::Status).await };
            match tokio::time::timeout(ASK_PATIENCE, asked).await {
                Ok(Ok(Answer::Cluster(report))) => Some(*report),
                _ => None,
            }
        })
    }

    /// Waits until its manager has ended by itself, and stops its daemon.
    ///
    /// # Errors
    /// One does not end, or not cleanly.
    pub fn stop(&mut self, patience: Duration) -> Result<(), DemoError> {
        if let Some(mut manager) = self.manager.take() {
            let who = format!("the manager of {}", self.name());
            let end = wait_until(&who, "its end", patience, || manager.ended())?;
            if !end.success() {
                return Err(DemoError::Died {
                    who,
                    end: end.to_string(),
                    words: manager.last_words(),
                });
            }
        }
        self.node.run(&["down"])?;
        self.node.stop(patience)
    }

    /// The folder of its files.
    pub fn folder(&self) -> PathBuf {
        self.node.folder().to_owned()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_boot_is_spelled_as_the_kernel_does() {
        assert_eq!(
            super::spell_boot(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
            "01234567-89ab-cdef-0123-456789abcdef\n"
        );
    }
}
