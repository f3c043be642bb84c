//! The kernel's interface in bytes (`include/uapi/linux/ublk_cmd.h` of Linux 6.12).
//!
//! Numbers are the machine's own. Nothing here asks the kernel: what is built here is handed over by
//! [`super::control`] and [`super::queues`], and what they get is read here.

use std::num::NonZeroU32;

use rustix::ioctl::{Opcode, opcode};

use super::Tag;

/// `UBLK_IO_OP_*`: what a request is, the low eight bits of a descriptor's first word.
pub mod op {
    /// Read.
    pub const READ: u8 = 0;
    /// Write.
    pub const WRITE: u8 = 1;
    /// Flush; has no range.
    pub const FLUSH: u8 = 2;
    /// Discard.
    pub const DISCARD: u8 = 3;
    /// Write zeroes.
    pub const WRITE_ZEROES: u8 = 5;
}

/// `UBLK_IO_F_*`: flags of a descriptor's first word, where they stand in it.
pub mod io_flag {
    /// Durable when answered.
    pub const FUA: u32 = 1 << 13;
    /// Zeroes that stay allocated.
    pub const NOUNMAP: u32 = 1 << 15;
}

/// `UBLK_F_*`: what a driver can do, and what a device was made with.
pub mod feature {
    /// The kernel keeps the device and its requests when the daemon dies.
    pub const USER_RECOVERY: u64 = 1 << 3;
    /// What a dead daemon had taken is sent again.
    pub const USER_RECOVERY_REISSUE: u64 = 1 << 4;
    /// Made without rights: such a device can't be recovered.
    pub const UNPRIVILEGED_DEV: u64 = 1 << 5;
    /// Commands are numbered as ioctls are.
    pub const CMD_IOCTL_ENCODE: u64 = 1 << 6;
    /// Payloads are copied by `pread` and `pwrite`.
    pub const USER_COPY: u64 = 1 << 7;

    /// What a device of ours is made with.
    pub const OURS: u64 = USER_RECOVERY | USER_RECOVERY_REISSUE | USER_COPY;
    /// What a driver must have for it.
    pub const NEEDED: u64 = OURS | CMD_IOCTL_ENCODE;
}

/// Bytes of the unit that descriptors and parameters count in, whatever the device's block.
pub const SECTOR: u64 = 512;
/// `UBLK_MAX_QUEUE_DEPTH`; the maps of two queues are as far apart as if both had it.
pub const DEPTH_MAX: u16 = 4096;
/// `UBLK_MAX_NR_QUEUES`
pub const QUEUES_MAX: u16 = 4096;
/// A payload's bytes that can be addressed (`UBLK_IO_BUF_BITS`).
pub const PAYLOAD_MAX: u64 = 1 << 25;

/// A request as the kernel describes it (`struct ublksrv_io_desc`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// One of [`op`], or one that this version does not know.
    pub op: u8,
    /// The first word without the operation: [`io_flag`].
    pub flags: u32,
    /// How many sectors.
    pub sectors: u32,
    /// The first sector; `u64::MAX` for a flush.
    pub start: u64,
}

impl Descriptor {
    /// Bytes of one; those of a queue lie side by side.
    pub const LEN: usize = 24;

    /// Reads one. The last eight bytes are an address, and not used with [`feature::USER_COPY`].
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let first: u32 = u32::from_ne_bytes(part(bytes, 0));
        Self {
            op: (first & 0xff) as u8,
            flags: first & !0xff,
            sectors: u32::from_ne_bytes(part(bytes, 4)),
            start: u64::from_ne_bytes(part(bytes, 8)),
        }
    }
}

/// Where a queue's descriptors begin in the map of `/dev/ublkcN`.
pub fn map_offset(queue: u16, page: usize) -> u64 {
    let longest = usize::from(DEPTH_MAX) * Descriptor::LEN;
    u64::from(queue) * longest.next_multiple_of(page) as u64
}

/// How long that map is: the kernel takes no other length.
pub fn map_len(depth: u16, page: usize) -> usize {
    (usize::from(depth) * Descriptor::LEN).next_multiple_of(page)
}

/// Where in `/dev/ublkcN` a payload is copied from and to.
///
/// # Panics
/// Beyond what a payload can have.
pub fn payload_position(tag: Tag, offset: u64) -> u64 {
    const PAYLOADS: u64 = 0x8000_0000;
    assert!(
        offset < PAYLOAD_MAX,
        "a payload has no byte {offset}: it would be another request's"
    );
    PAYLOADS + (u64::from(tag.queue) << 41) + (u64::from(tag.tag) << 25) + offset
}

/// Commands of a queue: `/dev/ublkcN`.
pub mod io {
    use super::{Opcode, opcode};

    /// A tag's first: gives the kernel the place.
    pub const FETCH: Opcode = opcode::read_write::<[u8; 16]>(b'u', 0x20);
    /// Answers the request, and gives the place back.
    pub const COMMIT_AND_FETCH: Opcode = opcode::read_write::<[u8; 16]>(b'u', 0x21);
    /// No more requests will come in this place (`UBLK_IO_RES_ABORT`, `-ENODEV`).
    pub const ABORT: i32 = -19;
}

/// `struct ublksrv_io_cmd`: what a command of a queue is about.
pub fn io_command(tag: Tag, result: i32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..2].copy_from_slice(&tag.queue.to_ne_bytes());
    bytes[2..4].copy_from_slice(&tag.tag.to_ne_bytes());
    bytes[4..8].copy_from_slice(&result.to_ne_bytes());
    // The address stays 0: payloads are copied by system calls.
    bytes
}

/// Commands about a device: `/dev/ublk-control`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// What the driver can do.
    GetFeatures,
    /// Make a device.
    AddDev,
    /// How it was made and is.
    GetDevInfo,
    /// What its users see of it, before it is started.
    SetParams,
    /// The same, read.
    GetParams,
    /// Show it to its users, once all places are fetched.
    StartDev,
    /// Take it from its users.
    StopDev,
    /// Remove it, and return while the last of its users goes.
    DelDevAsync,
    /// Forget the dead daemon, and let another one fetch.
    StartUserRecovery,
    /// Let its users go on, once all places are fetched.
    EndUserRecovery,
}

impl Op {
    /// The command's number.
    pub const fn code(self) -> Opcode {
        const fn read(number: u8) -> Opcode {
            opcode::read::<[u8; 32]>(b'u', number)
        }
        const fn both(number: u8) -> Opcode {
            opcode::read_write::<[u8; 32]>(b'u', number)
        }
        match self {
            Self::GetDevInfo => read(0x02),
            Self::AddDev => both(0x04),
            Self::StartDev => both(0x06),
            Self::StopDev => both(0x07),
            Self::SetParams => both(0x08),
            Self::GetParams => read(0x09),
            Self::StartUserRecovery => both(0x10),
            Self::EndUserRecovery => both(0x11),
            Self::GetFeatures => read(0x13),
            Self::DelDevAsync => read(0x14),
        }
    }

    /// Its name in the kernel's documentation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GetFeatures => "GET_FEATURES",
            Self::AddDev => "ADD_DEV",
            Self::GetDevInfo => "GET_DEV_INFO",
            Self::SetParams => "SET_PARAMS",
            Self::GetParams => "GET_PARAMS",
            Self::StartDev => "START_DEV",
            Self::StopDev => "STOP_DEV",
            Self::DelDevAsync => "DEL_DEV_ASYNC",
            Self::StartUserRecovery => "START_USER_RECOVERY",
            Self::EndUserRecovery => "END_USER_RECOVERY",
        }
    }
}

/// The device's number in an [`Op::AddDev`] that leaves it to the kernel.
pub const ANY_ID: u32 = u32::MAX;

/// `struct ublksrv_ctrl_cmd`, as it lies in an entry of a ring: `len` bytes at `address` are the command's.
pub fn control_command(id: u32, address: u64, len: u16, data: u64) -> [u8; 80] {
    const NO_QUEUE: u16 = u16::MAX;
    let mut bytes = [0; 80];
    bytes[0..4].copy_from_slice(&id.to_ne_bytes());
    bytes[4..6].copy_from_slice(&NO_QUEUE.to_ne_bytes());
    bytes[6..8].copy_from_slice(&len.to_ne_bytes());
    bytes[8..16].copy_from_slice(&address.to_ne_bytes());
    bytes[16..24].copy_from_slice(&data.to_ne_bytes());
    bytes
}

/// What a device is just now (`UBLK_S_DEV_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not started, or stopped: it has no users.
    Dead,
    /// Its users are served, or are thought to be.
    Live,
    /// Its daemon is gone, and its users wait.
    Quiesced,
    /// Another one, which no device of ours can have.
    Other(u16),
}

impl State {
    fn of(number: u16) -> Self {
        match number {
            0 => Self::Dead,
            1 => Self::Live,
            2 => Self::Quiesced,
            other => Self::Other(other),
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Dead => 0,
            Self::Live => 1,
            Self::Quiesced => 2,
            Self::Other(number) => number,
        }
    }
}

/// How a device was made and is (`struct ublksrv_ctrl_dev_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// N of `/dev/ublkbN`.
    pub id: u32,
    /// How many queues.
    pub queues: u16,
    /// Places of each.
    pub depth: u16,
    /// What it is just now.
    pub state: State,
    /// The longest payload, bytes.
    pub max_io: u32,
    /// The process that serves it, as it was said when it was started.
    pub pid: i32,
    /// [`feature`]
    pub flags: u64,
    /// Kept by the kernel for whoever made it, and given back: whose device it is.
    pub mark: u64,
}

impl DeviceInfo {
    /// Bytes of one.
    pub const LEN: usize = 64;

    /// For [`Op::AddDev`].
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..2].copy_from_slice(&self.queues.to_ne_bytes());
        bytes[2..4].copy_from_slice(&self.depth.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.state.number().to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.max_io.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.id.to_ne_bytes());
        bytes[16..20].copy_from_slice(&self.pid.to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[32..40].copy_from_slice(&self.mark.to_ne_bytes());
        bytes
    }

    /// What [`Op::AddDev`] and [`Op::GetDevInfo`] leave.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        Self {
            queues: u16::from_ne_bytes(part(bytes, 0)),
            depth: u16::from_ne_bytes(part(bytes, 2)),
            state: State::of(u16::from_ne_bytes(part(bytes, 4))),
            max_io: u32::from_ne_bytes(part(bytes, 8)),
            id: u32::from_ne_bytes(part(bytes, 12)),
            pid: i32::from_ne_bytes(part(bytes, 16)),
            flags: u64::from_ne_bytes(part(bytes, 24)),
            mark: u64::from_ne_bytes(part(bytes, 32)),
        }
    }
}

/// What a device's users see (`struct ublk_params`), as far as devices of ours differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Bytes of the device.
    pub size: u64,
    /// The least unit of I/O, bytes; a power of two.
    pub logical_block: NonZeroU32,
    /// The longest payload, bytes.
    pub max_payload: u32,
    /// It is said to be slow to seek.
    pub rotational: bool,
}

/// `UBLK_ATTR_*`
mod attribute {
    pub const ROTATIONAL: u32 = 1 << 1;
    pub const VOLATILE_CACHE: u32 = 1 << 2;
    /// Without [`VOLATILE_CACHE`] the kernel ignores it.
    pub const FUA: u32 = 1 << 3;
}

impl Params {
    /// Bytes that are handed over: the header, and the parts BASIC and DISCARD, of an aligned structure.
    pub const LEN: usize = 64;

    /// Blocks of 4 KiB are what a mirror writes whole.
    const PHYSICAL_SHIFT: u8 = 12;
    /// Whole blocks below 4 GiB: older kernels cut longer zeroes without an error.
    const SPAN_MAX: u32 = (u32::MAX >> 9) & !7;
    const BASIC: u32 = 1 << 0;
    const DISCARD: u32 = 1 << 1;

    /// For [`Op::GetParams`]: the kernel asks how much there is room for.
    pub fn room() -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..4].copy_from_slice(&(Self::LEN as u32).to_ne_bytes());
        bytes
    }

    /// For [`Op::SetParams`].
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut attributes = attribute::VOLATILE_CACHE | attribute::FUA;
        if self.rotational {
            attributes |= attribute::ROTATIONAL;
        }
        let logical_shift = self.logical_block.trailing_zeros() as u8;
        let max_sectors = (u64::from(self.max_payload) / SECTOR) as u32;
        let mut bytes = Self::room();
        bytes[4..8].copy_from_slice(&(Self::BASIC | Self::DISCARD).to_ne_bytes());
        // BASIC
        bytes[8..12].copy_from_slice(&attributes.to_ne_bytes());
        bytes[12] = logical_shift;
        bytes[13] = Self::PHYSICAL_SHIFT;
        bytes[14] = Self::PHYSICAL_SHIFT; // io_opt
        bytes[15] = Self::PHYSICAL_SHIFT; // io_min
        bytes[16..20].copy_from_slice(&max_sectors.to_ne_bytes());
        bytes[24..32].copy_from_slice(&(self.size / SECTOR).to_ne_bytes());
        // DISCARD: alignment 0, granularity, longest discard, longest zeroes, segments
        bytes[44..48].copy_from_slice(&(1u32 << Self::PHYSICAL_SHIFT).to_ne_bytes());
        bytes[48..52].copy_from_slice(&Self::SPAN_MAX.to_ne_bytes());
        bytes[52..56].copy_from_slice(&Self::SPAN_MAX.to_ne_bytes());
        bytes[56..58].copy_from_slice(&1u16.to_ne_bytes());
        bytes
    }

    /// What [`Op::GetParams`] leaves; nothing where there are no parameters yet, or none that a device has.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let types = u32::from_ne_bytes(part(bytes, 4));
        if types & Self::BASIC == 0 {
            return None;
        }
        let attributes = u32::from_ne_bytes(part(bytes, 8));
        let logical_block = 1u32.checked_shl(bytes[12].into())?;
        let max_sectors = u64::from(u32::from_ne_bytes(part(bytes, 16)));
        let sectors = u64::from_ne_bytes(part(bytes, 24));
        Some(Self {
            size: sectors.checked_mul(SECTOR)?,
            logical_block: NonZeroU32::new(logical_block)?,
            max_payload: u32::try_from(max_sectors * SECTOR).unwrap_or(u32::MAX),
            rotational: attributes & attribute::ROTATIONAL != 0,
        })
    }
}

/// The bytes of a field.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

/// The expected bytes are what a C program prints that fills the structures of the header named above.
#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let byte = |text| u8::from_str_radix(text, 16).expect("hex");
        hex.split_whitespace().map(byte).collect()
    }

    #[test]
    fn commands_have_their_numbers() {
        let control = [
            (Op::GetDevInfo, 0x8020_7502),
            (Op::AddDev, 0xc020_7504),
            (Op::StartDev, 0xc020_7506),
            (Op::StopDev, 0xc020_7507),
            (Op::SetParams, 0xc020_7508),
            (Op::GetParams, 0x8020_7509),
            (Op::StartUserRecovery, 0xc020_7510),
            (Op::EndUserRecovery, 0xc020_7511),
            (Op::GetFeatures, 0x8020_7513),
            (Op::DelDevAsync, 0x8020_7514),
        ];
        for (op, number) in control {
            assert_eq!(op.code(), number, "{}", op.name());
        }
        assert_eq!(io::FETCH, 0xc010_7520);
        assert_eq!(io::COMMIT_AND_FETCH, 0xc010_7521);
        assert_eq!(feature::NEEDED, 0xd8);
        assert_eq!(io::ABORT, -libc::ENODEV);
    }

    #[test]
    fn a_control_command() {
        let command = control_command(
            0x0102_0304,
            0x0708_090a_0b0c_0d0e,
            0x0506,
            0x0f10_1112_1314_1516,
        );
        let (first, rest) = command.split_at(32);
        let expected = "04 03 02 01 ff ff 06 05 0e 0d 0c 0b 0a 09 08 07 \
            16 15 14 13 12 11 10 0f 00 00 00 00 00 00 00 00";
        assert_eq!(first, bytes(expected));
        assert_eq!(rest, [0; 48]);
    }

    #[test]
    fn a_device() {
        let info = DeviceInfo {
            id: 0x090a_0b0c,
            queues: 0x0102,
            depth: 0x0304,
            state: State::Quiesced,
            max_io: 0x0506_0708,
            pid: 0x0d0e_0f10,
            flags: 0x1112_1314_1516_1718,
            mark: 0x191a_1b1c_1d1e_1f20,
        };
        let expected = bytes(
            "02 01 04 03 02 00 00 00 08 07 06 05 0c 0b 0a 09 10 0f 0e 0d 00 00 00 00 \
             18 17 16 15 14 13 12 11 20 1f 1e 1d 1c 1b 1a 19 \
             00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
        );
        assert_eq!(info.encode()[..], expected);
        let expected = expected.try_into().expect("64 bytes");
        assert_eq!(DeviceInfo::decode(&expected), info);
    }

    #[test]
    fn parameters() {
        let params = Params {
            size: 0x0001_0203_0405 * SECTOR,
            logical_block: NonZeroU32::new(512).expect("not 0"),
            max_payload: 1 << 20,
            rotational: true,
        };
        let expected = bytes(
            "40 00 00 00 03 00 00 00 0e 00 00 00 09 0c 0c 0c 00 08 00 00 00 00 00 00 \
             05 04 03 02 01 00 00 00 00 00 00 00 00 00 00 00 \
             00 00 00 00 00 10 00 00 f8 ff 7f 00 f8 ff 7f 00 01 00 00 00 00 00 00 00",
        );
        assert_eq!(params.encode()[..], expected);
        let expected = expected.try_into().expect("64 bytes");
        assert_eq!(Params::decode(&expected), Some(params));
        assert_eq!(Params::decode(&Params::room()), None);
    }

    #[test]
    fn a_place_and_its_request() {
        let tag = Tag {
            queue: 0x0102,
            tag: 0x0304,
        };
        let expected = "02 01 04 03 fb ff ff ff 00 00 00 00 00 00 00 00";
        assert_eq!(io_command(tag, -5)[..], bytes(expected));
        let request = "01 28 00 00 04 03 02 01 0c 0b 0a 09 08 07 06 05 88 77 66 55 44 33 22 11";
        let request = Descriptor::decode(&bytes(request).try_into().expect("24 bytes"));
        assert_eq!(request.op, op::WRITE);
        assert_eq!(request.flags, io_flag::FUA | 1 << 11);
        assert_eq!(request.sectors, 0x0102_0304);
        assert_eq!(request.start, 0x0506_0708_090a_0b0c);
    }

    #[test]
    fn places_of_maps_and_payloads() {
        // As long as the pages that hold the descriptors, as far apart as the longest queues would be.
        assert_eq!(map_len(64, 4096), 4096);
        assert_eq!(map_len(171, 4096), 8192);
        assert_eq!(map_len(64, 65536), 65536);
        assert_eq!(map_offset(3, 4096), 3 * 98_304);
        assert_eq!(map_offset(3, 65536), 3 * 131_072);
        let tag = Tag { queue: 3, tag: 5 };
        let expected = 0x8000_0000 + (3 << 41) + (5 << 25) + 4096;
        assert_eq!(payload_position(tag, 4096), expected);
    }

    #[test]
    #[should_panic(expected = "another request's")]
    fn a_payload_ends_before_the_next_one() {
        payload_position(Tag { queue: 0, tag: 0 }, PAYLOAD_MAX);
    }

    proptest! {
        #[test]
        fn whatever_the_kernel_says_is_read_without_a_panic(
            info in any::<[u8; 32]>(),
            rest in any::<[u8; 32]>(),
        ) {
            let bytes: [u8; 64] = std::array::from_fn(|i| if i < 32 { info[i] } else { rest[i - 32] });
            let device = DeviceInfo::decode(&bytes);
            let again = DeviceInfo::decode(&device.encode());
            prop_assert_eq!(device, again);
            if let Some(params) = Params::decode(&bytes) {
                prop_assert!(params.logical_block.is_power_of_two());
            }
        }

        #[test]
        fn payloads_of_two_places_never_overlap(
            one in (0..QUEUES_MAX, 0..DEPTH_MAX, 0..PAYLOAD_MAX),
            two in (0..QUEUES_MAX, 0..DEPTH_MAX, 0..PAYLOAD_MAX),
        ) {
            let place = |(queue, tag, offset): (u16, u16, u64)| payload_position(Tag { queue, tag }, offset);
            prop_assert_eq!(one == two, place(one) == place(two));
            // The system call's argument is signed.
            prop_assert!(i64::try_from(place(one)).is_ok());
        }
    }
}
