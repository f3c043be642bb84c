//! A witness and its askers over loopback: the arbiter as a mirror uses it.

use std::cell::Cell;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Once};
use std::time::Duration;

use kagami_replicator::core::register::{ArbiterAnswer, Ask, Register};
use kagami_replicator::core::state::{Attempt, NodeId};
use kagami_replicator::shell::arbiter::{Arbiter, MirrorRegister, NoArbiter};
use kagami_replicator::shell::identity::{Fingerprint, NodeKey};
use kagami_replicator::shell::pairing::{Purpose, Token};
use kagami_replicator::shell::tls::{Admit, Pins, quic_client};
use kagami_replicator::shell::witness::enrol::{self, EnrolOffer};
use kagami_replicator::shell::witness::{
    Client, ClientConfig, PROTOCOLS, RegisterId, Remote, Server, ServerConfig,
};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

const PG: RegisterId = RegisterId(0x7067);
const TIMEOUT: Duration = Duration::from_secs(5);

/// A mirror's two nodes, a stranger, and the witness's own key.
struct World {
    alpha: NodeKey,
    beta: NodeKey,
    stranger: NodeKey,
    witness: NodeKey,
    folder: tempfile::TempDir,
}

struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl World {
    fn new() -> Self {
        let key = || NodeKey::generate().expect("key");
        let folder = tempfile::tempdir().expect("tempdir");
        Self {
            alpha: key(),
            beta: key(),
            stranger: key(),
            witness: key(),
            folder,
        }
    }

    fn state(&self) -> &Path {
        self.folder.path()
    }

    fn start(&self, listen: SocketAddr) -> Running {
        let clients = vec![self.alpha.fingerprint(), self.beta.fingerprint()];
        let config = ServerConfig {
            listen: vec![listen],
            state: self.state().to_owned(),
            clients,
        };
        let server = Server::start(&self.witness, config).expect("witness");
        let address = server.addresses()[0];
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.serve(async { drop(stopped.await) }));
        Running {
            address,
            stop,
            task,
        }
    }

    fn remote(key: &NodeKey, addresses: Vec<SocketAddr>, pin: Fingerprint) -> Rc<Remote> {
        let config = ClientConfig {
            name: "w1".to_owned(),
            addresses,
            fingerprints: vec![pin],
            timeout: TIMEOUT,
        };
        Remote::new(key, config).expect("remote")
    }

    fn asker(&self, key: &NodeKey, address: SocketAddr) -> Rc<MirrorRegister> {
        let remote = Self::remote(key, vec![address], self.witness.fingerprint());
        MirrorRegister::new(Client::new(
            remote,
            PG,
            vec![self.alpha.fingerprint(), self.beta.fingerprint()],
        ))
    }
}

impl Running {
    async fn stop(self) -> SocketAddr {
        self.stop.send(()).expect("running");
        self.task.await.expect("witness ended well");
        self.address
    }
}

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

thread_local! {
    /// What the witness has warned of on this thread.
    static WARNINGS: Cell<usize> = const { Cell::new(0) };
}

/// Counts warnings. For the whole process, and before any test: a line of code that has been met without a
/// subscriber may stay unheard by one that is set while it is met.
struct Warnings;

impl<S: tracing::Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let of = event.metadata();
        if *of.level() == tracing::Level::WARN && of.target().contains("witness::server") {
            WARNINGS.set(WARNINGS.get() + 1);
        }
    }
}

/// Runs a test on one thread with a deadline.
fn run(test: impl Future<Output = ()>) {
    static HEARD: Once = Once::new();
    HEARD.call_once(|| tracing_subscriber::registry().with(Warnings).init());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let test = async {
        tokio::time::timeout(Duration::from_secs(60), test)
            .await
            .expect("in time")
    };
    LocalSet::new().block_on(&runtime, test);
}

fn register(seq: u64, copies: &[u64], nonce: u64) -> Register {
    Register {
        instance: 7,
        seq,
        copies: copies.iter().copied().map(NodeId).collect(),
        generation: 40 + seq,
        parent: 39 + seq,
        nonce: Attempt(nonce),
        forced: false,
    }
}

async fn swap(
    asker: &Rc<MirrorRegister>,
    expect: Option<(u64, u64)>,
    register: Register,
) -> ArbiterAnswer {
    Rc::clone(asker).ask(Ask::Swap { expect, register }).await
}

async fn read(asker: &Rc<MirrorRegister>) -> ArbiterAnswer {
    Rc::clone(asker).ask(Ask::Read).await
}

fn why(answer: ArbiterAnswer) -> String {
    match answer {
        ArbiterAnswer::Unreachable(why) => why,
        other => panic!("an answer: {other:?}"),
    }
}

#[test]
fn a_register_lives_through_create_swap_and_restart() {
    run(async {
        let world = World::new();
        let witness = world.start(loopback());
        let (a, b) = (
            world.asker(&world.alpha, witness.address),
            world.asker(&world.beta, witness.address),
        );
        assert_eq!(read(&a).await, ArbiterAnswer::Register(None));
        assert_eq!(
            swap(&a, None, register(1, &[1, 2], 10)).await,
            ArbiterAnswer::Swapped
        );
        assert_eq!(
            read(&b).await,
            ArbiterAnswer::Register(Some(register(1, &[1, 2], 10)))
        );
        assert_eq!(
            swap(&b, Some((7, 1)), register(2, &[2], 11)).await,
            ArbiterAnswer::Swapped
        );
        let refused = swap(&a, Some((7, 1)), register(2, &[1], 12)).await;
        assert_eq!(
            refused,
            ArbiterAnswer::Register(Some(register(2, &[2], 11)))
        );
        // The same askers go on with the witness's successor at the same place.
        let address = witness.stop().await;
        let witness = world.start(address);
        assert_eq!(
            read(&a).await,
            ArbiterAnswer::Register(Some(register(2, &[2], 11)))
        );
        assert_eq!(
            swap(&b, Some((7, 2)), register(3, &[1, 2], 13)).await,
            ArbiterAnswer::Swapped
        );
        witness.stop().await;
    });
}

#[test]
fn of_two_askers_one_wins() {
    run(async {
        let world = World::new();
        let witness = world.start(loopback());
        let (a, b) = (
            world.asker(&world.alpha, witness.address),
            world.asker(&world.beta, witness.address),
        );
        assert_eq!(
            swap(&a, None, register(1, &[1, 2], 1)).await,
            ArbiterAnswer::Swapped
        );
        for seq in 1..=25 {
            let (mine, theirs) = (
                register(seq + 1, &[1], 100 + seq),
                register(seq + 1, &[2], 200 + seq),
            );
            let (first, second) = tokio::join!(
                swap(&a, Some((7, seq)), mine.clone()),
                swap(&b, Some((7, seq)), theirs.clone()),
            );
            let held = match (&first, &second) {
                (ArbiterAnswer::Swapped, other) => {
                    assert_eq!(other, &ArbiterAnswer::Register(Some(mine.clone())));
                    mine
                }
                (other, ArbiterAnswer::Swapped) => {
                    assert_eq!(other, &ArbiterAnswer::Register(Some(theirs.clone())));
                    theirs
                }
                both => panic!("nobody won: {both:?}"),
            };
            assert_eq!(read(&a).await, ArbiterAnswer::Register(Some(held)));
        }
        witness.stop().await;
    });
}

#[test]
fn strangers_and_impostors_get_nowhere() {
    run(async {
        let world = World::new();
        let witness = world.start(loopback());
        let stranger = world.asker(&world.stranger, witness.address);
        let text = why(read(&stranger).await);
        assert!(
            text.contains("not enrolled")
                && text.contains(&world.stranger.fingerprint().to_string()),
            "{text}"
        );
        // Somebody else answers at the witness's address.
        let remote = World::remote(
            &world.alpha,
            vec![witness.address],
            world.stranger.fingerprint(),
        );
        let asker = MirrorRegister::new(Client::new(
            remote,
            PG,
            vec![world.alpha.fingerprint(), world.beta.fingerprint()],
        ));
        let text = why(read(&asker).await);
        assert!(text.contains("w1") && text.contains("not pinned"), "{text}");
        witness.stop().await;
    });
}

#[test]
fn strangers_do_not_fill_the_log() {
    run(async {
        let world = World::new();
        let witness = world.start(loopback());
        for _ in 0..20 {
            let stranger = NodeKey::generate().expect("key");
            let text = why(read(&world.asker(&stranger, witness.address)).await);
            assert!(text.contains("not enrolled"), "{text}");
        }
        witness.stop().await;
    });
    let told = WARNINGS.get();
    assert!((1..=6).contains(&told), "told {told} times");
}

/// One that is enrolled takes as many connections as it gets, and keeps them.
#[test]
fn one_key_does_not_take_all_places() {
    run(async {
        let world = World::new();
        let witness = world.start(loopback());
        let pins = Pins::new([world.witness.fingerprint()]);
        let protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
        let mut quic = quic_client(&world.alpha, Admit::Pinned(pins), protocols).expect("a client");
        let mut transport = quinn::TransportConfig::default();
        transport.keep_alive_interval(Some(Duration::from_secs(5)));
        quic.transport_config(Arc::new(transport));
        let endpoint = quinn::Endpoint::client(loopback()).expect("an endpoint");
        let mut held = Vec::new();
        for _ in 0..512 {
            let connecting = endpoint.connect_with(quic.clone(), witness.address, "kagami");
            held.push(connecting.expect("an address").await.expect("a place"));
        }
        let other = world.asker(&world.beta, witness.address);
        assert_eq!(read(&other).await, ArbiterAnswer::Register(None));
        // Its newest ones stay.
        let is_open = |one: &&quinn::Connection| one.close_reason().is_none();
        assert!(is_open(&&held[511]));
        let open = held.iter().filter(is_open).count();
        assert!((1..=128).contains(&open), "{open}");
        drop(held);
        witness.stop().await;
    });
}

#[test]
fn a_damaged_register_is_said_to_be_damaged() {
    run(async {
        let world = World::new();
        let witness = world.start(loopback());
        let a = world.asker(&world.alpha, witness.address);
        assert_eq!(
            swap(&a, None, register(1, &[1, 2], 1)).await,
            ArbiterAnswer::Swapped
        );
        let file = world.state().join("registers").join(PG.to_string());
        let mut bytes = std::fs::read(&file).expect("read");
        bytes[30] ^= 1;
        std::fs::write(&file, &bytes).expect("write");
        let text = why(read(&a).await);
        assert!(
            text.contains("checksum") && text.contains(&PG.to_string()),
            "{text}"
        );
        witness.stop().await;
    });
}

#[test]
fn the_address_that_answers_is_used() {
    run(async {
        let world = World::new();
        let witness = world.start(loopback());
        // One that never answers, one where nobody listens, and the witness.
        let silent = UdpSocket::bind(loopback()).expect("bind");
        let gone = UdpSocket::bind(loopback())
            .expect("bind")
            .local_addr()
            .expect("address");
        let addresses = vec![silent.local_addr().expect("address"), gone, witness.address];
        let remote = World::remote(&world.alpha, addresses, world.witness.fingerprint());
        let asker = MirrorRegister::new(Client::new(
            remote,
            PG,
            vec![world.alpha.fingerprint(), world.beta.fingerprint()],
        ));
        assert_eq!(read(&asker).await, ArbiterAnswer::Register(None));
        witness.stop().await;
    });
}

#[test]
fn silence_is_told_within_the_time_out() {
    run(async {
        let world = World::new();
        let silent = UdpSocket::bind(loopback()).expect("bind");
        let address = silent.local_addr().expect("address");
        let config = ClientConfig {
            name: "w1".to_owned(),
            addresses: vec![address],
            fingerprints: vec![world.witness.fingerprint()],
            timeout: Duration::from_millis(200),
        };
        let remote = Remote::new(&world.alpha, config).expect("remote");
        let asker = MirrorRegister::new(Client::new(remote, PG, vec![]));
        let begun = std::time::Instant::now();
        let text = why(read(&asker).await);
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert!(
            text.contains(&address.to_string()) && text.contains("no answer"),
            "{text}"
        );
        let none: Rc<dyn Arbiter> = Rc::new(NoArbiter);
        assert_eq!(why(none.ask(Ask::Read).await), "no arbiter is configured");
    });
}

#[test]
fn a_node_is_enrolled_by_one_line_while_the_witness_runs() {
    run(async {
        let world = World::new();
        let witness = world.start(loopback());
        let told = [witness.address];
        let offer = EnrolOffer::open(
            &world.witness,
            world.state(),
            "w1",
            &told,
            vec![loopback()],
            Vec::new(),
            Duration::from_secs(60),
        )
        .expect("offer");
        let token: Token = offer.token().to_string().parse().expect("token");
        let token = token.require(Purpose::Witness).expect("purpose");
        let (kept, joined) =
            tokio::join!(offer.wait(), enrol::join(&world.stranger, &token, "gamma"));
        assert_eq!(
            kept.expect("kept"),
            (world.stranger.fingerprint(), "gamma".to_owned())
        );
        let joined = joined.expect("joined");
        assert_eq!(
            (joined.name.as_str(), joined.addresses.as_slice()),
            ("w1", told.as_slice())
        );
        assert_eq!(joined.fingerprint, world.witness.fingerprint());
        // It may ask now, and create a register with another that is enrolled.
        let members = vec![world.stranger.fingerprint(), world.alpha.fingerprint()];
        let remote = World::remote(&world.stranger, joined.addresses, joined.fingerprint);
        let asker = MirrorRegister::new(Client::new(remote, RegisterId(3), members));
        assert_eq!(
            swap(&asker, None, register(1, &[1, 3], 1)).await,
            ArbiterAnswer::Swapped
        );
        witness.stop().await;
    });
}
