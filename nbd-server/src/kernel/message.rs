//! The nbd family's commands (include/uapi/linux/nbd-netlink.h), as bytes and back.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::wire::{Attribute, Attributes, Builder, ERROR, Malformed, Message, Messages};

/// The family's name.
pub const FAMILY: &str = "nbd";
/// The group that hears of dead links.
const GROUP: &str = "nbd_mc_group";
/// `NBD_GENL_VERSION`
const VERSION: u8 = 1;

/// `NBD_CMD_*`
mod command {
    pub const CONNECT: u8 = 1;
    pub const DISCONNECT: u8 = 2;
    pub const RECONFIGURE: u8 = 3;
    pub const LINK_DEAD: u8 = 4;
    pub const STATUS: u8 = 5;
}

/// `NBD_ATTR_*`
mod attr {
    pub const INDEX: u16 = 1;
    pub const SIZE_BYTES: u16 = 2;
    pub const BLOCK_SIZE_BYTES: u16 = 3;
    pub const TIMEOUT: u16 = 4;
    pub const SERVER_FLAGS: u16 = 5;
    pub const CLIENT_FLAGS: u16 = 6;
    pub const SOCKETS: u16 = 7;
    pub const DEAD_CONN_TIMEOUT: u16 = 8;
    pub const DEVICE_LIST: u16 = 9;
    pub const BACKEND_IDENTIFIER: u16 = 10;
    /// `NBD_SOCK_ITEM`, within `SOCKETS`.
    pub const SOCK_ITEM: u16 = 1;
    /// `NBD_SOCK_FD`, within that.
    pub const SOCK_FD: u16 = 1;
    /// `NBD_DEVICE_ITEM`, within `DEVICE_LIST`.
    pub const DEVICE_ITEM: u16 = 1;
    /// `NBD_DEVICE_INDEX`, within that.
    pub const DEVICE_INDEX: u16 = 1;
    /// `NBD_DEVICE_CONNECTED`, beside it.
    pub const DEVICE_CONNECTED: u16 = 2;
}

/// The generic-netlink controller (include/uapi/linux/genetlink.h).
mod controller {
    pub const ID: u16 = 16;
    pub const GET_FAMILY: u8 = 3;
    pub const VERSION: u8 = 2;
    pub const FAMILY_ID: u16 = 1;
    pub const FAMILY_NAME: u16 = 2;
    pub const MULTICAST_GROUPS: u16 = 7;
    pub const GROUP_NAME: u16 = 1;
    pub const GROUP_ID: u16 = 2;
}

/// Which numbers the running kernel gave the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// The family's own.
    pub id: u16,
    /// Its group's; none in a kernel without it.
    pub group: Option<u32>,
}

/// What a new device is to be.
#[derive(Clone, Copy, Debug)]
pub struct Connect<'a> {
    /// N of /dev/nbdN; `None`: the kernel takes a free one or makes one.
    pub index: Option<u32>,
    /// Bytes of the device.
    pub size: u64,
    /// Bytes of a block, 512 to the page size: the kernel's logical and physical sector.
    pub block_size: u64,
    /// `NBD_FLAG_*` of the transmission phase.
    pub flags: u16,
    /// Seconds for which requests are kept when the connection is dead.
    pub dead_timeout: u64,
    /// What [`Reconfigure`] has to know; also in sysfs.
    pub identifier: &'a str,
    /// The kernel's end; it takes a reference of its own.
    pub socket: BorrowedFd<'a>,
}

/// A new socket for a device whose connection is dead.
#[derive(Clone, Copy, Debug)]
pub struct Reconfigure<'a> {
    /// N of /dev/nbdN.
    pub index: u32,
    /// As in [`Connect`]; another is refused.
    pub identifier: &'a str,
    /// The kernel's end; it takes a reference of its own, if the connection is dead.
    pub socket: BorrowedFd<'a>,
}

/// A device as `STATUS` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// N of /dev/nbdN.
    pub index: u32,
    /// It is set up; a dead connection counts.
    pub connected: bool,
}

/// Asks for the family's numbers.
pub fn get_family(sequence: u32) -> Vec<u8> {
    let (command, version) = (controller::GET_FAMILY, controller::VERSION);
    Builder::new(controller::ID, sequence, command, version)
        .text(controller::FAMILY_NAME, FAMILY)
        .finish()
}

fn sockets(request: Builder, socket: BorrowedFd<'_>) -> Builder {
    // The kernel looks the number up in the table of the process that sends.
    let number = u32::try_from(socket.as_raw_fd()).unwrap_or(u32::MAX);
    request.nested(attr::SOCKETS, |list| {
        list.nested(attr::SOCK_ITEM, |item| item.u32(attr::SOCK_FD, number))
    })
}

impl Connect<'_> {
    /// The request.
    pub fn encode(&self, family: Family, sequence: u32) -> Vec<u8> {
        let mut request = Builder::new(family.id, sequence, command::CONNECT, VERSION);
        if let Some(index) = self.index {
            request = request.u32(attr::INDEX, index);
        }
        request = request
            .u64(attr::SIZE_BYTES, self.size)
            .u64(attr::BLOCK_SIZE_BYTES, self.block_size)
            // Said, though it is the default: whoever had the device before may have left another.
            .u64(attr::TIMEOUT, 0)
            .u64(attr::SERVER_FLAGS, u64::from(self.flags))
            // Neither taken down with its last user nor destroyed when disconnected.
            .u64(attr::CLIENT_FLAGS, 0)
            .u64(attr::DEAD_CONN_TIMEOUT, self.dead_timeout)
            .text(attr::BACKEND_IDENTIFIER, self.identifier);
        sockets(request, self.socket).finish()
    }
}

impl Reconfigure<'_> {
    /// The request. It carries no size and no time-out: a change of those would wait for the very
    /// requests that wait for the socket.
    pub fn encode(&self, family: Family, sequence: u32) -> Vec<u8> {
        let request = Builder::new(family.id, sequence, command::RECONFIGURE, VERSION)
            .u32(attr::INDEX, self.index)
            .text(attr::BACKEND_IDENTIFIER, self.identifier);
        sockets(request, self.socket).finish()
    }
}

/// Takes a device down, whoever uses it.
pub fn disconnect(family: Family, sequence: u32, index: u32) -> Vec<u8> {
    Builder::new(family.id, sequence, command::DISCONNECT, VERSION)
        .u32(attr::INDEX, index)
        .finish()
}

/// Asks for the state of all devices.
pub fn status(family: Family, sequence: u32) -> Vec<u8> {
    Builder::new(family.id, sequence, command::STATUS, VERSION).finish()
}

/// The end of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledged {
    /// Done.
    Done,
    /// Refused, with the errno.
    Errno(i32),
}

/// Looks for the acknowledgement of `sequence` in a datagram.
///
/// # Errors
/// The datagram does not hold together.
pub fn acknowledged(datagram: &[u8], sequence: u32) -> Result<Option<Acknowledged>, Malformed> {
    for message in Messages(datagram) {
        let message = message?;
        if message.kind == ERROR && message.sequence == sequence {
            return message.errno().map(|errno| {
                Some(match errno {
                    0 => Acknowledged::Done,
                    errno => Acknowledged::Errno(errno),
                })
            });
        }
    }
    Ok(None)
}

/// The generic messages of the answers to one request.
fn answers(datagrams: &[u8]) -> impl Iterator<Item = Attributes<'_>> {
    Messages(datagrams)
        .filter_map(Result::ok)
        .filter(|message| message.kind != ERROR)
        .filter_map(|message: Message<'_>| message.generic().ok())
        .map(|(_, attributes)| attributes)
}

/// Reads the answer to [`get_family`].
///
/// # Errors
/// It holds no number.
pub fn read_family(answer: &[u8]) -> Result<Family, Malformed> {
    let missing = Malformed("the family has no number");
    let attributes = answers(answer).next().ok_or(missing)?;
    let id = attributes.find(controller::FAMILY_ID);
    let id = id.and_then(Attribute::u16).ok_or(missing)?;
    let groups = attributes.find(controller::MULTICAST_GROUPS);
    let group = groups.and_then(|groups| {
        let mut groups = groups
            .nested()
            .filter_map(Result::ok)
            .map(Attribute::nested);
        groups
            .find(|group| {
                group.find(controller::GROUP_NAME).and_then(Attribute::text) == Some(GROUP)
            })
            .and_then(|group| group.find(controller::GROUP_ID))
            .and_then(Attribute::u32)
    });
    Ok(Family { id, group })
}

/// Reads which device [`Connect`] made.
///
/// # Errors
/// The answer does not say.
pub fn read_index(answer: &[u8]) -> Result<u32, Malformed> {
    answers(answer)
        .find_map(|attributes| attributes.find(attr::INDEX).and_then(Attribute::u32))
        .ok_or(Malformed("the answer names no device"))
}

/// Reads the answer to [`status`]. What is damaged is left out.
pub fn read_status(answer: &[u8]) -> Vec<DeviceState> {
    answers(answer)
        .filter_map(|attributes| attributes.find(attr::DEVICE_LIST))
        .flat_map(|list| list.nested().filter_map(Result::ok))
        .filter(|item| item.kind == attr::DEVICE_ITEM)
        .filter_map(|item| {
            let device = item.nested();
            Some(DeviceState {
                index: device.find(attr::DEVICE_INDEX)?.u32()?,
                connected: device.find(attr::DEVICE_CONNECTED)?.u8()? != 0,
            })
        })
        .collect()
}

/// The devices whose connection died, in a datagram of the group.
pub fn read_dead(datagram: &[u8], family: Family) -> Vec<u32> {
    Messages(datagram)
        .filter_map(Result::ok)
        .filter(|message| message.kind == family.id)
        .filter_map(|message| message.generic().ok())
        .filter(|(command, _)| *command == command::LINK_DEAD)
        .filter_map(|(_, attributes)| attributes.find(attr::INDEX)?.u32())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use proptest::prelude::*;

    use super::*;

    const NBD: Family = Family {
        id: 0x22,
        group: Some(9),
    };

    /// The one message of a request: its command and attributes.
    fn parsed(bytes: &[u8]) -> (u16, u8, Attributes<'_>) {
        let message = Messages(bytes).next().unwrap().unwrap();
        let (command, attributes) = message.generic().unwrap();
        (message.kind, command, attributes)
    }

    #[test]
    fn a_connection_says_everything() {
        let socket = std::fs::File::open("/dev/null").unwrap();
        let connect = Connect {
            index: Some(3),
            size: 1 << 40,
            block_size: 4096,
            flags: 0x6d,
            dead_timeout: 3600,
            identifier: "kagami-x",
            socket: socket.as_fd(),
        };
        let bytes = connect.encode(NBD, 1);
        let (family, command, attributes) = parsed(&bytes);
        assert_eq!((family, command), (0x22, 1));
        assert_eq!(attributes.find(1).unwrap().u32(), Some(3));
        let wide = |kind| attributes.find(kind).and_then(Attribute::u64);
        assert_eq!(wide(2), Some(1 << 40));
        assert_eq!(wide(3), Some(4096));
        assert_eq!(wide(4), Some(0), "no time-out");
        assert_eq!(wide(5), Some(0x6d));
        assert_eq!(wide(6), Some(0));
        assert_eq!(wide(8), Some(3600));
        assert_eq!(attributes.find(10).unwrap().text(), Some("kagami-x"));
        let fd = attributes.find(7).unwrap().nested().find(1).unwrap();
        let fd = fd.nested().find(1).unwrap().u32().unwrap();
        assert_eq!(i32::try_from(fd), Ok(socket.as_raw_fd()));

        let any = Connect {
            index: None,
            ..connect
        };
        let bytes = any.encode(NBD, 1);
        assert_eq!(parsed(&bytes).2.find(1), None);
    }

    #[test]
    fn a_new_socket_changes_neither_size_nor_time_out() {
        let socket = std::fs::File::open("/dev/null").unwrap();
        let reconfigure = Reconfigure {
            index: 3,
            identifier: "kagami-x",
            socket: socket.as_fd(),
        };
        let bytes = reconfigure.encode(NBD, 1);
        let (_, command, attributes) = parsed(&bytes);
        assert_eq!(command, 3);
        let kinds: Vec<_> = attributes.map(|a| a.unwrap().kind).collect();
        assert_eq!(kinds, [1, 10, 7]);
    }

    #[test]
    fn the_family_is_found_in_an_answer() {
        let answer = Builder::new(16, 1, 1, 2)
            .text(2, "nbd")
            .bytes(1, &0x22u16.to_ne_bytes())
            .nested(7, |groups| {
                groups
                    .nested(1, |group| group.text(1, "other").u32(2, 8))
                    .nested(2, |group| group.u32(2, 9).text(1, "nbd_mc_group"))
            })
            .finish();
        assert_eq!(read_family(&answer), Ok(NBD));
        let without = Builder::new(16, 1, 1, 2).text(2, "nbd").finish();
        assert!(read_family(&without).is_err());
        assert!(read_family(&[]).is_err());
    }

    #[test]
    fn states_and_deaths_are_read() {
        let item = |index: u32, connected: u8| {
            move |list: Builder| list.nested(1, |item| item.u32(1, index).bytes(2, &[connected]))
        };
        let answer = Builder::new(0x22, 1, 5, 1)
            .nested(9, |list| item(1, 1)(item(0, 0)(list)))
            .finish();
        let states = read_status(&answer);
        let seen: Vec<_> = states.iter().map(|s| (s.index, s.connected)).collect();
        assert_eq!(seen, [(0, false), (1, true)]);
        let dead = Builder::new(0x22, 0, 4, 1).u32(1, 5).finish();
        assert_eq!(read_dead(&dead, NBD), [5]);
        assert_eq!(read_dead(&answer, NBD), [0u32; 0]);
        let made = Builder::new(0x22, 1, 1, 1).u32(1, 7).finish();
        assert_eq!(read_index(&made), Ok(7));
        assert!(read_index(&answer).is_err());
    }

    #[test]
    fn acknowledgements_are_told_by_their_number() {
        let ack = |sequence: u32, errno: i32| {
            let mut bytes = 36u32.to_ne_bytes().to_vec();
            bytes.extend(ERROR.to_ne_bytes());
            bytes.extend([0, 0]);
            bytes.extend(sequence.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend((-errno).to_ne_bytes());
            bytes.extend([0; 16]);
            bytes
        };
        assert_eq!(acknowledged(&ack(4, 0), 4), Ok(Some(Acknowledged::Done)));
        let busy = Ok(Some(Acknowledged::Errno(16)));
        assert_eq!(acknowledged(&ack(4, 16), 4), busy);
        assert_eq!(acknowledged(&ack(3, 16), 4), Ok(None));
        assert!(acknowledged(&ack(4, 16)[..18], 4).is_err());
    }

    proptest! {
        #[test]
        fn no_answer_panics(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = acknowledged(&bytes, 1);
            let _ = read_family(&bytes);
            let _ = read_index(&bytes);
            let _ = read_status(&bytes);
            let _ = read_dead(&bytes, NBD);
        }
    }
}
