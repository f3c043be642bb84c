//! What a manager must be able to do for those who ask: the [`Desk`].

use tokio::sync::broadcast;

use super::alert::AlertReport;
use super::logs::LogFile;
use super::message::{Answer, Ask, Refused};
use super::status::NodeView;
use crate::config::{Cluster, Severity};
use crate::core::Command;
use crate::manager::alerts::Kept;

use std::future::Future;
use std::sync::Arc;

/// Why the other node's manager did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Unreached {
    /// `node beta does not answer: connection refused`
    pub why: String,
    /// It may have got the question: what that says may be done, or be done yet.
    pub asked: bool,
}

/// A manager, as the server of the control socket sees it. Everything is of this node alone, except
/// [`Desk::forward`]: what needs both nodes is brought together by the server.
///
/// No future here waits for people, scripts or the other node longer than a few seconds.
pub trait Desk: Send + Sync + 'static {
    /// The configuration in force.
    fn cluster(&self) -> Arc<Cluster>;

    /// The configuration's text, as it was read.
    fn configuration(&self) -> String;

    /// This node: its place in `[cluster] nodes`.
    fn me(&self) -> usize;

    /// What this node knows, now ([`super::view::of`] makes most of it).
    fn view(&self) -> impl Future<Output = NodeView> + Send;

    /// Hands a command to the core ([`crate::core::Event::Command`]) and waits for
    /// [`crate::core::Action::CommandDone`].
    ///
    /// Errors: what the core refuses.
    fn command(&self, command: Command) -> impl Future<Output = Result<(), Refused>> + Send;

    /// The alerts of this node's log; may leave out those before `since_ms`.
    fn alerts(&self, since_ms: Option<u64>) -> impl Future<Output = Kept> + Send;

    /// Each alert from now on.
    fn follow(&self) -> broadcast::Receiver<AlertReport>;

    /// Tells an alert of kind `message`.
    fn note(
        &self,
        text: String,
        id: Option<u32>,
        severity: Severity,
    ) -> impl Future<Output = ()> + Send;

    /// Takes a checked configuration over: writes the file, whole and durably, and works by it from now
    /// on; what was active stays so as far as it is in there.
    ///
    /// Errors: the file can't be written; what was there is in force.
    fn adopt(
        &self,
        text: String,
        cluster: Cluster,
    ) -> impl Future<Output = Result<(), Refused>> + Send;

    /// This node's logs ([`super::logs::collect`] makes them).
    fn logs(&self) -> impl Future<Output = Vec<LogFile>> + Send;

    /// Asks the manager of the other node, over the channel between the nodes; within seconds.
    ///
    /// Errors: it does not answer.
    fn forward(&self, ask: Ask) -> impl Future<Output = Result<Answer, Unreached>> + Send;

    /// Milliseconds since 1970.
    fn time_ms(&self) -> u64 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64)
    }
}
