//! The runtime of a data-plane thread: tokio's for one thread, arranged so that an operation costs few system
//! calls.
//!
//! Four things differ from `LocalSet` in a plain runtime (docs/decisions/0010-runtime.md has the counts):
//!
//! - Everything is a task of the one run queue, the root too ([`run`]). A future given to `block_on` is polled
//!   only after the sockets were looked at, which is a system call each time that another task wakes it.
//! - A thread that sleeps is interrupted when a disk operation completes, before the ring's descriptor says
//!   anything. Who waits for a ring is woken then ([`wake_when_interrupted`]) and finds the completion
//!   without a second sleep. A thread may have several: the disks', and those of ublk's devices.
//! - [`step_back`] lets the tasks go first that are ready now, and asks the kernel for nothing.
//! - A thread that may expect something soon looks a while before it sleeps ([`Awaits`]).
//!
//! And the link's clock is read once for everything that is done at a time ([`moment`]).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

use super::patience::{Awaits, Patience};
use super::time;

thread_local! {
    /// Who looks at a ring when the thread's sleep ends, whatever ended it.
    static INTERRUPTED: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
    /// What [`moment`] says.
    static CLOCK: Cell<Clock> = const { Cell::new(Clock::NotOurs) };
    /// Of a thread that looks before it sleeps.
    static LOOKER: RefCell<Option<Looker>> = const { RefCell::new(None) };
}

/// What keeps a thread from sleeping.
struct Looker {
    patience: Patience,
    /// Of a task that does nothing: tokio asks the kernel without waiting while any task is ready.
    task: Waker,
}

/// What is known of the time.
#[derive(Clone, Copy, Debug)]
enum Clock {
    /// The thread is asleep, or its runtime is not [ours](build), so that nobody says when time passes.
    NotOurs,
    /// Nothing since time has passed.
    Unread,
    /// It was read, and next to nothing has happened since.
    Read(Instant),
}

/// A runtime for this thread.
///
/// # Errors
///
/// The system gives no descriptor for it.
pub fn build() -> io::Result<LocalRuntime> {
    Builder::new_current_thread()
        .enable_all()
        .on_thread_park(|| {
            if !looks_again() {
                CLOCK.set(Clock::NotOurs);
            }
        })
        .on_thread_unpark(|| {
            CLOCK.set(Clock::Unread);
            wake_interrupted();
        })
        .build_local(LocalOptions::default())
}

/// Runs `future` as a task of the runtime until it ends. A panic of it goes on here.
pub fn run<F>(runtime: &LocalRuntime, future: F) -> F::Output
where
    F: Future + 'static,
    F::Output: 'static,
{
    let _leaves = Leaves;
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
    let _leaves = Leaves;
    runtime.block_on(future)
}

/// The thread leaves its runtime: another one would not say when time passes, nor has it this one's tasks.
struct Leaves;

impl Drop for Leaves {
    fn drop(&mut self) {
        CLOCK.set(Clock::NotOurs);
        LOOKER.take();
    }
}

/// From now on this thread, whose runtime is [ours](build), looks for up to `longest` before it sleeps, where
/// that is worth it; [`has_worked`] is to be told. Zero, or a machine of one processor: it sleeps.
pub fn look_before_sleeping(longest: Duration) {
    if longest.is_zero() || std::thread::available_parallelism().is_ok_and(|cores| cores.get() == 1)
    {
        return;
    }
    tokio::task::spawn_local(poll_fn(move |cx| {
        LOOKER.with_borrow_mut(|looker| {
            looker.get_or_insert_with(|| Looker {
                patience: Patience::new(longest),
                task: cx.waker().clone(),
            });
        });
        Poll::<()>::Pending
    }));
}

/// The thread had something to do, and waits for `awaits` next.
pub fn has_worked(awaits: Awaits) {
    LOOKER.with_borrow_mut(|looker| {
        if let Some(Looker { patience, .. }) = looker {
            if patience.is_waiting() {
                patience.found(time::now());
            }
            patience.awaits(awaits);
        }
    });
}

/// Nothing is ready: whether to look again instead of sleeping. The processor was offered to others then.
fn looks_again() -> bool {
    LOOKER.with_borrow_mut(|looker| {
        let Some(Looker { patience, task }) = looker else {
            return false;
        };
        let now = time::now();
        if !patience.looks(now) {
            return false;
        }
        std::thread::yield_now();
        patience.was_away(now, time::now());
        task.wake_by_ref();
        true
    })
}

/// The time, read at most once since the thread last slept, or since [`time_passed`]. The link asks for it several
/// times for each datagram, and reading it is a system call where the kernel does not hand its clock out. On a thread whose
/// runtime is not [ours](build) it is read each time.
pub(super) fn moment() -> Instant {
    match CLOCK.get() {
        Clock::Read(moment) => moment,
        Clock::Unread => {
            let moment = now();
            CLOCK.set(Clock::Read(moment));
            moment
        }
        Clock::NotOurs => now(),
    }
}

/// Something was done that takes a while, or has waited for something: [`moment`] is to be read anew.
pub(super) fn time_passed() {
    if let Clock::Read(_) = CLOCK.get() {
        CLOCK.set(Clock::Unread);
    }
}

/// The runtime's own time.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
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
    fn a_moment_lasts_until_time_passes_or_the_thread_sleeps() {
        fn later(than: Instant) -> bool {
            while now() == than {
                std::hint::spin_loop();
            }
            moment() > than
        }
        let runtime = build().expect("a runtime");
        let first = moment();
        assert!(later(first), "outside");
        run(&runtime, async {
            let sleep = || tokio::time::sleep(Duration::from_millis(1));
            sleep().await;
            let first = moment();
            assert!(!later(first), "of one turn");
            step_back().await;
            assert!(!later(first), "of one turn, for all its tasks");
            time_passed();
            let second = moment();
            assert!(second > first && !later(second));
            sleep().await;
            assert!(later(second), "it has slept");
        });
        let last = moment();
        assert!(later(last), "left");
    }

    #[test]
    fn a_thread_that_looks_does_not_sleep_and_one_without_hope_does() {
        // Long enough for any wait here to be a short one.
        let (longest, cores) = (Duration::from_secs(600), thread::available_parallelism());
        let runtime = build().expect("a runtime");
        let sleeps = runtime.metrics();
        run(&runtime, async move {
            look_before_sleeping(longest);
            let slept = || sleeps.worker_park_count(0);
            let pause = || tokio::time::sleep(Duration::from_millis(1));
            pause().await;
            let before = slept();
            pause().await;
            assert!(slept() > before, "nobody has told of work");
            has_worked(Awaits::Requests);
            let before = slept();
            pause().await;
            if cores.is_ok_and(|cores| cores.get() > 1) {
                // A program that computes beside the test takes the processor away, and the thread rests then.
                let rested = LOOKER.with_borrow(|it| it.as_ref().map(|it| it.patience.rested()));
                assert!(slept() == before || rested == Some(true));
            } else {
                assert!(slept() > before, "nobody else would get on");
            }
            has_worked(Awaits::Answers);
            pause().await;
            assert!(slept() > before, "none of its kind was seen yet");
        });
        assert!(LOOKER.with_borrow(Option::is_none), "left");
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
