//! The token: the one line that is pasted on the other machine.
//!
//! ```text
//! kgm1-<base64url without padding of>:
//!   0          8              40              60
//!   | expires  | fingerprint  | secret (160 bits) | len u16, name | count u8 | addresses | crc32c |
//! ```
//!
//! `expires`: seconds since 1970 by the offering side's clock, for messages alone; the offering side
//! decides by a clock of its own. An address is a byte 4 or 6, the octets, the port; little-endian where
//! it is a number. The prefix names purpose and version: `kgm1-` pairs two nodes for a mirror,
//! `kgw1-` enrols a node at a witness. The checksum finds what was lost while pasting.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::BufMut;

use crate::shell::fields::{FieldFault, Fields, put_text};
use crate::shell::identity::Fingerprint;

/// Bytes of a token's secret.
pub const SECRET_LEN: usize = 20;

/// Addresses that a token can hold.
pub const MAX_ADDRESSES: usize = 16;

/// Bytes of the name in a token.
const MAX_NAME: usize = 64;

/// No token is longer, in characters.
const MAX_TEXT: usize = 1024;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A second node for a mirror.
    Mirror,
    /// A node that may use a witness.
    Witness,
}

impl Purpose {
    const ALL: [Self; 2] = [Self::Mirror, Self::Witness];

    fn prefix(self) -> &'static str {
        match self {
            Self::Mirror => "kgm",
            Self::Witness => "kgw",
        }
    }
}

/// What the joining side is told, in one line. Whoever has it can join within its time.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What it is for.
    pub purpose: Purpose,
    /// Where the offering side waits, the best first.
    pub addresses: Vec<SocketAddr>,
    /// The offering side's key.
    pub fingerprint: Fingerprint,
    /// What the joining side proves to know.
    pub secret: [u8; SECRET_LEN],
    /// The offering node's name, or the witness's.
    pub name: String,
    /// When it ends, in seconds since 1970 by the offering side's clock.
    pub expires: u64,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("purpose", &self.purpose)
            .field("name", &self.name)
            .field("addresses", &self.addresses)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

/// A text that is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It doesn't begin like one.
    #[error(
        "this is no token: it must begin with kgm1- (paste the whole line that `kagami pair` or `kagami witness enrol` printed)"
    )]
    NotAToken,
    /// A token of another version.
    #[error(
        "this token has version {0}, this build reads version 1: both machines need the same version of kagami"
    )]
    OtherVersion(u32),
    /// Characters are missing, or others than were printed.
    #[error("this token is incomplete or was changed on its way ({0}): paste the whole line again")]
    Damaged(&'static str),
    /// Its content makes no sense though it is whole.
    #[error("this token makes no sense: {0}")]
    Fields(#[from] FieldFault),
    /// It is for something else.
    #[error("{}", match .0 {
        Purpose::Mirror => "this token pairs two nodes for a mirror: use it with `kagami pair --join`",
        Purpose::Witness => "this token enrols a node at a witness: use it with `kagami arbiter join`",
    })]
    OtherPurpose(Purpose),
}

impl Token {
    /// How long the token is valid still, by this machine's clock (which may differ from the other's).
    pub fn time_left(&self) -> Option<Duration> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        Duration::from_secs(self.expires).checked_sub(now)
    }

    /// The token, if it is for `purpose`.
    ///
    /// # Errors
    ///
    /// It is for something else.
    pub fn require(self, purpose: Purpose) -> Result<Self, TokenError> {
        if self.purpose == purpose {
            Ok(self)
        } else {
            Err(TokenError::OtherPurpose(self.purpose))
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(160);
        out.put_u64_le(self.expires);
        out.put_slice(self.fingerprint.as_bytes());
        out.put_slice(&self.secret);
        put_text(&mut out, &self.name, MAX_NAME);
        let addresses = &self.addresses[..self.addresses.len().min(MAX_ADDRESSES)];
        out.put_u8(addresses.len() as u8);
        addresses
            .iter()
            .for_each(|address| put_address(&mut out, *address));
        out.put_u32_le(crc32c::crc32c(&out));
        out
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}1-{}",
            self.purpose.prefix(),
            URL_SAFE_NO_PAD.encode(self.encode())
        )
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        if text.len() > MAX_TEXT {
            return Err(TokenError::NotAToken);
        }
        // A line broken by a terminal or a mail is joined again.
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (head, body) = text.split_once('-').ok_or(TokenError::NotAToken)?;
        let (purpose, version) = Purpose::ALL
            .into_iter()
            .find_map(|purpose| Some((purpose, head.strip_prefix(purpose.prefix())?)))
            .ok_or(TokenError::NotAToken)?;
        match version.parse() {
            Ok(1) => {}
            Ok(other) => return Err(TokenError::OtherVersion(other)),
            Err(_) => return Err(TokenError::NotAToken),
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|_| TokenError::Damaged("it has characters that no token has, or too few"))?;
        Self::decode(purpose, &bytes)
    }
}

impl Token {
    pub(super) fn decode(purpose: Purpose, bytes: &[u8]) -> Result<Self, TokenError> {
        let (body, sum) = bytes
            .split_last_chunk::<4>()
            .ok_or(TokenError::Damaged("it is too short"))?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
            return Err(TokenError::Damaged("its checksum is wrong"));
        }
        let mut fields = Fields::new(body);
        let token = Self {
            purpose,
            expires: fields.u64("expiry")?,
            fingerprint: Fingerprint::from_bytes(fields.array("fingerprint")?),
            secret: fields.array("secret")?,
            name: fields.text("name", MAX_NAME)?,
            addresses: {
                let count = usize::from(fields.u8("addresses")?);
                if count == 0 || count > MAX_ADDRESSES {
                    return Err(FieldFault::Meaningless("addresses").into());
                }
                (0..count)
                    .map(|_| address(&mut fields))
                    .collect::<Result<_, _>>()?
            },
        };
        fields.end()?;
        Ok(token)
    }
}

/// Writes what [`address`] reads.
pub(in crate::shell) fn put_address(out: &mut Vec<u8>, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => {
            out.put_u8(4);
            out.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.put_u8(6);
            out.put_slice(&ip.octets());
        }
    }
    out.put_u16_le(address.port());
}

pub(in crate::shell) fn address(fields: &mut Fields<'_>) -> Result<SocketAddr, FieldFault> {
    let ip = match fields.u8("address")? {
        4 => IpAddr::from(fields.array::<4>("address")?),
        6 => IpAddr::from(fields.array::<16>("address")?),
        _ => return Err(FieldFault::Meaningless("address")),
    };
    Ok(SocketAddr::new(ip, fields.u16("port")?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens() -> impl Strategy<Value = Token> {
        let v4 = any::<([u8; 4], u16)>().prop_map(|(ip, port)| SocketAddr::from((ip, port)));
        let v6 = any::<([u8; 16], u16)>().prop_map(|(ip, port)| SocketAddr::from((ip, port)));
        (
            prop::bool::ANY,
            prop::collection::vec(prop_oneof![v4, v6], 1..=MAX_ADDRESSES),
            any::<[u8; 32]>(),
            any::<[u8; SECRET_LEN]>(),
            "[a-zäöü0-9-]{1,20}",
            any::<u64>(),
        )
            .prop_map(|(mirror, addresses, key, secret, name, expires)| Token {
                purpose: if mirror {
                    Purpose::Mirror
                } else {
                    Purpose::Witness
                },
                addresses,
                fingerprint: Fingerprint::from_bytes(key),
                secret,
                name,
                expires,
            })
    }

    proptest! {
        #[test]
        fn a_token_survives_pasting(token in tokens(), breaks in prop::collection::vec(0usize..400, 0..4)) {
            let text = token.to_string();
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            let mut pasted = format!("  {text}\n");
            for at in breaks {
                if at < pasted.len() {
                    pasted.insert_str(at, "\r\n");
                }
            }
            prop_assert_eq!(pasted.parse::<Token>(), Ok(token));
        }

        #[test]
        fn a_changed_token_is_found(token in tokens(), at: prop::sample::Index, with in "[A-Za-z0-9_-]") {
            let text = token.to_string();
            let at = 5 + at.index(text.len() - 5);
            let mut changed = text.clone();
            changed.replace_range(at..=at, &with);
            prop_assume!(changed != text);
            prop_assert!(changed.parse::<Token>().is_err());
            prop_assert!(text[..at].parse::<Token>().is_err());
        }

        #[test]
        fn garbage_never_panics(text in "(kgm1-)?[ -~]{0,200}") {
            let _ = text.parse::<Token>();
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        assert_eq!("hello".parse::<Token>(), Err(TokenError::NotAToken));
        assert_eq!("".parse::<Token>(), Err(TokenError::NotAToken));
        assert_eq!(
            "kgm2-AAAA".parse::<Token>(),
            Err(TokenError::OtherVersion(2))
        );
        assert!(matches!(
            "kgm1-!".parse::<Token>(),
            Err(TokenError::Damaged(_))
        ));
        assert!(matches!(
            "kgm1-".parse::<Token>(),
            Err(TokenError::Damaged(_))
        ));
        assert_eq!(
            "k".repeat(100_000).parse::<Token>(),
            Err(TokenError::NotAToken)
        );
    }

    #[test]
    fn the_secret_is_not_shown_by_debug() {
        let token = Token {
            purpose: Purpose::Mirror,
            addresses: vec![([127, 0, 0, 1], 1).into()],
            fingerprint: Fingerprint::from_bytes([1; 32]),
            secret: [0xab; SECRET_LEN],
            name: "pg".to_owned(),
            expires: 0,
        };
        assert!(!format!("{token:?}").contains("171"));
        assert_eq!(token.time_left(), None);
        assert!(matches!(
            token.require(Purpose::Witness),
            Err(TokenError::OtherPurpose(Purpose::Mirror))
        ));
    }
}
