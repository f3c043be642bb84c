//! Frames of the control channel: a length (4 bytes, little-endian) and that many bytes of JSON.
//!
//! The length is checked against the reader's bound before anything is allocated.

use bytes::BytesMut;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest request: orders are small.
pub const REQUEST_MAX: usize = 64 << 10;
/// The longest answer: the status of thousands of mirrors.
pub const ANSWER_MAX: usize = 16 << 20;

/// Why no message could be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side hung up in the middle, or the system failed.
    #[error("the control channel broke: {0}")]
    Io(#[from] std::io::Error),
    /// Longer than this side reads.
    #[error("a message of {length} bytes is longer than {max}")]
    TooLong {
        /// What the frame says.
        length: usize,
        /// What is read at most.
        max: usize,
    },
    /// Not the JSON that was expected.
    #[error("a message was not understood: {0}")]
    Garbage(serde_json::Error),
}

/// Reads one message; `None` when the other side hung up between two.
///
/// # Errors
/// See [`FrameError`]. After one the stream is of no more use.
pub async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    max: usize,
) -> Result<Option<T>, FrameError> {
    let mut length = [0; 4];
    let mut have = 0;
    while have < length.len() {
        match stream.read(&mut length[have..]).await? {
            0 if have == 0 => return Ok(None),
            0 => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            n => have += n,
        }
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > max {
        return Err(FrameError::TooLong { length, max });
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    serde_json::from_slice(&body)
        .map(Some)
        .map_err(FrameError::Garbage)
}

/// Takes one message off the front of what was received; `None` while it is not there whole.
///
/// # Errors
/// See [`FrameError`]. After one the rest is of no more use.
pub fn take<T: DeserializeOwned>(
    received: &mut BytesMut,
    max: usize,
) -> Result<Option<T>, FrameError> {
    let Some(length) = received.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > max {
        return Err(FrameError::TooLong { length, max });
    }
    if received.len() - 4 < length {
        return Ok(None);
    }
    let frame = received.split_to(4 + length);
    serde_json::from_slice(&frame[4..])
        .map(Some)
        .map_err(FrameError::Garbage)
}

/// Writes one message.
///
/// # Errors
/// The other side hung up.
pub async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> Result<(), FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(FrameError::Garbage)?;
    let length = u32::try_from(frame.len() - 4).map_err(|_| FrameError::TooLong {
        length: frame.len(),
        max: ANSWER_MAX,
    })?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    stream.write_all(&frame).await?;
    stream.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::message::{Ask, Request};

    #[tokio::test]
    async fn what_was_written_is_read() {
        let (mut here, mut there) = tokio::io::duplex(1024);
        let request = Request::new(Ask::Status);
        write(&mut here, &request).await.unwrap();
        drop(here);
        let read_back: Option<Request> = read(&mut there, REQUEST_MAX).await.unwrap();
        assert_eq!(read_back, Some(request));
        let end: Option<Request> = read(&mut there, REQUEST_MAX).await.unwrap();
        assert_eq!(end, None);
    }

    #[test]
    fn pieces_are_put_together() {
        let body = br#"{"protocol":1,"ask":"status"}"#;
        let mut whole = (body.len() as u32).to_le_bytes().to_vec();
        whole.extend_from_slice(body);
        whole.extend_from_slice(&[9, 0]);
        let mut received = BytesMut::new();
        for (index, byte) in whole.iter().enumerate() {
            received.extend_from_slice(&[*byte]);
            let taken: Option<Request> = take(&mut received, REQUEST_MAX).unwrap();
            assert_eq!(taken.is_some(), index + 3 == whole.len());
        }
        assert_eq!(&received[..], [9, 0]);
    }

    #[tokio::test]
    async fn broken_frames_are_told_apart() {
        for (bytes, words) in [
            (
                &b"\xff\xff\xff\xff"[..],
                "a message of 4294967295 bytes is longer than 65536",
            ),
            (b"\x02\0\0\0{]", "a message was not understood"),
            (b"\x02\0\0", "the control channel broke"),
            (b"\x09\0\0\0{}", "the control channel broke"),
        ] {
            let mut stream = bytes;
            let error = read::<Request>(&mut stream, REQUEST_MAX).await.unwrap_err();
            assert!(error.to_string().starts_with(words), "{error}");
        }
    }
}
