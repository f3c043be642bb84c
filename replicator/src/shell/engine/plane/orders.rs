//! What other threads ask of this one: mirrors come and go, commands, status.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::super::config::{link_node, peers_of};
use super::super::handle::EngineError;
use super::super::host::{Host, Stores};
use super::super::start::{Opened, StartError};
use super::super::status::MirrorStatus;
use super::{End, Loop, Order, no_such_mirror, random_tags};
use crate::core::state::{NodeId, Time};
use crate::core::{Mirror, Start, TAGS};
use crate::shell::identity::NodeKeys;
use crate::shell::quic::{self, MirrorId};

impl Loop {
    pub(super) fn on_order(&mut self, order: Order, now: Time) -> Option<End> {
        match order {
            Order::Add(opened, reply) => {
                let _ = reply.send(self.add(*opened, now));
            }
            Order::Command(name, command, answerer) => match self.host_named(&name) {
                Some(host) => {
                    let event = host.borrow_mut().command(command, answerer);
                    self.handle(&host, event, now);
                }
                None => {
                    let _ = answerer.send(Err(no_such_mirror()));
                }
            },
            Order::Status(reply) => {
                let hosts = self.plane.shared.hosts.borrow();
                let hosts = hosts
                    .iter()
                    .map(|(_, host)| host.borrow_mut())
                    .filter(|host| !host.is_leaving);
                let status = hosts.map(|mut host| {
                    MirrorStatus::of(&mut host, self.index, now, &self.storage, &self.link)
                });
                let _ = reply.send(status.collect());
            }
            Order::SetPeers(peers) => {
                self.peers = peers_of(&peers, self.index);
                self.link.set_peers(self.peers.clone());
                self.bind_arbiters();
            }
            Order::Tell(peer, note) => {
                // Whoever waits for an answer does not wait for ever.
                self.link.tell(link_node(peer), note);
            }
            Order::NewKey(reply) => {
                let _ = reply.send(self.show_new_key());
            }
            Order::SetArbiter(name, config, reply) => {
                let _ = reply.send(self.set_arbiter(name, config));
            }
            Order::SetFollows(follows) => self.set_follows(follows),
            Order::Remove(name, reply) => match self.host_named(&name) {
                None => drop(reply.send(())),
                Some(host) => self.forget(&host, Some(reply)),
            },
            // Nobody may wait for it any more.
            Order::Beat(reply) => drop(reply.send(())),
            Order::Spawn(spawn) => spawn(self.plane.clone()),
            Order::End => return Some(End::Orderly),
            Order::Abandon => return Some(End::Abrupt),
        }
        None
    }

    fn show_new_key(&mut self) -> Result<(), EngineError> {
        let keys = NodeKeys::load(&self.key_folder)?;
        // The link keeps a key of its own.
        self.link
            .set_key(NodeKeys::load(&self.key_folder)?.current)?;
        self.keys = keys;
        // Arbiters know this node by the old one still.
        self.remotes.clear();
        self.bind_arbiters();
        Ok(())
    }

    fn add(&mut self, opened: Opened, now: Time) -> Result<(), StartError> {
        let Opened {
            config,
            recovered,
            findings,
            data,
            metadata_file,
            metadata_area,
            holes,
        } = opened;
        let id = MirrorId(config.mirror);
        if self.by_id.contains_key(&id) || self.host_named(&config.name).is_some() {
            return Err(StartError::Exists(config.name));
        }
        let arbiter = self.arbiter(&config)?;
        let (mut unmap_zeroes, mut rotational) = (false, false);
        let disk = data.map(|(file, area)| {
            let can = file.capabilities();
            unmap_zeroes = can.unmap_zeroes;
            rotational = can.rotational.unwrap_or(false);
            let store = self.storage.add_store(file);
            (store, self.storage.add_disk(store, area))
        });
        let account = self.storage.pool().open_account();
        if let Ok((_, disk)) = disk {
            self.storage.charge_reads(disk, account.clone());
        }
        let metadata_store = metadata_file.map(|file| self.storage.add_store(file));
        let store = match (metadata_store, &disk) {
            (Some(store), _) => store,
            (None, Ok((store, _))) => *store,
            (None, Err(_)) => unreachable!("metadata in the tail of a store that is not open"),
        };
        let metadata = self.storage.add_metadata(store, metadata_area);
        let name: Arc<str> = config.name.as_str().into();
        if let Err(why) = &disk {
            tracing::error!(mirror = &*name, "this copy is diskless: {why}");
        }
        let token = self.boot.token(&config.name, config.mirror);
        let start = Start {
            node: self.node,
            peer: config.peer,
            recovered,
            settings: config.settings.clone(),
            boot: self.boot.id(),
            token: token.is_whole(),
            disk_usable: disk.is_ok(),
            unmap_zeroes,
            tags: random_tags(TAGS),
            memory: Box::new(account.clone()),
        };
        self.accounts.borrow_mut().insert(id, account.clone());
        let mut mirrors = self.mirrors();
        if config.peer != NodeId::NOBODY {
            mirrors.push((id, link_node(config.peer)));
        }
        self.link.set_mirrors(&mirrors);
        let mirror = Mirror::new(start, now, &mut self.actions);
        let stores = Stores {
            disk,
            metadata_store,
            metadata,
            in_flight: 0,
            holes,
            rotational,
        };
        let host = Host::new(
            Arc::clone(&name),
            config,
            mirror,
            token,
            arbiter,
            stores,
            account,
            findings,
            now,
        );
        let host = Rc::new(RefCell::new(host));
        let slot = self
            .plane
            .shared
            .hosts
            .borrow_mut()
            .insert(Rc::clone(&host));
        self.by_id.insert(id, slot);
        tracing::info!(mirror = &*name, thread = self.index, "started");
        let mut mirror = host.borrow_mut();
        mirror.slot = slot;
        self.set_gate(&mut mirror);
        self.carry_out(&host, &mut mirror, now);
        drop(mirror);
        // What the first actions wanted answered at once.
        while let Some(event) = self.follow_ups.pop_front() {
            self.handle(&host, event, now);
        }
        Ok(())
    }

    fn mirrors(&self) -> Vec<(MirrorId, quic::NodeId)> {
        let hosts = self.plane.shared.hosts.borrow();
        let hosts = hosts
            .iter()
            .map(|(_, host)| host.borrow())
            .filter(|host| !host.is_leaving && host.mirror.peer() != NodeId::NOBODY);
        hosts
            .map(|host| (host.id, link_node(host.mirror.peer())))
            .collect()
    }

    /// The core has another peer: the link lets that one in, and the one before no more.
    pub(super) fn on_peer_changed(&mut self, host: &Rc<RefCell<Host>>) {
        let (id, wants) = {
            let mut host = host.borrow_mut();
            host.config.peer = host.mirror.peer();
            (host.id, host.wants_session)
        };
        let mirrors = self.mirrors();
        self.link.set_mirrors(&mirrors);
        self.link.want(id, wants);
        self.bind_arbiters();
    }

    /// Stops serving a mirror; its stores close when nothing is on its way to them any more.
    fn forget(&mut self, host: &Rc<RefCell<Host>>, reply: Option<oneshot::Sender<()>>) {
        let (id, slot) = {
            let mut host = host.borrow_mut();
            host.is_leaving = true;
            // What is on its way yet may fail when nobody hears it any more: a flush of writes that were answered.
            if host.stores.in_flight > 0 {
                host.break_token();
            }
            host.account.close();
            host.requests.fail_all(&mut self.answers);
            (host.id, host.slot)
        };
        self.by_id.remove(&id);
        self.accounts.borrow_mut().remove(&id);
        self.forget_footing(&host.borrow().name);
        let mirrors = self.mirrors();
        self.link.set_mirrors(&mirrors);
        self.leaving.push((slot, reply));
    }

    pub(super) fn release(&mut self) {
        let Self {
            leaving,
            plane,
            storage,
            ..
        } = self;
        leaving.retain_mut(|(slot, reply)| {
            let host = Rc::clone(&plane.shared.hosts.borrow()[*slot]);
            let host = host.borrow();
            if host.stores.in_flight > 0 {
                return true;
            }
            storage.remove_metadata(host.stores.metadata);
            if let Ok((store, disk)) = host.stores.disk {
                storage.remove_disk(disk);
                storage.remove_store(store);
            }
            if let Some(store) = host.stores.metadata_store {
                storage.remove_store(store);
            }
            plane.shared.hosts.borrow_mut().remove(*slot);
            tracing::info!(mirror = &*host.name, "stopped, its stores are closed");
            if let Some(reply) = reply.take() {
                let _ = reply.send(());
            }
            false
        });
    }
}
