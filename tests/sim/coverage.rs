//! What the seeds reached: the cells of the handshake's table, and each pair of a stand and an
//! event.
//!
//! A *stand* is [`Situation`] without permissions and procedures: role, copy, and what there is
//! with the peer, in two letters. [`CAN_BE`] says which events seeds are known to bring about in which
//! stand; [`report`] compares it with what was reached. What is reached and not in the table is told
//! too: the table is then to be mended. Of the other pairs some have a directed test (tests/directed), some are
//! impossible, for a reason that `impossible` gives (a run that reaches such a pair has failed). A test lets there be no
//! others.

use std::collections::{BTreeMap, BTreeSet};

use kagami_replicator::core::decide::{Strategy, Verdict};
use kagami_replicator::core::situation::{Situation, With, Worth};

use super::check::Violation;
use super::impossible::why_impossible;
use super::stats::Stats;

/// The stands, by role and copy (P: Primary; D: Primary whose disk is gone; S: Secondary; B:
/// Secondary, Inconsistent or Outdated; G: Secondary whose disk is gone) and by what there is
/// with the peer (n: no session; m: handshake; i: in sync; s: source; f: source, frozen for its
/// last step; t: target; v: one of both has no disk).
pub const STANDS: &str = "Pn Pm Pi Ps Pf Pt Pv Dn Dm Dv Sn Sm Si Ss Sf St Sv Bn Bm Bt Bv Gn Gm Gv";

/// Which events can come in which stands. `*`: in all; `*-`: in all that have a session.
///
/// Not here: events of a session or an attempt that is over, which can come at any time, and
/// random tags.
const CAN_BE: &[(&str, &str)] = &[
    (
        "arbiter: late answer",
        "Pn Pm Pi Ps Pf Pt Pv Dn Dm Dv Sn Sm Si Ss Sf St Sv Bn Bm Bt Bv Gn Gm Gv",
    ),
    ("arbiter: not ours", "Pn Pm Pi Ps Sn Si Sv"),
    ("arbiter: register", "Pn Pm Pi Ps Pf Pv Sn Sm Si Ss Sf Sv"),
    ("arbiter: swapped", "Pn Pm Pi Ps Sn Sm Si Sv"),
    ("arbiter: unreachable", "Pn Pm Pi Ps Pf Sn Sm Si Ss Sv"),
    ("command: connect", "*"),
    ("command: demote", "*"),
    ("command: demote --force", "*"),
    ("command: disconnect", "*"),
    ("command: down", "*"),
    ("command: invalidate", "*"),
    ("command: pause-sync", "*"),
    ("command: promote", "*"),
    ("command: promote --force", "*"),
    ("command: reload", "*"),
    ("command: resume-sync", "*"),
    ("command: resync", "*"),
    ("command: set peer", "*"),
    ("command: verify", "*"),
    (
        "disk: compare for the peer",
        "Pn Pm Pi Pt Dn Dv Sn Sm Si St Sv Bn Bm Bt Bv Gn",
    ),
    (
        "disk: compare for the peer failed",
        "Pn Pt Si St Bn Bm Bt Gn",
    ),
    (
        "disk: edge",
        "Pn Pm Pi Ps Pf Pv Dn Dm Dv Sn Sm Si Ss Bm Gn Gv",
    ),
    ("disk: edge failed", "Pn Pm Pi Ps Pf Dn Dm Dv Gn"),
    (
        "disk: flush",
        "Pn Pm Pi Ps Pf Pv Dn Dm Dv Sn Sm Si Ss Sf Gn",
    ),
    (
        "disk: flush failed",
        "Pn Pm Pi Ps Pf Pt Pv Dn Dm Dv Sn Sm Si Ss Sf Sv Bn Bm Bt Gn",
    ),
    (
        "disk: flush for the peer",
        "Pn Pm Pi Ps Pt Sn Sm Si Ss Sf Sv Bn Bm Bt Bv Gn",
    ),
    ("disk: flush to demote", "Pn Pm Pi Ps Pt Pv Dn Bm Bt"),
    ("disk: flush to leave", "Sn Sm Si Sv Bn Bm Gn"),
    ("disk: flush to stop", "Sn Bn"),
    ("disk: read", "Pn Pm Pi Ps Pf Pt Pv Dn Dm Dv Si Bt"),
    ("disk: read failed", "Pn Pm Pi Ps Pf Pt Dn Dm Dv"),
    (
        "disk: read for the peer",
        "Pn Pm Pi Ps Sn Sm Si Ss Sf St Sv Bn Bm Bt Gn",
    ),
    (
        "disk: read for the peer failed",
        "Pm Ps Dm Sn Sm Si Ss Sf Sv Gn",
    ),
    ("disk: read to compare", "Pn Pm Ps Dn Dm Dv Sn Sm Ss Gn Gv"),
    ("disk: read to send", "Pn Pm Ps Dn Dm Dv Sn Sm Ss Gn Gv"),
    ("disk: read to send failed", "Pn Pm Ps Dn Dm Sn Sm Ss Gn Gv"),
    (
        "disk: read to verify",
        "Pn Pm Pi Ps Pf Dv Sn Sm Si Ss Bn Bm Bt Gn",
    ),
    ("disk: read to verify failed", "Pn Pm Pi Dn Dv Sn Si"),
    ("disk: repair", "Pi Pf Pt Dv"),
    ("disk: repair failed", "Pi Pf Pt Dv"),
    (
        "disk: write",
        "Pn Pm Pi Ps Pf Pt Pv Dn Dm Dv Sn Sm Si Ss Sf St Sv Bn Bm Bt Gn",
    ),
    (
        "disk: write failed",
        "Pn Pm Pi Ps Pf Pt Pv Dn Dm Dv Sn Sm Si Ss Sf St Sv Bn Bm Bt Gn",
    ),
    ("link: down", "*-"),
    ("link: down, stale", "Pn Dn Sn Sm Bn"),
    ("link: up", "Pn Dn Sn Si Bn Gn"),
    ("message: Adopted", "Ps Pf Ss Sf"),
    ("message: ArbiterInstance", "Pi Dv Si Sv"),
    ("message: ArbiterRecorded", "Pi Dv Si Sv"),
    ("message: Bye", "Pi Ps Pf Pt Pv Dv Si Ss Sf St Sv Bt Gv"),
    ("message: Carrying", "Pt Dv Bt Gv"),
    ("message: Cleared", "Pt Bt"),
    ("message: Compare", "Pm Pi Pt Dv Sm Si St Sv Bm Bt"),
    ("message: Compared", "Pi Ps Dv Si Ss Gv"),
    ("message: Compared, failed", "Pi Ps Si Ss Sv Gv"),
    ("message: Done", "Pi Ps Pf Pt Dv Ss Sf"),
    ("message: Done, failed", "Pi Ps Pf Pt Dv Ss Sf Bt"),
    ("message: Flush", "Pt Si Ss Sf Sv Bt"),
    ("message: Flushed", "Pi Ps Pf Pt Dv Ss Sf St Gv"),
    ("message: Hello", "Pm Dm Sm Bm Gm"),
    ("message: Leave", "Pi Dv Si"),
    ("message: Marks", "Pm Sm Bm"),
    ("message: Marks, the last", "Pm Sm Bm"),
    ("message: Offer", "Pt St Bt"),
    ("message: Ping", "*-"),
    ("message: Pong", "*-"),
    ("message: Progress", "Pi Ps Pf Pt Dv Si Ss Sf St Bt"),
    ("message: PromoteAsk", "Si Ss Sf Bt"),
    ("message: PromoteGrant", "Si Ss Sf Bt"),
    ("message: PromoteRefuse", "Si Ss Sf St Bt"),
    ("message: Read", "Si Ss Sf St Sv"),
    ("message: ReadReply", "Pi Pt Dv"),
    ("message: ReadReply, failed", "Pi Pt Dv"),
    ("message: Ready", "Pm Dm Sm Bm Gm"),
    ("message: Received", "Pi Ps Pf Dv Si Ss Sf"),
    ("message: Resolve", "Si"),
    ("message: ResyncBlocks", "Pm Pt Bm Bt"),
    ("message: Settled", "Pt St"),
    (
        "message: State",
        "Pi Ps Pf Pt Pv Dv Si Ss Sf St Sv Bt Bv Gv",
    ),
    ("message: Write", "Pt Sm Si Ss Sf St Sv Bm Bt"),
    ("message: Zero", "Pt Sm Si Ss Sf St Sv Bm Bt"),
    ("metadata: durable", "*"),
    (
        "metadata: failed",
        "Pn Pm Pi Ps Pf Pt Dn Dm Dv Sn Sm Si Ss Sf St Sv Bn Bm Bt Bv Gn Gm Gv",
    ),
    ("request: discard", "*"),
    ("request: flush", "*"),
    ("request: read", "*"),
    ("request: write", "*"),
    ("request: write, FUA", "*"),
    ("request: zeroes", "*"),
    ("timer: AckOverdue", "*"),
    (
        "timer: AskAgain",
        "Pn Pm Pi Ps Pf Pt Pv Dn Dm Dv Sn Sm Si Ss Sf St Sv Bn Bm Bt Bv Gn Gm Gv",
    ),
    ("timer: Attempt", "Pn Pm Pi Ps Pf Sn Sm Si Ss Sf Sv"),
    ("timer: AutoFlush", "Pi Ps Pf Pt Dv Si Ss Sf St Gv"),
    ("timer: PeerSilent", "*-"),
    ("timer: Ping", "*-"),
    ("timer: Resync", "Ps Pf Pt Ss Sf St Bt"),
    (
        "timer: WritePages",
        "Pn Pm Pi Ps Pf Pt Dn Dm Dv Sn Sm Si Ss Sf St Sv Bn Bm Bt Bv Gn Gm Gv",
    ),
];

/// The rows of the handshake's table and what can follow from each (replicator/src/core/decide.rs).
const VERDICTS: &[&str] = &[
    " 1 OtherMirror: refused: OtherMirror",
    " 1 OtherMirror: refused: OtherSize",
    " 2 Diskless: refused: NewestLost",
    " 2 Diskless: serve",
    " 3 BothUnwritten: first",
    " 3 BothUnwritten: refused: NameSource",
    " 4 OneUnwritten: full",
    " 4 OneUnwritten: refused: BothStale",
    " 5 SharedAlone: refused: Impossible",
    " 5 SharedAlone: refused: TwoPrimaries",
    " 6 SameBothBad: refused: BothStale",
    " 7 SameOneBad: marks",
    " 8 SameClean: nothing",
    " 9 SameMarked: marks",
    "10 EachAhead: refused: Impossible",
    "11 AheadBad: refused: BothStale",
    "12 BehindAlone: refused: Impossible",
    "13 AheadForcedBad: full",
    "13 AheadForcedBad: marks",
    "13 AheadForcedBad: refused: SplitBrain",
    "14 AheadMarked: marks",
    "15 AheadFull: full",
    "16 Forked: full",
    "16 Forked: marks",
    "16 Forked: refused: SplitBrain",
    "17 Unrelated: full",
    "17 Unrelated: refused: Unrelated",
];

/// A cell of the handshake's table: the row and what follows, without the node's number.
pub fn verdict_name(verdict: Verdict) -> String {
    let follows = match verdict.strategy {
        Strategy::Nothing => "nothing".to_owned(),
        Strategy::Marks { .. } => "marks".to_owned(),
        Strategy::Full { .. } => "full".to_owned(),
        Strategy::First { .. } => "first".to_owned(),
        Strategy::Serve => "serve".to_owned(),
        Strategy::Refuse(why) => {
            let why = format!("{why:?}");
            let kind = why.split([' ', '{']).next().unwrap_or_default();
            format!("refused: {kind}")
        }
    };
    format!("{:>2} {:?}: {follows}", verdict.row as u8, verdict.row)
}

/// What was reached, beside what can be.
#[derive(Debug, Default)]
pub struct Report {
    /// Situations that were reached, permissions and procedures told apart.
    pub situations: usize,
    /// Pairs of such a situation and an event.
    pub pairs: usize,
    /// Pairs of a stand and an event that can be.
    pub can_be: usize,
    /// Of those, what no seed reached: "event @ stand".
    pub missing: Vec<String>,
    /// The same, where a directed test brings it about (tests/directed).
    pub directed: Vec<String>,
    /// Reached, and not in [`CAN_BE`].
    pub beyond: Vec<String>,
    /// Can't be: what and where, and why.
    pub impossible: Vec<(String, &'static str)>,
    /// Neither reached nor tried nor impossible.
    pub unexplained: Vec<String>,
    /// Cells of the handshake's table that no seed reached.
    pub missing_verdicts: Vec<&'static str>,
}

/// Compares what was reached with what can be.
pub fn report(stats: &Stats) -> Report {
    let mut reached: BTreeMap<&str, BTreeSet<&'static str>> = BTreeMap::new();
    let mut situations = BTreeSet::new();
    for (situation, event) in stats.cells().keys() {
        situations.insert(*situation);
        reached.entry(event).or_default().insert(stand(*situation));
    }
    let mut report = Report {
        situations: situations.len(),
        pairs: stats.cells().len(),
        ..Report::default()
    };
    let none = BTreeSet::new();
    let directed = directed();
    for (event, stands) in CAN_BE {
        let seen = reached.get(event).unwrap_or(&none);
        let can_be: BTreeSet<&str> = stands_of(stands).collect();
        report.can_be += can_be.len();
        let told = |stand: &&str| format!("{event} @ {stand}");
        let missing = can_be.difference(seen).map(told);
        let (has_test, none) = missing.partition::<Vec<_>, _>(|cell| directed.contains(cell));
        report.directed.extend(has_test);
        report.missing.extend(none);
        report.beyond.extend(seen.difference(&can_be).map(told));
        for stand in STANDS.split(' ').filter(|stand| !seen.contains(stand)) {
            let cell = told(&stand);
            match why_impossible(event, stand) {
                Some(why) => report.impossible.push((cell, why)),
                None if can_be.contains(stand) || directed.contains(&cell) => {}
                None => report.unexplained.push(cell),
            }
        }
    }
    let seen = stats.verdicts();
    report.missing_verdicts = VERDICTS
        .iter()
        .copied()
        .filter(|cell| !seen.contains_key(*cell))
        .collect();
    report
}

/// A run that came where nothing can come has found a bug, in the core or in the table.
pub fn reached_the_impossible(stats: &Stats) -> Option<Violation> {
    stats.cells().keys().find_map(|(situation, event)| {
        let stand = stand(*situation);
        let why = why_impossible(event, stand)?;
        let what = format!("\"{event}\" came in {stand} ({situation}), and can't: {why}");
        Some(Violation::new("Impossible-pair", what))
    })
}

/// What the tables of the directed tests have: "event @ stand".
fn directed() -> BTreeSet<String> {
    let mut cells: BTreeSet<String> = include_str!("../directed/late.txt")
        .lines()
        .filter_map(|line| line.split(" / ").next())
        .map(ToOwned::to_owned)
        .collect();
    let mut event = "";
    for line in include_str!("../directed/cells.txt").lines() {
        match line
            .strip_prefix("    ")
            .and_then(|row| row.rsplit_once(": "))
        {
            None => event = line,
            Some((_, stands)) => {
                cells.extend(stands.split(' ').map(|stand| format!("{event} @ {stand}")));
            }
        }
    }
    // Marks in more than one message (late.rs); what belongs to the past, in every stand: cells.rs.
    for past in ["link: down, stale", "arbiter: late answer"] {
        cells.extend(STANDS.split(' ').map(|stand| format!("{past} @ {stand}")));
    }
    cells.extend(["Pm", "Sm", "Bm"].map(|stand| format!("message: Marks @ {stand}")));
    cells
}

fn stands_of(text: &'static str) -> impl Iterator<Item = &'static str> {
    let all = text.starts_with('*');
    let connected = text == "*-";
    if all { STANDS } else { text }
        .split(' ')
        .filter(move |stand| !connected || !stand.ends_with('n'))
}

/// The stand of a situation, in two letters.
pub fn stand(at: Situation) -> &'static str {
    let who = match (at.primary, at.copy) {
        (true, Worth::Gone) => "D",
        (true, _) => "P",
        (false, Worth::Good) => "S",
        (false, Worth::Bad) => "B",
        (false, Worth::Gone) => "G",
    };
    let with = match at.peer {
        With::Nobody => "n",
        With::Meeting => "m",
        With::InSync => "i",
        With::Source => "s",
        With::SourceFrozen => "f",
        With::Target => "t",
        With::Serving => "v",
    };
    STANDS
        .split(' ')
        .find(|stand| stand.starts_with(who) && stand.ends_with(with))
        .unwrap_or("??")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_tried_or_can_not_be() {
        let report = report(&Stats::default());
        assert_eq!(report.unexplained, Vec::<String>::new());
        let directed = directed();
        for (cell, why) in &report.impossible {
            assert!(!directed.contains(cell), "{cell} is tried, and {why}");
        }
        for (event, stands) in CAN_BE {
            for stand in stands_of(stands) {
                let why = why_impossible(event, stand);
                assert_eq!(why, None, "{event} @ {stand} was reached");
            }
        }
    }

    #[test]
    fn a_run_that_reaches_the_impossible_has_failed() {
        use super::super::replay::Trace;
        use super::super::run_seed;
        let stats = run_seed(1, Trace::off()).stats;
        assert!(reached_the_impossible(&stats).is_none());
        let (situation, _) = *stats.cells().keys().next().expect("a situation");
        let mut nobody = situation;
        nobody.peer = With::Nobody;
        let mut wrong = Stats::default();
        wrong.reached(nobody, "message: Write");
        let violation = reached_the_impossible(&wrong).expect("no session, no message");
        assert_eq!(violation.invariant, "Impossible-pair");
    }

    #[test]
    fn the_table_names_stands_that_there_are_and_no_event_twice() {
        let stands: BTreeSet<_> = STANDS.split(' ').collect();
        let mut events = BTreeSet::new();
        for (event, text) in CAN_BE {
            assert!(events.insert(event), "{event} twice");
            for stand in stands_of(text) {
                assert!(stands.contains(stand), "{event}: {stand}");
            }
        }
    }
}
