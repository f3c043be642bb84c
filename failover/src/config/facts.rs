//! What is true of the nodes and a file can't know: their networks, programs and mirrors.
//! Whoever checks a configuration passes in what it could find out.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::value::Network;

/// What is known of each node, by its name. Of a node that is not in here nothing is checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// By node.
    pub nodes: BTreeMap<String, NodeFacts>,
}

/// What is known of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its interfaces' networks: (interface, this node's address and prefix).
    pub networks: Vec<(String, Network)>,
    /// What was found where the file names a program. One that is not in here was not looked at.
    pub programs: BTreeMap<PathBuf, Program>,
    /// The mirrors of its kagami.toml, by name; `None`: not known.
    pub mirrors: Option<BTreeMap<String, MirrorFacts>>,
    /// The arbiters of its kagami.toml, by name; `None`: not known.
    pub arbiters: Option<BTreeMap<String, ArbiterFacts>>,
}

/// How a mirror decides whether its copy goes on alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MirrorFacts {
    /// Who is asked; `None`: nobody.
    pub arbiter: Option<String>,
    /// The mirror whose decision it follows.
    pub follows: Option<String>,
}

/// Where a node looks for an arbiter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArbiterFacts {
    /// Its addresses.
    pub places: Vec<String>,
    /// What its keys begin with, of an etcd.
    pub prefix: Option<String>,
}

/// What was found where a program should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// A file that can be run.
    Executable,
    /// A file without the right to be run; its mode.
    NotExecutable(u32),
    /// Something that is no file.
    NotAFile,
    /// Nothing.
    Missing,
}
