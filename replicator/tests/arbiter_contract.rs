//! What every arbiter owes its askers, tried on each: a witness, an etcd in clear text, an etcd that asks for
//! certificates. And what only an etcd can do wrong: hang, be of several endpoints, refuse a user.

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::time::{Duration, Instant};

use kagami_replicator::core::register::{ArbiterAnswer, Ask};
use kagami_replicator::shell::arbiter::raw::{Content, NoAnswer, RawRegister, RegisterId, Swap};
use kagami_replicator::shell::arbiter::{Arbiter, MirrorRegister};
use kagami_replicator::shell::etcd::{self, EtcdConfig, EtcdLogin, EtcdTls};
use kagami_replicator::shell::identity::NodeKey;
use kagami_replicator::shell::witness::{self, ClientConfig, Server, ServerConfig};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet};

#[path = "support/etcd.rs"]
mod support;
use support::Etcd;

const PG: RegisterId = RegisterId(0x7067);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Some arbiter, with two nodes that may use it.
trait Place {
    /// A register as node 0 or node 1 asks for it, by a connection of its own.
    fn asker(&self, node: usize, register: RegisterId) -> Rc<dyn RawRegister>;
    /// Turns a bit of what it keeps of the register.
    async fn damage(&self, register: RegisterId);
    /// What it keeps of the register, to the byte.
    async fn kept(&self, register: RegisterId) -> Vec<u8>;
    /// Its end, whatever is asked meanwhile.
    async fn stop(&mut self);
    /// The same again, with what is on its disk.
    async fn start(&mut self);
}

fn content(seq: u64, nonce: u64) -> Content {
    Content {
        instance: 7,
        seq,
        nonce,
        bytes: format!("content {nonce}").into_bytes(),
    }
}

async fn swap(asker: &Rc<dyn RawRegister>, expect: Option<(u64, u64)>, new: &Content) -> Swap {
    let answer = asker.swap(expect, new.clone()).await;
    answer.unwrap_or_else(|why| panic!("{why}"))
}

async fn read(asker: &Rc<dyn RawRegister>) -> Option<Content> {
    let answer = asker.read().await;
    answer.unwrap_or_else(|why| panic!("{why}"))
}

fn unreachable<T: std::fmt::Debug>(answer: Result<T, NoAnswer>) -> String {
    match answer {
        Err(NoAnswer::Unreachable(why)) => why,
        other => panic!("an answer: {other:?}"),
    }
}

fn other(content: &Content) -> Swap {
    Swap::Other(Some(content.clone()))
}

async fn contract(mut place: impl Place) {
    let (a, b) = (place.asker(0, PG), place.asker(1, PG));

    // Nothing is there, and a change of nothing makes nothing.
    assert_eq!(read(&a).await, None);
    assert_eq!(
        swap(&b, Some((7, 1)), &content(2, 9)).await,
        Swap::Other(None)
    );
    assert_eq!(read(&b).await, None);

    // It is created once; the same again, because the answer was lost, is the same.
    let first = content(1, 10);
    assert_eq!(swap(&a, None, &first).await, Swap::Done);
    assert_eq!(read(&b).await, Some(first.clone()));
    assert_eq!(swap(&b, None, &content(1, 11)).await, other(&first));
    let kept = place.kept(PG).await;
    assert_eq!(swap(&a, None, &first).await, Swap::Done);
    assert_eq!(place.kept(PG).await, kept);

    // It is changed from the state that is expected, and from no other.
    let second = content(2, 12);
    assert_eq!(swap(&b, Some((7, 1)), &second).await, Swap::Done);
    assert_eq!(swap(&b, Some((7, 1)), &second).await, Swap::Done);
    assert_eq!(
        swap(&a, Some((7, 1)), &content(2, 13)).await,
        other(&second)
    );
    assert_eq!(
        swap(&a, Some((8, 2)), &content(3, 14)).await,
        other(&second)
    );
    assert_eq!(swap(&a, None, &content(1, 15)).await, other(&second));
    assert_eq!(read(&a).await, Some(second.clone()));

    // A change keeps the instance and raises seq.
    for senseless in [content(2, 16), content(1, 17)] {
        let why = unreachable(a.swap(Some((7, 2)), senseless).await);
        assert!(why.contains("raises seq"), "{why}");
    }
    let foreign = Content {
        instance: 8,
        ..content(3, 18)
    };
    unreachable(a.swap(Some((7, 2)), foreign).await);
    assert_eq!(read(&a).await, Some(second.clone()));

    // A request that is late, after the register went on, changes nothing and is not told that it did.
    let third = content(3, 19);
    assert_eq!(swap(&a, Some((7, 2)), &third).await, Swap::Done);
    assert_eq!(swap(&b, Some((7, 1)), &second).await, other(&third));

    // Of two who ask at once, one wins, and the other is told who.
    for seq in 3..20 {
        let (mine, theirs) = (content(seq + 1, 100 + seq), content(seq + 1, 200 + seq));
        let (left, right) = tokio::join!(
            swap(&a, Some((7, seq)), &mine),
            swap(&b, Some((7, seq)), &theirs),
        );
        let won = match (left, right) {
            (Swap::Done, told) => {
                assert_eq!(told, other(&mine));
                mine
            }
            (told, Swap::Done) => {
                assert_eq!(told, other(&theirs));
                theirs
            }
            both => panic!("nobody won: {both:?}"),
        };
        assert_eq!(read(&a).await, Some(won));
    }

    // Registers are apart, and as large as they may be.
    let (large, id) = (place.asker(0, RegisterId(5)), RegisterId(5));
    assert_eq!(read(&large).await, None);
    let full = Content {
        bytes: vec![0xa5; 4096],
        ..content(1, 30)
    };
    assert_eq!(swap(&large, None, &full).await, Swap::Done);
    assert_eq!(read(&place.asker(1, id)).await, Some(full));

    // What was answered is there after the arbiter's death; while it is away, it is said to be.
    let last = read(&a).await.expect("a register");
    place.stop().await;
    let begun = Instant::now();
    let why = unreachable(a.read().await);
    assert!(begun.elapsed() < TIMEOUT + Duration::from_secs(10), "{why}");
    unreachable(b.swap(Some((7, 20)), content(21, 40)).await);
    place.start().await;
    assert_eq!(read(&a).await, Some(last.clone()));
    assert_eq!(read(&b).await, Some(last.clone()));

    // A damaged register is named, not overwritten, and no empty one.
    place.damage(PG).await;
    let kept = place.kept(PG).await;
    let why = unreachable(a.read().await);
    assert!(
        why.contains("checksum") && why.contains(&PG.to_string()),
        "{why}"
    );
    let why = unreachable(b.swap(Some((7, 20)), content(21, 41)).await);
    assert!(why.contains("checksum"), "{why}");
    unreachable(b.swap(None, content(1, 42)).await);
    assert_eq!(place.kept(PG).await, kept);
    // Nor does it keep others from theirs.
    assert!(read(&large).await.is_some());
    // A mirror is told the same, and told no register.
    let mirror = MirrorRegister::new(Rc::clone(&a));
    match mirror.ask(Ask::Read).await {
        ArbiterAnswer::Unreachable(why) => assert!(why.contains("checksum"), "{why}"),
        other => panic!("{other:?}"),
    }
    place.stop().await;
}

/// Runs a test on one thread with a deadline.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let test = async {
        tokio::time::timeout(Duration::from_secs(120), test)
            .await
            .expect("in time");
    };
    LocalSet::new().block_on(&runtime, test);
}

struct AtWitness {
    nodes: [NodeKey; 2],
    own: NodeKey,
    folder: tempfile::TempDir,
    address: SocketAddr,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl AtWitness {
    async fn begin() -> Self {
        let key = || NodeKey::generate().expect("key");
        let mut witness = Self {
            nodes: [key(), key()],
            own: key(),
            folder: tempfile::tempdir().expect("tempdir"),
            address: ([127, 0, 0, 1], 0).into(),
            running: None,
        };
        witness.start().await;
        witness
    }

    fn file(&self, register: RegisterId) -> std::path::PathBuf {
        let registers = self.folder.path().join("registers");
        registers.join(register.to_string())
    }
}

impl Place for AtWitness {
    fn asker(&self, node: usize, register: RegisterId) -> Rc<dyn RawRegister> {
        let config = ClientConfig {
            name: "w1".to_owned(),
            addresses: vec![self.address],
            fingerprints: vec![self.own.fingerprint()],
            timeout: TIMEOUT,
        };
        let remote = witness::Remote::new(&self.nodes[node], config).expect("remote");
        let members = self.nodes.each_ref().map(NodeKey::fingerprint);
        witness::Client::new(remote, register, members.to_vec())
    }

    async fn damage(&self, register: RegisterId) {
        let mut bytes = self.kept(register).await;
        bytes[30] ^= 1;
        std::fs::write(self.file(register), bytes).expect("write");
    }

    async fn kept(&self, register: RegisterId) -> Vec<u8> {
        std::fs::read(self.file(register)).expect("read")
    }

    async fn stop(&mut self) {
        let (stop, task) = self.running.take().expect("running");
        stop.send(()).expect("running");
        task.await.expect("ended well");
    }

    async fn start(&mut self) {
        let config = ServerConfig {
            listen: vec![self.address],
            state: self.folder.path().to_owned(),
            clients: self.nodes.each_ref().map(NodeKey::fingerprint).to_vec(),
        };
        let server = Server::start(&self.own, config).expect("witness");
        self.address = server.addresses()[0];
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.serve(async { drop(stopped.await) }));
        self.running = Some((stop, task));
    }
}

struct InEtcd {
    server: Etcd,
    is_tls: bool,
}

fn config(endpoints: Vec<String>) -> EtcdConfig {
    EtcdConfig {
        name: "kv".to_owned(),
        endpoints,
        prefix: "/kagami".to_owned(),
        tls: None,
        login: None,
        timeout: TIMEOUT,
    }
}

fn register(config: EtcdConfig, register: RegisterId) -> Rc<dyn RawRegister> {
    etcd::Client::new(etcd::Remote::new(config), register)
}

impl InEtcd {
    fn config(&self) -> EtcdConfig {
        let tls = self.is_tls.then(|| EtcdTls {
            ca: self.server.ca(),
            identity: Some(self.server.identity()),
        });
        EtcdConfig {
            tls,
            ..config(vec![self.server.endpoint()])
        }
    }

    /// A client that is none of kagami's.
    async fn stranger(&self) -> etcd_client::Client {
        let options = self.is_tls.then(|| {
            let file = |path: std::path::PathBuf| std::fs::read(path).expect("a file");
            let (certificate, key) = self.server.identity();
            let tls = etcd_client::TlsOptions::new()
                .ca_certificate(etcd_client::Certificate::from_pem(file(self.server.ca())))
                .identity(etcd_client::Identity::from_pem(
                    file(certificate),
                    file(key),
                ));
            etcd_client::ConnectOptions::new().with_tls(tls)
        });
        etcd_client::Client::connect([self.server.endpoint()], options)
            .await
            .expect("etcd")
    }
}

fn key(register: RegisterId) -> String {
    format!("/kagami/{register}")
}

impl Place for InEtcd {
    fn asker(&self, _node: usize, id: RegisterId) -> Rc<dyn RawRegister> {
        register(self.config(), id)
    }

    async fn damage(&self, register: RegisterId) {
        let mut bytes = self.kept(register).await;
        bytes[30] ^= 1;
        let mut client = self.stranger().await;
        client.put(key(register), bytes, None).await.expect("put");
    }

    async fn kept(&self, register: RegisterId) -> Vec<u8> {
        let mut client = self.stranger().await;
        let answer = client.get(key(register), None).await.expect("get");
        answer.kvs().first().expect("a value").value().to_vec()
    }

    async fn stop(&mut self) {
        self.server.kill();
    }

    async fn start(&mut self) {
        self.server.again();
    }
}

#[test]
fn a_witness_keeps_the_contract() {
    run(async { contract(AtWitness::begin().await).await });
}

#[test]
fn an_etcd_keeps_the_contract() {
    run(contract(InEtcd {
        server: Etcd::start(),
        is_tls: false,
    }));
}

#[test]
fn an_etcd_with_certificates_keeps_the_contract() {
    run(contract(InEtcd {
        server: Etcd::start_with_certificates(),
        is_tls: true,
    }));
}

#[test]
fn an_etcd_that_hangs_is_unreachable_and_the_change_is_put_again() {
    run(async {
        let server = Etcd::start();
        let mut quick = config(vec![server.endpoint()]);
        quick.timeout = Duration::from_millis(600);
        let (a, b) = (
            register(quick, PG),
            register(config(vec![server.endpoint()]), PG),
        );
        assert_eq!(swap(&b, None, &content(1, 1)).await, Swap::Done);
        assert_eq!(read(&a).await, Some(content(1, 1)));
        server.pause();
        let begun = Instant::now();
        let why = unreachable(a.swap(Some((7, 1)), content(2, 2)).await);
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(
            why.contains("kv") && why.contains(&server.endpoint()) && why.contains("no answer"),
            "{why}"
        );
        server.resume();
        // Whether the first one took place after all or not: it is one change.
        assert_eq!(swap(&b, Some((7, 1)), &content(2, 2)).await, Swap::Done);
        assert_eq!(read(&b).await, Some(content(2, 2)));
    });
}

#[test]
fn a_question_that_is_dropped_leaves_no_task() {
    run(async {
        let server = Etcd::start();
        server.pause();
        let asker = register(config(vec![server.endpoint()]), PG);
        let before = tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks();
        let asked = tokio::time::timeout(Duration::from_millis(300), asker.read()).await;
        assert!(asked.is_err(), "a paused etcd answered: {asked:?}");
        drop(asker);
        let begun = Instant::now();
        while tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
            > before
        {
            assert!(begun.elapsed() < TIMEOUT, "a task is left");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server.resume();
    });
}

#[test]
fn the_endpoint_that_answers_is_used() {
    run(async {
        let mut server = Etcd::start();
        // One that takes connections and never speaks, one where nobody listens, and an etcd.
        let silent = TcpListener::bind("127.0.0.1:0").expect("bind");
        let gone = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("bind");
        let places = vec![
            format!("http://{}", silent.local_addr().expect("address")),
            format!("http://{gone}"),
            server.endpoint(),
        ];
        let asker = register(config(places.clone()), PG);
        assert_eq!(read(&asker).await, None);
        assert_eq!(swap(&asker, None, &content(1, 1)).await, Swap::Done);
        // It went and came back.
        server.kill();
        server.again();
        assert_eq!(read(&asker).await, Some(content(1, 1)));
        server.kill();
        let why = unreachable(asker.read().await);
        for place in places {
            assert!(why.contains(&place), "{place} is not named: {why}");
        }
    });
}

#[test]
fn who_may_not_is_told_why() {
    run(async {
        let place = InEtcd {
            server: Etcd::start_with_certificates(),
            is_tls: true,
        };
        // Without a certificate of its own; with another authority's server; with a file that is not there.
        let mut nobody = place.config();
        nobody.tls.as_mut().expect("tls").identity = None;
        unreachable(register(nobody, PG).read().await);
        let elsewhere = Etcd::start_with_certificates();
        let mut deceived = place.config();
        deceived.tls.as_mut().expect("tls").ca = elsewhere.ca();
        let why = unreachable(register(deceived, PG).read().await);
        assert!(why.to_lowercase().contains("certificate"), "{why}");
        let mut missing = place.config();
        missing.tls.as_mut().expect("tls").ca = "/nowhere/ca.pem".into();
        let why = unreachable(register(missing, PG).read().await);
        assert!(why.contains("/nowhere/ca.pem can't be read"), "{why}");
    });
}

#[test]
fn a_user_logs_in_and_another_gets_nowhere() {
    run(async {
        let place = InEtcd {
            server: Etcd::start(),
            is_tls: false,
        };
        let mut client = place.stranger().await;
        let rights = etcd_client::Permission::read_write("/kagami/").with_prefix();
        for (user, role) in [("root", "root"), ("alpha", "kagami"), ("other", "none")] {
            client.role_add(role).await.expect("role");
            client.user_add(user, "secret", None).await.expect("user");
            client.user_grant_role(user, role).await.expect("grant");
        }
        client
            .role_grant_permission("kagami", rights)
            .await
            .expect("rights");
        client.auth_enable().await.expect("auth");
        let password = place.server.path("password");
        std::fs::write(&password, "secret\n").expect("write");
        let of = |user: &str, password_file: &std::path::Path| {
            let login = EtcdLogin {
                user: user.to_owned(),
                password_file: password_file.to_owned(),
            };
            let config = EtcdConfig {
                login: Some(login),
                ..place.config()
            };
            register(config, PG)
        };
        let alpha = of("alpha", &password);
        assert_eq!(swap(&alpha, None, &content(1, 1)).await, Swap::Done);
        assert_eq!(read(&alpha).await, Some(content(1, 1)));
        let why = unreachable(of("other", &password).read().await);
        assert!(why.contains("permission denied"), "{why}");
        let why = unreachable(register(place.config(), PG).read().await);
        assert!(why.contains("user name is empty"), "{why}");
        let wrong = place.server.path("wrong");
        std::fs::write(&wrong, "guess\n").expect("write");
        let why = unreachable(of("alpha", &wrong).read().await);
        assert!(why.contains("authentication failed"), "{why}");
        // A restart forgets who was logged in: the login is made again.
        let mut place = place;
        place.stop().await;
        place.start().await;
        assert_eq!(read(&alpha).await, Some(content(1, 1)));
    });
}
