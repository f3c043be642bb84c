//! Events in, actions out: what the loop took goes to the cores, and what they want is carried out.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::super::config::link_node;
use super::super::device::Item;
use super::super::host::{Host, Ready};
use super::super::status::{MirrorEvent, PeerEvent, PeerWord};
use super::{Loop, random_tags, tagged, untagged};
use crate::core::action::{Action, Class};
use crate::core::disk::DiskFault;
use crate::core::notice::Notice;
use crate::core::state::{DiskId, MetaId, NodeId, RequestId, SessionId, Time};
use crate::core::{self, Event};
use crate::shell::buffers::Share;
use crate::shell::quic::{self, CloseReason, LinkEvent, code};
use crate::shell::storage::StorageCompletion;
use crate::shell::time::wall;
use crate::wire::frame::{self, OutFrame};
use crate::wire::message;

impl Loop {
    pub(super) fn on_completion(&mut self, completion: StorageCompletion, now: Time) {
        let (slot, event) = match completion {
            StorageCompletion::Disk(done) => {
                let (slot, id) = untagged(done.id);
                (
                    slot,
                    Event::Disk {
                        id: DiskId(id),
                        result: done.result,
                    },
                )
            }
            StorageCompletion::Metadata(done) => {
                let (slot, id) = untagged(done.id);
                (
                    slot,
                    Event::MetadataDone {
                        id: MetaId(id),
                        result: done.result,
                    },
                )
            }
        };
        let host = self.host(slot);
        host.borrow_mut().stores.in_flight -= 1;
        self.handle(&host, event, now);
    }

    #[expect(clippy::too_many_lines, reason = "an arm for each event")]
    pub(super) fn on_link(&mut self, event: LinkEvent, now: Time) {
        match event {
            LinkEvent::Up {
                mirror,
                session,
                version,
                ..
            } => {
                let Some(host) = self.host_of(mirror) else {
                    return;
                };
                {
                    let mut host = host.borrow_mut();
                    host.session = Some(session);
                    host.link_trouble = None;
                }
                self.handle(
                    &host,
                    Event::LinkUp {
                        session: SessionId(session.0),
                        version,
                    },
                    now,
                );
            }
            LinkEvent::Frame {
                mirror,
                session,
                class,
                frame,
            } => {
                let Some(host) = self.host_of(mirror) else {
                    return;
                };
                let kind = frame.kind;
                let fault = match message::decode(kind, &frame.head, frame.payload) {
                    Ok(message) if wire_class(message.class()) == class => {
                        let session = SessionId(session.0);
                        return self.handle(&host, Event::Message { session, message }, now);
                    }
                    Ok(_) => format!("a message of kind {kind} on the {class} stream"),
                    Err(fault) => fault.to_string(),
                };
                self.link
                    .close(session, CloseReason::new(code::PROTOCOL, fault.clone()));
                self.report(
                    &host.borrow(),
                    Notice::PeerFault {
                        what: fault.clone(),
                    },
                );
                let reason = format!("the peer broke the protocol: {fault}");
                self.handle(
                    &host,
                    Event::LinkDown {
                        session: SessionId(session.0),
                        reason,
                    },
                    now,
                );
            }
            LinkEvent::Down {
                mirror,
                session,
                reason,
            } => {
                let Some(host) = self.host_of(mirror) else {
                    return;
                };
                let reason = reason.to_string();
                {
                    let mut host = host.borrow_mut();
                    host.session.take_if(|up| *up == session);
                    host.link_trouble = Some(reason.clone());
                }
                self.handle(
                    &host,
                    Event::LinkDown {
                        session: SessionId(session.0),
                        reason,
                    },
                    now,
                );
            }
            LinkEvent::Connected { peer, key } => self.tell_of_peer(peer, PeerWord::Key(key)),
            LinkEvent::Note { peer, note } => self.tell_of_peer(peer, PeerWord::Note(note)),
            LinkEvent::ConnectFailed {
                peer,
                address,
                error,
            } => {
                // The link has told of it, with the peer's name.
                let address = address
                    .map(|address| format!("{address}: "))
                    .unwrap_or_default();
                let hosts = self.plane.shared.hosts.borrow();
                for (_, host) in hosts.iter() {
                    let mut host = host.borrow_mut();
                    if peer == Some(link_node(host.mirror.peer())) && host.session.is_none() {
                        host.link_trouble = Some(format!("{address}{error}"));
                    }
                }
            }
        }
    }

    fn tell_of_peer(&self, peer: quic::NodeId, word: PeerWord) {
        let Ok(node) = u64::try_from(peer.0) else {
            return;
        };
        // Nobody may be listening.
        let _ = self.peer_events.send(PeerEvent {
            peer: NodeId(node),
            word,
        });
    }

    pub(super) fn on_item(&mut self, item: Item, events: &mut Vec<Event>, now: Time) {
        match item {
            Item::Request {
                host,
                term,
                request,
                requester,
                ticket,
            } => {
                self.unanswered += 1;
                let refused = {
                    let host = host.borrow();
                    if host.is_leaving {
                        Some(core::IoError::Io)
                    } else if host.mirror.term() != term {
                        // Primary again, perhaps: but not the one that it was opened with.
                        Some(core::IoError::NotPrimary)
                    } else {
                        None
                    }
                };
                if let Some(error) = refused {
                    let result = Err(error);
                    return self.answers.push(Ready {
                        requester,
                        ticket,
                        result,
                    });
                }
                host.borrow_mut()
                    .requests
                    .begin(request, requester, ticket, now, events);
                for event in events.drain(..) {
                    self.handle(&host, event, now);
                }
            }
            Item::Room { host, id, room } => {
                // The requests of one that is leaving are answered.
                let host = host.upgrade().filter(|host| !host.borrow().is_leaving);
                if let Some(host) = host {
                    host.borrow_mut().requests.give_room(id, room);
                    self.handle(&host, Event::Room { id }, now);
                }
            }
            Item::Arbiter {
                host,
                attempt,
                answer,
            } => {
                if let Some(host) = host.upgrade() {
                    self.handle(&host, Event::Arbiter { attempt, answer }, now);
                }
            }
        }
    }

    pub(super) fn on_deadlines(&mut self, now: Time) {
        if self.deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        let hosts: Vec<_> = self
            .plane
            .shared
            .hosts
            .borrow()
            .iter()
            .map(|(_, host)| Rc::clone(host))
            .collect();
        for host in hosts {
            let (is_due, look) = {
                let mut host = host.borrow_mut();
                if host.is_leaving {
                    continue;
                }
                let due = |at: &mut Time| *at <= now;
                (
                    host.timer.take_if(due).is_some(),
                    host.want_from.take_if(due).map(|_| host.id),
                )
            };
            if let Some(mirror) = look {
                self.link.want(mirror, true);
            }
            if is_due {
                self.handle(&host, Event::Timer, now);
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        let hosts = self.plane.shared.hosts.borrow();
        hosts
            .iter()
            .filter_map(|(_, host)| host.borrow().deadline())
            .min()
    }

    /// One event of one mirror, and everything that follows from it at once.
    pub(super) fn handle(&mut self, host: &Rc<RefCell<Host>>, event: Event, now: Time) {
        let mut mirror = host.borrow_mut();
        if mirror.is_leaving {
            return;
        }
        let mut next = Some(event);
        while let Some(event) = next {
            mirror.mirror.handle(now, event, &mut self.actions);
            self.carry_out(host, &mut mirror, now);
            next = self.follow_ups.pop_front();
        }
        if mirror.gate.is_some() {
            self.post_footing(&mut mirror);
        }
        let peer_changed = mirror.config.peer != mirror.mirror.peer();
        drop(mirror);
        if peer_changed {
            self.on_peer_changed(host);
        }
    }

    /// Carries the core's actions out, in their order.
    pub(super) fn carry_out(&mut self, shared: &Rc<RefCell<Host>>, host: &mut Host, now: Time) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::Disk { id, op } => {
                    if let Ok((_, disk)) = host.stores.disk {
                        host.stores.in_flight += 1;
                        self.storage.submit(disk, tagged(host.slot, id.0), op);
                    } else {
                        let result = Err(DiskFault::Io(rustix::io::Errno::NODEV.raw_os_error()));
                        self.follow_ups.push_back(Event::Disk { id, result });
                    }
                }
                Action::Metadata { id, steps } => {
                    host.stores.in_flight += 1;
                    self.storage.submit_metadata(
                        host.stores.metadata,
                        tagged(host.slot, id.0),
                        steps,
                    );
                }
                Action::Send {
                    session,
                    class,
                    message,
                } => {
                    let encoded = self.speller.encode(&message);
                    let frame = OutFrame {
                        kind: encoded.kind,
                        head: encoded.head,
                        payload: encoded.payload,
                    };
                    self.link
                        .send(quic::SessionId(session.0), wire_class(class), frame);
                    self.has_sent = true;
                }
                Action::CloseSession { session, reason } => {
                    let session = quic::SessionId(session.0);
                    host.session.take_if(|up| *up == session);
                    self.link
                        .close(session, CloseReason::new(code::FIRST_OF_ENGINE, reason));
                }
                Action::WantSession { from } => {
                    host.wants_session = from.is_some();
                    host.want_from = from.filter(|from| *from > now);
                    self.link
                        .want(host.id, from.is_some_and(|from| from <= now));
                }
                Action::AskArbiter { attempt, ask } => {
                    let pending = self.ask_arbiter(host, attempt, ask);
                    let (inbox, host) =
                        (Rc::clone(&self.plane.shared.inbox), Rc::downgrade(shared));
                    tokio::task::spawn_local(async move {
                        let answer = pending.await;
                        inbox.push(Item::Arbiter {
                            host,
                            attempt,
                            answer,
                        });
                    });
                }
                Action::Room { id, len } => self.find_room(shared, host, id, len),
                Action::Complete { id, result } => {
                    let ready = host.requests.end(id, result, now, &mut host.latency);
                    self.answers.extend(ready);
                }
                Action::CommandDone { id, result } => host.answer_command(id, result),
                Action::SetTimer { at } => host.timer = at,
                Action::DrawTags(count) => {
                    self.follow_ups.push_back(Event::Tags(random_tags(count)))
                }
                Action::BreakToken => host.break_token(),
                Action::MakeToken => host.make_token(),
                Action::Report(notice) => self.report(host, notice),
            }
        }
        self.actions = actions;
    }

    /// Takes memory for what the peer is to be asked for.
    fn find_room(&mut self, shared: &Rc<RefCell<Host>>, host: &mut Host, id: RequestId, len: u32) {
        if let Some(room) = host.account.alloc(len as usize, Share::Answer) {
            host.requests.give_room(id, room);
            self.follow_ups.push_back(Event::Room { id });
            return;
        }
        let wait = host.account.wait_alloc(len as usize, Share::Answer);
        let (inbox, host) = (Rc::clone(&self.plane.shared.inbox), Rc::downgrade(shared));
        tokio::task::spawn_local(async move {
            match wait.await {
                Ok(room) => inbox.push(Item::Room { host, id, room }),
                Err(error) => panic!("the front end was told what fits: {error}"),
            }
        });
    }

    fn report(&self, host: &Host, notice: Notice) {
        // The daemon's own log is made from the events; this is for those who look closer.
        tracing::debug!(mirror = &*host.name, ?notice);
        // Nobody may be listening.
        let _ = self.events.send(MirrorEvent {
            mirror: Arc::clone(&host.name),
            at: wall(),
            notice,
        });
    }
}

fn wire_class(class: Class) -> frame::Class {
    match class {
        Class::Control => frame::Class::Control,
        Class::Data => frame::Class::Data,
        Class::Resync => frame::Class::Resync,
    }
}
