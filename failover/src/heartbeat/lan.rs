//! Heartbeats as datagrams between two addresses.

use std::net::SocketAddr;

use tokio::net::UdpSocket;
use tokio::time::sleep;

use super::{AGAIN, Ear, Newest, frame};

/// Sends and receives for as long as there is something to send.
pub(super) async fn run(own: SocketAddr, peer: SocketAddr, ear: Ear, mut newest: Newest) {
    let mut told = false;
    let socket = loop {
        match UdpSocket::bind(own).await {
            Ok(socket) => break socket,
            // The interface may come up later than the manager.
            Err(error) => ear.failed(&mut told, &format!("no socket on {own}"), &error),
        }
        sleep(AGAIN).await;
    };
    let mut buffer = vec![0; frame::FRAME_MAX + 1];
    loop {
        tokio::select! {
            changed = newest.changed() => {
                if changed.is_err() {
                    return;
                }
                let frame = newest.borrow_and_update().clone();
                // What is not sent is not heard: that is noticed where it counts.
                if let Err(error) = socket.send_to(&frame, peer).await {
                    tracing::debug!("heartbeat to {peer}: {error}");
                }
            }
            received = socket.recv_from(&mut buffer) => match received {
                Ok((length, _)) => ear.hear(&buffer[..length], false),
                Err(error) => {
                    tracing::debug!("heartbeats on {own}: {error}");
                    sleep(AGAIN / 10).await;
                }
            }
        }
    }
}
