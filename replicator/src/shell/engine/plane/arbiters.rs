//! Who is asked for permission: each mirror's register, and the gate before it where mirrors decide together.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::super::config::{ArbiterConfig, MirrorConfig, link_node};
use super::super::host::Host;
use super::super::start::StartError;
use super::Loop;
use crate::core::register::Ask;
use crate::core::state::{Attempt, NodeId};
use crate::shell::arbiter::raw::{RawRegister, RegisterId};
use crate::shell::arbiter::together::{Follow, Gate, Place};
use crate::shell::arbiter::{Arbiter, MirrorRegister, NoArbiter, Pending};
use crate::shell::etcd;
use crate::shell::identity::{Fingerprint, NodeKey};
use crate::shell::witness::{Client, Remote};

impl Loop {
    /// Puts a question of a mirror to its arbiter, through its gate if it is to go alone.
    pub(super) fn ask_arbiter(&self, host: &Host, attempt: Attempt, ask: Ask) -> Pending {
        let arbiter = Rc::clone(&host.arbiter);
        let names_only_this = matches!(&ask, Ask::Swap { register, .. }
            if register.copies == [self.node] && !register.forced);
        match &host.gate {
            // Whoever carries does so in the session, for the Primary there is.
            Some(gate) if names_only_this && !host.mirror.asks_to_carry(attempt) => {
                // The other half is the question's own.
                let patience = Duration::from_millis(host.mirror.settings().arbiter_timeout_ms / 2);
                Rc::clone(gate).pass(attempt, ask, arbiter, patience)
            }
            _ => arbiter.ask(ask),
        }
    }

    pub(super) fn set_arbiter(
        &mut self,
        name: String,
        config: ArbiterConfig,
    ) -> Result<(), StartError> {
        // Its place and keys may have changed under the same name.
        self.remotes.clear();
        let Some(host) = self.host_named(&name) else {
            return Err(StartError::Arbiter {
                mirror: name,
                error: "there is no such mirror".to_owned(),
            });
        };
        let mut host = host.borrow_mut();
        host.config.arbiter = config;
        host.arbiter = self.arbiter(&host.config)?;
        self.set_gate(&mut host);
        Ok(())
    }

    pub(super) fn set_follows(&mut self, follows: Vec<Follow>) {
        self.follows = follows;
        for host in self.served() {
            self.set_gate(&mut host.borrow_mut());
        }
    }

    /// Makes the gate of a mirror anew; questions that wait at the one before are judged by that.
    pub(super) fn set_gate(&mut self, host: &mut Host) {
        host.gate = Place::of(&host.name, &self.follows).map(|place| {
            let registers = place.looks.iter().map(|id| {
                let arbiter = self.register(&host.config, Some(*id));
                // It could be used for the mirror itself.
                arbiter.unwrap_or_else(|_| Rc::new(NoArbiter))
            });
            let registers = registers.collect();
            Gate::new(place, self.node, self.board.subscribe(), registers)
        });
        if host.gate.is_some() {
            self.post_footing(host);
        } else {
            host.footing = None;
            self.forget_footing(&host.name);
        }
    }

    /// Tells the other mirrors of its group what this one stands on.
    pub(super) fn post_footing(&self, host: &mut Host) {
        let footing = host.mirror.footing();
        if host.footing.replace(footing) != Some(footing) {
            self.board.send_modify(|board| {
                board.insert(host.name.to_string(), footing);
            });
        }
    }

    pub(super) fn forget_footing(&self, name: &str) {
        self.board
            .send_if_modified(|board| board.remove(name).is_some());
    }

    /// The mirrors that are served: another one may have the name of one that is leaving.
    fn served(&self) -> Vec<Rc<RefCell<Host>>> {
        let hosts = self.plane.shared.hosts.borrow();
        let hosts = hosts.iter().map(|(_, host)| Rc::clone(host));
        hosts.filter(|host| !host.borrow().is_leaving).collect()
    }

    /// Keys have changed: registers are to be bound to those there are now.
    pub(super) fn bind_arbiters(&mut self) {
        for host in self.served() {
            let mut host = host.borrow_mut();
            // It could be used before, and its place has not changed.
            if let Ok(arbiter) = self.arbiter(&host.config) {
                host.arbiter = arbiter;
                self.set_gate(&mut host);
            }
        }
    }

    /// Whoever is asked for a mirror.
    pub(super) fn arbiter(&mut self, config: &MirrorConfig) -> Result<Rc<dyn Arbiter>, StartError> {
        self.register(config, None)
    }

    /// A register at the arbiter of `config`: its own, or that of the mirror `other` of the same two nodes.
    fn register(
        &mut self,
        config: &MirrorConfig,
        other: Option<u128>,
    ) -> Result<Rc<dyn Arbiter>, StartError> {
        let id = |own: &Option<u128>| RegisterId(other.or(*own).unwrap_or(config.mirror));
        let raw: Rc<dyn RawRegister> = match &config.arbiter {
            ArbiterConfig::None => return Ok(Rc::new(NoArbiter)),
            ArbiterConfig::Witness { witness, register } => {
                let remote = if let Some(remote) = self.remotes.get(&witness.name) {
                    Rc::clone(remote)
                } else {
                    let remote = Remote::new(&self.keys.current, witness.clone());
                    let remote = remote.map_err(|error| StartError::Arbiter {
                        mirror: config.name.clone(),
                        error: error.to_string(),
                    })?;
                    self.remotes
                        .insert(witness.name.clone(), Rc::clone(&remote));
                    remote
                };
                Client::new(remote, id(register), self.members(config.peer))
            }
            ArbiterConfig::Etcd { etcd, register } => {
                let known = self.etcds.get(&etcd.name);
                let remote = if let Some(remote) = known.filter(|known| known.config() == etcd) {
                    Rc::clone(remote)
                } else {
                    let remote = etcd::Remote::new(etcd.clone());
                    self.etcds.insert(etcd.name.clone(), Rc::clone(&remote));
                    remote
                };
                etcd::Client::new(remote, id(register))
            }
        };
        Ok(MirrorRegister::of_pair(raw, [self.node, config.peer]))
    }

    /// The keys that a register of a mirror shared with `peer` is bound to.
    fn members(&self, peer: NodeId) -> Vec<Fingerprint> {
        let peer = self
            .peers
            .iter()
            .filter(|config| config.node == link_node(peer));
        let peer = peer
            .flat_map(|peer| peer.fingerprints.iter().copied())
            .take(2);
        let mine = [Some(&self.keys.current), self.keys.next.as_ref()];
        mine.into_iter()
            .flatten()
            .map(NodeKey::fingerprint)
            .chain(peer)
            .collect()
    }
}
