//! Documents on a stream: JSON, a line each, no longer than the reader's bound.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The longest request: a configuration.
pub const REQUEST_MAX: usize = 4 << 20;
/// The longest answer: a node's logs.
pub const ANSWER_MAX: usize = 64 << 20;

/// Why no document could be read.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The other side hung up in the middle, or the system failed.
    #[error("the control channel broke: {0}")]
    Io(#[from] io::Error),
    /// Longer than this side reads.
    #[error("a message is longer than {0} bytes")]
    TooLong(usize),
    /// Not the JSON that was expected.
    #[error("a message was not understood: {0}")]
    Garbage(#[from] serde_json::Error),
}

/// What was received of a stream and not taken yet.
#[derive(Debug, Default)]
pub struct Received {
    bytes: Vec<u8>,
    /// Up to here there is no end of a line.
    looked: usize,
}

impl Received {
    /// The next document; `None` when the other side hung up between two. Dropping the future loses
    /// nothing.
    ///
    /// # Errors
    /// See [`LineError`]. After one the stream is of no more use.
    pub async fn next<T: DeserializeOwned>(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        max: usize,
    ) -> Result<Option<T>, LineError> {
        loop {
            let end = self.bytes[self.looked..].iter().position(|b| *b == b'\n');
            if let Some(end) = end {
                let end = self.looked + end;
                if end > max {
                    return Err(LineError::TooLong(max));
                }
                let document = serde_json::from_slice(&self.bytes[..end]);
                self.bytes.drain(..=end);
                self.looked = 0;
                return Ok(Some(document?));
            }
            self.looked = self.bytes.len();
            if self.bytes.len() > max {
                return Err(LineError::TooLong(max));
            }
            if stream.read_buf(&mut self.bytes).await? == 0 {
                if self.bytes.is_empty() {
                    return Ok(None);
                }
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}

/// Writes one document.
///
/// # Errors
/// The other side hung up.
pub async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    document: &impl Serialize,
) -> Result<(), LineError> {
    // JSON without whitespace has no line's end in it.
    let mut line = serde_json::to_vec(document)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await?;
    Ok(())
}
