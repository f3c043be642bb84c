//! What the tests share: a server on a thread of its own, and a device that does as it is told.
#![allow(dead_code)] // each test file uses its part

pub mod client;
pub mod device;
pub mod pki;
pub mod programs;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kagami_nbd_server::{DeviceInfo, Export, Exports, Limits, Listener, Server, TlsPolicy};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use device::TestDevice;
#[allow(unused_imports, reason = "not every test runs clients")]
pub use programs::{finish, program, succeed};

/// How long anything may take before a test gives up.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// What runs on the server's thread.
pub struct Bench {
    pub server: Server<TestDevice>,
    pub exports: Rc<Exports<TestDevice>>,
}

impl Bench {
    pub fn device(&self, name: &str) -> Rc<TestDevice> {
        Rc::clone(&self.exports.get(name).expect("the export").device)
    }

    pub fn add(&self, name: &str, info: DeviceInfo) {
        self.exports
            .add(Export::new(name, Rc::new(TestDevice::new(info))))
            .expect("a new name");
    }
}

type Job = Box<dyn FnOnce(Rc<Bench>) + Send>;

/// A server with an export `disk` of 64 MiB, on a Unix socket and on TCP.
pub struct TestServer {
    pub dir: TempDir,
    pub path: PathBuf,
    pub tcp: SocketAddr,
    jobs: Option<UnboundedSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

pub const SIZE: u64 = 64 << 20;

impl TestServer {
    pub fn start() -> Self {
        Self::with(Limits::default(), TlsPolicy::Off)
    }

    pub fn with(limits: Limits, tls: TlsPolicy) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("nbd.sock");
        let (jobs, mut inbox) = unbounded_channel::<Job>();
        let (ready, started) = mpsc::channel();
        let socket = path.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let exports = Rc::new(Exports::new());
                let bench = Rc::new(Bench {
                    server: Server::new(Rc::clone(&exports), limits),
                    exports,
                });
                bench.add("disk", DeviceInfo::new(SIZE));
                let unix = Listener::unix(&socket, 0o600).expect("a Unix socket");
                let any = SocketAddr::from(([127, 0, 0, 1], 0));
                let tcp = Listener::tcp(any).await.expect("a port");
                let address = tcp.tcp_address().expect("an address");
                bench.server.listen(unix, tls.clone());
                bench.server.listen(tcp, tls);
                ready.send(address).expect("the test waits");
                while let Some(job) = inbox.recv().await {
                    job(Rc::clone(&bench));
                }
                bench.server.shut_down(Duration::ZERO).await;
            });
        });
        let tcp = started.recv().expect("the server starts");
        Self {
            dir,
            path,
            tcp,
            jobs: Some(jobs),
            thread: Some(thread),
        }
    }

    /// Runs `job` on the server's thread and gives what it returns.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce(Rc<Bench>) -> T + Send + 'static) -> T {
        let (send, receive) = mpsc::channel();
        self.post(move |bench| {
            let _ = send.send(job(bench));
        });
        receive
            .recv_timeout(DEADLINE)
            .expect("the server's thread answers")
    }

    /// Starts `job` on the server's thread.
    pub fn post(&self, job: impl FnOnce(Rc<Bench>) + Send + 'static) {
        let jobs = self.jobs.as_ref().expect("running");
        assert!(
            jobs.send(Box::new(job)).is_ok(),
            "the server's thread is gone"
        );
    }

    /// Waits until `probe` on the server's thread is true.
    pub fn wait_for(&self, what: &str, probe: impl Fn(&Bench) -> bool + Send + Clone + 'static) {
        let start = Instant::now();
        loop {
            let probe = probe.clone();
            if self.run(move |bench| probe(&bench)) {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "waited in vain for: {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn unix_uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.path.display())
    }

    pub fn tcp_uri(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.tcp)
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let thread = self.thread.take().expect("once");
        // A failed test may have left requests held: their server would never end.
        if !std::thread::panicking() {
            thread.join().expect("the server's thread");
        }
    }
}

/// Runs a client that must fail, and gives what it complained about.
pub fn fail(command: &mut Command) -> String {
    let output = finish(command);
    assert!(!output.status.success(), "{command:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}
