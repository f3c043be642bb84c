//! Who has an address on the wire: probes and announcements for IPv4 (ARP, RFC 5227) and IPv6
//! (neighbour discovery, RFC 4861), as frames of our own.
//!
//! The kernel does this for IPv6 alone, and tells nobody what it found. Frames are made and read
//! by pure functions; the packet socket is at the end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

/// A hardware address of an Ethernet.
pub type Mac = [u8; 6];

const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const EVERYBODY: Mac = [0xff; 6];
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// An interface that has neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name, for messages.
    pub name: String,
    /// Its number in the kernel.
    pub index: i32,
    /// Its own hardware address.
    pub mac: Mac,
}

/// A hardware address as text.
pub fn shown(mac: Mac) -> String {
    let parts: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}

/// A hardware address from text.
pub fn mac(text: &str) -> Option<Mac> {
    let mut out = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut out {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(out)
}

fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes()].concat()
}

fn arp(operation: u16, mac: Mac, sender: Ipv4Addr, target_mac: Mac, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(EVERYBODY, mac, ARP);
    // Ethernet, IPv4, and their lengths.
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(mac);
    frame.extend(sender.octets());
    frame.extend(target_mac);
    frame.extend(target.octets());
    frame
}

/// The group in which everybody hears who may have the address.
fn solicited(address: Ipv6Addr) -> Ipv6Addr {
    let last = address.octets();
    let mut group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).octets();
    group[13..].copy_from_slice(&last[13..]);
    group.into()
}

fn icmpv6(mac: Mac, from: Ipv6Addr, to: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let group = to.octets();
    let to_mac = [0x33, 0x33, group[12], group[13], group[14], group[15]];
    let length = message.len() as u16;
    let mut sum: u32 = u32::from(length) + u32::from(ICMPV6);
    for part in [&from.octets()[..], &to.octets(), &message] {
        for pair in part.chunks(2) {
            let low = pair.get(1).copied().unwrap_or_default();
            sum += u32::from(u16::from_be_bytes([pair[0], low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    message[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let mut frame = ethernet(to_mac, mac, IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    // What has crossed a router is not believed: 255 hops are left.
    frame.extend([ICMPV6, 255]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(message);
    frame
}

/// Asks whether anybody has the address, which is not ours yet.
pub fn probe(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp(1, mac, Ipv4Addr::UNSPECIFIED, [0; 6], address),
        IpAddr::V6(address) => {
            let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
            message.extend(address.octets());
            icmpv6(mac, Ipv6Addr::UNSPECIFIED, solicited(address), message)
        }
    }
}

/// Tells everybody that the address is ours now. Some believe an ARP question, some an answer.
pub fn announcements(mac: Mac, address: IpAddr) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(address) => vec![
            arp(1, mac, address, [0; 6], address),
            arp(2, mac, address, EVERYBODY, address),
        ],
        IpAddr::V6(address) => {
            // It overrides what is known.
            let mut message = vec![ADVERTISEMENT, 0, 0, 0, 0x20, 0, 0, 0];
            message.extend(address.octets());
            // Option 2: the hardware address that it has; its length in units of 8 bytes.
            message.extend([2, 1]);
            message.extend(mac);
            let everybody = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            vec![icmpv6(mac, address, everybody, message)]
        }
    }
}

/// What a frame says of an address, and who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// He has it.
    Has(Mac),
    /// He asks whether it is free.
    Probes(Mac),
}

/// What this frame says of the address; `None`: nothing.
fn said(frame: &[u8], address: IpAddr) -> Option<Word> {
    let bytes = |at: usize, length: usize| frame.get(at..at + length);
    let hardware = |at: usize| Mac::try_from(bytes(at, 6)?).ok();
    let kind = u16::from_be_bytes(bytes(12, 2)?.try_into().ok()?);
    match (kind, address) {
        (ARP, IpAddr::V4(address)) => {
            // Ethernet, IPv4, and all of it.
            if bytes(14, 28)?[..6] != [0, 1, 8, 0, 6, 4] {
                return None;
            }
            let who = hardware(22)?;
            let asks = bytes(20, 2)? == [0, 1]
                && bytes(28, 4)? == [0; 4]
                && bytes(38, 4)? == address.octets();
            if bytes(28, 4)? == address.octets() {
                Some(Word::Has(who))
            } else {
                asks.then_some(Word::Probes(who))
            }
        }
        (IPV6, IpAddr::V6(address)) => {
            let who = hardware(6)?;
            // What has crossed a router is not believed.
            let here = bytes(14 + 6, 2)? == [ICMPV6, 255];
            if !here || bytes(62, 16)? != address.octets() {
                return None;
            }
            let asks = bytes(54, 1)? == [SOLICITATION] && bytes(22, 16)? == [0; 16];
            let has = bytes(54, 1)? == [ADVERTISEMENT];
            if has {
                Some(Word::Has(who))
            } else {
                asks.then_some(Word::Probes(who))
            }
        }
        _ => None,
    }
}

/// Who claims the address in this frame, which is not ours yet; `None`: nobody but ourselves.
///
/// Somebody who asks for it as we do, at the same time, is about to take it.
pub fn claimant(frame: &[u8], mac: Mac, address: IpAddr) -> Option<Mac> {
    let (Word::Has(who) | Word::Probes(who)) = said(frame, address)?;
    (who != mac).then_some(who)
}

/// Who says in this frame that he has the address, which is ours; `None`: nobody but ourselves.
///
/// Who asks whether it is free is told so by the kernel, and is no conflict (RFC 5227 §2.4). `ours`:
/// every hardware address of this node, since the kernel answers for each address of the node on each of its
/// interfaces in the network.
pub fn holder(frame: &[u8], ours: &[Mac], address: IpAddr) -> Option<Mac> {
    match said(frame, address)? {
        Word::Has(who) => (!ours.contains(&who)).then_some(who),
        Word::Probes(_) => None,
    }
}

/// A packet socket on one interface.
#[derive(Debug)]
pub struct Wire {
    // tokio has no packet socket; to one that is bound, UDP's sends and receives just as well.
    socket: UdpSocket,
    interface: Interface,
}

impl Wire {
    /// Opens one for what `address` needs.
    ///
    /// # Errors
    /// The kernel refuses: without `CAP_NET_RAW`, or where the interface has gone.
    pub fn open(interface: Interface, address: IpAddr) -> std::io::Result<Self> {
        let kind = if address.is_ipv4() { ARP } else { IPV6 };
        // Until it is bound it hears nothing.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        socket.bind(&link_address(interface.index, kind))?;
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
            interface,
        })
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// The interface is down, or gone.
    pub async fn send(&self, frame: &[u8]) -> std::io::Result<()> {
        self.socket.send(frame).await.map(drop)
    }

    /// Asks three times within `time` whether somebody has the address. Whom `find` finds in a frame that
    /// is heard meanwhile, and nobody else, has answered.
    ///
    /// # Errors
    /// As [`Wire::send`].
    pub async fn ask(
        &self,
        address: IpAddr,
        time: Duration,
        find: impl Fn(&[u8]) -> Option<Mac>,
    ) -> std::io::Result<Option<Mac>> {
        let begin = Instant::now();
        for third in 1..=3 {
            let until = begin + time * third / 3;
            let found = self.ask_once(address, until, &find).await?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// As [`Wire::ask`], with one question.
    ///
    /// # Errors
    /// As [`Wire::send`].
    pub async fn ask_once(
        &self,
        address: IpAddr,
        until: Instant,
        find: impl Fn(&[u8]) -> Option<Mac>,
    ) -> std::io::Result<Option<Mac>> {
        self.send(&probe(self.interface.mac, address)).await?;
        match timeout_at(until, self.hear(&find)).await {
            Ok(heard) => heard.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Waits for a frame in which somebody is found.
    async fn hear(&self, find: &impl Fn(&[u8]) -> Option<Mac>) -> std::io::Result<Mac> {
        let mut frame = [0; 2048];
        loop {
            let length = self.socket.recv(&mut frame).await?;
            if let Some(mac) = find(&frame[..length]) {
                return Ok(mac);
            }
        }
    }

    /// Tells everybody once that the address is here.
    ///
    /// # Errors
    /// As [`Wire::send`].
    pub async fn announce(&self, address: IpAddr) -> std::io::Result<()> {
        for frame in announcements(self.interface.mac, address) {
            self.send(&frame).await?;
        }
        Ok(())
    }
}

#[allow(unsafe_code)]
fn link_address(index: i32, kind: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` is one of the kinds of addresses that the storage is made for, plain
    // integers, and all zeroes is a value of it.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = kind.to_be();
    link.sll_ifindex = index;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the storage has a whole `sockaddr_ll` of its family, and `length` is its size.
    unsafe { SockAddr::new(storage, length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Mac = [2, 0, 0, 0, 0, 1];
    const THEIRS: Mac = [2, 0, 0, 0, 0, 2];

    #[test]
    fn an_address_is_claimed_by_who_has_it_or_is_about_to() {
        for (ours, another) in [("10.0.0.10", "10.0.0.11"), ("fd00::10", "fd00::11")] {
            let ours: IpAddr = ours.parse().unwrap();
            let another: IpAddr = another.parse().unwrap();
            for frame in announcements(THEIRS, ours) {
                assert_eq!(claimant(&frame, OURS, ours), Some(THEIRS));
                assert_eq!(claimant(&frame, THEIRS, ours), None, "our own is none");
                assert_eq!(claimant(&frame, OURS, another), None);
                for cut in 0..frame.len().min(42) {
                    assert_eq!(claimant(&frame[..cut], OURS, ours), None);
                }
            }
            let probe = probe(THEIRS, ours);
            assert_eq!(claimant(&probe, OURS, ours), Some(THEIRS));
            assert_eq!(claimant(&probe, OURS, another), None);
        }
    }

    #[test]
    fn somebody_who_only_asks_for_an_address_does_not_claim_it() {
        let ours: Ipv4Addr = "10.0.0.10".parse().unwrap();
        let question = arp(1, THEIRS, "10.0.0.7".parse().unwrap(), [0; 6], ours);
        assert_eq!(claimant(&question, OURS, ours.into()), None);
        assert_eq!(holder(&question, &[OURS], ours.into()), None);
    }

    #[test]
    fn an_address_is_held_by_who_says_that_it_is_his() {
        let also_ours: Mac = [2, 0, 0, 0, 0, 3];
        for (ours, another) in [("10.0.0.10", "10.0.0.11"), ("fd00::10", "fd00::11")] {
            let ours: IpAddr = ours.parse().unwrap();
            let another: IpAddr = another.parse().unwrap();
            let says = announcements(THEIRS, ours);
            for frame in &says {
                assert_eq!(holder(frame, &[OURS, also_ours], ours), Some(THEIRS));
                assert_eq!(holder(frame, &[], ours), Some(THEIRS));
                assert_eq!(holder(frame, &[OURS, THEIRS], ours), None, "it is ours");
                assert_eq!(holder(frame, &[OURS], another), None);
                for cut in 0..frame.len().min(42) {
                    assert_eq!(holder(&frame[..cut], &[OURS], ours), None);
                }
            }
            // Who asks for it as we do before we take it does not have it.
            assert_eq!(holder(&probe(THEIRS, ours), &[OURS], ours), None);
        }
    }

    #[test]
    fn the_answer_to_a_probe_tells_who_holds_the_address() {
        let ours: Ipv4Addr = "10.0.0.10".parse().unwrap();
        // As a kernel answers: to us, and to the address that we have not said.
        let answer = arp(2, THEIRS, ours, OURS, Ipv4Addr::UNSPECIFIED);
        assert_eq!(holder(&answer, &[OURS], ours.into()), Some(THEIRS));
        // It speaks from it, to whomever.
        let question = arp(1, THEIRS, ours, [0; 6], "10.0.0.7".parse().unwrap());
        assert_eq!(holder(&question, &[OURS], ours.into()), Some(THEIRS));
        // It speaks to it.
        let answer = arp(2, THEIRS, "10.0.0.7".parse().unwrap(), OURS, ours);
        assert_eq!(holder(&answer, &[OURS], ours.into()), None);
    }

    #[test]
    fn an_icmpv6_message_sums_to_nothing() {
        let frame = probe(OURS, "fe80::1:2:3".parse().unwrap());
        let mut sum: u32 = u32::from(ICMPV6) + 24;
        for pair in frame[22..].chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        assert_eq!(sum, 0xffff);
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 2, 0, 3]);
    }

    #[test]
    fn hardware_addresses_are_read_and_written() {
        assert_eq!(mac("02:00:00:00:00:0a"), Some([2, 0, 0, 0, 0, 10]));
        assert_eq!(shown([2, 0, 0, 0, 0, 10]), "02:00:00:00:00:0a");
        for bad in ["", "02:00", "02:00:00:00:00:0a:0b", "xx:00:00:00:00:00"] {
            assert_eq!(mac(bad), None, "{bad}");
        }
    }
}
