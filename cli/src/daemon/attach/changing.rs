//! Who may change what a mirror is to the kernel: one at a time, and nobody while it is being demoted.

use std::collections::{BTreeMap, BTreeSet};

use kagami_replicator::core::event::Refusal;
use tokio::sync::watch;

use super::Attachments;
use super::host::Host;

/// What is on its way to another state.
#[derive(Debug, Default)]
pub(super) struct Changing {
    /// Mirrors that are being attached or detached.
    pub(super) mirrors: BTreeSet<String>,
    /// Those that are being demoted, and by how many. (A stop does not wait for these: it demotes all.)
    demoted: BTreeMap<String, usize>,
    /// The daemon stops: no more of them.
    pub(super) closed: bool,
}

/// While it lives, nobody else attaches or detaches that mirror.
pub(super) struct Change<'a> {
    mirror: String,
    changing: &'a watch::Sender<Changing>,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.changing.send_modify(|changing| {
            changing.mirrors.remove(&self.mirror);
        });
    }
}

/// While it lives, a mirror is being demoted: it is neither attached nor detached.
#[derive(Debug)]
#[must_use]
pub struct Demotion {
    mirror: String,
    changing: watch::Sender<Changing>,
}

impl Drop for Demotion {
    fn drop(&mut self) {
        self.changing.send_modify(|changing| {
            if let Some(count) = changing.demoted.get_mut(&self.mirror) {
                *count -= 1;
                if *count == 0 {
                    changing.demoted.remove(&self.mirror);
                }
            }
        });
    }
}

pub(super) fn stops() -> Refusal {
    Refusal {
        what: "refused: the daemon stops".to_owned(),
        facts: Vec::new(),
        next: "start it, and try again".to_owned(),
    }
}

fn is_changing() -> Refusal {
    Refusal {
        what: "refused: it is being attached, detached or demoted".to_owned(),
        facts: Vec::new(),
        next: "see `kagami status`, and try again".to_owned(),
    }
}

impl<H: Host> Attachments<H> {
    /// Whoever demotes a mirror holds this until that has ended: its role is the old one until then, and a device that is
    /// attached meanwhile would make this node Primary again.
    ///
    /// # Errors
    /// It is attached, or is being attached or detached.
    pub fn demotion(&self, mirror: &str) -> Result<Demotion, Refusal> {
        let mut begun = false;
        self.inner.changing.send_modify(|changing| {
            begun = !changing.mirrors.contains(mirror);
            if begun {
                *changing.demoted.entry(mirror.to_owned()).or_default() += 1;
            }
        });
        if !begun {
            return Err(is_changing());
        }
        let demotion = Demotion {
            mirror: mirror.to_owned(),
            changing: self.inner.changing.clone(),
        };
        // What is being attached by now has its keeper.
        if let Some(device) = self.device_of(mirror) {
            // By force, too: what waits in the kernel would wait for a Primary that is no more.
            return Err(Refusal {
                what: "not demoted: it is attached".to_owned(),
                facts: vec![format!("{device} is served from here")],
                next: format!("detach it first: `kagami detach {mirror}`"),
            });
        }
        Ok(demotion)
    }

    /// Whoever attaches or detaches a mirror holds this meanwhile.
    ///
    /// # Errors
    /// Somebody does, or demotes it, or the daemon stops.
    pub(super) fn change(&self, mirror: &str) -> Result<Change<'_>, Refusal> {
        let (mut closed, mut begun) = (false, false);
        self.inner.changing.send_modify(|changing| {
            closed = changing.closed;
            begun = !closed
                && !changing.demoted.contains_key(mirror)
                && changing.mirrors.insert(mirror.to_owned());
        });
        if closed {
            return Err(stops());
        }
        if !begun {
            return Err(is_changing());
        }
        Ok(Change {
            mirror: mirror.to_owned(),
            changing: &self.inner.changing,
        })
    }
}
