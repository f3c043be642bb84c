//! What is written: a sector's content is a number, and the number says where it belongs.
//!
//! A store keeps 8 bytes for a sector instead of 512. At the core's interface a number becomes
//! 512 bytes and back; bytes that are no number's are damage, a number in another sector's place
//! is a misdirected write.

use bytes::{Bytes, BytesMut};

/// Bytes of a sector: the smallest unit of a request.
pub const SECTOR: usize = 512;
/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Sectors of a block.
pub const SECTORS: usize = BLOCK / SECTOR;

/// The content of a sector: 0 for zeroes, else place and writer.
pub type Value = u64;
/// The content of a block.
pub type BlockValue = [Value; SECTORS];

/// Zeroes.
pub const ZERO: Value = 0;
/// A block of zeroes.
pub const ZEROES: BlockValue = [ZERO; SECTORS];

const SALT: u64 = 0x6b61_6761_6d69_2121;

/// What the write numbered `write` puts into `sector`.
pub fn value(sector: u64, write: u32) -> Value {
    (sector + 1) << 32 | u64::from(write)
}

/// True if the value may be in this sector at all.
pub fn belongs(value: Value, sector: u64) -> bool {
    value == ZERO || value >> 32 == sector + 1
}

/// The number of the write that made it.
pub fn writer(value: Value) -> u32 {
    value as u32
}

/// Spells sectors as bytes.
pub fn to_bytes(values: &[Value]) -> Bytes {
    static ZEROED: [u8; BLOCK] = [0; BLOCK];
    if values.len() <= SECTORS && values.iter().all(|value| *value == ZERO) {
        return Bytes::from_static(&ZEROED).slice(..values.len() * SECTOR);
    }
    let mut bytes = BytesMut::zeroed(values.len() * SECTOR);
    for (sector, value) in bytes.chunks_exact_mut(SECTOR).zip(values) {
        if *value != ZERO {
            sector[..8].copy_from_slice(&value.to_le_bytes());
            sector[SECTOR / 2..SECTOR / 2 + 8].copy_from_slice(&(value ^ SALT).to_le_bytes());
            sector[SECTOR - 8..].copy_from_slice(&(!value).to_le_bytes());
        }
    }
    bytes.freeze()
}

/// Reads sectors; `None` for one that no write made.
pub fn from_bytes(bytes: &[u8]) -> impl Iterator<Item = Option<Value>> + '_ {
    assert!(
        bytes.len().is_multiple_of(SECTOR),
        "{} bytes are no sectors",
        bytes.len()
    );
    let word =
        |sector: &[u8], at: usize| u64::from_le_bytes(std::array::from_fn(|i| sector[at + i]));
    bytes.chunks_exact(SECTOR).map(move |sector| {
        let value = word(sector, 0);
        let (middle, last) = (word(sector, SECTOR / 2), word(sector, SECTOR - 8));
        let sound = if value == ZERO {
            middle == 0 && last == 0
        } else {
            middle == value ^ SALT && last == !value
        };
        sound.then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_survives_its_bytes_and_damage_is_seen() {
        let values = [value(0, 1), ZERO, value(2, 7)];
        let bytes = to_bytes(&values);
        assert!(from_bytes(&bytes).eq(values.map(Some)));
        let mut torn = bytes.to_vec();
        torn[100..612].copy_from_slice(&bytes[612..1124]);
        assert_eq!(from_bytes(&torn).next(), Some(None));
        assert!(belongs(values[2], 2) && !belongs(values[2], 1) && belongs(ZERO, 9));
        assert!(from_bytes(&to_bytes(&ZEROES)).all(|value| value == Some(ZERO)));
    }
}
