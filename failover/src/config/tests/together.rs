//! The later mirrors of a group follow its first one.

use super::*;

/// The small cluster with a second mirror in its group, after the first.
fn two() -> Cluster {
    let more =
        "[group.pg.resource.logs]\ntype = \"mirror\"\nmirror = \"pg-log\"\nmount = \"/srv/log\"\n";
    parse(&small(more)).unwrap_or_else(|error| panic!("{error}"))
}

/// What is said of one node whose mirrors are like this: name, arbiter, whom it follows.
fn said(mirrors: &[(&str, Option<&str>, Option<&str>)]) -> String {
    let of = |(name, arbiter, follows): &(&str, Option<&str>, Option<&str>)| {
        let facts = MirrorFacts {
            arbiter: arbiter.map(str::to_owned),
            follows: follows.map(str::to_owned),
        };
        ((*name).to_owned(), facts)
    };
    let alpha = NodeFacts {
        mirrors: Some(mirrors.iter().map(of).collect()),
        ..NodeFacts::default()
    };
    let facts = Facts {
        nodes: BTreeMap::from([("alpha".to_owned(), alpha)]),
    };
    let warnings = two().warnings(&facts);
    assert!(
        warnings
            .iter()
            .all(|one| one.table == "group.pg" && one.line.is_some())
    );
    let lines = warnings
        .iter()
        .map(|one| format!("{}\n  next: {}\n", one.what, one.next));
    lines.collect()
}

#[test]
fn a_later_mirror_that_does_not_follow_the_first_is_told() {
    let gamma = Some("gamma");
    let words = said(&[("pg", gamma, None), ("pg-log", gamma, None)]);
    told(
        &words,
        &[
            "on node alpha, mirror pg-log does not follow mirror pg",
            "write follows = \"pg\" into [mirror.pg-log]",
        ],
    );
    let words = said(&[("pg", gamma, None), ("pg-log", gamma, Some("other"))]);
    told(&words, &["mirror pg-log does not follow mirror pg"]);
    let words = said(&[("pg", gamma, None), ("pg-log", Some("kv"), None)]);
    told(&words, &["give both the same arbiter"]);
    let words = said(&[("pg", gamma, Some("pg-log")), ("pg-log", gamma, None)]);
    told(
        &words,
        &[
            "mirror pg follows mirror pg-log",
            "take `follows` out of [mirror.pg]",
            "mirror pg-log does not follow mirror pg",
        ],
    );
}

#[test]
fn who_follows_and_who_asks_nobody_is_let_be() {
    let gamma = Some("gamma");
    for mirrors in [
        &[("pg", gamma, None), ("pg-log", gamma, Some("pg"))][..],
        &[("pg", None, None), ("pg-log", None, None)],
        &[("pg", gamma, None), ("pg-log", None, None)],
        &[("pg", gamma, None)],
    ] {
        assert_eq!(said(mirrors), "", "{mirrors:?}");
    }
    let nobody = two().warnings(&Facts::default());
    assert!(nobody.is_empty(), "{nobody:?}");
}
