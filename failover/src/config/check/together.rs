//! The mirrors of one group decide together (docs/arbiter.md): the later ones follow the first.

use std::collections::BTreeMap;

use super::Check;
use crate::config::facts::{Facts, MirrorFacts};
use crate::config::group::Group;

impl Check<'_> {
    pub(super) fn together(&mut self, facts: &Facts) {
        for group in &self.cluster.groups {
            for node in &group.attributes.nodes {
                let known = facts.nodes.get(node).and_then(|node| node.mirrors.as_ref());
                if let Some(known) = known {
                    self.group_together(group, node, known);
                }
            }
        }
    }

    fn group_together(&mut self, group: &Group, node: &str, known: &BTreeMap<String, MirrorFacts>) {
        let table = format!("group.{}", group.name);
        // One that asks nobody is given nothing by an arbiter.
        let asks = |name: &&str| known.get(*name).is_some_and(|of| of.arbiter.is_some());
        let mut mirrors = group.mirrors().filter(asks);
        let Some(first) = mirrors.next() else { return };
        if let Some(its) = &known[first].follows {
            let what = format!(
                "on node {node}, mirror {first} follows mirror {its}: whoever takes the group over asks for {first} first, and would wait for {its}"
            );
            let next = format!(
                "take `follows` out of [mirror.{first}] in kagami.toml of both nodes, then `kagami reload` there"
            );
            self.fault(&table, what, next);
        }
        for mirror in mirrors {
            let of = &known[mirror];
            if of.follows.as_deref() == Some(first) {
                continue;
            }
            let what = format!(
                "on node {node}, mirror {mirror} does not follow mirror {first}, the group's first: when the nodes lose each other, each may be given one of them, and then neither runs the group"
            );
            let next = if of.arbiter == known[first].arbiter {
                format!(
                    "write follows = \"{first}\" into [mirror.{mirror}] of kagami.toml on both nodes, then `kagami reload` there"
                )
            } else {
                format!(
                    "give both the same arbiter, and then mirror {mirror} follows = \"{first}\""
                )
            };
            self.fault(&table, what, next);
        }
    }
}
