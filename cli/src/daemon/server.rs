//! The daemon's side of the control channel: one request a connection, its answers, nothing else.
//!
//! A client can be anything: what it sends is bounded in length and time, what it does not read is
//! given up, and there are at most [`CONNECTIONS_MAX`] of them that were not answered yet. Who is to be told
//! something again and again has a place of another kind, so that nobody who has a question waits for those who
//! listen. An order goes on when its client has gone (docs/exit-statuses.md, 5); the client's place is free then.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use kagami_replicator::core::event::{Command, From, Refusal, Reply};
use kagami_replicator::core::state::NodeId;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, timeout};
use tracing::{debug, info};

use super::engine::{Attached, Engine};
use super::notice::present;
use super::reload::reload;
use super::rights::{is_news, report};
use super::socket::ControlSocket;
use super::{Shared, keys};
use crate::config::missing;
use crate::control::driver::Wanted;
use crate::control::frame::{self, FrameError, REQUEST_MAX};
use crate::control::message::{Answer, Ask, Order, PROTOCOL, RefusalReport, Request, Source};
use crate::control::report::RightReport;
use crate::unit::Starter;

/// Clients at a time that have asked nothing yet, or wait for an answer; more wait.
const CONNECTIONS_MAX: usize = 64;
/// Clients that listen, to events or to the state, at a time; more are refused.
const LISTENERS_MAX: usize = 64;
/// Managers and guards that are told what being Primary rests on, at a time: two for each group. More are refused.
const RIGHTS_MAX: usize = 256;
/// Orders that go on without their clients. Beyond these the place of a client is kept until its order is done.
const LEFT_MAX: usize = 256;
/// A request must be there within.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);
/// A client that does not take an answer within is given up.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// Serves clients until the daemon has stopped.
pub async fn serve<E: Engine>(shared: Arc<Shared<E>>, socket: ControlSocket) {
    let places = Arc::new(Places::default());
    let mut clients = JoinSet::new();
    let mut stopped = shared.stopped.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&socket, &places) => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        let Some((stream, place)) = accepted else {
            continue;
        };
        let (shared, places) = (Arc::clone(&shared), Arc::clone(&places));
        clients.spawn(async move {
            if let Err(error) = client(&shared, stream, &places, place).await {
                debug!("a client of the control channel: {error}");
            }
        });
        while clients.try_join_next().is_some() {}
    }
    // Those who asked to stop are being told; streams of events end by themselves.
    while clients.join_next().await.is_some() {}
}

/// What clients take up.
struct Places {
    connections: Arc<Semaphore>,
    listeners: Arc<Semaphore>,
    rights: Arc<Semaphore>,
    left: Semaphore,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            listeners: Arc::new(Semaphore::new(LISTENERS_MAX)),
            rights: Arc::new(Semaphore::new(RIGHTS_MAX)),
            left: Semaphore::new(LEFT_MAX),
        }
    }
}

/// A place of this kind; else the answer to who wanted one.
fn take_place(
    kind: &Arc<Semaphore>,
    max: usize,
    listen: &str,
) -> Result<OwnedSemaphorePermit, Answer> {
    Arc::clone(kind).try_acquire_owned().map_err(|_| {
        Answer::Refused(RefusalReport {
            what: format!("refused: {max} clients listen to {listen} already"),
            facts: Vec::new(),
            next: "end some of them (`ss -xp` shows who has the control socket open)".to_owned(),
        })
    })
}

/// The answer that `work` comes to, however long that takes. When the client has gone meanwhile its `place` is
/// free, and the work goes on. (Who has only closed its sending side is answered all the same.)
async fn answer(
    stream: &mut UnixStream,
    places: &Places,
    place: OwnedSemaphorePermit,
    work: impl Future<Output = Answer>,
) -> Result<(), FrameError> {
    let mut work = pin!(work);
    let answer = tokio::select! {
        biased;
        answer = &mut work => answer,
        () = hung_up(stream) => {
            let left = places.left.try_acquire();
            if left.is_ok() {
                drop(place);
            }
            work.await
        }
    };
    say(stream, &answer).await
}

async fn accept(
    socket: &ControlSocket,
    places: &Places,
) -> Option<(UnixStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(&places.connections).acquire_owned().await.ok()?;
    match socket.listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            // Out of descriptors, most likely: others must end first.
            debug!("the control channel took no client: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn client<E: Engine>(
    shared: &Shared<E>,
    mut stream: UnixStream,
    places: &Places,
    place: OwnedSemaphorePermit,
) -> Result<(), FrameError> {
    let request = match timeout(
        REQUEST_PATIENCE,
        frame::read::<serde_json::Value>(&mut stream, REQUEST_MAX),
    )
    .await
    {
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None)) => return Ok(()),
        Ok(Err(error @ FrameError::Io(_))) => return Err(error),
        Ok(Err(error)) => return not_understood(&mut stream, error.to_string()).await,
        Err(_) => {
            return not_understood(&mut stream, "no request came within 10 s".to_owned()).await;
        }
    };
    let ask = match understood(request) {
        Ok(ask) => ask,
        Err(why) => return not_understood(&mut stream, why).await,
    };
    let listens = match &ask {
        Ask::Watch { .. } | Ask::Events => {
            let what = "events or the state";
            Some(take_place(&places.listeners, LISTENERS_MAX, what))
        }
        Ask::Rights { .. } => {
            let what = "what being Primary rests on";
            Some(take_place(&places.rights, RIGHTS_MAX, what))
        }
        _ => None,
    };
    let place = match listens {
        None => place,
        Some(Ok(listens)) => {
            drop(place);
            listens
        }
        Some(Err(refused)) => return say(&mut stream, &refused).await,
    };
    match ask {
        Ask::Watch { every_ms } => watch(shared, &mut stream, every_ms).await,
        Ask::Events => events(shared, &mut stream).await,
        Ask::Rights {
            mirrors,
            every_ms,
            take_in_hand,
        } => {
            let _taken = take_in_hand.then(|| shared.in_hand.take(&mirrors));
            rights(shared, &mut stream, &mirrors, every_ms).await
        }
        ask => answer(&mut stream, places, place, carry_out(shared, ask)).await,
    }
}

/// Does what has one answer.
async fn carry_out<E: Engine>(shared: &Shared<E>, ask: Ask) -> Answer {
    match ask {
        Ask::Status => Answer::Status(Box::new(shared.report().await)),
        Ask::Mirror { mirror, order } => {
            let held = shared.in_hand.refusal(&mirror, &order);
            order_mirror(shared, &mirror, order, held).await
        }
        Ask::Managed { mirror, order } => order_mirror(shared, &mirror, order, None).await,
        Ask::Reload => reload_all(shared).await,
        Ask::Rotate => keys::rotate(shared).await,
        Ask::Stop => {
            let mut stopped = shared.stopped.subscribe();
            shared.stop.send_replace(true);
            // It ends when the engine has stopped, or the daemon is gone altogether.
            let _ = stopped.wait_for(|stopped| *stopped).await;
            stop_answer(shared.unclean.get().cloned().unwrap_or_default())
        }
        Ask::Watch { .. } | Ask::Events | Ask::Rights { .. } => {
            unreachable!("{ask:?} has more than one answer")
        }
    }
}

/// What who asked for the stop is told: what was left as a crash leaves it is no clean stop.
fn stop_answer(unclean: Vec<String>) -> Answer {
    if unclean.is_empty() {
        return Answer::Done;
    }
    Answer::Refused(RefusalReport {
        what: "the daemon has stopped, and not every mirror cleanly".to_owned(),
        facts: unclean,
        next: format!(
            "`{}` before its disk is replaced, resized or taken away: the next start puts it right",
            Starter::of_this_process().up()
        ),
    })
}

/// The request, if this daemon speaks its version.
fn understood(request: serde_json::Value) -> Result<Ask, String> {
    // Another version is told so, whatever else it says that this one does not know.
    if let Some(version) = request.get("protocol").and_then(serde_json::Value::as_u64)
        && version != u64::from(PROTOCOL)
    {
        return Err(format!(
            "the command speaks version {version} of the control protocol, the daemon version {PROTOCOL}: use the same build for both"
        ));
    }
    serde_json::from_value::<Request>(request)
        .map(|request| request.ask)
        .map_err(|error| format!("the request makes no sense: {error}"))
}

async fn say(stream: &mut UnixStream, answer: &Answer) -> Result<(), FrameError> {
    timeout(ANSWER_PATIENCE, frame::write(stream, answer))
        .await
        .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
}

async fn not_understood(stream: &mut UnixStream, why: String) -> Result<(), FrameError> {
    let answer = Answer::NotUnderstood {
        why,
        protocol: PROTOCOL,
    };
    say(stream, &answer).await
}

/// Whether the client is still there: it sends nothing after its request.
async fn hung_up(stream: &UnixStream) {
    let mut byte = [0; 1];
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut byte) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            // The end, an error, or bytes that have no meaning here.
            _ => return,
        }
    }
}

async fn watch<E: Engine>(
    shared: &Shared<E>,
    stream: &mut UnixStream,
    every_ms: u64,
) -> Result<(), FrameError> {
    let mut tick = tokio::time::interval(Duration::from_millis(every_ms.clamp(50, 3_600_000)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut stopped = shared.stopped.subscribe();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = hung_up(stream) => return Ok(()),
            _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
        }
        say(stream, &Answer::Status(Box::new(shared.report().await))).await?;
    }
}

async fn events<E: Engine>(shared: &Shared<E>, stream: &mut UnixStream) -> Result<(), FrameError> {
    // First listen, then look: nothing falls between.
    let mut events = shared.events.subscribe();
    let report = shared.report().await;
    for mirror in &report.mirrors {
        say(stream, &Answer::Event(present(mirror, report.time_ms))).await?;
    }
    let mut stopped = shared.stopped.subscribe();
    loop {
        let answer = tokio::select! {
            biased;
            event = events.recv() => match event {
                Ok(event) => Answer::Event(event),
                Err(broadcast::error::RecvError::Lagged(events)) => Answer::Missed { events },
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            },
            () = hung_up(stream) => return Ok(()),
            _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
        };
        say(stream, &answer).await?;
    }
}

/// What being Primary rests on: at once, when it changes, and again and again.
async fn rights<E: Engine>(
    shared: &Shared<E>,
    stream: &mut UnixStream,
    mirrors: &[String],
    every_ms: u64,
) -> Result<(), FrameError> {
    // First listen, then look: nothing falls between.
    let mut notices = shared.engine.events();
    let mut tick = tokio::time::interval(Duration::from_millis(every_ms.clamp(20, 3_600_000)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stopped = shared.stopped.subscribe();
    let mut said: Vec<RightReport> = Vec::new();
    loop {
        let again = tokio::select! {
            biased;
            notice = notices.recv() => match notice {
                Ok(notice) if !mirrors.contains(&notice.mirror) => continue,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => false,
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            },
            _ = tick.tick() => true,
            () = hung_up(stream) => return Ok(()),
            _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
        };
        let now = report(&shared.engine.status().await, mirrors);
        for right in &now {
            let before = said.iter().find(|before| before.mirror == right.mirror);
            if again || before.is_none_or(|before| is_news(before, right)) {
                say(stream, &Answer::Right(right.clone())).await?;
            }
        }
        said = now;
    }
}

/// `held`: why this order is refused, by [`super::rights::InHand::refusal`].
async fn order_mirror<E: Engine>(
    shared: &Shared<E>,
    mirror: &str,
    order: Order,
    held: Option<Refusal>,
) -> Answer {
    let unknown = {
        let config = shared.config.lock().await;
        let known: Vec<&str> = config.mirrors.iter().map(|m| m.name.as_str()).collect();
        (!known.contains(&mirror))
            .then(|| missing::mirror(mirror, &known, &config.file, Starter::of_this_process()))
    };
    if let Some((what, next)) = unknown {
        return Answer::Refused(RefusalReport {
            what,
            facts: Vec::new(),
            next,
        });
    }
    info!(mirror, "an operator's order: {order}");
    match obey(shared, mirror, &order, held).await {
        Ok(answer) => answer,
        Err(Refusal { what, facts, next }) => Answer::Refused(RefusalReport { what, facts, next }),
    }
}

async fn obey<E: Engine>(
    shared: &Shared<E>,
    mirror: &str,
    order: &Order,
    held: Option<Refusal>,
) -> Result<Answer, Refusal> {
    let engine = &shared.engine;
    let mut unless_primary = None;
    match (held, order) {
        (Some(held), Order::Attach { .. }) => unless_primary = Some(held),
        (Some(held), _) => return Err(held),
        (None, _) => {}
    }
    let reply = match *order {
        Order::Attach { device, driver } => {
            let wanted = Wanted {
                driver,
                index: device,
            };
            let Attached {
                device,
                link,
                already,
            } = engine.attach(mirror, wanted, unless_primary).await?;
            return Ok(Answer::Attached {
                device,
                link,
                already,
            });
        }
        Order::Detach { force } => engine.detach(mirror, force).await?,
        Order::Promote {
            force,
            while_resyncing,
        } => {
            let command = Command::Promote {
                force,
                while_resyncing,
            };
            engine.command(mirror, command).await?
        }
        Order::PromoteFenced => engine.command(mirror, Command::PromoteFenced).await?,
        Order::Demote { force } => engine.command(mirror, Command::Demote { force }).await?,
        Order::Resync { from, full } => {
            let from = from.map(|from| match from {
                Source::Local => From::Local,
                Source::Peer => From::Peer,
            });
            engine
                .command(mirror, Command::Resync { from, full })
                .await?
        }
        Order::PauseSync => engine.command(mirror, Command::PauseSync).await?,
        Order::ResumeSync => engine.command(mirror, Command::ResumeSync).await?,
        Order::Verify { repair } => engine.command(mirror, Command::Verify { repair }).await?,
        Order::StopVerify => engine.command(mirror, Command::StopVerify).await?,
        Order::Invalidate => engine.command(mirror, Command::Invalidate).await?,
        Order::Disconnect => engine.command(mirror, Command::Disconnect).await?,
        Order::Connect => engine.command(mirror, Command::Connect).await?,
        Order::SetPeer { peer } => {
            let peer = peer.map_or(NodeId::NOBODY, NodeId);
            engine.command(mirror, Command::SetPeer { peer }).await?
        }
    };
    Ok(match reply {
        Reply::Done => Answer::Done,
        Reply::Started => Answer::Started,
        Reply::Nothing(why) => Answer::Nothing { why },
    })
}

async fn reload_all<E: Engine>(shared: &Shared<E>) -> Answer {
    shared.service.reloading().await;
    let read = reload(&shared.config, &shared.engine, |level| {
        (shared.set_log_level)(level);
    })
    .await;
    // Whether it was taken over or not: what is in force serves.
    shared.service.ready().await;
    match read {
        Ok(done) => {
            info!(applied = ?done.applied, restart = ?done.restart, "configuration read again");
            Answer::Reloaded {
                applied: done.applied,
                restart: done.restart,
            }
        }
        Err(error) => Answer::Refused(RefusalReport {
            what: "the configuration is wrong, nothing was changed".to_owned(),
            facts: error.to_string().lines().map(str::to_owned).collect(),
            next: "put it right (`kagami config check`) and reload again".to_owned(),
        }),
    }
}
