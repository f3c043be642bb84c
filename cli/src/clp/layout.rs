//! The layout of clpstat. Scripts cut fields out of it by their columns: the colon stands in column 22
//! (39 with `--long`), the state follows behind a blank in a field of 17, then the comment.

use kagami_failover::control::ClusterReport;
use kagami_failover::control::status::{BeatState, NodeReport, NodeState, RunState, WatchState};

/// The line at the end, behind a blank.
const WIDTH: usize = 69;

/// How names are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Names of up to 33 characters.
    pub long: bool,
    /// Only of the local node.
    pub local: bool,
}

impl Style {
    /// What stands before the colon.
    fn column(self) -> usize {
        if self.long { 38 } else { 21 }
    }
}

/// A line of `=` with a title in it.
pub fn title(words: &str) -> String {
    let bare = WIDTH.saturating_sub(words.len() + 4);
    // 24 before CLUSTER STATUS, 27 after it.
    let before = bare.saturating_sub(3) / 2;
    format!(
        " {}  {words}  {}\n",
        "=".repeat(before),
        "=".repeat(bare - before)
    )
}

/// The line of `=` at the end.
pub fn footer() -> String {
    format!(" {}\n", "=".repeat(WIDTH))
}

fn cut(name: &str, most: usize) -> String {
    name.chars().take(most).collect()
}

fn fields(before: &str, state: &str, comment: &str) -> String {
    let line = format!("{before}: {state:<17}{comment}");
    format!("{}\n", line.trim_end())
}

/// A server or a group: `   *server1 .........: Online           Primary server`
fn dotted(mark: &str, name: &str, state: &str, comment: &str, style: Style) -> String {
    let field = style.column() - mark.len();
    let name = cut(name, field - 1);
    let dots = field - 1 - name.chars().count();
    fields(
        &format!("{mark}{name} {}", ".".repeat(dots)),
        state,
        comment,
    )
}

/// Anything else: `      lankhb1        : Normal           LAN Heartbeat`
fn plain(indent: usize, name: &str, state: &str, comment: &str, style: Style) -> String {
    let field = style.column() - indent;
    let name = cut(name, field);
    fields(
        &format!("{}{name:<field$}", " ".repeat(indent)),
        state,
        comment,
    )
}

/// `online pending` as it is shown: `Online Pending`.
fn capital(words: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        let first = letters.next().map(|c| c.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    };
    words.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// A node's state, as it is shown.
pub fn node_state(node: &NodeReport) -> String {
    capital(node.state.words())
}

/// A group's or resource's.
pub fn run_state(state: RunState) -> String {
    capital(state.words())
}

/// A monitor's.
pub fn watch_state(state: WatchState) -> String {
    match state {
        WatchState::Suspended => "Suspend".to_owned(),
        state => capital(state.words()),
    }
}

/// A heartbeat's.
fn beat_state(state: BeatState) -> String {
    capital(state.words())
}

/// What a heartbeat of this kind is called.
pub fn heartbeat_comment(kind: &str) -> &'static str {
    match kind {
        "lan" => "LAN Heartbeat",
        "serial" => "COM Heartbeat",
        _ => "DISK Heartbeat",
    }
}

fn server_comment(place: usize) -> &'static str {
    match place {
        0 => "Primary server",
        _ => "Secondary server",
    }
}

fn mark(report: &ClusterReport, node: &str) -> &'static str {
    if node == report.local { "   *" } else { "    " }
}

/// `clpstat -s`: everything.
pub fn summary(report: &ClusterReport, style: Style) -> String {
    let mut text = title("CLUSTER STATUS");
    text.push_str(&format!("  Cluster : {}\n  <server>\n", report.cluster));
    for (place, node) in report.nodes.iter().enumerate() {
        if style.local && node.name != report.local {
            continue;
        }
        let state = node_state(node);
        let comment = server_comment(place);
        text.push_str(&dotted(
            mark(report, &node.name),
            &node.name,
            &state,
            comment,
            style,
        ));
        for heartbeat in &report.heartbeats {
            let state = heartbeat.nodes.get(&node.name).copied().unwrap_or_default();
            let comment = heartbeat_comment(&heartbeat.kind);
            text.push_str(&plain(
                6,
                &heartbeat.name,
                &beat_state(state),
                comment,
                style,
            ));
        }
    }
    text.push_str("  <group>\n");
    for group in &report.groups {
        let here = |on: &std::collections::BTreeMap<String, RunState>, all: RunState| {
            if style.local {
                on.get(&report.local).copied().unwrap_or_default()
            } else {
                all
            }
        };
        let state = run_state(here(&group.on, group.state));
        text.push_str(&dotted("    ", &group.name, &state, "", style));
        let current = group.current.as_deref().unwrap_or("");
        text.push_str(&plain(6, "current", current, "", style));
        for resource in &group.resources {
            let state = run_state(here(&resource.on, resource.state));
            text.push_str(&plain(6, &resource.name, &state, "", style));
        }
    }
    text.push_str("  <monitor>\n");
    for monitor in &report.monitors {
        let state = if style.local {
            monitor.on.get(&report.local).copied().unwrap_or_default()
        } else {
            monitor.state
        };
        text.push_str(&plain(4, &monitor.name, &watch_state(state), "", style));
    }
    text.push_str(&footer());
    text
}

/// Both servers, numbered, at the top of a table.
fn servers(report: &ClusterReport) -> String {
    let line = |(place, node): (usize, &NodeReport)| {
        let mark = if node.name == report.local { "*" } else { " " };
        format!("   {mark}server{place} : {}\n", node.name)
    };
    report.nodes.iter().enumerate().map(line).collect()
}

/// A table of (name, a sign for each server).
fn table(
    report: &ClusterReport,
    heading: &str,
    first: &str,
    rows: impl Iterator<Item = (String, Vec<String>)>,
) -> String {
    let mut text = title(heading);
    text.push_str(&format!(
        "  Cluster : {}\n{}\n",
        report.cluster,
        servers(report)
    ));
    let columns: Vec<String> = (0..report.nodes.len())
        .map(|at| format!("server{at}"))
        .collect();
    text.push_str(&format!("   {first:<32}{}\n", columns.join("   ")));
    text.push_str(&format!("   {}\n", "-".repeat(WIDTH - 4)));
    for (name, signs) in rows {
        let signs: String = signs.iter().map(|sign| format!("{sign:<10}")).collect();
        let name = cut(&name, 31);
        text.push_str(&format!("   {name:<32}{}\n", signs.trim_end()));
    }
    text.push_str(&footer());
    text
}

/// `clpstat -g`: where each group is. `o` active, `-` not, `x` failed, `?` not known, `*` on its way.
pub fn groups(report: &ClusterReport) -> String {
    let sign = |state: RunState| match state {
        RunState::Online => "o",
        RunState::Offline => "-",
        RunState::OnlinePending | RunState::OfflinePending => "*",
        RunState::OnlineFailure | RunState::OfflineFailure => "x",
        RunState::Unknown => "?",
    };
    let rows = report.groups.iter().map(|group| {
        let signs = report
            .nodes
            .iter()
            .map(|node| match group.on.get(&node.name) {
                Some(state) => sign(*state).to_owned(),
                None => "?".to_owned(),
            });
        (group.name.clone(), signs.collect())
    });
    table(report, "GROUP STATUS", "group", rows)
}

/// `clpstat -m`: what each monitor sees on each server.
pub fn monitors(report: &ClusterReport) -> String {
    let sign = |state: WatchState| match state {
        WatchState::Normal => "o",
        WatchState::Unused => "-",
        WatchState::Suspended => "s",
        WatchState::Caution => "!",
        WatchState::Error => "x",
        WatchState::Unknown => "?",
    };
    let rows = report.monitors.iter().map(|monitor| {
        let signs = report
            .nodes
            .iter()
            .map(|node| match monitor.on.get(&node.name) {
                Some(state) => sign(*state).to_owned(),
                None => "?".to_owned(),
            });
        let name = format!("{} : {}", monitor.name, watch_state(monitor.state));
        (name, signs.collect())
    });
    table(report, "MONITOR RESOURCE STATUS", "monitor", rows)
}

/// `clpstat -n`: what each server hears.
pub fn heartbeats(report: &ClusterReport) -> String {
    let sign = |state: BeatState| match state {
        BeatState::Normal => "o",
        BeatState::Unused => "-",
        BeatState::Caution | BeatState::Error => "x",
        BeatState::Unknown => "?",
    };
    let mut text = title("HEARTBEAT RESOURCE STATUS");
    text.push_str(&format!(
        "  Cluster : {}\n{}\n",
        report.cluster,
        servers(report)
    ));
    for (at, heartbeat) in report.heartbeats.iter().enumerate() {
        text.push_str(&format!("    HB{at} : {}\n", heartbeat.name));
    }
    for node in &report.nodes {
        let numbers: Vec<String> = (0..report.heartbeats.len())
            .map(|at| at.to_string())
            .collect();
        text.push_str(&format!("\n   [on {} : {}]\n", node.name, node_state(node)));
        text.push_str(&format!(
            "   {:<16}{}\n   {}\n",
            "HB",
            numbers.join(" "),
            "-".repeat(WIDTH - 4)
        ));
        for other in &report.nodes {
            // A server hears itself for as long as it is there.
            let own = if node.state == NodeState::Offline {
                "x"
            } else {
                "o"
            };
            let signs = report.heartbeats.iter().map(|heartbeat| {
                let state = heartbeat.nodes.get(&node.name).copied().unwrap_or_default();
                if other.name == node.name {
                    own
                } else {
                    sign(state)
                }
            });
            let signs: Vec<&str> = signs.collect();
            text.push_str(&format!(
                "   {:<14}: {}\n",
                cut(&other.name, 13),
                signs.join(" ")
            ));
        }
    }
    text.push_str(&footer());
    text
}

#[cfg(test)]
mod tests;
