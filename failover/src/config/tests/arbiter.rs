//! An arbiter that can be one, and a cluster without.

use super::*;
use crate::config::facts::ArbiterFacts;

#[test]
fn without_an_arbiter_a_lost_heartbeat_is_waited_for() {
    let text = small("").replacen(
        "kind = \"witness\"\nname = \"gamma\"",
        &format!(
            "kind = \"none\"\naccepted-risk = \"{}\"",
            cluster::ACCEPTED_RISK
        ),
        1,
    );
    let cluster = parse(&text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(cluster.heartbeats[0].timeout, Ms::seconds(30));
    assert!(cluster.may_fail_over());
}

#[test]
fn an_arbiter_is_a_third_machine() {
    replaced(
        "name = \"gamma\"",
        "name = \"beta\"",
        &[
            "[arbiter] name: \"beta\" is one of the two nodes",
            "let a third machine decide",
        ],
    );
    replaced("name = \"gamma\"", "", &["a witness without `name`"]);
    let etcd = "kind = \"witness\"\nname = \"gamma\"";
    for endpoint in [
        "https://10.0.0.2:2379",
        "http://beta:2379",
        "http://127.0.0.1:2379",
        "http://[::1]:2379",
    ] {
        let new = format!("kind = \"etcd\"\nname = \"kv\"\nendpoints = [\"{endpoint}\"]");
        replaced(
            etcd,
            &new,
            &["an arbiter that is one of the two nodes", endpoint],
        );
    }
    replaced(etcd, "kind = \"etcd\"", &["etcd without `name`"]);
    parse(&small("").replacen(
        etcd,
        "kind = \"etcd\"\nname = \"kv\"\nendpoints = [\"http://10.0.0.3:2379\"]",
        1,
    ))
    .unwrap_or_else(|error| panic!("{error}"));
    // Its addresses are known from the nodes' own configuration.
    let mut facts = facts();
    let found = |place: &str, prefix: Option<&str>| {
        let arbiter = ArbiterFacts {
            places: vec![place.to_owned()],
            prefix: prefix.map(str::to_owned),
        };
        BTreeMap::from([("gamma".to_owned(), arbiter)])
    };
    let arbiters = found("10.0.0.2:7790", None);
    facts.nodes.entry("alpha".to_owned()).or_default().arbiters = Some(arbiters);
    told(
        &refused_with(&small(""), &facts),
        &["name: 10.0.0.2:7790 is an address of node beta"],
    );
    facts.nodes.entry("alpha".to_owned()).or_default().arbiters = Some(BTreeMap::new());
    told(
        &refused_with(&small(""), &facts),
        &["node alpha has no [arbiter.gamma]"],
    );
    // What it is, and where an etcd is, too.
    let at = |place: &str| Some(found(place, Some("/kagami")));
    facts.nodes.entry("alpha".to_owned()).or_default().arbiters = at("https://10.0.0.3:2379");
    told(
        &refused_with(&small(""), &facts),
        &["kind: [arbiter.gamma] in node alpha's kagami.toml is an etcd"],
    );
    let named = small("").replacen(etcd, "kind = \"etcd\"\nname = \"gamma\"", 1);
    Cluster::parse_with(Path::new("cluster.toml"), &named, &facts)
        .unwrap_or_else(|error| panic!("{error}"));
    facts.nodes.entry("alpha".to_owned()).or_default().arbiters = at("https://10.0.0.2:2379");
    told(
        &refused_with(&named, &facts),
        &["name: https://10.0.0.2:2379 is an address of node beta"],
    );
    facts.nodes.entry("alpha".to_owned()).or_default().arbiters = at("https://10.0.0.3:2379");
    let other = Some(found("https://10.0.0.4:2379", Some("/other")));
    facts.nodes.entry("beta".to_owned()).or_default().arbiters = other;
    told(
        &refused_with(&named, &facts),
        &["the prefix of [arbiter.gamma] is /kagami on node alpha and /other on node beta"],
    );
    // Other members of the same etcd are the same etcd.
    facts.nodes.entry("beta".to_owned()).or_default().arbiters = at("https://10.0.0.4:2379");
    Cluster::parse_with(Path::new("cluster.toml"), &named, &facts)
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn without_an_arbiter_the_risk_is_accepted_in_so_many_words() {
    let witness = "kind = \"witness\"\nname = \"gamma\"";
    replaced(
        witness,
        "kind = \"none\"",
        &[
            "without an arbiter nothing decides",
            "group pg fails over by itself",
            cluster::ACCEPTED_RISK,
        ],
    );
    replaced(
        witness,
        "kind = \"none\"\naccepted-risk = \"yes\"",
        &[
            "\"yes\" does not accept the risk in so many words",
            cluster::ACCEPTED_RISK,
        ],
    );
    replaced(
        witness,
        &format!("{witness}\naccepted-risk = \"{}\"", cluster::ACCEPTED_RISK),
        &["there is no such risk"],
    );
    for instead in ["[fence]\nscript = \"/etc/kagami/fence\"\n", ""] {
        let text = small(instead).replacen(witness, "kind = \"none\"", 1);
        let text = if instead.is_empty() {
            text.replacen("[group.pg]\n", "[group.pg]\nfailover = \"manual\"\n", 1)
        } else {
            text
        };
        parse(&text).unwrap_or_else(|error| panic!("{error}"));
    }
}
