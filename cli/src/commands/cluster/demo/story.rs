//! What is shown: a service that is moved, killed, taken over when its node dies, and cut off; each claim
//! proved or the whole fails.

use std::path::Path;
use std::time::{Duration, Instant};

use kagami_failover::control::status::{NodeReport, NodeState};
use serde_json::{Value, json};

use super::client::Client;
use super::making::{Cluster, GROUP, PATIENCE};
use super::network::{self, FLOATING};
use super::service::{self, Service};
use crate::commands::demo::fault::DemoError;
use crate::commands::demo::node::wait_until;
use crate::commands::demo::scratch::{MIRROR, Scratch, compare, in_sync};
use crate::commands::demo::tell::{Teller, milliseconds, seconds};
use crate::control::report::{Condition, MirrorReport, Role};
use crate::render::units;

/// A time without service.
#[derive(Clone, Debug)]
struct Figure {
    what: &'static str,
    name: &'static str,
    time: Duration,
}

/// One showing.
pub struct Story<'a> {
    tell: &'a mut Teller,
    cluster: Cluster,
    client: Client,
    active: usize,
    figures: Vec<Figure>,
}

/// How it went, for a program.
#[derive(Debug)]
pub struct Ending {
    acknowledged: usize,
    missing: usize,
    figures: Vec<Figure>,
}

impl Ending {
    /// As fields of an object.
    pub fn document(&self) -> Value {
        let times = self.figures.iter();
        let times =
            times.map(|figure| json!({"fault": figure.name, "ms": milliseconds(figure.time)}));
        json!({
            "acknowledged": self.acknowledged,
            "missing": self.missing,
            "without_service": times.collect::<Vec<_>>(),
        })
    }
}

impl<'a> Story<'a> {
    /// Makes the cluster and tells the whole story.
    ///
    /// # Errors
    /// Something did not come to its end; a claim that does not hold is told by the teller alone.
    pub fn show(
        tell: &'a mut Teller,
        folder: &Path,
        service: Service,
    ) -> Result<Ending, DemoError> {
        tell.title("kagami: a failover cluster, shown on this machine");
        tell.say(&format!(
            "Two nodes, alpha and beta, a witness and a client, each in a network namespace of its own, are \
             plugged into a switch; a second cable joins the nodes, for their mirror and heartbeats. The \
             service is {}. The machine's own network is not touched, and all of it is gone at the end.",
            service.words()
        ));
        tell.step("Two nodes become a cluster");
        let mut cluster = Cluster::make(folder, service, &mut |who, what| tell.command(who, what))?;
        for machine in &mut cluster.machines {
            for command in ["kagami up", "kagami failover"] {
                tell.command(machine.name(), command);
            }
            machine.start()?;
        }
        let began = Instant::now();
        let place = cluster.client_place()?;
        let (protocol, address) = (cluster.service.protocol(), service::address());
        let client = Client::start(place, protocol, address)?;
        let mut story = Self {
            tell,
            cluster,
            client,
            active: 0,
            figures: Vec::new(),
        };
        story.start_at_home(began)?;
        story.move_it()?;
        story.kill_the_service()?;
        story.kill_the_node()?;
        story.bring_it_back()?;
        story.cut_the_cable()?;
        story.end()
    }

    fn name(&self, machine: usize) -> String {
        self.cluster.machines[machine].name().to_owned()
    }

    /// What the mirror is on a machine.
    fn mirror(
        &mut self,
        machine: usize,
        what: &str,
        enough: impl FnMut(&MirrorReport) -> bool,
    ) -> Result<MirrorReport, DemoError> {
        let node = &mut self.cluster.machines[machine].node;
        node.wait(MIRROR, what, PATIENCE, enough)
    }

    fn wait_in_sync(&mut self) -> Result<(), DemoError> {
        for machine in 0..2 {
            self.mirror(machine, "both copies to be in sync", in_sync)?;
        }
        Ok(())
    }

    fn quote_status(&mut self) -> Result<(), DemoError> {
        let node = &self.cluster.machines[self.active].node;
        self.tell.command(node.name(), "kagami cluster status");
        let screen = node.run(&["cluster", "status"])?;
        self.tell.quote(&screen);
        Ok(())
    }

    /// A time that the client was without an answer since `fault`; the service is back by now.
    fn outage(&mut self, what: &'static str, name: &'static str, fault: Instant) -> Duration {
        let time = self.client.longest_gap(fault);
        self.figures.push(Figure { what, name, time });
        time
    }

    /// It runs on the active machine, and on no other.
    fn prove_it_runs_once(&mut self) {
        let (here, other) = (self.active, 1 - self.active);
        let there = self.cluster.service_processes(other).len();
        let holds = there == 0 && !self.cluster.service_processes(here).is_empty();
        let words = format!(
            "the service runs on {}, and nothing of it on {}",
            self.name(here),
            self.name(other)
        );
        self.tell.prove(holds, &words);
    }

    fn prove_nothing_is_lost(&mut self) -> Result<(usize, usize), DemoError> {
        let found = self.client.check()?;
        let words = match found.missing.first() {
            None => format!(
                "each of {} records that were acknowledged is there",
                units::count(found.acknowledged as u64)
            ),
            Some(first) => format!(
                "each record that was acknowledged is there: {} of {} are missing, such as {first}",
                found.missing.len(),
                found.acknowledged
            ),
        };
        let holds = found.missing.is_empty() && found.acknowledged > 0;
        self.tell.prove(holds, &words);
        Ok((found.acknowledged, found.missing.len()))
    }

    fn start_at_home(&mut self, began: Instant) -> Result<(), DemoError> {
        self.cluster.wait_online(0)?;
        self.client.served_after(began, PATIENCE)?;
        self.wait_in_sync()?;
        self.tell.say(&format!(
            "After {} the group is online on alpha, its home: the floating address {FLOATING}, the mirror with \
             a new ext4 on the kernel's device, and the service on it. From now on a client stores one record \
             after the other through that address, and remembers what was acknowledged.",
            seconds(began.elapsed())
        ));
        self.quote_status()?;
        self.prove_it_runs_once();
        Ok(())
    }

    fn move_it(&mut self) -> Result<(), DemoError> {
        self.tell.step("A planned move");
        let (from, to) = (self.active, 1 - self.active);
        let command = format!("kagami group move {GROUP}");
        self.tell
            .command(self.cluster.machines[from].name(), &command);
        let fault = Instant::now();
        self.cluster.machines[from]
            .node
            .run(&["group", "move", GROUP, "--timeout", "60s"])?;
        self.active = to;
        self.cluster.wait_online(to)?;
        self.client.served_after(Instant::now(), PATIENCE)?;
        let time = self.outage("moved by an order", "move", fault);
        self.tell.say(&format!(
            "The service was stopped on {}, the mirror handed over, the address moved, and the service started on \
             {}: the client was without an answer for {}.",
            self.name(from),
            self.name(to),
            seconds(time)
        ));
        self.prove_it_runs_once();
        Ok(())
    }

    fn kill_the_service(&mut self) -> Result<(), DemoError> {
        self.tell.step("The service dies");
        let here = self.active;
        let before = self.cluster.service_processes(here);
        let who = self.name(here);
        let ids: Vec<String> = before
            .iter()
            .map(|process| process.id.to_string())
            .collect();
        self.tell
            .command(&who, &format!("kill -9 {}", ids.join(" ")));
        let fault = Instant::now();
        network::kill(&before);
        wait_until(&who, "the service to be started again", PATIENCE, || {
            let now = self.cluster.service_processes(here);
            let is_new =
                |process: &network::Resident| before.iter().all(|old| old.id != process.id);
            now.iter().any(is_new).then_some(())
        })?;
        self.client.served_after(Instant::now(), PATIENCE)?;
        let group = self.cluster.wait_online(here)?;
        let time = self.outage("service killed", "service", fault);
        self.tell.say(&format!(
            "Its monitor, which looks twice a second, saw it and the service was started again: {} without an answer.",
            seconds(time)
        ));
        self.tell.prove(
            group.failovers.is_empty(),
            &format!("it was started again on {who}, and did not fail over for that"),
        );
        Ok(())
    }

    fn kill_the_node(&mut self) -> Result<(), DemoError> {
        self.tell.step("The whole node dies");
        self.wait_in_sync()?;
        let (dead, heir) = (self.active, 1 - self.active);
        self.tell.say(&format!(
            "Every process of {} gets SIGKILL at once: service, failover manager, guard, daemon. Its cables are \
             dead from then on, and what its kernel had not written is dropped.",
            self.name(dead)
        ));
        let fault = self.cluster.kill(dead)?;
        self.active = heir;
        self.cluster.wait_online(heir)?;
        self.client.served_after(Instant::now(), PATIENCE)?;
        let time = self.outage("node killed", "node", fault);
        let state = self.mirror(heir, "its mirror to be alone", |state| {
            state.condition == Condition::Alone
        })?;
        let by = permission(&state);
        self.tell.say(&format!(
            "{} missed its heartbeats, asked the witness, and took the group over, file system checked and \
             mounted, address probed and announced: {} without an answer.",
            self.name(heir),
            seconds(time)
        ));
        self.quote_status()?;
        self.tell.prove(
            by.contains("arbiter"),
            &format!(
                "{} took over only because the witness said so",
                self.name(heir)
            ),
        );
        self.prove_nothing_is_lost()?;
        Ok(())
    }

    fn bring_it_back(&mut self) -> Result<(), DemoError> {
        self.tell.step("The node returns");
        let (here, back) = (self.active, 1 - self.active);
        let marked = self.cluster.machines[here]
            .node
            .mirror(MIRROR)?
            .marked_bytes;
        self.tell.say(&format!(
            "{} boots. {} has marked the {} that it lacks; nothing else is done:",
            self.name(back),
            self.name(here),
            units::size(marked)
        ));
        for command in ["kagami up", "kagami failover"] {
            let who = self.name(back);
            self.tell.command(&who, command);
        }
        let began = Instant::now();
        self.cluster.boot(back)?;
        self.wait_in_sync()?;
        let time = began.elapsed();
        let group = wait_until(
            &self.name(back),
            "its manager to see the group",
            PATIENCE,
            || {
                let group = self.cluster.report(back)?.groups.into_iter().next()?;
                (group.other_ready == Some(true)).then_some(group)
            },
        )?;
        self.tell.say(&format!(
            "After {} both copies are in sync again, and it could take the group over.",
            seconds(time)
        ));
        self.tell.prove(
            group.current.as_deref() == Some(&self.name(here)),
            &format!("the group stays on {}", self.name(here)),
        );
        self.prove_it_runs_once();
        Ok(())
    }

    fn cut_the_cable(&mut self) -> Result<(), DemoError> {
        self.tell.step("The cable between the nodes is cut");
        let (here, other) = (self.active, 1 - self.active);
        self.tell.say(
            "Both nodes live, reach the witness and the client, and neither hears the other: each could believe \
             to be the last one.",
        );
        let fault = Instant::now();
        let port = self.name(other);
        self.cluster.network.set_cable(&port, false)?;
        let state = self.mirror(here, "permission to go on alone", |state| {
            state.condition == Condition::Alone
        })?;
        self.client.served_after(Instant::now(), PATIENCE)?;
        // The other one misses its heartbeats, and asks to take over.
        wait_until(
            &port,
            "the loss of the other node to be noticed",
            PATIENCE,
            || {
                let nodes = self.cluster.report(other)?.nodes;
                let here = self.cluster.machines[here].name();
                let lost =
                    |node: &NodeReport| node.name == here && node.state == NodeState::Offline;
                nodes.iter().any(lost).then_some(())
            },
        )?;
        let time = self.outage("cable cut", "cable", fault);
        let by = permission(&state);
        let role = self.cluster.machines[other].node.mirror(MIRROR)?.role;
        self.tell.say(&format!(
            "{} asked the witness first and goes on, with permission from: {by}. The client waited for {}.",
            self.name(here),
            seconds(time)
        ));
        let words = format!(
            "{} goes on by the witness' word, and {} is not Primary",
            self.name(here),
            self.name(other)
        );
        self.tell
            .prove(by.contains("arbiter") && role == Role::Secondary, &words);
        self.prove_it_runs_once();
        let mended = Instant::now();
        self.cluster.network.set_cable(&port, true)?;
        self.wait_in_sync()?;
        self.tell.say(&format!(
            "The cable is mended, and {} later both copies are in sync.",
            seconds(mended.elapsed())
        ));
        Ok(())
    }

    fn end(mut self) -> Result<Ending, DemoError> {
        self.tell.step("The end: both copies are compared");
        let (acknowledged, missing) = self.prove_nothing_is_lost()?;
        self.client.stop();
        self.tell
            .command(&self.name(self.active), "kagami cluster stop");
        let active = &self.cluster.machines[self.active].node;
        active.run(&["cluster", "stop", "--yes"])?;
        let mut copies = Vec::new();
        for machine in &mut self.cluster.machines {
            self.tell.command(machine.name(), "kagami down");
            machine.stop(PATIENCE)?;
            copies.push(Scratch::backing(&machine.node)?);
        }
        let difference = compare(&copies[0], &copies[1])
            .map_err(DemoError::system("comparing the backing files"))?;
        self.tell.prove(
            difference.is_none(),
            &match difference {
                None => "both copies are the same, byte for byte".to_owned(),
                Some(at) => format!("both copies are the same: they differ at byte {at}"),
            },
        );
        let left = self.cluster.end();
        self.tell.prove(
            left.is_empty(),
            &match &left[..] {
                [] => "every process has ended and every network is removed".to_owned(),
                left => format!("every network is removed: {} are not", left.join(", ")),
            },
        );
        self.tell.step("In short: without an answer");
        for figure in &self.figures {
            self.tell.remember(figure.what, seconds(figure.time), "");
        }
        self.tell.remember(
            "records acknowledged",
            units::count(acknowledged as u64),
            &format!("{missing} of them lost"),
        );
        Ok(Ending {
            acknowledged,
            missing,
            figures: self.figures,
        })
    }
}

/// By whose word a mirror goes on alone.
fn permission(state: &MirrorReport) -> String {
    let alone = state.alone.as_ref();
    let by = alone.and_then(|alone| alone.by.clone());
    by.unwrap_or_else(|| "nobody".to_owned())
}
