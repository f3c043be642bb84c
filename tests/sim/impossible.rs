//! Pairs of a stand and an event that can't be, and why: what the coverage tells of what nobody has reached.

/// Events, the stands in which they can't come, and the reason.
const IMPOSSIBLE: &[(&[&str], &str, &str)] = &[
    (
        &["message: *", "link: down"],
        "Pn Dn Sn Bn Gn",
        "what belongs to a session is told apart from what belongs to one that is over, and there is none here",
    ),
    (
        &["timer: Ping", "timer: PeerSilent"],
        "Pn Dn Sn Bn Gn",
        "the end of a session clears its deadlines",
    ),
    (
        &["timer: Resync"],
        "Pn Pm Pi Pv Dn Dm Dv Sn Sm Si Sv Bn Bm Bv Gn Gm Gv",
        "only the source and the target of a resynchronisation set it, and being in sync or the session's end clears it",
    ),
    (
        &["timer: AutoFlush"],
        "Pn Pm Dn Dm Sn Sm Bn Bm Gn Gm",
        "what is not flushed on both copies is kept apart in a session that is up, whose end clears the deadline",
    ),
    (
        &[
            "arbiter: register",
            "arbiter: swapped",
            "arbiter: not ours",
            "arbiter: unreachable",
            "timer: Attempt",
        ],
        "Dn Dm Dv Gn Gm Gv",
        "the failure of its disk ends a node's question, and only a copy that can be used asks one",
    ),
    (
        &[
            "arbiter: register",
            "arbiter: swapped",
            "arbiter: not ours",
            "arbiter: unreachable",
            "timer: Attempt",
        ],
        "Pt St Bn Bm Bt Bv",
        "a copy that becomes a target, or Inconsistent, ends its question, and only a good copy that is no target asks one",
    ),
    (
        &["disk: flush to stop"],
        "Pn Pm Pi Ps Pf Pt Pv Dn Dm Dv Sm Si Ss Sf St Sv Bm Bt Bv Gm Gv",
        "a daemon that stops is demoted and without a session when it flushes for the last time, and takes no session and no order any more",
    ),
    (
        &["disk: write", "disk: write failed"],
        "Bv Gv",
        "a greeting waits for the writes of an older session, a demotion for those of a Primary alone, and no word overwrites a Primary",
    ),
    (
        &["disk: repair", "disk: repair failed"],
        "Ps Pv Ss Sf St Sv Bt Bv",
        "only in sync, or adopted, is written back what could not be read, and a demotion, a grant and the next session's greeting wait until that has ended",
    ),
];

/// Why an event can't come in a stand; none: it can.
pub fn why_impossible(event: &str, stand: &str) -> Option<&'static str> {
    // What a session sent that is over can come at any time.
    if event == "message: stale" {
        return None;
    }
    let is = |pattern: &&str| match pattern.strip_suffix('*') {
        Some(start) => event.starts_with(start),
        None => event == *pattern,
    };
    let entry = IMPOSSIBLE.iter().find(|(events, stands, _)| {
        stands.split(' ').any(|one| one == stand) && events.iter().any(is)
    });
    entry.map(|(.., why)| *why)
}
