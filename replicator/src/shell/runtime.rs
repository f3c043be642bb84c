//! The runtime of a data-plane thread: tokio's for one thread, arranged so that an operation costs few system
//! calls.
//!
//! Three things differ from `LocalSet` in a plain runtime (docs/decisions/0010-runtime.md has the counts):
//!
//! - Everything is a task of the one run queue, the root too ([`run`]). A future given to `block_on` is polled
//!   only after the sockets were looked at, which is a system call each time that another task wakes it.
//! - A thread that sleeps is interrupted when a disk operation completes, before the ring's descriptor says
//!   anything. Who waits for the ring is woken then ([`wake_when_interrupted`]) and finds the completion
//!   without a second sleep.
//! - [`step_back`] lets the tasks go first that are ready now, and asks the kernel for nothing.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::task::{Poll, Waker};

use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

thread_local! {
    /// Who looks at the ring when the thread's sleep ends, whatever ended it.
    static INTERRUPTED: RefCell<Option<Waker>> = const { RefCell::new(None) };
}

/// A runtime for this thread.
///
/// # Errors
///
/// The system gives no descriptor for it.
pub fn build() -> io::Result<LocalRuntime> {
    Builder::new_current_thread()
        .enable_all()
        .on_thread_unpark(|| {
            if let Some(waker) = INTERRUPTED.take() {
                waker.wake();
            }
        })
        .build_local(LocalOptions::default())
}

/// Runs `future` as a task of the runtime until it ends. A panic of it goes on here.
pub fn run<F>(runtime: &LocalRuntime, future: F) -> F::Output
where
    F: Future + 'static,
    F::Output: 'static,
{
    let task = runtime.spawn_local(future);
    match runtime.block_on(task) {
        Ok(output) => output,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => unreachable!("nobody aborts the thread's root task: {error}"),
        },
    }
}

/// Runs `future` on a runtime of its own: what a program does on a thread that is no data-plane thread.
///
/// # Panics
///
/// When the system gives no descriptor for the runtime.
pub fn start<F: Future>(future: F) -> F::Output {
    let runtime = build().unwrap_or_else(|error| panic!("starting a thread's runtime: {error}"));
    runtime.block_on(future)
}

/// Wakes this task once, when the thread has slept and was woken by anything.
pub(super) fn wake_when_interrupted(waker: &Waker) {
    INTERRUPTED.with_borrow_mut(|waiting| match waiting {
        Some(known) if known.will_wake(waker) => {}
        _ => *waiting = Some(waker.clone()),
    });
}

/// Lets every task run that is ready now, and returns. Unlike `tokio::task::yield_now` it does not look at
/// sockets and timers first.
pub(super) async fn step_back() {
    let mut stepped = false;
    poll_fn(|cx| {
        if stepped {
            return Poll::Ready(());
        }
        stepped = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
