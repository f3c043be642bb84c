//! The queues of a device of ublk, opened and served on the mirror's own thread.
//!
//! Queues that this process has fetched are served by nobody else before it ends. So whatever becomes of the
//! session, they stay open for the next daemon to take over from; they are closed only with the device.

use std::rc::Rc;

use kagami_nbd_server::ublk::{Endpoint, Go, OpenFault, Queues, SessionEnd, Shape, session};
use kagami_nbd_server::{Access, BlockDevice};
use kagami_replicator::core::event::Refusal;
use kagami_replicator::shell::engine::Plane;
use kagami_replicator::shell::runtime::wake_when_interrupted;
use rustix::io::Errno;
use tokio::sync::oneshot;
use tracing::{debug, error, warn};

use super::super::super::front_end::{Served, Term};
use super::{Ends, NotServed, not_open};

/// Serves the device's queues until they are closed, or nobody is left who could order it.
pub(super) async fn serve(
    plane: Plane,
    mirror: String,
    peer: String,
    (id, shape): (u32, Shape),
    ends: Ends,
    tell: oneshot::Sender<Result<(), NotServed>>,
) {
    let opened = open(&plane, &mirror, (peer, ends.term.clone()), id, shape);
    let (device, opening, queues) = match opened {
        Ok(opened) => opened,
        Err(why) => {
            let _ = tell.send(Err(why));
            return;
        }
    };
    // Whoever asked may be gone: then the link is, too, and the session leaves.
    let _ = tell.send(Ok(()));
    let name = format!("/dev/ublkb{id}");
    let device = (device, opening);
    carry((&mirror, &name), device, queues, ends, Queues::close).await;
}

type Opened = (Rc<Served>, Term, Queues);

/// Opens the queues of a mirror that is served here.
fn open(
    plane: &Plane,
    mirror: &str,
    (peer, term): (String, Term),
    id: u32,
    shape: Shape,
) -> Result<Opened, NotServed> {
    let device = plane.device(mirror).ok_or_else(not_open)?;
    let device = Rc::new(Served::permitted(device, peer, term));
    let info = device.info(Access::ReadWrite).map_err(not_served)?;
    let opening = device.open(Access::ReadWrite).map_err(not_served)?;
    fits(id, shape, info.max_payload)?;
    let queues = Queues::open(id, shape, wake_when_interrupted);
    let queues = queues.map_err(|fault| not_opened(id, &fault))?;
    Ok((device, opening, queues))
}

/// Whether every request of a device finds memory: one that does not would fail at its user.
fn fits(id: u32, shape: Shape, max_payload: u32) -> Result<(), Refusal> {
    if shape.max_io <= max_payload {
        return Ok(());
    }
    Err(Refusal {
        what: format!(
            "not attached: /dev/ublkb{id} was made for requests of up to {} bytes, and this daemon's memory takes {max_payload}",
            shape.max_io
        ),
        facts: Vec::new(),
        next: "give `buffers` in the configuration at least the value that it had then, and restart the daemon"
            .to_owned(),
    })
}

fn not_served(why: kagami_nbd_server::Refusal) -> Refusal {
    Refusal {
        what: format!("not attached: {}", why.message),
        facts: Vec::new(),
        next: "see `kagami status`".to_owned(),
    }
}

fn not_opened(id: u32, fault: &OpenFault) -> NotServed {
    let OpenFault { error, is_fetched } = fault;
    let next = match Errno::from_io_error(error) {
        _ if *is_fetched => "restart the daemon: the next one takes the device over".to_owned(),
        Some(Errno::BUSY) => {
            format!("another process serves it: `fuser -v /dev/ublkc{id}` says which; end that one")
        }
        Some(Errno::PERM | Errno::ACCESS | Errno::NOSYS) => {
            "look at `sysctl kernel.io_uring_disabled` (0 allows it), and let the daemon run as root with CAP_SYS_ADMIN"
                .to_owned()
        }
        Some(Errno::MFILE | Errno::NFILE) => "raise the limit of open files".to_owned(),
        Some(Errno::NOMEM) => "make room in the machine's memory".to_owned(),
        _ => "the kernel's log may say why (`dmesg`)".to_owned(),
    };
    let refusal = Refusal {
        what: format!("not attached: the queues of /dev/ublkc{id} can't be opened: {error}"),
        facts: Vec::new(),
        next,
    };
    NotServed {
        refusal,
        holds_queues: *is_fetched,
    }
}

/// Serves `endpoint`, and closes it if its device is gone or that is ordered, also after the session's end.
async fn carry<D: BlockDevice, E: Endpoint>(
    (mirror, name): (&str, &str),
    (device, opening): (Rc<D>, D::Opening),
    endpoint: E,
    ends: Ends,
    close: impl FnOnce(E),
) {
    let Ends {
        mut order,
        parked,
        end,
        ..
    } = ends;
    let (why, endpoint) = session::serve(device, opening, endpoint, order.clone(), parked).await;
    let is_gone = match why {
        SessionEnd::Ordered => false,
        SessionEnd::Stopped => {
            warn!(
                mirror,
                device = name,
                "another program took the device down"
            );
            true
        }
        SessionEnd::Broken(error) => {
            error!(
                mirror,
                device = name,
                "the session with the kernel is broken: {error}; restart the daemon: the next one takes the device over"
            );
            false
        }
    };
    if is_gone || *order.borrow() == Go::Close {
        // Before the end is told: the device can't be removed as long as they are open.
        close(endpoint);
        return;
    }
    drop(end);
    if order.wait_for(|go| *go == Go::Close).await.is_ok() {
        close(endpoint);
    } else {
        debug!(
            mirror,
            device = name,
            "its queues are left to the next daemon"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io;
    use std::task::{Context, Poll};

    use kagami_nbd_server::MemoryDevice;
    use kagami_nbd_server::ublk::Tag;
    use kagami_nbd_server::ublk::abi::{Descriptor, op};

    use super::super::Link;
    use super::*;

    const SHAPE: Shape = Shape {
        queues: 1,
        depth: 1,
        max_io: 1 << 20,
    };
    const PLACE: Tag = Tag { queue: 0, tag: 0 };

    /// Queues that give one thing at most.
    struct Made {
        gives: Option<i32>,
        committed: Rc<RefCell<Vec<i32>>>,
    }

    impl Endpoint for Made {
        fn shape(&self) -> Shape {
            SHAPE
        }

        fn poll_arrived(
            &mut self,
            _: &mut Context<'_>,
            arrived: &mut Vec<(Tag, i32)>,
        ) -> Poll<io::Result<()>> {
            let Some(result) = self.gives.take() else {
                return Poll::Pending;
            };
            arrived.push((PLACE, result));
            Poll::Ready(Ok(()))
        }

        fn descriptor(&self, _: Tag) -> Descriptor {
            Descriptor {
                op: op::FLUSH,
                flags: 0,
                sectors: 0,
                start: u64::MAX,
            }
        }

        fn copy_in(&self, _: Tag, _: &mut [u8]) -> io::Result<()> {
            panic!("a flush has no bytes")
        }

        fn copy_out(&self, _: Tag, _: usize, _: &[u8]) -> io::Result<()> {
            panic!("a flush has no bytes")
        }

        fn commit(&mut self, _: Tag, result: i32) {
            self.committed.borrow_mut().push(result);
        }

        fn submit(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What became of queues that gave this, while `owner` had the link.
    async fn carried<F: Future<Output = ()>>(
        gives: Option<i32>,
        device: MemoryDevice,
        owner: impl FnOnce(Link) -> F,
    ) -> (bool, Vec<i32>) {
        let (link, ends) = Link::new(0);
        let committed = Rc::default();
        let queues = Made {
            gives,
            committed: Rc::clone(&committed),
        };
        let mut is_closed = false;
        let names = ("pg", "/dev/ublkb0");
        let carried = carry(names, (Rc::new(device), ()), queues, ends, |_| {
            is_closed = true
        });
        tokio::join!(carried, owner(link));
        (is_closed, committed.take())
    }

    fn primary() -> MemoryDevice {
        MemoryDevice::new(1 << 20)
    }

    fn secondary() -> MemoryDevice {
        let device = primary();
        device.set_refusal(Some(kagami_nbd_server::Refusal::policy("Secondary")));
        device
    }

    #[tokio::test]
    async fn queues_stay_open_when_the_daemon_leaves() {
        for go in [Go::Leave, Go::Cut] {
            let carried = carried(None, primary(), async |mut link| {
                link.set(go);
                link.ended().await;
            });
            assert_eq!(carried.await, (false, Vec::new()));
        }
        // Or is interrupted before it has a link.
        let carried = carried(None, primary(), async |link| drop(link));
        assert_eq!(carried.await, (false, Vec::new()));
    }

    #[tokio::test]
    async fn queues_are_closed_with_the_device() {
        let carried = carried(None, primary(), async |mut link| {
            link.set(Go::Refuse);
            link.set(Go::Close);
            link.ended().await;
        });
        assert_eq!(carried.await, (true, Vec::new()));
    }

    #[tokio::test]
    async fn queues_of_a_session_that_has_ended_are_closed_when_it_is_ordered() {
        let refused = Some(-Errno::INVAL.raw_os_error());
        let broken = carried(refused, primary(), async |mut link| {
            link.ended().await;
            link.set(Go::Close);
        });
        assert_eq!(broken.await, (true, Vec::new()));
        let broken = carried(refused, primary(), async |mut link| link.ended().await);
        assert_eq!(broken.await, (false, Vec::new()));
    }

    #[tokio::test]
    async fn a_device_that_another_program_stops_is_let_go() {
        let carried = carried(
            Some(-Errno::NODEV.raw_os_error()),
            primary(),
            async |mut link| {
                link.ended().await;
            },
        );
        assert_eq!(carried.await, (true, Vec::new()));
    }

    #[tokio::test]
    async fn who_has_the_link_is_told_of_what_is_parked_and_fails_it() {
        let carried = carried(Some(0), secondary(), async |mut link| {
            link.parked.wait_for(|is| *is).await.expect("it serves");
            link.set(Go::Refuse);
            link.set(Go::Close);
            link.ended().await;
        });
        assert_eq!(carried.await, (true, vec![-Errno::IO.raw_os_error()]));
    }

    #[test]
    fn a_device_that_was_made_for_more_memory_is_refused() {
        assert_eq!(fits(3, SHAPE, 1 << 20), Ok(()));
        let refusal = fits(3, SHAPE, 1 << 19).expect_err("too little");
        assert!(refusal.what.contains("/dev/ublkb3"), "{refusal:?}");
        assert!(refusal.next.contains("`buffers`"), "{refusal:?}");
    }

    #[test]
    fn a_process_that_has_the_device_is_to_be_ended() {
        let fault = |is_fetched| OpenFault {
            error: Errno::BUSY.into(),
            is_fetched,
        };
        let why = not_opened(3, &fault(false));
        assert!(why.refusal.next.contains("/dev/ublkc3"), "{why:?}");
        assert!(!why.holds_queues);
        // But not where this one has it.
        let why = not_opened(3, &fault(true));
        assert!(why.refusal.next.contains("restart the daemon"), "{why:?}");
        assert!(why.holds_queues);
    }
}
