//! The control channel: requests that any local program sends, answers that a daemon gives.

use bytes::BytesMut;
use kagami::control::frame::{REQUEST_MAX, take};
use kagami::control::message::{Answer, Request};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::input::Input;

/// Frames of requests or of answers; with a right length around all of it, or as they come.
pub fn messages(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let how = input.u8();
    let rest = input.rest();
    let mut received = BytesMut::new();
    if how & 1 == 0 {
        received.extend_from_slice(&(rest.len() as u32).to_le_bytes());
    }
    received.extend_from_slice(rest);
    if how & 2 == 0 {
        while let Some(request) = next::<Request>(&mut received) {
            again(&request);
        }
    } else {
        while let Some(answer) = next::<Answer>(&mut received) {
            again(&answer);
        }
    }
}

fn next<T: DeserializeOwned>(received: &mut BytesMut) -> Option<T> {
    let before = received.len();
    let message = take(received, REQUEST_MAX).ok()??;
    assert!(received.len() + 4 <= before, "a message takes bytes away");
    Some(message)
}

/// What was understood can be said, and is understood the same.
fn again<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(message: &T) {
    let text = serde_json::to_string(message).expect("what was read can be written");
    let back: T = serde_json::from_str(&text).expect("what was written can be read");
    assert_eq!(*message, back);
}
