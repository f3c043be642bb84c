//! What those who never get past the handshake leave in the log. A file of its own: the log is the process's.

mod support;

use std::io::Write as _;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use kagami_nbd_server::{Limits, TlsPolicy};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use support::TestServer;
use support::client::{Client, tcp_stream, unix_stream};

static WARNINGS: AtomicUsize = AtomicUsize::new(0);

/// Counts the server's warnings.
struct Warnings;

impl<S: tracing::Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let of = event.metadata();
        if *of.level() == tracing::Level::WARN && of.target().contains("nbd_server") {
            WARNINGS.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// How many warnings there are of what `job` does to a server that takes `max` connections.
fn warnings_of(max: usize, job: impl FnOnce(&TestServer)) -> usize {
    static HEARD: Once = Once::new();
    HEARD.call_once(|| tracing_subscriber::registry().with(Warnings).init());
    let limits = Limits {
        max_connections: max,
        ..Limits::default()
    };
    let server = TestServer::with(limits, TlsPolicy::Off);
    let before = WARNINGS.load(Ordering::SeqCst);
    job(&server);
    WARNINGS.load(Ordering::SeqCst) - before
}

fn all_gone(server: &TestServer) {
    server.wait_for("their ends", |bench| bench.server.sessions().is_empty());
}

/// One test: the counter is of the process.
#[test]
fn strangers_do_not_fill_the_log() {
    let of_strangers = warnings_of(1000, |server| {
        for _ in 0..20 {
            let mut stream = tcp_stream(server.tcp);
            // Client flags that were not offered.
            stream.write_all(&[0xff; 4]).expect("sent");
            let mut client = Client {
                stream: Box::new(stream),
            };
            client.take(18);
            client.expect_closed();
        }
        all_gone(server);
    });
    assert!(
        (1..=6).contains(&of_strangers),
        "told {of_strangers} times of one address"
    );

    // Nor where there is no place: each is turned away before it says a word.
    let of_turned_away = warnings_of(0, |server| {
        for _ in 0..20 {
            let mut client = Client {
                stream: Box::new(tcp_stream(server.tcp)),
            };
            client.expect_closed();
        }
    });
    assert!(
        (1..=6).contains(&of_turned_away),
        "told {of_turned_away} times"
    );

    // Whoever is let in by a file's permissions, or has chosen an export, is no stranger.
    let of_users = warnings_of(1000, |server| {
        for _ in 0..20 {
            let mut stream = unix_stream(&server.path);
            stream.write_all(&[0xff; 4]).expect("sent");
            let mut client = Client {
                stream: Box::new(stream),
            };
            client.take(18);
            client.expect_closed();
        }
        for _ in 0..20 {
            let mut client = Client {
                stream: Box::new(tcp_stream(server.tcp)),
            };
            client.greet(3);
            client.go("disk");
            client.stream.write_all(&[0xff; 28]).expect("sent");
            client.expect_closed();
        }
        all_gone(server);
    });
    assert_eq!(of_users, 40);
}
