//! Opening, locking and making stores.

mod disk_support;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use disk_support::{DEADLINE, Rig, folder, store_file, unaligned, write};
use kagami_replicator::core::disk::{DiskFault, DiskOp};
use kagami_replicator::shell::buffers::{Pool, PoolConfig};
use kagami_replicator::shell::fence::{FenceError, Holder, StoreFile};
use kagami_replicator::shell::probe::{ProbeError, StoreKind};
use kagami_replicator::shell::storage::Area;
use kagami_replicator::shell::store::{
    StoreError, check_unused, claim_unused, create_backing_file, create_metadata_store,
    prepare_metadata,
};

const MIB: u64 = 1 << 20;

/// Names the path that a child of these tests works on; without it the children do nothing.
const CHILD: &str = "KAGAMI_TEST_CHILD_PATH";

fn open(path: &Path) -> Result<StoreFile, FenceError> {
    StoreFile::open(path, Duration::ZERO)
}

#[test]
fn a_store_has_one_opener_and_the_refusal_names_it() {
    let folder = folder();
    let path = store_file(&folder, "store", MIB);
    let first = open(&path).expect("free");
    let Err(FenceError::Held { holder, .. }) = open(&path) else {
        panic!("a second opener in the same process is one too many");
    };
    let Holder::Process { pid, .. } = &holder else {
        panic!("the holder is this process, not {holder:?}");
    };
    assert_eq!(*pid, std::process::id());
    let text = holder.to_string();
    assert!(text.contains(&format!("(process {pid})")), "{text}");

    // It is waited for when asked, and had when the first goes.
    let thread = std::thread::spawn({
        let path = path.clone();
        move || StoreFile::open(&path, DEADLINE)
    });
    drop(first);
    assert!(thread.join().expect("no panic").is_ok());
}

#[test]
fn a_killed_process_leaves_the_store_when_its_writes_have_landed() {
    let folder = folder();
    let path = store_file(&folder, "store", 64 * MIB);
    let mut child = child("child_holds_a_store_and_writes", &path);
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let held = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("held")));
    assert!(held.is_some(), "the child holds the store");
    let Err(FenceError::Held { holder, .. }) = open(&path) else {
        panic!("the child holds it");
    };
    assert!(matches!(holder, Holder::Process { pid, .. } if pid == child.id()));
    child.kill().expect("our child");
    child.wait().expect("our child");
    StoreFile::open(&path, DEADLINE).expect("free once the writes have landed");
}

#[test]
fn child_holds_a_store_and_writes() {
    let Some(path) = std::env::var_os(CHILD).map(PathBuf::from) else {
        return;
    };
    kagami_replicator::shell::runtime::start(async {
        let mut rig = Rig::new(&path, 64 << 20);
        for id in 0..64 {
            rig.submit(id, write(id * MIB, unaligned(1 << 20, 1)));
        }
        rig.storage.submit_queued().expect("the ring works");
        println!("held");
        std::io::stdout().flush().expect("a pipe");
        // Until it is killed.
        let _end = std::io::stdin().read(&mut [0]);
    });
}

/// Runs a test of this binary as a process of its own, on `path`.
fn child(test: &str, path: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child")
}

#[test]
fn what_is_no_store_is_refused_with_its_reason() {
    let folder = folder();
    let refusal = |path: &Path| open(path).expect_err("no store");
    assert!(matches!(
        refusal(folder.path()),
        FenceError::Unsuitable(ProbeError::NotAStore { .. })
    ));
    assert!(matches!(
        refusal(Path::new("/dev/null")),
        FenceError::Unsuitable(ProbeError::NotAStore { .. })
    ));
    let missing = refusal(&folder.path().join("missing"));
    assert!(matches!(missing, FenceError::Missing { .. }));
    assert!(missing.to_string().contains("its new place"), "{missing}");
    // A file system without direct I/O.
    let none = refusal(Path::new("/proc/self/comm"));
    assert!(matches!(none, FenceError::NoDirectIo { .. }), "{none}");
}

#[test]
fn a_probe_tells_what_a_file_can_do() {
    let folder = folder();
    let path = store_file(&folder, "store", MIB + 512);
    let before = std::fs::metadata(&path).expect("the store").blocks();
    let file = open(&path).expect("free");
    let capabilities = file.capabilities();
    assert_eq!(capabilities.kind, StoreKind::File);
    assert_eq!(capabilities.size, MIB + 512);
    assert!([512, 4096].contains(&capabilities.logical_block));
    assert!(capabilities.memory_align.is_power_of_two());
    assert!(capabilities.unmap_zeroes);
    let after = std::fs::metadata(&path).expect("the store");
    assert_eq!((after.len(), after.blocks()), (MIB + 512, before));
}

#[test]
fn a_backing_file_is_new_or_empty_and_known_to_be_zero() {
    let folder = folder();
    let path = folder.path().join("sparse");
    let store = create_backing_file(&path, 16 * MIB, true).expect("room");
    assert!(store.zeroed);
    assert_eq!(store.file.capabilities().size, 16 * MIB);
    let metadata = std::fs::metadata(&path).expect("the store");
    assert!(metadata.blocks() * 512 < MIB);
    assert_eq!(metadata.mode() & 0o777, 0o600);
    drop(store);

    let refusal = create_backing_file(&path, MIB, true).expect_err("used");
    assert!(matches!(refusal, StoreError::FileNotEmpty { len, .. } if len == 16 * MIB));
    assert_eq!(std::fs::metadata(&path).expect("untouched").len(), 16 * MIB);

    let path = folder.path().join("allocated");
    std::fs::File::create_new(&path).expect("an empty file");
    create_backing_file(&path, 4 * MIB, false).expect("an empty file may be taken");
    let metadata = std::fs::metadata(&path).expect("the store");
    assert!(metadata.blocks() * 512 >= 4 * MIB);

    let path = folder.path().join("huge");
    let refusal = create_backing_file(&path, 1 << 62, true).expect_err("too large");
    assert!(
        matches!(refusal, StoreError::FileTooLarge { .. }),
        "{refusal}"
    );
    assert!(!path.exists(), "what was made for nothing is removed");
}

#[test]
fn a_metadata_store_is_allocated_whole_and_reads_as_zeroes() {
    let folder = folder();
    let path = folder.path().join("meta");
    let written = [0..8192, MIB..2 * MIB];
    let store = create_metadata_store(&path, 5 * MIB, &written).expect("room");
    assert!(std::fs::metadata(&path).expect("it").blocks() * 512 >= 5 * MIB);
    let pool = Pool::new(&PoolConfig::with_bytes(2 << 20)).expect("memory");
    let bytes = store.read(&pool, 0, 5 << 20).expect("a good disk");
    assert!(bytes.len() == 5 << 20 && bytes.iter().all(|&byte| byte == 0));
    drop(store);
    assert!(create_metadata_store(&path, MIB, &[]).is_err());

    // In the tail of a backing store: what was there is gone, what is before it stays.
    let path = store_file(&folder, "tail", 4 * MIB);
    let store = open(&path).expect("free");
    store
        .write_durably(&pool, 0, &vec![5; 4 << 20])
        .expect("a good disk");
    let area = |len| Area {
        start: 2 * MIB,
        len,
    };
    let first_block = 0..4096;
    prepare_metadata(&store, area(2 * MIB), &[first_block]).expect("room");
    let bytes = store.read(&pool, 0, 4 << 20).expect("a good disk");
    assert!(bytes[..2 << 20].iter().all(|&byte| byte == 5));
    assert!(bytes[2 << 20..].iter().all(|&byte| byte == 0));
    let refusal = prepare_metadata(&store, area(3 * MIB), &[]).expect_err("too small");
    assert!(matches!(refusal, StoreError::TooSmall { have, .. } if have == 2 * MIB));
}

#[test]
fn what_looks_used_is_named_and_left_alone() {
    let folder = folder();
    let path = store_file(&folder, "store", 8 * MIB);
    let pool = Pool::new(&PoolConfig::with_bytes(2 << 20)).expect("memory");
    let store = claim_unused(&path).expect("nothing on it");
    let with = |offset: u64, magic: &[u8]| {
        let mut block = vec![0; 4096];
        let within = (offset % 4096) as usize;
        block[within..within + magic.len()].copy_from_slice(magic);
        let at = offset - within as u64;
        store.write_durably(&pool, at, &block).expect("a good disk");
        let seen = check_unused(&store);
        store
            .write_durably(&pool, at, &[0; 4096])
            .expect("a good disk");
        seen.expect_err("used").to_string()
    };
    let text = with(1024 + 56, b"\x53\xef");
    assert!(text.contains("an ext2, ext3 or ext4 file system (its mark stands at byte 1080)"));
    assert!(text.contains("nothing was changed"), "{text}");
    assert!(with(0, b"kagamiSB").contains("a kagami metadata store"));
    assert!(with(8 * MIB - 8192, b"kagamiSB").contains("metadata of a kagami mirror"));
    assert!(with(8 * MIB - 4036, b"\x83\x74\x02\x6d").contains("DRBD metadata"));
    assert!(with(8 * MIB - 512, b"EFI PART").contains("GPT"));
    assert!(with(8 * MIB - 1, &[1]).contains("unknown kind"));
    check_unused(&store).expect("clean again");
}

#[test]
fn a_full_file_system_is_an_error_of_that_write_alone() {
    let folder = folder();
    // A small file system of our own, in a mount namespace of our own.
    let script = "mount -t tmpfs -o size=4m tmpfs \"$0\" && exec \"$1\" --exact \
                  child_fills_a_small_file_system --nocapture";
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script])
        .arg(folder.path())
        .arg(std::env::current_exe().expect("this binary"))
        .env(CHILD, folder.path())
        .output()
        .expect("unshare (util-linux)");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains("the small file system was filled"), "{text}");
}

#[test]
fn child_fills_a_small_file_system() {
    let Some(folder) = std::env::var_os(CHILD).map(PathBuf::from) else {
        return;
    };
    let path = folder.join("allocated");
    let refusal = create_backing_file(&path, 8 * MIB, false).expect_err("too full");
    let StoreError::NoSpace { wanted, free, .. } = refusal else {
        panic!("{refusal}");
    };
    assert!(wanted == 8 * MIB && free <= 4 * MIB);
    assert!(!path.exists());
    let path = folder.join("sparse");
    drop(create_backing_file(&path, 8 * MIB, true).expect("sparse"));
    kagami_replicator::shell::runtime::start(async {
        let mut rig = Rig::new(&path, 16 << 20);
        let data = rig.aligned(1 << 20, 1);
        for id in 0..8 {
            rig.submit(id, write(id * MIB, data.clone()));
        }
        rig.settle().await;
        let answers: Vec<_> = rig.answers.drain().map(|(_, result)| result).collect();
        let full = |result: &_| matches!(result, Err(DiskFault::NoSpace));
        assert!(answers.iter().all(|result| result.is_ok() || full(result)));
        assert!(answers.iter().filter(|result| full(result)).count() >= 4);
        // Durable or not, and then with room again.
        let fua = DiskOp::Write {
            offset: 7 * MIB,
            data: data.clone(),
            fua: true,
        };
        assert_eq!(rig.run(fua.clone()).await, Err(DiskFault::NoSpace));
        let unmap = DiskOp::Zero {
            offset: 0,
            len: 8 * MIB,
            unmap: true,
            fua: false,
        };
        rig.run(unmap).await.expect("punching needs no room");
        rig.run(fua).await.expect("there is room again");
        rig.run(DiskOp::Flush).await.expect("nothing was lost");
        assert_eq!(rig.counters().copies, 0);
    });
    println!("the small file system was filled");
}
