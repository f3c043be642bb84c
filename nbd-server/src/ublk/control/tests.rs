//! The commands and their order, before a made-up kernel that keeps devices as the driver of 6.12 does.

use std::collections::BTreeMap;

use super::*;

/// A device as the driver keeps it.
#[derive(Clone, Debug)]
struct Device {
    info: DeviceInfo,
    params: [u8; Params::LEN],
    /// Somebody has its file open.
    held: bool,
    /// Queues that are fetched whole.
    fetched: u16,
    /// Somebody has the block device open: it outlives its deletion.
    used: bool,
}

type Change = fn(&mut Device);

#[derive(Debug, Default)]
struct Kernel {
    devices: BTreeMap<u32, Device>,
    features: Option<u64>,
    may: bool,
    cpus: u16,
    time: Duration,
    /// What happens when that time has come.
    later: Vec<(Duration, Change)>,
    waiting: Option<(Op, u32, i32)>,
    asked: Vec<Op>,
    /// `SET_PARAMS` fails.
    picky: bool,
    /// No memory for queues.
    full: bool,
    standing: Option<u32>,
    request_timeout: Duration,
}

fn kernel() -> Kernel {
    Kernel {
        features: Some(0x1fe),
        may: true,
        cpus: 2,
        request_timeout: Duration::from_secs(1),
        ..Kernel::default()
    }
}

const MARK: u64 = 0x0123_4567_89ab_cdef;

fn new() -> New {
    let block = NonZeroU32::new(512).expect("not 0");
    New::of(None, MARK, 64 << 20, block, false, 8 << 20, 8)
}

impl Kernel {
    /// A device of ours, served by process 7.
    fn with_device(mut self, change: Change) -> Self {
        let id = add(&mut self, &new()).expect("made").id;
        let device = self.devices.get_mut(&id).expect("there");
        device.info.state = State::Live;
        device.info.pid = 7;
        device.held = true;
        device.fetched = device.info.queues;
        change(device);
        self.asked.clear();
        self
    }

    fn later(mut self, after: Duration, happens: Change) -> Self {
        self.later.push((after, happens));
        self
    }

    fn device(&mut self) -> &mut Device {
        self.devices.get_mut(&0).expect("device 0")
    }

    fn add_dev(&mut self, id: u32, memory: &mut [u8]) -> Result<i32, Errno> {
        let mut info = DeviceInfo::decode((&*memory).try_into().expect("whole"));
        assert_eq!(info.id, id, "the number is said twice");
        info.id = match id {
            ANY_ID => (0..16)
                .find(|id| !self.devices.contains_key(id))
                .expect("one"),
            taken if self.devices.contains_key(&taken) => return Err(Errno::EXIST),
            free => free,
        };
        info.queues = info.queues.min(self.cpus);
        info.max_io &= !4095;
        memory.copy_from_slice(&info.encode());
        let device = Device {
            info,
            params: [0; Params::LEN],
            held: false,
            fetched: 0,
            used: false,
        };
        self.devices.insert(info.id, device);
        Ok(0)
    }
}

impl Control for Kernel {
    fn command(&mut self, op: Op, id: u32, _: u64, memory: &mut [u8]) -> Result<i32, Errno> {
        self.asked.push(op);
        if op == Op::GetFeatures {
            let features = self.features.ok_or(Errno::OPNOTSUPP)?;
            memory.copy_from_slice(&features.to_ne_bytes());
            return Ok(0);
        }
        if !self.may {
            return Err(Errno::PERM);
        }
        if op == Op::AddDev {
            return self.add_dev(id, memory);
        }
        let picky = self.picky;
        let device = self.devices.get_mut(&id).ok_or(Errno::NODEV)?;
        match op {
            Op::GetDevInfo if device.info.flags & feature::UNPRIVILEGED_DEV != 0 => {
                // Its path was not named.
                return Err(Errno::INVAL);
            }
            Op::GetDevInfo => memory.copy_from_slice(&device.info.encode()),
            Op::GetParams => memory.copy_from_slice(&device.params),
            Op::SetParams => {
                let bytes: [u8; Params::LEN] = (&*memory).try_into().expect("whole");
                let params = Params::decode(&bytes).ok_or(Errno::INVAL)?;
                if picky || params.max_payload > device.info.max_io {
                    return Err(Errno::INVAL);
                }
                device.params = bytes;
            }
            Op::StopDev => device.info.state = State::Dead,
            Op::DelDevAsync => {
                if !device.used {
                    self.devices.remove(&id);
                }
            }
            Op::StartUserRecovery => {
                if device.fetched == 0 {
                    return Err(Errno::INVAL);
                }
                assert_eq!(
                    device.fetched, device.info.queues,
                    "the kernel crashes here"
                );
                if device.held || device.info.state != State::Quiesced {
                    return Err(Errno::BUSY);
                }
                device.fetched = 0;
            }
            other => panic!("{} may wait: it is given", other.name()),
        }
        Ok(0)
    }

    fn give(&mut self, op: Op, id: u32, data: u64) -> Result<(), Errno> {
        assert!(matches!(op, Op::StartDev | Op::EndUserRecovery));
        assert!(self.waiting.is_none(), "two at once");
        let pid = i32::try_from(data).expect("a process");
        self.waiting = Some((op, id, pid));
        Ok(())
    }

    fn answer(&mut self) -> Result<i32, Errno> {
        let (op, id, pid) = self.waiting.take().expect("given");
        let device = self.devices.get_mut(&id).ok_or(Errno::NODEV)?;
        assert_eq!(device.fetched, device.info.queues, "it would wait for ever");
        let from = match op {
            Op::StartDev => (State::Dead, Errno::EXIST),
            _ => (State::Quiesced, Errno::BUSY),
        };
        if device.info.state != from.0 {
            return Err(from.1);
        }
        device.info.state = State::Live;
        device.info.pid = pid;
        Ok(0)
    }

    fn stand_in(&mut self, id: u32, shape: Shape) -> Result<(), Errno> {
        let waits = matches!(self.waiting, Some((Op::StartDev, waiting, _)) if waiting == id);
        assert!(waits, "fetched before START_DEV was given");
        if self.full {
            return Err(Errno::NOMEM);
        }
        let device = self.devices.get_mut(&id).ok_or(Errno::NODEV)?;
        assert_eq!((shape.queues, shape.depth), (device.info.queues, DEPTH));
        device.fetched = shape.queues;
        device.held = true;
        self.standing = Some(id);
        Ok(())
    }

    fn dismiss(&mut self) {
        let device = self
            .standing
            .take()
            .and_then(|id| self.devices.get_mut(&id));
        let device = device.expect("standing");
        device.held = false;
        // Of a device that was not started nothing is kept.
        if device.info.state == State::Live {
            self.later
                .push((self.time + Duration::from_millis(15), |device| {
                    device.info.state = State::Quiesced;
                }));
        }
    }

    fn is_held(&mut self, id: u32) -> bool {
        self.devices.get(&id).is_some_and(|device| device.held)
    }

    fn request_timeout(&mut self, _: u32) -> Duration {
        self.request_timeout
    }

    fn now(&mut self) -> Duration {
        self.time
    }

    fn pause(&mut self, time: Duration) {
        self.time += time;
        assert!(self.time < Duration::from_secs(600), "it waits for ever");
        let now = self.time;
        for (_, happens) in self.later.extract_if(.., |(when, _)| *when <= now) {
            for device in self.devices.values_mut() {
                happens(device);
            }
        }
    }
}

#[test]
fn what_the_driver_can_do_decides_with_the_release() {
    let mut good = kernel();
    assert_eq!(
        features(&mut good, "6.12.117+deb12-amd64").expect("new"),
        0x1fe
    );
    assert!(features(&mut good, "7.0.1").is_ok());
    for old in ["6.11.9", "5.19", "6", "unknown"] {
        let fault = features(&mut good, old).expect_err("old");
        assert_eq!(fault.name(), "too-old");
        assert!(fault.to_string().contains(old), "{fault}");
        assert!(fault.next().contains("--ublk"), "{}", fault.next());
    }
    // Without USER_COPY, and without the question.
    for features_now in [Some(0x17e), None] {
        let mut poor = kernel();
        poor.features = features_now;
        assert!(matches!(
            features(&mut poor, "6.12"),
            Err(UblkFault::TooOld { .. })
        ));
    }
}

#[test]
fn a_device_is_made_and_described() {
    let mut kernel = kernel();
    let made = add(&mut kernel, &new()).expect("made");
    assert_eq!((made.id, made.queues, made.depth), (0, 2, DEPTH));
    assert_eq!((made.mark, made.max_io), (MARK, MAX_PAYLOAD));
    assert_eq!(kernel.asked, [Op::AddDev, Op::SetParams]);
    let ready = start(&mut kernel, 0).expect("started");
    assert_eq!(ready.shape.queues, 2);
    assert_eq!(ready.params.size, 64 << 20);
    assert_eq!(ready.params.max_payload, MAX_PAYLOAD);
    assert_eq!(add(&mut kernel, &new()).expect("another").id, 1);
}

#[test]
fn a_payload_is_never_longer_than_the_kernel_takes() {
    let mut kernel = kernel();
    let mut odd = new();
    odd.params.max_payload = 10_000;
    let made = add(&mut kernel, &odd).expect("made");
    let ready = start(&mut kernel, made.id).expect("started");
    assert_eq!((ready.shape.max_io, ready.params.max_payload), (8192, 8192));
}

#[test]
fn a_number_that_is_taken_is_refused_with_who_has_it() {
    let mut kernel = kernel().with_device(|_| {});
    let mut wanted = new();
    wanted.wanted = Some(0);
    let fault = add(&mut kernel, &wanted).expect_err("taken");
    assert_eq!(fault.name(), "in-use");
    assert!(fault.to_string().contains("/dev/ublkb0"), "{fault}");
    assert!(fault.to_string().contains("process 7"), "{fault}");
    wanted.wanted = Some(3);
    assert_eq!(add(&mut kernel, &wanted).expect("free").id, 3);
}

#[test]
fn a_device_that_can_not_be_made_whole_is_not_left() {
    let mut kernel = kernel();
    kernel.picky = true;
    let fault = add(&mut kernel, &new()).expect_err("refused");
    assert!(fault.to_string().contains("SET_PARAMS"), "{fault}");
    assert!(kernel.devices.is_empty());
}

#[test]
fn without_the_right_nothing_is_done() {
    let mut kernel = kernel();
    kernel.may = false;
    let fault = add(&mut kernel, &new()).expect_err("not permitted");
    assert_eq!(fault.name(), "not-permitted");
    assert!(fault.next().contains("CAP_SYS_ADMIN"));
}

#[test]
fn a_device_is_started_by_a_stand_in_and_taken_over() {
    let mut kernel = kernel();
    add(&mut kernel, &new()).expect("made");
    kernel.asked.clear();
    let ready = start(&mut kernel, 0).expect("started");
    assert_eq!(ready.shape.queues, 2);
    assert_eq!(ready.params.size, 64 << 20);
    assert_eq!(kernel.device().info.state, State::Quiesced);
    assert_eq!(kernel.device().fetched, 0, "free for the daemon");
    end_recovery(&mut kernel, 0, 4711).expect("given");
    kernel.device().fetched = 2;
    recovered(&mut kernel, 0).expect("goes on");
    assert_eq!(kernel.device().info.pid, 4711);
    let fault = start(&mut kernel, 0).expect_err("started");
    assert_eq!(fault.name(), "in-use");
}

#[test]
fn a_device_that_can_not_be_fetched_is_not_started() {
    let mut kernel = kernel();
    kernel.full = true;
    add(&mut kernel, &new()).expect("made");
    let fault = start(&mut kernel, 0).expect_err("no memory");
    assert!(fault.to_string().contains("FETCH_REQ"), "{fault}");
    assert_eq!(kernel.device().info.state, State::Dead);
}

#[test]
fn a_device_is_taken_over_from_a_daemon_that_died() {
    let mut kernel = kernel().with_device(|device| {
        device.held = false;
        device.info.state = State::Quiesced;
    });
    let ready = begin_recovery(&mut kernel, 0, MARK).expect("free");
    assert_eq!((ready.shape.queues, ready.shape.depth), (2, DEPTH));
    assert_eq!(ready.params.size, 64 << 20);
    assert_eq!(kernel.time, Duration::ZERO);
    end_recovery(&mut kernel, 0, 8).expect("given");
    kernel.device().fetched = 2;
    recovered(&mut kernel, 0).expect("goes on");
    assert_eq!(kernel.device().info.pid, 8);
}

#[test]
fn a_recovery_waits_until_the_dead_daemons_file_is_released() {
    let mut kernel = kernel()
        .with_device(|_| {})
        .later(Duration::from_millis(300), |device| {
            device.info.state = State::Quiesced;
        })
        .later(Duration::from_secs(2), |device| device.held = false);
    begin_recovery(&mut kernel, 0, MARK).expect("free in the end");
    assert!(kernel.time >= Duration::from_secs(2));
    assert!(kernel.time < Duration::from_secs(3));
}

#[test]
fn a_recovery_waits_until_the_kernel_has_noticed_that_all_places_are_taken() {
    let dies = |device: &mut Device| device.held = false;
    let mut slow = kernel()
        .with_device(dies)
        .later(Duration::from_secs(34), |device| {
            device.info.state = State::Quiesced;
        });
    slow.request_timeout = Duration::from_secs(30);
    begin_recovery(&mut slow, 0, MARK).expect("free in the end");
    assert!(slow.time >= Duration::from_secs(34));
}

#[test]
fn a_recovery_that_nobody_fetched_after_stands() {
    let mut kernel = kernel().with_device(|device| {
        device.held = false;
        device.info.state = State::Quiesced;
    });
    begin_recovery(&mut kernel, 0, MARK).expect("free");
    // Its daemon died here: the kernel says EINVAL from now on.
    begin_recovery(&mut kernel, 0, MARK).expect("still free");
    end_recovery(&mut kernel, 0, 9).expect("given");
    kernel.device().fetched = 2;
    recovered(&mut kernel, 0).expect("goes on");
}

#[test]
fn the_command_of_an_older_child_may_be_quicker() {
    let mut kernel = kernel().with_device(|device| {
        device.held = false;
        device.info.state = State::Quiesced;
    });
    begin_recovery(&mut kernel, 0, MARK).expect("free");
    end_recovery(&mut kernel, 0, 9).expect("given");
    kernel.device().fetched = 2;
    kernel.device().info.state = State::Live;
    recovered(&mut kernel, 0).expect("goes on");
}

#[test]
fn what_can_not_be_taken_over_is_said() {
    let refused = |change: Change, mark| {
        let mut kernel = kernel().with_device(change);
        let fault = begin_recovery(&mut kernel, 0, mark).expect_err("refused");
        let begun = kernel.asked.contains(&Op::StartUserRecovery);
        (fault.name(), begun, kernel.time)
    };
    assert_eq!(refused(|_| {}, MARK + 1), ("in-use", false, Duration::ZERO));
    // Not made to be recovered.
    let poor = |device: &mut Device| device.info.flags &= !feature::USER_RECOVERY_REISSUE;
    assert_eq!(refused(poor, MARK).0, "in-use");
    let dead = |device: &mut Device| device.info.state = State::Dead;
    assert_eq!(refused(dead, MARK), ("gone", false, Duration::ZERO));
    // Another daemon serves it, or hangs.
    let (name, _, after) = refused(|_| {}, MARK);
    assert_eq!(name, "busy");
    assert!((5..6).contains(&after.as_secs()), "{after:?}");
    // Live, and nobody's: the daemon died in the moment in which it was made live.
    let (name, _, after) = refused(|device| device.held = false, MARK);
    assert_eq!(name, "lost");
    assert!((6..7).contains(&after.as_secs()), "{after:?}");
    let fault = begin_recovery(&mut kernel(), 0, MARK).expect_err("none there");
    assert_eq!(fault.name(), "gone");
    // A live device whose queues are not fetched: nothing that this protocol leads to.
    let odd = |device: &mut Device| device.fetched = 0;
    assert_eq!(refused(odd, MARK).0, "failed");
}

#[test]
fn a_device_is_stopped_and_removed() {
    let mut kernel = kernel().with_device(|_| {});
    stop(&mut kernel, 0).expect("stopped");
    delete(&mut kernel, 0).expect("removed");
    assert_eq!(kernel.time, Duration::ZERO);
    delete(&mut kernel, 0).expect("removed already");
    assert_eq!(stop(&mut kernel, 0).expect_err("none").name(), "gone");
}

#[test]
fn a_removed_device_that_is_open_is_waited_for_a_moment() {
    let mut kernel = kernel().with_device(|device| device.used = true);
    delete(&mut kernel, 0).expect("it goes with its last user");
    assert_eq!(kernel.time, DELETE_PATIENCE);
}

#[test]
fn devices_are_listed_without_a_command_that_waits() {
    let mut kernel = kernel().with_device(|_| {});
    let sysfs = tempfile::tempdir().expect("a folder");
    assert_eq!(list(&mut kernel, sysfs.path()).expect("no driver"), []);
    let make = |path: &str, text: &str| {
        let path = sysfs.path().join(path);
        fs::create_dir_all(path.parent().expect("below")).expect("made");
        fs::write(path, text).expect("written");
    };
    // 5 was deleted in this moment.
    for name in ["ublkc0", "ublkc5", "other"] {
        make(&format!("class/ublk-char/{name}/dev"), "");
    }
    make("block/ublkb0/size", "131072\n");
    make("block/ublkb0/queue/logical_block_size", "512\n");
    let listed = list(&mut kernel, sysfs.path()).expect("listed");
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].size, listed[0].logical_block), (64 << 20, 512));
    assert_eq!((listed[0].info.mark, listed[0].info.pid), (MARK, 7));
    assert!(kernel.asked.iter().all(|op| *op == Op::GetDevInfo));
}

/// Any user may have such a one: the others are there all the same.
#[test]
fn a_device_that_a_user_made_without_a_right_hides_no_other() {
    let mut kernel = kernel().with_device(|_| {});
    let mut other = kernel.device().clone();
    other.info.id = 1;
    other.info.flags |= feature::UNPRIVILEGED_DEV;
    kernel.devices.insert(1, other);
    let sysfs = tempfile::tempdir().expect("a folder");
    for name in ["ublkc0", "ublkc1"] {
        let node = sysfs.path().join("class/ublk-char").join(name);
        fs::create_dir_all(node).expect("made");
    }
    let listed = list(&mut kernel, sysfs.path()).expect("listed");
    let ids: Vec<_> = listed.iter().map(|listed| listed.info.id).collect();
    assert_eq!(ids, [0]);
    // Where the driver answers nothing else either, nothing is known of anybody's.
    kernel.features = None;
    let fault = list(&mut kernel, sysfs.path()).expect_err("not told");
    assert_eq!(fault.name(), "failed");
    kernel.may = false;
    let fault = list(&mut kernel, sysfs.path()).expect_err("no right");
    assert_eq!(fault.name(), "not-permitted");
}

#[test]
fn a_folder_that_can_not_be_read_is_not_taken_for_an_empty_one() {
    let mut kernel = kernel().with_device(|_| {});
    let sysfs = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(sysfs.path().join("class")).expect("made");
    fs::write(sysfs.path().join("class/ublk-char"), "").expect("written");
    let fault = list(&mut kernel, sysfs.path()).expect_err("no folder");
    assert!(fault.to_string().contains("ublk-char"), "{fault}");
}

#[test]
fn every_fault_has_a_name_and_a_next_step() {
    let id = 3;
    let faults = [
        UblkFault::NoModule,
        UblkFault::NotPermitted,
        UblkFault::Gone { id, what: "x" },
        UblkFault::Busy { id, pid: 7 },
        UblkFault::Lost { id },
        UblkFault::Io {
            doing: "ADD_DEV",
            error: Errno::NOMEM.into(),
        },
    ];
    let mut names: Vec<_> = faults.iter().map(UblkFault::name).collect();
    names.dedup();
    assert_eq!(names.len(), faults.len());
    assert!(faults[0].next().contains("modprobe ublk_drv"));
    assert!(faults[4].next().contains("--force"));
    assert!(faults[4].to_string().contains("/dev/ublkb3"));
    assert!(faults[5].next().contains("dmesg"));
}
