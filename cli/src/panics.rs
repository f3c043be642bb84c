//! A panic is a failed assertion, and ends the process before anybody is answered.
//!
//! A hook does it, not `panic = "abort"`: the simulator turns a failed assertion into a violation with a seed, and
//! is one build with the daemon. The hook runs before anything unwinds, so that nothing can catch a panic.

use std::panic;
use std::process;

/// From now on a panic in any thread tells where it was, and aborts the process.
pub(crate) fn abort() {
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |what| {
        tell(what);
        process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use rustix::process::Signal;

    use super::*;

    const CHILD: &str = "KAGAMI_TEST_PANICS";
    const NAME: &str = "panics::tests::nothing_catches_a_panic";

    #[test]
    fn nothing_catches_a_panic() {
        if env::var_os(CHILD).is_some() {
            abort();
            // What a task of a runtime's does with a panic, too.
            let caught = panic::catch_unwind(|| panic!("an invariant does not hold"));
            println!("caught: {}", caught.is_err());
            return;
        }
        let ended = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", NAME, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .expect("it runs");
        let (said, told) = (
            String::from_utf8_lossy(&ended.stdout),
            String::from_utf8_lossy(&ended.stderr),
        );
        assert_eq!(
            ended.status.signal(),
            Some(Signal::ABORT.as_raw()),
            "{said}{told}"
        );
        assert!(told.contains("an invariant does not hold"), "{told}");
        assert!(!said.contains("caught"), "{said}");
    }
}
