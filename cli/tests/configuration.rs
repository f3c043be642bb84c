//! Every way to get the configuration wrong, and the exact words for it.

use std::path::Path;

use kagami::config::fault::Fault;
use kagami::config::places::Places;
use kagami::config::{Config, Latency, Protocol, Solo, check};

const GOOD: &str = r#"[node]
name = "alpha"
id = 7
listen = ["10.0.0.1:7789"]

[mirror.pg]
uuid = "00112233445566778899aabbccddeeff"
size = "20G"
backing = "/dev/vg0/pg"
metadata = "/dev/vg0/pg-meta"
protocol = "C"
solo = "arbiter"
peer = "beta"
arbiter = "witness1"
[mirror.pg.resync]
latency-target = "2x"
max-rate = "unlimited"

[peer.beta]
id = 8
addresses = ["10.0.0.2:7789", "[fd00::2]:7789", "beta.example:7789"]
fingerprints = ["sha256:1111111111111111111111111111111111111111111111111111111111111111"]
timeout = "2s"
ack-timeout = "10s"

[arbiter.witness1]
addresses = ["10.0.0.3:7790"]
fingerprints = ["sha256:2222222222222222222222222222222222222222222222222222222222222222"]
"#;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("k.toml"), text, &Places::of_root()).map_err(|error| error.to_string())
}

#[test]
fn a_good_file_is_read_whole() {
    let config = parse(GOOD).unwrap();
    let mirror = config.mirror("pg").unwrap();
    assert_eq!(mirror.size, 20 << 30);
    assert_eq!(mirror.protocol, Protocol::C);
    assert_eq!(mirror.solo, Solo::Arbiter);
    assert_eq!(mirror.nbd_socket, Path::new("/run/kagami/pg.nbd"));
    assert_eq!(mirror.logical_block, 512);
    assert_eq!(mirror.resync.latency_target, Latency::Percent(200));
    assert_eq!(mirror.resync.max_rate, None);
    assert!(mirror.resync.checksum_first);
    assert_eq!(config.peer("beta").unwrap().addresses.len(), 3);
    assert_eq!(config.node.control, Path::new("/run/kagami/control.sock"));
    assert_eq!(config.node.state_dir, Path::new("/var/lib/kagami"));
    assert!(config.nbd.is_none());
}

/// Replaces `from` in the good file and expects exactly these words.
fn refused(from: &str, to: &str, expected: &str) {
    assert!(GOOD.contains(from), "{from}");
    let said = parse(&GOOD.replacen(from, to, 1)).expect_err(to);
    assert_eq!(said, expected, "\n--- {from} -> {to}");
}

#[test]
fn unknown_keys_and_sections() {
    refused(
        "protocol = ",
        "protocl = ",
        "k.toml:11: unknown key `protocl` in [mirror.pg]\n  next: did you mean `protocol`?",
    );
    refused(
        "protocol = ",
        "ack-timeout = ",
        "k.toml:11: unknown key `ack-timeout` in [mirror.pg]\n  next: it belongs under [peer.pg]",
    );
    refused(
        "max-rate = ",
        "colour = ",
        "k.toml:17: unknown key `colour` in [mirror.pg.resync]\n  next: there are `latency-target`, `max-rate`, `window`, `checksum-first`",
    );
    refused(
        "[peer.beta]",
        "[pear.beta]",
        "k.toml:19: unknown section [pear]\n  next: did you mean [peer]?",
    );
    refused(
        "[peer.beta]",
        "[peer]",
        "k.toml:20: `id` is under [peer] without a NAME\n  next: it belongs under a heading [peer.NAME]\n\
         k.toml:21: `addresses` is under [peer] without a NAME\n  next: it belongs under a heading [peer.NAME]\n\
         k.toml:22: `fingerprints` is under [peer] without a NAME\n  next: it belongs under a heading [peer.NAME]\n\
         k.toml:23: `timeout` is under [peer] without a NAME\n  next: it belongs under a heading [peer.NAME]\n\
         k.toml:24: `ack-timeout` is under [peer] without a NAME\n  next: it belongs under a heading [peer.NAME]",
    );
    refused(
        "[node]\n",
        "solo = \"never\"\n[node]\n",
        "k.toml:1: key `solo` outside of any section\n  next: it belongs under [mirror.NAME]",
    );
    refused(
        "[peer.beta]",
        "[peer.\"be ta\"]",
        "k.toml:19: `be ta` is not a name: use at most 64 letters, digits, `-` and `_`, beginning with a letter or digit\n  next: rename [peer.be ta]",
    );
}

#[test]
fn wrong_values() {
    refused(
        "timeout = \"2s\"",
        "timeout = 2",
        "k.toml:23: [peer.beta] timeout: 2 has no unit\n  next: write \"2s\" or \"2ms\"",
    );
    refused(
        "timeout = \"2s\"",
        "timeout = \"2G\"",
        "k.toml:23: [peer.beta] timeout: `2G` has a unit of size where a time belongs\n  next: write a time like \"500ms\", \"2s\" or \"10m\"",
    );
    refused(
        "timeout = \"2s\"",
        "timeout = \"2h\"",
        "k.toml:23: [peer.beta] timeout: 2h is out of bounds\n  next: write a time from 100ms to 10m",
    );
    refused(
        "size = \"20G\"",
        "size = \"20s\"",
        "k.toml:8: [mirror.pg] size: `20s` has a unit of time where a size belongs\n  next: write a size like \"20G\", \"512MiB\" or a number of bytes",
    );
    refused(
        "size = \"20G\"",
        "size = 5000001",
        "k.toml:8: [mirror.pg] size: 5000001 bytes are not a multiple of 4096\n  next: write 4997120 or 5001216",
    );
    refused(
        "size = \"20G\"",
        "size = -1",
        "k.toml:8: [mirror.pg] size: -1 is less than 0\n  next: write a size, like `\"20G\"`",
    );
    refused(
        "size = \"20G\"",
        "size = true",
        "k.toml:8: [mirror.pg] size: true is not a size\n  next: write a size, like `\"20G\"`",
    );
    refused(
        "size = \"20G\"\n",
        "",
        "k.toml:6: [mirror.pg] has no `size`\n  next: add `size = …`, a size, like `\"20G\"`. The size of the device, the same on both nodes; a multiple of 4096 bytes.",
    );
    refused(
        "protocol = \"C\"",
        "protocol = \"D\"",
        "k.toml:11: [mirror.pg] protocol: `D` is not one of the choices\n  next: write `\"A\"`, `\"B\"`, `\"C\"`",
    );
    refused(
        "solo = \"arbiter\"",
        "solo = \"arbitre\"",
        "k.toml:12: [mirror.pg] solo: `arbitre` is not one of the choices\n  next: did you mean \"arbiter\"?",
    );
    refused(
        "\"/dev/vg0/pg\"",
        "\"pg.img\"",
        "k.toml:9: [mirror.pg] backing: `pg.img` is not an absolute path\n  next: write the whole path, beginning with `/`",
    );
    refused(
        "[\"10.0.0.1:7789\"]",
        "[\"10.0.0.1\"]",
        "k.toml:4: [node] listen: `10.0.0.1` has no port\n  next: write \"10.0.0.1:7789\" or \"[fd00::1]:7789\"",
    );
    refused(
        "[\"10.0.0.1:7789\"]",
        "[\"alpha:7789\"]",
        "k.toml:4: [node] listen: `alpha:7789` is a host name; listening needs an address of this machine\n  next: write \"10.0.0.1:7789\" or \"[fd00::1]:7789\"",
    );
    refused(
        "[fd00::2]:7789",
        "fd00::2:7789",
        "k.toml:21: [peer.beta] addresses: `fd00::2:7789`: an IPv6 address needs brackets before its port\n  next: write \"10.0.0.1:7789\" or \"[fd00::1]:7789\"",
    );
    refused(
        "[\"10.0.0.1:7789\"]",
        "\"10.0.0.1:7789\"",
        "k.toml:4: [node] listen: \"10.0.0.1:7789\" is not a list\n  next: write a list of `\"address:port\"`",
    );
    refused(
        "sha256:11",
        "sha256:1g",
        "k.toml:22: [peer.beta] fingerprints: `sha256:1g11111111111111111111111111111111111111111111111111111111111111` is not a fingerprint\n  next: write sha256: and 64 hexadecimal digits, as `fingerprint` of `node` in `kagami status --json` on the other machine",
    );
    refused(
        "\"2x\"",
        "2",
        "k.toml:16: [mirror.pg.resync] latency-target: 2 has no unit\n  next: write \"2x\" or \"2ms\"",
    );
    refused(
        "\"unlimited\"",
        "\"none\"",
        "k.toml:17: [mirror.pg.resync] max-rate: `none` is not a rate\n  next: write \"unlimited\" or a rate like \"100MiB/s\"",
    );
    refused(
        "00112233445566778899aabbccddeeff",
        "pg",
        "k.toml:7: [mirror.pg] uuid: `pg` is not a mirror's uuid\n  next: write 32 hexadecimal digits",
    );
    refused(
        "id = 7",
        "id = \"7\"",
        "k.toml:3: [node] id: \"7\" is not a whole number\n  next: write a number from 1",
    );
}

#[test]
fn not_toml() {
    let said = parse("[node\nname = 3").unwrap_err();
    assert!(said.starts_with("k.toml:1: this is not TOML: "), "{said}");
    let said = parse("[node]\nname = \"a\"\nname = \"b\"\n").unwrap_err();
    assert!(
        said.starts_with("k.toml:3: this is not TOML: duplicate key"),
        "{said}"
    );
    assert_eq!(
        parse("").unwrap_err(),
        "k.toml: there is no [node] section\n  next: `kagami init` writes one with a name and an id"
    );
}

/// The good file with another `[arbiter.witness1]`, whose keys begin on line 27.
fn with_arbiter(keys: &str) -> Result<Config, String> {
    let (before, _) = GOOD.split_once("[arbiter.witness1]").unwrap();
    parse(&format!("{before}[arbiter.witness1]\n{keys}"))
}

#[test]
fn an_etcd_is_an_arbiter() {
    let config = with_arbiter(
        "kind = \"etcd\"\nendpoints = [\"https://10.0.0.3:2379\", \"https://kv.example:2379\"]\n\
         ca = \"/etc/kagami/ca.pem\"\ncertificate = \"/etc/kagami/a.pem\"\nkey = \"/etc/kagami/a-key.pem\"\n\
         user = \"alpha\"\npassword-file = \"/etc/kagami/password\"\n",
    )
    .unwrap();
    let etcd = config.arbiter("witness1").unwrap().as_etcd().unwrap();
    assert_eq!(etcd.endpoints.len(), 2);
    assert_eq!(etcd.prefix, "/kagami");
    assert_eq!(etcd.tls.unwrap().ca, Path::new("/etc/kagami/ca.pem"));
    assert_eq!(etcd.login.unwrap().user, "alpha");
    assert!(
        parse(GOOD)
            .unwrap()
            .arbiter("witness1")
            .unwrap()
            .as_etcd()
            .is_none()
    );
    // In clear text nothing more is needed.
    let clear = "kind = \"etcd\"\nendpoints = [\"http://[fd00::3]:2379\"]\nprefix = \"/a/b\"\n";
    let etcd = with_arbiter(clear)
        .unwrap()
        .arbiter("witness1")
        .unwrap()
        .as_etcd()
        .unwrap();
    assert!(etcd.is_clear_text() && etcd.tls.is_none() && etcd.prefix == "/a/b");
}

#[test]
fn each_kind_of_arbiter_has_its_keys() {
    let refused = |keys: &str, expected: &str| {
        let said = with_arbiter(keys).expect_err(keys);
        assert!(said.starts_with(expected), "{keys}\n{said}");
        assert!(said.contains("\n  next: "), "{said}");
    };
    let tls = "kind = \"etcd\"\nendpoints = [\"https://10.0.0.3:2379\"]\n";
    let clear = "kind = \"etcd\"\nendpoints = [\"http://10.0.0.3:2379\"]\n";
    for (keys, expected) in [
        (
            "kind = \"zookeeper\"\n",
            "k.toml:27: [arbiter.witness1] kind: `zookeeper` is not one of the choices",
        ),
        (
            "addresses = [\"10.0.0.3:7790\"]\n",
            "k.toml:26: [arbiter.witness1] has no `fingerprints`",
        ),
        (
            "kind = \"etcd\"\n",
            "k.toml:27: [arbiter.witness1] has no `endpoints`",
        ),
        (
            "kind = \"etcd\"\nendpoints = [\"10.0.0.3:2379\"]\n",
            "k.toml:28: [arbiter.witness1] endpoints: `10.0.0.3:2379` does not say https:// or http://",
        ),
        (
            "kind = \"etcd\"\nendpoints = [\"tcp://10.0.0.3:2379\"]\n",
            "k.toml:28: [arbiter.witness1] endpoints: `tcp://10.0.0.3:2379`: etcd does not speak tcp://",
        ),
        (
            "kind = \"etcd\"\nendpoints = [\"https://10.0.0.3\"]\n",
            "k.toml:28: [arbiter.witness1] endpoints: `10.0.0.3` has no port",
        ),
        (
            "kind = \"etcd\"\nendpoints = [\"http://10.0.0.3:2379\", \"https://10.0.0.4:2379\"]\nca = \"/ca\"\n",
            "k.toml:28: [arbiter.witness1] endpoints: some are https, some are clear text",
        ),
        (
            tls,
            "k.toml:28: [arbiter.witness1] endpoints: https without `ca`",
        ),
        (
            &format!("{tls}ca = \"ca.pem\"\n"),
            "k.toml:29: [arbiter.witness1] ca: `ca.pem` is not an absolute path",
        ),
        (
            &format!("{tls}ca = \"/ca\"\nkey = \"/key\"\n"),
            "k.toml:30: [arbiter.witness1] key without `certificate`",
        ),
        (
            &format!("{tls}ca = \"/ca\"\ncertificate = \"/a\"\n"),
            "k.toml:30: [arbiter.witness1] certificate without `key`",
        ),
        (
            &format!("{clear}ca = \"/ca\"\n"),
            "k.toml:29: [arbiter.witness1] ca: the endpoints are clear text",
        ),
        (
            &format!("{clear}user = \"alpha\"\n"),
            "k.toml:29: [arbiter.witness1] user without `password-file`",
        ),
        (
            &format!("{clear}password-file = \"/p\"\n"),
            "k.toml:29: [arbiter.witness1] password-file without `user`",
        ),
        (
            &format!("{clear}prefix = \"kagami/\"\n"),
            "k.toml:29: [arbiter.witness1] prefix: `kagami/` can't begin a key",
        ),
        (
            &format!("{clear}addresses = [\"10.0.0.3:7790\"]\n"),
            "k.toml:29: [arbiter.witness1] addresses: an etcd has no such key",
        ),
        (
            "endpoints = [\"http://10.0.0.3:2379\"]\n",
            "k.toml:27: [arbiter.witness1] endpoints: a witness has no such key",
        ),
    ] {
        refused(keys, expected);
    }
}

/// To listen on port 0 is to take any; nobody is reached there.
#[test]
fn nobody_is_reached_at_port_0() {
    refused(
        "\"10.0.0.2:7789\"",
        "\"10.0.0.2:0\"",
        "k.toml:21: [peer.beta] addresses: `10.0.0.2:0`: nothing is reached at port 0\n  next: write \"10.0.0.1:7789\" or \"[fd00::1]:7789\"",
    );
    refused(
        "\"10.0.0.2:7789\"",
        "\"beta.example:0\"",
        "k.toml:21: [peer.beta] addresses: `beta.example:0`: nothing is reached at port 0\n  next: write \"10.0.0.1:7789\" or \"[fd00::1]:7789\"",
    );
    assert!(parse(&GOOD.replace("10.0.0.1:7789", "10.0.0.1:0")).is_ok());
}

#[test]
fn an_ack_timeout_below_the_time_out_is_warned_of() {
    let warned = |from: &str, to: &str| {
        assert!(GOOD.contains(from), "{from}");
        let config = parse(&GOOD.replacen(from, to, 1)).unwrap();
        check::warnings(&config)
    };
    assert_eq!(warned("ack-timeout = \"10s\"", "ack-timeout = \"2s\""), []);
    let short = warned("ack-timeout = \"10s\"", "ack-timeout = \"1500ms\"");
    let said = Fault::at(
        24,
        "[peer.beta] ack-timeout: 1500ms is shorter than `timeout`, 2s: a silence that `timeout` bears ends the session where an answer is owed",
        "write ack-timeout = \"2s\" or more",
    );
    assert_eq!(short, [said]);
    // What is written is to blame, not what is left out.
    let long = warned(
        "timeout = \"2s\"\nack-timeout = \"10s\"",
        "timeout = \"1m\"",
    );
    assert_eq!(long.len(), 1);
    assert_eq!(long[0].line, Some(23));
    assert!(long[0].what.contains("10s is shorter"), "{long:?}");
}

#[test]
fn what_keys_mean_together() {
    refused(
        "arbiter = \"witness1\"\n",
        "",
        "k.toml:12: [mirror.pg] solo: \"arbiter\" without an arbiter\n  next: add `arbiter = \"witness1\"`",
    );
    refused(
        "peer = \"beta\"",
        "peer = \"betta\"",
        "k.toml:13: [mirror.pg] peer: there is no [peer.betta]\n  next: did you mean \"beta\"?",
    );
    refused(
        "arbiter = \"witness1\"",
        "arbiter = \"other\"",
        "k.toml:14: [mirror.pg] arbiter: there is no [arbiter.other]\n  next: add [arbiter.other], or name one of \"witness1\"",
    );
    refused(
        "\"/dev/vg0/pg-meta\"",
        "\"/dev/vg0/pg\"",
        "k.toml:10: [mirror.pg] metadata: /dev/vg0/pg is the backing store of mirror pg already (line 9)\n  next: give each store a file or device of its own",
    );
    refused(
        "id = 8",
        "id = 7",
        "k.toml:20: [peer.beta] id: 7 is this node's own id\n  next: write the id from the [node] section of the other node's file",
    );
    refused(
        "name = \"alpha\"",
        "name = \"beta\"",
        "k.toml:20: [peer.beta] has this node's own name\n  next: name the other node here; this node's name is in [node]",
    );
    refused(
        "sha256:2222222222222222222222222222222222222222222222222222222222222222",
        "sha256:1111111111111111111111111111111111111111111111111111111111111111",
        "k.toml:28: [arbiter.witness1] fingerprints: the key is that of [peer.beta]\n  next: an arbiter is a third machine: whoever holds a copy can't decide between the copies",
    );
    let renamed = GOOD.replace("witness1", "beta");
    assert_eq!(
        parse(&renamed).unwrap_err(),
        "k.toml:27: [arbiter.beta] has the name of a peer\n  next: an arbiter is a third machine: whoever holds a copy can't decide between the copies"
    );
    refused(
        "[mirror.pg.resync]",
        "thread = 3\n[mirror.pg.resync]",
        "k.toml:15: [mirror.pg] thread: there is no thread 3 among 1\n  next: write a number from 0 to 0, or raise `threads` in [node]",
    );
    refused(
        "[peer.beta]",
        "[mirror.b]\nuuid = \"00112233445566778899aabbccddeeff\"\nsize = \"1G\"\nbacking = \"/dev/vg0/pg\"\nmetadata = \"/x\"\nnbd-socket = \"/run/kagami/pg.nbd\"\n[peer.beta]",
        "k.toml:20: [mirror.b] uuid: it is the uuid of mirror pg\n  next: each mirror has a uuid of its own: make another mirror with `kagami init`\n\
         k.toml:22: [mirror.b] backing: /dev/vg0/pg is the backing store of mirror pg already (line 9)\n  next: give each store a file or device of its own\n\
         k.toml:24: [mirror.b] nbd-socket: /run/kagami/pg.nbd is the socket of mirror pg already\n  next: give each mirror a socket of its own",
    );
    refused(
        "[peer.beta]",
        "[nbd]\nlisten = [\"0.0.0.0:10809\"]\n[peer.beta]",
        "k.toml:20: [nbd] listen: 0.0.0.0:10809 is not loopback, and there is no TLS with client certificates\n  next: add `certificate`, `key` and `client-ca`, or listen on 127.0.0.1 or [::1]",
    );
    refused(
        "[peer.beta]",
        "[nbd]\nlisten = [\"127.0.0.1:10809\"]\nkey = \"/k\"\n[peer.beta]",
        "k.toml:21: [nbd] key without `certificate`\n  next: TLS needs `certificate` and `key`",
    );
    refused(
        "listen = [\"10.0.0.1:7789\"]",
        &format!("run-dir = \"/{}\"\ncontrol = \"/c\"", "x".repeat(110)),
        &format!(
            "k.toml:7: [mirror.pg] nbd-socket: /{}/pg.nbd is longer than a socket's path may be (107 bytes)\n  next: name a shorter `nbd-socket`, or a shorter `run-dir` in [node]",
            "x".repeat(110)
        ),
    );
}

#[test]
fn two_names_of_one_store_are_one_store() {
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("store"), folder.path().join("link"));
    std::fs::write(&file, "").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let text = GOOD
        .replace("/dev/vg0/pg-meta", link.to_str().unwrap())
        .replace("/dev/vg0/pg", file.to_str().unwrap());
    let said = parse(&text).unwrap_err();
    assert!(
        said.contains("is the backing store of mirror pg already (line 9)"),
        "{said}"
    );
}

#[test]
fn a_missing_file_says_what_writes_one() {
    let said = Config::load(Path::new("/nowhere/k.toml"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        said,
        "/nowhere/k.toml: there is no such file\n  next: `kagami init NAME --size 20G` writes one; --config or KAGAMI_CONFIG names another"
    );
}

/// The good file with a second mirror that has these lines beside what it must have.
fn second(more: &str) -> String {
    let section = "[mirror.second]\nuuid = \"0123456789abcdeffedcba9876543210\"\nsize = \"20G\"\n\
         backing = \"/dev/vg0/second\"\nmetadata = \"/dev/vg0/second-meta\"\npeer = \"beta\"\n";
    format!("{GOOD}{section}{more}")
}

const ASKS: &str = "solo = \"arbiter\"\narbiter = \"witness1\"\n";

#[test]
fn a_mirror_follows_the_first_of_its_group() {
    let config = parse(&second(&format!("{ASKS}follows = \"pg\"\n"))).unwrap();
    let names = |mirror: &str| {
        let mirror = config.mirror(mirror).unwrap();
        let all = config.together(mirror).map(|one| one.name.as_str());
        all.collect::<Vec<_>>()
    };
    assert_eq!(names("pg"), ["pg", "second"]);
    assert_eq!(names("second"), ["pg", "second"]);

    let refused = |text: &str, expected: &str| {
        assert_eq!(parse(text).expect_err(text), expected, "\n---\n{text}");
    };
    let follows = |named: &str| second(&format!("{ASKS}follows = \"{named}\"\n"));
    refused(
        &follows("second"),
        "k.toml:37: [mirror.second] follows: it names the mirror itself\n  next: name the first mirror of the group; that one follows none",
    );
    refused(
        &follows("pq"),
        "k.toml:37: [mirror.second] follows: there is no [mirror.pq]\n  next: did you mean \"pg\"?",
    );
    refused(
        &follows("elsewhere"),
        "k.toml:37: [mirror.second] follows: there is no [mirror.elsewhere]\n  next: name the first mirror of the group; that one follows none, or take `follows` out",
    );
    refused(
        &follows("pg").replacen("protocol = ", "follows = \"second\"\nprotocol = ", 1),
        "k.toml:11: [mirror.pg] follows: mirror second follows pg: one of both decides first\n  next: take `follows` out of the group's first mirror\n\
         k.toml:38: [mirror.second] follows: mirror pg follows second: one of both decides first\n  next: take `follows` out of the group's first mirror",
    );
    refused(
        &second("follows = \"pg\"\n"),
        "k.toml:35: [mirror.second] follows: mirror second asks no arbiter before it goes on alone\n  next: write solo = \"arbiter\" into [mirror.second], or take `follows` out",
    );
    refused(
        &follows("pg").replacen("solo = \"arbiter\"", "solo = \"always\"", 1),
        "k.toml:37: [mirror.second] follows: mirror pg asks no arbiter before it goes on alone\n  next: write solo = \"arbiter\" into [mirror.pg], or take `follows` out",
    );
    let other = "[arbiter.kv]\nkind = \"etcd\"\nendpoints = [\"http://10.0.0.4:2379\"]\n";
    let at_another = "solo = \"arbiter\"\narbiter = \"kv\"\nfollows = \"pg\"\n";
    refused(
        &format!("{}{other}", second(at_another)),
        "k.toml:37: [mirror.second] follows: its arbiter is \"kv\", and that of mirror pg is \"witness1\"\n  next: give both the same, at once: `kagami arbiter use witness1 --mirror pg --mirror second`",
    );
    // No chains: the third names the first.
    let third = second(&format!("{ASKS}follows = \"pg\"\n"))
        + &second(&format!("{ASKS}follows = \"second\"\n"))[GOOD.len()..]
            .replace("second]", "third]")
            .replace("0123456789abcdef", "1123456789abcdef")
            .replace("vg0/second", "vg0/third");
    refused(
        &third,
        "k.toml:46: [mirror.third] follows: mirror second follows pg itself\n  next: name that one: follows = \"pg\"",
    );
}
