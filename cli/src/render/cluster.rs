//! `kagami cluster status` and `kagami alerts` for people.

use anstyle::Style;
use kagami_failover::config::Severity;
use kagami_failover::control::status::{
    BeatState, GroupReport, ManagerPhase, MonitorReport, NodeReport, NodeState, RunState,
    WatchState,
};
use kagami_failover::control::{AlertReport, ClusterReport};
use std::collections::BTreeMap;

use super::{BAD, GOOD, LABEL, Look, NAME, WARNING};

/// What is shown.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// Nodes.
    pub nodes: bool,
    /// Heartbeats.
    pub heartbeats: bool,
    /// Groups.
    pub groups: bool,
    /// Monitors.
    pub monitors: bool,
}

/// The whole screen.
pub fn screen(report: &ClusterReport, parts: Parts, look: &Look) -> String {
    let screen = Screen { report, look };
    let mut blocks = Vec::new();
    let mut first = vec![screen.headline()];
    if parts.nodes {
        first.extend(report.nodes.iter().map(|node| screen.node(node)));
    }
    if parts.heartbeats {
        first.extend(screen.heartbeats());
    }
    blocks.push(first);
    if parts.groups {
        blocks.extend(report.groups.iter().map(|group| screen.group(group)));
    }
    if parts.monitors && !report.monitors.is_empty() {
        blocks.push(screen.monitors());
    }
    let blocks: Vec<String> = blocks
        .into_iter()
        .map(|lines| lines.join("\n") + "\n")
        .collect();
    blocks.join("\n")
}

struct Screen<'a> {
    report: &'a ClusterReport,
    look: &'a Look,
}

fn run_style(state: RunState) -> Style {
    match state {
        RunState::Online => GOOD,
        RunState::Offline => Style::new(),
        RunState::OnlinePending | RunState::OfflinePending | RunState::Unknown => WARNING,
        RunState::OnlineFailure | RunState::OfflineFailure => BAD,
    }
}

fn watch_style(state: WatchState) -> Style {
    match state {
        WatchState::Normal => GOOD,
        WatchState::Unused | WatchState::Unknown => Style::new(),
        WatchState::Suspended | WatchState::Caution => WARNING,
        WatchState::Error => BAD,
    }
}

/// `normal on alpha, unused on beta`
fn by_node<T: std::fmt::Display>(states: &BTreeMap<String, T>) -> String {
    let all: Vec<String> = states
        .iter()
        .map(|(node, state)| format!("{state} on {node}"))
        .collect();
    all.join(", ")
}

impl Screen<'_> {
    fn label(&self, word: &str) -> String {
        self.look.paint(LABEL, &format!("{word:<8}"))
    }

    /// `shop   revision 7   arbiter witness gamma`
    fn headline(&self) -> String {
        let report = self.report;
        let mut parts = vec![
            self.look.paint(NAME, &report.cluster),
            format!("revision {}", report.revision),
        ];
        parts.push(match (report.arbiter.as_str(), report.arbiter_answers) {
            ("none", _) => "no arbiter".to_owned(),
            (arbiter, Some(false)) => self
                .look
                .paint(WARNING, &format!("arbiter {arbiter} DOES NOT ANSWER")),
            (arbiter, _) => format!("arbiter {arbiter}"),
        });
        if report.suspended {
            parts.push(self.look.paint(
                WARNING,
                "SUSPENDED: nobody acts; `kagami cluster resume` ends it",
            ));
        }
        parts.join("   ")
    }

    fn node(&self, node: &NodeReport) -> String {
        let style = match node.state {
            NodeState::Online => GOOD,
            NodeState::Caution | NodeState::Unknown => WARNING,
            NodeState::Offline => BAD,
        };
        let names = self.report.nodes.iter().map(|node| node.name.len());
        let width = names.max().unwrap_or(0);
        let mut facts = Vec::new();
        if node.name == self.report.local {
            facts.push("this node".to_owned());
        }
        match node.phase {
            ManagerPhase::Running | ManagerPhase::Unknown => {}
            phase => facts.push(format!("its manager: {phase}")),
        }
        if !node.answers && node.state != NodeState::Offline {
            facts.push("does not answer questions".to_owned());
        }
        if let Some(revision) = node.revision.filter(|one| *one != self.report.revision) {
            facts.push(format!(
                "has REVISION {revision} of the configuration: push one to both"
            ));
        }
        let state = self.look.paint(style, &format!("{:<8}", node.state));
        let line = format!(
            "  {}{:<width$}   {state}   {}",
            self.label("node"),
            node.name,
            facts.join(", ")
        );
        line.trim_end().to_owned()
    }

    fn heartbeats(&self) -> Vec<String> {
        let names = self.report.heartbeats.iter().map(|one| one.name.len());
        let width = names.max().unwrap_or(0);
        let line = |one: &kagami_failover::control::status::HeartbeatReport| {
            let worst = one.nodes.values().any(|state| *state == BeatState::Error);
            let bad = one.nodes.values().any(|state| *state == BeatState::Caution);
            let style = if worst {
                BAD
            } else if bad {
                WARNING
            } else {
                Style::new()
            };
            let heard = self.look.paint(style, &by_node(&one.nodes));
            format!(
                "  {}{:<width$}   {:<6}   {heard}",
                self.label("beat"),
                one.name,
                one.kind
            )
        };
        self.report.heartbeats.iter().map(line).collect()
    }

    fn group(&self, group: &GroupReport) -> Vec<String> {
        let at = group.current.as_deref().map(|node| format!(" on {node}"));
        let at = at.unwrap_or_default();
        let mut parts = vec![
            self.look.paint(NAME, &group.name),
            self.look
                .paint(run_style(group.state), &format!("{}{at}", group.state)),
        ];
        if group.frozen {
            parts.push(
                self.look
                    .paint(BAD, "FROZEN: its lease has ended, permission is asked for"),
            );
        }
        match (group.wanted, group.current.as_deref()) {
            (true, None) => parts.push(format!("should run on {}", group.owner)),
            (true, Some(at)) if at != group.owner => {
                parts.push(format!("is to run on {}", group.owner))
            }
            _ => {}
        }
        let other = group
            .nodes
            .iter()
            .find(|node| Some(*node) != group.current.as_ref());
        if let (RunState::Online, Some(other)) = (group.state, other) {
            parts.push(match group.other_ready {
                Some(true) => format!("{other} can take it over"),
                Some(false) => {
                    let words = format!("{other} can't take it over: its copy is not in sync");
                    self.look.paint(WARNING, &words)
                }
                None => self.look.paint(WARNING, &format!("{other} is not heard")),
            });
        }
        let failovers: u32 = group.failovers.values().sum();
        if failovers > 0 {
            parts.push(format!("failed over {failovers} times"));
        }
        let mut lines = vec![parts.join("   ")];
        let width = group
            .resources
            .iter()
            .map(|r| r.name.len())
            .max()
            .unwrap_or(0);
        for resource in &group.resources {
            let state = self
                .look
                .paint(run_style(resource.state), resource.state.words());
            lines.push(format!(
                "  {:<width$}   {:<11}   {state}",
                resource.name, resource.kind
            ));
        }
        lines
    }

    fn monitors(&self) -> Vec<String> {
        let monitors = &self.report.monitors;
        let width = monitors.iter().map(|one| one.name.len()).max().unwrap_or(0);
        let mut lines = vec![self.look.paint(NAME, "monitors")];
        for one in monitors {
            lines.push(self.monitor(one, width));
        }
        lines
    }

    fn monitor(&self, one: &MonitorReport, width: usize) -> String {
        let state = self
            .look
            .paint(watch_style(one.state), &format!("{:<9}", one.state));
        let mut text = format!(
            "  {:<width$}   {:<11}   {state}   {}",
            one.name,
            one.kind,
            by_node(&one.on)
        );
        if one.made_to_fail {
            text.push_str("   made to fail: `kagami monitor fail ");
            text.push_str(&one.name);
            text.push_str(" --clear` ends it");
        }
        text
    }
}

/// A line of `kagami alerts`, without its end.
pub fn alert_line(alert: &AlertReport, look: &Look) -> String {
    // The date is always there: alerts are read days later.
    let at = i64::try_from(alert.time_ms).ok();
    let at = at.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let time = at.map_or_else(
        || "a time out of range".to_owned(),
        |at| {
            at.to_zoned(look.zone.clone())
                .strftime("%Y-%m-%d %H:%M:%S%.3f")
                .to_string()
        },
    );
    let style = match alert.severity {
        Severity::Info => Style::new(),
        Severity::Warning => WARNING,
        Severity::Error => BAD,
    };
    let severity = look.paint(style, &format!("{:<7}", alert.severity));
    let mut text = format!(
        "{time}  {}  {severity}  {}: {}",
        alert.node,
        look.paint(NAME, &alert.object()),
        // Words of a script may hold anything; an alert is a line.
        alert.what.replace(char::is_control, " ")
    );
    if !alert.cause.is_empty() {
        text.push_str(": ");
        text.push_str(&alert.cause.replace(char::is_control, " "));
    }
    text
}
