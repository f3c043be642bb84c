//! How a session ends.

use bytes::Bytes;

use super::super::{Go, SessionEnd};
use super::made::{Machine, ask, flush, tag};
use crate::device::{Answer, Errno, ReadData};
use crate::ublk::abi::op;

#[test]
fn a_session_that_leaves_answers_what_it_has_begun_and_nothing_else() {
    let mut machine = Machine::new();
    machine.disk.holds();
    machine.asks(tag(0), ask(op::READ, 0, 4096), &[]);
    machine.asks(tag(1), flush(), &[]);
    machine.disk.has_room(0);
    machine.asks(tag(2), ask(op::WRITE, 0, 4096), &[1; 4096]);
    machine.goes(Go::Leave);
    machine.disk.has_room(4096);
    machine.asks(tag(3), flush(), &[]);
    assert_eq!(machine.disk.held(), 2, "nothing is begun any more");
    machine.disk.does(0);
    machine.runs();
    assert_eq!(machine.kernel.results(), [(tag(0), 4096)]);
    assert!(machine.end.is_none(), "a request is in flight");
    // That is the next daemon's.
    machine.disk.refuses(0, Errno::Shutdown);
    machine.runs();
    assert_eq!(machine.kernel.results(), []);
    assert!(matches!(machine.end, Some(SessionEnd::Ordered)));
}

#[test]
fn a_session_without_anything_in_flight_leaves_at_once() {
    let mut machine = Machine::new();
    machine.disk.is_served(false);
    machine.asks(tag(0), flush(), &[]);
    machine.goes(Go::Leave);
    assert!(matches!(machine.end, Some(SessionEnd::Ordered)));
    assert_eq!(machine.kernel.results(), []);
}

#[test]
fn a_session_that_is_cut_answers_nothing_and_ends_when_the_device_is_done() {
    let mut machine = Machine::new();
    machine.disk.holds();
    machine.asks(tag(0), ask(op::WRITE, 0, 4096), &[1; 4096]);
    machine.asks(tag(1), flush(), &[]);
    machine.goes(Go::Leave);
    machine.goes(Go::Cut);
    assert!(machine.end.is_none());
    machine.disk.does(0);
    machine.runs();
    assert!(machine.end.is_none());
    machine.disk.refuses(0, Errno::Io);
    machine.runs();
    assert!(matches!(machine.end, Some(SessionEnd::Ordered)));
    assert_eq!(machine.kernel.results(), []);
    assert_eq!(machine.kernel.submits(), 0);
}

#[test]
fn a_session_that_refuses_fails_everything_and_waits_for_the_end_of_the_device() {
    let mut machine = Machine::new();
    machine.disk.holds();
    machine.asks(tag(0), ask(op::READ, 0, 4096), &[]);
    machine.asks(tag(1), flush(), &[]);
    machine.disk.has_room(0);
    machine.asks(tag(2), ask(op::WRITE, 0, 4096), &[1; 4096]);
    machine.goes(Go::Refuse);
    let mut failed = machine.kernel.results();
    failed.sort_unstable();
    let eio = -libc::EIO;
    assert_eq!(failed, [(tag(0), eio), (tag(1), eio), (tag(2), eio)]);
    assert_eq!(machine.kernel.submits(), 1);

    // Its place is taken by another request when the first one's answer comes.
    assert_eq!(machine.asks(tag(0), flush(), &[]), [(tag(0), eio)]);
    machine.disk.does(0);
    machine.runs();
    assert_eq!(machine.kernel.results(), []);

    machine.kernel.stops();
    machine.runs();
    assert!(machine.end.is_none(), "the queues are still needed");
    machine.goes(Go::Close);
    assert!(
        matches!(machine.end, Some(SessionEnd::Ordered)),
        "whatever the device still has"
    );
    machine.disk.does(0);
}

#[test]
fn the_end_of_a_device_that_is_taken_down_is_ordered() {
    let mut machine = Machine::new();
    machine.goes(Go::Refuse);
    machine.kernel.stops();
    machine.runs();
    assert!(machine.end.is_none(), "it was not another program");
    machine.goes(Go::Close);
    assert!(matches!(machine.end, Some(SessionEnd::Ordered)));
}

#[test]
fn what_the_device_answers_after_the_end_is_not_kept() {
    let mut machine = Machine::new();
    machine.disk.holds();
    machine.asks(tag(0), ask(op::READ, 0, 4096), &[]);
    machine.asks(tag(1), flush(), &[]);
    machine.goes(Go::Close);
    let bytes = Bytes::from(vec![1; 4096]);
    let answer = Answer::Data(ReadData::Whole(bytes.clone()));
    machine.disk.answers(0, answer);
    assert!(bytes.is_unique());
}

#[test]
fn an_order_that_is_there_before_the_session_is_heard() {
    let mut machine = Machine::ordered(Go::Leave);
    machine.kernel.asks(tag(0), flush(), &[]);
    machine.runs();
    assert!(matches!(machine.end, Some(SessionEnd::Ordered)));
    assert_eq!(machine.disk.log(), []);
}

#[test]
fn what_is_parked_fails_when_it_is_ordered() {
    let mut machine = Machine::new();
    machine.disk.is_served(false);
    machine.asks(tag(0), ask(op::WRITE, 0, 4096), &[1; 4096]);
    machine.asks(tag(1), flush(), &[]);
    machine.goes(Go::Refuse);
    let eio = -libc::EIO;
    assert_eq!(machine.kernel.results(), [(tag(0), eio), (tag(1), eio)]);
    // Whoever lets go of it now has nothing that could come.
    machine.is_abandoned();
    assert!(matches!(machine.end, Some(SessionEnd::Ordered)));
}

#[test]
fn queues_are_closed_with_nothing_left_in_them() {
    let mut machine = Machine::new();
    machine.disk.holds();
    machine.asks(tag(0), flush(), &[]);
    machine.goes(Go::Close);
    assert_eq!(machine.kernel.results(), [(tag(0), -libc::EIO)]);
    assert!(matches!(machine.end, Some(SessionEnd::Ordered)));
}

#[test]
fn a_session_whose_keeper_is_gone_leaves() {
    let mut machine = Machine::new();
    machine.disk.holds();
    machine.asks(tag(0), flush(), &[]);
    machine.is_abandoned();
    assert!(machine.end.is_none());
    machine.disk.does(0);
    machine.runs();
    assert_eq!(machine.kernel.results(), [(tag(0), 0)]);
    assert!(matches!(machine.end, Some(SessionEnd::Ordered)));
}

#[test]
fn a_device_that_another_program_stops_is_over_with_its_last_tag() {
    let mut machine = Machine::new();
    machine.disk.holds();
    machine.asks(tag(0), flush(), &[]);
    machine.kernel.stops();
    machine.runs();
    assert!(machine.end.is_none(), "the kernel waits for that one");
    machine.disk.does(0);
    machine.runs();
    assert_eq!(machine.kernel.results(), [(tag(0), 0)]);
    assert!(matches!(machine.end, Some(SessionEnd::Stopped)));
}

/// A read and a write whose bytes can't be copied, and the disk has done what it could.
fn neither_copied(errno: i32) -> Machine {
    let mut machine = Machine::new();
    machine.disk.holds();
    machine.disk.has_room(0);
    machine.asks(tag(0), ask(op::READ, 0, 4096), &[]);
    machine.asks(tag(1), ask(op::WRITE, 0, 4096), &[1; 4096]);
    machine.kernel.can_not_copy(tag(0), errno);
    machine.kernel.can_not_copy(tag(1), errno);
    machine.disk.has_room(4096);
    machine.disk.does(0);
    machine.runs();
    machine
}

#[test]
fn a_request_that_is_gone_retires_its_tag() {
    let mut machine = neither_copied(libc::EINVAL);
    assert_eq!(machine.kernel.results(), []);
    assert_eq!(machine.disk.held(), 0);
    machine.kernel.stops();
    machine.runs();
    assert!(matches!(machine.end, Some(SessionEnd::Stopped)));
}

#[test]
fn bytes_that_can_not_be_copied_fail_their_request() {
    let machine = neither_copied(libc::EFAULT);
    let mut failed = machine.kernel.results();
    failed.sort_unstable();
    assert_eq!(failed, [(tag(0), -libc::EIO), (tag(1), -libc::EIO)]);
}

#[test]
fn a_kernel_that_refuses_a_fetch_is_answered_nothing_more() {
    let mut machine = Machine::new();
    machine.disk.holds();
    machine.asks(tag(0), flush(), &[]);
    machine.kernel.fails(tag(1), libc::EINVAL);
    machine.kernel.asks(tag(2), flush(), &[]);
    machine.runs();
    assert_eq!(machine.disk.held(), 1, "nothing more is begun");
    assert!(machine.end.is_none(), "a request is in flight");
    machine.disk.does(0);
    machine.runs();
    assert_eq!(machine.kernel.results(), []);
    let Some(SessionEnd::Broken(error)) = machine.end else {
        panic!("{:?}", machine.end);
    };
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn a_ring_that_takes_nothing_ends_the_session() {
    let mut machine = Machine::new();
    machine.kernel.breaks();
    machine.asks(tag(0), flush(), &[]);
    let Some(SessionEnd::Broken(error)) = machine.end else {
        panic!("{:?}", machine.end);
    };
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
}

#[test]
fn a_session_that_ends_is_not_begun_again() {
    for go in [Go::Leave, Go::Cut, Go::Refuse] {
        let mut machine = Machine::new();
        machine.disk.holds();
        machine.asks(tag(0), flush(), &[]);
        machine.goes(go);
        machine.goes(Go::On);
        machine.asks(tag(1), flush(), &[]);
        assert_eq!(machine.disk.held(), 1, "{go:?}");
    }
}
