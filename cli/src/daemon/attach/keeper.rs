//! One attached mirror, from `attach` to `detach`: the kernel's device is served whenever the mirror may
//! be Primary here.
//!
//! A connection of nbd that ends is followed by another on the same device. Before the kernel gets a new
//! socket the old session is over, with everything that it had given to the disks: what the kernel
//! sends again can't be overtaken by its older self (*Once*). A session of ublk does not end while this
//! daemon lives: it parks what the mirror refuses, and goes on with it when the mirror is Primary again.
//!
//! A device whose mirror has [moved](super::moved) is **never** served again.
//!
//! Here is the loop: serve, else wait for what keeps it from that. [`super::bring_up`] is how a device
//! comes to be served, [`super::take_down`] how that ends.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kagami_nbd_server::kernel::client::is_hung_up;
use kagami_replicator::core::event::Refusal;
use kagami_replicator::core::state::Role;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use super::bring_up::{Session, Wait};
use super::device::{Kernel, Owner};
use super::host::{Go, Host, Link};
use super::lock;
use super::moved::{Moved, Moves, by_status, is_current};
use super::record::{Record, Records};
use crate::control::driver::Driver;

/// How often what is waited for is looked at first when nothing is heard of it, ...
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// ... and in the end.
const LOOK_AT_LEAST: Duration = Duration::from_secs(5);
/// Events that belong together come within.
const BURST: Duration = Duration::from_millis(20);

/// What is known of the device, for the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// It is served.
    Attached,
    /// It is not served now, and why. The kernel keeps its requests, if it is set up.
    Waiting(String),
    /// It will not be served again, and why.
    Stale(String),
}

/// An order to a keeper.
#[derive(Debug)]
pub enum Order {
    /// Take the device down.
    Detach {
        /// Whoever uses it, whatever waits.
        force: bool,
        /// How it went; a keeper that did it ends.
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// The daemon stops: leave the device to the next one.
    Stop {
        /// Told when the kernel gives nothing more to this daemon.
        reply: oneshot::Sender<()>,
    },
    /// The kernel holds the connection for dead.
    LinkDead,
}

/// What an attached mirror is.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The mirror's name.
    pub mirror: String,
    /// What the device is known by in the kernel.
    pub identifier: String,
    /// On disk.
    pub record: Record,
}

/// Keeps a mirror attached.
#[derive(Debug)]
pub struct Keeper<H> {
    pub(super) host: H,
    pub(super) kernel: Kernel,
    pub(super) records: Records,
    pub(super) kept: Kept,
    shown: Arc<Mutex<Shown>>,
    pub(super) orders: mpsc::UnboundedReceiver<Order>,
    pub(super) moves: Moves,
    /// Our end of the socket: tells whether the kernel's is closed.
    pub(super) socket: Option<UnixStream>,
    /// Of ublk, a session that serves nothing now and has the queues: nobody else can have them before this
    /// process ends.
    pub(super) idle: Option<Link>,
    /// When it was last begun to be served. `None`: it was not, or the kernel holds that connection for dead.
    served_at: Option<Instant>,
    /// The term as Primary in which it was served last, or is.
    served_in: Option<u64>,
    /// It was served by this daemon.
    pub(super) was_served: bool,
    pub(super) began: Instant,
    /// Until the next attempt.
    pause: Duration,
}

/// A refusal in one line.
fn words(refusal: &Refusal) -> String {
    let mut words = refusal.what.clone();
    if !refusal.facts.is_empty() {
        words.push_str(&format!(" ({})", refusal.facts.join("; ")));
    }
    words
}

/// Waits until a session parks what it is given. An nbd session never does.
async fn is_parked(parked: &mut watch::Receiver<bool>) {
    loop {
        if parked.changed().await.is_err() {
            // Of its end is told otherwise.
            return std::future::pending().await;
        }
        if *parked.borrow_and_update() {
            return;
        }
    }
}

impl<H: Host> Keeper<H> {
    /// A keeper that has heard of the mirror what `moves` holds.
    pub fn new(
        (host, kernel, records): (H, Kernel, Records),
        kept: Kept,
        moves: Moves,
        orders: mpsc::UnboundedReceiver<Order>,
        shown: Arc<Mutex<Shown>>,
    ) -> Self {
        Self {
            host,
            kernel,
            records,
            kept,
            shown,
            orders,
            moves,
            socket: None,
            idle: None,
            served_at: None,
            served_in: None,
            was_served: false,
            began: Instant::now(),
            pause: LOOK_EVERY,
        }
    }

    /// Keeps the mirror attached until it is detached or the daemon stops. `session`: it was
    /// connected just now. With a `last_call` it leaves whatever it is about.
    pub async fn run(mut self, session: Option<Session>, last_call: oneshot::Receiver<()>) {
        tokio::select! {
            () = self.keep(session) => return,
            Ok(()) = last_call => {}
        }
        self.leave_in_the_middle().await;
    }

    async fn keep(&mut self, session: Option<Session>) {
        let mut link = session.map(|session| self.serves(session));
        loop {
            let go_on = match link.take() {
                Some(session) => self.serve(session).await,
                None => self.wait(&mut link).await,
            };
            if !go_on {
                return;
            }
        }
    }

    async fn is_nobodys(&self) -> bool {
        matches!(self.owner().await, Ok(Owner::Nobody))
    }

    /// Whether a device that was said to be gone is. Queues that are closed fail what waits in them, for good: as
    /// long as there is a session that has them, the driver has to say so twice.
    async fn is_surely_gone(&mut self) -> bool {
        let has_queues = self.idle.as_mut().is_some_and(|link| !link.has_ended());
        !has_queues || self.is_nobodys().await
    }

    fn show(&self, shown: Shown) {
        *lock(&self.shown) = shown;
    }

    pub(super) fn device(&self) -> String {
        let id = self.kept.record.id();
        self.kernel.path(id).display().to_string()
    }

    fn serves(&mut self, session: Session) -> Link {
        self.socket = session.socket;
        self.was_served = true;
        self.served_at = Some(Instant::now());
        self.served_in = Some(session.link.term());
        self.pause = LOOK_EVERY;
        self.show(Shown::Attached);
        session.link
    }

    /// Until the session ends or an order is carried out. False: the keeper is done.
    async fn serve(&mut self, mut session: Link) -> bool {
        let mirror = self.kept.mirror.clone();
        let mut parked = session.parked.clone();
        loop {
            let order = tokio::select! {
                () = session.ended() => {
                    // Now the kernel sees the end, too.
                    self.socket = None;
                    let next = match self.kept.record.driver {
                        Driver::Nbd => "the kernel's connection ended; it gets another",
                        Driver::Ublk => "its session with the kernel ended",
                    };
                    warn!(mirror, device = self.device(), "{next}");
                    return true;
                }
                () = is_parked(&mut parked) => {
                    self.idle = Some(session);
                    return true;
                }
                order = self.orders.recv() => order,
                // The session answers nothing in another term: what is waited for is not its first request, but to
                // say so.
                () = self.moves.next() => match self.moved().await {
                    None => continue,
                    Some(moved) => {
                        self.is_stale(moved.words()).await;
                        self.put_away(session).await;
                        return true;
                    }
                },
            };
            match order {
                Some(Order::LinkDead) => {
                    let is_dead = self.socket.as_ref().map(is_hung_up);
                    if matches!(is_dead, Some(Ok(true))) {
                        // What is unread in the socket is sent again: it is not carried out twice.
                        self.served_at = None;
                        session.set(Go::Cut);
                    }
                }
                Some(Order::Detach { force, reply }) => {
                    let detached = self.detach(force, Some(&mut session)).await;
                    let is_done = detached.is_ok();
                    let _ = reply.send(detached);
                    if is_done {
                        return false;
                    }
                    if self.kept.record.stale.is_some() {
                        // Half of it was done: it refuses all requests from now on.
                        self.idle = Some(session);
                        return true;
                    }
                }
                Some(Order::Stop { reply }) => {
                    self.leave(&mut session).await;
                    let _ = reply.send(());
                    return false;
                }
                None => return false,
            }
        }
    }

    /// Nothing is answered by this session any more.
    async fn put_away(&mut self, mut session: Link) {
        match self.kept.record.driver {
            Driver::Nbd => {
                session.set(Go::Cut);
                session.ended().await;
                self.socket = None;
            }
            // It parks what comes.
            Driver::Ublk => self.idle = Some(session),
        }
    }

    /// Tries to serve, then waits for what keeps it from that. False: the keeper is done.
    async fn wait(&mut self, link: &mut Option<Link>) -> bool {
        let mirror = self.kept.mirror.clone();
        if let Some(why) = self.kept.record.stale.clone() {
            if self.is_nobodys().await && self.is_surely_gone().await {
                return self.forget("nothing is left of the device").await;
            }
            self.show(Shown::Stale(why));
        } else if self.has_just_begun() {
            self.waits("the mirror takes no requests now".to_owned());
            if !self.look().await {
                return false;
            }
        } else {
            match self.attempt().await {
                Ok(session) => {
                    info!(mirror, device = self.device(), "attached again");
                    *link = Some(self.serves(session));
                    return true;
                }
                Err(Wait::Ordered(order)) => return self.ordered(order).await,
                Err(Wait::Gone) if self.was_served => {
                    if self.is_surely_gone().await {
                        return self.forget("another program took it down").await;
                    }
                }
                Err(Wait::Gone) => self.waits(format!(
                    "{} was taken down while it was in use; end that use, and it is attached anew",
                    self.device()
                )),
                Err(Wait::Moved(moved)) => self.is_stale(moved.words()).await,
                Err(Wait::Stale(why)) => self.is_stale(why).await,
                Err(Wait::Refused(refusal)) => {
                    if !self.look().await {
                        return false;
                    }
                    if self.kept.record.stale.is_none() {
                        self.waits(words(&refusal));
                    }
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(self.pause) => {
                self.pause = (self.pause * 2).min(LOOK_AT_LEAST);
                true
            }
            order = self.orders.recv() => self.ordered(order).await,
            () = self.moves.next() => {
                self.pause = LOOK_EVERY;
                // A burst of events is one reason to look.
                tokio::time::sleep(BURST).await;
                self.look().await
            }
        }
    }

    /// A session that parks, or ends by itself, as soon as it goes on rests before the next attempt: a mirror that is
    /// being demoted is Primary still, and refuses what the kernel sends again at once.
    fn has_just_begun(&self) -> bool {
        self.served_at.is_some_and(|at| at.elapsed() < LOOK_EVERY)
    }

    fn waits(&self, why: String) {
        let news = Shown::Waiting(why.clone());
        let mut shown = lock(&self.shown);
        if *shown != news {
            *shown = news;
            warn!(
                mirror = self.kept.mirror,
                device = self.device(),
                "not attached yet: {why}"
            );
        }
    }

    /// An order while nothing is served. False: the keeper is done.
    async fn ordered(&mut self, order: Option<Order>) -> bool {
        match order {
            Some(Order::LinkDead) => true,
            Some(Order::Detach { force, reply }) => {
                let detached = self.detach(force, None).await;
                let is_done = detached.is_ok();
                let _ = reply.send(detached);
                !is_done
            }
            Some(Order::Stop { reply }) => {
                let generation = self.generation().await;
                if self.look().await && self.kept.record.stale.is_none() {
                    match (self.moved().await, self.owner().await) {
                        // The next daemon has heard of nothing.
                        (Some(moved), Err(_)) => self.is_stale(moved.words()).await,
                        _ => self.note_stop(generation).await,
                    }
                }
                self.leave_idle().await;
                let _ = reply.send(());
                false
            }
            None => false,
        }
    }

    /// Whether the mirror has moved away from what the kernel holds, by what was heard up to now.
    pub(super) async fn moved(&mut self) -> Option<Moved> {
        let heard = self.moves.so_far();
        let missed = self.moves.take_missed();
        if heard.is_none() && !missed {
            return None;
        }
        if let Some(status) = self.host.status(&self.kept.mirror).await {
            let term = (status.role == Role::Primary).then_some(status.term);
            if term.is_some() && term == self.served_in {
                self.moves.disregard();
            } else if missed && (term.is_some() || !is_current(&self.kept.record, &status)) {
                // Primary in another term: what was between is not known.
                self.moves.found(Moved::Unseen);
            }
        }
        // What came since then is a reason, too.
        self.moves.so_far()
    }

    /// Looks whether the mirror has moved. False: the keeper is done.
    async fn look(&mut self) -> bool {
        if self.kept.record.stale.is_some() {
            return true;
        }
        let heard = self.moved().await;
        let status = self.host.status(&self.kept.mirror).await;
        let Some(moved) = heard.or_else(|| status.as_ref().and_then(by_status)) else {
            return true;
        };
        match self.owner().await {
            Ok(Owner::Ours) => {
                self.is_stale(moved.words()).await;
                return true;
            }
            // What the kernel holds can't be told: neither is it stale, nor is nothing there. No attempt serves it before
            // that is known, and then this is not forgotten, nor by the next daemon.
            Err(_) => {
                self.moves.found(moved);
                if self.kept.record.stopped_at.take().is_some() {
                    self.write().await;
                }
                return true;
            }
            Ok(Owner::Nobody | Owner::Another) => {}
        }
        match moved {
            // Somebody took it over there: it does not come back here by itself.
            Moved::OverThere => self.forget(&moved.words()).await,
            // The kernel holds nothing (the machine was started anew): this copy is caught up, and
            // then it is attached.
            Moved::Overwritten | Moved::Unseen => true,
        }
    }

    pub(super) async fn is_stale(&mut self, why: String) {
        let mirror = &self.kept.mirror;
        error!(mirror, device = self.device(), "not attached again: {why}");
        self.kept.record.stale = Some(why.clone());
        self.write().await;
        self.show(Shown::Stale(why));
    }
}
