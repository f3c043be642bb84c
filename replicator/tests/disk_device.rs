//! Block devices: needs root and loop devices (`cargo test --features root-tests`).

mod disk_support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use disk_support::{Rig, folder, unaligned, write};
use kagami_replicator::core::disk::DiskOp;
use kagami_replicator::shell::fence::{FenceError, Holder, StoreFile};
use kagami_replicator::shell::probe::StoreKind;
use kagami_replicator::shell::store::{StoreError, claim_unused, create_metadata_store};

const MIB: u64 = 1 << 20;

/// A loop device over a new file; detached when dropped.
struct Loop {
    device: PathBuf,
    _folder: tempfile::TempDir,
}

impl Loop {
    fn new(size: u64, options: &[&str]) -> Self {
        let folder = folder();
        let path = folder.path().join("disk");
        let file = std::fs::File::create_new(&path).expect("a file");
        file.set_len(size).expect("room");
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .args(options)
            .arg(&path)
            .output()
            .expect("losetup (util-linux)");
        assert!(output.status.success(), "needs root: {output:?}");
        let device = String::from_utf8(output.stdout).expect("a path");
        Self {
            device: device.trim().into(),
            _folder: folder,
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["--detach".as_ref(), &self.device]);
    }
}

fn run(program: &str, arguments: &[&Path]) {
    let status = Command::new(program).args(arguments).status();
    assert!(status.expect(program).success(), "{program} {arguments:?}");
}

fn open(path: &Path) -> Result<StoreFile, FenceError> {
    StoreFile::open(path, Duration::ZERO)
}

#[test]
fn a_device_is_read_written_zeroed_and_flushed() {
    for sector in [512, 4096] {
        let size = format!("--sector-size={sector}");
        let device = Loop::new(16 * MIB, &[&size, "--direct-io=on"]);
        kagami_replicator::shell::runtime::start(async {
            let mut rig = Rig::new(&device.device, 16 << 20);
            let capabilities = rig.storage.capabilities(rig.store).clone();
            assert_eq!(capabilities.kind, StoreKind::BlockDevice);
            assert_eq!(capabilities.size, 16 * MIB);
            assert_eq!(capabilities.logical_block, sector);
            for fua in [false, true] {
                for unmap in [false, true] {
                    let data = rig.aligned(4 << 20, 1);
                    rig.run(write(0, data)).await.expect("a good disk");
                    let data = unaligned(4096, 2);
                    let operation = DiskOp::Write {
                        offset: 0,
                        data,
                        fua,
                    };
                    rig.run(operation).await.expect("a good disk");
                    let zero = DiskOp::Zero {
                        offset: 4096,
                        len: 2 * MIB,
                        unmap,
                        fua,
                    };
                    rig.run(zero).await.expect("a good disk");
                    rig.run(DiskOp::Flush).await.expect("a good disk");
                    let bytes = rig.read(0, 4 << 20).await;
                    let (zeroes, rest) = bytes[4096..].split_at(2 << 20);
                    assert!(bytes[..4096].iter().all(|&byte| byte == 2));
                    assert!(zeroes.iter().all(|&byte| byte == 0), "unmap {unmap}");
                    assert!(rest.iter().all(|&byte| byte == 1));
                }
            }
        });
    }
}

#[test]
fn a_device_has_one_opener_and_a_mounted_one_none() {
    let device = Loop::new(16 * MIB, &[]);
    let first = claim_unused(&device.device).expect("nothing on it");
    let Err(FenceError::Held { holder, .. }) = open(&device.device) else {
        panic!("it has an opener");
    };
    assert!(matches!(holder, Holder::Process { pid, .. } if pid == std::process::id()));
    drop(first);

    run("mkfs.ext4", &["-q".as_ref(), &device.device]);
    let refusal = claim_unused(&device.device).expect_err("used");
    assert!(matches!(refusal, StoreError::LooksUsed { .. }));
    assert!(refusal.to_string().contains("ext4"), "{refusal}");

    let mount = folder();
    run("mount", &[&device.device, mount.path()]);
    let refusal = open(&device.device);
    run("umount", &[mount.path()]);
    let Err(FenceError::Held { holder, .. }) = refusal else {
        panic!("it was mounted");
    };
    assert!(matches!(&holder, Holder::Mount { at } if Path::new(at) == mount.path()));
}

#[test]
fn a_read_only_device_is_refused() {
    let device = Loop::new(MIB, &["--read-only"]);
    let refusal = open(&device.device).expect_err("read-only");
    assert!(matches!(refusal, FenceError::ReadOnly { .. }), "{refusal}");
}

#[test]
fn a_metadata_device_is_zeroed_whole_and_refused_when_too_small() {
    let device = Loop::new(8 * MIB, &[]);
    let log = 0..MIB;
    let store = create_metadata_store(&device.device, 6 * MIB, &[log]);
    drop(store.expect("an unused device"));
    let refusal = create_metadata_store(&device.device, 9 * MIB, &[]).expect_err("too small");
    assert!(matches!(refusal, StoreError::TooSmall { .. }), "{refusal}");
}
