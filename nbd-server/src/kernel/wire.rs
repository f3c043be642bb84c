//! Netlink messages as bytes: headers and attributes (include/uapi/linux/netlink.h, genetlink.h).
//!
//! Everything is in the machine's own byte order. Reading bounds every length before it is used: a
//! malformed message ends the walk with a fault and never panics.

/// Bytes of `struct nlmsghdr`.
pub const HEADER_LEN: usize = 16;
/// Bytes of `struct nlattr`.
const ATTRIBUTE_LEN: usize = 4;

/// `NLMSG_ERROR`: an error, or an acknowledgement.
pub const ERROR: u16 = 2;
/// `NLM_F_REQUEST | NLM_F_ACK`
const REQUEST_ACK: u16 = 0x1 | 0x4;
/// `NLA_F_NESTED`
const NESTED: u16 = 0x8000;
/// `NLA_TYPE_MASK`: without the flags for nesting and byte order.
const TYPE_MASK: u16 = 0x3fff;

/// A message or attribute that does not hold together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a netlink message does not hold together: {0}")]
pub struct Malformed(pub &'static str);

/// A generic-netlink request in the making.
#[derive(Clone, Debug)]
pub struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    /// A request to `family`, to be acknowledged under `sequence`.
    pub fn new(family: u16, sequence: u32, command: u8, version: u8) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(0u32.to_ne_bytes()); // the length, at the end
        bytes.extend(family.to_ne_bytes());
        bytes.extend(REQUEST_ACK.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes()); // the kernel fills in the port
        bytes.extend([command, version, 0, 0]);
        Self { bytes }
    }

    /// Adds an attribute.
    #[must_use]
    pub fn bytes(mut self, kind: u16, payload: &[u8]) -> Self {
        let len = u16::try_from(ATTRIBUTE_LEN + payload.len()).unwrap_or_default();
        assert!(len > 0, "an attribute of {} bytes", payload.len());
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(payload);
        self.pad();
        self
    }

    /// Adds a 32-bit attribute.
    #[must_use]
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds a 64-bit attribute.
    #[must_use]
    pub fn u64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds a string, with the zero byte at its end.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Adds an attribute made of attributes.
    #[must_use]
    pub fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.bytes.extend([0; ATTRIBUTE_LEN]);
        let mut inner = fill(self);
        let len = u16::try_from(inner.bytes.len() - start).unwrap_or_default();
        assert!(len > 0, "nested attributes of too many bytes");
        inner.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        inner.bytes[start + 2..start + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
        inner
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The message.
    pub fn finish(mut self) -> Vec<u8> {
        let len = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes
    }
}

/// One message of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The family's id, or [`ERROR`] and its like.
    pub kind: u16,
    /// Of the request that it answers; 0 in what nobody asked for.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The errno of an [`ERROR`]; 0 acknowledges.
    ///
    /// # Errors
    /// It is cut off.
    pub fn errno(&self) -> Result<i32, Malformed> {
        let bytes = array(self.payload, 0).ok_or(Malformed("an acknowledgement is cut off"))?;
        Ok(i32::from_ne_bytes(bytes).saturating_neg())
    }

    /// Command and attributes of a generic-netlink message.
    ///
    /// # Errors
    /// It is cut off.
    pub fn generic(&self) -> Result<(u8, Attributes<'a>), Malformed> {
        match self.payload {
            [command, _, _, _, attributes @ ..] => Ok((*command, Attributes(attributes))),
            _ => Err(Malformed("a generic header is cut off")),
        }
    }
}

/// The messages of a datagram, one after the other.
#[derive(Clone, Debug)]
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let found = message(self.0);
        let used = found.as_ref().map_or(self.0.len(), |(_, used)| *used);
        self.0 = self.0.get(used..).unwrap_or_default();
        Some(found.map(|(message, _)| message))
    }
}

fn message(bytes: &[u8]) -> Result<(Message<'_>, usize), Malformed> {
    let cut = Malformed("a message is cut off");
    let len = u32::from_ne_bytes(array(bytes, 0).ok_or(cut)?) as usize;
    let kind = u16::from_ne_bytes(array(bytes, 4).ok_or(cut)?);
    let sequence = u32::from_ne_bytes(array(bytes, 8).ok_or(cut)?);
    let payload = bytes.get(HEADER_LEN..len).ok_or(cut)?;
    let message = Message {
        kind,
        sequence,
        payload,
    };
    Ok((message, len.next_multiple_of(4)))
}

/// Attributes, one after the other.
#[derive(Clone, Debug)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The first attribute of a kind.
    pub fn find(&self, kind: u16) -> Option<Attribute<'a>> {
        let mut all = self.clone().filter_map(Result::ok);
        all.find(|found| found.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let found = attribute(self.0);
        let used = found.as_ref().map_or(self.0.len(), |(_, used)| *used);
        self.0 = self.0.get(used..).unwrap_or_default();
        Some(found.map(|(attribute, _)| attribute))
    }
}

fn attribute(bytes: &[u8]) -> Result<(Attribute<'_>, usize), Malformed> {
    let cut = Malformed("an attribute is cut off");
    let len = usize::from(u16::from_ne_bytes(array(bytes, 0).ok_or(cut)?));
    let kind = u16::from_ne_bytes(array(bytes, 2).ok_or(cut)?) & TYPE_MASK;
    let payload = bytes.get(ATTRIBUTE_LEN..len).ok_or(cut)?;
    Ok((Attribute { kind, payload }, len.next_multiple_of(4)))
}

/// One attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Which, without flags.
    pub kind: u16,
    /// Its bytes.
    pub payload: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// A number of one byte.
    pub fn u8(self) -> Option<u8> {
        self.payload.first().copied()
    }

    /// A number of 16 bits.
    pub fn u16(self) -> Option<u16> {
        array(self.payload, 0).map(u16::from_ne_bytes)
    }

    /// A number of 32 bits.
    pub fn u32(self) -> Option<u32> {
        array(self.payload, 0).map(u32::from_ne_bytes)
    }

    /// A number of 64 bits.
    pub fn u64(self) -> Option<u64> {
        array(self.payload, 0).map(u64::from_ne_bytes)
    }

    /// A string, up to its zero byte.
    pub fn text(self) -> Option<&'a str> {
        let text = self.payload.split(|byte| *byte == 0).next()?;
        std::str::from_utf8(text).ok()
    }

    /// What is nested in it.
    pub fn nested(self) -> Attributes<'a> {
        Attributes(self.payload)
    }
}

/// `N` bytes at `at`, if they are there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_in_bytes() {
        let bytes = Builder::new(0x22, 7, 1, 1)
            .u32(1, 5)
            .text(10, "ab")
            .nested(7, |sockets| sockets.nested(1, |item| item.u32(1, 9)))
            .finish();
        // As a little-endian machine spells it.
        let expected: [u8; 52] = [
            52, 0, 0, 0, 0x22, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0, // header
            1, 1, 0, 0, // generic header
            8, 0, 1, 0, 5, 0, 0, 0, // a number
            7, 0, 10, 0, b'a', b'b', 0, 0, // a string, padded
            16, 0, 7, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 9, 0, 0, 0, // nested twice
        ];
        if cfg!(target_endian = "little") {
            assert_eq!(bytes, expected);
        }
        let mut messages = Messages(&bytes);
        let message = messages.next().unwrap().unwrap();
        assert_eq!(messages.next(), None);
        assert_eq!((message.kind, message.sequence), (0x22, 7));
        let (command, attributes) = message.generic().unwrap();
        assert_eq!(command, 1);
        assert_eq!(attributes.find(1).and_then(Attribute::u32), Some(5));
        assert_eq!(attributes.find(10).and_then(Attribute::text), Some("ab"));
        let item = attributes.find(7).unwrap().nested().find(1).unwrap();
        assert_eq!(item.nested().find(1).and_then(Attribute::u32), Some(9));
        assert_eq!(attributes.find(2), None);
    }

    #[test]
    fn lengths_that_lie_end_the_walk() {
        for len in [0u32, 3, 15, 17, u32::MAX] {
            let mut bytes = [0u8; 16];
            bytes[..4].copy_from_slice(&len.to_ne_bytes());
            let all: Vec<_> = Messages(&bytes).collect();
            assert!(all.len() == 1 && all[0].is_err(), "{len}: {all:?}");
        }
        for len in [0u16, 3, 9, u16::MAX] {
            let mut bytes = [0u8; 8];
            bytes[..2].copy_from_slice(&len.to_ne_bytes());
            let all: Vec<_> = Attributes(&bytes).collect();
            assert!(all.len() == 1 && all[0].is_err(), "{len}: {all:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            for message in Messages(&bytes).flatten() {
                let _ = message.errno();
                if let Ok((_, attributes)) = message.generic() {
                    for attribute in attributes.flatten() {
                        let _ = (attribute.u8(), attribute.u16(), attribute.u32(), attribute.u64());
                        let _ = attribute.text();
                        let _ = attribute.nested().find(1);
                    }
                }
            }
        }
    }
}
