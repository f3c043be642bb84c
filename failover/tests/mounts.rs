//! Mounts with a real kernel: a file system on a loop device, in a mount namespace of the test's own.

mod common;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use common::{TestNode, runs, until, why};
use kagami_failover::core::OpResult;

const INSIDE: &str = "KAGAMI_TEST_NAMESPACE";

/// Runs this test again in a namespace; true: this is it.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let line = "losetup -f >/dev/null && command -v mkfs.ext4 >/dev/null";
    let can = Command::new("unshare")
        .args(["-m", "sh", "-c", line])
        .status();
    if !can.is_ok_and(|status| status.success()) {
        eprintln!("{test}: left out: loop devices and mounts need root");
        return false;
    }
    let status = Command::new("unshare")
        .arg("-m")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "in the namespace: {status}");
    false
}

fn run(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{line}: {error}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A process that ends with its test, whatever becomes of that.
struct User(Child);

impl User {
    fn new(line: &str) -> Self {
        let child = Command::new("sh")
            .args(["-c", line])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Loop(PathBuf);

impl Loop {
    fn new(node: &TestNode) -> Self {
        let file = node.path("disk");
        std::fs::File::create(&file)
            .unwrap()
            .set_len(64 << 20)
            .unwrap();
        Self(run(&format!("losetup -f --show {}", file.display())).into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

fn mirror(more: &str) -> (TestNode, Loop) {
    let node = TestNode::new(&format!(
        "[group.g.resource.md]\ntype = \"mirror\"\nmirror = \"pg\"\nmount = \"@/mnt\"\nunmount-retries = 1\n{more}"
    ));
    let device = Loop::new(&node);
    *node.mirrors.device.lock().unwrap() = Some(device.0.clone());
    (node, device)
}

#[tokio::test]
async fn a_mirror_is_made_checked_mounted_and_let_go() {
    if !inside("a_mirror_is_made_checked_mounted_and_let_go") {
        return;
    }
    let (node, device) = mirror("initial-mkfs = true\noptions = [\"noatime\"]\n");
    assert_eq!(node.start("md").await, OpResult::Done);
    assert_eq!(node.probe("md").await, OpResult::Done);
    std::fs::write(node.path("mnt/row"), "kept").unwrap();
    let options = run(&format!(
        "findmnt -no FSTYPE,OPTIONS {}",
        node.path("mnt").display()
    ));
    assert!(
        options.starts_with("ext4") && options.contains("noatime"),
        "{options}"
    );
    assert_eq!(
        node.start("md").await,
        OpResult::Done,
        "it is mounted already"
    );
    assert_eq!(node.stop("md").await, OpResult::Done);
    assert!(why(node.probe("md").await).contains("nothing is mounted"));
    assert_eq!(node.stop("md").await, OpResult::Done);
    // The file system that is there is not made again.
    assert_eq!(node.start("md").await, OpResult::Done);
    assert_eq!(node.read("mnt/row"), "kept");
    assert_eq!(node.stop("md").await, OpResult::Done);
    let calls = node.mirrors.calls.lock().unwrap().clone();
    let (up, down) = ("attach pg", "detach pg");
    assert_eq!(calls, [up, up, down, down, up, down]);
    // Its signature has gone: that is a fault, not a first start.
    run(&format!(
        "dd if=/dev/zero of={} bs=1M count=2 status=none",
        device.0.display()
    ));
    let why = why(node.start("md").await);
    assert!(why.contains("was made on it before"), "{why}");
}

#[tokio::test]
async fn no_file_system_is_made_where_something_is() {
    if !inside("no_file_system_is_made_where_something_is") {
        return;
    }
    let (node, device) = mirror("initial-mkfs = true\n");
    let path = device.0.display().to_string();
    run(&format!(
        "printf 'raw data' | dd of={path} bs=1 seek=5000 status=none"
    ));
    let reason = why(node.start("md").await);
    assert!(reason.contains("is not empty"), "{reason}");
    run(&format!(
        "dd if=/dev/zero of={path} bs=1M count=1 status=none; echo ,, | sfdisk -q {path}"
    ));
    let reason = why(node.start("md").await);
    assert!(reason.contains("partition table"), "{reason}");
    let (node, device) = mirror("");
    let reason = why(node.start("md").await);
    assert!(reason.contains("no file system on it"), "{reason}");
    run(&format!("mkfs.ext4 -q {}", device.0.display()));
    *node.mirrors.device.lock().unwrap() = None;
    let reason = why(node.start("md").await);
    assert!(reason.contains("not Primary"), "{reason}");
}

#[tokio::test]
async fn a_damaged_file_system_is_checked_and_a_lost_one_not_mounted() {
    if !inside("a_damaged_file_system_is_checked_and_a_lost_one_not_mounted") {
        return;
    }
    let (node, device) = mirror("fsck = \"always\"\nmount-retries = 0\n");
    let path = device.0.display().to_string();
    run(&format!(
        "mkfs.ext4 -q {path}; debugfs -w -R 'ssv free_blocks_count 7' {path} 2>/dev/null"
    ));
    assert_eq!(node.start("md").await, OpResult::Done);
    assert_eq!(node.stop("md").await, OpResult::Done);
    // More than preening may repair.
    run(&format!("debugfs -w -R 'clri <2>' {path} 2>/dev/null"));
    let reason = why(node.start("md").await);
    assert!(reason.contains("e2fsck: status 4"), "{reason}");
    assert!(why(node.probe("md").await).contains("nothing is mounted"));
}

#[tokio::test]
async fn whoever_uses_a_mount_is_ended_before_it_is_unmounted() {
    if !inside("whoever_uses_a_mount_is_ended_before_it_is_unmounted") {
        return;
    }
    let (node, device) = mirror("");
    run(&format!("mkfs.ext4 -q {}", device.0.display()));
    assert_eq!(node.start("md").await, OpResult::Done);
    let mount = node.path("mnt").display().to_string();
    let at = node.folder.path().display().to_string();
    // One by its folder, one by an open file, neither of which hears TERM; one by a mount below.
    let line =
        format!("cd {mount}; trap '' TERM; echo $$ >{at}/folder; while :; do sleep 0.05; done");
    let _folder = User::new(&line);
    let line = format!("exec 3>{mount}/open; echo $$ >{at}/file; while :; do sleep 0.05; done");
    let _file = User::new(&line);
    run(&format!(
        "mkdir {mount}/below; mount -t tmpfs none {mount}/below"
    ));
    let bystander = User::new("exec sleep 600");
    until("they use it", || {
        !node.read("folder").is_empty() && !node.read("file").is_empty()
    })
    .await;
    assert_eq!(node.stop("md").await, OpResult::Done);
    assert!(why(node.probe("md").await).contains("nothing is mounted"));
    assert!(!runs(&node.read("folder")) && !runs(&node.read("file")));
    assert!(
        runs(&bystander.0.id().to_string()),
        "who does not use it goes on"
    );
}

#[tokio::test]
async fn a_shared_disk_is_held_while_it_is_active() {
    if !inside("a_shared_disk_is_held_while_it_is_active") {
        return;
    }
    let node = TestNode::new("[group.g.resource.x]\ntype = \"exec\"\nstart = \"/bin/true\"\n");
    let device = Loop::new(&node);
    let path = device.0.display().to_string();
    let disk = || {
        TestNode::new(&format!(
            "[group.g.resource.lun]\ntype = \"disk\"\ndevice = \"{path}\"\nmount = \"@/mnt\"\n"
        ))
    };
    run(&format!("mkfs.ext4 -q {path}"));
    let (first, second) = (disk(), disk());
    assert_eq!(first.start("lun").await, OpResult::Done);
    let reason = why(second.start("lun").await);
    assert!(reason.contains("locked by another program"), "{reason}");
    assert_eq!(first.stop("lun").await, OpResult::Done);
    assert_eq!(second.start("lun").await, OpResult::Done);
    assert_eq!(second.stop("lun").await, OpResult::Done);
}
