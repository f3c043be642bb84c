//! Values as the file spells them: times with a unit, addresses with their prefix.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{Deserializer, Error};

/// A length of time, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ms(pub u64);

impl Ms {
    /// Whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(seconds * 1000)
    }
}

const UNITS: &[(&str, u64)] = &[
    ("ms", 1),
    ("s", 1000),
    ("m", 60_000),
    ("min", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

impl FromStr for Ms {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let right = "write a time like \"500ms\", \"2s\" or \"5m\"";
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = (&text[..end], text[end..].trim());
        if number.is_empty() {
            return Err(format!("`{text}` is not a time: {right}"));
        }
        if unit.is_empty() {
            return Err(format!("`{text}` has no unit: {right}"));
        }
        let factor = UNITS.iter().find(|(name, _)| *name == unit);
        let Some((_, factor)) = factor else {
            return Err(format!("`{unit}` is not a unit of time: {right}"));
        };
        let value = number
            .parse()
            .ok()
            .and_then(|n: u64| n.checked_mul(*factor));
        match value {
            // What is added to a clock may not overflow it.
            Some(value) if value <= 366 * 86_400_000 => Ok(Self(value)),
            _ => Err(format!("`{text}` is longer than a year: {right}")),
        }
    }
}

impl fmt::Display for Ms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 > 0 && self.0.is_multiple_of(1000) {
            write!(f, "{}s", self.0 / 1000)
        } else {
            write!(f, "{}ms", self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Ms {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// An address with the length of its network's prefix: `10.0.0.10/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    /// The address itself.
    pub address: IpAddr,
    /// Bits of the network.
    pub prefix: u8,
}

impl Network {
    /// True if `address` is in this network.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (a, b, bits): (u128, u128, u32) = match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits().into(), b.to_bits().into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
            _ => return false,
        };
        let host = bits.saturating_sub(u32::from(self.prefix));
        host >= 128 || a >> host == b >> host
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let right = "write an address and its prefix, like \"10.0.0.10/24\" or \"fd00::10/64\"";
        let Some((address, prefix)) = text.split_once('/') else {
            return Err(format!("`{text}` has no prefix: {right}"));
        };
        let Ok(address) = address.parse::<IpAddr>() else {
            return Err(format!("`{address}` is not an address: {right}"));
        };
        let most = if address.is_ipv4() { 32 } else { 128 };
        match prefix.parse::<u8>() {
            Ok(prefix) if prefix <= most => Ok(Self { address, prefix }),
            _ => Err(format!(
                "`/{prefix}` is not a prefix of 0 to {most} bits: {right}"
            )),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_need_a_unit_and_a_bound() {
        assert_eq!("500ms".parse(), Ok(Ms(500)));
        assert_eq!("5 m".parse(), Ok(Ms(300_000)));
        assert_eq!("1800s".parse(), Ok(Ms::seconds(1800)));
        for bad in [
            "",
            "5",
            "s",
            "5 parsecs",
            "99999999999999999999s",
            "9000d",
            "-1s",
        ] {
            assert!(bad.parse::<Ms>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_network_knows_its_addresses() {
        let network = |text: &str| text.parse::<Network>().unwrap();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(network("10.0.0.1/24").contains(address("10.0.0.200")));
        assert!(!network("10.0.0.1/24").contains(address("10.0.1.200")));
        assert!(network("0.0.0.0/0").contains(address("8.8.8.8")));
        assert!(network("fd00::1/64").contains(address("fd00::2")));
        assert!(!network("fd00::1/64").contains(address("fd00:0:0:1::2")));
        assert!(!network("::/0").contains(address("10.0.0.1")));
        for bad in [
            "10.0.0.1",
            "10.0.0.1/33",
            "fd00::/129",
            "x/24",
            "10.0.0.1/-1",
        ] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
