//! etcd as an arbiter (docs/arbiter.md): a register is the value of one key.
//!
//! The key is `PREFIX/<32 hex digits of the register's id>`, the value what
//! [`crate::shell::arbiter::kept`] spells. It is read linearizably and changed by a transaction that compares
//! the key's revision and its whole value, so that neither a stale member's word nor a late request counts.
//!
//! [`question`] is one question at one endpoint; [`Remote`] knows the endpoints, and which of them answers;
//! [`Client`] is one register as its askers see it. Who may read and write is etcd's own business: users,
//! roles, client certificates.

mod client;
mod question;

use std::path::PathBuf;
use std::time::Duration;

pub use client::{Client, EtcdError, Remote};

/// Where an etcd is, and by what it lets this node in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// Its name, for people.
    pub name: String,
    /// `https://host:port` or `http://host:port` of members of one cluster, the best first.
    pub endpoints: Vec<String>,
    /// What the keys begin with: `/kagami`.
    pub prefix: String,
    /// How it is known, for `https`.
    pub tls: Option<EtcdTls>,
    /// The user it knows this node as.
    pub login: Option<EtcdLogin>,
    /// A question without an answer for as long is unanswered.
    pub timeout: Duration,
}

/// PEM files, read anew for each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdTls {
    /// Who signed the certificates of its members; nobody else is trusted.
    pub ca: PathBuf,
    /// This node's certificate chain and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A user of etcd's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdLogin {
    /// Its name.
    pub user: String,
    /// The file that has its password as the first line; read anew for each connection.
    pub password_file: PathBuf,
}

impl EtcdConfig {
    /// Whether anybody on the way can read what is said, and say something else.
    pub fn is_clear_text(&self) -> bool {
        self.endpoints
            .iter()
            .any(|endpoint| endpoint.starts_with("http://"))
    }
}
