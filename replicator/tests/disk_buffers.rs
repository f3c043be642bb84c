//! The buffer pool: bounds, shares, waiting, and the way back from other threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::{future::Future, pin::pin, thread};

use bytes::Bytes;
use kagami_replicator::shell::buffers::{Account, Buffer, PAGE, Pool, PoolConfig, Share};

const MIB: usize = 1 << 20;

fn pool(bytes: usize, reserve: usize) -> Pool {
    Pool::new(&PoolConfig {
        bytes,
        reserve,
        lock: false,
    })
    .expect("memory")
}

/// Counts its wake-ups.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn buffers_are_aligned_and_counted_in_pages() {
    let pool = pool(MIB, 0);
    let small = pool.alloc(100, Share::FrontEnd).expect("room");
    let large = pool.alloc(5000, Share::FrontEnd).expect("room");
    assert_eq!((small.len(), large.len()), (100, 5000));
    assert!(small.as_ptr().addr().is_multiple_of(PAGE));
    assert!(large.as_ptr().addr().is_multiple_of(PAGE));
    assert_eq!(pool.stats().in_use, 3 * PAGE);
    drop((small, large));
    assert_eq!(pool.stats().in_use, 0);
}

#[test]
fn frozen_memory_returns_with_its_last_slice_from_another_thread() {
    let pool = pool(MIB, 0);
    let mut buffer = pool.alloc(2 * PAGE, Share::FrontEnd).expect("room");
    buffer.fill(9);
    let bytes: Bytes = buffer.freeze();
    let part = bytes.slice(PAGE..);
    drop(bytes);
    assert_eq!(pool.stats().in_use, 2 * PAGE);
    let seen = thread::spawn(move || part.iter().all(|&byte| byte == 9));
    assert!(seen.join().expect("no panic"));
    assert_eq!(pool.stats().in_use, 0);
}

#[test]
fn front_ends_leave_the_reserve_to_the_peer_and_the_peer_some_to_copies() {
    let pool = pool(4 * MIB, MIB);
    let take = |share| {
        let mut held = Vec::new();
        while let Some(buffer) = pool.alloc(PAGE, share) {
            held.push(buffer);
        }
        held
    };
    let front = take(Share::FrontEnd);
    assert_eq!(front.len() * PAGE, 3 * MIB);
    let answers = take(Share::Answer);
    assert_eq!(answers.len() * PAGE, MIB / 4);
    let reads = take(Share::Read);
    assert_eq!(reads.len() * PAGE, MIB / 4);
    let peer = take(Share::Peer);
    assert_eq!(peer.len() * PAGE, MIB / 2 - 128 * 1024);
    let copies = take(Share::Bounce);
    assert_eq!(copies.len() * PAGE, 128 * 1024);
    assert_eq!(pool.stats().in_use, pool.stats().total);
}

#[test]
fn a_waiter_is_woken_by_a_return_and_served_in_order() {
    let pool = pool(MIB, 0);
    let all = pool.alloc(MIB, Share::FrontEnd).expect("room");
    let woken = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    let mut first = pin!(pool.wait_alloc(MIB, Share::FrontEnd));
    let mut second = pin!(pool.wait_alloc(PAGE, Share::FrontEnd));
    assert!(first.as_mut().poll(&mut context).is_pending());
    assert!(second.as_mut().poll(&mut context).is_pending());
    assert_eq!(pool.stats().waiting, 2);
    thread::spawn(move || drop(all)).join().expect("no panic");
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    // Nobody overtakes: not the second waiter, not one that comes now.
    assert!(second.as_mut().poll(&mut context).is_pending());
    assert!(pool.alloc(PAGE, Share::FrontEnd).is_none());
    let Poll::Ready(Ok(buffer)) = first.as_mut().poll(&mut context) else {
        panic!("there is room for the first");
    };
    assert!(second.as_mut().poll(&mut context).is_pending());
    drop(buffer);
    assert!(second.as_mut().poll(&mut context).is_ready());
    assert_eq!(pool.stats().waiting, 0);
}

#[test]
fn a_waiter_of_a_deeper_share_goes_first() {
    let pool = pool(4 * MIB, MIB);
    let front = pool.alloc(3 * MIB, Share::FrontEnd).expect("room");
    let rest = pool.alloc(MIB, Share::Bounce).expect("room");
    let mut context = Context::from_waker(Waker::noop());
    let mut client = pin!(pool.wait_alloc(PAGE, Share::FrontEnd));
    let mut peer = pin!(pool.wait_alloc(PAGE, Share::Peer));
    assert!(client.as_mut().poll(&mut context).is_pending());
    assert!(peer.as_mut().poll(&mut context).is_pending());
    drop((front, rest));
    assert!(client.as_mut().poll(&mut context).is_pending());
    assert!(peer.as_mut().poll(&mut context).is_ready());
    assert!(client.as_mut().poll(&mut context).is_ready());
}

#[test]
fn a_waiter_that_gives_up_lets_the_next_one_go_on() {
    let pool = pool(MIB, 0);
    let most = pool.alloc(MIB - PAGE, Share::FrontEnd).expect("room");
    let woken = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    let mut large = Box::pin(pool.wait_alloc(MIB, Share::FrontEnd));
    let mut small = pin!(pool.wait_alloc(PAGE, Share::FrontEnd));
    assert!(large.as_mut().poll(&mut context).is_pending());
    assert!(small.as_mut().poll(&mut context).is_pending());
    drop(large);
    assert!(woken.0.load(Ordering::SeqCst) > 0);
    assert!(small.as_mut().poll(&mut context).is_ready());
    drop(most);
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    let pool = pool(MIB, MIB / 2);
    let mut context = Context::from_waker(Waker::noop());
    let mut wait = pin!(pool.wait_alloc(MIB, Share::FrontEnd));
    let Poll::Ready(Err(refusal)) = wait.as_mut().poll(&mut context) else {
        panic!("it would wait forever");
    };
    assert_eq!((refusal.wanted, refusal.limit), (MIB, MIB / 2));
}

#[test]
fn a_fragmented_region_still_serves_what_the_budget_allows() {
    let pool = pool(MIB, 0);
    let mut pages: Vec<_> = (0..256)
        .map(|_| pool.alloc(PAGE, Share::FrontEnd).expect("room"))
        .collect();
    // Every other page is free: no two of them are neighbours.
    let mut index = 0;
    pages.retain(|_| {
        index += 1;
        index % 2 == 0
    });
    let mut buffer = pool.alloc(8 * PAGE, Share::FrontEnd).expect("in budget");
    assert!(!buffer.is_in_region());
    assert!(buffer.as_ptr().addr().is_multiple_of(PAGE));
    buffer.fill(1);
    assert_eq!(pool.stats().overflows, 1);
    assert!(pool.alloc(121 * PAGE, Share::FrontEnd).is_none());
    drop(buffer);
    assert_eq!(pool.stats().in_use, 128 * PAGE);
}

/// Everything that `account` gets of `share`, in buffers of `len` bytes.
fn take_all(account: &Account, len: usize, share: Share) -> Vec<Buffer> {
    std::iter::from_fn(|| account.alloc(len, share)).collect()
}

fn bytes(buffers: &[Buffer]) -> usize {
    buffers.iter().map(|buffer| buffer.len()).sum()
}

#[test]
fn an_account_has_its_part_beside_others_and_all_of_it_alone() {
    let pool = pool(8 * MIB, 2 * MIB);
    let one = pool.open_account();
    let alone = take_all(&one, PAGE, Share::FrontEnd);
    assert_eq!(bytes(&alone), pool.limit(Share::FrontEnd));
    drop(alone);
    let two = pool.open_account();
    for share in [Share::FrontEnd, Share::Answer, Share::Read] {
        let ones = take_all(&one, PAGE, share);
        assert_eq!(bytes(&ones), pool.limit(share) / 2);
        let twos = take_all(&two, PAGE, share);
        assert_eq!(bytes(&twos), pool.limit(share) / 2);
    }
    // Reads count for the account's front ends too.
    let reads = take_all(&one, PAGE, Share::Read);
    assert_eq!(bytes(&take_all(&one, PAGE, Share::FrontEnd)), PAGE);
    assert_eq!(
        bytes(&take_all(&two, PAGE, Share::FrontEnd)),
        pool.limit(Share::FrontEnd) / 2
    );
    drop(reads);
    two.close();
    two.close();
    let alone = take_all(&one, PAGE, Share::FrontEnd);
    assert_eq!(bytes(&alone), pool.limit(Share::FrontEnd));
    drop((alone, one, two));
    assert_eq!(pool.stats().in_use, 0);
}

#[test]
fn memory_outlives_its_account_and_counts_for_no_later_one() {
    let pool = pool(8 * MIB, 2 * MIB);
    let one = pool.open_account();
    let left = take_all(&one, MIB, Share::FrontEnd);
    one.close();
    drop(one);
    let two = pool.open_account();
    assert!(two.alloc(PAGE, Share::FrontEnd).is_none());
    drop(left);
    let all = take_all(&two, PAGE, Share::FrontEnd);
    assert_eq!(bytes(&all), pool.limit(Share::FrontEnd));
}

#[test]
fn who_waits_for_its_own_part_holds_up_no_other_account() {
    let pool = pool(8 * MIB, 2 * MIB);
    let (one, two) = (pool.open_account(), pool.open_account());
    let mut held = take_all(&one, MIB, Share::FrontEnd);
    assert_eq!(held.len(), 3);
    let reads = one.alloc(MIB / 2, Share::Read).expect("one read's worth");
    let woken = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    let mut first = pin!(one.wait_alloc(2 * MIB, Share::FrontEnd));
    let mut second = pin!(one.wait_alloc(PAGE, Share::FrontEnd));
    let mut read = pin!(one.wait_alloc(MIB, Share::Read));
    assert!(first.as_mut().poll(&mut context).is_pending());
    assert!(second.as_mut().poll(&mut context).is_pending());
    assert!(read.as_mut().poll(&mut context).is_pending());
    // The other one is served, and its memory that returns wakes nobody who has no use for it.
    drop(two.alloc(3 * MIB, Share::FrontEnd).expect("its part"));
    drop(two.alloc(3 * MIB, Share::Read).expect("its part"));
    assert_eq!(woken.0.load(Ordering::SeqCst), 0);
    // It has one read at a time whatever its front ends hold.
    drop(reads);
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    assert!(read.as_mut().poll(&mut context).is_ready());
    // In one account, the order is that of coming.
    held.pop();
    assert!(first.as_mut().poll(&mut context).is_pending());
    assert!(second.as_mut().poll(&mut context).is_pending());
    held.clear();
    assert!(first.as_mut().poll(&mut context).is_ready());
    assert!(second.as_mut().poll(&mut context).is_ready());
    assert_eq!(pool.stats().waiting, 0);
}

#[test]
fn reads_find_room_beside_all_that_clients_hold() {
    for mib in [8, 12, 64] {
        let pool = Pool::new(&PoolConfig::with_bytes(mib * MIB)).expect("memory");
        let (one, two) = (pool.open_account(), pool.open_account());
        let _writes = take_all(&one, PAGE, Share::FrontEnd);
        let _answers = take_all(&one, PAGE, Share::Answer);
        let _others = take_all(&two, PAGE, Share::FrontEnd);
        let _too = take_all(&two, PAGE, Share::Answer);
        let held = pool.stats().in_use;
        assert!(held > mib * MIB / 2, "{held} of {mib} MiB");
        // The writes may wait for a comparison, and the answers for the writes.
        assert!(one.alloc(MIB, Share::Read).is_some(), "{mib} MiB");
        assert!(two.alloc(MIB, Share::Read).is_some(), "{mib} MiB");
    }
}

#[test]
fn a_request_longer_than_its_part_gets_its_turn_beside_busy_others() {
    let pool = pool(8 * MIB, 2 * MIB);
    let (one, two) = (pool.open_account(), pool.open_account());
    let mut busy = take_all(&two, MIB, Share::FrontEnd);
    assert_eq!(busy.len(), 3);
    let mut context = Context::from_waker(Waker::noop());
    let mut long = pin!(one.wait_alloc(5 * MIB, Share::FrontEnd));
    assert!(long.as_mut().poll(&mut context).is_pending());
    // It leaves 1 MiB: the other one goes on with that.
    busy.pop();
    assert!(two.alloc(MIB, Share::FrontEnd).is_none());
    assert!(long.as_mut().poll(&mut context).is_pending());
    busy.pop();
    assert!(two.alloc(MIB, Share::FrontEnd).is_none());
    let Poll::Ready(Ok(long)) = long.as_mut().poll(&mut context) else {
        panic!("there is room for it");
    };
    assert!(one.alloc(PAGE, Share::FrontEnd).is_none(), "one at a time");
    drop((busy, long));
    assert_eq!(pool.stats().in_use, 0);
}

#[test]
fn a_long_read_that_waits_for_memory_leaves_others_their_part() {
    let pool = pool(8 * MIB, 2 * MIB);
    let [one, two, three] = [(); 3].map(|()| pool.open_account());
    // Held for as long as one's peer is away.
    let held = one.alloc(5 * MIB, Share::FrontEnd).expect("all is free");
    let mut context = Context::from_waker(Waker::noop());
    let mut read = pin!(two.wait_alloc(3 * MIB, Share::Read));
    assert!(read.as_mut().poll(&mut context).is_pending());
    assert!(three.alloc(PAGE, Share::FrontEnd).is_some());
    assert!(three.alloc(PAGE, Share::Read).is_some());
    // In its own account it comes first.
    assert!(two.alloc(PAGE, Share::FrontEnd).is_none());
    drop(held);
    assert!(read.as_mut().poll(&mut context).is_ready());
}
