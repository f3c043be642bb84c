//! `kagami status` for people: all that matters on one screen, in words.

use anstyle::Style;

use super::units::{ago, count, latency, left, moment, percent, rate, size};
use super::{BAD, GOOD, LABEL, Look, NAME, WARNING};
use crate::control::condition::left_by_itself;
use crate::control::report::{
    Condition, Connection, DeviceState, Disk, MirrorReport, Refusal, Replication, Role, SideReport,
    StatusReport,
};

/// The whole screen.
pub fn status(report: &StatusReport, look: &Look) -> String {
    if report.mirrors.is_empty() {
        return format!(
            "{}   no mirrors\n{}make one with `kagami init NAME --size 20G`\n",
            look.paint(NAME, &report.node.name),
            label("next", look)
        );
    }
    report
        .mirrors
        .iter()
        .map(|mirror| {
            Screen {
                report,
                mirror,
                look,
            }
            .lines()
        })
        .collect::<Vec<_>>()
        .join("\n")
}

fn label(word: &str, look: &Look) -> String {
    format!("  {}", look.paint(LABEL, &format!("{word:<8}")))
}

struct Screen<'a> {
    report: &'a StatusReport,
    mirror: &'a MirrorReport,
    look: &'a Look,
}

impl Screen<'_> {
    fn lines(&self) -> String {
        let mut lines = vec![self.headline()];
        if let Some(fault) = self
            .mirror
            .fault
            .as_ref()
            .or(self.mirror.disk_fault.as_ref())
        {
            lines.push(self.labelled("fault", fault));
        }
        if self.forked() {
            lines.extend(self.sides());
        } else {
            lines.push(self.labelled("here", &self.here()));
            if self.mirror.peer.is_some() {
                lines.push(self.labelled("there", &self.there()));
            }
            if let Some(verdict) = self.refusal() {
                lines.push(self.labelled("verdict", &verdict));
                if self
                    .mirror
                    .verdict
                    .as_ref()
                    .is_some_and(|v| v.here.is_some())
                {
                    lines.extend(self.sides());
                }
            }
        }
        lines.extend(self.served_by_peer());
        lines.extend(self.device());
        if let Some(held) = &self.mirror.held {
            lines.push(self.labelled("held", &self.held(held)));
        }
        lines.extend(self.held_back());
        lines.extend(self.arbiter_fault());
        lines.extend(self.progress());
        lines.extend(self.marked());
        lines.extend(self.load());
        for next in &self.mirror.next {
            lines.push(self.labelled("next", next));
        }
        lines.join("\n") + "\n"
    }

    fn labelled(&self, word: &str, text: &str) -> String {
        format!("{}{text}", label(word, self.look))
    }

    fn peer(&self) -> &str {
        self.mirror
            .peer
            .as_ref()
            .map_or("the peer", |peer| peer.name.as_str())
    }

    fn moment(&self, ms: u64) -> String {
        moment(ms, self.report.time_ms, &self.look.zone)
    }

    /// The peer was met, and the copies are not brought together.
    fn is_refused(&self) -> bool {
        let verdict = self.mirror.verdict.as_ref();
        verdict.is_some_and(|verdict| verdict.refused.is_some())
    }

    /// A Secondary without a disk has nothing to say to the peer, and does not look for it.
    fn stays_away(&self) -> bool {
        let lost = matches!(self.mirror.disk, Disk::Diskless | Disk::Failed);
        lost && self.mirror.role == Role::Secondary
    }

    /// The peer said that it leaves: whether it can be reached is not known.
    fn has_left(&self) -> bool {
        left_by_itself(self.mirror)
    }

    fn forked(&self) -> bool {
        self.mirror.condition == Condition::SplitBrain
    }

    /// `pg   20.0 GiB   in sync   Primary here, Secondary on beta   generation 42`
    fn headline(&self) -> String {
        let mirror = self.mirror;
        let (style, words) = self.condition();
        let mut parts = vec![
            self.look.paint(NAME, &mirror.name),
            size(mirror.size_bytes),
            self.look.paint(style, &words),
        ];
        if self.forked() {
            parts.push(match mirror.connection {
                Connection::Connected => "connected, nothing is exchanged".to_owned(),
                _ => "not connected".to_owned(),
            });
            return parts.join("   ");
        }
        let is_open = mirror.fault.is_none();
        if is_open {
            parts.push(self.roles());
        }
        match &mirror.generation {
            Some(generation) => parts.push(format!("generation {}", generation.number)),
            None if is_open => parts.push("never written".to_owned()),
            None => {}
        }
        parts.join("   ")
    }

    fn roles(&self) -> String {
        let here = format!("{} here", self.mirror.role);
        match (&self.mirror.peer, self.mirror.connection) {
            (None, _) => here,
            (Some(peer), Connection::Connected) => match peer.role {
                Some(role) => format!("{here}, {role} on {}", peer.name),
                None => here,
            },
            (Some(peer), Connection::Connecting)
                if !self.is_refused() && !self.stays_away() && !self.has_left() =>
            {
                format!("{here}, {} not reachable", peer.name)
            }
            (Some(peer), _) => {
                format!("{here}, not connected to {}", peer.name)
            }
        }
    }

    fn condition(&self) -> (Style, String) {
        let mirror = self.mirror;
        let target = match mirror.replication {
            Replication::SyncTarget => "this node".to_owned(),
            _ => self.peer().to_owned(),
        };
        let since = |ms: u64| self.moment(ms);
        match mirror.condition {
            Condition::InSync if mirror.marked_bytes > 0 => {
                (WARNING, "in sync, with blocks marked".to_owned())
            }
            Condition::InSync if mirror.arbiter_fault.is_some() => {
                (WARNING, "in sync, without its arbiter".to_owned())
            }
            Condition::InSync => (GOOD, "in sync".to_owned()),
            Condition::Verifying => (GOOD, "in sync, verifying".to_owned()),
            Condition::Resynchronising => (WARNING, format!("resynchronising {target}")),
            Condition::Paused => (
                WARNING,
                match mirror.replication {
                    Replication::SyncSource | Replication::SyncTarget => {
                        format!("resynchronisation of {target} PAUSED")
                    }
                    _ => "resynchronisation PAUSED".to_owned(),
                },
            ),
            Condition::Alone => (
                WARNING,
                match &mirror.alone {
                    Some(alone) => format!("ALONE since {}", since(alone.since_ms)),
                    None => "ALONE".to_owned(),
                },
            ),
            Condition::OneCopy => (WARNING, "ONE COPY".to_owned()),
            Condition::Meeting => (WARNING, format!("connected to {}, agreeing", self.peer())),
            Condition::Connecting => (WARNING, "CONNECTING".to_owned()),
            Condition::StandAlone => (WARNING, "DISCONNECTED by an operator".to_owned()),
            Condition::Held => (BAD, "I/O HELD".to_owned()),
            Condition::Unusable => (
                BAD,
                match mirror.disk {
                    Disk::Inconsistent => "NOT USABLE HERE: Inconsistent".to_owned(),
                    disk => format!("NOT USABLE HERE: {disk}"),
                },
            ),
            Condition::Refused => (BAD, "REFUSED".to_owned()),
            Condition::BothStale => (BAD, "BOTH STALE".to_owned()),
            Condition::NotPaired => (WARNING, "not paired".to_owned()),
            Condition::Opening => (WARNING, "OPENING".to_owned()),
            Condition::NotOpened => (BAD, "NOT OPENED".to_owned()),
            Condition::SplitBrain => (BAD, "SPLIT BRAIN".to_owned()),
        }
    }

    /// `alpha   UpToDate   /dev/vg0/pg      /dev/nbd0`
    fn here(&self) -> String {
        let mirror = self.mirror;
        let device = mirror.device.as_ref().map(|device| {
            let mut words = vec![device.path.clone()];
            words.extend(device.mounted.iter().cloned());
            words.join(", ")
        });
        // Where the kernel has it, nobody looks for the socket.
        let served = match device {
            Some(device) => format!("   {device}"),
            None if mirror.served_at.is_empty() => String::new(),
            None => format!("   {}", mirror.served_at.join(", ")),
        };
        let (name, place) = self.columns(&mirror.backing);
        format!("{name}   {:<12}   {place}{served}", mirror.disk.word())
            .trim_end()
            .to_owned()
    }

    fn there(&self) -> String {
        let Some(peer) = &self.mirror.peer else {
            return String::new();
        };
        let address = peer.address.as_deref().unwrap_or("");
        let (_, place) = self.columns(address);
        let width = self.name_width();
        format!(
            "{:<width$}   {:<12}   {place}   {}",
            peer.name,
            peer.disk.word(),
            self.connection()
        )
    }

    fn name_width(&self) -> usize {
        let peer = self.mirror.peer.as_ref().map_or(0, |peer| peer.name.len());
        self.report.node.name.len().max(peer)
    }

    /// This node's name and `place`, each as wide as the wider of both lines.
    fn columns(&self, place: &str) -> (String, String) {
        let address = self
            .mirror
            .peer
            .as_ref()
            .and_then(|peer| peer.address.as_ref());
        let width = self
            .mirror
            .backing
            .len()
            .max(address.map_or(0, String::len));
        let names = self.name_width();
        (
            format!("{:<names$}", self.report.node.name),
            format!("{place:<width$}"),
        )
    }

    fn connection(&self) -> String {
        let mirror = self.mirror;
        let seconds = self
            .report
            .time_ms
            .saturating_sub(mirror.connection_since_ms)
            / 1000;
        match mirror.connection {
            Connection::Connected => {
                let round_trip = mirror
                    .peer
                    .as_ref()
                    .and_then(|peer| peer.round_trip_ns)
                    .map_or_else(String::new, |ns| format!(", round trip {}", latency(ns)));
                format!("connected {}{round_trip}", ago(seconds))
            }
            // Between two attempts the daemon gives StandAlone.
            Connection::Connecting | Connection::StandAlone if self.is_refused() => {
                format!("refused for {}", ago(seconds))
            }
            Connection::Connecting if self.stays_away() => {
                "not looked for: no disk here".to_owned()
            }
            Connection::Connecting if self.has_left() => {
                format!("has left, not connected for {}", ago(seconds))
            }
            Connection::Connecting => format!("not reachable for {}", ago(seconds)),
            Connection::StandAlone => format!(
                "not looked for since {}",
                self.moment(mirror.connection_since_ms)
            ),
        }
    }

    /// What a refused handshake found.
    fn refusal(&self) -> Option<String> {
        let verdict = self.mirror.verdict.as_ref()?;
        verdict.refused?;
        Some(format!(
            "refused: {} (rule {} {})",
            verdict.outcome, verdict.row, verdict.rule
        ))
    }

    /// Both copies as the handshake saw them.
    fn sides(&self) -> Vec<String> {
        let Some(verdict) = &self.mirror.verdict else {
            return Vec::new();
        };
        let fork = verdict.refused == Some(Refusal::SplitBrain);
        let width = self.name_width();
        let line = |word, name: &str, side: &Option<SideReport>| {
            side.as_ref()
                .map(|side| self.labelled(word, &format!("{name:<width$} {}", self.side(side))))
        };
        if fork {
            [
                line("here", &self.report.node.name, &verdict.here),
                line("there", self.peer(), &verdict.there),
            ]
            .into_iter()
            .flatten()
            .collect()
        } else {
            let spell = |side: &Option<SideReport>| {
                side.as_ref()
                    .and_then(|side| side.generation.as_ref())
                    .map_or_else(
                        || "never written".to_owned(),
                        |g| format!("generation {} ({})", g.number, g.tag),
                    )
            };
            vec![self.labelled(
                "",
                &format!(
                    "compared: here {}, there {}",
                    spell(&verdict.here),
                    spell(&verdict.there)
                ),
            )]
        }
    }

    /// `went on as generation 43 (14:02:11 to 14:09:30, 212 MiB written)`
    fn side(&self, side: &SideReport) -> String {
        let generation = side.generation.as_ref().map_or_else(
            || "was never written".to_owned(),
            |g| format!("went on as generation {}", g.number),
        );
        let mut facts = Vec::new();
        match (side.from_ms, side.to_ms) {
            (Some(from), Some(to)) => {
                facts.push(format!("{} to {}", self.moment(from), self.moment(to)));
            }
            (Some(from), None) => facts.push(format!("since {}", self.moment(from))),
            (None, Some(to)) => facts.push(format!("until {}", self.moment(to))),
            (None, None) => {}
        }
        if let Some(bytes) = side.written_bytes {
            facts.push(format!("{} written", size(bytes)));
        }
        if facts.is_empty() {
            generation
        } else {
            format!("{generation} ({})", facts.join(", "))
        }
    }

    /// `beta answers every request until this copy is in sync`
    fn served_by_peer(&self) -> Option<String> {
        let guest = self.mirror.served_by_peer && self.mirror.disk == Disk::Inconsistent;
        let peer = self.peer();
        guest.then(|| {
            let words = format!(
                "{peer} answers every request until this copy is in sync; without {peer} they wait"
            );
            self.labelled("served", &words)
        })
    }

    fn held(&self, why: &str) -> String {
        let requests = match self.mirror.in_flight {
            0 => "requests wait".to_owned(),
            1 => "1 request waits".to_owned(),
            n => format!("{} requests wait", count(n)),
        };
        format!("{requests}: {why}")
    }

    /// Why the arbiter is not asked, unless that is what requests wait for.
    fn held_back(&self) -> Option<String> {
        let why = self.mirror.held_back.as_ref()?;
        let is_told = |held: &String| held.contains(why.as_str());
        (!self.mirror.held.as_ref().is_some_and(is_told)).then(|| self.labelled("waits", why))
    }

    /// `witness1: not reached since 14:02:11: no answer in time`, unless that is what requests wait for.
    fn arbiter_fault(&self) -> Option<String> {
        let fault = self.mirror.arbiter_fault.as_ref()?;
        let is_told = |held: &String| held.contains(fault.why.as_str());
        if self.mirror.held.as_ref().is_some_and(is_told) {
            return None;
        }
        let name = self.mirror.arbiter.as_deref().unwrap_or("the arbiter");
        // Most reasons begin with its kind and name.
        let why = match fault.why.split_once(": ") {
            Some((who, why)) if who.ends_with(&format!(" {name}")) => why,
            _ => fault.why.as_str(),
        };
        let what = if fault.refused {
            "refuses"
        } else {
            "not reached"
        };
        let since = self.moment(fault.since_ms);
        Some(self.labelled("arbiter", &format!("{name}: {what} since {since}: {why}")))
    }

    fn progress(&self) -> Vec<String> {
        let Some(progress) = &self.mirror.progress else {
            return Vec::new();
        };
        let verifying = matches!(
            self.mirror.replication,
            Replication::VerifySource | Replication::VerifyTarget
        );
        let mut text = format!(
            "{} of {}{}",
            percent(progress.done_bytes, progress.total_bytes),
            size(progress.total_bytes),
            if verifying { "" } else { " marked" }
        );
        if progress.paused || self.mirror.condition == Condition::Paused {
            text.push_str("   paused");
        } else {
            text.push_str(&format!("   {}", rate(progress.rate as f64)));
            text.push_str(&match progress.seconds_left {
                Some(seconds) => format!("   {} left", left(seconds)),
                None => "   time left unknown".to_owned(),
            });
        }
        if verifying {
            text.push_str(&match progress.different_bytes {
                0 => "   no difference so far".to_owned(),
                bytes => format!("   {} differ", size(bytes)),
            });
        }
        vec![self.labelled(if verifying { "verify" } else { "resync" }, &text)]
    }

    /// A device of the kernel that is not served.
    fn device(&self) -> Vec<String> {
        let name = &self.mirror.name;
        let Some(device) = &self.mirror.device else {
            return Vec::new();
        };
        let why = device.why.as_deref().unwrap_or("not known");
        match device.state {
            DeviceState::Attached => Vec::new(),
            DeviceState::Waiting => {
                let text = format!("{} waits, and its requests with it: {why}", device.path);
                vec![self.labelled("device", &text)]
            }
            DeviceState::Stale => vec![
                self.labelled("device", &format!("{} is STALE: {why}", device.path)),
                self.labelled(
                    "next",
                    &format!(
                        "end who uses {} (`umount -l`), then `kagami detach {name} --force`",
                        device.path
                    ),
                ),
            ],
        }
    }

    /// What the peer lacks, while it is away; what may differ though both are in sync.
    fn marked(&self) -> Vec<String> {
        let mirror = self.mirror;
        if mirror.condition == Condition::InSync && mirror.marked_bytes > 0 {
            let text = format!(
                "{} ({}) in which the copies may differ",
                size(mirror.marked_bytes),
                percent(mirror.marked_bytes, mirror.size_bytes),
            );
            return vec![self.labelled("marked", &text)];
        }
        // Nobody lacks anything where nobody else is.
        let away =
            mirror.peer.is_some() && mirror.connection != Connection::Connected && !self.forked();
        if !away || (mirror.marked_bytes == 0 && mirror.condition != Condition::Alone) {
            return Vec::new();
        }
        let (who, lacks) = match (mirror.condition, mirror.disk) {
            (Condition::Alone, _) => (self.peer(), "lacks"),
            // A target that lost its source.
            (_, Disk::Inconsistent) => ("this copy", "lacks"),
            _ => (self.peer(), "may lack"),
        };
        let mut text = format!(
            "{} ({}) that {who} {lacks}",
            size(mirror.marked_bytes),
            percent(mirror.marked_bytes, mirror.size_bytes),
        );
        if mirror.role == Role::Primary && mirror.condition == Condition::Alone {
            text.push_str("; writes go on");
            if let Some(by) = mirror.alone.as_ref().and_then(|alone| alone.by.as_ref()) {
                match (&mirror.arbiter, by.as_str()) {
                    (Some(arbiter), "arbiter") => {
                        text.push_str(&format!(", permission from arbiter {arbiter}"));
                    }
                    (_, by) => text.push_str(&format!(", permission: {by}")),
                }
            }
        }
        vec![self.labelled("marked", &text)]
    }

    fn load(&self) -> Option<String> {
        let mirror = self.mirror;
        if mirror.role != Role::Primary {
            return None;
        }
        let load = mirror.load.as_ref()?;
        let mut parts = vec![format!(
            "{}/s, {}",
            count(load.writes_per_second.round() as u64),
            rate(load.write_bytes_per_second)
        )];
        match (load.write_p50_ns, load.write_p99_ns, load.write_mean_ns) {
            (Some(p50), Some(p99), _) => {
                parts.push(format!("p50 {}, p99 {}", latency(p50), latency(p99)));
            }
            (_, _, Some(mean)) => parts.push(format!("mean {}", latency(mean))),
            _ => {}
        }
        parts.push(format!("protocol {}", mirror.protocol));
        let mut line = self.labelled("writes", &parts.join("   "));
        if load.reads_per_second >= 0.5 {
            line.push('\n');
            line.push_str(&self.labelled(
                "reads",
                &format!(
                    "{}/s, {}",
                    count(load.reads_per_second.round() as u64),
                    rate(load.read_bytes_per_second)
                ),
            ));
        }
        Some(line)
    }
}
