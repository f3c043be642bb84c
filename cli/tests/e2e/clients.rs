//! Real clients against a mirror that is in sync: what they write is on both disks.

use std::fs;
use std::path::Path;

use kagami::commands::demo::scratch::{MIRROR, free_port};
use kagami::control::report::Condition;

use crate::support::{
    KAGAMI, MIB, Pair, beside, down, finish, get, laid_out, noise, ok, pair, program, put, succeed,
    until, up, uri,
};

const WORK: &str = r"
import os
data = os.urandom(3 << 20)
h.pwrite(data, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(3 << 20, 4096) == data
for i in range(50):
    h.pwrite(bytes([i]) * 512, i * 512)
for i in range(50):
    assert h.pread(512, i * 512) == bytes([i]) * 512
h.trim(1 << 20, 8 << 20)
h.zero(1 << 20, 16 << 20)
assert h.pread(1 << 20, 16 << 20) == bytes(1 << 20)
h.flush()
h.shutdown()
print('all done')
";

#[test]
fn over_a_unix_socket() {
    let mut pair = pair("always", "64M");
    let at = uri(&pair.nodes.alpha);

    let info = succeed(program("nbdinfo").arg(&at));
    assert!(info.contains("67108864"), "{info}");
    assert!(succeed(program("nbdsh").args(["-u", &at, "-c", WORK])).contains("all done"));

    // A whole image in, and out again.
    let (image, out) = (
        beside(&pair.nodes.alpha, "image"),
        beside(&pair.nodes.alpha, "out"),
    );
    let bytes = noise(64 * MIB, 7);
    fs::write(&image, &bytes).expect("an image");
    succeed(program("nbdcopy").arg("--flush").arg(&image).arg(&at));
    succeed(program("nbdcopy").arg(&at).arg(&out));
    assert!(
        fs::read(&out).expect("the copy") == bytes,
        "nbdcopy read something else"
    );

    // qemu writes, and reads what others wrote.
    let qemu = format!(
        "driver=nbd,server.type=unix,server.path={},export={MIRROR}",
        socket(&pair)
    );
    let script = [
        "-c",
        "write -P 0xa5 1M 2M",
        "-c",
        "write -f -P 0x5a 8k 4k",
        "-c",
        "flush",
        "-c",
        "read -P 0xa5 1M 2M",
        "-c",
        "write -z 5M 1M",
        "-c",
        "read -P 0 5M 1M",
        "-c",
        "discard 7M 1M",
    ];
    succeed(
        program("qemu-io")
            .arg("--image-opts")
            .arg(&qemu)
            .args(script),
    );
    assert_eq!(
        get(&mut pair.on_alpha(), MIB, 2 * MIB),
        vec![0xa5; 2 * MIB as usize]
    );
    succeed(program("qemu-img").args(["info", "--image-opts", &qemu]));

    fio(&at, &pair);
    pair.stop_and_compare();
}

fn socket(pair: &Pair) -> String {
    let path = ok(kagami::commands::demo::scratch::Scratch::socket(
        &pair.nodes.alpha,
    ));
    path.display().to_string()
}

/// fio writes at random with a checksum in each block, and reads all of it back.
fn fio(uri: &str, pair: &Pair) {
    let output = succeed(
        program("fio")
            .args([
                "--name=mirror",
                "--ioengine=nbd",
                "--rw=randwrite",
                "--bs=4k",
                "--iodepth=16",
            ])
            .args([
                "--size=16M",
                "--verify=crc32c",
                "--do_verify=1",
                "--verify_fatal=1",
                "--fsync=64",
            ])
            .arg(format!("--uri={uri}"))
            .current_dir(pair.nodes.alpha.folder()),
    );
    assert!(output.contains("err= 0"), "{output}");
}

fn append(pair: &Pair, section: &str) {
    let file = pair.nodes.alpha.config();
    let text = fs::read_to_string(&file).expect("the configuration");
    fs::write(&file, format!("{text}\n{section}")).expect("written");
    succeed(
        std::process::Command::new(KAGAMI)
            .arg("--config")
            .arg(&file)
            .args(["config", "check"]),
    );
}

#[test]
fn over_tcp() {
    let mut pair = laid_out("always", "32M");
    let port = ok(free_port());
    append(&pair, &format!("[nbd]\nlisten = [\"127.0.0.1:{port}\"]\n"));
    pair.up();
    pair.promote_alpha();
    let at = format!("nbd://127.0.0.1:{port}/{MIRROR}");
    assert!(succeed(program("nbdsh").args(["-u", &at, "-c", WORK])).contains("all done"));
    assert!(
        succeed(program("nbdinfo").args(["--list", &format!("nbd://127.0.0.1:{port}")]))
            .contains(MIRROR)
    );
    fio(&at, &pair);
    pair.stop_and_compare();
}

#[test]
fn over_tls_with_client_certificates_and_nobody_else() {
    let mut pair = laid_out("always", "32M");
    let pki = beside(&pair.nodes.alpha, "pki");
    let stranger = beside(&pair.nodes.alpha, "stranger");
    certificates(&pki);
    certificates(&stranger);
    fs::copy(pki.join("ca-cert.pem"), stranger.join("ca-cert.pem"))
        .expect("the stranger trusts the server");
    let port = ok(free_port());
    let at = pki.display();
    append(
        &pair,
        &format!(
            "[nbd]\nlisten = [\"127.0.0.1:{port}\"]\ncertificate = \"{at}/server-cert.pem\"\n\
             key = \"{at}/server-key.pem\"\nclient-ca = \"{at}/ca-cert.pem\"\n"
        ),
    );
    pair.up();
    pair.promote_alpha();
    let nbdsh = |folder: &Path| {
        let connect = format!(
            "h.set_tls(nbd.TLS_REQUIRE); h.set_tls_certificates('{}'); h.set_export_name('{MIRROR}'); \
             h.connect_tcp('localhost', '{port}')",
            folder.display()
        );
        let mut command = program("nbdsh");
        command.args(["-c", &connect, "-c", WORK]);
        command
    };
    assert!(succeed(&mut nbdsh(&pki)).contains("all done"));
    assert!(
        !finish(&mut nbdsh(&stranger)).status.success(),
        "a stranger got in"
    );
    let plain = format!("nbd://127.0.0.1:{port}/{MIRROR}");
    assert!(
        !finish(program("nbdinfo").arg(&plain)).status.success(),
        "served without TLS"
    );
    // Without its key nothing is served in the clear instead, and this machine's own clients are served.
    down(&mut pair.nodes.alpha);
    fs::remove_file(pki.join("server-key.pem")).expect("removed");
    up(&mut pair.nodes.alpha);
    until(&mut pair.nodes.alpha, Condition::InSync);
    ok(pair.nodes.alpha.run(&["promote", MIRROR]));
    put(&mut pair.on_alpha(), 0, &noise(65536, 9));
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    pair.stop_and_compare();
}

/// An authority, a server and a client, under the names that libnbd looks for.
fn certificates(folder: &Path) {
    fs::create_dir(folder).expect("a folder");
    let openssl = |args: &[&str]| {
        succeed(program("openssl").args(args).current_dir(folder));
    };
    let key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ];
    let mut ca = vec![
        "req",
        "-x509",
        "-days",
        "3650",
        "-subj",
        "/CN=kagami test authority",
    ];
    ca.extend(key);
    ca.extend(["-keyout", "ca-key.pem", "-out", "ca-cert.pem"]);
    openssl(&ca);
    for (name, usage) in [("server", "serverAuth"), ("client", "clientAuth")] {
        let (key_file, request) = (format!("{name}-key.pem"), format!("{name}.csr"));
        let subject = format!("/CN={name}");
        let mut args = vec!["req", "-subj", &subject];
        args.extend(key);
        args.extend(["-keyout", &key_file, "-out", &request]);
        openssl(&args);
        let extensions =
            format!("extendedKeyUsage={usage}\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n");
        fs::write(folder.join("extensions"), extensions).expect("written");
        let certificate = format!("{name}-cert.pem");
        openssl(&[
            "x509",
            "-req",
            "-days",
            "3650",
            "-in",
            &request,
            "-CA",
            "ca-cert.pem",
            "-CAkey",
            "ca-key.pem",
            "-CAcreateserial",
            "-extfile",
            "extensions",
            "-out",
            &certificate,
        ]);
    }
}

#[test]
fn a_secondary_serves_nobody_and_says_where_to_go() {
    let mut pair = pair("always", "32M");
    // libnbd shows a server's words only when it is asked to.
    let output = finish(
        program("nbdinfo")
            .arg(uri(&pair.nodes.beta))
            .env("LIBNBD_DEBUG", "1"),
    );
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "a Secondary served");
    assert!(
        words.contains("Primary") || words.contains("alpha"),
        "{words}"
    );
    down(&mut pair.nodes.alpha);
}
