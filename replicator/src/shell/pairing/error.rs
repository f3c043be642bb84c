//! Why two sides did not come to know each other, in words for the one who pasted the line.

use std::net::SocketAddr;
use std::time::Duration;

use super::message::{ReadError, Why};
use crate::shell::race::NotReached;
use crate::shell::tls::TlsError;

/// Why there is no pair.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// This node's key can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The system gave no randomness.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
    /// An address can't be listened on.
    #[error(
        "can't wait on {address}: {error}; is another program there, or the address not this machine's?"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        error: std::io::Error,
    },
    /// There is no address to put into the token.
    #[error(
        "no address is known under which the other machine reaches this one: give one with --address"
    )]
    NoAddress,
    /// The time is over.
    #[error("nobody joined within {0:?}; run the command again for a new token")]
    NobodyCame(Duration),
    /// The other side can't be reached.
    #[error("{place} can't be reached ({failures}); {hint}")]
    NotReached {
        /// Name in the token.
        place: String,
        /// Each address and its failure.
        failures: NotReached,
        /// What to look at.
        hint: String,
    },
    /// The secret in the token is not the one that is waited for.
    #[error(
        "the token is not the one that the other side waits for: paste the newest line that was printed there"
    )]
    WrongToken,
    /// Somebody has used the token.
    #[error(
        "this token has been used already, and works once: make a new one there, by the same command"
    )]
    Used,
    /// The token's time is over.
    #[error("this token has expired: make a new one there, by the same command")]
    Expired,
    /// The other side has seen too many wrong tokens.
    #[error(
        "the other side has seen too many wrong tokens: wait half a minute, then try again with the newest one"
    )]
    TooManyTries,
    /// The other side could not prove that it made the token.
    #[error(
        "the other side does not know the token's secret, though it has the right key: use the newest line that was printed there"
    )]
    Impostor,
    /// The other side doesn't want to.
    #[error("the other side refused: {0}")]
    Declined(String),
    /// The conversation ended half-way.
    #[error("the conversation ended before both had agreed ({0}); make a new token and try again")]
    Broken(String),
}

impl From<ReadError> for PairError {
    fn from(error: ReadError) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<(Why, String)> for PairError {
    fn from((why, text): (Why, String)) -> Self {
        match why {
            Why::Wrong => Self::WrongToken,
            Why::Used => Self::Used,
            Why::Expired => Self::Expired,
            Why::TooMany => Self::TooManyTries,
            Why::Declined => Self::Declined(text),
        }
    }
}
