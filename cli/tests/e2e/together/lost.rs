//! What gets lost on the way: everything between two nodes, or one mirror's changes between a node and etcd.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How often a thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);

/// The way between two nodes, until it is cut. What it keeps ends with it.
pub struct Link {
    to: [SocketAddr; 2],
    state: Arc<LinkState>,
}

#[derive(Default)]
struct LinkState {
    is_cut: AtomicBool,
    ends: AtomicBool,
}

impl Link {
    /// Between two nodes that listen there.
    pub fn new(nodes: [SocketAddr; 2]) -> Self {
        let state = Arc::new(LinkState::default());
        let to = nodes.map(|node| relay(node, &state));
        Self { to, state }
    }

    /// Where the one node reaches the other, whose place in `nodes` this is.
    pub fn to(&self, node: usize) -> SocketAddr {
        self.to[node]
    }

    pub fn cut(&self) {
        self.state.is_cut.store(true, Ordering::SeqCst);
    }

    pub fn mend(&self) {
        self.state.is_cut.store(false, Ordering::SeqCst);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.state.ends.store(true, Ordering::SeqCst);
    }
}

/// Carries packets to `node`, and its answers back to whoever sent last. Its own address.
fn relay(node: SocketAddr, state: &Arc<LinkState>) -> SocketAddr {
    let socket = || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(LOOK)).expect("a time-out");
        Arc::new(socket)
    };
    let (front, back) = (socket(), socket());
    back.connect(node).expect("the node");
    let asker = Arc::new(Mutex::new(None));
    let address = front.local_addr().expect("its address");
    for is_way_there in [true, false] {
        let (front, back) = (Arc::clone(&front), Arc::clone(&back));
        let (asker, state) = (Arc::clone(&asker), Arc::clone(state));
        thread::spawn(move || {
            let mut packet = vec![0; 65_536];
            while !state.ends.load(Ordering::SeqCst) {
                let from = if is_way_there { &front } else { &back };
                // Nothing came, or nobody listens there now.
                let Ok((len, sender)) = from.recv_from(&mut packet) else {
                    continue;
                };
                let mut asker = asker.lock().unwrap_or_else(PoisonError::into_inner);
                if is_way_there {
                    *asker = Some(sender);
                }
                if state.is_cut.load(Ordering::SeqCst) {
                    continue;
                }
                // A packet that can't be sent is lost, as packets are.
                if is_way_there {
                    let _ = back.send(&packet[..len]);
                } else if let Some(asker) = *asker {
                    let _ = front.send_to(&packet[..len], asker);
                }
            }
        });
    }
    address
}

/// The way from one node to etcd, on which the changes of one register can be lost.
pub struct Questions {
    address: SocketAddr,
    state: Arc<QuestionsState>,
}

#[derive(Default)]
struct QuestionsState {
    /// The register, as etcd's key spells it.
    lose: Mutex<Option<String>>,
    lost: AtomicUsize,
    ends: AtomicBool,
}

impl Questions {
    /// To the etcd at `endpoint`, which is asked in clear text.
    pub fn new(endpoint: &str) -> Self {
        let etcd: SocketAddr = endpoint
            .trim_start_matches("http://")
            .parse()
            .expect("its address");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let state = Arc::new(QuestionsState::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming() {
                if shared.ends.load(Ordering::SeqCst) {
                    return;
                }
                // An etcd that is gone refuses, and so does this.
                if let (Ok(client), Ok(server)) = (client, TcpStream::connect(etcd)) {
                    carry(client, server, &shared);
                }
            }
        });
        Self { address, state }
    }

    /// As kagami.toml names it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on a change of this register ends the connection that it came on, before etcd has it.
    pub fn lose_changes_of(&self, register: &str) {
        *self.lose() = Some(register.to_owned());
    }

    pub fn lose_nothing(&self) {
        *self.lose() = None;
    }

    /// How many were lost.
    pub fn lost(&self) -> usize {
        self.state.lost.load(Ordering::SeqCst)
    }

    fn lose(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.state
            .lose
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Questions {
    fn drop(&mut self) {
        self.state.ends.store(true, Ordering::SeqCst);
        // The listener looks up.
        let _ = TcpStream::connect(self.address);
    }
}

fn carry(client: TcpStream, server: TcpStream, state: &Arc<QuestionsState>) {
    let copy = |stream: &TcpStream| stream.try_clone().expect("another handle");
    let (asks, answers) = ((copy(&client), copy(&server)), (server, client));
    let state = Arc::clone(state);
    thread::spawn(move || {
        let (mut from, mut to) = asks;
        // What was carried since the last question: a question may come in pieces.
        let mut seen = Vec::new();
        let mut bytes = vec![0; 65_536];
        while let Ok(len @ 1..) = from.read(&mut bytes) {
            let lose = state
                .lose
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            seen.extend_from_slice(&bytes[..len]);
            let is_there = |part: &[u8]| seen.windows(part.len()).any(|window| window == part);
            // Only a change has a register's own bytes beside its name: these begin so.
            if lose.is_some_and(|register| is_there(register.as_bytes()) && is_there(b"KGWR")) {
                state.lost.fetch_add(1, Ordering::SeqCst);
                break;
            }
            if to.write_all(&bytes[..len]).is_err() {
                break;
            }
            if len < bytes.len() {
                seen.clear();
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
    thread::spawn(move || {
        let (mut from, mut to) = answers;
        // Its end is the connection's.
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
}
