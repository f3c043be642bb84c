//! What is kept at the arbiter of a group without a mirror, and where.
//!
//! A register belongs to a group of a cluster; its id follows from both names ([`id`]), so nobody
//! needs to keep it. The content, little-endian, means nothing to the arbiter:
//!
//! ```text
//!   0         1                 9                   13            14
//!   | version | run number: u64 | lease in ms: u32  | n: 0 to 255 | the holder's name: n bytes of UTF-8 |
//! ```
//!
//! The version is [`VERSION`], which no mirror's register has. No name: nobody holds the right. The
//! run number is raised each time that a node takes the right which another one, or nobody, had. The lease is how long
//! the holder counts its record, or what runs there still: whoever waits waits for as long.

use std::fmt;

use crate::config::Cluster;
use crate::place::Pending;

use super::lease::LONGEST;

/// The content of a group's register; a mirror's begins with 1.
pub const VERSION: u8 = 17;

/// Which state of a register; each change has a higher seq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    /// Drawn when the register was created.
    pub instance: u64,
    /// Raised by every change.
    pub seq: u64,
}

/// What a register says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The node that holds the right; `None`: it was given up.
    pub holder: Option<String>,
    /// How often the right was taken.
    pub run: u64,
    /// How long the holder's lease is, in milliseconds.
    pub length: u64,
}

/// A content that this build can't read. It is never overwritten.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentFault {
    /// Of a mirror, or written by a newer build.
    #[error("the register's content has version {0}, a group's has {VERSION}")]
    Version(u8),
    /// It breaks its own format.
    #[error("the register's content can't be read: {0}")]
    Format(&'static str),
}

/// The bytes of a record.
///
/// # Panics
/// On a node's name of more than 255 bytes or a lease of more than [`LONGEST`], which no configuration has.
pub fn encode(record: &Record) -> Vec<u8> {
    let name = record.holder.as_deref().unwrap_or("");
    let bytes = u8::try_from(name.len()).expect("the configuration bounds names");
    let lease = u32::try_from(record.length).expect("a lease is bounded");
    let mut out = Vec::with_capacity(14 + name.len());
    out.push(VERSION);
    out.extend(record.run.to_le_bytes());
    out.extend(lease.to_le_bytes());
    out.push(bytes);
    out.extend(name.as_bytes());
    out
}

/// The record of these bytes.
///
/// # Errors
/// They are none.
pub fn decode(content: &[u8]) -> Result<Record, ContentFault> {
    let [version, rest @ ..] = content else {
        return Err(ContentFault::Format("it is empty"));
    };
    if *version != VERSION {
        return Err(ContentFault::Version(*version));
    }
    let Some((run, rest)) = rest.split_first_chunk::<8>() else {
        return Err(ContentFault::Format("it ends within the run number"));
    };
    let run = u64::from_le_bytes(*run);
    if run == u64::MAX {
        return Err(ContentFault::Format("no run comes after it"));
    }
    let Some((lease, rest)) = rest.split_first_chunk::<4>() else {
        return Err(ContentFault::Format("it ends within the lease's length"));
    };
    let length = u64::from(u32::from_le_bytes(*lease));
    if length > LONGEST {
        return Err(ContentFault::Format("no lease is as long"));
    }
    let [bytes, name @ ..] = rest else {
        return Err(ContentFault::Format("it ends before the holder"));
    };
    if name.len() != usize::from(*bytes) {
        return Err(ContentFault::Format("the holder's name has another length"));
    }
    let Ok(name) = std::str::from_utf8(name) else {
        return Err(ContentFault::Format("the holder's name is no UTF-8"));
    };
    Ok(Record {
        holder: (!name.is_empty()).then(|| name.to_owned()),
        run,
        length,
    })
}

/// The register of a group: the first 16 bytes of the SHA-256 of `kagami group`, the cluster's name and the
/// group's, each followed by a zero byte, as a big-endian number.
pub fn id(cluster: &Cluster, group: &str) -> u128 {
    let mut text = Vec::new();
    for part in ["kagami group", &cluster.name, group] {
        text.extend(part.as_bytes());
        text.push(0);
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, &text);
    let mut id = [0; 16];
    id.copy_from_slice(&digest.as_ref()[..16]);
    u128::from_be_bytes(id)
}

/// A register's state as it travels: which, and its bytes.
pub type Content = (Id, Vec<u8>);

/// What came of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// It took place, and is on the arbiter's stable storage.
    Done,
    /// It did not: this is what there is.
    Other(Option<Content>),
}

/// The registers of this cluster's groups at its arbiter.
///
/// Each question is answered within a time-out of the implementation's own; what is not known to have
/// taken place is an error, in words.
pub trait Registers: Send + Sync + 'static {
    /// What a register holds; `None`: there is none yet.
    fn read(&self, register: u128) -> Pending<'_, Result<Option<Content>, String>>;

    /// Makes it hold `new` if it still is at `expect` (`None`: if there is none). `nonce` tells this
    /// change from others.
    fn swap(
        &self,
        register: u128,
        expect: Option<Id>,
        nonce: u64,
        new: Content,
    ) -> Pending<'_, Result<Swap, String>>;
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.holder {
            Some(holder) => write!(f, "node {holder}, run {}", self.run),
            None => write!(f, "nobody, after run {}", self.run),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_and_a_part_of_it_does_not() {
        for holder in [None, Some("alpha".to_owned())] {
            let (run, length) = (7, LONGEST);
            let record = Record {
                holder,
                run,
                length,
            };
            let content = encode(&record);
            assert_eq!(decode(&content), Ok(record));
            let mut endless = content.clone();
            endless[12] = 1;
            assert!(decode(&endless).is_err(), "a lease of half a year");
            let mut last = content.clone();
            last[1..9].fill(0xff);
            assert!(decode(&last).is_err(), "a run that none can follow");
            for length in 0..content.len() {
                assert!(decode(&content[..length]).is_err(), "{length}");
            }
            let mut longer = content.clone();
            longer.push(b'x');
            assert!(decode(&longer).is_err());
        }
    }

    #[test]
    fn the_register_of_a_mirror_is_named_as_what_it_is() {
        assert_eq!(decode(&[1, 0, 1]), Err(ContentFault::Version(1)));
        let no_text = [VERSION, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0xff];
        assert!(matches!(decode(&no_text), Err(ContentFault::Format(_))));
    }

    #[test]
    fn names_that_run_together_have_registers_of_their_own() {
        let text = |cluster: &str| {
            format!(
                "[cluster]\nname = \"{cluster}\"\nrevision = 1\nnodes = [\"a\", \"b\"]\n[arbiter]\nkind = \"witness\"\n\
                 name = \"w\"\n[heartbeat.h]\ntype = \"serial\"\npriority = 1\ndevices = {{ a = \"/dev/ttyS0\", b = \"/dev/ttyS0\" }}\n"
            )
        };
        let cluster = |name: &str| {
            let file = std::path::Path::new("cluster.toml");
            Cluster::parse(file, &text(name)).unwrap_or_else(|error| panic!("{error}"))
        };
        let (shop, sho) = (cluster("shop"), cluster("sho"));
        assert_ne!(id(&shop, "web"), id(&sho, "pweb"));
        assert_ne!(id(&shop, "web"), id(&shop, "db"));
        assert_eq!(id(&shop, "web"), id(&cluster("shop"), "web"));
    }
}
