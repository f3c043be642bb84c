//! A shared disk: who keeps the other node's writes away while this one has lost the right and stops.

use super::*;

/// A shared disk of the group, which is served by a lease from a witness.
fn disk(rest: &str) -> String {
    format!("[group.pg.resource.lun]\ntype = \"disk\"\ndevice = \"/dev/sdb\"\n{rest}\n")
}

fn lun(text: &str) -> resource::Disk {
    let cluster = parse(text).unwrap_or_else(|error| panic!("{error}"));
    let Some(resource::Kind::Disk(lun)) = cluster.groups[0].resources.last().map(|r| &r.kind)
    else {
        panic!("{cluster:?}");
    };
    lun.clone()
}

const ACCEPTED: &str = "both nodes may write the disk at once and what is on it may be lost";

#[test]
fn it_is_reserved_where_the_other_node_comes_before_this_one_has_stopped() {
    added(
        &disk("reserve = \"always\"\nmount = \"lun\""),
        &["mount: lun is not"],
    );
    added(&disk("reserve = \"maybe\""), &["maybe", "if-known"]);
    let reserved = lun(&small(&disk("reserve = \"always\"")));
    assert_eq!(reserved.reserve, resource::Reserve::Always);

    for (rest, is) in [
        ("", "if-known"),
        ("reserve = \"if-known\"", "if-known"),
        ("reserve = \"never\"", "never"),
    ] {
        let what = format!("[group.pg.resource.lun] reserve: \"{is}\"");
        let text = small(&disk(rest));
        let told_of = ["30s", "write reserve = \"always\"", ACCEPTED];
        told(
            &refused(&text),
            &[&what[..], told_of[0], told_of[1], told_of[2]],
        );
        // A lease by whatever arbiter, also of an operator's own start.
        let etcd = text.replace("kind = \"witness\"", "kind = \"etcd\"");
        told(&refused(&etcd), &[&what]);
        let manual = text.replacen("[group.pg]\n", "[group.pg]\nfailover = \"manual\"\n", 1);
        told(&refused(&manual), &[&what]);
        // Nobody else ever takes it.
        let alone = text.replacen(
            "[group.pg]\nnodes = [\"alpha\", \"beta\"]",
            "[group.pg]\nnodes = [\"alpha\"]",
            1,
        );
        lun(&alone);
        // The other node is down before anybody takes it, or an operator says so.
        let fenced = text.replace("kind = \"witness\"\nname = \"gamma\"", "kind = \"none\"")
            + "[fence]\nscript = \"/etc/kagami/fence\"\n";
        lun(&fenced);
    }
}

#[test]
fn the_risk_of_one_that_is_not_is_accepted_in_so_many_words() {
    let accepted = lun(&small(&disk(&format!("accepted-risk = \"{ACCEPTED}\""))));
    assert_eq!(accepted.reserve, resource::Reserve::IfKnown);
    added(
        &disk("accepted-risk = \"yes\""),
        &["accepted-risk: \"yes\" does not accept", ACCEPTED],
    );
    added(
        &disk(&format!(
            "reserve = \"always\"\naccepted-risk = \"{ACCEPTED}\""
        )),
        &[
            "accepted-risk: the disk is reserved",
            "take `accepted-risk` out",
        ],
    );
}
