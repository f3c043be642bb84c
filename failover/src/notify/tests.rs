//! Servers on loopback that take what is sent, refuse it, or say nothing.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_rustls::TlsAcceptor;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn cluster(more: &str) -> Arc<Cluster> {
    let text = format!(
        r#"
[cluster]
name = "shop"
revision = 1
nodes = ["alpha", "beta"]
[arbiter]
kind = "witness"
name = "gamma"
[heartbeat.lan]
type = "lan"
priority = 1
addresses = {{ alpha = "10.0.0.1:7791", beta = "10.0.0.2:7791" }}
[group.pg]
nodes = ["alpha", "beta"]
[group.pg.resource.server]
type = "exec"
start = "/bin/true"
{more}
"#
    );
    Arc::new(Cluster::parse("cluster.toml".as_ref(), &text).expect("a good file"))
}

fn alert(severity: Severity, name: &str, what: &str) -> AlertReport {
    AlertReport {
        time_ms: 1_763_726_400_000,
        node: "alpha".to_owned(),
        severity,
        kind: "group".to_owned(),
        name: name.to_owned(),
        what: what.to_owned(),
        cause: String::new(),
    }
}

/// A server's certificate for localhost, and who trusts it.
fn certificate() -> (TlsAcceptor, Trust) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let trust = Trust {
        more: vec![certificate],
    };
    (TlsAcceptor::from(Arc::new(config)), trust)
}

type Bodies = Arc<Mutex<Vec<String>>>;

/// Reads a request and answers it with the next of these statuses; the last one for ever.
async fn http(mut stream: impl AsyncRead + AsyncWrite + Unpin, status: u16, bodies: &Bodies) {
    let mut reader = BufReader::new(&mut stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).await.unwrap();
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await.unwrap();
    bodies
        .lock()
        .unwrap()
        .push(String::from_utf8(body).unwrap());
    stream
        .write_all(format!("HTTP/1.1 {status} So\r\n\r\n").as_bytes())
        .await
        .unwrap();
    // Who has its answer may have gone.
    let _ = stream.shutdown().await;
}

/// A web server: its port, and what was posted.
async fn web(statuses: &'static [u16], tls: Option<TlsAcceptor>) -> (u16, Bodies) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let bodies = Bodies::default();
    let kept = Arc::clone(&bodies);
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            let status = statuses[number.min(statuses.len() - 1)];
            match &tls {
                None => http(stream, status, &kept).await,
                Some(tls) => http(tls.accept(stream).await.unwrap(), status, &kept).await,
            }
        }
    });
    (port, bodies)
}

async fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let look = async {
        loop {
            if let Some(found) = found() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look)
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

fn bodies_of(bodies: &Bodies, count: usize) -> Option<Vec<String>> {
    let bodies = bodies.lock().unwrap();
    (bodies.len() >= count).then(|| bodies.clone())
}

#[tokio::test]
async fn a_webhook_gets_what_it_wants_and_is_tried_again() {
    let (port, bodies) = web(&[503, 200], None).await;
    let cluster = cluster(&format!(
        "[webhook.chat]\nurl = \"http://127.0.0.1:{port}/x\"\nseverity = \"warning\"\nobjects = [\"pg\"]"
    ));
    let (tell, alerts) = broadcast::channel(16);
    let task = tokio::spawn(run(cluster, alerts, Trust::default()));
    tell.send(alert(Severity::Info, "pg", "is to move"))
        .unwrap();
    tell.send(alert(Severity::Error, "web", "lost")).unwrap();
    tell.send(alert(Severity::Error, "pg", "could not be activated"))
        .unwrap();
    let said = wait_for("posted twice", || bodies_of(&bodies, 2)).await;
    assert_eq!(said[0], said[1], "the same again");
    let said: serde_json::Value = serde_json::from_str(&said[1]).unwrap();
    assert_eq!(
        (said["schema"].as_u64(), said["severity"].as_str()),
        (Some(1), Some("error"))
    );
    assert_eq!(
        said["text"],
        "[shop] error alpha: group pg: could not be activated"
    );
    drop(tell);
    tokio::time::timeout(PATIENCE, task)
        .await
        .expect("it ends with the alerts")
        .unwrap();
    assert_eq!(bodies.lock().unwrap().len(), 2, "nothing else was wanted");
}

#[tokio::test]
async fn what_is_refused_for_good_is_not_repeated_and_is_counted() {
    let (port, bodies) = web(&[404, 200], None).await;
    let cluster = cluster(&format!(
        "[webhook.chat]\nurl = \"http://127.0.0.1:{port}/x\""
    ));
    let (tell, alerts) = broadcast::channel(16);
    let task = tokio::spawn(run(cluster, alerts, Trust::default()));
    tell.send(alert(Severity::Error, "pg", "one")).unwrap();
    tell.send(alert(Severity::Error, "pg", "two")).unwrap();
    drop(tell);
    tokio::time::timeout(PATIENCE, task)
        .await
        .expect("it ends")
        .unwrap();
    let said = bodies.lock().unwrap().clone();
    assert_eq!(said.len(), 2);
    assert!(
        said[1].contains("\"what\":\"two\"") && said[1].contains("\"lost\":1"),
        "{}",
        said[1]
    );
}

#[tokio::test]
async fn a_webhook_by_tls_trusts_who_is_vouched_for_and_nobody_else() {
    let (acceptor, trust) = certificate();
    let (port, bodies) = web(&[200], Some(acceptor)).await;
    let cluster = cluster(&format!(
        "[webhook.chat]\nurl = \"https://localhost:{port}/x\"\nretries = 0"
    ));
    let config = &cluster.webhooks["chat"];
    let alerts = [alert(Severity::Error, "pg", "one")];
    let known = webhook::Webhook::new("shop", "chat", config, &trust).unwrap();
    known.send(&alerts, 0).await.unwrap();
    assert_eq!(bodies.lock().unwrap().len(), 1);
    let (acceptor, _) = certificate();
    let (port, bodies) = web(&[200], Some(acceptor)).await;
    let mut config = config.clone();
    config.url = format!("https://localhost:{port}/x");
    let stranger = webhook::Webhook::new("shop", "chat", &config, &trust).unwrap();
    assert!(stranger.send(&alerts, 0).await.is_err());
    assert!(
        bodies.lock().unwrap().is_empty(),
        "a stranger learns nothing"
    );
}

/// How a mail server behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Post {
    /// TLS from the start.
    Tls,
    /// STARTTLS is offered.
    Starttls,
    /// It is not.
    Clear,
}

/// Speaks SMTP until the other side says good-bye or wants TLS; true: the latter.
async fn smtp(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    offer: bool,
    mails: &Bodies,
    greet: bool,
) -> bool {
    let mut stream = BufReader::new(stream);
    if greet {
        stream.write_all(b"220 here\r\n").await.unwrap();
    }
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return false;
        }
        let verb = line.trim().to_ascii_uppercase();
        let said: &[u8] = match verb.split_whitespace().next().unwrap_or_default() {
            "EHLO" if offer => b"250-here\r\n250 STARTTLS\r\n",
            "EHLO" => b"250 here\r\n",
            "STARTTLS" if offer => {
                stream.write_all(b"220 go\r\n").await.unwrap();
                return true;
            }
            "DATA" => {
                stream.write_all(b"354 go\r\n").await.unwrap();
                let mut mail = String::new();
                while !mail.ends_with("\r\n.\r\n") {
                    assert_ne!(stream.read_line(&mut mail).await.unwrap(), 0, "it hung up");
                }
                mails.lock().unwrap().push(mail);
                b"250 taken\r\n"
            }
            "QUIT" => {
                // It may not wait for the answer.
                let _ = stream.write_all(b"221 bye\r\n").await;
                return false;
            }
            "MAIL" | "RCPT" | "RSET" | "NOOP" => b"250 well\r\n",
            _ => b"502 what?\r\n",
        };
        if stream.write_all(said).await.is_err() {
            return false;
        }
    }
}

async fn post_office(post: Post, tls: TlsAcceptor) -> (u16, Bodies) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mails = Bodies::default();
    let kept = Arc::clone(&mails);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (kept, tls) = (Arc::clone(&kept), tls.clone());
            tokio::spawn(async move {
                if post == Post::Tls {
                    if let Ok(mut stream) = tls.accept(stream).await {
                        smtp(&mut stream, false, &kept, true).await;
                    }
                } else if smtp(&mut stream, post == Post::Starttls, &kept, true).await
                    && let Ok(mut stream) = tls.accept(stream).await
                {
                    smtp(&mut stream, false, &kept, false).await;
                }
            });
        }
    });
    (port, mails)
}

fn mail_to(port: u16, tls: &str) -> Arc<Cluster> {
    cluster(&format!(
        "[mail.ops]\nserver = \"localhost:{port}\"\ntls = \"{tls}\"\nfrom = \"kagami@example.org\"\nto = [\"ops@example.org\"]"
    ))
}

#[tokio::test]
async fn mail_goes_out_by_tls_and_not_without() {
    for (post, tls) in [(Post::Tls, "always"), (Post::Starttls, "starttls")] {
        let (acceptor, trust) = certificate();
        let (port, mails) = post_office(post, acceptor).await;
        let cluster = mail_to(port, tls);
        let mailer = mail::Mailer::new("shop", "ops", &cluster.mail["ops"], &trust).unwrap();
        let alerts = [
            alert(Severity::Warning, "pg", "is to fail over"),
            alert(Severity::Error, "pg", "could not be\nactivated"),
        ];
        mailer.send(&alerts, 3).await.unwrap();
        let mail = mails.lock().unwrap()[0].clone();
        for words in [
            "Subject: [shop] error: group pg: could not be activated (+1)",
            "To: ops@example.org",
            "2025-11-21 12:00:00 UTC  alpha  warning  group pg: is to fail over",
            "3 earlier alerts were not sent",
        ] {
            assert!(mail.contains(words), "{words}: {mail}");
        }
        // Nobody vouches for it.
        let stranger =
            mail::Mailer::new("shop", "ops", &cluster.mail["ops"], &Trust::default()).unwrap();
        assert!(stranger.send(&alerts, 0).await.is_err());
        assert_eq!(mails.lock().unwrap().len(), 1);
    }
    let (acceptor, trust) = certificate();
    let (port, mails) = post_office(Post::Clear, acceptor).await;
    let cluster = mail_to(port, "starttls");
    let mailer = mail::Mailer::new("shop", "ops", &cluster.mail["ops"], &trust).unwrap();
    assert!(
        mailer
            .send(&[alert(Severity::Error, "pg", "x")], 0)
            .await
            .is_err()
    );
    assert!(mails.lock().unwrap().is_empty(), "nothing is said in clear");
}

#[tokio::test]
async fn who_says_nothing_holds_up_nobody_else() {
    // It takes connections, and that is all.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let (port, bodies) = web(&[200], None).await;
    let cluster = cluster(&format!(
        "[webhook.silent]\nurl = \"http://127.0.0.1:{silent_port}/\"\n[webhook.chat]\nurl = \"http://127.0.0.1:{port}/\""
    ));
    let (tell, alerts) = broadcast::channel(16);
    let task = tokio::spawn(run(cluster, alerts, Trust::default()));
    for number in 0..3 {
        tell.send(alert(Severity::Error, "pg", &number.to_string()))
            .unwrap();
    }
    let said = wait_for("all are posted", || bodies_of(&bodies, 3)).await;
    assert!(said[2].contains("\"what\":\"2\""), "in their order");
    task.abort();
}

#[test]
fn waits_grow_and_end() {
    let (first, most) = (Duration::from_secs(1), Duration::from_secs(60));
    let waits: Vec<u64> = (1..9)
        .map(|number| back_off(number, first, most).as_secs())
        .collect();
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(back_off(u32::MAX, first, most), most);
}
