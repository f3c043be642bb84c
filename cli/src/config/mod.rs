//! The configuration: one TOML file that people read, checked strictly.
//!
//! [`keys`] is the one table of what can be written; [`read`](mod@read) goes by it, [`check`](mod@check)
//! knows what keys mean together, [`edit`] changes the file and keeps its comments, [`show`] and
//! [`document`] print the table. This module holds the configuration as the rest of the program
//! uses it, and where the file is looked for.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub mod arbiter;
pub mod check;
pub mod disks;
pub mod document;
pub mod edit;
pub mod fault;
pub mod keys;
pub mod missing;
pub mod own_keys;
pub mod places;
pub mod read;
pub mod show;
pub mod tls;
pub mod value;

pub use arbiter::{Arbiter, Etcd};
pub use fault::{ConfigError, Fault};
pub use value::Latency;

use keys::Section;
use places::Places;
use read::{Sheet, Value};

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it was read from.
    pub file: PathBuf,
    /// `[node]`
    pub node: Node,
    /// `[mirror.NAME]`, in the file's order.
    pub mirrors: Vec<Mirror>,
    /// `[peer.NAME]`
    pub peers: Vec<Peer>,
    /// `[arbiter.NAME]`
    pub arbiters: Vec<Arbiter>,
    /// `[nbd]`, where TCP is listened on.
    pub nbd: Option<Nbd>,
    /// `[witness]`, where there is one.
    pub witness: Option<Witness>,
    /// Every value with its line, for messages and `config show`.
    pub sheet: Sheet,
}

/// `[node]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its identity for the peer.
    pub id: u64,
    /// UDP addresses of the link.
    pub listen: Vec<SocketAddr>,
    /// Data-plane threads.
    pub threads: usize,
    /// Bytes of buffers for each thread.
    pub buffers: u64,
    /// How long a thread looks before it sleeps.
    pub busy_poll: Duration,
    /// Key, and stores made without being told where.
    pub state_dir: PathBuf,
    /// Sockets.
    pub run_dir: PathBuf,
    /// The control socket.
    pub control: PathBuf,
    /// Group that may use it.
    pub control_group: Option<String>,
    /// Least severity logged.
    pub log_level: String,
    /// Lines of JSON instead of text.
    pub log_json: bool,
    /// The newest protocol version spoken with peers.
    pub link_version: u16,
}

/// `[mirror.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Its name.
    pub name: String,
    /// Which mirror it is, the same on both nodes.
    pub uuid: [u8; 16],
    /// Bytes.
    pub size: u64,
    /// The backing store.
    pub backing: PathBuf,
    /// The metadata store.
    pub metadata: PathBuf,
    /// `A`, `B` or `C`.
    pub protocol: Protocol,
    /// Permission to go on alone.
    pub solo: Solo,
    /// The NAME of a `[peer.NAME]`; `None` until paired.
    pub peer: Option<String>,
    /// The NAME of an `[arbiter.NAME]`.
    pub arbiter: Option<String>,
    /// The NAME of the `[mirror.NAME]` whose decision it follows.
    pub follows: Option<String>,
    /// The data-plane thread, from 0.
    pub thread: usize,
    /// 512 or 4096.
    pub logical_block: u32,
    /// Where it is served.
    pub nbd_socket: PathBuf,
    /// After a split brain, neither Primary.
    pub after_sb_0pri: String,
    /// After a split brain, one Primary.
    pub after_sb_1pri: String,
    /// After a split brain, both Primary.
    pub after_sb_2pri: String,
    /// No good copy has permission.
    pub both_stale: String,
    /// Flush by itself after this long.
    pub flush_after: Duration,
    /// Hot extents.
    pub activity_log_extents: u32,
    /// `[mirror.NAME.resync]`
    pub resync: Resync,
}

/// When a write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// On this disk.
    A,
    /// In the peer's memory too.
    B,
    /// On both disks.
    C,
}

/// Permission to go on alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Solo {
    /// Only with consent, by a fence script's word or by force.
    Never,
    /// If the arbiter says so.
    Arbiter,
    /// Always.
    Always,
}

/// `[mirror.NAME.resync]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resync {
    /// How far it may raise the application's latency.
    pub latency_target: Latency,
    /// Bytes per second; `None`: unlimited.
    pub max_rate: Option<u64>,
    /// Bytes in flight.
    pub window: u64,
    /// Compare before sending.
    pub checksum_first: bool,
}

/// `[peer.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its node id.
    pub id: u64,
    /// `address:port` or `name:port`.
    pub addresses: Vec<String>,
    /// `sha256:…`
    pub fingerprints: Vec<String>,
    /// Silence for this long: not reachable.
    pub timeout: Duration,
    /// A write left unanswered for this long ends the session.
    pub ack_timeout: Duration,
}

/// `[nbd]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nbd {
    /// TCP addresses.
    pub listen: Vec<SocketAddr>,
    /// TLS, where configured.
    pub tls: Option<NbdTls>,
}

/// TLS for NBD over TCP. PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdTls {
    /// The server's chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Who signs clients.
    pub client_ca: Option<PathBuf>,
}

/// `[witness]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    /// UDP addresses.
    pub listen: Vec<SocketAddr>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = read_file(file)?;
        Self::parse(file, &text, &Places::of_this_process())
    }

    /// Checks a text; `file` is for messages, `places` for derived paths.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(file: &Path, text: &str, places: &Places) -> Result<Self, ConfigError> {
        let sheet = read::read(file, text)?;
        let config = Self::from_sheet(file, sheet, places);
        let faults = check::check(&config);
        if faults.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError {
                file: file.to_owned(),
                faults,
            })
        }
    }

    fn from_sheet(file: &Path, sheet: Sheet, places: &Places) -> Self {
        let node = Node::from_fields(
            &Fields {
                sheet: &sheet,
                section: Section::Node,
                name: "",
            },
            places,
        );
        let names = |section| {
            sheet
                .instances(section)
                .iter()
                .map(|instance| instance.name.as_str())
                .collect::<Vec<_>>()
        };
        let fields = |section, name| Fields {
            sheet: &sheet,
            section,
            name,
        };
        let mirrors = names(Section::Mirror)
            .into_iter()
            .map(|name| {
                Mirror::from_fields(
                    &fields(Section::Mirror, name),
                    &fields(Section::Resync, name),
                    &node,
                )
            })
            .collect();
        let peers = names(Section::Peer)
            .into_iter()
            .map(|name| Peer::from_fields(&fields(Section::Peer, name)))
            .collect();
        let arbiters = names(Section::Arbiter)
            .into_iter()
            .map(|name| Arbiter::from_fields(&fields(Section::Arbiter, name)))
            .collect();
        let nbd = Nbd::from_fields(&fields(Section::Nbd, ""));
        let witness = sheet.instances(Section::Witness).first().map(|_| Witness {
            listen: fields(Section::Witness, "").sockets("listen"),
        });
        Self {
            file: file.to_owned(),
            node,
            mirrors,
            peers,
            arbiters,
            nbd,
            witness,
            sheet,
        }
    }

    /// Works everything out anew from the sheet, after entries of it were changed one by one.
    pub fn refresh(&mut self) {
        let places = Places::of_this_process();
        *self = Self::from_sheet(&self.file, std::mem::take(&mut self.sheet), &places);
    }

    /// The mirror of that name.
    pub fn mirror(&self, name: &str) -> Option<&Mirror> {
        self.mirrors.iter().find(|mirror| mirror.name == name)
    }

    /// The mirrors that decide together with this one, itself among them: the one that is followed first.
    pub fn together<'c>(&'c self, mirror: &'c Mirror) -> impl Iterator<Item = &'c Mirror> {
        let leader = mirror.follows.as_ref().unwrap_or(&mirror.name);
        let leads = |one: &&Mirror| one.name == *leader;
        let follows = |one: &&Mirror| one.follows.as_ref() == Some(leader);
        let all = self.mirrors.iter();
        all.clone().filter(leads).chain(all.filter(follows))
    }

    /// The peer of that name.
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == name)
    }

    /// The arbiter of that name.
    pub fn arbiter(&self, name: &str) -> Option<&Arbiter> {
        self.arbiters.iter().find(|arbiter| arbiter.name == name)
    }
}

/// The text of a configuration file, with errors that say what to do.
///
/// # Errors
/// It is not there, can't be read, is not UTF-8 or is not a file of sane size.
pub fn read_file(file: &Path) -> Result<String, ConfigError> {
    let fault = |what: String, next: &str| ConfigError::one(file, Fault::of_file(what, next));
    match fs::metadata(file) {
        Ok(facts) if facts.len() > 4 << 20 => {
            return Err(fault(
                format!("{} bytes are no configuration", facts.len()),
                "name a TOML file with --config",
            ));
        }
        _ => {}
    }
    match fs::read(file) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| {
            fault(
                "the file is not UTF-8 text".to_owned(),
                "save it as UTF-8, or name another with --config",
            )
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(fault(
            "there is no such file".to_owned(),
            "`kagami init NAME --size 20G` writes one; --config or KAGAMI_CONFIG names another",
        )),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(fault(
            "this user may not read it".to_owned(),
            "run the command as the user that runs the daemon, or name another file with --config",
        )),
        Err(error) => Err(fault(
            format!("the file can't be read: {error}"),
            "name a TOML file with --config",
        )),
    }
}

/// The values of one section, already checked by the table of keys.
struct Fields<'a> {
    sheet: &'a Sheet,
    section: Section,
    name: &'a str,
}

impl Fields<'_> {
    fn get(&self, key: &'static str) -> Option<&Value> {
        self.sheet
            .entry(self.section, self.name, key)
            .map(|entry| &entry.value)
    }

    fn text(&self, key: &'static str) -> Option<String> {
        match self.get(key) {
            Some(Value::Text(text)) => Some(text.clone()),
            None => None,
            other => unreachable!("{key} is {other:?}, the table of keys says text"),
        }
    }

    fn the_text(&self, key: &'static str) -> String {
        self.text(key).expect("the reader demands or defaults it")
    }

    fn path(&self, key: &'static str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    fn number(&self, key: &'static str) -> u64 {
        match self.get(key) {
            Some(Value::Number(number)) => *number,
            other => unreachable!("{key} is {other:?}, the table of keys says a number"),
        }
    }

    fn time(&self, key: &'static str) -> Duration {
        match self.get(key) {
            Some(Value::Time(time)) => *time,
            other => unreachable!("{key} is {other:?}, the table of keys says a time"),
        }
    }

    fn list(&self, key: &'static str) -> Vec<String> {
        match self.get(key) {
            Some(Value::List(list)) => list.clone(),
            None => Vec::new(),
            other => unreachable!("{key} is {other:?}, the table of keys says a list"),
        }
    }

    fn sockets(&self, key: &'static str) -> Vec<SocketAddr> {
        self.list(key)
            .iter()
            .map(|text| text.parse().expect("the reader checked it"))
            .collect()
    }
}

impl Node {
    fn from_fields(fields: &Fields<'_>, places: &Places) -> Self {
        let run_dir = fields.path("run-dir").unwrap_or_else(|| places.run.clone());
        Self {
            name: fields.the_text("name"),
            id: fields.number("id"),
            listen: fields.sockets("listen"),
            threads: fields.number("threads") as usize,
            buffers: fields.number("buffers"),
            busy_poll: Duration::from_micros(fields.number("busy-poll-us")),
            state_dir: fields
                .path("state-dir")
                .unwrap_or_else(|| places.state.clone()),
            control: fields
                .path("control")
                .unwrap_or_else(|| run_dir.join("control.sock")),
            run_dir,
            control_group: fields.text("control-group"),
            log_level: fields.the_text("log-level"),
            log_json: fields.the_text("log-format") == "json",
            link_version: if fields.the_text("link-version") == "1" {
                1
            } else {
                2
            },
        }
    }
}

impl Mirror {
    fn from_fields(fields: &Fields<'_>, resync: &Fields<'_>, node: &Node) -> Self {
        let uuid = value::parse_hex(&fields.the_text("uuid")).expect("the reader checked it");
        let path = |key| fields.path(key).expect("the reader demands it");
        Self {
            name: fields.name.to_owned(),
            uuid,
            size: fields.number("size"),
            backing: path("backing"),
            metadata: path("metadata"),
            protocol: match fields.the_text("protocol").as_str() {
                "A" => Protocol::A,
                "B" => Protocol::B,
                _ => Protocol::C,
            },
            solo: match fields.the_text("solo").as_str() {
                "arbiter" => Solo::Arbiter,
                "always" => Solo::Always,
                _ => Solo::Never,
            },
            peer: fields.text("peer"),
            arbiter: fields.text("arbiter"),
            follows: fields.text("follows"),
            thread: fields.number("thread") as usize,
            logical_block: if fields.the_text("logical-block") == "4096" {
                4096
            } else {
                512
            },
            nbd_socket: fields
                .path("nbd-socket")
                .unwrap_or_else(|| node.run_dir.join(format!("{}.nbd", fields.name))),
            after_sb_0pri: fields.the_text("after-sb-0pri"),
            after_sb_1pri: fields.the_text("after-sb-1pri"),
            after_sb_2pri: fields.the_text("after-sb-2pri"),
            both_stale: fields.the_text("both-stale"),
            flush_after: fields.time("flush-after"),
            activity_log_extents: fields.number("activity-log-extents") as u32,
            resync: Resync {
                latency_target: match resync.get("latency-target") {
                    Some(Value::Latency(latency)) => *latency,
                    other => unreachable!("latency-target is {other:?}"),
                },
                max_rate: match resync.get("max-rate") {
                    Some(Value::Rate(rate)) => *rate,
                    other => unreachable!("max-rate is {other:?}"),
                },
                window: resync.number("window"),
                checksum_first: resync.get("checksum-first") == Some(&Value::Flag(true)),
            },
        }
    }
}

impl Peer {
    fn from_fields(fields: &Fields<'_>) -> Self {
        Self {
            name: fields.name.to_owned(),
            id: fields.number("id"),
            addresses: fields.list("addresses"),
            fingerprints: fields.list("fingerprints"),
            timeout: fields.time("timeout"),
            ack_timeout: fields.time("ack-timeout"),
        }
    }
}

impl Nbd {
    /// `None` without a `listen`; that TLS comes whole is checked later.
    fn from_fields(fields: &Fields<'_>) -> Option<Self> {
        let listen = fields.sockets("listen");
        if listen.is_empty() {
            return None;
        }
        let tls = match (fields.path("certificate"), fields.path("key")) {
            (Some(certificate), Some(key)) => Some(NbdTls {
                certificate,
                key,
                client_ca: fields.path("client-ca"),
            }),
            _ => None,
        };
        Some(Self { listen, tls })
    }
}
