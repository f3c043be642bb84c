//! What the file needs of the nodes, and what they have.

use super::*;
use crate::config::facts::Program;

#[test]
fn nodes_have_what_the_file_needs() {
    Cluster::parse_with(Path::new("c"), &small(""), &facts())
        .unwrap_or_else(|error| panic!("{error}"));
    let elsewhere = small("").replacen("10.0.0.10/24", "10.0.1.10/24", 1);
    told(
        &refused_with(&elsewhere, &facts()),
        &[
            "[group.pg.resource.address] address: 10.0.1.10/24 is on no network of node alpha (it has eth0 10.0.0.1/24)",
            "on no network of node beta",
        ],
    );
    let interface = small("").replacen(
        "depends = [\"data\"]",
        "interface = \"eth7\"\ndepends = [\"data\"]",
        1,
    );
    told(
        &refused_with(&interface, &facts()),
        &["node alpha has no eth7"],
    );
    let heartbeat = small("").replacen("10.0.0.2:7791", "10.0.0.9:7791", 1);
    told(
        &refused_with(&heartbeat, &facts()),
        &["node beta does not have 10.0.0.9"],
    );
    let mirror = small("").replacen("mirror = \"pg\"", "mirror = \"pq\"", 1);
    told(
        &refused_with(&mirror, &facts()),
        &["node alpha has no mirror \"pq\"", "did you mean \"pg\"?"],
    );
    for (found, words) in [
        (
            Program::NotExecutable(0o644),
            "/etc/kagami/pg/start is not executable on node beta (mode 0644)",
        ),
        (Program::Missing, "node beta has no /etc/kagami/pg/start"),
        (
            Program::NotAFile,
            "/etc/kagami/pg/start on node beta is not a file",
        ),
    ] {
        let mut facts = facts();
        let programs = &mut facts.nodes.entry("beta".to_owned()).or_default().programs;
        programs.insert(PathBuf::from("/etc/kagami/pg/start"), found);
        programs.insert(PathBuf::from("/etc/kagami/pg/stop"), Program::Executable);
        told(&refused_with(&small(""), &facts), &[words]);
    }
}
