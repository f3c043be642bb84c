//! Mounts with a real kernel: a file system on a loop device, in a mount namespace of the test's own.

mod common;

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{TestNode, Want, left_out, runs, until, why};
use kagami_failover::config::resource::DISK_RISK;
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
        left_out(test, Want::Kernel("loop devices and mounts need root"));
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
        Self::of(&node.path("disk"), 64)
    }

    fn of(file: &Path, mib: u64) -> Self {
        std::fs::File::create(file)
            .unwrap()
            .set_len(mib << 20)
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
            "[group.g.resource.lun]\ntype = \"disk\"\ndevice = \"{path}\"\nmount = \"@/mnt\"\naccepted-risk = \"{DISK_RISK}\"\n"
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

#[tokio::test]
async fn what_was_reserved_is_given_up_by_whatever_configuration() {
    let node = TestNode::new(&format!(
        "[group.g.resource.lun]\ntype = \"disk\"\ndevice = \"@/disk\"\nreserve = \"never\"\naccepted-risk = \"{DISK_RISK}\"\n"
    ));
    // Who opens one end waits for the other one: so it is seen whether the disk is asked.
    let device = node.path("disk");
    run(&format!("mkfifo {}", device.display()));
    std::fs::create_dir(node.path("state/reserved")).unwrap();
    std::fs::write(node.path("state/reserved/g@lun"), "as another one said").unwrap();
    let (asked, is_asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let end = std::fs::OpenOptions::new().write(true).open(device);
        let _ = asked.send(end.is_ok());
    });
    assert_eq!(node.stop("lun").await, OpResult::Done);
    assert_eq!(is_asked.recv_timeout(Duration::from_secs(10)), Ok(true));
    // Nothing is left to be given up, and nobody has the other end any more.
    assert!(!node.path("state/reserved/g@lun").exists());
    assert_eq!(node.stop("lun").await, OpResult::Done);
}

/// A node with a shared disk that has a file system.
fn disk(device: &Loop, unmount_timeout: &str) -> TestNode {
    disk_at(&device.0, unmount_timeout)
}

/// The same, by a name of it.
fn disk_at(device: &Path, unmount_timeout: &str) -> TestNode {
    let path = device.display();
    run(&format!("mkfs.ext4 -q {path}"));
    TestNode::new(&format!(
        "[group.g.resource.lun]\ntype = \"disk\"\ndevice = \"{path}\"\nmount = \"@/mnt\"\naccepted-risk = \"{DISK_RISK}\"\n\
         unmount-timeout = \"{unmount_timeout}\"\nunmount-retries = 0\n"
    ))
}

/// A folder for what lies below the node of a test.
fn folder() -> TestNode {
    TestNode::new("[group.g.resource.x]\ntype = \"exec\"\nstart = \"/bin/true\"\n")
}

/// What is mounted below a node's folder.
fn mounted(node: &TestNode) -> Vec<String> {
    let at = node.folder.path().display().to_string();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lines = table.lines().filter(|line| line.contains(&at));
    lines.map(str::to_owned).collect()
}

/// Writes to the file system wait until this ends.
struct Frozen(PathBuf);

impl Frozen {
    fn new(point: PathBuf) -> Self {
        run(&format!("fsfreeze -f {}", point.display()));
        Self(point)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_disk_whose_last_writes_wait_is_not_let_go() {
    if !inside("a_disk_whose_last_writes_wait_is_not_let_go") {
        return;
    }
    let under = folder();
    let outer = Loop::new(&under);
    let at = under.path("outer").display().to_string();
    run(&format!(
        "mkfs.ext4 -q {0}; mkdir {at}; mount {0} {at}",
        outer.0.display()
    ));
    let inner = Loop::of(&under.path("outer/disk"), 32);
    let node = disk(&inner, "1s");
    assert_eq!(node.start("lun").await, OpResult::Done);
    std::fs::write(node.path("mnt/row"), vec![7; 4 << 20]).unwrap();
    let frozen = Frozen::new(under.path("outer"));
    let reason = why(node.stop("lun").await);
    assert!(reason.contains("still in use on this node"), "{reason}");
    assert_eq!(mounted(&node), [""; 0], "the kernel's table shows nothing");
    let reason = why(node.stop("lun").await);
    assert!(reason.contains("still in use on this node"), "{reason}");
    drop(frozen);
    let until = Instant::now() + Duration::from_secs(60);
    while node.stop("lun").await != OpResult::Done {
        assert!(Instant::now() < until, "what waited is written");
    }
    run(&format!("e2fsck -fn {}", inner.0.display()));
}

/// A program that has a device for itself, as a check or mkfs has that was begun by a manager that was killed.
fn for_itself(device: &Loop) -> std::fs::File {
    let mut options = std::fs::OpenOptions::new();
    let options = options.read(true).custom_flags(libc::O_EXCL);
    options.open(&device.0).unwrap()
}

#[tokio::test]
async fn a_check_that_an_earlier_manager_has_left_is_waited_for() {
    if !inside("a_check_that_an_earlier_manager_has_left_is_waited_for") {
        return;
    }
    let (node, device) = mirror("initial-mkfs = true\nmount-retries = 0\n");
    // The first time one is made, the second time it is checked.
    for _ in 0..2 {
        let left = for_itself(&device);
        let start = node.start("md");
        tokio::pin!(start);
        let early = tokio::time::timeout(Duration::from_secs(3), &mut start).await;
        assert!(early.is_err(), "{early:?}");
        drop(left);
        assert_eq!(start.await, OpResult::Done);
        assert_eq!(node.stop("md").await, OpResult::Done);
    }
    // Not for ever.
    let (node, device) = mirror("fsck-timeout = \"1s\"\n");
    run(&format!("mkfs.ext4 -q {}", device.0.display()));
    let left = for_itself(&device);
    let reason = why(node.start("md").await);
    assert!(reason.contains("has it for itself"), "{reason}");
    drop(left);
    assert_eq!(node.start("md").await, OpResult::Done);
    assert_eq!(node.stop("md").await, OpResult::Done);
}

#[tokio::test]
async fn what_is_mounted_elsewhere_too_is_not_let_go() {
    if !inside("what_is_mounted_elsewhere_too_is_not_let_go") {
        return;
    }
    let (node, device) = mirror("unmount-timeout = \"1s\"\n");
    run(&format!("mkfs.ext4 -q {}", device.0.display()));
    assert_eq!(node.start("md").await, OpResult::Done);
    let at = node.folder.path().display().to_string();
    run(&format!(
        "mkdir {at}/other; mount --bind {at}/mnt {at}/other"
    ));
    let reason = why(node.stop("md").await);
    assert!(
        reason.contains(&format!("mounted on {at}/other")),
        "{reason}"
    );
    let calls = node.mirrors.calls.lock().unwrap().clone();
    assert_eq!(calls, ["attach pg"], "it is not detached");
    run(&format!("umount {at}/other"));
    assert_eq!(node.stop("md").await, OpResult::Done);
    // A namespace of somebody's own has it for itself.
    assert_eq!(node.start("md").await, OpResult::Done);
    let line = format!("exec unshare -m sh -c 'echo >{at}/ready; exec sleep 600'");
    let private = User::new(&line);
    until("it has its own", || !node.read("ready").is_empty()).await;
    let reason = why(node.stop("md").await);
    let whose = format!("in the mount namespace of sleep ({})", private.0.id());
    assert!(reason.contains(&whose), "{reason}");
    drop(private);
    assert_eq!(node.stop("md").await, OpResult::Done);
}

#[tokio::test]
async fn a_disk_whose_name_has_gone_is_waited_for_all_the_same() {
    if !inside("a_disk_whose_name_has_gone_is_waited_for_all_the_same") {
        return;
    }
    let under = folder();
    let device = Loop::new(&under);
    let link = under.path("by-id");
    std::os::unix::fs::symlink(&device.0, &link).unwrap();
    let mut node = disk_at(&link, "1s");
    assert_eq!(node.start("lun").await, OpResult::Done);
    let at = node.folder.path().display().to_string();
    let line = format!("exec unshare -m sh -c 'echo >{at}/ready; exec sleep 600'");
    let private = User::new(&line);
    until("it has its own", || !node.read("ready").is_empty()).await;
    std::fs::remove_file(&link).unwrap();
    let whose = format!("in the mount namespace of sleep ({})", private.0.id());
    let reason = why(node.stop("lun").await);
    assert!(reason.contains(&whose), "{reason}");
    // A manager that has just started knows it, too.
    node.restart();
    let reason = why(node.stop("lun").await);
    assert!(reason.contains(&whose), "{reason}");
    drop(private);
    assert_eq!(node.stop("lun").await, OpResult::Done);
    // What can't be started for want of its disk does not have to be stopped.
    assert!(why(node.start("lun").await).contains("No such file"));
    assert_eq!(node.stop("lun").await, OpResult::Done);
}

#[tokio::test]
async fn who_uses_a_mount_in_a_namespace_that_follows_is_ended() {
    if !inside("who_uses_a_mount_in_a_namespace_that_follows_is_ended") {
        return;
    }
    run("mount --make-rshared /");
    let (node, device) = mirror("");
    run(&format!("mkfs.ext4 -q {}", device.0.display()));
    assert_eq!(node.start("md").await, OpResult::Done);
    let at = node.folder.path().display().to_string();
    let line = format!(
        "exec unshare -m --propagation slave sh -c 'exec 3>{at}/mnt/open; echo >{at}/ready; exec sleep 600'"
    );
    let service = User::new(&line);
    until("it has a file open", || !node.read("ready").is_empty()).await;
    assert_eq!(node.stop("md").await, OpResult::Done);
    assert!(!runs(&service.0.id().to_string()));
}

#[tokio::test]
async fn a_mount_point_that_is_a_link_is_found_again() {
    if !inside("a_mount_point_that_is_a_link_is_found_again") {
        return;
    }
    let under = folder();
    let device = Loop::new(&under);
    let node = disk(&device, "10s");
    std::fs::create_dir(node.path("real")).unwrap();
    std::os::unix::fs::symlink("real", node.path("mnt")).unwrap();
    assert_eq!(node.start("lun").await, OpResult::Done);
    assert_eq!(mounted(&node).len(), 1);
    assert_eq!(node.start("lun").await, OpResult::Done, "it is there");
    assert_eq!(node.probe("lun").await, OpResult::Done);
    assert_eq!(node.stop("lun").await, OpResult::Done);
    assert_eq!(mounted(&node), [""; 0]);
    assert!(why(node.probe("lun").await).contains("nothing is mounted"));
}

#[tokio::test]
async fn a_file_system_that_never_answers_holds_nobody_who_stops_another() {
    if !inside("a_file_system_that_never_answers_holds_nobody_who_stops_another") {
        return;
    }
    if !Path::new("/dev/fuse").exists() {
        left_out(
            "a_file_system_that_never_answers_holds_nobody_who_stops_another",
            Want::Kernel("there is no /dev/fuse"),
        );
        return;
    }
    let under = folder();
    let device = Loop::new(&under);
    let node = disk(&device, "10s");
    assert_eq!(node.start("lun").await, OpResult::Done);
    // Whoever has its other end reads no question.
    let silent = under.path("silent").display().to_string();
    let line = format!(
        "mkdir {silent}; exec 3<>/dev/fuse; \
         mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 silent {silent}; \
         echo >{}; exec sleep 60",
        under.path("ready").display()
    );
    let _server = User::new(&line);
    until("it is mounted", || !under.read("ready").is_empty()).await;
    assert_eq!(mounted(&under).len(), 1);
    let open = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(&silent)
        .unwrap();
    let child = Command::new("sleep").arg("600").stdin(open).spawn();
    let user = User(child.unwrap());
    // No process uses this one, and it can't be unmounted.
    let busy = Loop::of(&node.path("mnt/disk"), 8);
    let ticks = Arc::new(AtomicU32::new(0));
    let counted = ticks.clone();
    let timer = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let begun = Instant::now();
    let reason = why(node.stop("lun").await);
    assert!(begun.elapsed() < Duration::from_secs(30), "it is held");
    assert!(reason.contains("no process uses it"), "{reason}");
    assert!(ticks.load(Ordering::Relaxed) > 10, "others go on");
    assert!(runs(&user.0.id().to_string()));
    timer.abort();
    drop(busy);
    assert_eq!(node.stop("lun").await, OpResult::Done);
}
