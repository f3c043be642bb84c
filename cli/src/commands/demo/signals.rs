//! Ctrl-C and SIGTERM: whoever waits gives up, and everything that was started is taken down in order.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

static STOP: AtomicBool = AtomicBool::new(false);

/// Set when the user wants an end.
pub fn flag() -> &'static AtomicBool {
    &STOP
}

/// Whether the user wants an end.
pub fn said_stop() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// From now on the first signal sets the flag, and the second ends the process at once.
///
/// # Errors
/// The system takes no signal handler, or no thread.
pub fn watch() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        )
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                for round in 0.. {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        _ = hangup.recv() => {}
                    }
                    STOP.store(true, Ordering::Relaxed);
                    if round > 0 {
                        // The programs that were started die with this one.
                        std::process::exit(130);
                    }
                }
            });
        })
        .map(|_| ())
}
