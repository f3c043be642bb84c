//! One question at one endpoint: connect, look, judge, and change what is to be changed.

use std::error::Error as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, GetOptions, Identity, KeyValue, Txn,
    TxnOp, TxnOpResponse,
};

use super::EtcdConfig;
use crate::shell::arbiter::kept::{Kept, KeptFault};
use crate::shell::arbiter::raw::{Content, Judgement, RegisterId, Swap, judge};

/// No register's key: those are 32 hex digits.
const PROBE: &str = "probe";

/// What is asked of a register.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// Which.
    pub register: RegisterId,
    /// (instance, seq) that is expected, and what it is to hold; `None`: it is only read.
    pub change: Option<(Option<(u64, u64)>, Content)>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// The endpoint can't be used, or does not answer; another one might.
    #[error("{0}")]
    Endpoint(String),
    /// The cluster answered, and any other member would say the same.
    #[error("{0}")]
    Register(String),
}

/// The key's state, as one revision of the store has it.
struct Found {
    content: Content,
    mod_revision: i64,
    value: Vec<u8>,
}

/// A connection to one endpoint, logged in where that is asked for. What it speaks through is dialled
/// with the first question.
pub(super) async fn connect(config: &EtcdConfig, endpoint: &str) -> Result<Client, Fault> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(config.timeout)
        .with_timeout(config.timeout)
        .with_require_leader(true);
    if let Some(tls) = &config.tls {
        let mut files = etcd_client::TlsOptions::new()
            .ca_certificate(Certificate::from_pem(contents(&tls.ca).await?));
        if let Some((certificate, key)) = &tls.identity {
            let chain = contents(certificate).await?;
            files = files.identity(Identity::from_pem(chain, contents(key).await?));
        }
        options = options.with_tls(files);
    }
    if let Some(login) = &config.login {
        let text = contents(&login.password_file).await?;
        let text = String::from_utf8(text)
            .map_err(|_| Fault::Endpoint(unreadable(&login.password_file, "it is not UTF-8")))?;
        let password = text.lines().next().unwrap_or_default();
        options = options.with_user(&login.user, password);
    }
    Client::connect([endpoint], Some(options))
        .await
        .map_err(|error| Fault::Endpoint(words(&error)))
}

/// A file's bytes; the disk is waited for elsewhere.
async fn contents(path: &Path) -> Result<Vec<u8>, Fault> {
    let owned: PathBuf = path.to_owned();
    let read = tokio::task::spawn_blocking(move || fs::read(owned)).await;
    read.unwrap_or_else(|_| Err(io::Error::other("the reader ended")))
        .map_err(|error| Fault::Endpoint(unreadable(path, error)))
}

fn unreadable(path: &Path, why: impl std::fmt::Display) -> String {
    format!("{} can't be read: {why}", path.display())
}

/// Puts `question`. Asked a second time, here or by another endpoint, it comes to the same.
pub(super) async fn put(client: &Client, prefix: &str, question: &Question) -> Result<Swap, Fault> {
    let mut kv = client.kv_client();
    let id = question.register;
    let key = key(prefix, id);
    // Linearizable, as etcd's reads are unless told otherwise: never an older state than anybody was told of.
    let mut answer = kv
        .get(key.as_str(), None::<GetOptions>)
        .await
        .map_err(|error| Fault::Endpoint(words(&error)))?;
    let mut found = found(&key, id, answer.take_kvs())?;
    let Some((expect, new)) = &question.change else {
        return Ok(Swap::Other(found.map(|found| found.content)));
    };
    loop {
        match judge(found.as_ref().map(|found| &found.content), *expect, new) {
            Judgement::Write => {}
            Judgement::Done => return Ok(Swap::Done),
            Judgement::Other => return Ok(Swap::Other(found.map(|found| found.content))),
            Judgement::Senseless(why) => return Err(Fault::Register(why)),
        }
        let kept = Kept {
            content: new.clone(),
            members: Vec::new(),
        };
        let is_as_found = match found {
            None => vec![Compare::version(key.as_str(), CompareOp::Equal, 0)],
            // The revision alone would do, if nobody ever put an old backup in the store's place.
            Some(found) => vec![
                Compare::mod_revision(key.as_str(), CompareOp::Equal, found.mod_revision),
                Compare::value(key.as_str(), CompareOp::Equal, found.value),
            ],
        };
        let change = Txn::new()
            .when(is_as_found)
            .and_then([TxnOp::put(key.as_str(), kept.encode(id), None)])
            .or_else([TxnOp::get(key.as_str(), None)]);
        let answer = kv
            .txn(change)
            .await
            .map_err(|error| Fault::Endpoint(words(&error)))?;
        if answer.succeeded() {
            return Ok(Swap::Done);
        }
        // Somebody was faster: what did they make of it?
        let now = match answer.op_responses().pop() {
            Some(TxnOpResponse::Get(mut now)) => now.take_kvs(),
            _ => {
                return Err(Fault::Endpoint(
                    "it answered with something else".to_owned(),
                ));
            }
        };
        found = self::found(&key, id, now)?;
    }
}

/// Writes `PREFIX/probe`, and takes it away: two transactions, as one that does both to a key is refused.
pub(super) async fn prove_writing(client: &Client, prefix: &str) -> Result<(), Fault> {
    let mut kv = client.kv_client();
    let key = format!("{prefix}/{PROBE}");
    for change in [
        TxnOp::put(key.as_str(), "", None),
        TxnOp::delete(key.as_str(), None),
    ] {
        kv.txn(Txn::new().and_then([change]))
            .await
            .map_err(|error| Fault::Endpoint(words(&error)))?;
    }
    Ok(())
}

/// The key of a register.
pub(super) fn key(prefix: &str, register: RegisterId) -> String {
    format!("{prefix}/{register}")
}

/// What the key holds; a value that can't be read is no empty register.
fn found(key: &str, id: RegisterId, mut kvs: Vec<KeyValue>) -> Result<Option<Found>, Fault> {
    let Some(kv) = kvs.pop() else {
        return Ok(None);
    };
    if kv.key() != key.as_bytes() || !kvs.is_empty() {
        return Err(Fault::Endpoint(
            "it answered another question than the one asked".to_owned(),
        ));
    }
    let (mod_revision, value) = (kv.mod_revision(), kv.value().to_vec());
    let kept = Kept::decode(id, &value).map_err(|fault| Fault::Register(damaged(key, &fault)))?;
    Ok(Some(Found {
        content: kept.content,
        mod_revision,
        value,
    }))
}

fn damaged(key: &str, fault: &KeptFault) -> String {
    format!(
        "the value of key {key} is no register ({fault}): it is not used until somebody has looked; see docs/arbiter.md, \"a damaged register\""
    )
}

/// What went wrong, in etcd's own words where it said something, with what lies beneath.
fn words(error: &etcd_client::Error) -> String {
    let (mut text, mut beneath) = match error {
        etcd_client::Error::GRpcStatus(status) if status.message().is_empty() => {
            (status.code().to_string(), status.source())
        }
        etcd_client::Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        etcd_client::Error::TransportError(error) => (error.to_string(), error.source()),
        other => (other.to_string(), None),
    };
    while let Some(cause) = beneath {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        beneath = cause.source();
    }
    with_remedy(text)
}

/// etcd keeps every value of a key until it is compacted: full, it takes no change any more, and says no more than that.
fn with_remedy(text: String) -> String {
    if text.contains("database space exceeded") {
        format!(
            "{text}: compact and defragment it, then `etcdctl alarm disarm`; started with --auto-compaction-retention=1h it does not fill up (docs/arbiter.md)"
        )
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_etcd_is_told_with_what_to_do() {
        let full = "etcdserver: mvcc: database space exceeded".to_owned();
        let told = with_remedy(full.clone());
        assert!(told.starts_with(&full), "{told}");
        assert!(told.contains("--auto-compaction-retention=1h"), "{told}");
        let denied = "etcdserver: permission denied".to_owned();
        assert_eq!(with_remedy(denied.clone()), denied);
    }

    #[test]
    fn a_registers_key_is_its_id() {
        assert_eq!(
            key("/kagami", RegisterId(0x7067)),
            "/kagami/00000000000000000000000000007067"
        );
    }
}
