//! Small records of fixed fields, little-endian: reading them with every length checked first.
//!
//! Used by what is said to the witness and while pairing, and by the witness's files. The decoders
//! say which field is wrong; what that means is for their callers to say.

use bytes::BufMut;

/// A record that isn't one: it is cut off, too long, or a field holds what it can't.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldFault {
    /// The bytes end within a field.
    #[error("it ends within {0}")]
    CutOff(&'static str),
    /// Bytes follow the last field.
    #[error("{0} bytes follow its end")]
    Trailing(usize),
    /// A list or text is longer than it may be.
    #[error("{what} has {found} items or bytes, at most {limit} are allowed")]
    TooLong {
        /// The field.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// A value that means nothing.
    #[error("{0} holds a value that means nothing")]
    Meaningless(&'static str),
}

/// Reads fields off the front of some bytes.
#[derive(Clone, Copy, Debug)]
pub(in crate::shell) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(in crate::shell) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `len` bytes.
    pub(in crate::shell) fn take(
        &mut self,
        what: &'static str,
        len: usize,
    ) -> Result<&'a [u8], FieldFault> {
        let (taken, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(FieldFault::CutOff(what))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(in crate::shell) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], FieldFault> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(FieldFault::CutOff(what))?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(in crate::shell) fn u8(&mut self, what: &'static str) -> Result<u8, FieldFault> {
        self.array(what).map(u8::from_le_bytes)
    }

    pub(in crate::shell) fn u16(&mut self, what: &'static str) -> Result<u16, FieldFault> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(in crate::shell) fn u32(&mut self, what: &'static str) -> Result<u32, FieldFault> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(in crate::shell) fn u64(&mut self, what: &'static str) -> Result<u64, FieldFault> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(in crate::shell) fn u128(&mut self, what: &'static str) -> Result<u128, FieldFault> {
        self.array(what).map(u128::from_le_bytes)
    }

    /// One byte that is 0 or 1.
    pub(in crate::shell) fn bool(&mut self, what: &'static str) -> Result<bool, FieldFault> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FieldFault::Meaningless(what)),
        }
    }

    /// A count (u16) that is at most `limit`.
    pub(in crate::shell) fn count(
        &mut self,
        what: &'static str,
        limit: usize,
    ) -> Result<usize, FieldFault> {
        let found = usize::from(self.u16(what)?);
        if found > limit {
            return Err(FieldFault::TooLong { what, found, limit });
        }
        Ok(found)
    }

    /// A length (u16), and as many bytes.
    pub(in crate::shell) fn bytes(
        &mut self,
        what: &'static str,
        limit: usize,
    ) -> Result<&'a [u8], FieldFault> {
        let len = self.count(what, limit)?;
        self.take(what, len)
    }

    /// As [`Fields::bytes`], of UTF-8 without control characters (it is shown on terminals).
    pub(in crate::shell) fn text(
        &mut self,
        what: &'static str,
        limit: usize,
    ) -> Result<String, FieldFault> {
        match std::str::from_utf8(self.bytes(what, limit)?) {
            Ok(text) if !text.chars().any(char::is_control) => Ok(text.to_owned()),
            _ => Err(FieldFault::Meaningless(what)),
        }
    }

    /// The record must end here.
    pub(in crate::shell) fn end(self) -> Result<(), FieldFault> {
        match self.0.len() {
            0 => Ok(()),
            left => Err(FieldFault::Trailing(left)),
        }
    }
}

/// Writes what [`Fields::bytes`] reads. The caller has bounded it.
pub(in crate::shell) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u16::try_from(bytes.len());
    assert!(len.is_ok(), "a field of {} bytes", bytes.len());
    out.put_u16_le(len.unwrap_or_default());
    out.put_slice(bytes);
}

/// Writes what [`Fields::text`] reads: cut to `limit` bytes, control characters replaced.
pub(in crate::shell) fn put_text(out: &mut Vec<u8>, text: &str, limit: usize) {
    put_bytes(out, clean(text, limit).as_bytes());
}

/// A text of another node's, for people: cut to `limit` bytes, without control characters. It ends in
/// logs and on terminals, which must not take it for orders.
pub(in crate::shell) fn shown(bytes: &[u8], limit: usize) -> String {
    clean(&String::from_utf8_lossy(bytes), limit)
}

fn clean(text: &str, limit: usize) -> String {
    let mut clean = String::with_capacity(text.len().min(limit));
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if clean.len() + c.len_utf8() > limit {
            break;
        }
        clean.push(c);
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_gives_a_terminal_no_orders() {
        assert_eq!(
            shown(b"\x1b]0;owned\x07 no\n\xff", 100),
            " ]0;owned  no \u{fffd}"
        );
        assert_eq!(shown("ää".as_bytes(), 3), "ä");
    }
}
