//! What a manager begins with: both nodes' configuration and this node's own, read anew for each life.
//!
//! A reload changes what is right and leaves the rest as it is: groups that run want their manager, whatever somebody
//! has mistyped.

use std::path::PathBuf;
use std::sync::Arc;

use kagami_failover::channel;
use kagami_failover::config::{Cluster, Severity};
use kagami_failover::core::{Alert, Node, Object};
use kagami_failover::heartbeat::key::Key;
use kagami_failover::manager::{STATE, store};
use kagami_replicator::shell::identity::NodeKeys;
use kagami_replicator::shell::tls::{Admit, Pins, client_config, server_config};
use tracing::warn;

use super::{key_file, state};
use crate::commands::{Context, cluster};
use crate::config::Config;
use crate::daemon::mirrors::fingerprints;
use crate::exit::Failure;

/// The channel's protocol, as TLS names it.
const PROTOCOL: &[u8] = b"kagami-failover/1";

/// Both configurations, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's own.
    pub config: Config,
    /// Where the cluster's was read.
    pub file: PathBuf,
    /// As it was read.
    pub text: String,
    /// The cluster's.
    pub cluster: Arc<Cluster>,
    /// This node.
    pub me: Node,
    /// The cluster's key.
    pub key: Key,
}

impl Settings {
    /// With the cluster's file and its key as they are now.
    ///
    /// # Errors
    /// One is wrong, or can't be read.
    pub fn with(config: Config, context: &Context) -> Result<Self, Failure> {
        let key = key_of(&config)?;
        Self::with_key(config, key, context)
    }

    fn with_key(config: Config, key: Key, context: &Context) -> Result<Self, Failure> {
        let file = cluster::file(&context.file);
        let text = cluster::check::read(&file)?;
        let cluster = Cluster::parse(&file, &text).map_err(|e| Failure::usage(e.to_string()))?;
        let name = &config.node.name;
        let Some(me) = cluster.nodes.iter().position(|node| node == name) else {
            return Err(Failure::usage(format!(
                "node {name} is not in cluster {}, whose nodes are {}\n  next: name it in `nodes` of {}, or put `name` right in [node] of {}",
                cluster.name,
                cluster.nodes.join(" and "),
                file.display(),
                config.file.display()
            )));
        };
        Ok(Self {
            config,
            file,
            text,
            cluster: Arc::new(cluster),
            me,
            key,
        })
    }

    /// Whether the next life could begin with what is there now, and go on from this one's state.
    ///
    /// # Errors
    /// One of the files is wrong, or can't be read.
    pub fn may_begin_anew(&self, context: &Context) -> Result<(), Failure> {
        Self::with(own_anew(&self.config)?, context)?;
        let state = state(&self.config).join(STATE);
        store::load(&state).map_err(|error| Failure::system(error.to_string()))?;
        Ok(())
    }

    /// The same, with what was in force in the place of a file that is wrong; and what people should know of that.
    pub fn as_far_as_right(&self, context: &Context) -> (Self, Vec<Alert>) {
        let mut told = Vec::new();
        let config = own_anew(&self.config).unwrap_or_else(|failure| {
            told.push(stays(&failure));
            self.config.clone()
        });
        let key = key_of(&config).unwrap_or_else(|failure| {
            told.push(stays(&failure));
            self.key.clone()
        });
        let settings = Self::with_key(config.clone(), key.clone(), context);
        let settings = settings.unwrap_or_else(|failure| {
            told.push(stays(&failure));
            Self {
                config,
                key,
                ..self.clone()
            }
        });
        (settings, told)
    }

    /// The other node's name.
    pub fn other(&self) -> &str {
        &self.cluster.nodes[1 - self.me]
    }

    /// What the channel to the other manager is made with.
    pub fn keys(&self) -> channel::Keys {
        let (config, other) = (self.config.clone(), self.other().to_owned());
        channel::Keys::new(tls(&config, &other), move || match own_anew(&config) {
            Ok(config) => tls(&config, &other),
            Err(failure) => {
                warn!(
                    "the other manager's key is not looked for: {}",
                    failure.words
                );
                None
            }
        })
    }
}

fn key_of(config: &Config) -> Result<Key, Failure> {
    Key::load(&key_file(config)).map_err(|error| Failure::refused(error.to_string()))
}

/// A configuration stays in force because this was found instead.
pub fn stays(failure: &Failure) -> Alert {
    warn!("{}", failure.words);
    Alert {
        severity: Severity::Error,
        object: Object::Cluster,
        what: "the configuration is not taken over: what was in force stays".to_owned(),
        cause: first_line(&failure.words),
    }
}

/// What went wrong: what to do next is in the log.
pub fn first_line(words: &str) -> String {
    let line = words.lines().next();
    line.unwrap_or_default().to_owned()
}

/// This node's own configuration as its file is now. What is in [node] counts for the whole process: its folders and
/// sockets are where those who ask for them have found them.
///
/// # Errors
/// It is wrong, or can't be read.
pub fn own_anew(before: &Config) -> Result<Config, Failure> {
    let mut config = Config::load(&before.file)?;
    if config.node != before.node {
        let file = before.file.display();
        warn!(
            "{file}: what has changed in [node] counts when the failover manager is started again"
        );
        config.node = before.node.clone();
    }
    Ok(config)
}

/// This node's key, and the other one's, pinned.
fn tls(config: &Config, other: &str) -> Option<channel::Settings> {
    let Some(peer) = config.peer(other) else {
        warn!(
            "node {other} is not paired with this one: its manager can't be asked (`kagami pair`)"
        );
        return None;
    };
    let keys = match NodeKeys::load(&config.key_folder()) {
        Ok(keys) => keys,
        Err(why) => {
            warn!("the manager of node {other} can't be asked: {why}");
            return None;
        }
    };
    let pins = Pins::new(fingerprints(&peer.fingerprints));
    let protocols = || vec![PROTOCOL.to_vec()];
    let client = client_config(&keys.current, Admit::Pinned(pins.clone()), protocols());
    let server = server_config(&keys.current, Admit::Pinned(pins), protocols());
    match (client, server) {
        (Ok(client), Ok(server)) => Some((client, server)),
        (Err(why), _) | (_, Err(why)) => {
            warn!("the manager of node {other} can't be asked: {why}");
            None
        }
    }
}
