//! The disk against a model, and its corner cases, on real files.

mod disk_support;

use bytes::Bytes;
use disk_support::{Numbers, Rig, folder, store_file, unaligned, write};
use kagami_replicator::core::disk::{DiskFault, DiskOp};
use kagami_replicator::shell::buffers::Share;
use kagami_replicator::shell::storage::Area;

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;

#[test]
fn random_operations_leave_what_the_model_has() {
    const BLOCKS: u64 = 512;
    const MAX_RUN: u64 = 24;
    let folder = folder();
    let path = store_file(&folder, "store", BLOCKS * BLOCK + 8 * BLOCK);
    kagami_replicator::shell::runtime::start(async {
        let mut rig = Rig::with_start(&path, 8 << 20, 8 * BLOCK);
        let mut numbers = Numbers(0x1234_5678_9abc_def1);
        let mut model = vec![0u8; BLOCKS as usize];
        // What each operation in flight covers, and what a read must return.
        let mut busy = vec![false; BLOCKS as usize];
        let mut in_flight: Vec<(u64, u64, u64, Option<Vec<u8>>)> = Vec::new();
        for id in 0..4000u64 {
            let run = 1 + numbers.below(MAX_RUN);
            let first = numbers.below(BLOCKS - run + 1);
            let range = first as usize..(first + run) as usize;
            if !busy[range.clone()].iter().any(|&busy| busy) {
                let (offset, len) = (first * BLOCK, run * BLOCK);
                let byte = 1 + numbers.below(255) as u8;
                let fua = numbers.below(50) == 0;
                let mut expected = None;
                let operation = match numbers.below(10) {
                    0..3 => {
                        expected = Some(model[range.clone()].to_vec());
                        DiskOp::Read {
                            offset,
                            len: len as u32,
                        }
                    }
                    3..6 => {
                        model[range.clone()].fill(byte);
                        let data = rig.aligned(len as usize, byte);
                        DiskOp::Write { offset, data, fua }
                    }
                    6..8 => {
                        model[range.clone()].fill(byte);
                        let data = unaligned(len as usize, byte);
                        DiskOp::Write { offset, data, fua }
                    }
                    _ => {
                        model[range.clone()].fill(0);
                        let unmap = numbers.below(2) == 0;
                        DiskOp::Zero {
                            offset,
                            len,
                            unmap,
                            fua,
                        }
                    }
                };
                busy[range].fill(true);
                rig.submit(id, operation);
                in_flight.push((id, first, run, expected));
            } else if numbers.below(20) == 0 {
                rig.submit(id, DiskOp::Flush);
                in_flight.push((id, 0, 0, None));
            }
            while in_flight.len() > 24 || (id == 3999 && !in_flight.is_empty()) {
                rig.turn().await;
                in_flight.retain(|(id, first, run, expected)| {
                    let Some(result) = rig.answers.remove(id) else {
                        return true;
                    };
                    let bytes = result.expect("a good disk");
                    if let Some(expected) = expected {
                        check(&bytes, expected);
                    }
                    busy[*first as usize..(first + run) as usize].fill(false);
                    false
                });
            }
        }
        let bytes = rig.read(0, (BLOCKS * BLOCK) as u32).await;
        check(&bytes, &model);
        assert!(rig.counters().copies > 0);
    });
    // And past the page cache's back: the area before the data is untouched.
    let file = std::fs::read(&path).expect("the store");
    assert!(file[..8 * BLOCK as usize].iter().all(|&byte| byte == 0));
}

fn check(bytes: &Bytes, expected: &[u8]) {
    assert_eq!(bytes.len(), expected.len() * BLOCK as usize);
    for (index, (block, byte)) in bytes.chunks(BLOCK as usize).zip(expected).enumerate() {
        assert!(block.iter().all(|got| got == byte), "block {index} differs");
    }
}

#[test]
fn thousands_in_flight_queue_beyond_the_kernels_rings() {
    const COUNT: u64 = 6000;
    let folder = folder();
    let path = store_file(&folder, "store", COUNT * BLOCK);
    kagami_replicator::shell::runtime::start(async {
        let mut rig = Rig::new(&path, 64 << 20);
        for id in 0..COUNT {
            let data = rig.aligned(BLOCK as usize, id as u8);
            rig.submit(id, write(id * BLOCK, data));
        }
        assert_eq!(rig.counters().in_flight, COUNT);
        rig.settle().await;
        assert_eq!(rig.answers.len() as u64, COUNT);
        assert!(rig.answers.values().all(Result::is_ok));
        for id in [0, 1, 255, 256, 4095, 4096, COUNT - 1] {
            check(&rig.read(id * BLOCK, BLOCK as u32).await, &[id as u8]);
        }
        assert_eq!(
            rig.counters().copies,
            0,
            "aligned memory is written as it is"
        );
        assert_eq!(
            rig.storage.pool().stats().in_use,
            0,
            "nothing is kept of what waits for nobody"
        );
    });
}

#[test]
fn memory_that_does_not_suit_is_copied_and_counted() {
    let folder = folder();
    let path = store_file(&folder, "store", 8 * MIB);
    kagami_replicator::shell::runtime::start(async {
        let mut rig = Rig::new(&path, 8 << 20);
        for (fua, byte) in [(false, 3), (true, 4)] {
            let data = unaligned(BLOCK as usize, byte);
            let operation = DiskOp::Write {
                offset: 0,
                data,
                fua,
            };
            rig.run(operation).await.expect("a good disk");
            check(&rig.read(0, BLOCK as u32).await, &[byte]);
        }
        assert_eq!(rig.counters().copies, 2);
        // Larger than one copy, durable: several parts and one flush.
        let data = unaligned(3 << 20, 5);
        let operation = DiskOp::Write {
            offset: BLOCK,
            data,
            fua: true,
        };
        rig.run(operation).await.expect("a good disk");
        check(&rig.read(BLOCK, 3 << 20).await, &[5; 768]);
        assert_eq!(rig.counters().copied_bytes, 2 * BLOCK + 3 * MIB);
    });
}

#[test]
fn the_largest_requests_go_through_the_default_pool() {
    let folder = folder();
    let path = store_file(&folder, "store", 33 * MIB);
    kagami_replicator::shell::runtime::start(async {
        let mut rig = Rig::new(&path, 64 << 20);
        let data = rig.aligned(32 << 20, 8);
        rig.run(write(MIB, data)).await.expect("a good disk");
        let bytes = rig.read(MIB, 32 << 20).await;
        assert!(bytes.iter().all(|&byte| byte == 8));
        check(&rig.read(0, BLOCK as u32).await, &[0]);
        assert_eq!(rig.counters().copies, 0);
    });
}

#[test]
fn operations_wait_for_memory_and_go_on_when_it_returns() {
    let folder = folder();
    let path = store_file(&folder, "store", 8 * MIB);
    kagami_replicator::shell::runtime::start(async {
        let mut rig = Rig::new(&path, 2 << 20);
        // Everything that the pool has.
        let mut held = Vec::new();
        while let Some(buffer) = rig.storage.pool().alloc(BLOCK as usize, Share::Bounce) {
            held.push(buffer);
        }
        for id in 0..100 {
            rig.submit(
                id,
                DiskOp::Read {
                    offset: id * BLOCK,
                    len: BLOCK as u32,
                },
            );
            rig.submit(1000 + id, write((200 + id) * BLOCK, unaligned(4096, 6)));
        }
        rig.storage.submit_queued().expect("the ring works");
        assert_eq!(rig.counters().in_flight, 200);
        assert_eq!(rig.storage.pool().stats().in_use, 2 << 20);
        // It comes back from another thread while the loop sleeps.
        let thread = std::thread::spawn(move || drop(held));
        rig.settle().await;
        thread.join().expect("no panic");
        assert_eq!(rig.answers.len(), 200);
        rig.answers.clear();
        check(&rig.read(200 * BLOCK, BLOCK as u32).await, &[6]);

        // More than the share can ever hold is an error and no endless wait.
        let result = rig
            .run(DiskOp::Read {
                offset: 0,
                len: 4 << 20,
            })
            .await;
        assert_eq!(result, Err(DiskFault::Io(libc::ENOMEM)));
    });
}

#[test]
fn a_read_without_memory_holds_up_no_metadata() {
    let folder = folder();
    let path = store_file(&folder, "store", 2 * MIB);
    kagami_replicator::shell::runtime::start(async {
        let mut rig = Rig::new(&path, 8 << 20);
        let metadata = rig.add_metadata(Area {
            start: MIB,
            len: MIB,
        });
        // Replies that clients don't take, as many as reads may hold.
        let mut held = Vec::new();
        while let Some(buffer) = rig.storage.pool().alloc(BLOCK as usize, Share::Read) {
            held.push(buffer);
        }
        let read = DiskOp::Read {
            offset: 0,
            len: BLOCK as u32,
        };
        rig.submit(1, read);
        let steps = vec![
            vec![(0, unaligned(4096, 5))],
            vec![(BLOCK, unaligned(40960, 6))],
        ];
        assert_eq!(rig.run_metadata(metadata, steps).await, Ok(()));
        let unsuited = write(BLOCK, unaligned(1 << 20, 7).slice(..MIB as usize / 2));
        rig.run(unsuited).await.expect("a good disk");
        assert!(rig.answers.is_empty(), "the read waits still");
        drop(held);
        rig.answer(1).await.expect("a good disk");
    });
}

#[test]
fn replies_that_are_not_taken_hold_up_no_other_disk() {
    let folder = folder();
    let path = store_file(&folder, "store", 16 * MIB);
    kagami_replicator::shell::runtime::start(async {
        let mut rig = Rig::new(&path, 8 << 20);
        let one = rig.disk;
        let two = rig.storage.add_disk(
            rig.store,
            Area {
                start: 8 * MIB,
                len: 8 * MIB,
            },
        );
        for disk in [one, two] {
            let account = rig.storage.pool().open_account();
            rig.storage.charge_reads(disk, account);
        }
        let read = |offset| DiskOp::Read {
            offset,
            len: 256 << 10,
        };
        for id in 0..40 {
            rig.submit(id, read(id % 20 * (256 << 10)));
        }
        // Every answer stays where it is, as in a client that takes none: the disk has its half of what
        // reads may hold, and the rest of its own reads wait.
        let part = rig.storage.pool().limit(Share::Read) / 2 / (256 << 10);
        while rig.answers.len() < part {
            rig.turn().await;
        }
        assert_eq!(rig.storage.pool().stats().in_use, part * (256 << 10));
        rig.disk = two;
        for round in 0..20 {
            rig.submit(100 + round, read(round * (256 << 10)));
        }
        for round in 0..20 {
            rig.answer(100 + round).await.expect("a good disk");
        }
        assert_eq!(rig.answers.len(), part);
        rig.disk = one;
        for id in 0..40 {
            rig.answer(id).await.expect("a good disk");
        }
    });
}

#[test]
fn zeroes_are_real_whatever_the_store_has_to_do() {
    let folder = folder();
    let path = store_file(&folder, "store", 4 * MIB);
    kagami_replicator::shell::runtime::start(async {
        let mut rig = Rig::new(&path, 16 << 20);
        for unmap in [false, true] {
            let data = rig.aligned(4 << 20, 1);
            let fill = DiskOp::Write {
                offset: 0,
                data,
                fua: true,
            };
            rig.run(fill).await.expect("a good disk");
            let zero = DiskOp::Zero {
                offset: BLOCK,
                len: 3 * MIB,
                unmap,
                fua: true,
            };
            rig.run(zero).await.expect("a good disk");
            let mut expected = vec![1; 1024];
            expected[1..769].fill(0);
            check(&rig.read(0, 4 << 20).await, &expected);
            if unmap {
                assert!(allocated(&path) <= MIB + BLOCK, "space is given back");
            } else {
                assert!(allocated(&path) >= 4 * MIB, "space is kept");
            }
        }
    });
}

fn allocated(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).expect("the store").blocks() * 512
}

#[test]
fn a_store_cut_short_under_us_is_an_error_of_that_read() {
    let folder = folder();
    let path = store_file(&folder, "store", MIB);
    kagami_replicator::shell::runtime::start(async {
        let mut rig = Rig::new(&path, 2 << 20);
        let other = std::fs::OpenOptions::new().write(true).open(&path);
        let other = other.expect("the lock is advisory");
        other.set_len(6 * BLOCK).expect("cut");
        let read = |offset| DiskOp::Read { offset, len: 16384 };
        assert_eq!(
            rig.run(read(4 * BLOCK)).await,
            Err(DiskFault::Io(libc::EIO))
        );
        assert_eq!(
            rig.run(read(BLOCK)).await.map(|bytes| bytes.len()),
            Ok(16384)
        );
    });
}

#[test]
fn an_odd_tail_is_not_exposed() {
    let folder = folder();
    let path = store_file(&folder, "store", MIB + 512);
    kagami_replicator::shell::runtime::start(async {
        let rig = Rig::new(&path, 2 << 20);
        let capabilities = rig.storage.capabilities(rig.store);
        assert_eq!(capabilities.size, MIB + 512);
        assert_eq!(capabilities.usable_from(0), MIB);
        assert_eq!(capabilities.usable_from(MIB), 0);
        assert_eq!(capabilities.usable_from(2 * MIB), 0);
    });
}

#[test]
fn a_ring_dropped_with_operations_in_flight_waits_for_them() {
    let folder = folder();
    let path = store_file(&folder, "store", 16 * MIB);
    kagami_replicator::shell::runtime::start(async {
        let mut rig = Rig::new(&path, 64 << 20);
        for id in 0..16 {
            let data = rig.aligned(1 << 20, 7);
            rig.submit(id, write(id * MIB, data));
        }
        rig.storage.submit_queued().expect("the ring works");
        let pool = rig.storage.pool().clone();
        drop(rig);
        assert_eq!(pool.stats().in_use, 0);
        // The lock went with the last operation, and what was submitted is there.
        let mut rig = Rig::new(&path, 64 << 20);
        check(&rig.read(0, 16 << 20).await, &[7; 4096]);
    });
}

#[test]
fn metadata_steps_are_written_in_order_beside_the_data() {
    let folder = folder();
    let path = store_file(&folder, "store", 2 * MIB);
    kagami_replicator::shell::runtime::start(async {
        let mut rig = Rig::new(&path, 4 << 20);
        let metadata = rig.add_metadata(Area {
            start: MIB,
            len: MIB,
        });
        let block = |byte| Bytes::from(vec![byte; 4096]);
        // A single write, several, memory that suits and memory that doesn't, a bare flush.
        let steps = vec![
            vec![(0, rig.aligned(4096, 1))],
            vec![(4096, unaligned(40960, 2)), (0, rig.aligned(4096, 3))],
            vec![],
            vec![(0, unaligned(4096, 4))],
        ];
        assert_eq!(rig.run_metadata(metadata, steps).await, Ok(()));
        assert_eq!(rig.run_metadata(metadata, Vec::new()).await, Ok(()));
        let mut expected = [2u8; 11];
        expected[0] = 4;
        check(&rig.read(MIB, 11 * 4096).await, &expected);

        // Many at once, each on a block of its own.
        for id in 0..200 {
            let steps = vec![vec![(id * BLOCK, block(id as u8))]; 2];
            rig.storage.submit_metadata(metadata, id, steps);
        }
        while rig.metadata_answers.len() < 200 {
            rig.turn().await;
        }
        assert!(rig.metadata_answers.values().all(Result::is_ok));
        let expected: Vec<u8> = (0..200).collect();
        check(&rig.read(MIB, 200 * 4096).await, &expected);
    });
}

#[test]
fn a_store_is_free_again_when_it_is_removed() {
    let folder = folder();
    let path = store_file(&folder, "store", MIB);
    kagami_replicator::shell::runtime::start(async {
        let mut rig = Rig::new(&path, 2 << 20);
        rig.read(0, 4096).await;
        rig.storage.remove_disk(rig.disk);
        rig.storage.remove_store(rig.store);
        let mut other = Rig::new(&path, 2 << 20);
        other.read(0, 4096).await;
    });
}
