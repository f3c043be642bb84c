//! The promotion of a group's mirrors: put under guard first, then promoted one after the other, and
//! seen to be Primary. Whoever takes over waits until the other node has lost its address.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::clock;
use crate::core::Time;
use crate::guard_process::client::{Armed, Guards};
use crate::guard_process::message::Watched;

use super::basis::Basis;
use super::{MARGIN, Mirrors, Word};

/// What the managers know, that a mirror was given up or the other node is lost, the daemon may hear a little later.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(1);
/// What a promotion has brought is seen within this, in milliseconds.
pub(super) const SEEN_WITHIN: u64 = 5000;
/// Why a promotion that was done is refused all the same.
pub(super) const NOT_SERVED: &str = "the mirror's daemon has promoted it, and does not serve it";

/// A promotion that is asked for again and again is told of once it was refused for so long, in milliseconds: a daemon
/// that was only started again is back by then.
const TELL_AFTER: u64 = 5000;
/// Reasons may have numbers in them that differ each time.
const REASONS: usize = 8;

/// How the right is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    /// The fence script has said that the other node is down.
    pub fenced: bool,
    /// An earlier manager has left the group active.
    pub begun: bool,
}

/// Why it is not to be had.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The mirror refuses, or no guard watches it.
    Mirror(String),
    /// The guard is stopping the group.
    Stopping,
}

/// The refusals of a promotion that is asked for again and again.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    tell_at: Option<Time>,
    told: BTreeSet<String>,
}

impl Refusals {
    /// One more. Whether people are to be told: of each reason once, of [`REASONS`] at most, and of one in [`TELL_AFTER`].
    pub(super) fn is_news(&mut self, now: Time, why: &str) -> bool {
        let at = *self.tell_at.get_or_insert(now.after(TELL_AFTER));
        if now < at || self.told.len() >= REASONS || !self.told.insert(why.to_owned()) {
            return false;
        }
        self.tell_at = Some(now.after(TELL_AFTER));
        true
    }
}

/// Promotes them all. `are_ours` hears when they are, where the other node may still have the group's address then.
///
/// Errors: the mirror's refusal, or the guard's.
pub(super) async fn promote_all<M: Mirrors>(
    mirrors: Arc<M>,
    guards: Guards,
    watched: Watched,
    names: Vec<String>,
    question: Question,
    are_ours: impl FnOnce() + Send,
) -> Result<(), Refusal> {
    let fenced = question.fenced;
    // A guard that was started just now has to know that a group is active.
    match guards.begin_arm(&watched, question.begun).await {
        Armed::Watching => {}
        Armed::Stopping => return Err(Refusal::Stopping),
        Armed::Not(why) => return Err(Refusal::Mirror(why)),
    }
    for name in &names {
        // The fence script is the permission (docs/protocol.md §3).
        let promoted = promote_when_given_up(&*mirrors, name, fenced).await;
        promoted.map_err(|why| Refusal::Mirror(format!("mirror {name}: {why}")))?;
    }
    if fenced {
        return Ok(());
    }
    // The other node may be frozen with its address until its margin is over.
    let mut basis = Basis::new(&names);
    let mut words = mirrors.watch(names, false);
    let seen = async {
        while !basis.is_primary() {
            match words.recv().await {
                Some(Word::Says(says)) => {
                    basis.take(clock::now(), &says);
                }
                Some(Word::Gone) => {}
                None => break,
            }
        }
    };
    if timeout(Duration::from_millis(SEEN_WITHIN), seen)
        .await
        .is_err()
    {
        return Err(Refusal::Mirror(NOT_SERVED.to_owned()));
    }
    if let Some(ends) = basis.others_lease_ends() {
        let wait = ends.after(MARGIN).since(clock::now());
        if wait > 0 && !question.begun {
            are_ours();
        }
        sleep(Duration::from_millis(wait)).await;
    }
    Ok(())
}

/// Promotes a mirror. Where it is refused while the peer is Primary and connected, as far as the daemon has heard, it
/// is asked for again when that is so no more: the peer has given it up, or is lost to the daemon, too.
async fn promote_when_given_up<M: Mirrors>(
    mirrors: &M,
    name: &str,
    fenced: bool,
) -> Result<(), String> {
    let Err(refused) = mirrors.promote(name, fenced).await else {
        return Ok(());
    };
    let mut words = mirrors.watch(vec![name.to_owned()], false);
    let given_up = async {
        loop {
            match words.recv().await {
                Some(Word::Says(says)) if says.mirror != name => {}
                Some(Word::Says(says)) if says.connected && says.peer_is_primary => {}
                Some(Word::Says(_)) => return true,
                Some(Word::Gone) | None => return false,
            }
        }
    };
    match timeout(GIVEN_UP_WITHIN, given_up).await {
        Ok(true) => mirrors.promote(name, fenced).await,
        Ok(false) | Err(_) => Err(refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_once_for_each_reason_and_seldom() {
        let mut refusals = Refusals::default();
        let mut told = Vec::new();
        for ms in (0..60_000).step_by(200) {
            let why = match ms {
                20_000..20_200 => "the daemon does not answer",
                0..40_000 => "no such mirror",
                _ => "not ready",
            };
            if refusals.is_news(Time(ms), why) {
                told.push((ms, why));
            }
        }
        let wanted = [
            (5000, "no such mirror"),
            (20_000, "the daemon does not answer"),
            (40_000, "not ready"),
        ];
        assert_eq!(told, wanted);
        let mut refusals = Refusals::default();
        let mut is_news = |ms| refusals.is_news(Time(ms), &format!("{ms} blocks are missing"));
        let told: Vec<u64> = (0..600_000)
            .step_by(200)
            .filter(|ms| is_news(*ms))
            .collect();
        assert_eq!((told.len(), told[1] - told[0]), (REASONS, TELL_AFTER));
    }
}
