//! What is said to a witness and by it, and the register's content, and how a witness or etcd keeps it.

use kagami_replicator::shell::arbiter::kept::respell;
use kagami_replicator::shell::arbiter::register;
use kagami_replicator::shell::witness::wire::{Answer, MAX_ANSWER, MAX_REQUEST, Request};

use crate::input::Input;

/// A request, an answer, a register's content, or a register as it is kept.
pub fn messages(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let how = input.below(5);
    let bytes = input.rest();
    match how {
        0 => {
            if let Ok(request) = Request::decode(bytes) {
                assert!(bytes.len() <= MAX_REQUEST, "{} bytes", bytes.len());
                assert_eq!(request.encode(), bytes);
            }
        }
        1 => {
            if let Ok(answer) = Answer::decode(bytes) {
                assert!(bytes.len() <= MAX_ANSWER, "{} bytes", bytes.len());
                assert_eq!(answer.encode(), bytes);
            }
        }
        2 => {
            if let Ok(register) = register::decode(1, 2, 3, bytes) {
                assert_eq!(register::encode(&register), bytes);
            }
        }
        _ => {
            let mut file = bytes.to_vec();
            if how == 4 && file.len() > 4 {
                let end = file.len() - 4;
                let sum = crc32c::crc32c(&file[..end]);
                file[end..].copy_from_slice(&sum.to_le_bytes());
            }
            if let Some(spelled) = respell(0, &file) {
                assert_eq!(spelled, file);
            }
        }
    }
}
