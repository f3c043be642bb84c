//! Echo requests: does anybody of these answer?
//!
//! A datagram socket of the kernel's ping where this user may have one, else a raw one.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::process::{Deadline, Failure, Step};

/// One that was lost is sent again after this long.
const AGAIN: Duration = Duration::from_secs(1);

/// What an echo carries, so that it is known as ours.
const MARK: &[u8; 8] = b"kagami-p";

/// Asks all of them at once; the first answer is enough.
///
/// # Errors
/// Nobody answers in time, or nobody can be asked.
pub async fn any(targets: &[IpAddr], deadline: Deadline) -> Step {
    let mut asked = JoinSet::new();
    for target in targets {
        let target = *target;
        // The probe's own time-out would not say who did not answer.
        let most = deadline.left().mul_f32(0.9).min(Duration::from_secs(60));
        asked.spawn(async move {
            match timeout(most, answers(target)).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(format!("{target}: {error}")),
                Err(_) => Err(format!("{target} does not answer")),
            }
        });
    }
    let mut why = Vec::new();
    while let Some(one) = asked.join_next().await {
        match one {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => why.push(error),
            Err(error) => why.push(error.to_string()),
        }
    }
    Err(Failure::Failed(why.join("; ")))
}

/// Waits until this address answers, asking again and again.
///
/// # Errors
/// The kernel gives no socket, or knows no way there.
pub async fn answers(target: IpAddr) -> std::io::Result<()> {
    let socket = open(target)?;
    for sequence in 1..=u16::MAX {
        match socket.send(&question(target, sequence)).await {
            Ok(_) => {}
            // A link that is just coming up has no way there yet.
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
        if timeout(AGAIN, answer(&socket, target)).await.is_ok() {
            return Ok(());
        }
    }
    Err(std::io::ErrorKind::TimedOut.into())
}

fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    matches!(
        error.kind(),
        K::HostUnreachable | K::NetworkUnreachable | K::ConnectionRefused | K::NetworkDown
    )
}

/// tokio has no socket for this; to one that is connected, UDP's sends and receives just as well.
fn open(target: IpAddr) -> std::io::Result<UdpSocket> {
    let (domain, protocol) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))
        .or_else(|_| Socket::new(domain, Type::RAW, Some(protocol)))?;
    socket.set_nonblocking(true)?;
    socket.connect(&SocketAddr::new(target, 0).into())?;
    UdpSocket::from_std(socket.into())
}

fn question(target: IpAddr, sequence: u16) -> Vec<u8> {
    let kind = if target.is_ipv4() { 8 } else { 128 };
    let number = (std::process::id() as u16).to_be_bytes();
    let mut packet = vec![kind, 0, 0, 0, number[0], number[1]];
    packet.extend(sequence.to_be_bytes());
    packet.extend(MARK);
    // The kernel does it itself for version 6.
    if target.is_ipv4() {
        let mut sum: u32 = packet
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        packet[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }
    packet
}

fn is_answer(packet: &[u8], target: IpAddr) -> bool {
    // A raw socket of version 4 gives the header, too.
    let packet = match packet.first() {
        Some(first) if target.is_ipv4() && first >> 4 == 4 => {
            packet.get(usize::from(first & 15) * 4..).unwrap_or(&[])
        }
        _ => packet,
    };
    let kind = if target.is_ipv4() { 0 } else { 129 };
    packet.first() == Some(&kind) && packet.get(8..16) == Some(MARK)
}

async fn answer(socket: &UdpSocket, target: IpAddr) {
    let mut packet = [0; 1500];
    loop {
        match socket.recv(&mut packet).await {
            Ok(length) if is_answer(&packet[..length], target) => return,
            Ok(_) => {}
            // An error of the network (no way there) is no answer, and may pass.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_from_our_own_question() {
        let four: IpAddr = "127.0.0.1".parse().unwrap();
        let six: IpAddr = "::1".parse().unwrap();
        for (target, reply) in [(four, 0), (six, 129)] {
            let mut packet = question(target, 1);
            assert!(!is_answer(&packet, target));
            packet[0] = reply;
            assert!(is_answer(&packet, target));
            packet[9] ^= 1;
            assert!(!is_answer(&packet, target));
            assert!(!is_answer(&packet[..12], target));
            assert!(!is_answer(&[], target));
        }
        let mut with_header = vec![0x46; 24];
        let mut packet = question(four, 1);
        packet[0] = 0;
        with_header.extend(packet);
        assert!(is_answer(&with_header, four));
        assert!(!is_answer(&[0x4f], four));
    }
}
