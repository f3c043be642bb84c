//! One node of a scratch pair: a folder, a configuration of its own, and a daemon that can be killed.
//!
//! Everything goes through the program's own commands and its control channel, as on a real machine.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::fault::DemoError;
use super::process::{Inside, Process, tie};
use super::signals;
use crate::control::client::Client;
use crate::control::message::{Answer, Ask};
use crate::control::report::{MirrorReport, StatusReport};
use crate::render::{Look, status};

/// A command that takes longer hangs.
const COMMAND_PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at something that gives no notice of itself.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Between two states of a mirror that is watched.
const WATCH_EVERY_MS: u64 = 50;

/// A node. Its daemon ends with it.
#[derive(Debug)]
pub struct Node {
    name: String,
    folder: PathBuf,
    program: PathBuf,
    daemon: Option<Process>,
    inside: Option<Inside>,
    runtime: Runtime,
    orders: u32,
}

/// What a command printed.
#[derive(Debug)]
pub struct Printed {
    /// Whether its exit status was 0.
    pub success: bool,
    /// Its exit status in words.
    pub end: String,
    /// Its exit status, if it was not killed.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Node {
    /// A node in `folder` with a `[node]` section and whatever `more` sections say.
    ///
    /// # Errors
    /// The folder can't be made.
    pub fn new(
        program: &Path,
        folder: PathBuf,
        name: &str,
        listen: &str,
        more: &str,
    ) -> Result<Self, DemoError> {
        let doing = format!("making {}", folder.display());
        fs::create_dir_all(&folder).map_err(DemoError::system(doing))?;
        let mut id = [0; 7];
        getrandom::fill(&mut id).map_err(|error| {
            DemoError::system("drawing a node id")(io::Error::other(error.to_string()))
        })?;
        let id = id.iter().fold(1_u64, |id, byte| {
            (id << 8 | u64::from(*byte)) & (i64::MAX as u64)
        });
        let at = folder.display();
        let text = format!(
            "[node]\nname = \"{name}\"\nid = {id}\nlisten = [\"{listen}\"]\n\
             state-dir = \"{at}\"\nrun-dir = \"{at}\"\n\n{more}"
        );
        let file = folder.join("kagami.toml");
        fs::write(&file, text).map_err(DemoError::system(format!("writing {}", file.display())))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(DemoError::system("starting a runtime"))?;
        Ok(Self {
            name: name.to_owned(),
            folder,
            program: program.to_owned(),
            daemon: None,
            inside: None,
            runtime,
            orders: 0,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join("kagami.toml")
    }

    /// Where its programs run from now on; none: where this one does.
    pub fn live_in(&mut self, inside: Option<Inside>) {
        self.inside = inside;
    }

    /// The daemon's process id.
    pub fn daemon_id(&self) -> Option<u32> {
        self.daemon.as_ref().map(Process::id)
    }

    /// `kagami --config FILE ARGS…`
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.config()).args(args);
        if let Some(inside) = &self.inside {
            inside.put(&mut command);
        }
        command
    }

    /// Starts a command in the background; what it prints is in the file.
    ///
    /// # Errors
    /// The system would not start it.
    pub fn begin(&mut self, args: &[&str]) -> Result<(Process, PathBuf), DemoError> {
        self.orders += 1;
        let log = self.folder.join(format!("command-{}.log", self.orders));
        let doing = format!("starting kagami {}", args.join(" "));
        let process =
            Process::start(&mut self.command(args), &log).map_err(DemoError::system(doing))?;
        Ok((process, log))
    }

    /// Runs a command to its end, whatever that is.
    ///
    /// # Errors
    /// The system would not start it, or it does not end.
    pub fn try_run(&self, args: &[&str]) -> Result<Printed, DemoError> {
        let words = args.join(" ");
        let system = || DemoError::system(format!("running kagami {words}"));
        let capture = |end: &str| -> io::Result<(PathBuf, File)> {
            let path = self.folder.join(format!("command.{end}"));
            Ok((path.clone(), File::create(path)?))
        };
        let (out, out_file) = capture("out").map_err(system())?;
        let (err, err_file) = capture("err").map_err(system())?;
        let mut command = self.command(args);
        tie(&mut command)
            .stdin(Stdio::null())
            .stdout(out_file)
            .stderr(err_file);
        let mut child = command.spawn().map_err(system())?;
        let deadline = Instant::now() + COMMAND_PATIENCE;
        let end = loop {
            if let Some(end) = child.try_wait().map_err(system())? {
                break end;
            }
            if Instant::now() > deadline || signals::said_stop() {
                let _ = child.kill();
                let _ = child.wait();
                if signals::said_stop() {
                    return Err(DemoError::Interrupted);
                }
                return Err(self.too_long(format!("`kagami {words}` to end"), COMMAND_PATIENCE));
            }
            thread::sleep(LOOK_AGAIN);
        };
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        Ok(Printed {
            success: end.success(),
            end: end.to_string(),
            code: end.code(),
            out: read(&out),
            err: read(&err),
        })
    }

    /// Runs a command that must succeed; its standard output.
    ///
    /// # Errors
    /// It did not.
    pub fn run(&self, args: &[&str]) -> Result<String, DemoError> {
        let printed = self.try_run(args)?;
        if printed.success {
            return Ok(printed.out);
        }
        Err(DemoError::Command {
            who: self.name.clone(),
            command: args.join(" "),
            end: printed.end,
            words: format!("{}{}", printed.out, printed.err),
        })
    }

    /// Starts the daemon with `args` (`up` or `witness`), and returns once it runs.
    ///
    /// # Errors
    /// The system would not start it.
    pub fn start(&mut self, args: &[&str]) -> Result<(), DemoError> {
        assert!(self.daemon.is_none(), "{} runs already", self.name);
        let log = self.log();
        let doing = format!("starting the daemon of {}", self.name);
        let daemon =
            Process::start(&mut self.command(args), &log).map_err(DemoError::system(doing))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// The daemon's log.
    pub fn log(&self) -> PathBuf {
        self.folder.join("daemon.log")
    }

    /// SIGKILL to the daemon: what the sudden death of a machine looks like to the other.
    ///
    /// # Errors
    /// The system would not.
    pub fn kill(&mut self) -> Result<(), DemoError> {
        let daemon = self.daemon.take().expect("a daemon to kill");
        daemon
            .kill()
            .map_err(DemoError::system(format!("killing {}", self.name)))
    }

    /// SIGTERM to the daemon, and waits for its clean end.
    ///
    /// # Errors
    /// It did not end, or not cleanly.
    pub fn stop(&mut self, patience: Duration) -> Result<(), DemoError> {
        let Some(daemon) = self.daemon.take() else {
            return Ok(());
        };
        let end = daemon
            .stop(patience)
            .map_err(DemoError::system(format!("stopping {}", self.name)))?;
        if end.success() {
            Ok(())
        } else {
            Err(DemoError::Died {
                who: self.name.clone(),
                end: end.to_string(),
                words: self.last_log(),
            })
        }
    }

    /// Makes sure that the daemon has not ended by itself.
    ///
    /// # Errors
    /// It has.
    pub fn still_runs(&mut self) -> Result<(), DemoError> {
        match self.daemon.as_mut().and_then(Process::ended) {
            None => Ok(()),
            Some(end) => {
                self.daemon = None;
                Err(DemoError::Died {
                    who: self.name.clone(),
                    end: end.to_string(),
                    words: self.last_log(),
                })
            }
        }
    }

    /// Sends a signal to the daemon.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<(), DemoError> {
        let daemon = self.daemon.as_ref().expect("a daemon to signal");
        daemon
            .signal(signal)
            .map_err(DemoError::system(format!("a signal to {}", self.name)))
    }

    /// What `kagami status` shows.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn screen(&mut self, look: &Look) -> Result<String, DemoError> {
        Ok(status::status(&self.status()?, look))
    }

    /// The state of everything.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn status(&mut self) -> Result<StatusReport, DemoError> {
        let mut found = None;
        self.watch("its status", COMMAND_PATIENCE, |report| {
            found = Some(report.clone());
            true
        })?;
        Ok(found.expect("the watch ended with a report"))
    }

    /// Watches the state until `enough` says so; a daemon that is only starting is waited for.
    ///
    /// # Errors
    /// The daemon died, the user said stop, or it took longer than `patience`.
    pub fn watch(
        &mut self,
        what: &str,
        patience: Duration,
        mut enough: impl FnMut(&StatusReport) -> bool,
    ) -> Result<(), DemoError> {
        let deadline = Instant::now() + patience;
        let socket = self.folder.join("control.sock");
        let mut last = None;
        while Instant::now() < deadline {
            let (runtime, daemon) = (&self.runtime, &mut self.daemon);
            let done = runtime.block_on(async {
                let Ok(mut client) = Client::connect(&socket).await else {
                    return false;
                };
                if client
                    .send(Ask::Watch {
                        every_ms: WATCH_EVERY_MS,
                    })
                    .await
                    .is_err()
                {
                    return false;
                }
                loop {
                    if signals::said_stop() || Instant::now() > deadline {
                        return false;
                    }
                    match timeout(Duration::from_millis(500), client.next()).await {
                        Ok(Ok(Some(Answer::Status(report)))) => {
                            if enough(&report) {
                                return true;
                            }
                            last = Some(*report);
                        }
                        Ok(_) => return false,
                        Err(_) => {}
                    }
                }
            });
            if done {
                return Ok(());
            }
            if signals::said_stop() {
                return Err(DemoError::Interrupted);
            }
            if let Some(end) = daemon.as_mut().and_then(Process::ended) {
                self.daemon = None;
                return Err(DemoError::Died {
                    who: self.name.clone(),
                    end: end.to_string(),
                    words: self.last_log(),
                });
            }
            thread::sleep(LOOK_AGAIN);
        }
        let last = last.map_or_else(
            || {
                format!(
                    "no answer of its daemon; the end of its log:\n{}",
                    self.last_log()
                )
            },
            |report| status::status(&report, &Look::plain()),
        );
        Err(DemoError::TooLong {
            who: self.name.clone(),
            what: what.to_owned(),
            after: patience,
            last,
        })
    }

    /// Watches one mirror until `enough` says so, and gives its state then.
    ///
    /// # Errors
    /// As [`Node::watch`].
    pub fn wait(
        &mut self,
        mirror: &str,
        what: &str,
        patience: Duration,
        mut enough: impl FnMut(&MirrorReport) -> bool,
    ) -> Result<MirrorReport, DemoError> {
        let mut found = None;
        self.watch(what, patience, |report| {
            let state = report.mirrors.iter().find(|state| state.name == mirror);
            let done = state.is_some_and(&mut enough);
            if done {
                found = state.cloned();
            }
            done
        })?;
        Ok(found.expect("the watch ended with a state"))
    }

    /// One mirror's state.
    ///
    /// # Errors
    /// As [`Node::watch`].
    pub fn mirror(&mut self, mirror: &str) -> Result<MirrorReport, DemoError> {
        self.wait(mirror, "its state", COMMAND_PATIENCE, |_| true)
    }

    fn too_long(&self, what: String, after: Duration) -> DemoError {
        DemoError::TooLong {
            who: self.name.clone(),
            what,
            after,
            last: self.last_log(),
        }
    }

    fn last_log(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

/// Waits until `enough` gives something, looking again and again.
///
/// # Errors
/// The user said stop, or it took longer than `patience`.
pub fn wait_until<T>(
    who: &str,
    what: &str,
    patience: Duration,
    mut enough: impl FnMut() -> Option<T>,
) -> Result<T, DemoError> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = enough() {
            return Ok(found);
        }
        if signals::said_stop() {
            return Err(DemoError::Interrupted);
        }
        if Instant::now() > deadline {
            return Err(DemoError::TooLong {
                who: who.to_owned(),
                what: what.to_owned(),
                after: patience,
                last: String::new(),
            });
        }
        thread::sleep(LOOK_AGAIN);
    }
}
