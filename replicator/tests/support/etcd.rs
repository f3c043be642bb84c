//! A real etcd for a test: Debian's, of one member, in a folder and on loopback ports of its own.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustix::process::{Pid, Signal, kill_process};

/// It serves within, or there is something wrong with it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running etcd, or one that was stopped. It ends with its owner.
pub struct Etcd {
    folder: tempfile::TempDir,
    child: Option<Child>,
    client_port: u16,
    peer_port: u16,
    is_tls: bool,
}

impl Etcd {
    /// One that anybody may use, in clear text.
    pub fn start() -> Self {
        Self::begin(false)
    }

    /// One that asks for a client's certificate.
    pub fn start_with_certificates() -> Self {
        Self::begin(true)
    }

    fn begin(is_tls: bool) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("kgm-etcd")
            .tempdir()
            .expect("a folder for temporary files");
        if is_tls {
            certify(folder.path());
        }
        let mut etcd = Self {
            folder,
            child: None,
            client_port: free_port(),
            peer_port: free_port(),
            is_tls,
        };
        etcd.again();
        etcd
    }

    /// Starts it anew with what it has on disk, and waits until it answers.
    pub fn again(&mut self) {
        assert!(self.child.is_none(), "etcd runs already");
        let log = self.path("log");
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("its log");
        let before = ready(&log);
        let (client, peer) = (
            self.endpoint(),
            format!("http://127.0.0.1:{}", self.peer_port),
        );
        let mut command = Command::new("etcd");
        command
            .env_clear()
            .args(["--name", "one", "--data-dir"])
            .arg(self.path("data"))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")])
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("its log"))
            .stderr(out);
        if self.is_tls {
            command
                .arg("--client-cert-auth")
                .arg("--trusted-ca-file")
                .arg(self.ca())
                .arg("--cert-file")
                .arg(self.path("server.pem"))
                .arg("--key-file")
                .arg(self.path("server-key.pem"));
        }
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("etcd can't be run ({error}): apt-get install etcd-server")
        });
        let child = self.child.insert(child);
        let begun = Instant::now();
        // It listens before it has elected itself; it says when it answers.
        while ready(&log) == before {
            let ended = child.try_wait().expect("its state");
            let words = || fs::read_to_string(&log).unwrap_or_default();
            assert!(ended.is_none(), "etcd ended: {ended:?}\n{}", words());
            assert!(
                begun.elapsed() < PATIENCE,
                "etcd does not serve\n{}",
                words()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it, as the loss of its machine would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // One that was paused, too.
            child.kill().expect("a process of this test's own");
            child.wait().expect("its end");
        }
    }

    /// It takes questions and says nothing, until [`Etcd::resume`].
    pub fn pause(&self) {
        self.signal(Signal::STOP);
        // The thread that is to hear the signal may be waiting for its disk: meanwhile the others answer.
        let begun = Instant::now();
        while !self.is_paused() {
            assert!(begun.elapsed() < PATIENCE, "etcd does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Every thread of it has stopped.
    fn is_paused(&self) -> bool {
        let child = self.child.as_ref().expect("a running etcd");
        let threads = fs::read_dir(format!("/proc/{}/task", child.id())).expect("it lives");
        let mut states = threads.filter_map(|thread| {
            // One that has ended meanwhile says nothing either.
            let stat = fs::read_to_string(thread.ok()?.path().join("stat")).ok()?;
            Some(stat.rsplit_once(") ")?.1.starts_with('T'))
        });
        states.all(|is_stopped| is_stopped)
    }

    /// It goes on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("a running etcd");
        kill_process(Pid::from_child(child), signal).expect("a process of this test's own");
    }

    /// Where it is.
    pub fn endpoint(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client_port)
    }

    /// The authority that signed its certificate and the clients'.
    pub fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A client's certificate and key.
    pub fn identity(&self) -> (PathBuf, PathBuf) {
        (self.path("client.pem"), self.path("client-key.pem"))
    }

    /// A file in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How often an etcd with this log has said that it answers.
fn ready(log: &Path) -> usize {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.matches("ready to serve client requests").count()
}

/// A TCP port of 127.0.0.1 that nobody has now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// An authority, and by it a server's and a client's certificate.
fn certify(folder: &Path) {
    let key = || KeyPair::generate().expect("a key");
    let write = |name: &str, text: String| fs::write(folder.join(name), text).expect("a file");
    let mut params = CertificateParams::new(Vec::new()).expect("an authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(params, key()).expect("an authority");
    write("ca.pem", authority.pem());
    for (name, of, uses) in [
        (
            "server",
            "127.0.0.1",
            // etcd is a client of its own, too.
            vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        ),
        (
            "client",
            "kagami.test",
            vec![ExtendedKeyUsagePurpose::ClientAuth],
        ),
    ] {
        let mut params = CertificateParams::new(vec![of.to_owned()]).expect("a name");
        params.extended_key_usages = uses;
        let key = key();
        let certificate = params.signed_by(&key, &authority).expect("a certificate");
        write(&format!("{name}.pem"), certificate.pem());
        write(&format!("{name}-key.pem"), key.serialize_pem());
    }
}
