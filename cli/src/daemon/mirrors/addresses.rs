//! What the configuration says of peers and arbiters, as the engine knows them: names become addresses.
//!
//! Looking a name up may take as long as a dead resolver does, so it is done before anything is locked or
//! changed, and by whoever can wait: the rest takes what was found.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use kagami_replicator::shell::engine::ArbiterConfig;
use kagami_replicator::shell::identity::Fingerprint;
use kagami_replicator::shell::quic::{NodeId, PeerConfig};
use kagami_replicator::shell::witness::ClientConfig;
use tokio::task::JoinSet;
use tracing::warn;

use crate::config::{self, Config};

/// What texts of `address:port` and `name:port` stand for, as far as they were looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses(BTreeMap<String, Vec<SocketAddr>>);

impl Addresses {
    /// Looks all of these up at once. A name that does not resolve has the addresses that it has in `before`, if it
    /// has any; else it is a warning, and has none.
    pub async fn look_up(texts: &BTreeSet<String>, before: &Self) -> Self {
        let mut all = BTreeMap::new();
        for (text, found) in ask(texts.iter().cloned()).await {
            let found = match (found, before.0.get(&text)) {
                (Ok(found), _) => found,
                (Err(_), Some(last)) if !last.is_empty() => last.clone(),
                (Err(why), _) => {
                    warn!(
                        "{text} has no address now ({why}); it is left out until it has one, and looked up again now and then"
                    );
                    Vec::new()
                }
            };
            all.insert(text, found);
        }
        Self(all)
    }

    /// Looks those up that had no address, and gives what was found. It was told already that they have none.
    pub async fn look_up_again(texts: BTreeSet<String>) -> Self {
        let found = ask(texts.into_iter()).await.into_iter();
        let found = found.filter_map(|(text, found)| Some((text, found.ok()?)));
        Self(found.filter(|(_, found)| !found.is_empty()).collect())
    }

    /// Those that were looked up and have no address.
    pub fn missing(&self, texts: BTreeSet<String>) -> BTreeSet<String> {
        let is_missing = |text: &String| self.0.get(text).is_some_and(Vec::is_empty);
        texts.into_iter().filter(is_missing).collect()
    }

    /// Takes over what was found later.
    pub fn update(&mut self, found: &Self) {
        let found = found.0.iter();
        self.0
            .extend(found.map(|(text, found)| (text.clone(), found.clone())));
    }

    /// The addresses of all of these. What is an address itself needn't be looked up.
    pub fn of(&self, texts: &[String]) -> Vec<SocketAddr> {
        let mut all = Vec::new();
        for text in texts {
            match self.0.get(text) {
                Some(found) => all.extend(found),
                None => all.extend(text.parse::<SocketAddr>()),
            }
        }
        all.dedup();
        all
    }
}

/// What the resolver says of each, all asked at once.
async fn ask(
    texts: impl Iterator<Item = String>,
) -> Vec<(String, std::io::Result<Vec<SocketAddr>>)> {
    let mut asked = JoinSet::new();
    for text in texts {
        asked.spawn(async move {
            let found = tokio::net::lookup_host(&text).await.map(Iterator::collect);
            (text, found)
        });
    }
    asked.join_all().await
}

/// What is missing is asked for again and again, the pause between growing from the first to the last, and taken over.
pub(super) async fn look_again<Asked, Taken>(
    [first, last]: [Duration; 2],
    missing: impl Fn() -> BTreeSet<String>,
    ask: impl Fn(BTreeSet<String>) -> Asked,
    take: impl Fn(Addresses) -> Taken,
) where
    Asked: Future<Output = Addresses>,
    Taken: Future<Output = ()>,
{
    let mut pause = first;
    loop {
        tokio::time::sleep(pause).await;
        let texts = missing();
        pause = if texts.is_empty() {
            first
        } else {
            let found = ask(texts).await;
            if !found.0.is_empty() {
                take(found).await;
            }
            last.min(pause * 2)
        };
    }
}

/// What is to be looked up of a configuration. (etcd is asked by its names themselves.)
pub fn names(config: &Config) -> BTreeSet<String> {
    let peers = config.peers.iter().flat_map(|peer| &peer.addresses);
    let arbiters = config.arbiters.iter().filter(|one| one.etcd.is_none());
    let arbiters = arbiters.flat_map(|arbiter| &arbiter.addresses);
    peers.chain(arbiters).cloned().collect()
}

/// The peers as the link knows them.
pub(super) fn peers(config: &Config, addresses: &Addresses) -> Vec<PeerConfig> {
    let of = |peer: &config::Peer| PeerConfig {
        node: NodeId(u128::from(peer.id)),
        name: peer.name.clone(),
        addresses: addresses.of(&peer.addresses),
        fingerprints: fingerprints(&peer.fingerprints),
        timeout: peer.timeout,
    };
    config.peers.iter().map(of).collect()
}

/// Keys of a checked configuration.
///
/// # Panics
/// On texts that are none.
pub fn fingerprints(texts: &[String]) -> Vec<Fingerprint> {
    texts
        .iter()
        .map(|text| {
            text.parse()
                .expect("the reader of the configuration checked it")
        })
        .collect()
}

/// Who a mirror asks for permission.
pub(super) fn arbiter(
    config: &Config,
    mirror: &config::Mirror,
    addresses: &Addresses,
) -> ArbiterConfig {
    let arbiter = mirror.arbiter.as_deref();
    let Some(arbiter) = arbiter.and_then(|name| config.arbiter(name)) else {
        return ArbiterConfig::None;
    };
    match arbiter.as_etcd() {
        Some(etcd) => ArbiterConfig::Etcd {
            etcd,
            register: None,
        },
        None => ArbiterConfig::Witness {
            witness: client(arbiter, addresses),
            register: None,
        },
    }
}

fn client(arbiter: &config::Arbiter, addresses: &Addresses) -> ClientConfig {
    ClientConfig {
        name: arbiter.name.clone(),
        addresses: addresses.of(&arbiter.addresses),
        fingerprints: fingerprints(&arbiter.fingerprints),
        timeout: arbiter.timeout,
    }
}

/// A witness as a command asks it.
pub async fn witness(arbiter: &config::Arbiter) -> ClientConfig {
    let texts = arbiter.addresses.iter().cloned().collect();
    let found = Addresses::look_up(&texts, &Addresses::default()).await;
    client(arbiter, &found)
}

/// Tells of each arbiter that is asked in clear text.
pub(super) fn warn_of_clear_text(config: &Config) {
    for etcd in config.arbiters.iter().filter_map(config::Arbiter::as_etcd) {
        if etcd.is_clear_text() {
            warn!(
                arbiter = etcd.name,
                "etcd is asked in clear text: whoever is on the way can change what it says of who may go on alone; use https:// and certificates"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[test]
    fn a_name_that_nobody_knew_is_looked_up_until_somebody_does() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let name = "alpha.example:7789".to_owned();
            let address: SocketAddr = "192.0.2.1:7789".parse().expect("an address");
            let known = RefCell::new(Addresses(BTreeMap::from([
                (name.clone(), Vec::new()),
                ("beta.example:7789".to_owned(), vec![address]),
            ])));
            let tries = Cell::new(0);
            let all = || BTreeSet::from([name.clone(), "beta.example:7789".to_owned()]);
            let looking = look_again(
                [Duration::from_millis(1); 2],
                || known.borrow().missing(all()),
                async |texts| {
                    assert_eq!(
                        texts,
                        BTreeSet::from([name.clone()]),
                        "what is known is not"
                    );
                    tries.set(tries.get() + 1);
                    match tries.get() {
                        1 | 2 => Addresses::default(),
                        _ => Addresses(BTreeMap::from([(name.clone(), vec![address])])),
                    }
                },
                async |found| known.borrow_mut().update(&found),
            );
            let found = async {
                while known.borrow().of(std::slice::from_ref(&name)).is_empty() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                () = looking => unreachable!("it goes on"),
                () = found => {}
            }
            assert_eq!(tries.get(), 3);
            assert!(known.borrow().missing(all()).is_empty());
        });
    }
}
