//! What a seed draws: a configuration, times, and how often what breaks.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use kagami_failover::config::Cluster;

use crate::sim::rng::Rng;

/// What a seed draws.
#[derive(Clone, Debug)]
pub struct Options {
    pub cluster: Arc<Cluster>,
    /// Nothing but a fence script decides who goes on, and no group has a mirror.
    pub fenced: bool,
    /// Nor is there a fence script: an operator's word decides.
    pub by_hand: bool,
    /// The mirror link's time-out, in milliseconds.
    pub link_timeout: u64,
    /// How long a guard waits for permission after a lease's end.
    pub margin: u64,
    /// Mean time between faults; 0: none.
    pub fault_every: u64,
    /// Mean time between an operator's commands; 0: none.
    pub command_every: u64,
    /// Activations that fail, in a thousand.
    pub start_fails: u64,
    /// Deactivations that fail, in a thousand.
    pub stop_fails: u64,
    /// Operations that hang, in a thousand.
    pub hangs: u64,
    /// Writes of the manager's state that fail, in a thousand.
    pub persist_fails: u64,
    /// How long things break.
    pub lasts: u64,
}

impl Options {
    pub fn draw(rng: &mut Rng) -> Self {
        let often = |rng: &mut Rng, percent: u64, most: u64| {
            if rng.percent(percent) {
                rng.between(1, most)
            } else {
                0
            }
        };
        let fenced = rng.one_in(6);
        let by_hand = fenced && rng.one_in(3);
        let cluster = Arc::new(cluster(rng, fenced, by_hand));
        let margin = rng.between(200, 1000);
        Self {
            cluster,
            fenced,
            by_hand,
            link_timeout: rng.between(500, 3000),
            margin,
            fault_every: if rng.percent(90) {
                rng.between(2000, 40_000)
            } else {
                0
            },
            command_every: if by_hand {
                rng.between(1000, 20_000)
            } else if rng.percent(60) {
                rng.between(3000, 60_000)
            } else {
                0
            },
            start_fails: often(rng, 50, 400),
            stop_fails: often(rng, 25, 100),
            hangs: often(rng, 25, 50),
            persist_fails: often(rng, 15, 50),
            lasts: rng.between(60_000, 400_000),
        }
    }
}

/// The cluster's file, as an operator could have written it.
fn cluster(rng: &mut Rng, fenced: bool, by_hand: bool) -> Cluster {
    let mut text = String::new();
    let wait = rng.between(5, 60);
    let stop_bound = rng.between(10, 60);
    let arbiter = if by_hand {
        "kind = \"none\""
    } else if fenced {
        "kind = \"none\"\n[fence]\nscript = \"/f\"\ntimeout = \"5s\""
    } else {
        "kind = \"witness\"\nname = \"w\""
    };
    let _ = write!(
        text,
        "[cluster]\nname = \"sim\"\nrevision = 1\nnodes = [\"a\", \"b\"]\nwait-for-node = \"{wait}s\"\n\
         stop-bound = \"{stop_bound}s\"\nclear-after = \"300d\"\n\
         [arbiter]\n{arbiter}\n"
    );
    for heartbeat in 0..rng.between(1, 2) {
        let _ = write!(
            text,
            "[heartbeat.h{heartbeat}]\ntype = \"serial\"\npriority = {heartbeat}\ntimeout = \"2s\"\n\
             devices = {{ a = \"/dev/ttyS{heartbeat}\", b = \"/dev/ttyS{heartbeat}\" }}\n"
        );
    }
    if rng.one_in(4) {
        text += "[preaction]\nscript = \"/pre\"\ntimeout = \"5s\"\n";
    }
    let groups = rng.between(1, 2);
    for group in 0..groups {
        let nodes = rng.pick(&["\"a\", \"b\"", "\"b\", \"a\""]);
        let failback = rng.pick(&["manual", "manual", "automatic"]);
        let startup = rng.pick(&["automatic", "automatic", "automatic", "manual"]);
        let _ = write!(
            text,
            "[group.g{group}]\nnodes = [{nodes}]\nfailback = \"{failback}\"\nstartup = \"{startup}\"\n"
        );
        if by_hand {
            text += "failover = \"manual\"\n";
        }
        if group == 1 && rng.one_in(if by_hand { 1 } else { 3 }) {
            text += "wait-for = [\"g0\"]\n";
            if rng.coin() {
                let _ = writeln!(text, "wait-timeout = \"{}s\"", rng.between(5, 90));
            }
        }
        let thresholds = |rng: &mut Rng| {
            format!(
                "retries = {}\nretry-pause = \"{}s\"\nfailovers = {}\nfinal = \"{}\"\nstop-retries = {}\nstop-final = \"{}\"\n",
                rng.below(3),
                rng.below(6),
                rng.below(3),
                rng.pick(&[
                    "nothing",
                    "nothing",
                    "activate-next",
                    "stop-group",
                    "reboot"
                ]),
                rng.below(3),
                rng.pick(&["shutdown", "shutdown", "nothing", "reboot"]),
            )
        };
        let data = if fenced {
            "type = \"exec\"\nstart = \"/s\"\nstop = \"/t\"\nstart-timeout = \"8s\"\nstop-timeout = \"6s\"".to_owned()
        } else {
            format!(
                "type = \"mirror\"\nmirror = \"m{group}\"\nmount-timeout = \"4s\"\nfsck-timeout = \"4s\"\n\
                 unmount-timeout = \"3s\"\nunmount-retries = 1\nmount-retries = 0"
            )
        };
        let thresholds_of_data = thresholds(rng);
        let _ = write!(
            text,
            "[group.g{group}.resource.data]\n{data}\n{thresholds_of_data}"
        );
        let _ = write!(
            text,
            "[group.g{group}.resource.addr]\ntype = \"floating-ip\"\naddress = \"10.0.0.{}/24\"\ntimeout = \"6s\"\n\
             depends = [\"data\"]\n{}",
            10 + group,
            thresholds(rng)
        );
        if rng.percent(70) {
            let depends = rng.pick(&["\"addr\"", "\"data\"", "\"data\", \"addr\""]);
            let _ = write!(
                text,
                "[group.g{group}.resource.serv]\ntype = \"exec\"\nstart = \"/s\"\nstop = \"/t\"\n\
                 start-timeout = \"10s\"\nstop-timeout = \"10s\"\ndepends = [{depends}]\n{}",
                thresholds(rng)
            );
        }
        let target = rng.pick(&["", "/data", "/addr"]);
        let _ = write!(
            text,
            "[monitor.m{group}]\ntype = \"script\"\nprobe = \"/p\"\ntarget = \"g{group}{target}\"\n\
             interval = \"{}s\"\ntimeout = \"{}s\"\nretries = {}\nreactivations = {}\nfailovers = {}\n\
             final = \"{}\"\nclear-after = \"300d\"\n",
            rng.between(1, 10),
            rng.between(2, 10),
            rng.below(3),
            rng.below(3),
            rng.below(2),
            rng.pick(&["nothing", "stop-group", "reboot", "stop-manager"]),
        );
        if rng.percent(70) {
            let _ = writeln!(text, "active = \"g{group}/addr\"");
        }
        if rng.one_in(4) {
            let _ = write!(
                text,
                "script = \"/r\"\nscript-runs = {}\n",
                rng.between(1, 2)
            );
        }
        if rng.one_in(4) {
            text += "no-retry-after-timeout = true\n";
        }
        if rng.one_in(4) {
            text += "final-needs-other-node = true\n";
        }
    }
    match Cluster::parse(Path::new("cluster.toml"), &text) {
        Ok(cluster) => cluster,
        Err(error) => panic!("a drawn configuration is refused: {error}\n{text}"),
    }
}
