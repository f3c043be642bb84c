//! The side of the control socket that answers: one request a connection, its answers, nothing else.
//!
//! [`serve`] is for people's commands, [`answer_peer`] for the manager of the other node. What needs
//! both nodes is brought together here, by way of [`Desk::forward`]; what a peer asks is answered for
//! this node alone, so that no question comes back.

use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, timeout};
use tracing::{debug, info};

use super::desk::{Desk, Unreached};
use super::line::{self, LineError, REQUEST_MAX, Received};
use super::message::{Answer, Ask, Order, PROTOCOL, Pushed, Reach, Refused, Request};
use super::status::{ClusterReport, NodeState, NodeView, RunState};
use super::{merge::merge, order, push};
use crate::config::Cluster;

/// Clients at a time; more wait.
const CONNECTIONS_MAX: usize = 64;
/// A request must be there within.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);
/// A client that does not take an answer within is given up.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// The other node's word is waited for so long; then the state is told without it.
const VIEW_PATIENCE: Duration = Duration::from_millis(1500);
/// And for so long with the end of both: a manager that has ended serves its clients no longer than five seconds.
const END_PATIENCE: Duration = Duration::from_secs(4);

/// A control socket; its file goes away with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Held as long as the socket is this manager's.
    _lock: std::fs::File,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The lock is still held: this is our own socket.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A manager runs already.
    #[error("a failover manager runs already (it holds {})\n  next: nothing to do, or stop it first", .0.display())]
    RunsAlready(PathBuf),
    /// The system refused.
    #[error("{}: {source}\n  next: run the failover manager as a user who may write there", path.display())]
    Io {
        /// What was being made.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Socket {
    /// Binds the socket where nobody but this user can connect, and never takes it from a manager
    /// that lives.
    ///
    /// # Errors
    /// A manager has it, or the system refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| SocketError::Io { path, source }
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed(folder))?;
        }
        let lock_path = path.with_extension("lock");
        let lock = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            // Who could open it could lock it, and keep the manager from starting.
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed(&lock_path))?;
        lock.set_permissions(std::fs::Permissions::from_mode(0o600))
            .map_err(failed(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(SocketError::RunsAlready(lock_path));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(&lock_path)(error)),
        }
        let temporary = path.with_extension("new");
        for old in [temporary.as_path(), path] {
            match std::fs::remove_file(old) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed(old)(error));
                }
                _ => {}
            }
        }
        let listener = UnixListener::bind(&temporary).map_err(failed(&temporary))?;
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))
            .and_then(|()| std::fs::rename(&temporary, path))
            .map_err(failed(path))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            _lock: lock,
        })
    }
}

/// Serves clients until `stop` says true, and those that are being answered to their end, or its own: a client may
/// be slow, and is cut off with the task. Clients that come between two lives of a manager wait for the next.
pub async fn serve<D: Desk>(desk: Arc<D>, socket: Arc<Socket>, stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut clients = JoinSet::new();
    let mut stopped = stop.clone();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&socket.listener, &places) => accepted,
            // Whoever could say so has gone: that is the end, too.
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        let Some((stream, place)) = accepted else {
            continue;
        };
        let desk = Arc::clone(&desk);
        let stop = stop.clone();
        clients.spawn(async move {
            if let Err(error) = client(desk.as_ref(), stream, stop).await {
                debug!("a client of the control socket: {error}");
            }
            drop(place);
        });
        while clients.try_join_next().is_some() {}
    }
    while clients.join_next().await.is_some() {}
}

async fn accept(
    listener: &UnixListener,
    places: &Arc<Semaphore>,
) -> Option<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            // Out of descriptors, most likely: others must end first.
            debug!("the control socket took no client: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn client<D: Desk>(
    desk: &D,
    mut stream: UnixStream,
    stop: watch::Receiver<bool>,
) -> Result<(), LineError> {
    let mut received = Received::default();
    let request = received.next::<serde_json::Value>(&mut stream, REQUEST_MAX);
    let request = match timeout(REQUEST_PATIENCE, request).await {
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None)) => return Ok(()),
        Ok(Err(error @ LineError::Io(_))) => return Err(error),
        Ok(Err(error)) => return say(&mut stream, &not_understood(error.to_string())).await,
        Err(_) => {
            let why = "no request came within 10 s".to_owned();
            return say(&mut stream, &not_understood(why)).await;
        }
    };
    match understood(request) {
        Ok(Ask::Watch { every_ms }) => watch_status(desk, &mut stream, every_ms, stop).await,
        Ok(Ask::Follow { filter }) => {
            let mut alerts = desk.follow();
            let mut stop = stop;
            loop {
                let answer = tokio::select! {
                    biased;
                    alert = alerts.recv() => match alert {
                        Ok(alert) if !filter.wants(&alert) => continue,
                        Ok(alert) => Answer::Alert(alert),
                        Err(broadcast::error::RecvError::Lagged(alerts)) => Answer::Missed { alerts },
                        Err(broadcast::error::RecvError::Closed) => return Ok(()),
                    },
                    () = hung_up(&mut stream) => return Ok(()),
                    _ = stop.wait_for(|stopped| *stopped) => return Ok(()),
                };
                say(&mut stream, &answer).await?;
            }
        }
        // A disk that takes no state holds an order's answer up for as long as it likes.
        Ok(ask @ Ask::Order { .. }) => {
            let answer = tokio::select! {
                answer = answer(desk, ask) => answer,
                () = hung_up(&mut stream) => return Ok(()),
            };
            say(&mut stream, &answer).await
        }
        // What changes files is not left half-way.
        Ok(ask) => {
            let answer = answer(desk, ask).await;
            say(&mut stream, &answer).await
        }
        Err(why) => say(&mut stream, &not_understood(why)).await,
    }
}

/// The request, if this manager speaks its version.
fn understood(request: serde_json::Value) -> Result<Ask, String> {
    if let Some(version) = request.get("protocol").and_then(serde_json::Value::as_u64)
        && version != u64::from(PROTOCOL)
    {
        return Err(format!(
            "the request is of version {version} of the protocol, this manager speaks version {PROTOCOL}"
        ));
    }
    serde_json::from_value::<Request>(request)
        .map(|request| request.ask)
        .map_err(|error| format!("the request makes no sense: {error}"))
}

fn not_understood(why: String) -> Answer {
    Answer::NotUnderstood {
        why,
        protocol: PROTOCOL,
    }
}

async fn say(stream: &mut UnixStream, answer: &Answer) -> Result<(), LineError> {
    timeout(ANSWER_PATIENCE, line::write(stream, answer))
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

/// Ends when the client has gone, or says what has no meaning here.
async fn hung_up(stream: &mut UnixStream) {
    let mut byte = [0; 1];
    let _ = stream.read(&mut byte).await;
}

async fn watch_status<D: Desk>(
    desk: &D,
    stream: &mut UnixStream,
    every_ms: u64,
    mut stop: watch::Receiver<bool>,
) -> Result<(), LineError> {
    let mut tick = tokio::time::interval(Duration::from_millis(every_ms.clamp(50, 3_600_000)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = hung_up(stream) => return Ok(()),
            _ = stop.wait_for(|stopped| *stopped) => return Ok(()),
        }
        let report = status(desk).await;
        say(stream, &Answer::Cluster(Box::new(report))).await?;
    }
}

/// Answers what has one answer, for both nodes.
pub async fn answer<D: Desk>(desk: &D, ask: Ask) -> Answer {
    match ask {
        Ask::Status => Answer::Cluster(Box::new(status(desk).await)),
        Ask::Order { node, order } => order_on(desk, node, order).await,
        Ask::Alerts {
            filter,
            reach: Reach::Cluster,
        } => {
            let (mine, theirs) = tokio::join!(
                desk.alerts(filter.since_ms),
                desk.forward(Ask::Alerts {
                    filter: filter.clone(),
                    reach: Reach::Node,
                })
            );
            let mut alerts = mine.alerts;
            let theirs = match theirs {
                Ok(Answer::Alerts {
                    alerts: theirs,
                    missing,
                }) => {
                    alerts.extend(theirs);
                    missing
                }
                Ok(other) => Some(unexpected(desk, &other)),
                Err(unreached) => Some(unreached.why),
            };
            let mine = (mine.missing).map(|why| unread(desk, &why));
            let missing: Vec<String> = mine.into_iter().chain(theirs).collect();
            Answer::Alerts {
                alerts: filter.of(alerts),
                missing: (!missing.is_empty()).then(|| missing.join("; ")),
            }
        }
        Ask::Note {
            text,
            id,
            severity,
            reach,
        } => {
            desk.note(text.clone(), id, severity).await;
            if reach == Reach::Node {
                return Answer::Done;
            }
            let ask = Ask::Note {
                text,
                id,
                severity,
                reach: Reach::Node,
            };
            match done_there(desk, ask).await {
                Ok(()) => Answer::Done,
                Err(unreached) => done_here(desk, unreached.why),
            }
        }
        Ask::Push {
            text,
            force,
            dry_run,
        } => match push(desk, text, force, dry_run).await {
            Ok(pushed) => Answer::Pushed(pushed),
            Err(refused) => Answer::Refused(refused),
        },
        Ask::Logs { node: Some(node) } => match order::node(&desk.cluster(), &node) {
            Err(refused) => Answer::Refused(refused),
            Ok(at) if at == desk.me() => answer_peer(desk, Ask::Logs { node: None }).await,
            Ok(_) => match desk.forward(Ask::Logs { node: None }).await {
                Ok(answer @ Answer::Logs { .. }) => answer,
                Ok(other) => refused_by_other(unexpected(desk, &other)),
                Err(unreached) => refused_by_other(unreached.why),
            },
        },
        ask => answer_peer(desk, ask).await,
    }
}

/// Answers what has one answer, for this node alone: what the manager of the other node may ask.
pub async fn answer_peer<D: Desk>(desk: &D, ask: Ask) -> Answer {
    match ask {
        Ask::View => Answer::Node(Box::new(desk.view().await)),
        Ask::Order { node: None, order } => give(desk, &order).await,
        Ask::Alerts { filter, .. } => {
            let kept = desk.alerts(filter.since_ms).await;
            Answer::Alerts {
                alerts: filter.of(kept.alerts),
                missing: kept.missing.map(|why| unread(desk, &why)),
            }
        }
        Ask::Note {
            text, id, severity, ..
        } => {
            desk.note(text, id, severity).await;
            Answer::Done
        }
        Ask::Configuration => Answer::Configuration {
            text: desk.configuration(),
            revision: desk.cluster().revision,
        },
        Ask::Adopt {
            text,
            replaces,
            force,
            dry_run,
        } => match adopt(desk, text, replaces, force, dry_run).await {
            Ok(()) => Answer::Done,
            Err(refused) => Answer::Refused(refused),
        },
        Ask::Logs { node: None } => Answer::Logs {
            files: desk.logs().await,
        },
        ask => not_understood(format!(
            "this is not for the manager of another node to ask: {ask:?}"
        )),
    }
}

fn unread<D: Desk>(desk: &D, why: &str) -> String {
    let node = &desk.cluster().nodes[desk.me()];
    format!("node {node} can't read all of its own: {why}")
}

fn other<D: Desk>(desk: &D) -> String {
    desk.cluster().nodes[1 - desk.me()].clone()
}

fn unexpected<D: Desk>(desk: &D, answer: &Answer) -> String {
    match answer {
        Answer::Refused(refused) => refused.words(),
        Answer::NotUnderstood { why, .. } => {
            format!("node {} does not understand: {why}", other(desk))
        }
        answer => format!("node {} answers another question: {answer:?}", other(desk)),
    }
}

fn refused_by_other(why: String) -> Answer {
    let mut refused = Refused::of_words(&why);
    if refused.next.is_empty() {
        "see `kagami cluster status`, or ask on that node itself".clone_into(&mut refused.next);
    }
    Answer::Refused(refused)
}

/// What is known of an order that the other node has not answered.
fn not_answered<D: Desk>(desk: &D, unreached: Unreached) -> Answer {
    if !unreached.asked {
        return refused_by_other(unreached.why);
    }
    let other = other(desk);
    let what = format!("whether node {other} carries it out is not known");
    let mut refused = Refused::new(
        what,
        format!("`kagami cluster status` shows what is under way, also when it is asked on node {other}; give it again where nothing is"),
    )
    .fact(format!("it was sent there: {}", unreached.why))
    .fact("an order counts once the manager that gets it has written it to its disk");
    refused.unknown = true;
    Answer::Refused(refused)
}

/// What the other node says of itself; or why it says nothing.
async fn their_view<D: Desk>(desk: &D) -> Result<NodeView, String> {
    match timeout(VIEW_PATIENCE, desk.forward(Ask::View)).await {
        Ok(Ok(Answer::Node(view))) => Ok(*view),
        Ok(Ok(answer)) => Err(unexpected(desk, &answer)),
        Ok(Err(unreached)) => Err(unreached.why),
        Err(_) => Err(format!(
            "node {} does not answer within {} ms",
            other(desk),
            VIEW_PATIENCE.as_millis()
        )),
    }
}

async fn status<D: Desk>(desk: &D) -> ClusterReport {
    let (mine, theirs) = tokio::join!(desk.view(), their_view(desk));
    let (cluster, time) = (desk.cluster(), desk.time_ms());
    merge(&cluster, desk.me(), &mine, theirs.ok().as_ref(), time)
}

/// Hands over what the other node is to do, too.
///
/// Errors: it has not got it, does not do it, or does not say.
async fn done_there<D: Desk>(desk: &D, ask: Ask) -> Result<(), Unreached> {
    match desk.forward(ask).await? {
        Answer::Done => Ok(()),
        answer => Err(Unreached {
            why: unexpected(desk, &answer),
            asked: false,
        }),
    }
}

fn done_here<D: Desk>(desk: &D, why: String) -> Answer {
    let without = other(desk);
    Answer::DoneHere { without, why }
}

/// The end of both managers. The one that is asked tells the other by its heartbeats, and by the channel at once, since
/// heartbeats may be what is cut: whoever is not told takes over what stops here.
async fn end_cluster<D: Desk>(desk: &D, order: Order) -> Answer {
    let ask = Ask::Order {
        node: None,
        order: order.clone(),
    };
    // A manager whose heartbeats are heard ends only once they have told the other one.
    let heard = matches!(
        desk.view().await.other,
        NodeState::Online | NodeState::Caution
    );
    let here = give(desk, &order).await;
    if here != Answer::Done {
        return here;
    }
    match timeout(END_PATIENCE, done_there(desk, ask)).await {
        Ok(Err(unreached)) if !heard => done_here(desk, unreached.why),
        Err(_) if !heard => {
            let patience = END_PATIENCE.as_secs();
            let why = format!("node {} does not answer within {patience} s", other(desk));
            done_here(desk, why)
        }
        _ => here,
    }
}

/// An order to a node: this one, or the other one's own manager.
async fn order_on<D: Desk>(desk: &D, node: Option<String>, order: Order) -> Answer {
    let at = match node.map(|node| order::node(&desk.cluster(), &node)) {
        None => desk.me(),
        Some(Ok(at)) => at,
        Some(Err(refused)) => return Answer::Refused(refused),
    };
    if at == desk.me() {
        return match order {
            Order::EndCluster { .. } => end_cluster(desk, order).await,
            order => give(desk, &order).await,
        };
    }
    if let Order::EndCluster { .. } = order {
        let ask = Ask::Order {
            node: None,
            order: order.clone(),
        };
        // Its heartbeats may not come here, either.
        return match done_there(desk, ask).await {
            Ok(()) => give(desk, &order).await,
            Err(unreached) => not_answered(desk, unreached),
        };
    }
    match desk.forward(Ask::Order { node: None, order }).await {
        Ok(answer @ (Answer::Done | Answer::Refused(_))) => answer,
        Ok(answer) => refused_by_other(unexpected(desk, &answer)),
        Err(unreached) => not_answered(desk, unreached),
    }
}

async fn give<D: Desk>(desk: &D, order: &Order) -> Answer {
    let cluster = desk.cluster();
    let view = desk.view().await;
    let report = merge(&cluster, desk.me(), &view, None, desk.time_ms());
    let active = |group: usize| {
        let current = report.groups.get(group)?.current.as_ref()?;
        cluster.nodes.iter().position(|node| node == current)
    };
    match order::command(&cluster, order, active) {
        Err(refused) => Answer::Refused(refused),
        Ok(command) => {
            info!("an operator's order: {order:?}");
            match desk.command(command).await {
                Ok(()) => Answer::Done,
                Err(refused) => Answer::Refused(refused),
            }
        }
    }
}

fn parse(text: &str) -> Result<Cluster, Refused> {
    Cluster::parse(Path::new("cluster.toml"), text).map_err(|error| {
        let mut refused = Refused::new(
            "the configuration is wrong, nothing was changed",
            "put it right (`kagami cluster check FILE`) and push it again",
        );
        refused.facts = error.to_string().lines().map(str::to_owned).collect();
        refused
    })
}

fn would_drop(not: String, changes: Vec<String>) -> Refused {
    let mut refused = Refused::new(
        format!("{not}: it would drop what runs"),
        "stop those groups first, or add --force",
    );
    refused.facts = changes;
    refused
}

/// A configuration from the other node's manager.
async fn adopt<D: Desk>(
    desk: &D,
    text: String,
    replaces: u64,
    force: bool,
    dry_run: bool,
) -> Result<(), Refused> {
    let new = parse(&text)?;
    let old = desk.cluster();
    if old.revision != replaces {
        return Err(Refused::new(
            format!(
                "node {}: revision {} is in force, and not {replaces}: somebody else has changed it meanwhile",
                old.nodes[desk.me()],
                old.revision
            ),
            "look at what is in force there, and push again",
        ));
    }
    push::may_follow(&old, &new)?;
    // The other node knows what runs here by its own configuration, which may be older than this one's.
    let view = desk.view().await;
    let node = &old.nodes[desk.me()];
    let mut report = merge(&old, desk.me(), &view, None, desk.time_ms());
    report
        .groups
        .retain(|group| group.on.get(node) != Some(&RunState::Offline));
    let changes = push::dropped(&old, &new, &report);
    if !changes.is_empty() && !force {
        return Err(would_drop(
            format!("node {node}: revision {} is not taken over", new.revision),
            changes,
        ));
    }
    if dry_run || new.revision == old.revision {
        return Ok(());
    }
    desk.adopt(text, new).await
}

/// A configuration from a person: for both nodes, the other one first. So where this node can't
/// take it over, the command says so, and the person who gave it can try again.
async fn push<D: Desk>(
    desk: &D,
    text: String,
    force: bool,
    dry_run: bool,
) -> Result<Pushed, Refused> {
    let new = parse(&text)?;
    let old = desk.cluster();
    push::may_follow(&old, &new)?;
    let (mine, theirs) = tokio::join!(desk.view(), their_view(desk));
    let other = other(desk);
    let not = |what: String| {
        format!(
            "cluster {}: revision {} is not pushed: {what}",
            old.name, new.revision
        )
    };
    if let Ok(theirs) = &theirs
        && theirs.revision > new.revision
    {
        return Err(Refused::new(
            not(format!(
                "node {other} has revision {}, which is newer",
                theirs.revision
            )),
            format!("begin with cluster.toml of node {other}, and raise its revision"),
        ));
    }
    let report = merge(&old, desk.me(), &mine, theirs.as_ref().ok(), desk.time_ms());
    let changes = push::dropped(&old, &new, &report);
    if !changes.is_empty() && !force {
        let not = format!(
            "cluster {}: revision {} is not pushed",
            old.name, new.revision
        );
        return Err(would_drop(not, changes));
    }
    let missing = theirs.as_ref().err().cloned();
    if let Some(why) = missing.as_ref().filter(|_| !force) {
        return Err(Refused::new(
            not(format!("node {other} can't be given it: {why}")),
            format!(
                "bring node {other} back first, or add --force: it would go on by the old one, and take over nothing until it has the new one"
            ),
        ));
    }
    let mut pushed = Pushed {
        from: old.revision,
        revision: new.revision,
        nodes: Vec::new(),
        changes,
        missing,
    };
    if let Ok(theirs) = theirs {
        let ask = Ask::Adopt {
            text: text.clone(),
            replaces: theirs.revision,
            force,
            dry_run,
        };
        match desk.forward(ask).await {
            Ok(Answer::Done) => pushed.nodes.push(other.clone()),
            Ok(Answer::Refused(refused)) => return Err(refused),
            Ok(answer) => {
                return Err(Refused::new(
                    not(unexpected(desk, &answer)),
                    "use the same build on both nodes",
                ));
            }
            Err(unreached) => {
                return Err(Refused::new(
                    not(unreached.why),
                    format!(
                        "see whether node {other} has it now (`kagami cluster status`), and push again"
                    ),
                ));
            }
        }
    }
    if !dry_run && new.revision > old.revision {
        desk.adopt(text, new).await.map_err(|refused| {
            let has = pushed.nodes.join(", ");
            if has.is_empty() {
                refused
            } else {
                refused.fact(format!(
                    "node {has} has it already: push again when this is mended"
                ))
            }
        })?;
    }
    pushed.nodes.push(old.nodes[desk.me()].clone());
    Ok(pushed)
}
