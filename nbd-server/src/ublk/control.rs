//! Making, starting, stopping and taking over devices: commands to `/dev/ublk-control`.
//!
//! Decides in which order the kernel is asked, and what its answers mean. [`Control`] carries a command there and
//! back, so that all of it is tried without a kernel; [`ControlRing`] is the real one.
//!
//! **Never from a process that serves a device**: a command may wait in the kernel, where no signal ends it, for
//! requests that this process would have to answer. The daemon has a child for it.

mod ring;

use std::fs;
use std::io;
use std::num::NonZeroU32;
use std::path::Path;
use std::process;
use std::time::Duration;

use rustix::io::Errno;

use super::Shape;
use super::abi::{ANY_ID, DeviceInfo, Op, Params, State, feature};
use super::fault::UblkFault;
pub use ring::ControlRing;

/// The first release whose recovery was tried (docs/decisions/0012-ublk.md).
const OLDEST: (u32, u32) = (6, 12);
/// The file of a daemon that was killed is released within; a stopped process may take for ever.
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);
/// How much later than a request's time-out the kernel has looked at it.
const TIMEOUT_SLACK: Duration = Duration::from_secs(5);
/// How often a recovery is tried meanwhile.
const TRY_EVERY: Duration = Duration::from_millis(20);
/// A deleted device whose users are gone vanishes within.
const DELETE_PATIENCE: Duration = Duration::from_secs(2);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Carries commands to the kernel. A trait, so that what stands on it is tried without one.
pub trait Control {
    /// Gives a command and waits for its answer. `memory` is the command's, to be read or filled.
    ///
    /// # Errors
    /// The driver's answer, or the ring's.
    fn command(&mut self, op: Op, id: u32, data: u64, memory: &mut [u8]) -> Result<i32, Errno>;

    /// Gives a command that may wait in the kernel as long as it likes; it ends with this process.
    ///
    /// # Errors
    /// The ring's. The driver's is [`answer`](Self::answer)'s.
    fn give(&mut self, op: Op, id: u32, data: u64) -> Result<(), Errno>;

    /// Waits for the answer to what was given last.
    ///
    /// # Errors
    /// The driver's answer, or the ring's.
    fn answer(&mut self) -> Result<i32, Errno>;

    /// Fetches all queues of a device, as one who serves it would.
    ///
    /// # Errors
    /// The system's answer.
    fn stand_in(&mut self, id: u32, shape: Shape) -> Result<(), Errno>;

    /// Leaves what [`stand_in`](Self::stand_in) fetched.
    fn dismiss(&mut self);

    /// Whether a process has `/dev/ublkcN` open.
    fn is_held(&mut self, id: u32) -> bool;

    /// After how long the kernel looks at a request of `/dev/ublkbN` again.
    fn request_timeout(&mut self, id: u32) -> Duration;

    /// Time since some moment.
    fn now(&mut self) -> Duration;

    /// Lets time pass.
    fn pause(&mut self, time: Duration);
}

/// A device that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct New {
    /// N of `/dev/ublkbN`; without it a free one.
    pub wanted: Option<u32>,
    /// Whose it is: kept by the kernel, and given back with the device's description.
    pub mark: u64,
    /// How many queues, and places of each. The kernel may make fewer queues.
    pub queues: u16,
    /// Places of each queue.
    pub depth: u16,
    /// What its users see. The kernel may take less of a payload.
    pub params: Params,
}

/// A device that the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// How it was made and is.
    pub info: DeviceInfo,
    /// Its bytes; 0 while it has no users.
    pub size: u64,
    /// Its least unit of I/O, bytes; 0 while it has no users.
    pub logical_block: u32,
}

/// A device that can be served now: what its queues are opened with, and what its users were promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// How it was made.
    pub shape: Shape,
    /// What its users see.
    pub params: Params,
}

/// What the driver can do: it is asked, and judged together with the kernel's release.
///
/// # Errors
/// [`UblkFault::TooOld`], or it can't be asked.
pub fn features(control: &mut impl Control, release: &str) -> Result<u64, UblkFault> {
    let mut memory = [0; 8];
    let features = match control.command(Op::GetFeatures, 0, 0, &mut memory) {
        Ok(_) => u64::from_ne_bytes(memory),
        // Before 6.5 there was no such question.
        Err(Errno::OPNOTSUPP | Errno::NODEV | Errno::INVAL) => 0,
        Err(errno) => return Err(fault(Op::GetFeatures, 0, errno)),
    };
    if features & feature::NEEDED == feature::NEEDED && is_new_enough(release) {
        return Ok(features);
    }
    let release = release.to_owned();
    Err(UblkFault::TooOld { release, features })
}

/// Whether a release, as `uname -r` says it, is not older than [`OLDEST`].
fn is_new_enough(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|digits| digits.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) >= OLDEST,
        _ => false,
    }
}

/// Makes a device. Its users don't see it before it is [begun](begin).
///
/// # Errors
/// [`UblkFault::InUse`] where the wanted number is taken; or no right, no memory. Nothing is left of it then.
pub fn add(control: &mut impl Control, new: &New) -> Result<DeviceInfo, UblkFault> {
    let id = new.wanted.unwrap_or(ANY_ID);
    let wanted = DeviceInfo {
        id,
        queues: new.queues,
        depth: new.depth,
        state: State::Dead,
        max_io: new.params.max_payload,
        pid: 0,
        flags: feature::OURS | feature::CMD_IOCTL_ENCODE,
        mark: new.mark,
    };
    let mut memory = wanted.encode();
    match control.command(Op::AddDev, id, 0, &mut memory) {
        Ok(_) => {}
        Err(Errno::EXIST) => return Err(taken(control, id)),
        Err(errno) => return Err(fault(Op::AddDev, id, errno)),
    }
    let made = DeviceInfo::decode(&memory);
    let params = Params {
        max_payload: new.params.max_payload.min(made.max_io),
        ..new.params
    };
    let whole = made.flags & feature::OURS == feature::OURS && made.mark == new.mark;
    let set = if whole {
        control.command(Op::SetParams, made.id, 0, &mut params.encode())
    } else {
        Err(Errno::OPNOTSUPP)
    };
    if let Err(errno) = set {
        // Nobody can have it open yet.
        let _ = delete(control, made.id);
        return Err(fault(Op::SetParams, made.id, errno));
    }
    Ok(made)
}

/// Who has a number that was wanted.
fn taken(control: &mut impl Control, id: u32) -> UblkFault {
    let by = match info(control, id) {
        Ok(found) if found.pid > 0 => format!("process {} set it up", found.pid),
        _ => "another program set it up".to_owned(),
    };
    UblkFault::InUse { id, by }
}

/// How a device was made and is. Waits for nobody.
///
/// # Errors
/// [`UblkFault::Gone`]
pub fn info(control: &mut impl Control, id: u32) -> Result<DeviceInfo, UblkFault> {
    let mut memory = [0; DeviceInfo::LEN];
    control
        .command(Op::GetDevInfo, id, 0, &mut memory)
        .map_err(|errno| fault(Op::GetDevInfo, id, errno))?;
    Ok(DeviceInfo::decode(&memory))
}

/// What a device's users were promised. Waits for whoever starts or stops it just now.
fn params(control: &mut impl Control, id: u32) -> Result<Params, UblkFault> {
    let mut memory = Params::room();
    control
        .command(Op::GetParams, id, 0, &mut memory)
        .map_err(|errno| fault(Op::GetParams, id, errno))?;
    let what = "it was not made whole";
    Params::decode(&memory).ok_or(UblkFault::Gone { id, what })
}

/// All devices of the kernel, by number, as the driver and `sysfs` (`/sys`) show them. Waits for nobody.
///
/// One that a user made without a right is not among them: the driver tells of it only to who names its path, and a
/// mirror's device is never such a one.
///
/// # Errors
/// No right; the folder or the driver can't be asked. Never because there are none.
pub fn list(control: &mut impl Control, sysfs: &Path) -> Result<Vec<Listed>, UblkFault> {
    let ids = numbers(&sysfs.join("class/ublk-char")).map_err(|error| UblkFault::Io {
        doing: "a look into /sys/class/ublk-char",
        error,
    })?;
    let mut listed = Vec::with_capacity(ids.len());
    for id in ids {
        let info = match info(control, id) {
            Ok(info) => info,
            // Deleted meanwhile.
            Err(UblkFault::Gone { .. }) => continue,
            Err(fault) if is_invalid(&fault) && is_answering(control) => continue,
            Err(fault) => return Err(fault),
        };
        // GET_PARAMS would wait for a device that somebody else starts or stops.
        let block = sysfs.join("block").join(format!("ublkb{id}"));
        let number = |name| -> Option<u64> {
            let text = fs::read_to_string(block.join(name)).ok()?;
            text.trim().parse().ok()
        };
        let logical_block = number("queue/logical_block_size").unwrap_or(0);
        listed.push(Listed {
            info,
            size: number("size").unwrap_or(0).saturating_mul(512),
            logical_block: u32::try_from(logical_block).unwrap_or(0),
        });
    }
    Ok(listed)
}

/// The devices that the driver's folder shows; without the folder there is no driver.
fn numbers(folder: &Path) -> io::Result<Vec<u32>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("ublkc"));
        ids.extend(number.and_then(|number| number.parse::<u32>().ok()));
    }
    ids.sort_unstable();
    Ok(ids)
}

fn is_invalid(fault: &UblkFault) -> bool {
    matches!(fault, UblkFault::Io { error, .. } if Errno::from_io_error(error) == Some(Errno::INVAL))
}

/// Whether the driver answers a question that is about no device: then it was the device that was wrong.
fn is_answering(control: &mut impl Control) -> bool {
    control.command(Op::GetFeatures, 0, 0, &mut [0; 8]).is_ok()
}

/// Starts a new device, and takes it over: its users see it from now on, and wait. What is there for a device whose
/// daemon died is there for this one (see [`super::stand_in`]).
///
/// # Errors
/// [`UblkFault::InUse`] where it was started before, [`UblkFault::Gone`].
pub fn start(control: &mut impl Control, id: u32) -> Result<Ready, UblkFault> {
    let found = info(control, id)?;
    if found.state != State::Dead {
        let by = format!("process {} serves it", found.pid);
        return Err(UblkFault::InUse { id, by });
    }
    params(control, id)?;
    // It waits for the queues in the kernel: they are never fetched by anybody before it is under way.
    let given = control.give(Op::StartDev, id, process::id().into());
    given.map_err(|errno| fault(Op::StartDev, id, errno))?;
    let shape = shape(&found);
    control.stand_in(id, shape).map_err(|errno| UblkFault::Io {
        doing: "FETCH_REQ",
        error: errno.into(),
    })?;
    let started = control.answer();
    control.dismiss();
    started.map_err(|errno| fault(Op::StartDev, id, errno))?;
    begin_recovery(control, id, found.mark)
}

/// Takes a device whose daemon died: afterwards it waits for another one to open its queues. Waits for the dead
/// one's file to be released, and for the kernel to notice.
///
/// May be asked again, also after a daemon that asked and died before it opened the queues.
///
/// # Errors
/// [`UblkFault::InUse`] (not of that mark), [`UblkFault::Gone`], [`UblkFault::Busy`], [`UblkFault::Lost`].
pub fn begin_recovery(control: &mut impl Control, id: u32, mark: u64) -> Result<Ready, UblkFault> {
    let mut found = info(control, id)?;
    if found.mark != mark || found.flags & feature::OURS != feature::OURS {
        let by = format!("it is another program's (process {})", found.pid);
        return Err(UblkFault::InUse { id, by });
    }
    let begun = control.now();
    let mut unserved: Option<Duration> = None;
    loop {
        let answer = match found.state {
            State::Dead => {
                let what = "it was stopped, or never started";
                return Err(UblkFault::Gone { id, what });
            }
            _ => control.command(Op::StartUserRecovery, id, 0, &mut []),
        };
        match answer {
            Ok(_) => break,
            Err(Errno::BUSY | Errno::INVAL) => {}
            Err(errno) => return Err(fault(Op::StartUserRecovery, id, errno)),
        }
        found = info(control, id)?;
        if answer == Err(Errno::INVAL) {
            // No queue was fetched since somebody else began a recovery: that one stands.
            if found.state == State::Quiesced {
                break;
            }
            return Err(fault(Op::StartUserRecovery, id, Errno::INVAL));
        }
        let now = control.now();
        if found.state == State::Live && !control.is_held(id) {
            // The file is released, so its daemon is gone. Where that had taken all requests of a queue, the
            // kernel sees it when it looks at one of them again, and not before.
            let since = *unserved.get_or_insert(now);
            if now.saturating_sub(since) > control.request_timeout(id) + TIMEOUT_SLACK {
                return Err(UblkFault::Lost { id });
            }
        } else {
            unserved = None;
            if now.saturating_sub(begun) > RELEASE_PATIENCE {
                let pid = found.pid;
                return Err(UblkFault::Busy { id, pid });
            }
        }
        control.pause(TRY_EVERY);
    }
    let params = params(control, id)?;
    let shape = shape(&found);
    Ok(Ready { shape, params })
}

/// Gives the command that lets a device's users go on as soon as process `pid` has fetched all its places. It waits
/// in the kernel for that: **to be given before the queues are opened**, since a daemon that died in between would
/// leave a device that counts as served, which no other can take.
///
/// # Errors
/// The ring's.
pub fn end_recovery(control: &mut impl Control, id: u32, pid: u32) -> Result<(), UblkFault> {
    let given = control.give(Op::EndUserRecovery, id, pid.into());
    given.map_err(|errno| fault(Op::EndUserRecovery, id, errno))
}

/// Waits until the command of [`end_recovery`] is carried out.
///
/// # Errors
/// The driver's answer.
pub fn recovered(control: &mut impl Control, id: u32) -> Result<(), UblkFault> {
    match control.answer() {
        Ok(_) => Ok(()),
        // The command of a child before this one, which its daemon did not outlive, was quicker.
        Err(Errno::BUSY) if info(control, id)?.state == State::Live => Ok(()),
        Err(errno) => Err(fault(Op::EndUserRecovery, id, errno)),
    }
}

/// Takes a device from its users: what waits in it fails, and what is in flight is waited for. Who serves it must
/// answer all of that meanwhile.
///
/// # Errors
/// [`UblkFault::Gone`]
pub fn stop(control: &mut impl Control, id: u32) -> Result<(), UblkFault> {
    let stopped = control.command(Op::StopDev, id, 0, &mut []);
    stopped.map_err(|errno| fault(Op::StopDev, id, errno))?;
    Ok(())
}

/// Removes a device, stopped or not. Its number is free when this returns, unless somebody has it open still: then
/// it is when that one is gone.
///
/// # Errors
/// No right.
pub fn delete(control: &mut impl Control, id: u32) -> Result<(), UblkFault> {
    match control.command(Op::DelDevAsync, id, 0, &mut []) {
        Ok(_) => {}
        Err(Errno::NODEV) => return Ok(()),
        Err(errno) => return Err(fault(Op::DelDevAsync, id, errno)),
    }
    let deadline = control.now() + DELETE_PATIENCE;
    while info(control, id).is_ok() && control.now() < deadline {
        control.pause(LOOK_EVERY);
    }
    Ok(())
}

fn shape(info: &DeviceInfo) -> Shape {
    Shape {
        queues: info.queues,
        depth: info.depth,
        max_io: info.max_io,
    }
}

fn fault(op: Op, id: u32, errno: Errno) -> UblkFault {
    match errno {
        Errno::PERM => UblkFault::NotPermitted,
        Errno::NODEV => UblkFault::Gone {
            id,
            what: "the kernel has none of that number",
        },
        _ => UblkFault::Io {
            doing: op.name(),
            error: errno.into(),
        },
    }
}

/// What a mirror's device is made with: as many queues as CPUs, up to what helps.
pub fn queues_for(cpus: usize) -> u16 {
    cpus.clamp(1, 4) as u16
}

/// Places of each queue.
pub const DEPTH: u16 = 64;
/// The longest payload, bytes: no disk wants longer ones.
pub const MAX_PAYLOAD: u32 = 1 << 20;

impl New {
    /// A device of the usual shape for a mirror whose front end takes payloads of up to `max_payload` bytes.
    pub fn of(
        wanted: Option<u32>,
        mark: u64,
        size: u64,
        logical_block: NonZeroU32,
        rotational: bool,
        max_payload: u32,
        cpus: usize,
    ) -> Self {
        Self {
            wanted,
            mark,
            queues: queues_for(cpus),
            depth: DEPTH,
            params: Params {
                size,
                logical_block,
                max_payload: max_payload.min(MAX_PAYLOAD),
                rotational,
            },
        }
    }
}

#[cfg(test)]
mod tests;
