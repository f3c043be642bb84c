//! Running what operators wrote: who it runs as, where, with which variables, in which control
//! group, for how long, and where its words go.
//!
//! A script is recorded by itself before it begins (`run/processes/KEY`), so a manager that died in
//! between still finds it; one that is still there from an earlier manager is ended before
//! the same one is begun again.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::sleep;

use super::{Deadline, Failure, Family, GRACE, POLL, Process, Step, log};
use crate::place::Place;
use crate::resource::apart::Apart;

/// Writes its own number and start down, goes into its control group, and becomes the program.
/// Whoever can't do that does not run: it could not be found, or frozen, later.
///
/// The manager and its guard are to live when memory is short; what they run is as good a choice as any
/// other process, and counts as one even where this may not be lowered to that.
pub(crate) const BEGIN: &str = r#"
record=$0 group=$1 directory=$2; shift 2
read -r _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ start _ <"/proc/$$/stat" || exit 125
echo "$$ $start" >"$record" || exit 125
echo 0 2>/dev/null >/proc/self/oom_score_adj
if [ -n "$group" ]; then echo $$ >"$group/cgroup.procs" || exit 125; fi
if [ -n "$directory" ]; then cd "$directory" || exit 125; fi
unset record group start directory
exec "$@"
"#;

/// Something to be run.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Its record's name; of two with the same, one runs.
    pub key: String,
    /// The log's name.
    pub log: String,
    /// The program and its arguments.
    pub program: Vec<OsString>,
    /// Who runs it; `None`: the manager's own user.
    pub user: Option<String>,
    /// Where it runs; `None`: `/`.
    pub directory: Option<PathBuf>,
    /// All that it sees, but PATH.
    pub environment: Vec<(String, String)>,
    /// Where it and what it starts are; `None`: in the manager's own.
    pub control_group: Option<PathBuf>,
}

/// How a script ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its status; 128 and the signal's number if it was ended by one.
    pub status: i32,
    /// The last line that it wrote.
    pub last: Option<String>,
}

/// A process's status as shells have it.
pub(super) fn status(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// A script that was begun.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
    /// Where in its log it begins; `None`: what it writes is lost.
    from: Option<u64>,
    family: Family,
    apart: Apart,
}

impl Script {
    fn name(&self) -> String {
        let words: Vec<_> = self.program.iter().map(|w| w.to_string_lossy()).collect();
        words.join(" ")
    }

    /// Where its process is recorded.
    pub fn record(&self, place: &Place) -> PathBuf {
        place.run.join("processes").join(&self.key)
    }

    /// The process that was begun under this key last.
    ///
    /// # Errors
    /// Its record can't be read.
    pub fn leader(&self, place: &Place) -> Step<Option<Process>> {
        let record = self.record(place);
        let unread = |error| format!("{}: {error}", record.display());
        Ok(Process::recorded(&record).map_err(unread)?)
    }

    /// The process that was begun under this key last, with what it started.
    ///
    /// # Errors
    /// Its record can't be read.
    pub fn family(&self, place: &Place) -> Step<Family> {
        Ok(Family {
            leader: self.leader(place)?,
            control_group: self.control_group.clone(),
        })
    }

    /// The process that was begun under this key last runs.
    ///
    /// # Errors
    /// That can't be seen.
    pub fn runs(&self, place: &Place) -> Step<bool> {
        let Some(process) = self.leader(place)? else {
            return Ok(false);
        };
        let unseen = |error| {
            format!(
                "whether process {} runs can't be seen: {error}",
                process.pid
            )
        };
        Ok(process.runs().map_err(unseen)?)
    }

    /// Begins it.
    ///
    /// # Errors
    /// There is no such user, folder or log; the kernel can't start a process.
    pub async fn begin(&self, place: &Place) -> Step<Running> {
        let refused = |why: String| format!("{}: not run: {why}", self.name());
        let mut environment = vec![
            ("PATH".to_owned(), place.path()),
            ("KAGAMI_RUN".to_owned(), place.run.display().to_string()),
        ];
        let mut words: Vec<OsString> = Vec::new();
        if let Some(user) = &self.user {
            let person = Person::of(place, user).await.map_err(refused)?;
            let own = rustix::process::getuid().as_raw();
            if person.uid != own || own == 0 {
                words.extend(
                    [
                        "setpriv".to_owned(),
                        format!("--reuid={}", person.uid),
                        format!("--regid={}", person.gid),
                        "--init-groups".to_owned(),
                        "--".to_owned(),
                    ]
                    .map(OsString::from),
                );
            }
            environment.extend([
                ("HOME".to_owned(), person.home),
                ("USER".to_owned(), user.clone()),
                ("LOGNAME".to_owned(), user.clone()),
            ]);
        }
        words.extend(self.program.iter().cloned());
        environment.extend(self.environment.iter().cloned());
        if let Some(group) = &self.control_group {
            fs::create_dir_all(group).map_err(|error| {
                refused(format!("its control group {}: {error}", group.display()))
            })?;
        }
        let path = place.log(&self.log);
        let (log, from) = log::begin(&place.apart, &path, self.name())
            .await
            .map_err(|error| refused(format!("its log {}: {error}", path.display())))?;
        let twice = log
            .try_clone()
            .map_err(|error| refused(error.to_string()))?;
        let record = self.record(place);
        let word = |path: &Option<PathBuf>| -> OsString {
            path.as_ref().map_or_else(OsString::new, OsString::from)
        };
        let child = Command::new(&place.shell)
            .arg("-c")
            .arg(BEGIN)
            .arg(&record)
            .arg(word(&self.control_group))
            .arg(word(&self.directory))
            .args(&words)
            .current_dir("/")
            .env_clear()
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(twice)
            .process_group(0)
            .spawn()
            .map_err(|error| refused(error.to_string()))?;
        let leader = child.id().and_then(|pid| Process::of(pid.cast_signed()));
        Ok(Running {
            child,
            log: path,
            from,
            family: Family {
                leader,
                control_group: self.control_group.clone(),
            },
            apart: place.apart.clone(),
        })
    }

    /// Ends the script of this key that an earlier manager left; what a script that has ended left
    /// running is not touched.
    ///
    /// # Errors
    /// It can't be ended.
    pub async fn end_leftover(&self, place: &Place) -> Step {
        let family = self.family(place)?;
        if family.leader.is_some_and(Process::is_alive) {
            tracing::warn!(
                key = self.key,
                "a script of an earlier manager still runs: it is ended"
            );
            let alone = Family {
                control_group: None,
                ..family
            };
            alone.end(GRACE).await?;
        }
        Ok(())
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It can't be begun, or takes longer than the deadline: it is ended with all that it started.
    pub async fn run(&self, place: &Place, deadline: Deadline) -> Step<Ended> {
        self.end_leftover(place).await?;
        let running = self.begin(place).await?;
        running.wait(deadline).await
    }

    /// Runs it to its end, which has to be 0.
    ///
    /// # Errors
    /// As [`Script::run`], or another status.
    pub async fn must(&self, place: &Place, deadline: Deadline) -> Step {
        let ended = self.run(place, deadline).await?;
        if ended.status == 0 {
            return Ok(());
        }
        Err(Failure::Failed(ended.failure(&self.name())))
    }
}

impl Ended {
    /// In words.
    pub fn failure(&self, name: &str) -> String {
        let what = match self.status {
            125 => "it could not be begun, or status 125".to_owned(),
            127 => "is not there, or something it calls (status 127)".to_owned(),
            status if status > 128 => format!("ended by signal {}", status - 128),
            status => format!("status {status}"),
        };
        match &self.last {
            Some(last) => format!("{name}: {what}: {last}"),
            None => format!("{name}: {what}"),
        }
    }
}

impl Running {
    /// Its process.
    pub fn process(&self) -> Option<Process> {
        self.family.leader
    }

    /// Waits until it has written itself down, so that whoever looks for it finds it, or has ended.
    ///
    /// # Errors
    /// The deadline passed: it is ended.
    pub async fn recorded(&self, record: &Path, deadline: Deadline) -> Step {
        let Some(process) = self.family.leader else {
            return Ok(());
        };
        let written = deadline.wait(is_recorded(process, record)).await;
        if written.is_err() {
            self.family.end(GRACE).await?;
        }
        written
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The deadline passed: it is ended with all that it started, also where nobody waits for that any more.
    pub async fn wait(mut self, deadline: Deadline) -> Step<Ended> {
        tokio::select! {
            status = self.child.wait() => {
                let status = status.map_err(|error| error.to_string())?;
                return Ok(self.ended(status).await);
            }
            () = sleep(deadline.left()) => {}
        }
        tracing::warn!(log = %self.log.display(), "a script took too long: it is ended");
        // A task of its own: whoever waits may have less patience than is left from TERM to KILL.
        let ending = tokio::spawn(async move {
            let end = self.family.end(GRACE);
            // It is waited for meanwhile, else it would stay as a zombie.
            let (end, _) = tokio::join!(end, tokio::time::timeout(GRACE * 3, self.child.wait()));
            if let Err(Failure::Failed(why)) = end {
                tracing::error!(why, "a script that took too long");
            }
        });
        if let Err(error) = ending.await {
            tracing::error!(%error, "a script that took too long");
        }
        Err(Failure::TimedOut)
    }

    /// Its end, if it ends within this time.
    ///
    /// # Errors
    /// The kernel can't say.
    pub async fn ends_within(&mut self, time: Duration) -> Step<Option<Ended>> {
        match tokio::time::timeout(time, self.child.wait()).await {
            Ok(status) => {
                let status = status.map_err(|error| error.to_string())?;
                Ok(Some(self.ended(status).await))
            }
            Err(_) => Ok(None),
        }
    }

    async fn ended(&self, status: ExitStatus) -> Ended {
        Ended {
            status: self::status(status),
            last: match self.from {
                Some(from) => log::last_line(&self.apart, &self.log, from).await,
                None => None,
            },
        }
    }
}

/// The record is this process's, not the one's before it; or the process has ended.
async fn is_recorded(process: Process, record: &Path) {
    let is_it = || matches!(Process::recorded(record), Ok(Some(found)) if found == process);
    while !is_it() && process.is_alive() {
        sleep(POLL).await;
    }
}

/// A user of the machine, from whatever database it has.
struct Person {
    uid: u32,
    gid: u32,
    home: String,
}

impl Person {
    async fn of(place: &Place, user: &str) -> Result<Self, String> {
        let deadline = Deadline::after(crate::config::Ms::seconds(30));
        let said = super::tool::ask(place, "getent", &["passwd", user], &[], deadline).await;
        let said = match said {
            Ok(said) => said,
            Err(Failure::Failed(why) | Failure::Warned(why)) => return Err(why),
            Err(Failure::TimedOut) => return Err(format!("user {user}: getent does not answer")),
        };
        let fields: Vec<&str> = said.output.trim().split(':').collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse().ok());
        match (number(2), number(3), fields.get(5)) {
            (Some(uid), Some(gid), Some(home)) => Ok(Self {
                uid,
                gid,
                home: (*home).to_owned(),
            }),
            _ => Err(format!("there is no user {user} on this node")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_looked_for_once_its_own_record_is_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let record = folder.path().join("x");
        let own = Process::of(std::process::id().cast_signed()).expect("it runs");
        let waiting = is_recorded(own, &record);
        tokio::pin!(waiting);
        let mut is_done = async || {
            let done = tokio::time::timeout(POLL * 3, &mut waiting).await;
            done.is_ok()
        };
        assert!(!is_done().await, "there is no record yet");
        fs::write(&record, format!("1 {}\n", own.start)).expect("written");
        assert!(!is_done().await, "it is of the process before");
        fs::write(&record, format!("{} {}\n", own.pid, own.start)).expect("written");
        assert!(is_done().await);
        // One that can't write itself down has ended.
        fs::remove_file(&record).expect("removed");
        let gone = Process { start: 0, ..own };
        is_recorded(gone, &record).await;
    }
}
