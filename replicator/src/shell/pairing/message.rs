//! The few messages of a meeting, on its one stream: a kind, a length, a body.

use quinn::{RecvStream, SendStream};

use super::proof::PROOF_LEN;
use crate::shell::fields::{FieldFault, Fields, put_text};

/// Bytes of a message's body at most.
pub(super) const MAX_BODY: usize = 32 * 1024;

/// Bytes of a refusal's text at most.
const MAX_TEXT: usize = 1024;

/// What is said, in this order: both proofs, both facts, and the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Proof([u8; PROOF_LEN]),
    Facts(Vec<u8>),
    /// The offering side keeps what it learned.
    Agreed,
    /// This is the end of it, and why.
    Refused(Why, String),
}

/// Why a side ends the meeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Why {
    /// The proof is wrong.
    Wrong = 1,
    /// The token has been used.
    Used = 2,
    /// The token's time is over.
    Expired = 3,
    /// Too many wrong proofs of late.
    TooMany = 4,
    /// The side, or its operator, doesn't want to; the text says why.
    Declined = 5,
}

/// Why no message came.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("{0}")]
    Lost(String),
    #[error("it breaks the pairing protocol: {0}")]
    Fields(#[from] FieldFault),
}

impl Message {
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Proof(proof) => (1, proof.to_vec()),
            Self::Facts(facts) => (2, facts.clone()),
            Self::Agreed => (3, Vec::new()),
            Self::Refused(why, text) => {
                let mut body = vec![*why as u8];
                put_text(&mut body, text, MAX_TEXT);
                (4, body)
            }
        };
        assert!(body.len() <= MAX_BODY, "a message of {} bytes", body.len());
        let mut out = vec![kind];
        out.extend_from_slice(&(body.len() as u16).to_le_bytes());
        out.extend_from_slice(&body);
        out
    }

    pub(super) fn decode(kind: u8, body: &[u8]) -> Result<Self, FieldFault> {
        let mut fields = Fields::new(body);
        let message = match kind {
            1 => Self::Proof(fields.array("proof")?),
            2 => Self::Facts(fields.take("facts", body.len())?.to_vec()),
            3 => Self::Agreed,
            4 => {
                let why = match fields.u8("reason")? {
                    1 => Why::Wrong,
                    2 => Why::Used,
                    3 => Why::Expired,
                    4 => Why::TooMany,
                    5 => Why::Declined,
                    _ => return Err(FieldFault::Meaningless("reason")),
                };
                Self::Refused(why, fields.text("text", MAX_TEXT)?)
            }
            _ => return Err(FieldFault::Meaningless("kind")),
        };
        fields.end()?;
        Ok(message)
    }

    /// Reads the next message. Nothing is allocated beyond [`MAX_BODY`].
    pub(super) async fn read(receive: &mut RecvStream) -> Result<Self, ReadError> {
        let mut head = [0; 3];
        receive.read_exact(&mut head).await.map_err(lost)?;
        let len = usize::from(u16::from_le_bytes([head[1], head[2]]));
        if len > MAX_BODY {
            return Err(FieldFault::TooLong {
                what: "message",
                found: len,
                limit: MAX_BODY,
            }
            .into());
        }
        let mut body = vec![0; len];
        receive.read_exact(&mut body).await.map_err(lost)?;
        Ok(Self::decode(head[0], &body)?)
    }

    pub(super) async fn write(&self, send: &mut SendStream) -> Result<(), ReadError> {
        let written = send.write_all(&self.encode()).await;
        written.map_err(|error| ReadError::Lost(error.to_string()))
    }
}

fn lost(error: quinn::ReadExactError) -> ReadError {
    ReadError::Lost(match error {
        quinn::ReadExactError::FinishedEarly(_) => "the other side left".to_owned(),
        quinn::ReadExactError::ReadError(quinn::ReadError::ConnectionLost(error)) => {
            crate::shell::race::describe(&error)
        }
        quinn::ReadExactError::ReadError(error) => error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive() {
        for message in [
            Message::Proof([7; PROOF_LEN]),
            Message::Facts(vec![1, 2, 3]),
            Message::Facts(Vec::new()),
            Message::Agreed,
            Message::Refused(Why::Declined, "the disk is too small".to_owned()),
        ] {
            let bytes = message.encode();
            assert_eq!(Message::decode(bytes[0], &bytes[3..]), Ok(message));
        }
        assert!(Message::decode(1, &[0; 31]).is_err());
        assert!(Message::decode(3, &[0]).is_err());
        assert!(Message::decode(4, &[9, 0, 0]).is_err());
        assert!(Message::decode(9, &[]).is_err());
    }
}
