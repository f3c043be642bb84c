//! Where the device's answers arrive, until the session looks at them.

use std::cell::{Cell, RefCell};
use std::task::Waker;

use crate::device::{Answer, CompletionSink, IoError};

/// The device's answer to one request.
#[derive(Debug)]
pub(super) struct Done {
    /// As it was submitted.
    pub(super) ticket: usize,
    pub(super) result: Result<Answer, IoError>,
}

/// What the device has answered and the session has not looked at.
#[derive(Debug, Default)]
pub(super) struct Answers {
    done: RefCell<Vec<Done>>,
    waker: RefCell<Option<Waker>>,
    /// The session's task runs, and looks by itself.
    is_running: Cell<bool>,
    /// The session is over.
    is_closed: Cell<bool>,
}

impl Answers {
    /// The session's task looks by itself until it [sleeps](Self::sleeps); then this wakes it.
    pub(super) fn runs(&self, waker: &Waker) {
        let mut known = self.waker.borrow_mut();
        match &mut *known {
            Some(old) => old.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        self.is_running.set(true);
    }

    /// The next answer wakes the session's task.
    pub(super) fn sleeps(&self) {
        self.is_running.set(false);
    }

    /// Nobody looks any more.
    pub(super) fn close(&self) {
        self.is_closed.set(true);
        self.done.take();
    }

    /// Gives what was answered for the empty `done`.
    pub(super) fn swap(&self, done: &mut Vec<Done>) {
        std::mem::swap(&mut *self.done.borrow_mut(), done);
    }
}

impl CompletionSink for Answers {
    fn complete(&self, ticket: u64, result: Result<Answer, IoError>) {
        if self.is_closed.get() {
            return;
        }
        let ticket = ticket as usize;
        self.done.borrow_mut().push(Done { ticket, result });
        if self.is_running.get() {
            return;
        }
        // Taken, so that a burst of answers wakes once.
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
