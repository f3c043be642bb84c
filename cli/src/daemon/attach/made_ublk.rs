//! A ublk driver that is made up, for [`super::tests`] and [`super::tests_ublk`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kagami_nbd_server::ublk::Shape;
use tokio::sync::watch;

use super::host::Go;
use super::lock;
use super::ublk::{FaultKind, Form, Going, Known, Mark, New, State, UblkControl, UblkFault};

pub(super) const SHAPE: Shape = Shape {
    queues: 2,
    depth: 64,
    max_io: 1 << 20,
};

/// One device.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) mark: Mark,
    pub(super) state: State,
    pub(super) form: Form,
    /// A process has its queues; what that was told last, if it is a session.
    pub(super) served: Option<watch::Receiver<Go>>,
    /// `START_DEV` or `END_USER_RECOVERY` waits for the queues.
    pub(super) is_waited_for: bool,
}

/// The driver: devices, what happened to them, and what it refuses.
#[derive(Debug, Default)]
pub(super) struct Driver {
    pub(super) devices: BTreeMap<u32, Device>,
    /// `add 2`, `fetch 2`, `live 2`, ... in order.
    pub(super) log: Vec<String>,
    /// So often it shows none, whatever it has.
    pub(super) blind: usize,
    /// Refused, by the verb.
    pub(super) refuses: BTreeMap<&'static str, UblkFault>,
}

impl Driver {
    fn note(&mut self, verb: &'static str, id: u32) -> Result<(), UblkFault> {
        if let Some(fault) = self.refuses.get(verb) {
            return Err(fault.clone());
        }
        self.log.push(format!("{verb} {id}"));
        Ok(())
    }

    fn device(&mut self, id: u32) -> Result<&mut Device, UblkFault> {
        self.devices
            .get_mut(&id)
            .ok_or_else(|| fault(FaultKind::Gone))
    }

    /// A process opens the queues and fetches all of them.
    pub(super) fn fetch(&mut self, id: u32, order: watch::Receiver<Go>) -> Result<(), UblkFault> {
        self.note("fetch", id)?;
        let goes_on = !self.refuses.contains_key("live");
        let device = self.device(id)?;
        assert!(device.served.is_none(), "one opener at a time");
        // One that comes after the queues may come after the death of who has them.
        assert!(
            device.is_waited_for,
            "the kernel waits before the queues are fetched"
        );
        device.served = Some(order);
        if goes_on {
            device.state = State::Live;
            self.note("live", id)?;
        }
        Ok(())
    }

    /// A process closes the queues.
    pub(super) fn close(&mut self, id: u32) {
        // It may be removed from the tree already.
        if let Some(device) = self.devices.get_mut(&id) {
            device.served = None;
            self.log.push(format!("close {id}"));
        }
    }

    /// Whoever has queues ends.
    pub(super) fn process_ends(&mut self) {
        for device in self.devices.values_mut() {
            device.served = None;
            if device.state == State::Live {
                device.state = State::Quiesced;
            }
        }
    }

    /// One that a daemon before left behind.
    pub(super) fn leave_behind(&mut self, id: u32, mark: Mark, state: State) {
        let device = Device {
            mark,
            state,
            form: Form::new(SHAPE, 1 << 20, 512),
            served: None,
            is_waited_for: false,
        };
        self.devices.insert(id, device);
    }

    pub(super) fn count(&self, verb: &str) -> usize {
        let of_verb = |line: &&String| line.split(' ').next() == Some(verb);
        self.log.iter().filter(of_verb).count()
    }
}

pub(super) fn fault(kind: FaultKind) -> UblkFault {
    UblkFault {
        kind,
        words: format!("made up: {kind:?}"),
    }
}

/// The way to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Ublk(pub(super) Arc<Mutex<Driver>>);

impl Ublk {
    fn going(&self, id: u32) -> Box<dyn Going> {
        let driver = Arc::clone(&self.0);
        Box::new(Command { driver, id })
    }
}

impl UblkControl for Ublk {
    fn check(&self) -> Result<(), UblkFault> {
        lock(&self.0)
            .refuses
            .get("check")
            .cloned()
            .map_or(Ok(()), Err)
    }

    fn devices(&self) -> Result<Vec<Known>, UblkFault> {
        let mut driver = lock(&self.0);
        if let Some(fault) = driver.refuses.get("list") {
            return Err(fault.clone());
        }
        if let Some(left) = driver.blind.checked_sub(1) {
            driver.blind = left;
            return Ok(Vec::new());
        }
        let known = driver.devices.iter().map(|(id, device)| Known {
            id: *id,
            state: device.state,
            mark: device.mark,
            pid: 4711,
        });
        Ok(known.collect())
    }

    fn add(&self, new: &New) -> Result<(u32, Shape), UblkFault> {
        let mut driver = lock(&self.0);
        let free = || (0..64).find(|id| !driver.devices.contains_key(id));
        let id = new.id.or_else(free).expect("a number");
        driver.note("add", id)?;
        assert!(!driver.devices.contains_key(&id), "checked before");
        driver.leave_behind(id, new.mark, State::Dead);
        driver.device(id)?.form = Form::new(SHAPE, new.size, new.logical_block);
        Ok((id, SHAPE))
    }

    fn start(&self, id: u32) -> Result<Box<dyn Going>, UblkFault> {
        let mut driver = lock(&self.0);
        driver.note("start", id)?;
        assert_eq!(driver.device(id)?.state, State::Dead);
        Ok(self.going(id))
    }

    fn recover(&self, id: u32, mark: Mark) -> Result<Box<dyn Going>, UblkFault> {
        let mut driver = lock(&self.0);
        driver.note("recover", id)?;
        let device = driver.device(id)?;
        assert_eq!(device.mark, mark);
        assert_ne!(device.state, State::Dead);
        Ok(self.going(id))
    }

    fn partitions(&self, id: u32, _: Duration) -> Result<(), UblkFault> {
        let mut driver = lock(&self.0);
        driver.note("partitions", id)?;
        assert_eq!(driver.device(id)?.state, State::Live, "it is to be read");
        Ok(())
    }

    fn stop(&self, id: u32) -> Result<(), UblkFault> {
        let mut driver = lock(&self.0);
        driver.note("stop", id)?;
        let device = driver.device(id)?;
        if let Some(order) = &device.served {
            // It would wait for the session's answers for ever.
            assert_eq!(*order.borrow(), Go::Refuse);
        }
        device.state = State::Dead;
        Ok(())
    }

    fn delete(&self, id: u32) -> Result<(), UblkFault> {
        let mut driver = lock(&self.0);
        driver.note("delete", id)?;
        assert_eq!(driver.device(id)?.state, State::Dead, "stopped before");
        assert!(driver.device(id)?.served.is_none(), "closed before");
        driver.devices.remove(&id);
        Ok(())
    }
}

/// `START_DEV` or `END_USER_RECOVERY`, in another process.
struct Command {
    driver: Arc<Mutex<Driver>>,
    id: u32,
}

impl Drop for Command {
    fn drop(&mut self) {
        if let Ok(device) = lock(&self.driver).device(self.id) {
            device.is_waited_for = false;
        }
    }
}

impl Going for Command {
    fn waiting(&mut self, patience: Duration) -> Option<Result<Form, UblkFault>> {
        let mut driver = lock(&self.driver);
        if let Some(fault) = driver.refuses.get("waiting") {
            return Some(Err(fault.clone()));
        }
        let device = match driver.device(self.id) {
            Ok(device) => device,
            Err(fault) => return Some(Err(fault)),
        };
        if device.served.is_some() {
            drop(driver);
            std::thread::sleep(patience.min(Duration::from_millis(2)));
            return None;
        }
        device.is_waited_for = true;
        Some(Ok(device.form))
    }

    fn done(&mut self, _: Duration) -> Option<Result<(), UblkFault>> {
        let mut driver = lock(&self.driver);
        if let Some(fault) = driver.refuses.get("live") {
            return Some(Err(fault.clone()));
        }
        let device = driver.device(self.id).expect("it is held");
        assert_eq!(
            device.state,
            State::Live,
            "asked before the queues are fetched"
        );
        Some(Ok(()))
    }

    fn give_up(self: Box<Self>) -> bool {
        lock(&self.driver).log.push(format!("give-up {}", self.id));
        true
    }
}
