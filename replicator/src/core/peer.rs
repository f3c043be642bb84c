//! Another peer: a node that is replaced, taken away, or comes to a mirror that had none.
//!
//! An operator's word, and a final one: what the peer before holds is never believed again, also
//! if it went on alone meanwhile. So this copy goes on in a generation that the other never had,
//! without a base: whatever comes back from there is behind or forked, and in both cases it is
//! overwritten whole or not at all (docs/protocol.md §5, *Another peer*; rows 15 and 16 of §6).
//! Connected to the old peer nobody is replaced, and where an arbiter decides, its word comes first.

use super::durable::After;
use super::event::{Refusal, Reply};
use super::state::{CommandId, NodeId, Solo};
use super::{Actions, Mirror, Notice, Store};

impl Mirror {
    /// True if this mirror has another node to share with.
    pub(super) fn has_peer(&self) -> bool {
        self.peer != NodeId::NOBODY
    }

    /// Who lets this copy go on alone: while there is no other, nobody has to.
    pub(super) fn solo_rule(&self) -> Solo {
        if self.has_peer() {
            self.settings.solo
        } else {
            Solo::Always
        }
    }

    /// The peer in the record, with the changes that are on their way.
    fn recorded_peer(&self) -> Option<NodeId> {
        self.durable.next_record().peer.map(NodeId)
    }

    /// Puts the peer that the configuration names into a record that names none.
    pub(super) fn record_first_peer(&mut self) {
        if self.has_peer() && self.recorded_peer().is_none() {
            let peer = self.peer.0;
            self.change_record(After::Nothing, |r| r.peer = Some(peer));
        }
    }

    pub(super) fn order_set_peer(&mut self, id: CommandId, peer: NodeId, out: &mut Actions) {
        if peer == self.peer && self.recorded_peer().unwrap_or(NodeId::NOBODY) == peer {
            let why = if self.has_peer() {
                format!("node {peer} is the peer already")
            } else {
                "it has no peer".to_owned()
            };
            return self.answer(id, Ok(Reply::Nothing(why)), out);
        }
        if let Err(why) = self.may_set_peer(peer) {
            return self.answer(id, Err(why), out);
        }
        self.end_attempt();
        let tag = self.draw_tag();
        let record = (peer != NodeId::NOBODY).then_some(peer.0);
        let mut parted = false;
        let primary = self.is_primary();
        self.change_record(After::PeerSet { command: id, peer }, |r| {
            let before = r.current;
            if primary && r.is_never_written() {
                // It served before there was anybody to agree with on how to begin: the one who
                // comes begins with this copy, whoever has the lower id (row 4, not 3).
                r.mint(tag);
            }
            r.set_peer(record, tag);
            parted = r.current != before;
        });
        if parted {
            self.bitmap.mark_all();
            self.want_pages();
        }
    }

    /// Why not, if not.
    fn may_set_peer(&self, peer: NodeId) -> Result<(), Refusal> {
        let refusal = |what: &str, facts: Vec<String>, next: &str| Refusal {
            what: format!("refused: {what}"),
            facts,
            next: next.to_owned(),
        };
        if peer == self.me {
            let next = "name the other node";
            return Err(refusal("that is this node itself", vec![], next));
        }
        if self.promoting.is_some()
            || self.demoting.is_some()
            || self
                .durable
                .awaits(|after| matches!(after, After::PeerSet { .. } | After::Forced { .. }))
        {
            let next = "wait for it: `kagami status`";
            return Err(refusal("a change is under way", vec![], next));
        }
        let replaced = self.recorded_peer();
        if let (Some(link), Some(old)) = (&self.link, replaced) {
            let facts = vec![format!("node {old} is connected (session {})", link.id)];
            let next = "stop its daemon first (`kagami down` there); a node that is there needs no replacement";
            return Err(refusal("the peer is connected", facts, next));
        }
        // With what is on its way to it: a copy that is being invalidated is not good any more.
        let next = self.durable.next_record();
        if (replaced.is_none() || next.is_never_written()) && !self.is_guest() {
            return Ok(());
        }
        if self.local.store != Store::Usable {
            let facts = vec![format!("this copy is {}", self.disk_state())];
            let next = "put this node's disk right first";
            return Err(refusal("this copy has no usable disk", facts, next));
        }
        if next.is_bad() || !self.is_good() {
            let facts = vec![format!("this copy is {}", self.disk_state())];
            let next = "if the peer is gone for good, `kagami promote --force` here first: it says what is lost";
            return Err(refusal("this copy is not good, the peer's is", facts, next));
        }
        // The register may let the old peer go on alone: it is not out before the arbiter says so.
        let asks = self.settings.solo == Solo::Arbiter && self.record().arbiter.is_some();
        if asks && self.alone.is_none() {
            let facts = vec![format!(
                "the arbiter may still let node {} go on alone",
                replaced.unwrap_or(NodeId::NOBODY)
            )];
            // A Primary asks by itself.
            let next = if self.is_primary() {
                "see to the arbiter: it is asked again by itself; once status says ALONE, try again. If it is gone for good, too, `kagami promote --force` here first: what only the old peer wrote is lost, or a split brain"
            } else {
                "`kagami promote` here first: the arbiter then names this copy; then try again"
            };
            return Err(refusal("the arbiter has not named this copy", facts, next));
        }
        Ok(())
    }

    pub(super) fn on_peer_set(&mut self, command: CommandId, peer: NodeId, out: &mut Actions) {
        let old = std::mem::replace(&mut self.peer, peer);
        // A session that came up while the record was written is the old peer's, if anybody's.
        self.close_session("this copy has another peer", out);
        self.door.refused = 0;
        self.last_verdict = None;
        self.forget_word();
        self.solo.told_timeout_ms = 0;
        out.push(super::Action::Report(Notice::PeerSet {
            from: (old != NodeId::NOBODY).then_some(old),
            to: (peer != NodeId::NOBODY).then_some(peer),
        }));
        // No other copy is left that could have what this one answers: the new peer has nothing.
        let parted = self.record().alone && self.record().base.is_none();
        if parted && self.is_primary() && self.alone.is_none() && self.is_good() {
            self.become_alone("the peer before was given up", out);
        }
        self.watch_register();
        self.open_door(out);
        self.answer(command, Ok(Reply::Done), out);
    }

    /// The word came too late: the metadata store failed.
    pub(super) fn on_peer_not_set(&mut self, command: CommandId, out: &mut Actions) {
        let why = Refusal {
            what: "not done: the metadata store failed".into(),
            facts: vec![],
            next: "replace this node's disk".into(),
        };
        self.answer(command, Err(why), out);
    }
}
