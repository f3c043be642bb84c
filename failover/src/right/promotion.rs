//! The promotion of a group's mirrors: put under guard first, then promoted one after the other, and
//! seen to be Primary. Whoever takes over waits until the other node has lost its address.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::clock;
use crate::guard_process::client::Guards;
use crate::guard_process::message::Watched;

use super::basis::Basis;
use super::{MARGIN, Mirrors, Word};

/// What the managers know, that a mirror was given up or the other node is lost, the daemon may hear a little later.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(1);
/// What a promotion has brought is seen within this, in milliseconds.
pub(super) const SEEN_WITHIN: u64 = 5000;
/// Why a promotion that was done is refused all the same.
pub(super) const NOT_SERVED: &str = "the mirror's daemon has promoted it, and does not serve it";

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
    /// The mirror refuses.
    Mirror(String),
    /// The guard is stopping the group.
    Stopping,
}

/// Promotes them all.
///
/// Errors: the mirror's refusal, or the guard's.
pub(super) async fn promote_all<M: Mirrors>(
    mirrors: Arc<M>,
    guards: Guards,
    watched: Watched,
    names: Vec<String>,
    question: Question,
) -> Result<(), Refusal> {
    let fenced = question.fenced;
    // A guard that was started just now has to know that a group is active.
    let armed = guards.begin_arm(&watched, question.begun).await;
    if armed.is_stopping() {
        return Err(Refusal::Stopping);
    }
    for name in &names {
        let mut promoted = promote_when_given_up(&*mirrors, name).await;
        if promoted.is_err() && fenced {
            // The fence script is the permission (docs/protocol.md §3).
            promoted = mirrors.promote(name, true).await;
        }
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
        sleep(Duration::from_millis(wait)).await;
    }
    Ok(())
}

/// Promotes a mirror. Where it is refused while the peer is Primary and connected, as far as the daemon has heard, it
/// is asked for again when that is so no more: the peer has given it up, or is lost to the daemon, too.
async fn promote_when_given_up<M: Mirrors>(mirrors: &M, name: &str) -> Result<(), String> {
    let Err(refused) = mirrors.promote(name, false).await else {
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
        Ok(true) => mirrors.promote(name, false).await,
        Ok(false) | Err(_) => Err(refused),
    }
}
