//! How a command ends: the exit statuses of docs/exit-statuses.md, and the words on standard error.

use std::process::ExitCode;

use crate::config::ConfigError;
use crate::config::edit::EditError;
use crate::config::own_keys::KeyError;
use crate::control::client::ClientError;
use crate::control::message::RefusalReport;
use crate::daemon::StartError;

/// What a command's end is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Done = 0,
    /// Refused because of the state.
    Refused = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// No daemon answers, or it went away.
    NoDaemon = 3,
    /// It took longer than it was given.
    TimedOut = 4,
    /// Ctrl-C; what was begun goes on in the daemon.
    Interrupted = 5,
    /// The system refused: a file, a permission, a socket.
    System = 6,
    /// `verify` found that the copies differ.
    Different = 7,
}

impl Status {
    /// All of them, with their meaning, for the documentation.
    pub const ALL: &[(Self, &'static str)] = &[
        (
            Self::Done,
            "Done, or there was nothing to do (the words say which).",
        ),
        (
            Self::Refused,
            "Refused because of the state. Reason, facts and next step are on standard error; nothing was changed.",
        ),
        (
            Self::Usage,
            "Wrong usage or a wrong configuration; nothing was changed. Also where a question would have to be asked, there is no terminal, and `--yes` is missing.",
        ),
        (
            Self::NoDaemon,
            "No daemon answers on the control socket, this user may not use it, or the daemon went away before it answered.",
        ),
        (
            Self::TimedOut,
            "Timed out (`--timeout`). What is known of the outcome is on standard error; what was begun goes on in the daemon.",
        ),
        (
            Self::Interrupted,
            "Interrupted (Ctrl-C) while waiting. What was begun goes on in the daemon, and the command says so.",
        ),
        (
            Self::System,
            "The system refused something: a file, a permission, a socket, a disk. Also where a later step of a command was refused, or what was begun came to another end. What was done before is said.",
        ),
        (
            Self::Different,
            "`verify --wait`: the copies differ (the differing blocks are marked), or a block can be read on neither node.",
        ),
    ];
}

/// A command that did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How the process ends.
    pub status: Status,
    /// What was refused, the facts, the next step: for standard error.
    pub words: String,
}

impl Failure {
    /// With a status.
    pub fn new(status: Status, words: impl Into<String>) -> Self {
        Self {
            status,
            words: words.into(),
        }
    }

    /// Refused because of the state.
    pub fn refused(words: impl Into<String>) -> Self {
        Self::new(Status::Refused, words)
    }

    /// Wrong usage.
    pub fn usage(words: impl Into<String>) -> Self {
        Self::new(Status::Usage, words)
    }

    /// The system refused, or something is another than before: that is no mere refusal.
    pub fn system(words: impl Into<String>) -> Self {
        Self::new(Status::System, words)
    }

    /// The daemon's refusal.
    pub fn of_refusal(mirror: &str, refusal: &RefusalReport) -> Self {
        let mut words = format!("mirror {mirror}: {}", refusal.what);
        if mirror.is_empty() {
            words.clone_from(&refusal.what);
        }
        for fact in &refusal.facts {
            words.push_str("\n  ");
            words.push_str(fact);
        }
        if !refusal.next.is_empty() {
            words.push_str("\n  next: ");
            words.push_str(&refusal.next);
        }
        Self::refused(words)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<EditError> for Failure {
    fn from(error: EditError) -> Self {
        let status = match error {
            EditError::Config(_) => Status::Usage,
            EditError::Io { .. } => Status::System,
        };
        Self::new(status, error.to_string())
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        Self::system(error.to_string())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::new(Status::NoDaemon, error.to_string())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let status = match error {
            StartError::RunsAlready { .. } => Status::Refused,
            StartError::Socket { .. } => Status::System,
            StartError::NoGroup(_) => Status::Usage,
        };
        Self::new(status, error.to_string())
    }
}

/// What a command gives back: an exit status of its own (`status --exit-code`), or a failure.
pub type Outcome = Result<u8, Failure>;

/// Everything was done.
pub const DONE: Outcome = Ok(0);

/// Says what failed and ends.
pub fn end(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            // "mirror pg: …" and "kagami: …" alike: the object comes first.
            anstream::eprintln!("{}", failure.words);
            ExitCode::from(failure.status as u8)
        }
    }
}

/// docs/exit-statuses.md.
pub fn markdown() -> String {
    use std::fmt::Write as _;
    let mut text = "\
# Exit statuses

<!-- Made from cli/src/exit.rs: KAGAMI_WRITE_DOCS=1 cargo test -p kagami documents -->

Every command ends with one of these. A script can rely on them; new ones may be added.

| status | meaning |
|---|---|
"
    .to_owned();
    for (status, meaning) in Status::ALL {
        let _ = writeln!(text, "| {} | {meaning} |", *status as u8);
    }
    text.push_str(
        "
`kagami status --exit-code` ends with the state instead, the worst of all mirrors shown (the
largest number):

| status | meaning |
|---|---|
| 0 | In sync: every write goes to both copies (also while they are verified). |
| 10 | Resynchronising, paused, or just connected: both copies are there, one is not up to date. |
| 11 | Alone: this node serves, and one copy is away or has no disk. Also in sync while the arbiter can't be used, or with blocks marked that a verification found. |
| 12 | Not usable here: requests are held, the peer is not reachable, or a person must choose. |
| 13 | Split brain: both copies went on alone. |

Each of the words in `condition` of `kagami status --json` belongs to one of them (`in-sync` and `verifying` to 11 where
`arbiter_fault` is set, `in-sync` also where `marked_bytes` is not 0):

| condition | status |
|---|---|
",
    );
    for condition in crate::control::report::Condition::ALL {
        let _ = writeln!(
            text,
            "| `{condition}` | {} |",
            crate::control::condition::code(*condition)
        );
    }
    text.push_str(
        "
When no daemon answers, `status --exit-code` ends with 3, like every command.

`kagami cluster status --exit-code` ends with the worst of what is shown:

| status | meaning |
|---|---|
| 0 | Every group that should run is online, and both nodes are; what should not run is offline. |
| 10 | A group is on its way up or down. |
| 11 | The groups run, and a takeover may not be possible: a node or a heartbeat is missing, the arbiter does not answer, a copy is not in sync, or the cluster is suspended. |
| 12 | A group that should run does not, could not be started or stopped, or nobody can say. |

`kagami failover` ends with 1 or 2 only where it has not begun and nothing passes by itself (a manager runs already, there is no key, the
configuration is wrong), and systemd then leaves it so. Where a manager had begun and no other can follow it, it ends with 6 and is started again.

Commands to the failover manager end with 3 when it does not answer on this node, with 1 when the
other node would have to answer and is not reached, and with 4 when an order was sent there and not answered: it may
be carried out. The end of the cluster that the other node could not be told of is carried out on this one,
and the command ends with 6; an alert that only this node got (`ARMBCAST`) is done, with 0 and a word on standard error.
",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_current() {
        crate::documents::assert_current("exit-statuses.md", &markdown());
    }

    #[test]
    fn statuses_are_told_apart() {
        for (index, (status, _)) in Status::ALL.iter().enumerate() {
            assert_eq!(*status as usize, index);
        }
    }
}
