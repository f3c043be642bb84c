//! What a node has for its resources and monitors: its configuration, folders, programs, control
//! groups, and the few things that others do for it, each behind a trait.
//!
//! It decides nothing. What is in `run` is gone after a reboot, as the processes are that it tells
//! of; what is in `state` stays.

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::config::resource::{Driver, Kind};
use crate::config::{Cluster, Group, Ms};
use crate::core::Node;
use crate::lock;
use crate::resource::apart::Apart;
use crate::resource::files::{Image, Sender};

/// What a trait object of this module answers, later.
pub type Pending<'p, T> = Pin<Box<dyn Future<Output = T> + Send + 'p>>;

/// Where a script's environment looks for programs, after the compatible commands.
pub const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Who asks mirrors' daemons. Promotion and demotion are the right's business, not a resource's.
pub trait MirrorDevice: Send + Sync {
    /// Makes the mirror a device of the kernel. One that is attached stays so.
    ///
    /// Answers the device, ready to be opened; or why not.
    fn attach<'a>(
        &'a self,
        mirror: &'a str,
        driver: Driver,
        device: Option<&'a Path>,
    ) -> Pending<'a, Result<PathBuf, String>>;

    /// Takes the kernel's device away. One that is not attached stays so.
    fn detach<'a>(&'a self, mirror: &'a str) -> Pending<'a, Result<(), String>>;

    /// What the mirror is at; `Err`: its daemon does not say.
    fn status<'a>(&'a self, mirror: &'a str) -> Pending<'a, Result<MirrorStatus, String>>;
}

/// What a mirror is at, as far as monitors ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MirrorStatus {
    /// This node's copy may be read and is complete.
    pub here_good: bool,
    /// The other copy is as good as this one, as far as is known.
    pub there_good: bool,
    /// One copies what the other lacks: not good yet, and no failure.
    pub resynchronising: bool,
    /// There is a session with the other node.
    pub connected: bool,
    /// The link was cut by an operator's word.
    pub paused: bool,
    /// Two copies have gone on alone.
    pub split_brain: bool,
    /// The kernel's device, where it is attached.
    pub device: Option<PathBuf>,
    /// In words, for people.
    pub words: String,
}

/// Who holds the watchdog's device, which has one holder.
pub trait Watchdog: Send + Sync {
    /// User space runs: the watchdog counts to `timeout` anew, and resets the node after that. It is told
    /// before this returns: what is told after it is heard after it.
    fn alive(&self, device: &Path, timeout: Ms) -> Pending<'static, Result<(), String>>;

    /// Nobody looks any more whether user space runs: no node is reset for it before [`Self::alive`] is
    /// called again.
    fn rest(&self);
}

/// Why a file is not on the other node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// The other node is not there, or does not answer.
    #[error("{0}")]
    Away(String),
    /// It was not installed there.
    #[error("{0}")]
    Refused(String),
    /// It can't be read here.
    #[error("{0}")]
    NotRead(String),
}

/// Who sends files to the other node.
pub trait FileChannel: Send + Sync {
    /// Has it installed there by [`crate::resource::files::install`]; answers when it is durable.
    fn send<'a>(
        &'a self,
        group: &'a str,
        resource: &'a str,
        image: Image,
    ) -> Pending<'a, Result<(), NotSent>>;

    /// A file of that resource can't be read here; people are told.
    fn not_read(&self, group: &str, resource: &str, why: &str);
}

/// What a node has.
pub struct Place {
    /// The configuration, checked.
    pub cluster: Arc<Cluster>,
    /// This node.
    pub me: Node,
    /// What outlives a reboot.
    pub state: PathBuf,
    /// What a reboot clears.
    pub run: PathBuf,
    /// The program, for what it calls of itself.
    pub kagami: PathBuf,
    /// The folder with the compatible commands' names, which comes first in a script's PATH.
    pub links: PathBuf,
    /// Where control groups are made; `None`: there is no control group here that can be written.
    pub control_groups: Option<PathBuf>,
    /// The PATH of the programs that resources call themselves (`ip`, `mount`, `systemctl`).
    pub tools: String,
    /// What begins a script, as itself.
    pub shell: PathBuf,
    /// How long a program that is to run on in the background is looked at: one that ends so soon could not begin.
    pub at_once: Duration,
    /// Where OCF agents are: `resource.d/PROVIDER/NAME` below it.
    pub ocf_root: PathBuf,
    /// Mirrors.
    pub mirrors: Arc<dyn MirrorDevice>,
    /// The watchdog.
    pub watchdog: Arc<dyn Watchdog>,
    /// The other node's files.
    pub files: Arc<dyn FileChannel>,
    /// What goes on beside an active resource, by its key.
    pub(crate) tasks: Arc<Tasks>,
    /// What may never return, and is not done twice at a time.
    pub(crate) apart: Apart,
    /// Shared disks that are held.
    pub(crate) held: Arc<Mutex<HashMap<PathBuf, fs::File>>>,
    /// What the start of a resource has sent, for whoever sends on, by its key.
    pub(crate) sent: Arc<Mutex<HashMap<String, Sender>>>,
}

/// What is one for all managers of a process: an operation goes on when its manager is replaced, in the place that it was
/// begun in, and what the next manager does has to know of it.
#[derive(Clone, Default)]
pub struct Lasting {
    tasks: Arc<Tasks>,
    apart: Apart,
    held: Arc<Mutex<HashMap<PathBuf, fs::File>>>,
    sent: Arc<Mutex<HashMap<String, Sender>>>,
}

impl Lasting {
    /// Nothing goes on beside active resources before the next manager has it go on ([`crate::resource::resume`]).
    pub fn pause(&self) {
        self.tasks.abort();
    }

    /// Disks that no resource of the configuration has are nobody's.
    fn let_go_of_others(&self, cluster: &Cluster) {
        let resources = cluster.groups.iter().flat_map(|group| &group.resources);
        let disks = resources.filter_map(|resource| match &resource.kind {
            Kind::Disk(disk) => Some(&disk.device),
            _ => None,
        });
        let disks: Vec<_> = disks.collect();
        let mut held = lock(&self.held);
        held.retain(|device, _| disks.contains(&device));
    }
}

impl std::fmt::Debug for Lasting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lasting").finish_non_exhaustive()
    }
}

impl Place {
    /// A node's place; its folders are made. `lasting`: what the places of this process share.
    ///
    /// # Errors
    /// A folder that can't be made.
    #[allow(clippy::too_many_arguments)] // each is what it is, and there is one caller
    pub fn new(
        cluster: Arc<Cluster>,
        me: Node,
        state: PathBuf,
        run: PathBuf,
        kagami: PathBuf,
        mirrors: Arc<dyn MirrorDevice>,
        watchdog: Arc<dyn Watchdog>,
        files: Arc<dyn FileChannel>,
        lasting: &Lasting,
    ) -> std::io::Result<Self> {
        lasting.let_go_of_others(&cluster);
        let Lasting {
            tasks,
            apart,
            held,
            sent,
        } = lasting.clone();
        // Scripts run as any user, and find the compatible commands there.
        fs::create_dir_all(run.join("bin"))?;
        for folder in [state.join("logs"), run.join("processes"), run.join("watch")] {
            private_folder(&folder)?;
        }
        let control_groups = control_group_root(&cluster.name, &cluster.nodes[me]);
        if control_groups.is_none() {
            tracing::warn!("no control group can be made here: groups are not frozen as a whole");
        }
        Ok(Self {
            links: run.join("bin"),
            control_groups,
            tools: USUAL_PATH.to_owned(),
            shell: PathBuf::from("/bin/sh"),
            at_once: Duration::from_millis(50),
            ocf_root: PathBuf::from("/usr/lib/ocf"),
            cluster,
            me,
            state,
            run,
            kagami,
            mirrors,
            watchdog,
            files,
            tasks,
            apart,
            held,
            sent,
        })
    }

    /// A script's PATH.
    pub fn path(&self) -> String {
        format!("{}:{USUAL_PATH}", self.links.display())
    }

    /// Where what a resource's scripts have written is kept.
    pub fn log(&self, name: &str) -> PathBuf {
        self.state.join("logs").join(format!("{name}.log"))
    }

    /// The control group of all processes of a group: what its guard freezes.
    pub fn group_control_group(&self, group: &str) -> Option<PathBuf> {
        Some(self.control_groups.as_ref()?.join(format!("g@{group}")))
    }

    /// The control group of a resource's processes.
    pub fn resource_control_group(&self, group: &str, resource: &str) -> Option<PathBuf> {
        let group = self.group_control_group(group)?;
        Some(group.join(format!("r@{resource}")))
    }

    /// A group's name and a resource's in one word that is a file's name and no other's.
    pub fn key(group: &Group, resource: &str) -> String {
        // `@` is in no name.
        format!("{}@{resource}", group.name)
    }

    /// Another node's name.
    pub fn other(&self) -> &str {
        &self.cluster.nodes[1 - self.me]
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place")
            .field("me", &self.cluster.nodes[self.me])
            .field("state", &self.state)
            .field("run", &self.run)
            .field("control_groups", &self.control_groups)
            .finish_non_exhaustive()
    }
}

/// `kagami/c@CLUSTER@NODE` in the machine's control groups (version 2), if it can be made. Two nodes may
/// share a kernel (containers, a trial on one machine): what one stops and clears is not the other's.
///
/// It is beside, not below, the manager's own: a manager that is restarted takes nothing with it.
fn control_group_root(cluster: &str, node: &str) -> Option<PathBuf> {
    let root = control_group_mount()?
        .join("kagami")
        .join(format!("c@{cluster}@{node}"));
    fs::create_dir_all(&root).ok()?;
    let writable = rustix::fs::access(
        root.join("cgroup.procs"),
        rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXISTS,
    );
    writable.ok().map(|()| root)
}

/// Makes a folder that nobody but this user may look into, or makes it one.
pub(crate) fn private_folder(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    if let Some(above) = folder.parent() {
        fs::create_dir_all(above)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let mode = fs::metadata(folder)?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Where control groups of version 2 are mounted.
pub(crate) fn control_group_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        (right.split(' ').next()? == "cgroup2").then_some(())?;
        left.split(' ').nth(4).map(PathBuf::from)
    })
}

/// Tasks that go on beside active resources. One that is replaced, or whose place is gone, ends.
#[derive(Default)]
pub(crate) struct Tasks(Mutex<HashMap<String, tokio::task::JoinHandle<()>>>);

impl Tasks {
    /// Begins a task under this key, and ends the one before it.
    pub(crate) fn begin(&self, key: String, task: impl Future<Output = ()> + Send + 'static) {
        let task = tokio::spawn(task);
        let mut all = lock(&self.0);
        if let Some(old) = all.insert(key, task) {
            old.abort();
        }
    }

    /// Ends the task under this key: nothing of it is done any more when this returns.
    pub(crate) async fn end(&self, key: &str) {
        let task = {
            let mut all = lock(&self.0);
            all.remove(key)
        };
        if let Some(task) = task {
            task.abort();
            // It was cancelled, or had ended: either way it is over.
            drop(task.await);
        }
    }
}

impl Tasks {
    /// Ends them all, soon; each that is ended under its key later is waited for.
    fn abort(&self) {
        let all = lock(&self.0);
        for task in all.values() {
            task.abort();
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::resource::DISK_RISK;
    use crate::probe::user_space::Devices;
    use crate::process::Deadline;
    use std::sync::mpsc;
    use tokio::sync::oneshot::error::TryRecvError::{Closed, Empty};

    struct Nobody;

    impl MirrorDevice for Nobody {
        fn attach<'a>(
            &'a self,
            _: &'a str,
            _: Driver,
            _: Option<&'a Path>,
        ) -> Pending<'a, Result<PathBuf, String>> {
            unreachable!("nothing is attached")
        }

        fn detach<'a>(&'a self, _: &'a str) -> Pending<'a, Result<(), String>> {
            unreachable!("nothing is attached")
        }

        fn status<'a>(&'a self, _: &'a str) -> Pending<'a, Result<MirrorStatus, String>> {
            unreachable!("nothing is attached")
        }
    }

    impl FileChannel for Nobody {
        fn send<'a>(
            &'a self,
            _: &'a str,
            _: &'a str,
            _: Image,
        ) -> Pending<'a, Result<(), NotSent>> {
            unreachable!("nothing is sent")
        }

        fn not_read(&self, _: &str, _: &str, _: &str) {
            unreachable!("nothing is read")
        }
    }

    /// The place of a manager's life, with a disk by this name.
    fn place(folder: &Path, lasting: &Lasting, disk: &str) -> Place {
        let text = format!(
            "[cluster]\nname = \"lives\"\nrevision = 1\nnodes = [\"alpha\", \"beta\"]\n\
             [arbiter]\nkind = \"witness\"\nname = \"gamma\"\n\
             [heartbeat.lan]\ntype = \"lan\"\npriority = 1\n\
             addresses = {{ alpha = \"10.0.0.1:7791\", beta = \"10.0.0.2:7791\" }}\n\
             [group.g]\nnodes = [\"alpha\", \"beta\"]\n\
             [group.g.resource.lun]\ntype = \"disk\"\ndevice = \"{disk}\"\n\
             accepted-risk = \"{DISK_RISK}\"\n"
        );
        let cluster = Cluster::parse(Path::new("cluster.toml"), &text).expect("right");
        let place = Place::new(
            Arc::new(cluster),
            0,
            folder.join("state"),
            folder.join("run"),
            PathBuf::from("/bin/true"),
            Arc::new(Nobody),
            Arc::new(Devices::default()),
            Arc::new(Nobody),
            lasting,
        );
        place.expect("made")
    }

    /// Control groups are the machine's.
    fn clear(place: &Place) {
        if let Some(root) = &place.control_groups {
            let _ = fs::remove_dir(root);
        }
    }

    #[tokio::test]
    async fn what_outlives_a_manager_is_known_to_the_next_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let lasting = Lasting::default();
        let [first, second] = [(); 2].map(|()| place(folder.path(), &lasting, "/dev/lun"));
        // A call that hangs.
        let (go, wait) = mpsc::channel::<()>();
        let short = || Deadline::after(Ms(20));
        let hangs = first.apart.run("x", short(), move || wait.recv().is_ok());
        assert!(hangs.await.is_err());
        assert!(second.apart.returned("x", short()).await.is_err());
        go.send(()).expect("it waits");
        let patience = Deadline::after(Ms::seconds(20));
        assert_eq!(second.apart.returned("x", patience).await, Ok(()));
        // A task: whoever has its other end hears of its end.
        let goes_on = || {
            let (sign, end) = tokio::sync::oneshot::channel::<()>();
            first.tasks.begin("g@files".to_owned(), async move {
                let _sign = sign;
                std::future::pending().await
            });
            end
        };
        let mut end = goes_on();
        assert!(end.try_recv().is_err_and(|e| e == Empty));
        second.tasks.end("g@files").await;
        assert!(end.try_recv().is_err_and(|e| e == Closed), "it has ended");
        let end = goes_on();
        lasting.pause();
        drop(first);
        assert!(patience.wait(end).await.expect("in time").is_err());
        second.tasks.end("g@files").await;
        clear(&second);
    }

    #[tokio::test]
    async fn a_disk_stays_locked_until_no_resource_has_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let lasting = Lasting::default();
        let first = place(folder.path(), &lasting, "/dev/lun");
        let file = tempfile::tempfile().expect("a file");
        let holds = |place: &Place| {
            let held = lock(&place.held);
            held.contains_key(Path::new("/dev/lun"))
        };
        (first.held.lock().expect("whole")).insert("/dev/lun".into(), file);
        drop(first);
        assert!(holds(&place(folder.path(), &lasting, "/dev/lun")));
        let third = place(folder.path(), &lasting, "/dev/other");
        assert!(!holds(&third));
        clear(&third);
    }
}
