//! What is asked and answered, and what waits.

mod ends;
mod made;
mod orders;

use bytes::Bytes;

use super::{Go, LOOKS};
use crate::device::{
    Answer, BlockDevice as _, Completion, CompletionSink, DeviceInfo, Errno, IoError, ReadData,
    ReadPart, Request,
};
use crate::ublk::Tag;
use crate::ublk::abi::{Descriptor, SECTOR, io_flag, op};
use made::{Machine, SHAPE, SIZE, ask, durable, flush, tag};

const KIB: u64 = 1024;

#[test]
fn each_operation_is_the_request_that_it_says() {
    let mut machine = Machine::new();
    let offset = 64 * KIB;
    let kept = Descriptor {
        flags: io_flag::NOUNMAP,
        ..ask(op::WRITE_ZEROES, offset, 4096)
    };
    let zeroes = |fua, no_hole| Request::WriteZeroes {
        offset,
        len: 4096,
        fua,
        no_hole,
        fast: false,
    };
    let write = |fua| Request::Write {
        offset,
        data: Bytes::from(vec![7; 4096]),
        fua,
    };
    let trim = |fua| Request::Trim {
        offset,
        len: 4096,
        fua,
    };
    let write_asked = ask(op::WRITE, offset, 4096);
    let trim_asked = ask(op::DISCARD, offset, 4096);
    let zeroes_asked = ask(op::WRITE_ZEROES, offset, 4096);
    let read = Request::Read { offset, len: 4096 };
    for (descriptor, request, result) in [
        (ask(op::READ, offset, 4096), read, 4096),
        (write_asked, write(false), 4096),
        (durable(write_asked), write(true), 4096),
        (flush(), Request::Flush, 0),
        (trim_asked, trim(false), 0),
        (durable(trim_asked), trim(true), 0),
        (zeroes_asked, zeroes(false, false), 0),
        (durable(zeroes_asked), zeroes(true, false), 0),
        (kept, zeroes(false, true), 0),
        (durable(kept), zeroes(true, true), 0),
    ] {
        let answered = machine.asks(tag(1), descriptor, &[7; 4096]);
        assert_eq!(answered, [(tag(1), result)], "{descriptor:?}");
        assert_eq!(machine.disk.log(), [request]);
    }
}

#[test]
fn a_discard_may_be_longer_than_a_payload() {
    let mut machine = Machine::with_info(DeviceInfo::new(8 << 30));
    let len = (u64::from(u32::MAX) >> 12) << 12;
    for op in [op::DISCARD, op::WRITE_ZEROES] {
        let answered = machine.asks(tag(0), ask(op, 4096, len), &[]);
        assert_eq!(answered, [(tag(0), 0)]);
    }
    let asked = machine.disk.log();
    assert!(matches!(asked[0], Request::Trim { len: l, .. } if u64::from(l) == len));
    assert!(matches!(asked[1], Request::WriteZeroes { len: l, .. } if u64::from(l) == len));
}

#[test]
fn what_can_not_be_right_fails_and_never_reaches_the_device() {
    let mut machine = Machine::with_info(DeviceInfo {
        min_block: 4096,
        ..DeviceInfo::new(SIZE)
    });
    let unknown = |op| Descriptor {
        op,
        ..ask(op::READ, 0, 4096)
    };
    let at = |op, start, sectors| Descriptor {
        op,
        flags: 0,
        sectors,
        start,
    };
    let max = u64::from(SHAPE.max_io);
    for (descriptor, errno) in [
        // One write for many places, a zone's, and the last number that there is.
        (unknown(4), libc::EOPNOTSUPP),
        (unknown(15), libc::EOPNOTSUPP),
        (unknown(255), libc::EOPNOTSUPP),
        (ask(op::READ, 0, 0), libc::EINVAL),
        (ask(op::WRITE, 0, 0), libc::EINVAL),
        (ask(op::DISCARD, 0, 0), libc::EINVAL),
        (ask(op::READ, 0, max + 4096), libc::EINVAL),
        (ask(op::WRITE, 0, max + 4096), libc::EINVAL),
        (at(op::DISCARD, 0, u32::MAX), libc::EINVAL),
        (ask(op::READ, SIZE, 4096), libc::EIO),
        (ask(op::WRITE, SIZE - 4096, 8192), libc::EIO),
        (ask(op::DISCARD, SIZE - 4096, 8192), libc::EIO),
        (at(op::READ, u64::MAX, 8), libc::EIO),
        (at(op::WRITE, u64::MAX / SECTOR, 8), libc::EIO),
        (at(op::WRITE_ZEROES, 1 << 55, 8), libc::EIO),
        // Not of the device's blocks.
        (ask(op::READ, 512, 4096), libc::EINVAL),
        (ask(op::WRITE, 0, 512), libc::EINVAL),
        (ask(op::DISCARD, 4096, 4096 + 512), libc::EINVAL),
    ] {
        let answered = machine.asks(tag(2), descriptor, &[1; 4096]);
        assert_eq!(answered, [(tag(2), -errno)], "{descriptor:?}");
    }
    assert_eq!(machine.disk.log(), []);
    // What ends where the device ends is right.
    let answered = machine.asks(tag(2), ask(op::READ, SIZE - max, max), &[]);
    assert_eq!(answered, [(tag(2), max as i32)]);
}

#[test]
fn a_device_that_takes_less_at_once_bounds_a_payload() {
    let mut machine = Machine::with_info(DeviceInfo {
        max_payload: 8192,
        ..DeviceInfo::new(SIZE)
    });
    let answered = machine.asks(tag(0), ask(op::WRITE, 0, 12288), &[1; 12288]);
    assert_eq!(answered, [(tag(0), -libc::EINVAL)]);
    let answered = machine.asks(tag(0), ask(op::WRITE, 0, 8192), &[1; 8192]);
    assert_eq!(answered, [(tag(0), 8192)]);
}

#[test]
fn what_can_not_be_written_is_read() {
    let mut machine = Machine::with_info(DeviceInfo {
        read_only: true,
        ..DeviceInfo::new(SIZE)
    });
    for op in [op::WRITE, op::DISCARD, op::WRITE_ZEROES] {
        let answered = machine.asks(tag(0), ask(op, 0, 4096), &[1; 4096]);
        assert_eq!(answered, [(tag(0), -libc::EROFS)]);
    }
    let answered = machine.asks(tag(0), ask(op::READ, 0, 4096), &[]);
    assert_eq!(answered, [(tag(0), 4096)]);
}

#[test]
fn a_read_gets_its_bytes_in_one_piece_in_parts_and_from_nothing() {
    let mut machine = Machine::new();
    // Longer than the page of zeroes, after something else was there.
    let result = i32::try_from(SHAPE.max_io).expect("fits");
    let len = SHAPE.max_io as usize;
    let whole = Bytes::from((0..len).map(|at| at as u8).collect::<Vec<_>>());
    let zeroes = vec![0; len];
    let mut parts = vec![1; 512];
    parts.resize(512 + 2048, 0);
    parts.resize(len, 3);
    let split = ReadData::Parts(vec![
        ReadPart::Data(Bytes::from(vec![1; 512])),
        ReadPart::Data(Bytes::new()),
        ReadPart::Zeroes(2048),
        ReadPart::Zeroes(0),
        ReadPart::Data(Bytes::from(vec![3; len - 2560])),
    ]);
    machine.disk.holds();
    for (data, expected) in [
        (ReadData::Whole(whole.clone()), whole.to_vec()),
        (split, parts),
        (ReadData::Zeroes, zeroes),
    ] {
        assert_eq!(machine.asks(tag(3), ask(op::READ, 0, len as u64), &[]), []);
        machine.disk.answers(0, Answer::Data(data));
        machine.runs();
        assert_eq!(machine.kernel.results(), [(tag(3), result)]);
        assert_eq!(machine.kernel.got(tag(3)), expected);
    }
}

#[test]
fn zeroes_longer_than_the_page_of_zeroes_are_all_given() {
    struct Nobody;
    impl CompletionSink for Nobody {
        fn complete(&self, _: u64, _: Result<Answer, IoError>) {}
    }
    let mut machine = Machine::new();
    machine.disk.memory.submit(
        &(),
        Request::Write {
            offset: SIZE - 512,
            data: Bytes::from(vec![9; 512]),
            fua: false,
        },
        Completion::new(std::rc::Rc::new(Nobody), 0),
    );
    let max = u64::from(SHAPE.max_io);
    machine.asks(tag(0), ask(op::READ, SIZE - max, max), &[]);
    let got = machine.kernel.got(tag(0));
    let (zeroes, nines) = got.split_at(got.len() - 512);
    assert!(zeroes.iter().all(|byte| *byte == 0));
    assert!(nines.iter().all(|byte| *byte == 9));
}

#[test]
#[should_panic(expected = "answered a read of 4096 with 512 bytes")]
fn a_read_with_too_few_bytes_is_not_answered() {
    let mut machine = Machine::new();
    machine.disk.holds();
    machine.asks(tag(0), ask(op::READ, 0, 4096), &[]);
    let short = ReadData::Whole(Bytes::from_static(&[0; 512]));
    machine.disk.answers(0, Answer::Data(short));
    machine.runs();
}

#[test]
fn an_error_reaches_the_kernel_with_its_number() {
    let mut machine = Machine::new();
    machine.disk.holds();
    for (code, errno) in [
        (Errno::Io, libc::EIO),
        (Errno::NoSpc, libc::ENOSPC),
        (Errno::Inval, libc::EINVAL),
        (Errno::NoMem, libc::ENOMEM),
        (Errno::NotSup, libc::EOPNOTSUPP),
        (Errno::Overflow, libc::EOVERFLOW),
    ] {
        for descriptor in [ask(op::READ, 0, 4096), ask(op::WRITE, 0, 4096), flush()] {
            machine.asks(tag(0), descriptor, &[1; 4096]);
            machine.disk.refuses(0, code);
            machine.runs();
            assert_eq!(machine.kernel.results(), [(tag(0), -errno)]);
        }
    }
    assert_eq!(machine.told(), (false, false));
}

#[test]
fn a_burst_is_one_system_call() {
    let mut machine = Machine::new();
    for queue in 0..SHAPE.queues {
        for tag in 0..SHAPE.depth {
            machine.kernel.asks(Tag { queue, tag }, flush(), &[]);
        }
    }
    assert!(machine.runs_once());
    assert!(!machine.runs_once(), "it does not wake itself");
    assert_eq!(machine.kernel.results().len(), 8);
    assert_eq!(machine.kernel.submits(), 1);

    // And so it is for what the disk does later; nothing to say is no call.
    machine.disk.holds();
    for at in 0..4 {
        machine.kernel.asks(tag(at), ask(op::READ, 0, 4096), &[]);
    }
    machine.runs();
    assert_eq!(machine.kernel.submits(), 1);
    for _ in 0..4 {
        machine.disk.does(0);
    }
    machine.runs();
    assert_eq!(machine.kernel.results().len(), 4);
    assert_eq!(machine.kernel.submits(), 2);
}

#[test]
fn a_kernel_that_always_has_more_leaves_others_their_turn() {
    let mut machine = Machine::new();
    machine.kernel.repeats();
    machine.kernel.asks(tag(0), flush(), &[]);
    for turns in 1..4 {
        assert!(machine.runs_once());
        assert_eq!(machine.kernel.submits(), turns * LOOKS);
    }
}

#[test]
fn a_write_waits_for_memory_and_only_later_writes_wait_behind_it() {
    let mut machine = Machine::new();
    machine.disk.has_room(4096);
    let write = |at, len| ask(op::WRITE, at, len);
    assert_eq!(machine.asks(tag(0), write(0, 8192), &[1; 8192]), []);
    // There would be room for these.
    assert_eq!(machine.asks(tag(1), write(0, 4096), &[2; 4096]), []);
    assert_eq!(machine.asks(tag(2), write(0, 512), &[3; 512]), []);
    let answered = machine.asks(tag(3), ask(op::READ, 0, 512), &[]);
    assert_eq!(answered, [(tag(3), 512)]);
    assert_eq!(machine.asks(tag(3), flush(), &[]), [(tag(3), 0)]);
    let trimmed = machine.asks(tag(3), ask(op::DISCARD, 4096, 4096), &[]);
    assert_eq!(trimmed, [(tag(3), 0)]);

    machine.disk.has_room(8192);
    machine.runs();
    assert_eq!(machine.kernel.results(), [(tag(0), 8192)]);
    machine.disk.has_room(4096 + 512);
    machine.runs();
    assert_eq!(
        machine.kernel.results(),
        [(tag(1), 4096), (tag(2), 512)],
        "in the order of their arrival"
    );
    assert_eq!(machine.disk.memory.peek(0, 512), [3; 512]);
    assert_eq!(machine.disk.memory.peek(512, 512), [2; 512]);
}

#[test]
fn what_is_refused_now_is_parked_and_begun_again_with_its_bytes_read_anew() {
    let mut machine = Machine::new();
    machine.disk.holds();
    assert_eq!(machine.told(), (false, false));
    machine.asks(tag(0), ask(op::WRITE, 0, 4096), &[1; 4096]);
    machine.asks(tag(1), ask(op::READ, 0, 4096), &[]);
    machine.asks(tag(2), flush(), &[]);
    machine.disk.refuses(0, Errno::Perm);
    machine.runs();
    assert_eq!(machine.told(), (true, true));
    // One that was begun before is answered.
    machine.disk.does(1);
    machine.runs();
    assert_eq!(machine.kernel.results(), [(tag(2), 0)]);
    machine.disk.refuses(0, Errno::Shutdown);
    // And what comes now is not begun.
    machine.asks(tag(3), ask(op::DISCARD, 4096, 4096), &[]);
    assert_eq!(machine.disk.held(), 0);
    assert_eq!(machine.kernel.results(), []);
    assert_eq!(machine.told(), (false, true), "told once");

    machine.kernel.changes(tag(0), &[2; 4096]);
    machine.goes(Go::On);
    assert_eq!(machine.told(), (true, false));
    assert_eq!(machine.disk.held(), 3);
    for _ in 0..3 {
        machine.disk.does(0);
    }
    machine.runs();
    let mut answered = machine.kernel.results();
    answered.sort_unstable();
    assert_eq!(answered, [(tag(0), 4096), (tag(1), 4096), (tag(3), 0)]);
    assert_eq!(machine.disk.memory.peek(0, 4096), [2; 4096]);
}

#[test]
fn a_device_that_is_not_served_is_asked_nothing() {
    let mut machine = Machine::new();
    machine.disk.is_served(false);
    for at in 0..4 {
        assert_eq!(
            machine.asks(tag(at), ask(op::WRITE, 0, 4096), &[1; 4096]),
            []
        );
    }
    assert_eq!(machine.told(), (true, true));
    // Ordered too early: it is parked again, and told again.
    machine.goes(Go::On);
    assert_eq!(machine.told(), (true, true));
    assert_eq!(machine.disk.log(), []);
    machine.disk.is_served(true);
    machine.goes(Go::On);
    assert_eq!(machine.told(), (true, false));
    assert_eq!(machine.kernel.results().len(), 4);
    assert_eq!(machine.kernel.submits(), 1);
}

#[test]
fn a_write_that_waits_for_memory_is_parked_with_the_others() {
    let mut machine = Machine::new();
    machine.disk.has_room(0);
    machine.disk.holds();
    machine.asks(tag(0), ask(op::WRITE, 0, 8192), &[1; 8192]);
    machine.asks(tag(1), ask(op::WRITE, 8192, 4096), &[2; 4096]);
    machine.asks(tag(2), flush(), &[]);
    machine.disk.refuses(0, Errno::Perm);
    machine.runs();
    machine.disk.has_room(1 << 20);
    machine.runs();
    assert_eq!(
        machine.disk.held(),
        0,
        "nothing is begun while it is parked"
    );
    // It is begun from the beginning, so another one may be the first that needs memory.
    machine.goes(Go::On);
    assert_eq!(machine.disk.held(), 3);
    while machine.disk.held() > 0 {
        machine.disk.does(0);
    }
    machine.runs();
    assert_eq!(machine.kernel.results().len(), 3);
    assert_eq!(machine.disk.memory.peek(8191, 2), [1, 2]);
}

#[test]
fn a_write_that_was_parked_gets_memory_of_its_own_length() {
    let mut machine = Machine::new();
    machine.disk.holds();
    machine.disk.has_room(4096);
    machine.asks(tag(0), ask(op::WRITE, 0, 4096), &[1; 4096]);
    machine.asks(tag(1), ask(op::WRITE, 4096, 8192), &[2; 8192]);
    machine.disk.refuses(0, Errno::Perm);
    machine.runs();
    // Now the shorter one is the first that needs memory.
    machine.goes(Go::On);
    assert_eq!(machine.disk.held(), 0);
    machine.disk.has_room(4096);
    machine.runs();
    assert_eq!(machine.disk.held(), 1);
    machine.disk.has_room(8192);
    machine.runs();
    assert_eq!(machine.disk.held(), 2);
}

#[test]
fn an_order_to_go_on_changes_nothing_where_nothing_is_parked() {
    let mut machine = Machine::new();
    machine.disk.holds();
    machine.asks(tag(0), flush(), &[]);
    machine.goes(Go::On);
    assert_eq!(machine.disk.held(), 1);
    machine.disk.does(0);
    machine.runs();
    assert_eq!(machine.kernel.results(), [(tag(0), 0)]);
    assert_eq!(machine.told(), (false, false));
}
