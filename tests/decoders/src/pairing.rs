//! What pairs two nodes: the pasted token, the messages of a meeting, the facts in them.

use kagami_replicator::shell::pairing::facts::Facts;
use kagami_replicator::shell::pairing::{Token, respell_message, respell_token_body};

use crate::input::Input;

/// A token as text, a token's content, a message of a meeting, or facts.
pub fn messages(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let how = input.below(4);
    match how {
        0 => {
            if let Ok(token) = String::from_utf8_lossy(input.rest()).parse::<Token>() {
                assert_eq!(token.to_string().parse::<Token>(), Ok(token));
            }
        }
        1 => {
            let mut body = input.rest().to_vec();
            let sum = crc32c::crc32c(&body);
            body.extend_from_slice(&sum.to_le_bytes());
            if let Some(spelled) = respell_token_body(&body) {
                assert_eq!(spelled, body);
            }
        }
        2 => {
            let kind = input.u8();
            let body = input.rest();
            if let Some(spelled) = respell_message(kind, body) {
                assert_eq!((spelled[0], &spelled[3..]), (kind, body));
            }
        }
        _ => {
            let bytes = input.rest();
            if let Ok(facts) = Facts::decode(bytes) {
                assert_eq!(facts.encode(), bytes);
            }
        }
    }
}
