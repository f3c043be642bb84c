//! The runtime of a data-plane thread: tokio's for one thread, arranged so that an operation costs few system
//! calls.
//!
//! Three things differ from `LocalSet` in a plain runtime (docs/decisions/0010-runtime.md has the counts):
//!
//! - Everything is a task of the one run queue, the root too ([`run`]). A future given to `block_on` is polled
//!   only after the sockets were looked at, which is a system call each time that another task wakes it.
//! - A thread that sleeps is interrupted when a disk operation completes, before the ring's descriptor says
//!   anything. Who waits for a ring is woken then ([`wake_when_interrupted`]) and finds the completion
//!   without a second sleep. A thread may have several: the disks', and those of ublk's devices.
//! - [`step_back`] lets the tasks go first that are ready now, and asks the kernel for nothing.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::task::{Poll, Waker};

use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

thread_local! {
    /// Who looks at a ring when the thread's sleep ends, whatever ended it.
    static INTERRUPTED: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
}

/// A runtime for this thread.
///
/// # Errors
///
/// The system gives no descriptor for it.
pub fn build() -> io::Result<LocalRuntime> {
    Builder::new_current_thread()
        .enable_all()
        .on_thread_unpark(wake_interrupted)
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

/// Wakes this task once, when the thread has slept and was woken by anything. Each task that asks is woken, on
/// a thread whose runtime is [ours](build).
pub fn wake_when_interrupted(waker: &Waker) {
    INTERRUPTED.with_borrow_mut(|waiting| {
        if !waiting.iter().any(|known| known.will_wake(waker)) {
            waiting.push(waker.clone());
        }
    });
}

fn wake_interrupted() {
    // Taken out first: a task may end by being woken, and whatever it drops may ask.
    let mut woken = INTERRUPTED.take();
    for waker in woken.drain(..) {
        waker.wake();
    }
    INTERRUPTED.with_borrow_mut(|waiting| {
        // Kept for its memory.
        if waiting.is_empty() {
            *waiting = woken;
        }
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use tokio::sync::oneshot;

    use super::*;

    /// Asks to be woken, says so, and ends when it is polled again.
    async fn interrupted(asked: mpsc::Sender<()>) {
        let mut has_asked = false;
        poll_fn(|cx| {
            if has_asked {
                return Poll::Ready(());
            }
            // Twice is once.
            wake_when_interrupted(cx.waker());
            wake_when_interrupted(cx.waker());
            has_asked = true;
            asked.send(()).expect("heard");
            Poll::Pending
        })
        .await;
    }

    #[test]
    fn everyone_who_asked_is_woken_whatever_ends_the_sleep() {
        let runtime = build().expect("a runtime");
        let (asked, hears) = mpsc::channel();
        let (wake, woken) = oneshot::channel();
        // Something else that this thread sleeps for, once all three have asked.
        let other = thread::spawn(move || {
            hears.iter().take(3).for_each(drop);
            wake.send(()).expect("awaited");
        });
        run(&runtime, async move {
            let tasks = [asked.clone(), asked.clone(), asked]
                .map(|asked| tokio::task::spawn_local(interrupted(asked)));
            woken.await.expect("sent");
            for task in tasks {
                task.await.expect("woken");
            }
        });
        other.join().expect("ended");
        INTERRUPTED.with_borrow(|waiting| assert!(waiting.is_empty()));
    }
}
