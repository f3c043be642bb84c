//! Being dialled: handshakes with whoever holds a pinned key, and nobody else.

use std::rc::Rc;
use std::time::Duration;

use quinn::{Incoming, VarInt};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::Inner;
use super::connection::{self, Conn};
use super::event::{LinkFault, PeerFault, code};
use crate::shell::tls;

/// Handshakes under way at once; more are refused, for anybody may begin one.
const MAX_HANDSHAKES: u32 = 64;

/// Connections that one peer may have dialled within twice its time-out. It needs one, and one for each
/// of its addresses while it looks for a way.
const MAX_DIALLED: u32 = 64;

/// Serves an endpoint until it is closed.
///
/// # Panics
///
/// It is at its end, and was not closed.
pub(super) async fn accept(inner: Rc<Inner>, endpoint: quinn::Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        if inner.handshakes.get() >= MAX_HANDSHAKES {
            incoming.refuse();
            continue;
        }
        // Whoever sends under others' addresses never gets this far twice.
        if inner.handshakes.get() >= MAX_HANDSHAKES / 2 && incoming.may_retry() {
            let _ = incoming.retry();
            continue;
        }
        inner.handshakes.set(inner.handshakes.get() + 1);
        let inner = Rc::clone(&inner);
        spawn_local(async move {
            let address = incoming.remote_address();
            let outcome = greet(&inner, incoming).await;
            inner.handshakes.set(inner.handshakes.get() - 1);
            match outcome {
                Ok(conn) => serve(inner, conn).await,
                Err((peer, fault)) => inner.report(peer, Some(address), fault),
            }
        });
    }
    inner.assert_stopping(&endpoint);
}

/// Brings an incoming connection to the point where it may open sessions.
async fn greet(
    inner: &Rc<Inner>,
    incoming: Incoming,
) -> Result<Rc<Conn>, (Option<super::NodeId>, LinkFault)> {
    let (config, within) = inner.server_config_for(incoming.remote_address().ip());
    let nobody = |fault| (None, fault);
    let broken = |error| (None, connection::fault_of(inner, within, error));
    let connecting = incoming.accept_with(config).map_err(broken)?;
    let quic = timeout(within, connecting)
        .await
        .map_err(|_| nobody(LinkFault::NoAnswer(within)))?
        .map_err(broken)?;
    let peer = tls::peer_fingerprint(&quic).and_then(|key| Some((inner.peer_with_key(&key)?, key)));
    let Some((peer, key)) = peer else {
        // Unpinned between the handshake's check and this one.
        quic.close(
            VarInt::from_u32(code::UNPINNED),
            b"the key is no longer pinned",
        );
        return Err(nobody(LinkFault::UnknownKey("no longer".to_owned())));
    };
    let known = |fault| (Some(peer.node), fault);
    let theirs = connection::hello(inner, &quic, within)
        .await
        .map_err(known)?;
    connection::check_hello(inner, &quic, peer.node, &theirs).map_err(known)?;
    if inner.dials(peer.node) {
        connection::refuse(&quic, code::WRONG_NODE, &LinkFault::WrongDirection);
        return Err(known(LinkFault::WrongDirection));
    }
    if peer.dialled.get() >= MAX_DIALLED {
        let fault = PeerFault::TooManyConnections(MAX_DIALLED).into();
        connection::refuse(&quic, code::TOO_MANY, &fault);
        return Err(known(fault));
    }
    Ok(Conn::new(quic, peer, theirs.version, key, within))
}

async fn serve(inner: Rc<Inner>, conn: Rc<Conn>) {
    spawn_local(Rc::clone(&conn).watch());
    conn.take_notes(&inner);
    spawn_local(close_unused(Rc::clone(&inner), Rc::clone(&conn)));
    conn.serve(inner).await;
}

/// A connection is dialled for sessions: one that opens none is not kept.
async fn close_unused(inner: Rc<Inner>, conn: Rc<Conn>) {
    let within: Duration = conn.timeout * 2;
    let dialled = &conn.peer.dialled;
    dialled.set(dialled.get() + 1);
    sleep(within).await;
    dialled.set(dialled.get() - 1);
    let is_adopted = conn
        .peer
        .connection()
        .is_some_and(|current| Rc::ptr_eq(&current, &conn));
    if conn.is_open() && !is_adopted {
        conn.fail(&inner, PeerFault::Slow("the opening of a session", within));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, IoSliceMut};
    use std::net::{Ipv4Addr, SocketAddr};
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use quinn::udp::{RecvMeta, Transmit};
    use quinn::{AsyncUdpSocket, EndpointConfig, TokioRuntime, UdpPoller};
    use tokio::task::LocalSet;

    use super::super::{BufferSource, Link, LinkConfig, MirrorId, NodeId};
    use super::*;
    use crate::shell::identity::NodeKey;
    use crate::wire::frame::{Class, PayloadBuffer};

    /// No memory for anything.
    struct Nothing;

    impl AsRef<[u8]> for Nothing {
        fn as_ref(&self) -> &[u8] {
            &[]
        }
    }

    impl PayloadBuffer for Nothing {
        fn as_mut_slice(&mut self) -> &mut [u8] {
            &mut []
        }

        fn freeze(self) -> Bytes {
            Bytes::new()
        }
    }

    impl BufferSource for Nothing {
        type Buffer = Self;

        async fn take(&self, _: MirrorId, _: Class, _: usize) -> Option<Self> {
            None
        }
    }

    fn link() -> Link {
        let key = NodeKey::generate().expect("a key");
        Link::new(LinkConfig::new(NodeId(1)), key, Nothing).expect("a link")
    }

    /// A socket that fails, and says so.
    #[derive(Debug)]
    struct Failing;

    impl AsyncUdpSocket for Failing {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            Box::pin(Self)
        }

        fn try_send(&self, _: &Transmit<'_>) -> io::Result<()> {
            Ok(())
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
            _: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::NetworkDown.into()))
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok((Ipv4Addr::LOCALHOST, 1).into())
        }
    }

    impl UdpPoller for Failing {
        fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    /// An endpoint whose driver ends.
    fn dying() -> quinn::Endpoint {
        let (config, socket) = (EndpointConfig::default(), Arc::new(Failing));
        let runtime = Arc::new(TokioRuntime);
        quinn::Endpoint::new_with_abstract_socket(config, None, socket, runtime)
            .expect("an endpoint")
    }

    #[tokio::test]
    async fn a_link_that_nobody_can_reach_any_more_is_a_failed_assertion() {
        let local = LocalSet::new();
        let link = local.run_until(async { link() }).await;
        let serving = local.spawn_local(accept(Rc::clone(&link.inner), dying()));
        let ended = local.run_until(serving).await;
        assert!(ended.is_err_and(|error| error.is_panic()));
    }

    #[tokio::test]
    async fn one_that_was_closed_is_none() {
        let local = LocalSet::new();
        let link = local.run_until(async { link() }).await;
        let endpoint = dying();
        let serving = local.spawn_local(accept(Rc::clone(&link.inner), endpoint));
        drop(link);
        local.run_until(serving).await.expect("it ended well");
    }
}
