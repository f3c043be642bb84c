//! What the daemon does to its own process first: it lies in the write-back path of its machine.
//!
//! The kernel may write dirty pages through this process to get memory back; a process that then waits
//! for memory itself would wait for itself. So the kernel is told (`PR_SET_IO_FLUSHER`, inherited by
//! threads made later only: hence first thing in `main`), what the process has is locked in memory, and
//! it is the last to be killed when memory runs out. Each needs privileges that a mirror for trying out
//! doesn't have; what is refused is a warning.

use std::fs;
use std::io;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, configure_io_flusher_behavior, getrlimit};

/// Below this a process is killed only after all others: systemd's own daemons have -900 to -1000.
const OOM_SCORE: &str = "-900";

/// Prepares the process. Call it first thing in the daemon's `main`, before any thread is made.
///
/// Gives a line for each thing that was not permitted, for the log.
pub fn prepare_process() -> Vec<String> {
    let mut warnings = Vec::new();
    if let Err(error) = configure_io_flusher_behavior(true) {
        warnings.push(format!(
            "the kernel was not told that this process writes its dirty pages back (PR_SET_IO_FLUSHER: {error}): \
             when memory is short a mounted mirror can hang; give the daemon CAP_SYS_RESOURCE"
        ));
    }
    if let Err(error) = lock_memory() {
        warnings.push(format!(
            "memory is not locked ({error}): when memory is short answers take longer; raise LimitMEMLOCK or give \
             the daemon CAP_IPC_LOCK"
        ));
    }
    if let Err(error) = lower_oom_score() {
        warnings.push(format!(
            "the OOM score stays as it is ({error}): when memory runs out this process may be killed first; give the \
             daemon CAP_SYS_RESOURCE, or set OOMScoreAdjust={OOM_SCORE} in its unit"
        ));
    }
    warnings
}

/// Lowers the OOM score; one that is lower still (`OOMScoreAdjust=` of a unit) stays.
fn lower_oom_score() -> io::Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let now = fs::read_to_string(FILE)?;
    let number = |text: &str| text.trim().parse::<i32>().ok();
    if number(&now) <= number(OOM_SCORE) {
        return Ok(());
    }
    fs::write(FILE, OOM_SCORE)
}

/// Locks what the process has and will have, as it is touched. Only where there is no bound: with
/// one, a later allocation would fail instead of waiting.
fn lock_memory() -> io::Result<()> {
    let limit = getrlimit(Resource::Memlock).current;
    if let Some(limit) = limit
        && mlock_is_bounded()
    {
        return Err(io::Error::other(format!(
            "at most {limit} bytes may be locked"
        )));
    }
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?;
    Ok(())
}

/// Whether the limit counts: not for a process with `CAP_IPC_LOCK`.
fn mlock_is_bounded() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_none_or(|mask| mask >> CAP_IPC_LOCK & 1 == 0)
}
