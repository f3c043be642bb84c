//! From the text to a [`Cluster`]: tables by their kind, unknown words refused.
//!
//! A table of a kind (`type = …`) has its own fields and those that all kinds have; each half is
//! read by serde, which knows the fields, and what serde says is put into the words of this crate.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::Cluster;
use super::cluster::{
    self, Arbiter, ArbiterKind, HEARTBEAT_KEYS, Heartbeat, HeartbeatCommon, HeartbeatKind,
};
use super::fault::{Fault, choose, nearest};
use super::group::{Attributes, Group};
use super::monitor::{self, Monitor, Target};
use super::resource::{self, DiskDevice, Mount, Resource};
use super::value::Ms;

type Table<'t> = DeTable<'t>;

/// The tables at the top.
const TOP: &[&str] = &[
    "cluster",
    "arbiter",
    "heartbeat",
    "group",
    "monitor",
    "fence",
    "preaction",
    "mail",
    "webhook",
];

/// What could be read, and everything that is wrong with it.
pub(super) fn read(text: &str) -> (Option<Cluster>, Vec<Fault>) {
    let mut reader = Reader {
        text,
        faults: Vec::new(),
        lines: BTreeMap::new(),
    };
    let document = match DeTable::parse(text) {
        Ok(document) => document.into_inner(),
        Err(error) => {
            let line = error.span().map(|span| reader.line(span));
            let what = format!("this is not TOML: {}", first_line(error.message()));
            reader.fault(line, "", what, "see https://toml.io for how it is written");
            return (None, reader.faults);
        }
    };
    (reader.cluster(document), reader.faults)
}

struct Reader<'t> {
    text: &'t str,
    faults: Vec<Fault>,
    lines: BTreeMap<String, usize>,
}

fn a(noun: &str) -> String {
    let n = if noun.starts_with(['a', 'i', 'o']) {
        "n"
    } else {
        ""
    };
    format!("a{n} {noun}")
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// A table in two: (these keys, the rest).
fn halves<'t>(
    table: Spanned<Table<'t>>,
    keys: &[&str],
) -> (Spanned<Table<'t>>, Spanned<Table<'t>>) {
    let span = table.span();
    let (these, rest) = table
        .into_inner()
        .into_iter()
        .partition(|(key, _)| keys.contains(&&**key.get_ref()));
    (Spanned::new(span.clone(), these), Spanned::new(span, rest))
}

impl<'t> Reader<'t> {
    fn line(&self, span: Range<usize>) -> usize {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        before.matches('\n').count() + 1
    }

    fn fault(
        &mut self,
        line: Option<usize>,
        table: &str,
        what: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.faults.push(Fault {
            line,
            table: table.to_owned(),
            what: what.into(),
            next: next.into(),
        });
    }

    fn cluster(&mut self, mut document: Table<'t>) -> Option<Cluster> {
        for (key, value) in &document {
            if !TOP.contains(&&**key.get_ref()) {
                let line = self.line(value.span());
                let what = format!("there is no table `{}`", key.get_ref());
                self.fault(
                    Some(line),
                    "",
                    what,
                    choose(key.get_ref(), TOP.iter().copied()),
                );
            }
        }
        let header: Option<cluster::Header> = self.required(&mut document, "cluster");
        let arbiter: Option<Arbiter> = self.required(&mut document, "arbiter");
        let fence = self.optional(&mut document, "fence");
        let preaction = self.optional(&mut document, "preaction");
        let quick = arbiter
            .as_ref()
            .is_none_or(|arbiter| arbiter.kind != ArbiterKind::None);
        let mut heartbeats = self.each(&mut document, "heartbeat", |reader, name, table| {
            reader.heartbeat(name, table, quick)
        });
        heartbeats.sort_by_key(|heartbeat| heartbeat.priority);
        let groups = self.each(&mut document, "group", Self::group);
        let mut monitors = self.each(&mut document, "monitor", Self::monitor);
        monitors.extend(groups.iter().flat_map(monitor::of_contracts));
        let mail = self.each(&mut document, "mail", |reader, name, table| {
            let at = format!("mail.{name}");
            Some((name.to_owned(), reader.take(table, &at, &[])?))
        });
        let webhooks = self.each(&mut document, "webhook", |reader, name, table| {
            let at = format!("webhook.{name}");
            Some((name.to_owned(), reader.take(table, &at, &[])?))
        });
        let header = header?;
        let nodes: Result<[String; 2], _> = header.nodes.try_into();
        let nodes = match nodes {
            Ok(nodes) => nodes,
            Err(found) => {
                let line = self.lines.get("cluster").copied();
                let what = format!("nodes: {} are named, a cluster has two", found.len());
                let next = "name the two nodes that hold copies; an arbiter is named in [arbiter]";
                self.fault(line, "cluster", what, next);
                return None;
            }
        };
        Some(Cluster {
            name: header.name,
            revision: header.revision,
            nodes,
            wait_for_node: header.wait_for_node,
            stop_bound: header.stop_bound,
            clear_after: header.clear_after,
            arbiter: arbiter?,
            heartbeats,
            groups,
            monitors,
            fence,
            preaction,
            mail: mail.into_iter().collect(),
            webhooks: webhooks.into_iter().collect(),
            lines: std::mem::take(&mut self.lines),
        })
    }

    fn required<T: DeserializeOwned>(&mut self, document: &mut Table<'t>, name: &str) -> Option<T> {
        if document.get(name).is_none() {
            let what = format!("there is no [{name}]");
            let next = match name {
                "arbiter" => "add [arbiter] with kind = \"witness\", \"etcd\" or \"none\"",
                _ => "add [cluster] with name, revision and nodes",
            };
            self.fault(None, "", what, next);
        }
        self.optional(document, name)
    }

    fn optional<T: DeserializeOwned>(&mut self, document: &mut Table<'t>, name: &str) -> Option<T> {
        let value = document.remove(name)?;
        let table = self.table(value, name)?;
        self.take(table, name, &[])
    }

    /// What each table below `[kind.…]` is, in the file's order.
    fn each<T>(
        &mut self,
        document: &mut Table<'t>,
        kind: &str,
        mut read: impl FnMut(&mut Self, &str, Spanned<Table<'t>>) -> Option<T>,
    ) -> Vec<T> {
        let Some(value) = document.remove(kind) else {
            return Vec::new();
        };
        let Some(table) = self.table(value, kind) else {
            return Vec::new();
        };
        let mut entries: Vec<_> = table.into_inner().into_iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut all = Vec::new();
        for (key, value) in entries {
            let name = key.get_ref().to_string();
            let at = format!("{kind}.{name}");
            let line = self.line(key.span());
            if name.is_empty()
                || name.contains(|c: char| !c.is_alphanumeric() && !"-_.".contains(c))
            {
                let what = format!("\"{name}\" can't be a name");
                self.fault(
                    Some(line),
                    &at,
                    what,
                    "use letters, digits, `-`, `_` and `.`",
                );
            }
            let Some(table) = self.table(value, &at) else {
                continue;
            };
            self.lines.insert(at, line);
            all.extend(read(self, &name, table));
        }
        all
    }

    fn table(&mut self, value: Spanned<DeValue<'t>>, at: &str) -> Option<Spanned<Table<'t>>> {
        let span = value.span();
        let line = self.line(span.clone());
        self.lines.entry(at.to_owned()).or_insert(line);
        match value.into_inner() {
            DeValue::Table(table) => Some(Spanned::new(span, table)),
            other => {
                let what = format!("this is a table, not {}", a(other.type_str()));
                self.fault(
                    Some(line),
                    "",
                    format!("{at}: {what}"),
                    format!("write [{at}]"),
                );
                None
            }
        }
    }

    /// A table as serde reads it. `also`: keys that another part of the same table has.
    fn take<T: DeserializeOwned>(
        &mut self,
        table: Spanned<Table<'t>>,
        at: &str,
        also: &[&str],
    ) -> Option<T> {
        let span = table.span();
        let value = Spanned::new(span.clone(), DeValue::Table(table.into_inner()));
        match T::deserialize(ValueDeserializer::from(value)) {
            Ok(read) => Some(read),
            Err(error) => {
                let line = self.line(error.span().unwrap_or(span));
                let (what, next) = explain(error.message(), also);
                self.fault(Some(line), at, what, next);
                None
            }
        }
    }

    /// The word at `type`.
    fn kind(
        &mut self,
        table: &mut Spanned<Table<'t>>,
        at: &str,
        names: &'static [&'static str],
    ) -> Option<usize> {
        let line = self.line(table.span());
        let Some(value) = table.get_mut().remove("type") else {
            let next = format!("add type = one of \"{}\"", names.join("\", \""));
            self.fault(Some(line), at, "it has no `type`", next);
            return None;
        };
        let line = self.line(value.span());
        let word = value.get_ref().as_str().unwrap_or_default();
        let found = names.iter().position(|name| *name == word);
        if found.is_none() {
            let what = format!("type: there is no kind \"{word}\"");
            self.fault(Some(line), at, what, choose(word, names.iter().copied()));
        }
        found
    }

    fn heartbeat(
        &mut self,
        name: &str,
        mut table: Spanned<Table<'t>>,
        quick: bool,
    ) -> Option<Heartbeat> {
        let at = format!("heartbeat.{name}");
        let kind = self.kind(&mut table, &at, HeartbeatKind::NAMES)?;
        let (common, own) = halves(table, HEARTBEAT_KEYS);
        let common: HeartbeatCommon = self.take(common, &at, &[])?;
        let kind = match kind {
            0 => HeartbeatKind::Lan(self.take(own, &at, HEARTBEAT_KEYS)?),
            1 => HeartbeatKind::Serial(self.take(own, &at, HEARTBEAT_KEYS)?),
            _ => HeartbeatKind::Disk(self.take(own, &at, HEARTBEAT_KEYS)?),
        };
        // Who only has a ping target to ask waits until a hiccup is out of the question.
        let timeout = Ms::seconds(if quick { 2 } else { 30 });
        Some(Heartbeat {
            name: name.to_owned(),
            priority: common.priority,
            interval: common.interval.unwrap_or(Ms(500)),
            timeout: common.timeout.unwrap_or(timeout),
            kind,
        })
    }

    fn group(&mut self, name: &str, mut table: Spanned<Table<'t>>) -> Option<Group> {
        let at = format!("group.{name}");
        let resources = self.each_resource(name, &mut table);
        let attributes: Attributes = self.take(table, &at, &["resource"])?;
        let resources = self.in_order(&at, resources)?;
        Some(Group {
            name: name.to_owned(),
            attributes,
            resources,
        })
    }

    fn each_resource(&mut self, group: &str, table: &mut Spanned<Table<'t>>) -> Vec<Resource> {
        let kind = format!("group.{group}.resource");
        let mut wrapped = Table::new();
        if let Some((_, value)) = table.get_mut().remove_entry("resource") {
            wrapped.insert(Spanned::new(value.span(), kind.clone().into()), value);
        }
        self.each(&mut wrapped, &kind, |reader, name, table| {
            reader.resource(format!("{kind}.{name}"), name, table)
        })
    }

    /// Each resource after those that it depends on, else in the file's order.
    fn in_order(&mut self, at: &str, mut left: Vec<Resource>) -> Option<Vec<Resource>> {
        // Those that could not be read, and were told of, are known all the same.
        let prefix = format!("{at}.resource.");
        let names: Vec<String> = self
            .lines
            .keys()
            .filter_map(|table| table.strip_prefix(&prefix).map(str::to_owned))
            .collect();
        let mut broken = names.len() != left.len();
        for resource in &left {
            for depends in &resource.common.depends {
                if !names.contains(depends) {
                    broken = true;
                    let table = format!("{at}.resource.{}", resource.name);
                    let line = self.lines.get(&table).copied();
                    let what = format!("depends: the group has no resource \"{depends}\"");
                    let next = choose(depends, names.iter().map(String::as_str));
                    self.fault(line, &table, what, next);
                }
            }
        }
        if broken {
            return None;
        }
        let mut done: Vec<Resource> = Vec::new();
        while !left.is_empty() {
            let is_done = |name: &String| done.iter().any(|r| r.name == *name);
            let ready = left
                .iter()
                .position(|r| r.common.depends.iter().all(is_done));
            if let Some(ready) = ready {
                done.push(left.remove(ready));
                continue;
            }
            let circle = circle(&left);
            let table = format!("{at}.resource.{}", circle[0]);
            let line = self.lines.get(&table).copied();
            let what = format!(
                "depends: a circle: {} -> {}",
                circle.join(" -> "),
                circle[0]
            );
            let next = "take one of these dependencies out: none of them could be activated first";
            self.fault(line, &table, what, next);
            return None;
        }
        Some(done)
    }

    fn resource(
        &mut self,
        at: String,
        name: &str,
        mut table: Spanned<Table<'t>>,
    ) -> Option<Resource> {
        use resource::{Common, Kind};
        let kind = self.kind(&mut table, &at, Kind::NAMES)?;
        let (common, own) = halves(table, Common::KEYS);
        let common: Option<Common> = self.take(common, &at, &[]);
        let keys = Common::KEYS;
        let kind = match kind {
            0 => Kind::FloatingIp(self.take(own, &at, keys)?),
            1 => Kind::Exec(self.take(own, &at, keys)?),
            2 => {
                let (mount, own) = halves(own, Mount::KEYS);
                Kind::Mirror(resource::Mirror {
                    disk: self.take(own, &at, &[keys, Mount::KEYS].concat())?,
                    mount: self.take(mount, &at, &[])?,
                })
            }
            3 => {
                let (mount, own) = halves(own, Mount::KEYS);
                let device: DiskDevice = self.take(own, &at, &[keys, Mount::KEYS].concat())?;
                Kind::Disk(resource::Disk {
                    device: device.device,
                    reserve: device.reserve,
                    accepted_risk: device.accepted_risk,
                    mount: self.take(mount, &at, &[])?,
                })
            }
            4 => Kind::Ocf(self.take(own, &at, keys)?),
            5 => Kind::Systemd(self.take(own, &at, keys)?),
            6 => Kind::Action(self.take(own, &at, keys)?),
            7 => Kind::Service(self.take(own, &at, keys)?),
            8 => Kind::Package(self.take(own, &at, keys)?),
            _ => Kind::Files(self.take(own, &at, keys)?),
        };
        Some(Resource {
            name: name.to_owned(),
            common: common?,
            kind,
        })
    }

    fn monitor(&mut self, name: &str, mut table: Spanned<Table<'t>>) -> Option<Monitor> {
        use monitor::{Common, Kind};
        let at = format!("monitor.{name}");
        let line = self.line(table.span());
        let kind = self.kind(&mut table, &at, Kind::NAMES)?;
        let (common, own) = halves(table, Common::KEYS);
        let common: Option<Common> = self.take(common, &at, &[]);
        let keys = Common::KEYS;
        let kind = match kind {
            0 => Kind::Ip(self.take(own, &at, keys)?),
            1 => Kind::Nic(self.take(own, &at, keys)?),
            2 => Kind::Disk(self.take(own, &at, keys)?),
            3 => Kind::Mirror(self.take(own, &at, keys)?),
            4 => Kind::MirrorLink(self.take(own, &at, keys)?),
            5 => Kind::Pid(self.take(own, &at, keys)?),
            6 => Kind::FloatingIp(self.take(own, &at, keys)?),
            7 => Kind::UserSpace(self.take(own, &at, keys)?),
            8 => Kind::Tcp(self.take(own, &at, keys)?),
            9 => Kind::Http(self.take(own, &at, keys)?),
            10 => Kind::Database(self.take(own, &at, keys)?),
            11 => Kind::Agent(self.take(own, &at, keys)?),
            _ => Kind::Script(self.take(own, &at, keys)?),
        };
        let mut common = common?;
        let of = match &kind {
            Kind::Pid(of) | Kind::FloatingIp(of) => Some(of.resource.clone()),
            _ => None,
        };
        // What watches a resource does so while that is active, and recovers it.
        if let Some(of) = of {
            common.active.get_or_insert(of.clone());
            if common.target.is_empty() {
                common.target = of;
            }
        }
        if common.target.is_empty() {
            let next = "add target = \"cluster\", a \"GROUP\" or a \"GROUP/RESOURCE\"";
            self.fault(
                Some(line),
                &at,
                "it has no `target`: nothing to recover",
                next,
            );
            return None;
        }
        let target = match common.target.split_once('/') {
            Some((group, resource)) => Target::Resource(group.to_owned(), resource.to_owned()),
            None if common.target == "cluster" => Target::Cluster,
            None => Target::Group(common.target.clone()),
        };
        let active = match &common.active {
            None => None,
            Some(active) => {
                let Some((group, resource)) = active.split_once('/') else {
                    let what = format!("active: \"{active}\" is no GROUP/RESOURCE");
                    self.fault(Some(line), &at, what, "write \"GROUP/RESOURCE\"");
                    return None;
                };
                Some((group.to_owned(), resource.to_owned()))
            }
        };
        Some(Monitor {
            name: name.to_owned(),
            common,
            target,
            active,
            kind,
        })
    }
}

/// A circle of dependencies among these, each of which depends on another of them.
fn circle(left: &[Resource]) -> Vec<String> {
    let mut path: Vec<&str> = vec![&left[0].name];
    loop {
        let last = path[path.len() - 1];
        let next = left.iter().find(|r| r.name == last).and_then(|r| {
            r.common
                .depends
                .iter()
                .find(|d| left.iter().any(|l| l.name == **d))
        });
        // Without one the resource could have been activated.
        let Some(next) = next else {
            return path.into_iter().map(str::to_owned).collect();
        };
        if let Some(at) = path.iter().position(|name| name == next) {
            return path[at..].iter().map(|name| (*name).to_owned()).collect();
        }
        path.push(next);
    }
}

/// serde's words in ours: what is wrong, and what would be right.
fn explain(message: &str, also: &[&str]) -> (String, String) {
    let message = first_line(message);
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if message.starts_with("unknown field") || message.starts_with("unknown variant") {
        let typed = quoted.first().copied().unwrap_or_default();
        let known: Vec<&str> = quoted.iter().skip(1).chain(also).copied().collect();
        let what = if message.starts_with("unknown field") {
            format!("there is no key `{typed}`")
        } else {
            format!("\"{typed}\" is not one of its words")
        };
        let next = match nearest(typed, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("write one of `{}`", known.join("`, `")),
        };
        return (what, next);
    }
    if message.starts_with("missing field") {
        let key = quoted.first().copied().unwrap_or_default();
        return (format!("`{key}` is missing"), format!("add `{key} = …`"));
    }
    match message.split_once(": write ") {
        Some((what, right)) => (what.to_owned(), format!("write {right}")),
        None => match message.split_once(", expected ") {
            Some((what, right)) => (what.to_owned(), format!("write {right}")),
            None => (
                message.to_owned(),
                "docs/cluster-configuration.md has every key".to_owned(),
            ),
        },
    }
}
