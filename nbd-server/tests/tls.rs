//! TLS: who gets in, who doesn't, and what either is told. libnbd with `GnuTLS` and qemu are the
//! clients, so the handshake is proved against another TLS library.

mod support;

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;

use kagami_nbd_server::proto::{cmd, opt, rep};
use kagami_nbd_server::{Clients, Export, Fingerprint, Limits, TlsFault, TlsPolicy, TlsServer};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};
use support::client::{Client, export_data, option_bytes, tcp_stream};
use support::{TestServer, fail, finish, pki, program, succeed};
use tempfile::TempDir;

struct Tls {
    pki: TempDir,
    server: TestServer,
}

fn start(
    clients: impl FnOnce(&Path, Fingerprint) -> Clients,
    policy: fn(TlsServer) -> TlsPolicy,
) -> Tls {
    let pki = tempfile::tempdir().expect("a directory");
    let client = pki::make(pki.path());
    let files = pki::files(pki.path(), clients(pki.path(), client));
    let tls = TlsServer::load(&files).expect("usable files");
    Tls {
        pki,
        server: TestServer::with(Limits::default(), policy(tls)),
    }
}

fn by_authority(dir: &Path, _: Fingerprint) -> Clients {
    Clients::SignedBy(dir.join("ca-cert.pem"))
}

impl Tls {
    /// nbdsh over TLS with the client certificate in `certificates`.
    fn nbdsh(&self, certificates: &Path, script: &str) -> Command {
        let connect = format!(
            "h.set_tls(nbd.TLS_REQUIRE); h.set_tls_certificates('{}'); h.set_export_name('disk'); \
             h.connect_tcp('localhost', '{}')",
            certificates.display(),
            self.server.tcp.port()
        );
        let mut command = program("nbdsh");
        command.args([
            "-c",
            "h.add_meta_context('base:allocation')",
            "-c",
            &connect,
            "-c",
            script,
        ]);
        command
    }
}

const WORK: &str = r"
assert h.get_tls_negotiated() and h.get_structured_replies_negotiated()
import os
data = os.urandom(3 << 20)
h.pwrite(data, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(3 << 20, 4096) == data
h.pwrite(os.urandom(32 << 20), 8 << 20)
for i in range(100):
    h.pwrite(bytes([i]) * 512, i * 512)
for i in range(100):
    assert h.pread(512, i * 512) == bytes([i]) * 512
bufs = [nbd.Buffer.from_bytearray(bytearray([i]) * 4096) for i in range(64)]
for i, b in enumerate(bufs):
    h.aio_pwrite(b, i * 4096)
while h.aio_in_flight() > 0:
    h.poll(-1)
assert h.pread(64 * 4096, 0) == b''.join(bytes(b.to_bytearray()) for b in bufs)
h.zero(64 << 20, 0)
h.block_status(1 << 20, 0, lambda *args: 0)
h.shutdown()
print('all done')
";

#[test]
fn clients_of_the_authority_get_in_and_strangers_do_not() {
    let tls = start(by_authority, TlsPolicy::Required);
    let output = succeed(&mut tls.nbdsh(tls.pki.path(), WORK));
    assert!(output.contains("all done"), "{output}");
    fail(&mut tls.nbdsh(&tls.pki.path().join("stranger"), WORK));
    assert_eq!(
        tls.server.run(|bench| bench.device("disk").openings.get()),
        0
    );
}

#[test]
fn pinned_clients_get_in_and_strangers_do_not() {
    let tls = start(
        |_, client| Clients::Pinned(vec![client]),
        TlsPolicy::Required,
    );
    let output = succeed(&mut tls.nbdsh(tls.pki.path(), WORK));
    assert!(output.contains("all done"), "{output}");
    fail(&mut tls.nbdsh(&tls.pki.path().join("stranger"), WORK));
}

#[test]
fn qemu_and_the_libnbd_programs_over_tls() {
    let tls = start(by_authority, TlsPolicy::Required);
    // qemu wants its own file names: the same, as it happens, in one directory.
    let dir = tls.pki.path().display().to_string();
    let port = tls.server.tcp.port();
    let image = tls.pki.path().join("image");
    let bytes: Vec<u8> = (0..16_u32 << 18)
        .flat_map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes())
        .collect();
    std::fs::File::create(&image)
        .and_then(|mut f| f.write_all(&bytes))
        .expect("written");
    let image = image.display().to_string();
    let credentials = format!("tls-creds-x509,id=tls0,endpoint=client,dir={dir}");
    let target = format!(
        "driver=nbd,server.type=inet,server.host=localhost,server.port={port},export=disk,tls-creds=tls0"
    );
    let raw = format!(
        "driver=raw,size={},file.{}",
        16 << 20,
        target.replace(',', ",file.")
    );
    succeed(
        program("qemu-img")
            .args(["convert", "-n", "-f", "raw", "--object", &credentials])
            .args([&image, "--target-image-opts", &target]),
    );
    let source = format!("driver=file,filename={image}");
    succeed(program("qemu-img").args([
        "compare",
        "--object",
        &credentials,
        "--image-opts",
        &source,
        &raw,
    ]));
    let uri = format!("nbds://localhost:{port}/disk?tls-certificates={dir}");
    let info = succeed(program("nbdinfo").arg(&uri));
    assert!(info.contains("with TLS"), "{info}");
    let back = tls.pki.path().join("back");
    succeed(program("nbdcopy").args([&uri, &back.display().to_string()]));
    assert!(std::fs::read(&back).expect("read")[..bytes.len()] == bytes);
}

/// FORCEDTLS: everything but STARTTLS and ABORT is refused until TLS is there.
#[test]
fn required_means_required() {
    let tls = start(by_authority, TlsPolicy::Required);
    let mut client = Client::greeted(&tls.server.path);
    for (option, data) in [
        (opt::LIST, vec![]),
        (opt::INFO, export_data("disk", &[])),
        (opt::GO, export_data("disk", &[])),
        (opt::STRUCTURED_REPLY, vec![]),
        (99, vec![]),
        (opt::GO, vec![1; 100_000]),
        (opt::LIST, vec![1]),
    ] {
        assert_eq!(
            client.option(option, &data)[0].0,
            rep::ERR_TLS_REQD,
            "option {option}"
        );
    }
    assert_eq!(client.option(opt::STARTTLS, &[0])[0].0, rep::ERR_INVALID);
    client.expect_ack(opt::ABORT, &[]);
    client.expect_closed();
    let mut client = Client::greeted(&tls.server.path);
    client.send_option(opt::EXPORT_NAME, b"disk");
    client.expect_closed();
    // Somebody who says STARTTLS and then talks in clear, together with it or afterwards.
    let mut client = Client::greeted(&tls.server.path);
    client.send(
        &[
            option_bytes(opt::STARTTLS, &[]),
            option_bytes(opt::LIST, &[]),
        ]
        .concat(),
    );
    client.expect_closed();
    let mut client = Client::greeted(&tls.server.path);
    client.expect_ack(opt::STARTTLS, &[]);
    client.send_option(opt::GO, &export_data("disk", &[]));
    client.expect_closed();
}

/// SELECTIVETLS: in clear as well, but for the exports that are TLS only.
#[test]
fn optional_hides_what_is_tls_only() {
    let tls = start(by_authority, TlsPolicy::Optional);
    tls.server.run(|bench| {
        let device = Rc::clone(&bench.exports.get("disk").expect("disk").device);
        let mut secret = Export::new("secret", device);
        secret.tls_only = true;
        bench.exports.add(secret).expect("a new name");
        bench.exports.set_default(Some("disk"));
    });
    let mut client = Client::greeted(&tls.server.path);
    assert_eq!(
        client.option(opt::LIST, &[]),
        [
            (rep::SERVER, b"\0\0\0\x04disk".to_vec()),
            (rep::ACK, vec![])
        ]
    );
    for option in [opt::INFO, opt::GO] {
        let replies = client.option(option, &export_data("secret", &[]));
        assert_eq!(replies[0].0, rep::ERR_TLS_REQD);
    }
    let unknown = client.option(opt::GO, &export_data("nothing", &[]));
    assert!(!String::from_utf8_lossy(&unknown[0].1).contains("secret"));
    // The protocol forbids TLS_REQD for other options in this mode.
    client.expect_ack(opt::STRUCTURED_REPLY, &[]);
    let data = support::client::context_data("secret", &[]);
    assert_eq!(
        client.option(opt::LIST_META_CONTEXT, &data)[0].0,
        rep::ERR_UNKNOWN
    );
    client.go("disk");
    client.request(0, cmd::FLUSH, 1, 0, 0);
    assert_eq!(client.error(1), 0);
    let mut name = Client::greeted(&tls.server.path);
    name.send_option(opt::EXPORT_NAME, b"secret");
    name.expect_closed();

    let port = tls.server.tcp.port();
    let dir = tls.pki.path().display();
    let list = succeed(program("nbdinfo").args([
        "--list",
        &format!("nbds://localhost:{port}/?tls-certificates={dir}"),
    ]));
    assert!(list.contains("export=\"secret\""), "{list}");
    succeed(program("nbdinfo").arg(format!("nbd://localhost:{port}/disk")));
}

/// Goes through STARTTLS on TCP with a client of our own, TLS `version` alone.
fn encrypted(tls: &Tls, version: &'static SupportedProtocolVersion, in_clear: &[u32]) -> Client {
    let dir = tls.pki.path();
    let read = |name: &str| std::fs::read(dir.join(name)).expect("read");
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&read("ca-cert.pem")).expect("a CA"))
        .expect("added");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(&read("client-cert.pem")).expect("a certificate")],
            PrivateKeyDer::from_pem_slice(&read("client-key.pem")).expect("a key"),
        )
        .expect("a pair");
    let stream = tcp_stream(tls.server.tcp);
    let mut client = Client {
        stream: Box::new(stream.try_clone().expect("a copy")),
    };
    client.greet(3);
    for &option in in_clear {
        client.expect_ack(option, &[]);
    }
    client.expect_ack(opt::STARTTLS, &[]);
    let name = "localhost".try_into().expect("a name");
    let session = ClientConnection::new(Arc::new(config), name).expect("a session");
    Client {
        stream: Box::new(StreamOwned::new(session, stream)),
    }
}

/// What was agreed on in clear is forgotten when TLS starts, which it does once.
#[test]
fn tls_starts_afresh_and_once() {
    let tls = start(by_authority, TlsPolicy::Optional);
    for version in [&TLS12, &TLS13] {
        let mut client = encrypted(&tls, version, &[opt::STRUCTURED_REPLY]);
        let contexts = support::client::context_data("disk", &["base:allocation"]);
        assert_eq!(
            client.option(opt::SET_META_CONTEXT, &contexts)[0].0,
            rep::ERR_INVALID
        );
        assert_eq!(client.option(opt::STARTTLS, &[])[0].0, rep::ERR_INVALID);
        client.go("disk");
        client.request(0, cmd::READ, 1, 0, 1 << 20);
        assert_eq!(client.error(1), 0, "a simple reply");
        assert!(client.take(1 << 20) == vec![0; 1 << 20]);
        // Goodbye comes with TLS's own: a cut-off would be an error.
        client.request(0, cmd::DISC, 2, 0, 0);
        assert_eq!(client.stream.read(&mut [0]).expect("a clean end"), 0);
    }
}

#[test]
fn unusable_files_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path();
    pki::make(path);
    let good = pki::files(path, Clients::Anybody);
    let load = |change: &dyn Fn(&mut kagami_nbd_server::TlsFiles)| {
        let mut files = good.clone();
        change(&mut files);
        TlsServer::load(&files)
            .map(|_| ())
            .expect_err("unusable")
            .to_string()
    };
    let junk = path.join("junk.pem");
    std::fs::write(&junk, "nothing here\n").expect("written");
    let broken = path.join("broken.pem");
    let text = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
    std::fs::write(&broken, text).expect("written");
    let absent = path.join("absent.pem");
    assert!(load(&|f| f.certificate.clone_from(&absent)).contains("absent.pem: No such file"));
    assert!(load(&|f| f.certificate.clone_from(&junk)).contains("junk.pem: no certificate"));
    assert!(
        load(&|f| f.certificate.clone_from(&broken)).contains("broken.pem: not readable as PEM")
    );
    assert!(load(&|f| f.key.clone_from(&junk)).contains("junk.pem: no private key"));
    assert!(load(&|f| f.key = path.join("client-key.pem")).contains("client-key.pem"));
    assert!(load(&|f| f.clients = Clients::SignedBy(junk.clone())).contains("junk.pem"));
    let nobody = |f: &mut kagami_nbd_server::TlsFiles| f.clients = Clients::Pinned(vec![]);
    assert!(load(&nobody).contains("nobody could connect"));
    assert!(TlsServer::load(&good).is_ok());
    let no_dir = pki::files(&absent, Clients::Anybody);
    assert!(matches!(
        TlsServer::load(&no_dir).map(|_| ()),
        Err(TlsFault::File { .. })
    ));

    let pin: Fingerprint = format!("sha256:{}", "0a".repeat(32))
        .parse()
        .expect("a fingerprint");
    assert_eq!(pin.to_string().parse::<Fingerprint>().expect("again"), pin);
    assert_eq!(
        "0A:"
            .repeat(32)
            .trim_end_matches(':')
            .parse::<Fingerprint>(),
        Ok(pin)
    );
    for wrong in [
        "",
        "sha256:",
        "sha256:zz",
        "sha1:0a",
        &"0g".repeat(32),
        &"é".repeat(32),
    ] {
        assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
    }
}

/// A client without certificate, where one is demanded.
#[test]
fn no_certificate_no_entry() {
    let tls = start(by_authority, TlsPolicy::Required);
    let empty = tls.pki.path().join("empty");
    std::fs::create_dir(&empty).expect("a directory");
    std::fs::copy(
        tls.pki.path().join("ca-cert.pem"),
        empty.join("ca-cert.pem"),
    )
    .expect("a copy");
    let output = finish(&mut tls.nbdsh(&empty, WORK));
    assert!(!output.status.success());
    // And where none is demanded.
    let tls = start(|_, _| Clients::Anybody, TlsPolicy::Required);
    let empty = tls.pki.path().join("empty");
    std::fs::create_dir(&empty).expect("a directory");
    std::fs::copy(
        tls.pki.path().join("ca-cert.pem"),
        empty.join("ca-cert.pem"),
    )
    .expect("a copy");
    let output = succeed(&mut tls.nbdsh(&empty, WORK));
    assert!(output.contains("all done"), "{output}");
}
