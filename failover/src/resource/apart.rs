//! Calls that may never return: a disk in error recovery, a path through a file server that is gone.
//!
//! Each has a thread of its own, and not one of the runtime's: at its end the program would wait for
//! that. Whoever asks waits until a deadline. What has a name is done by one thread at a time, and
//! others can see that it is not over yet, although nobody waits for it any more.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::lock;
use crate::process::{Deadline, Failure, Step};

const POLL: Duration = Duration::from_millis(10);

/// What the call answers, if that is before the deadline; the call goes on in any case.
///
/// # Errors
/// It has not returned in time.
pub(crate) async fn call<T: Send + 'static>(
    deadline: Deadline,
    what: impl FnOnce() -> T + Send + 'static,
) -> Step<T> {
    let (done, answer) = oneshot::channel();
    let begun = std::thread::Builder::new().spawn(move || {
        // Who asked may have given up.
        let _ = done.send(what());
    });
    begun.map_err(|error| format!("no thread can be begun: {error}"))?;
    let answer = deadline.wait(answer).await?;
    Ok(answer.map_err(|_| "a thread has ended without an answer".to_owned())?)
}

/// Calls with names that have not returned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Apart(Arc<Mutex<BTreeSet<String>>>);

/// A name that is taken.
struct UnderWay {
    all: Apart,
    name: String,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        lock(&self.all.0).remove(&self.name);
    }
}

impl Apart {
    fn take(&self, name: &str) -> Option<UnderWay> {
        lock(&self.0).insert(name.to_owned()).then(|| UnderWay {
            all: self.clone(),
            name: name.to_owned(),
        })
    }

    /// As [`call`]; an earlier one of this name is waited for first.
    ///
    /// # Errors
    /// This one or the earlier one has not returned in time.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        name: &str,
        deadline: Deadline,
        what: impl FnOnce() -> T + Send + 'static,
    ) -> Step<T> {
        let turn = loop {
            if let Some(turn) = self.take(name) {
                break turn;
            }
            self.returned(name, deadline).await?;
        };
        call(deadline, move || {
            let answer = what();
            drop(turn);
            answer
        })
        .await
    }

    /// Waits until no call of this name is under way.
    ///
    /// # Errors
    /// There is one when the deadline passes.
    pub(crate) async fn returned(&self, name: &str, deadline: Deadline) -> Step {
        while lock(&self.0).contains(name) {
            if deadline.passed() {
                return Err(Failure::Failed(format!(
                    "{name}: it was begun before and has not returned: the kernel may still do it"
                )));
            }
            sleep(POLL).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Ms;

    #[tokio::test]
    async fn a_call_that_does_not_return_is_given_up_and_stays_known() {
        let apart = Apart::default();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let short = || Deadline::after(Ms(20));
        let hangs = apart.run("x", short(), move || wait.recv().is_ok()).await;
        assert_eq!(hangs, Err(Failure::TimedOut));
        let why = format!("{:?}", apart.returned("x", short()).await);
        assert!(why.contains("has not returned"), "{why}");
        let second = apart.run("x", short(), || true).await;
        assert!(matches!(second, Err(Failure::Failed(_))), "{second:?}");
        assert_eq!(apart.run("y", Deadline::after(Ms(0)), || 7).await, Ok(7));
        go.send(()).expect("it waits");
        assert_eq!(apart.returned("x", Deadline::after(Ms(0))).await, Ok(()));
        assert_eq!(apart.run("x", Deadline::after(Ms(0)), || 8).await, Ok(8));
    }
}
