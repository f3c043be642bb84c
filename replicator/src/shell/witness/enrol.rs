//! Enrolling: a node and a witness come to know each other's keys, by one pasted line.
//!
//! The same meeting as for a pair of nodes ([`crate::shell::pairing`]), with less to tell. It needs no
//! word to the running witness: an enrolled key is a file in the witness's folder.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BufMut;

use super::store::{self, StoreError};
use crate::shell::fields::{FieldFault, Fields, put_text};
use crate::shell::identity::{Fingerprint, NodeKey};
use crate::shell::pairing::token::{address, put_address};
use crate::shell::pairing::{Joining, Offering, PairError, Purpose, Terms, Token};

const VERSION: u8 = 1;
const MAX_NAME: usize = 64;
const MAX_ADDRESSES: usize = 16;

/// Why a node is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The meeting failed.
    #[error(transparent)]
    Pair(#[from] PairError),
    /// The witness's folder can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node's key is enrolled, and the node may not know.
    #[error("node {name} may use this witness (key {key}), and may not have heard so: {error}")]
    Unheard {
        /// The node.
        name: String,
        /// Its key.
        key: Fingerprint,
        /// What became of the last word.
        error: Box<PairError>,
    },
    /// The other side told something else than it must.
    #[error("the other side's description makes no sense: {0}")]
    Fields(#[from] FieldFault),
}

/// A token that the witness's side waits on.
#[derive(Debug)]
pub struct EnrolOffer {
    offering: Offering,
    state: PathBuf,
    told: Vec<u8>,
}

impl EnrolOffer {
    /// Begins to wait for one node. `witness` is where the witness listens for questions, as nodes
    /// reach it; `listen` and `advertise` are for this meeting alone, as in [`Terms`].
    ///
    /// # Errors
    ///
    /// [`EnrolError`].
    pub fn open(
        key: &NodeKey,
        state: &Path,
        name: &str,
        witness: &[SocketAddr],
        listen: Vec<SocketAddr>,
        advertise: Vec<SocketAddr>,
        valid: Duration,
    ) -> Result<Self, EnrolError> {
        let terms = Terms {
            purpose: Purpose::Witness,
            name: name.to_owned(),
            listen,
            advertise,
            valid,
        };
        let mut told = vec![VERSION];
        put_text(&mut told, name, MAX_NAME);
        let witness = &witness[..witness.len().min(MAX_ADDRESSES)];
        told.put_u16_le(witness.len() as u16);
        witness
            .iter()
            .for_each(|address| put_address(&mut told, *address));
        let offering = Offering::open(key, &terms)?;
        Ok(Self {
            offering,
            state: state.to_owned(),
            told,
        })
    }

    /// The line to paste at the node.
    pub fn token(&self) -> &Token {
        self.offering.token()
    }

    /// Waits for the node and enrols its key; gives the key and the node's name.
    ///
    /// # Errors
    ///
    /// [`EnrolError`].
    pub async fn wait(mut self) -> Result<(Fingerprint, String), EnrolError> {
        let met = self.offering.meet(&self.told).await?;
        let name = match node_name(&met.facts) {
            Ok(name) => name,
            Err(fault) => {
                met.refuse(&format!("the node's description makes no sense: {fault}"))
                    .await;
                return Err(fault.into());
            }
        };
        let key = met.fingerprint;
        if let Err(error) = store::enrol(&self.state, &key, &name) {
            met.refuse("the witness could not record the key; see to its disk, then `kagami witness enrol` there makes a new token").await;
            return Err(error.into());
        }
        let heard = met.confirm().await;
        self.offering.close().await;
        match heard {
            Ok(()) => Ok((key, name)),
            Err(error) => Err(EnrolError::Unheard {
                name,
                key,
                error: Box::new(error),
            }),
        }
    }
}

fn node_name(facts: &[u8]) -> Result<String, FieldFault> {
    let mut fields = Fields::new(facts);
    if fields.u8("version")? != VERSION {
        return Err(FieldFault::Meaningless("version"));
    }
    let name = fields.text("name", MAX_NAME)?;
    fields.end()?;
    Ok(name)
}

/// A witness, as its enrolment told it: what a node's configuration needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    /// Its key.
    pub fingerprint: Fingerprint,
}

/// Enrols this node at the witness that made the token. `node` is this node's name.
///
/// # Errors
///
/// [`EnrolError`].
pub async fn join(key: &NodeKey, token: &Token, node: &str) -> Result<Enrolled, EnrolError> {
    let joining = Joining::connect(key, token).await?;
    let mut fields = Fields::new(&joining.facts);
    if fields.u8("version")? != VERSION {
        return Err(FieldFault::Meaningless("version").into());
    }
    let enrolled = Enrolled {
        name: fields.text("name", MAX_NAME)?,
        addresses: (0..fields.count("addresses", MAX_ADDRESSES)?)
            .map(|_| address(&mut fields))
            .collect::<Result<_, _>>()?,
        fingerprint: joining.fingerprint(),
    };
    fields.end()?;
    let mut told = vec![VERSION];
    put_text(&mut told, node, MAX_NAME);
    joining.accept(&told).await?;
    Ok(enrolled)
}
