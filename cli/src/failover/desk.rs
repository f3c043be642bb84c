//! What people, their commands and the other manager reach of a manager: its [`Desk`].

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use kagami_failover::channel::{Channel, PeerAnswer, PeerAsk};
use kagami_failover::config::{Cluster, Severity};
use kagami_failover::control::answer::answer_peer;
use kagami_failover::control::logs::{self, LogFile};
use kagami_failover::control::message::Refused;
use kagami_failover::control::{AlertReport, Answer, Ask, Desk, NodeView, Unreached, view};
use kagami_failover::core::{Command, Node};
use kagami_failover::manager::alerts::{Alerts, Kept};
use kagami_failover::manager::{ALERTS, CommandError, Handle, STATE, kept_alerts, store};
use kagami_failover::place::Place;
use kagami_failover::process::log;
use kagami_failover::resource::files;
use kagami_failover::right::lease::Word;
use kagami_failover::right::tenancy::{Answers, Promises};
use tokio::sync::broadcast;

use crate::config::edit::replace;

/// The desk of one life of a manager.
#[derive(Debug)]
pub struct Office {
    /// The configuration in force, and its text.
    pub cluster: Arc<Cluster>,
    /// As it was read.
    pub text: String,
    /// Where it was read.
    pub file: PathBuf,
    /// The node's own configuration, for the archive of logs.
    pub node_file: PathBuf,
    /// This node.
    pub me: Node,
    /// The manager.
    pub handle: Handle,
    /// Where alerts go.
    pub alerts: Alerts,
    /// The way to the other manager.
    pub channel: Channel,
    /// What this node has.
    pub place: Arc<Place>,
    /// What answers the other manager that asks for a promise; `None`: there is no arbiter.
    pub promises: Option<Promises>,
    /// Whether the arbiter answers.
    pub arbiter: Answers,
}

impl Office {
    /// Answers the other manager.
    pub async fn answer(&self, ask: PeerAsk) -> PeerAnswer {
        match ask {
            PeerAsk::Lease(ask) => {
                if let Some(promises) = &self.promises {
                    return promises.answer(ask).await;
                }
                let why = "its configuration has no arbiter".to_owned();
                PeerAnswer::Lease(ask.nonce, Word::Silent(why))
            }
            PeerAsk::Control(ask) => PeerAnswer::Control(answer_peer(self, ask).await),
            PeerAsk::File {
                group,
                resource,
                image,
            } => {
                let place = Arc::clone(&self.place);
                let installed = tokio::task::spawn_blocking(move || {
                    files::install(&place, &group, &resource, &image)
                });
                PeerAnswer::File(
                    installed
                        .await
                        .unwrap_or_else(|error| Err(error.to_string())),
                )
            }
        }
    }
}

impl Desk for Office {
    fn cluster(&self) -> Arc<Cluster> {
        Arc::clone(&self.cluster)
    }

    fn configuration(&self) -> String {
        self.text.clone()
    }

    fn me(&self) -> usize {
        self.me
    }

    async fn view(&self) -> NodeView {
        let (cluster, me) = (Arc::clone(&self.cluster), self.me);
        let seen = self.handle.look(move |core| view::of(core, &cluster, me));
        // A manager that has just ended knows nothing any more.
        let mut view = seen.await.unwrap_or_else(|| NodeView {
            node: self.cluster.nodes[self.me].clone(),
            revision: self.cluster.revision,
            ..NodeView::default()
        });
        view.arbiter = self.arbiter.get();
        view
    }

    async fn command(&self, command: Command) -> Result<(), Refused> {
        match self.handle.command(command).await {
            Ok(()) => Ok(()),
            Err(CommandError::Refused(refusal)) => Err(refusal.into()),
            Err(gone @ CommandError::Gone) => Err(Refused::of_words(&gone.to_string())),
        }
    }

    async fn alerts(&self, since_ms: Option<u64>) -> Kept {
        let state = self.place.state.clone();
        let read = tokio::task::spawn_blocking(move || kept_alerts(&state)).await;
        let mut kept = read.unwrap_or_else(|error| Kept {
            missing: Some(error.to_string()),
            ..Kept::default()
        });
        (kept.alerts).retain(|alert| since_ms.is_none_or(|since| alert.time_ms >= since));
        kept
    }

    fn follow(&self) -> broadcast::Receiver<AlertReport> {
        self.alerts.listen()
    }

    async fn note(&self, text: String, id: Option<u32>, severity: Severity) {
        self.alerts.note(text, id, severity);
    }

    async fn adopt(&self, text: String, cluster: Cluster) -> Result<(), Refused> {
        let (file, state) = (self.file.clone(), self.place.state.join(STATE));
        let written = tokio::task::spawn_blocking(move || {
            // The next manager could not begin.
            if let Err(error) = store::load(&state) {
                return Err(Refused::of_words(&error.to_string()));
            }
            Ok(replace(&file, text.as_bytes()))
        });
        let written = written
            .await
            .unwrap_or_else(|e| Ok(Err(io::Error::other(e))))?;
        written.map_err(|error| {
            let file = self.file.display();
            Refused::new(
                format!("{file}: not written: {error}"),
                "make room or put its folder right, and push again",
            )
        })?;
        tracing::info!(
            "revision {} of the configuration is taken over",
            cluster.revision
        );
        // Another manager begins with it; groups stay as they are.
        self.handle.again();
        Ok(())
    }

    async fn logs(&self) -> Vec<LogFile> {
        let (state, folder) = (self.place.state.clone(), self.place.state.join("logs"));
        let mut files = vec![
            ("cluster.toml".to_owned(), self.file.clone()),
            ("kagami.toml".to_owned(), self.node_file.clone()),
            (log::OF_GUARD.to_owned(), state.join(log::OF_GUARD)),
        ];
        for number in (1..=4).rev() {
            let name = format!("{ALERTS}.{number}");
            files.push((name.clone(), state.join(name)));
        }
        files.push((ALERTS.to_owned(), state.join(ALERTS)));
        files.extend(logs::below("logs", &folder));
        let collected = tokio::task::spawn_blocking(move || logs::collect(&files)).await;
        collected.unwrap_or_default()
    }

    async fn forward(&self, ask: Ask) -> Result<Answer, Unreached> {
        match self.channel.ask(&PeerAsk::Control(ask)).await? {
            PeerAnswer::Control(answer) => Ok(answer),
            other => Err(Unreached {
                why: format!("the other node answered something else: {other:?}"),
                asked: true,
            }),
        }
    }
}
