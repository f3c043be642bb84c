//! Programs that scripts have started to be watched: what `ARMLOAD`, `ARMLOADC`, `ARMKILL` and `ARMRSP`
//! do, without their command lines.
//!
//! A program is begun by whoever loads it, in the script's own control group, and belongs to nobody
//! after that. The list is files in `run/watch`, one for each name, so it outlives the manager, which
//! looks through it again and again ([`WatchList::poll`]). Whatever changes the list holds its lock.
//! A name is one on its node; the other node's list is not asked: a group that fails over loads its programs
//! there under the same names, also while what is left here can't be ended.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::place::private_folder;
use crate::process::script::BEGIN;
use crate::process::{Deadline, Family, Process};

/// A program that can't be run has failed by then.
const BEGUN_WITHIN: Duration = Duration::from_secs(10);

const POLL: Duration = Duration::from_millis(10);

/// How often it is begun again after an unexpected end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// So often …
    pub times: u32,
    /// … in this many hours; 0: in all.
    pub hours: u32,
}

/// What is to be loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Its name, unique on this node.
    pub id: String,
    /// `/M`: its unexpected end stops this node's groups, which fail over.
    pub monitored: bool,
    /// `/U`: who runs it; `None`: whoever loads it.
    pub user: Option<String>,
    /// `/R`, `/H`.
    pub restart: Option<Restart>,
    /// The program and its arguments.
    pub program: Vec<String>,
}

/// A program on the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub id: String,
    /// Its process's number.
    pub pid: i32,
    /// When that was started, in clock ticks since the machine was.
    pub start: u64,
    /// Its unexpected end stops this node's groups.
    pub monitored: bool,
    /// How often it is begun again.
    pub restart: Option<Restart>,
    /// When it was, in seconds since 1970.
    pub restarted: Vec<u64>,
    /// Nobody looks whether it runs.
    pub paused: bool,
    /// It has ended, and this node's groups are to leave.
    #[serde(default)]
    pub failed: bool,
    /// Those of them that do, or that were not here since.
    #[serde(default)]
    pub left: Vec<String>,
    /// The group whose script loaded it; empty: no script did.
    pub group: String,
    /// The resource whose script loaded it.
    pub resource: String,
    /// The program and its arguments.
    pub program: Vec<String>,
    user: Option<String>,
    directory: PathBuf,
    control_group: Option<PathBuf>,
    environment: BTreeMap<String, String>,
}

impl Entry {
    /// Its process.
    pub fn process(&self) -> Process {
        Process {
            pid: self.pid,
            start: self.start,
        }
    }

    /// Its own group leaves because of it: until the others do, too, there is no end to it.
    fn has_moved_its_group(&self) -> bool {
        self.failed && self.left.contains(&self.group)
    }

    fn family(&self) -> Family {
        Family {
            leader: Some(self.process()),
            control_group: None,
        }
    }
}

/// What became of a program since the last look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It ended unexpectedly and runs again.
    Restarted(Entry),
    /// It ended unexpectedly. It is off the list, or, if it was `monitored`, stays there as failed until this node's groups
    /// have left.
    Ended(Entry),
}

/// Why the list was not changed.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The name is used.
    #[error(
        "watch name {id}: it is used by {program} (process {pid}): not loaded\n  next: choose another name, or end that one with ARMKILL {id}"
    )]
    Taken {
        /// The name.
        id: String,
        /// Who has it.
        program: String,
        /// Its process.
        pid: i32,
    },
    /// There is no such name on the list.
    #[error("watch name {0}: nothing is watched by this name on this node")]
    Unknown(String),
    /// The name can't be one.
    #[error(
        "watch name \"{0}\" can't be one\n  next: use 1 to 255 letters, digits, `-`, `_` and `.`"
    )]
    NotAName(String),
    /// The program can't be run.
    #[error("watch name {id}: {program} can't be run: {why}")]
    NotRun {
        /// The name.
        id: String,
        /// What.
        program: String,
        /// Why.
        why: String,
    },
    /// It was killed and is still there.
    #[error("watch name {id}: process {pid} was killed and is still there")]
    NotEnded {
        /// The name.
        id: String,
        /// Its process.
        pid: i32,
    },
    /// The list can't be read or written.
    #[error("the watch list {}: {error}", folder.display())]
    List {
        /// Where it is.
        folder: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// The list of one node.
#[derive(Clone, Debug)]
pub struct WatchList {
    folder: PathBuf,
}

impl WatchList {
    /// The list of the manager whose `run` folder this is; a script finds it in `KAGAMI_RUN`.
    pub fn new(run: &Path) -> Self {
        Self {
            folder: run.join("watch"),
        }
    }

    fn wrong(&self, error: io::Error) -> WatchError {
        WatchError::List {
            folder: self.folder.clone(),
            error,
        }
    }

    /// Held until it is dropped.
    fn lock(&self) -> Result<File, WatchError> {
        // Who could open it could lock it, and hold up every script that loads or ends a program.
        let lock = private_folder(&self.folder)
            .and_then(|()| private_file(&self.folder.join(".lock")))
            .map_err(|error| self.wrong(error))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| self.wrong(e.into()))?;
        Ok(lock)
    }

    fn path(&self, id: &str) -> Result<PathBuf, WatchError> {
        let good = |c: char| c.is_alphanumeric() || "-_.".contains(c);
        if id.is_empty() || id.len() > 255 - 5 || id.starts_with('.') || !id.chars().all(good) {
            return Err(WatchError::NotAName(id.to_owned()));
        }
        Ok(self.folder.join(format!("{id}.json")))
    }

    fn read(&self, id: &str) -> Result<Option<Entry>, WatchError> {
        match fs::read(self.path(id)?) {
            // What can't be read was not written by us.
            Ok(text) => serde_json::from_slice(&text).map_err(|e| self.wrong(e.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.wrong(error)),
        }
    }

    fn write(&self, entry: &Entry) -> Result<(), WatchError> {
        let path = self.path(&entry.id)?;
        let new = self.folder.join(format!(".{}.new", std::process::id()));
        let text = serde_json::to_vec(entry).map_err(|e| self.wrong(e.into()))?;
        // It has the script's whole environment.
        private_file(&new)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&new, path))
            .map_err(|error| self.wrong(error))
    }

    fn remove(&self, id: &str) -> Result<(), WatchError> {
        match fs::remove_file(self.path(id)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.wrong(error)),
            _ => Ok(()),
        }
    }

    /// What is on the list, by name.
    ///
    /// # Errors
    /// The list can't be read.
    pub fn entries(&self) -> Result<Vec<Entry>, WatchError> {
        let names = match fs::read_dir(&self.folder) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.wrong(error)),
        };
        let mut all = Vec::new();
        for name in names.flatten() {
            let name = name.file_name();
            let Some(id) = name.to_str().and_then(|n| n.strip_suffix(".json")) else {
                continue;
            };
            all.extend(self.read(id)?);
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    /// `ARMLOAD`: starts a program under a name. Called by a script's own process: the program is
    /// where the script is, sees what it sees, and writes where it writes.
    ///
    /// # Errors
    /// The name is used by a program that runs, or the program can't be run.
    pub fn load(&self, load: &Load) -> Result<Entry, WatchError> {
        let lock = self.lock()?;
        if let Some(old) = self.read(&load.id)?.filter(|old| old.process().is_alive()) {
            return Err(WatchError::Taken {
                id: old.id,
                program: old.program.join(" "),
                pid: old.pid,
            });
        }
        let text = |name: &str| std::env::var(name).unwrap_or_default();
        let entry = Entry {
            id: load.id.clone(),
            pid: 0,
            start: 0,
            monitored: load.monitored,
            restart: load.restart,
            restarted: Vec::new(),
            paused: false,
            failed: false,
            left: Vec::new(),
            group: text("CLP_GROUPNAME"),
            resource: text("CLP_RESOURCENAME"),
            program: load.program.clone(),
            user: load.user.clone(),
            directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            control_group: own_control_group(),
            environment: std::env::vars_os()
                .filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?)))
                .collect(),
        };
        let entry = self.begin(entry, None)?;
        self.write(&entry)?;
        drop(lock);
        Ok(entry)
    }

    /// Starts an entry's program, and answers the entry with its process. `log`: where it writes;
    /// `None`: where this process does.
    fn begin(&self, mut entry: Entry, log: Option<File>) -> Result<Entry, WatchError> {
        let not_run = |why: String| WatchError::NotRun {
            id: entry.id.clone(),
            program: entry.program.join(" "),
            why,
        };
        let Some(program) = entry.program.first() else {
            return Err(not_run("no program is named".to_owned()));
        };
        let path = entry.environment.get("PATH").map_or("", String::as_str);
        if !can_be_run(program, &entry.directory, path) {
            return Err(not_run(
                "there is no such program that can be run".to_owned(),
            ));
        }
        let mut words = Vec::new();
        if let Some(user) = &entry.user {
            let output = Command::new("id").args(["-g", "--", user]).output();
            let output = output.map_err(|error| not_run(error.to_string()))?;
            if !output.status.success() {
                return Err(not_run(format!("there is no user {user} on this node")));
            }
            let group = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            words.extend([
                "setpriv".to_owned(),
                format!("--reuid={user}"),
                format!("--regid={group}"),
                "--init-groups".to_owned(),
                "--".to_owned(),
            ]);
        }
        words.extend(entry.program.iter().cloned());
        let record = self.folder.join(format!(".{}.begun", entry.id));
        match fs::remove_file(&record) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.wrong(error)),
            _ => {}
        }
        let group = entry.control_group.clone().unwrap_or_default();
        let mut command = Command::new("/bin/sh");
        command
            // In the background of a shell that ends: the program is nobody's child.
            .args(["-c", r#"setsid -- /bin/sh -c "$0" "$@" &"#, BEGIN])
            .args([
                record.as_os_str(),
                group.as_os_str(),
                entry.directory.as_os_str(),
            ])
            .args(&words)
            .env_clear()
            .envs(&entry.environment)
            .stdin(Stdio::null());
        if let Some(log) = log {
            let twice = log
                .try_clone()
                .map_err(|error| not_run(error.to_string()))?;
            command.stdout(log).stderr(twice);
        }
        let status = command
            .status()
            .map_err(|error| not_run(error.to_string()))?;
        if !status.success() {
            return Err(not_run(format!("the shell that begins it: {status}")));
        }
        let until = Instant::now() + BEGUN_WITHIN;
        let process = loop {
            if let Some(process) = Process::recorded(&record).map_err(|e| self.wrong(e))? {
                break process;
            }
            if Instant::now() > until {
                return Err(not_run("it has not begun".to_owned()));
            }
            std::thread::sleep(POLL);
        };
        (entry.pid, entry.start) = (process.pid, process.start);
        Ok(entry)
    }

    /// `ARMLOADC ID /W PAUSE`, or `CONTINUE`: whether somebody looks if it runs.
    ///
    /// # Errors
    /// There is no such name.
    pub fn pause(&self, id: &str, paused: bool) -> Result<(), WatchError> {
        let lock = self.lock()?;
        let entry = self.read(id)?;
        let mut entry = entry.ok_or_else(|| WatchError::Unknown(id.to_owned()))?;
        entry.paused = paused;
        self.write(&entry)?;
        drop(lock);
        Ok(())
    }

    /// `ARMKILL ID /C`: nobody looks after it any more; it runs on.
    ///
    /// # Errors
    /// There is no such name.
    pub fn forget(&self, id: &str) -> Result<Entry, WatchError> {
        let entry = self.forget_if(id, |_| true)?;
        entry.ok_or_else(|| WatchError::Unknown(id.to_owned()))
    }

    /// The same, if it is one of these; `None`: there is no such name, or it is another program's.
    fn forget_if(
        &self,
        id: &str,
        is_one: impl Fn(&Entry) -> bool,
    ) -> Result<Option<Entry>, WatchError> {
        let lock = self.lock()?;
        let entry = self.read(id)?.filter(is_one);
        if let Some(entry) = entry.as_ref().filter(|e| !e.has_moved_its_group()) {
            self.remove(&entry.id)?;
        }
        drop(lock);
        Ok(entry)
    }

    /// The programs whose end is to take this node's groups away, and has not yet.
    ///
    /// # Errors
    /// The list can't be read.
    pub fn failed(&self) -> Result<Vec<Entry>, WatchError> {
        let mut all = self.entries()?;
        all.retain(|entry| entry.failed);
        Ok(all)
    }

    /// These groups leave because of a program that has failed, or are not here; with `all` of them gone it is off the list.
    ///
    /// # Errors
    /// The list can't be read or written.
    pub fn leave(&self, failed: &Entry, groups: &[String], all: bool) -> Result<(), WatchError> {
        let lock = self.lock()?;
        // The name may be another program's by now.
        let still = self.read(&failed.id)?;
        let still = still.filter(|entry| entry.failed && entry.process() == failed.process());
        if let Some(mut entry) = still {
            if all {
                self.remove(&entry.id)?;
            } else {
                entry.left.extend_from_slice(groups);
                self.write(&entry)?;
            }
        }
        drop(lock);
        Ok(())
    }

    /// `ARMKILL ID [/T SEC]`: ends it, by force after `time`.
    ///
    /// # Errors
    /// There is no such name, or the kernel can't end it.
    pub fn kill(&self, id: &str, time: Duration) -> Result<(), WatchError> {
        // Nobody restarts it meanwhile.
        let entry = self.forget(id)?;
        Self::end(&entry, time)
    }

    fn end(entry: &Entry, time: Duration) -> Result<(), WatchError> {
        let family = entry.family();
        for (signal, time) in [(Signal::TERM, time), (Signal::KILL, Duration::from_secs(5))] {
            family.signal(signal);
            let until = Instant::now() + time;
            loop {
                if family.is_gone() {
                    return Ok(());
                }
                if Instant::now() >= until {
                    break;
                }
                std::thread::sleep(POLL);
            }
        }
        Err(WatchError::NotEnded {
            id: entry.id.clone(),
            pid: entry.pid,
        })
    }

    /// Ends all that a resource's scripts have loaded: the resource stops. One that has left the list meanwhile has
    /// ended, or is to run on.
    ///
    /// # Errors
    /// One can't be ended.
    pub fn end_of(&self, group: &str, resource: &str, time: Duration) -> Result<(), WatchError> {
        let is_its = |entry: &Entry| entry.group == group && entry.resource == resource;
        for entry in self.entries()?.into_iter().filter(is_its) {
            // As it is now: it may have been begun again since.
            if let Some(entry) = self.forget_if(&entry.id, is_its)? {
                tracing::info!(id = entry.id, group, resource, "ended with its resource");
                Self::end(&entry, time)?;
            }
        }
        Ok(())
    }

    /// Looks at all of them; the manager does so about every second. Those that have ended are
    /// begun again where that was asked for; `log` opens the log of a resource. One that has failed is seen once.
    ///
    /// # Errors
    /// The list can't be read or written.
    pub fn poll(
        &self,
        now: u64,
        log: impl Fn(&Entry) -> Option<File>,
    ) -> Result<Vec<Seen>, WatchError> {
        let over = |entry: &Entry| !entry.paused && !entry.failed && !entry.process().is_alive();
        // Most of the time there is nothing to do, and the lock is left to the scripts.
        if !self.entries()?.iter().any(over) {
            return Ok(Vec::new());
        }
        let lock = self.lock()?;
        let mut seen = Vec::new();
        for mut entry in self.entries()?.into_iter().filter(over) {
            let again = entry.restart.is_some_and(|restart| {
                let window = u64::from(restart.hours) * 3600;
                let recent = |at: &&u64| window == 0 || **at + window > now;
                entry.restarted.iter().filter(recent).count() < restart.times as usize
            });
            if again {
                entry.restarted.push(now);
                let log = log(&entry);
                match self.begin(entry.clone(), log) {
                    Ok(entry) => {
                        self.write(&entry)?;
                        seen.push(Seen::Restarted(entry));
                        continue;
                    }
                    Err(error) => tracing::error!(%error, "it can't be begun again"),
                }
            }
            if entry.monitored {
                entry.failed = true;
                self.write(&entry)?;
            } else {
                self.remove(&entry.id)?;
            }
            seen.push(Seen::Ended(entry));
        }
        drop(lock);
        Ok(seen)
    }
}

/// Which silence ends [`respond`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// Of all addresses.
    All,
    /// Of one of them.
    Any,
}

/// `ARMRSP`: returns when the addresses do not answer any more; in words, who is silent. Each is asked
/// every `interval`, and is silent when it has not answered for `patience`.
pub async fn respond(
    addresses: &[IpAddr],
    silence: Silence,
    interval: Duration,
    patience: Duration,
) -> String {
    use crate::config::Ms;
    loop {
        let mut silent = Vec::new();
        for address in addresses {
            let deadline = Deadline::after(Ms((patience.as_millis() as u64).max(1)));
            if let Err(failure) = crate::probe::ping::any(&[*address], deadline).await {
                silent.push(match failure {
                    crate::process::Failure::Failed(why) | crate::process::Failure::Warned(why) => {
                        why
                    }
                    crate::process::Failure::TimedOut => format!("{address} does not answer"),
                });
            }
        }
        let over = match silence {
            Silence::All => silent.len() == addresses.len(),
            Silence::Any => !silent.is_empty(),
        };
        if over {
            return silent.join("; ");
        }
        tokio::time::sleep(interval).await;
    }
}

/// A file that nobody else may open, empty.
fn private_file(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)
}

/// Looked for as a shell does.
fn can_be_run(program: &str, directory: &Path, path: &str) -> bool {
    let runs = |file: &Path| {
        file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
    };
    if program.contains('/') {
        return runs(&directory.join(program));
    }
    path.split(':')
        .any(|folder| runs(&Path::new(folder).join(program)))
}

/// Where this process is, among the control groups of version 2.
fn own_control_group() -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // In the root everybody is.
    (!own.is_empty()).then_some(())?;
    Some(crate::place::control_group_mount()?.join(own))
}
