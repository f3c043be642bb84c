//! A node in a temporary folder, for tests of what its resources do.
#![allow(dead_code)] // each test file uses its part

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kagami_failover::config::resource::Driver;
use kagami_failover::config::{Cluster, Group, Ms, Resource};
use kagami_failover::core::durable::{Run, Why};
use kagami_failover::core::environment::{Facts, Host, variables};
use kagami_failover::core::{Node, OpResult};
use kagami_failover::place::{
    FileChannel, Lasting, MirrorDevice, MirrorStatus, NotSent, Pending, Place,
};
use kagami_failover::probe::user_space::Devices;
use kagami_failover::resource;
use kagami_failover::resource::files::Image;
use tempfile::TempDir;

/// A test needs what this machine does not have. Of a program that a package brings, `./do` installs the package, and
/// says by `KAGAMI_HAS_ITS_PACKAGES` that nothing may be left out for it; what a kernel or a container withholds is told, and
/// written into the file that `KAGAMI_LEFT_OUT` names.
pub fn left_out(test: &str, want: Want) {
    let line = match want {
        Want::Program(what) => {
            assert!(
                std::env::var_os("KAGAMI_HAS_ITS_PACKAGES").is_none(),
                "{test}: left out for want of {what}"
            );
            format!("{test}: left out: there is no {what}\n")
        }
        Want::Kernel(what) => format!("{test}: left out: {what}\n"),
    };
    eprint!("{line}");
    if let Some(file) = std::env::var_os("KAGAMI_LEFT_OUT") {
        let mut file = fs::File::options()
            .append(true)
            .create(true)
            .open(file)
            .expect("the file of KAGAMI_LEFT_OUT");
        file.write_all(line.as_bytes()).expect("a line");
    }
}

/// What is not there.
pub enum Want {
    /// A program of a package.
    Program(&'static str),
    /// Something that the kernel, or who runs the test, may not do.
    Kernel(&'static str),
}

/// Mirrors whose device is a file's loop device, or none.
#[derive(Default)]
pub struct Mirrors {
    pub device: Mutex<Option<PathBuf>>,
    pub status: Mutex<MirrorStatus>,
    pub calls: Mutex<Vec<String>>,
}

impl MirrorDevice for Mirrors {
    fn attach<'a>(
        &'a self,
        mirror: &'a str,
        _: Driver,
        _: Option<&'a Path>,
    ) -> Pending<'a, Result<PathBuf, String>> {
        self.calls.lock().unwrap().push(format!("attach {mirror}"));
        let device = self.device.lock().unwrap().clone();
        Box::pin(async move { device.ok_or_else(|| "it is not Primary".to_owned()) })
    }

    fn detach<'a>(&'a self, mirror: &'a str) -> Pending<'a, Result<(), String>> {
        self.calls.lock().unwrap().push(format!("detach {mirror}"));
        Box::pin(async { Ok(()) })
    }

    fn status<'a>(&'a self, _: &'a str) -> Pending<'a, Result<MirrorStatus, String>> {
        let device = self.device.lock().unwrap().clone();
        let status = MirrorStatus {
            device,
            ..self.status.lock().unwrap().clone()
        };
        Box::pin(async move { Ok(status) })
    }
}

/// A channel that keeps what was sent, or is cut.
#[derive(Default)]
pub struct Channel {
    pub sent: Mutex<Vec<Image>>,
    pub not_read: Mutex<Vec<String>>,
    pub cut: Mutex<bool>,
}

impl FileChannel for Channel {
    fn send<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        image: Image,
    ) -> Pending<'a, Result<(), NotSent>> {
        Box::pin(async move {
            if *self.cut.lock().unwrap() {
                return Err(NotSent::Away("the other node is not there".to_owned()));
            }
            self.sent.lock().unwrap().push(image);
            Ok(())
        })
    }

    fn not_read(&self, group: &str, resource: &str, why: &str) {
        let what = format!("{group}/{resource}: {why}");
        self.not_read.lock().unwrap().push(what);
    }
}

/// A node.
pub struct TestNode {
    pub place: Arc<Place>,
    pub mirrors: Arc<Mirrors>,
    pub channel: Arc<Channel>,
    pub folder: TempDir,
    text: String,
}

impl TestNode {
    /// One with these resources in group `g`; `@` in the text stands for the node's folder.
    pub fn new(resources: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display().to_string();
        // Control groups are the machine's: each test has a cluster of its own.
        let name = format!("t{}", at.replace(|c: char| !c.is_alphanumeric(), ""));
        let text = format!(
            "[cluster]\nname = \"{name}\"\nrevision = 1\nnodes = [\"alpha\", \"beta\"]\n\
             [arbiter]\nkind = \"witness\"\nname = \"gamma\"\n\
             [heartbeat.lan]\ntype = \"lan\"\npriority = 1\n\
             addresses = {{ alpha = \"10.0.0.1:7791\", beta = \"10.0.0.2:7791\" }}\n\
             [group.g]\nnodes = [\"alpha\", \"beta\"]\n{resources}"
        )
        .replace('@', &at);
        let mirrors = Arc::new(Mirrors::default());
        let channel = Arc::new(Channel::default());
        let place = Self::place(&text, folder.path(), &mirrors, &channel);
        Self {
            place,
            mirrors,
            channel,
            folder,
            text,
        }
    }

    fn place(
        text: &str,
        folder: &Path,
        mirrors: &Arc<Mirrors>,
        channel: &Arc<Channel>,
    ) -> Arc<Place> {
        let cluster = Cluster::parse(Path::new("cluster.toml"), text);
        let cluster = cluster.unwrap_or_else(|error| panic!("{error}"));
        Arc::new(
            Place::new(
                Arc::new(cluster),
                0,
                folder.join("state"),
                folder.join("run"),
                PathBuf::from("/bin/true"),
                mirrors.clone(),
                Arc::new(Devices::default()),
                channel.clone(),
                &Lasting::default(),
            )
            .unwrap(),
        )
    }

    /// The manager begins anew: nothing is known but what was written down.
    pub fn restart(&mut self) {
        let folder = self.folder.path();
        self.place = Self::place(&self.text, folder, &self.mirrors, &self.channel);
    }

    /// Changes the place, of which nothing else is known yet.
    pub fn change(&mut self, change: impl FnOnce(&mut Place)) {
        change(Arc::get_mut(&mut self.place).expect("nobody else has it"));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A script of this node.
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = if text.starts_with("#!") {
            text.to_owned()
        } else {
            format!("#!/bin/sh\n{text}\n")
        };
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    pub fn group(&self) -> &Group {
        &self.place.cluster.groups[0]
    }

    pub fn resource(&self, name: &str) -> &Resource {
        let group = self.group();
        &group.resources[group.position(name).unwrap()]
    }

    /// What its scripts see at a start.
    pub fn environment(&self, name: &str, why: Why, from: Option<Node>) -> Vec<(String, String)> {
        variables(&Facts {
            cluster: &self.place.cluster,
            group: self.group(),
            resource: Some(self.resource(name)),
            me: self.place.me,
            run: Run {
                why,
                from,
                version: 1,
            },
            disk: true,
            host: &Host::default(),
        })
    }

    pub async fn start(&self, name: &str) -> OpResult {
        let environment = self.environment(name, Why::Start, None);
        self.start_with(name, &environment).await
    }

    pub async fn start_with(&self, name: &str, environment: &[(String, String)]) -> OpResult {
        let (group, one) = (self.group(), self.resource(name));
        let timeout = one.time_outs().0;
        let started = resource::start(&self.place, group, one, environment, timeout).await;
        if started == OpResult::Done {
            // As a manager does that knows it to be active.
            resource::resume(&self.place, group, one);
        }
        started
    }

    pub async fn stop(&self, name: &str) -> OpResult {
        let environment = self.environment(name, Why::Start, None);
        let one = self.resource(name);
        resource::stop(
            &self.place,
            self.group(),
            one,
            &environment,
            one.time_outs().1,
        )
        .await
    }

    pub async fn probe(&self, name: &str) -> OpResult {
        let environment = self.environment(name, Why::Start, None);
        let (group, one) = (self.group(), self.resource(name));
        resource::probe(&self.place, group, one, &environment, Ms::seconds(60)).await
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// What the scripts of a resource have written.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.place.log(&format!("g@{name}"))).unwrap_or_default()
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        let Some(root) = &self.place.control_groups else {
            return;
        };
        // Whatever a failed test has left running ends with it.
        let _ = fs::write(root.join("cgroup.kill"), "1");
        let until = Instant::now() + Duration::from_secs(5);
        while !remove(root) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn remove(group: &Path) -> bool {
    if let Ok(below) = fs::read_dir(group) {
        for entry in below.flatten() {
            if entry.path().is_dir() {
                remove(&entry.path());
            }
        }
    }
    fs::remove_dir(group).is_ok() || !group.exists()
}

/// Waits for an effect.
pub async fn until(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !there() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Why it failed.
pub fn why(result: OpResult) -> String {
    match result {
        OpResult::Failed(why) => why,
        other => panic!("it should have failed: {other:?}"),
    }
}

/// A process that runs, by its number in a file.
pub fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
