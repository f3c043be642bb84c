//! The commands, a file each, and what they share.

use std::future::Future;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

pub mod arbiter;
pub mod attach;
pub mod bench;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod disk;
pub mod down;
pub mod events;
pub mod init;
pub mod node;
pub mod offer;
pub mod old_copy;
pub mod order;
pub mod pair;
pub mod peer;
pub mod reload;
pub mod replace;
pub mod resize;
pub mod resync;
pub mod rotate;
pub mod shell;
pub mod status;
pub mod stores;
pub mod verify;
pub mod waiting;
pub mod witness;
pub mod worth;

use crate::args::{Cli, Verb};
use crate::config::places::Places;
use crate::config::{Config, missing};
use crate::control::client::{Client, ClientError};
use crate::control::message::{Answer, Ask};
use crate::control::report::{MirrorReport, StatusReport};
use crate::exit::{DONE, Failure, Outcome, Status};
use crate::unit::Starter;

/// Where this command finds things.
#[derive(Clone, Debug)]
pub struct Context {
    /// The configuration file.
    pub file: PathBuf,
    /// Folders of this user.
    pub places: Places,
}

/// Runs a command line.
///
/// # Errors
/// What the command says when it did not do what was asked.
pub fn run(cli: Cli) -> Outcome {
    let places = Places::of_this_process();
    let context = Context {
        file: places.config_file(cli.config.as_deref()),
        places,
    };
    match cli.verb {
        Verb::Init(args) => init::run(&context, args),
        Verb::Pair(args) => block_on(pair::run(&context, args)),
        Verb::Up(args) => crate::up::run(&context, &args),
        Verb::Down(args) => block_on(down::run(&context, &args)),
        Verb::Status(args) => block_on(status::run(&context, &args)),
        Verb::Events(args) => block_on(events::run(&context, &args)),
        Verb::Promote(args) => block_on(order::promote(&context, &args)),
        Verb::Demote(args) => block_on(order::demote(&context, &args)),
        Verb::Attach(args) => block_on(attach::attach(&context, &args)),
        Verb::Detach(args) => block_on(attach::detach(&context, &args)),
        Verb::Resync(args) => block_on(resync::run(&context, &args)),
        Verb::PauseSync(args) => block_on(order::pause(&context, &args)),
        Verb::ResumeSync(args) => block_on(order::resume(&context, &args)),
        Verb::Verify(args) => block_on(verify::run(&context, &args)),
        Verb::Invalidate(args) => block_on(order::invalidate(&context, &args)),
        Verb::Disconnect(args) => block_on(order::disconnect(&context, &args)),
        Verb::Connect(args) => block_on(order::connect(&context, &args)),
        Verb::ReplacePeer(args) => block_on(replace::replace(&context, &args)),
        Verb::RemovePeer(args) => block_on(replace::remove(&context, &args)),
        Verb::ReplaceDisk(args) => block_on(disk::run(&context, &args)),
        Verb::Resize(args) => block_on(resize::run(&context, &args)),
        Verb::Peer(verb) => block_on(peer::run(&context, verb)),
        Verb::Config(verb) => config::run(&context, &verb),
        Verb::Reload(args) => block_on(reload::run(&context, &args)),
        Verb::Witness(args) => block_on(witness::run(&context, args)),
        Verb::Arbiter(verb) => block_on(arbiter::run(&context, verb)),
        Verb::Cluster(verb) => cluster::run(&context, verb),
        Verb::Group(verb) => block_on(cluster::group::run(&context, verb)),
        Verb::Monitor(verb) => block_on(cluster::monitor::run(&context, verb)),
        Verb::Node(verb) => block_on(cluster::end::node(&context, verb)),
        Verb::Alerts(args) => block_on(cluster::alerts::run(&context, &args)),
        Verb::Logs(verb) => block_on(cluster::logs::run(&context, verb)),
        Verb::Demo(args) => demo::run(&args),
        Verb::Bench(args) => bench::run(&context, &args),
        Verb::Completions(args) => shell::completions(&args),
        Verb::Man(args) => shell::man(&args),
        Verb::Clp { name, arguments } => crate::clp::run(&name, &arguments, cli.config.as_deref()),
        Verb::Failover(args) => crate::failover::run(&context, args),
        Verb::Guard(args) => block_on(crate::failover::guard::run(&context, args)),
        Verb::KernelDevice(verb) => attach::kernel_device(verb),
    }
}

/// Runs a command that waits for others.
pub(crate) fn block_on(future: impl Future<Output = Outcome>) -> Outcome {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            Failure::system(format!(
                "not begun: the system gives no event queue: {error}\n  next: raise the limit of open files, or end other programs"
            ))
        })?
        .block_on(future)
}

impl Context {
    /// The configuration, checked.
    ///
    /// # Errors
    /// It is wrong, or not there.
    pub fn config(&self) -> Result<Config, Failure> {
        Ok(Config::load(&self.file)?)
    }

    /// A connection to the daemon.
    ///
    /// # Errors
    /// There is none.
    pub async fn client(&self) -> Result<Client, Failure> {
        let config = self.config()?;
        Ok(Client::connect(&config.node.control).await?)
    }

    /// The state, now.
    ///
    /// # Errors
    /// There is no daemon.
    pub async fn report(&self) -> Result<StatusReport, Failure> {
        match self.client().await?.ask(Ask::Status).await? {
            Answer::Status(report) => Ok(*report),
            other => Err(unexpected(&other)),
        }
    }

    /// One mirror's state, now.
    ///
    /// # Errors
    /// There is no daemon, or no such mirror.
    pub async fn mirror(&self, name: &str) -> Result<MirrorReport, Failure> {
        let report = self.report().await?;
        find(&report, name, &self.file).cloned()
    }
}

/// The mirror of that name. `file`: the configuration.
fn find<'a>(
    report: &'a StatusReport,
    name: &str,
    file: &Path,
) -> Result<&'a MirrorReport, Failure> {
    report
        .mirrors
        .iter()
        .find(|mirror| mirror.name == name)
        .ok_or_else(|| {
            let known: Vec<&str> = report.mirrors.iter().map(|m| m.name.as_str()).collect();
            let (what, next) =
                missing::mirror(name, &known, file, Starter::of_process(report.node.pid));
            Failure::refused(format!("mirror {name}: {what}\n  next: {next}"))
        })
}

/// An answer that is none to this question: a refusal, or one that it can't have.
pub(crate) fn unexpected(answer: &Answer) -> Failure {
    if let Answer::Refused(refusal) = answer {
        return Failure::of_refusal("", refusal);
    }
    let error = ClientError::NotUnderstood {
        why: format!("its answer belongs to another question: {answer:?}"),
    };
    error.into()
}

/// Prints an object as one line of JSON.
fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::system(format!("the outcome can't be printed: {error}")))?;
    print_out(&format!("{text}\n"))
}

/// Prints what an order to `name` (a `kind`: mirror, node, cluster) would do and lose. Nothing was done.
fn print_dry_run(kind: &str, name: &str, words: &str, json: bool) -> Outcome {
    if json {
        print_json(&json!({kind: name, "outcome": "dry-run", "text": words}))?;
    } else {
        print_out(&format!("{words}\n"))?;
    }
    DONE
}

/// Prints to standard output; a reader that went away ends the command quietly.
pub(crate) fn print_out(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::system(format!(
            "standard output can't be written: {error}"
        ))),
    }
}

/// Asks whether to go on with what destroys something. `what` says what, how much and since when.
fn confirm(what: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        anstream::eprintln!("{what}");
        return Ok(());
    }
    let stdin = io::stdin();
    if !stdin.is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage(format!(
            "not done: {what}\n  next: there is no terminal to ask on; add --yes if that is meant"
        )));
    }
    anstream::eprint!("{what}\nGo on? Type yes: ");
    let mut answer = String::new();
    let read = stdin.lock().read_line(&mut answer);
    if read.is_ok() && answer.trim().eq_ignore_ascii_case("yes") {
        return Ok(());
    }
    Err(Failure::refused("not done: the answer was not yes"))
}

/// The same, of who keeps another node waiting: its connection is looked after meanwhile.
///
/// # Errors
/// The answer was not yes, there is no terminal, interrupted.
async fn confirm_meanwhile(what: String, yes: bool) -> Result<(), Failure> {
    let (say, said) = tokio::sync::oneshot::channel();
    // A thread of its own, which an interruption leaves behind: what it reads from ends with this process.
    std::thread::spawn(move || {
        // Nobody hears it who was interrupted.
        let _ = say.send(confirm(&what, yes));
    });
    within(
        None,
        String::new,
        || "interrupted; nothing was changed".to_owned(),
        async {
            said.await
                .unwrap_or_else(|_| Err(Failure::system("not done: the question was not answered")))
        },
    )
    .await
}

/// Waits for `future` within `limit`; Ctrl-C and the end of time are failures of their own.
async fn within<T>(
    limit: Option<Duration>,
    on_timeout: impl FnOnce() -> String,
    on_interrupt: impl FnOnce() -> String,
    future: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let ended = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        result = future => result,
        () = ended => Err(Failure::new(Status::TimedOut, on_timeout())),
        _ = tokio::signal::ctrl_c() => Err(Failure::new(Status::Interrupted, on_interrupt())),
    }
}

/// The daemon's state; `None` where none runs.
///
/// # Errors
/// One runs, and does not say.
async fn running(config: &Config) -> Result<Option<StatusReport>, Failure> {
    let mut client = match Client::connect(&config.node.control).await {
        Ok(client) => client,
        Err(ClientError::NoDaemon { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match client.ask(Ask::Status).await? {
        Answer::Status(report) => Ok(Some(*report)),
        other => Err(unexpected(&other)),
    }
}

/// Refuses while a daemon runs: `command` changes stores, which only one may have open. `subject` is what was not done,
/// as a refusal begins.
///
/// # Errors
/// It runs.
async fn stopped(config: &Config, subject: &str, command: &str) -> Result<(), Failure> {
    let Some(report) = running(config).await? else {
        return Ok(());
    };
    let pid = report.node.pid;
    let starter = Starter::of_process(pid);
    let (down, up) = match starter {
        Starter::Unit => (starter.down(), starter.up()),
        Starter::Hand => (starter.down(), "kagami up --detach"),
    };
    Err(Failure::refused(format!(
        "{subject}: the daemon (process {pid}) has the stores open\n  next: `{down}`, then `{command}`, then `{up}` (a device that is attached waits meanwhile, and is taken back)"
    )))
}

/// Hands a changed configuration to the daemon, if one runs; what it could not take over.
///
/// # Errors
/// It refuses the file.
async fn hand_over(config: &Config) -> Result<Option<Vec<String>>, Failure> {
    let mut client = match Client::connect(&config.node.control).await {
        Ok(client) => client,
        Err(ClientError::NoDaemon { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match client.ask(Ask::Reload).await? {
        Answer::Reloaded { restart, .. } => Ok(Some(restart)),
        Answer::Refused(refusal) => Err(Failure::of_refusal("", &refusal)),
        other => Err(unexpected(&other)),
    }
}
