//! What can be tried without the driver. `/dev/null` completes every command with 0, as the driver does when a
//! request has come; a file in memory stands for payloads and descriptors.

use std::cell::Cell;
use std::future::poll_fn;
use std::os::unix::fs::FileExt as _;

use super::*;
use crate::ublk::abi::{DEPTH_MAX, op};

const SHAPE: Shape = Shape {
    queues: 2,
    depth: 8,
    max_io: 1 << 20,
};

fn memory() -> File {
    let memory = rustix::fs::memfd_create("ublk", rustix::fs::MemfdFlags::CLOEXEC);
    memory.expect("a file in memory").into()
}

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

fn asked(_: &Waker) {
    ASKED.set(ASKED.get() + 1);
}

fn null() -> File {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/null");
    opened.expect("/dev/null")
}

fn opened() -> Opened {
    Opened::over(null(), SHAPE, asked).expect("a ring")
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(test);
}

async fn arrived(queues: &mut Opened) -> Vec<(Tag, i32)> {
    let mut arrived = Vec::new();
    let come = poll_fn(|context| queues.poll_arrived(context, &mut arrived)).await;
    come.expect("the ring works");
    arrived.sort_unstable();
    arrived
}

fn all() -> Vec<(Tag, i32)> {
    let queue = |queue| (0..SHAPE.depth).map(move |tag| (Tag { queue, tag }, 0));
    (0..SHAPE.queues).flat_map(queue).collect()
}

#[test]
fn every_place_is_given_once_and_committed_again() {
    run(async {
        let mut queues = opened();
        queues.fetch_all().expect("fetched");
        assert_eq!(arrived(&mut queues).await, all());
        // What is not committed does not come again.
        let some = [Tag { queue: 1, tag: 7 }, Tag { queue: 0, tag: 3 }];
        for tag in some {
            queues.commit(tag, 4096);
        }
        let mut early = Vec::new();
        queues.drain(&mut early).expect("the ring works");
        assert_eq!(early, [], "before it was submitted");
        queues.submit().expect("submitted");
        let again = arrived(&mut queues).await;
        assert_eq!(again, [(some[1], 0), (some[0], 0)]);
    });
}

#[test]
fn who_waits_is_woken_by_an_interruption_too() {
    run(async {
        let mut queues = opened();
        ASKED.set(0);
        let mut come = Vec::new();
        let waiting = poll_fn(|context| Poll::Ready(queues.poll_arrived(context, &mut come))).await;
        assert!(waiting.is_pending(), "nothing was fetched");
        assert_eq!(ASKED.get(), 1);
        assert_eq!(come, []);
    });
}

#[test]
fn what_comes_while_one_waits_wakes_it() {
    run(async {
        let mut queues = opened();
        let mut first = true;
        let mut come = Vec::new();
        poll_fn(|context| {
            let poll = queues.poll_arrived(context, &mut come);
            if first {
                assert!(poll.is_pending());
                first = false;
                // As the kernel does on its own: nobody looks at the ring but who was woken by its descriptor.
                for tag in 0..SHAPE.depth {
                    let tag = Tag { queue: 0, tag };
                    let ring = &mut queues.watched.get_mut().0;
                    fetch::push(ring, &queues.file, tag, abi::io::FETCH, 0);
                }
                queues.enter().expect("submitted");
            }
            poll
        })
        .await
        .expect("the ring works");
        assert_eq!(come.len(), usize::from(SHAPE.depth));
    });
}

#[test]
fn a_file_that_takes_no_commands_is_refused() {
    run(async {
        let mut queues = Opened::over(memory(), SHAPE, asked).expect("a ring");
        let error = queues.fetch_all().expect_err("not a device");
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
    });
}

#[test]
fn a_shape_that_no_ring_holds_is_refused() {
    run(async {
        for (queues, depth) in [(0, 64), (4, 0), (4, DEPTH_MAX + 1), (64, 1024)] {
            let shape = Shape {
                queues,
                depth,
                max_io: 4096,
            };
            let refused = Opened::over(null(), shape, asked).err().expect("refused");
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{shape:?}");
        }
    });
}

#[test]
fn a_device_that_is_not_there_is_said() {
    run(async {
        let missing = Queues::open(u32::MAX, SHAPE, asked).expect_err("none");
        assert!(!missing.is_fetched);
        assert_eq!(missing.error.kind(), io::ErrorKind::NotFound);
    });
}

/// Whether this descriptor is open, and of that file.
fn is_open(fd: RawFd, name: &str) -> bool {
    let target = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
    target.to_string_lossy().contains(name)
}

/// Closed, they would be a device's that nobody can take over.
#[test]
fn what_the_kernel_took_before_an_error_stays_open() {
    run(async {
        // It takes every command, and can't be mapped.
        let file = null();
        let fd = file.as_raw_fd();
        let fault = Queues::over(file, SHAPE, asked).expect_err("not mapped");
        assert_eq!(fault.error.raw_os_error(), Some(libc::ENODEV));
        assert!(fault.is_fetched);
        assert!(is_open(fd, "/dev/null"));
        // It takes none.
        let name = "ublk-not-fetched";
        let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC);
        let file = File::from(file.expect("a file in memory"));
        let fd = file.as_raw_fd();
        let fault = Queues::over(file, SHAPE, asked).expect_err("not a device");
        assert!(!fault.is_fetched);
        assert!(!is_open(fd, name));
    });
}

#[test]
fn descriptors_are_read_where_they_lie() {
    run(async {
        let mut queues = opened();
        queues.fetch_all().expect("fetched");
        arrived(&mut queues).await;
        let file = memory();
        let tag = Tag { queue: 1, tag: 5 };
        let page = page_size();
        file.set_len(abi::map_offset(1, page) + abi::map_len(SHAPE.depth, page) as u64)
            .expect("long enough");
        let mut bytes = Vec::new();
        bytes.extend((u32::from(op::READ) | abi::io_flag::FUA).to_ne_bytes());
        bytes.extend(16u32.to_ne_bytes());
        bytes.extend(0x1234u64.to_ne_bytes());
        bytes.extend([0xff; 8]);
        let at = abi::map_offset(1, page) + 5 * Descriptor::LEN as u64;
        file.write_all_at(&bytes, at).expect("written");
        queues.maps = Map::all(&file, SHAPE).expect("mapped");
        let expected = Descriptor {
            op: op::READ,
            flags: abi::io_flag::FUA,
            sectors: 16,
            start: 0x1234,
        };
        assert_eq!(queues.descriptor(tag), expected);
        let other = queues.descriptor(Tag { queue: 0, tag: 5 });
        assert_eq!((other.sectors, other.start), (0, 0));
    });
}

#[test]
fn payloads_are_copied_where_they_lie() {
    run(async {
        let mut queues = opened();
        queues.fetch_all().expect("fetched");
        arrived(&mut queues).await;
        queues.file = memory();
        let tag = Tag { queue: 1, tag: 2 };
        queues.copy_out(tag, 512, &[7; 1024]).expect("copied");
        let mut into = [1; 1536];
        queues.copy_in(tag, &mut into).expect("copied");
        assert_eq!(into[..512], [0; 512]);
        assert_eq!(into[512..], [7; 1024]);
        // A request is never longer than it says: that would be an endless loop.
        let short = queues.copy_in(tag, &mut [0; 2048]).expect_err("short");
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    });
}

#[test]
#[should_panic(expected = "holds no request of ours")]
fn a_place_is_not_committed_twice() {
    run(async {
        let mut queues = opened();
        queues.fetch_all().expect("fetched");
        arrived(&mut queues).await;
        let tag = Tag { queue: 0, tag: 0 };
        queues.commit(tag, 0);
        queues.commit(tag, 0);
    });
}

#[test]
fn dropped_queues_stay_open_and_closed_ones_do_not() {
    run(async {
        // Other tests of this process open files, too: this one is known by its name.
        let name = "ublk-dropped-or-closed";
        let is_ours = |entry: std::fs::DirEntry| {
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            target.to_string_lossy().contains(name)
        };
        let open = || {
            let files = std::fs::read_dir("/proc/self/fd").expect("Linux");
            files
                .filter_map(Result::ok)
                .map(is_ours)
                .filter(|ours| *ours)
                .count()
        };
        let queues = || {
            let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC);
            let file = file.expect("a file in memory").into();
            let opened = Opened::over(file, SHAPE, asked).expect("a ring");
            Queues {
                opened: ManuallyDrop::new(opened),
            }
        };
        let closed = queues();
        assert_eq!(open(), 1);
        closed.close();
        assert_eq!(open(), 0);
        {
            let _dropped = queues();
        }
        assert_eq!(open(), 1);
    });
}
