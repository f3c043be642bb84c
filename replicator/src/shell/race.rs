//! Reaching somebody who has several addresses: side by side, each a little after the one before.
//!
//! For arbiters and for pairing, which need one connection now; the link between nodes keeps at it by
//! itself (`quic`).

use std::cell::RefCell;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use quinn::{
    ClientConfig, ConnectError, Connection, ConnectionError, Endpoint, TransportErrorCode,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::quic::lasting_endpoint;
use super::tls::SERVER_NAME;

/// Between the starts of two attempts by different addresses.
const STAGGER: Duration = Duration::from_millis(150);

/// Each address that failed, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(|(address, why)| format!("{address}: {why}")).collect::<Vec<_>>().join("; "))]
pub struct NotReached(pub Vec<(SocketAddr, String)>);

/// Sockets to dial from, one of each family, made when first needed.
#[derive(Debug, Default)]
pub(super) struct Sockets([Option<Endpoint>; 2]);

impl Sockets {
    /// Begins a handshake with `address`.
    fn dial(
        &mut self,
        config: ClientConfig,
        address: SocketAddr,
    ) -> Result<quinn::Connecting, String> {
        let place = &mut self.0[usize::from(address.is_ipv6())];
        let endpoint = if let Some(endpoint) = place {
            endpoint
        } else {
            let any = match address {
                SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            };
            place.insert(lasting_endpoint(any, None).map_err(|error| error.to_string())?)
        };
        endpoint
            .connect_with(config, address, SERVER_NAME)
            .map_err(|error| {
                if error == ConnectError::EndpointStopping {
                    // The next attempt makes another.
                    *place = None;
                }
                error.to_string()
            })
    }

    /// Waits until the connections made from here are closed on the wire too.
    pub(super) async fn wait_idle(&self) {
        for endpoint in self.0.iter().flatten() {
            endpoint.wait_idle().await;
        }
    }
}

/// Connects to the first of `addresses` that finishes a handshake before `deadline`.
///
/// Safe to drop at any await.
pub(super) async fn connect(
    sockets: &RefCell<Sockets>,
    config: &ClientConfig,
    addresses: &[SocketAddr],
    deadline: Instant,
) -> Result<Connection, NotReached> {
    let dial = |address: &SocketAddr| {
        let dialled = sockets.borrow_mut().dial(config.clone(), *address);
        async move { dialled?.await.map_err(|error| describe(&error)) }
    };
    first(addresses, deadline, dial).await.map_err(NotReached)
}

/// Begins with each of `places`, each a little after the one before or when one has failed, and takes the
/// first that succeeds before `deadline`; the others are given up. The error: each place, and why not.
///
/// Safe to drop at any await: nothing that was begun goes on.
pub(super) async fn first<P, T, F>(
    places: &[P],
    deadline: Instant,
    mut begin: impl FnMut(&P) -> F,
) -> Result<T, Vec<(P, String)>>
where
    P: Clone + PartialEq + Send + 'static,
    T: Send + 'static,
    F: Future<Output = Result<T, String>> + Send + 'static,
{
    let mut failures: Vec<(P, String)> = Vec::new();
    let mut attempts = JoinSet::new();
    let mut waiting = places.iter();
    let race = async {
        loop {
            let next = waiting.next();
            if let Some(place) = next {
                let (place, attempt) = (place.clone(), begin(place));
                attempts.spawn(async move { (place, attempt.await) });
            } else if attempts.is_empty() {
                return None;
            }
            // A failure lets the next place begin at once.
            tokio::select! {
                biased;
                ended = attempts.join_next(), if !attempts.is_empty() => match ended {
                    Some(Ok((_, Ok(reached)))) => return Some(reached),
                    Some(Ok((place, Err(why)))) => failures.push((place, why)),
                    Some(Err(_)) | None => {}
                },
                () = sleep(STAGGER), if next.is_some() => {}
                else => {}
            }
        }
    };
    match timeout_at(deadline, race).await {
        Ok(Some(reached)) => Ok(reached),
        Ok(None) => Err(failures),
        Err(_) => {
            for place in places {
                if !failures.iter().any(|(failed, _)| failed == place) {
                    failures.push((place.clone(), "no answer in time".to_owned()));
                }
            }
            Err(failures)
        }
    }
}

/// What ended a connection, in the other end's own words where it said why.
pub(super) fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) if !close.reason.is_empty() => {
            crate::shell::fields::shown(&close.reason, 1024)
        }
        ConnectionError::TimedOut => "no answer".to_owned(),
        // A witness, a node or a meeting that has as many as it takes; each has a bound.
        ConnectionError::ConnectionClosed(close)
            if close.error_code == TransportErrorCode::CONNECTION_REFUSED =>
        {
            "it takes no more connections now, too many are open; it may in half a minute"
                .to_owned()
        }
        other => {
            let text = other.to_string();
            // The verifier's own words, out of what TLS wraps around them.
            let key = text
                .split_once("NotPinned(")
                .and_then(|(_, rest)| rest.split_once(')'));
            match key {
                Some((key, _)) => format!("it shows a key that is not pinned here ({key})"),
                None => text,
            }
        }
    }
}
