//! The programs that people use: libnbd's, qemu's, fio, and a client crate that shares nothing
//! with this server.

mod support;

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::rc::Rc;

use kagami_nbd_server::{DeviceInfo, Errno, Export, IoError, Refusal};
use support::client::{tcp_stream, unix_stream};
use support::{SIZE, TestServer, fail, program, succeed};

/// Runs a script in `nbdsh`, connected to `uri`, with both metadata contexts asked for.
fn nbdsh(uri: &str, script: &str) -> String {
    let preamble = "h.add_meta_context('base:allocation'); h.add_meta_context('kagami:dirty')";
    succeed(program("nbdsh").args(["-c", preamble, "-u", uri, "-c", script]))
}

/// Patterned bytes, as a file.
fn image(path: &Path, len: usize) {
    let bytes: Vec<u8> = (0..len as u32 / 4)
        .flat_map(|i| {
            // Every fourth MiB is a hole.
            let word = if i >> 18 & 3 == 3 {
                0
            } else {
                i.wrapping_mul(2_654_435_761)
            };
            word.to_be_bytes()
        })
        .collect();
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn libnbd_uses_every_command() {
    let server = TestServer::start();
    server.run(|bench| bench.device("disk").memory.mark_dirty(8192..12_288));
    let script = r"
assert h.get_structured_replies_negotiated()
assert h.get_size() == 64 << 20
assert h.get_block_size(nbd.SIZE_MINIMUM) == 512
assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
for can in (h.can_flush, h.can_fua, h.can_trim, h.can_zero, h.can_fast_zero, h.can_df,
            h.can_multi_conn, h.can_cache):
    assert can(), can
assert not h.is_read_only() and not h.is_rotational()
assert h.can_meta_context('base:allocation') and h.can_meta_context('kagami:dirty')

data = bytes(i * 7 & 255 for i in range(65536))
h.pwrite(data, 4096)
h.pwrite(b'f' * 512, 1 << 20, nbd.CMD_FLAG_FUA)
assert h.pread(65536, 4096) == data
assert h.pread(512, 1 << 20) == b'f' * 512
assert h.pread(8192, 0) == bytes(4096) + data[:4096]
h.flush()
h.cache(65536, 4096)

chunks = []
def chunk(buf, offset, status, error):
    chunks.append((offset, len(buf), status))
h.pread_structured(12288, 0, chunk)
assert chunks == [(0, 4096, nbd.READ_HOLE), (4096, 8192, nbd.READ_DATA)], chunks
chunks = []
assert h.pread_structured(12288, 0, chunk, nbd.CMD_FLAG_DF) == bytes(4096) + data[:8192]
assert chunks == [(0, 12288, nbd.READ_DATA)], chunks

extents = {}
def extent(context, offset, entries, error):
    extents[context] = entries
h.block_status(131072, 0, extent)
assert extents['base:allocation'] == [4096, 3, 65536, 0, 61440, 3], extents
assert extents['kagami:dirty'] == [8192, 0, 4096, 1, 118784, 0], extents
h.block_status(131072, 0, extent, nbd.CMD_FLAG_REQ_ONE)
assert extents['base:allocation'] == [4096, 3] and extents['kagami:dirty'] == [8192, 0], extents

h.zero(4096, 4096)
assert h.pread(8192, 4096) == bytes(4096) + data[4096:8192]
h.zero(512, 8192 + 512, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.zero(4096, 65536, nbd.CMD_FLAG_FAST_ZERO)
h.trim(65536, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(65536, 4096) == bytes(65536)
h.zero(64 << 20, 0)
h.block_status(64 << 20, 0, extent)
assert extents['base:allocation'] == [64 << 20, 3], extents

# Many at once, answered in whatever order.
import os
bufs = [nbd.Buffer.from_bytearray(bytearray(os.urandom(4096))) for _ in range(128)]
cookies = [h.aio_pwrite(b, i * 4096) for i, b in enumerate(bufs)]
while h.aio_in_flight() > 0:
    h.poll(-1)
for i, b in enumerate(bufs):
    assert h.pread(4096, i * 4096) == bytes(b.to_bytearray()), i
h.zero(1 << 20, 0)
h.shutdown()
print('all done')
";
    assert!(nbdsh(&server.unix_uri("disk"), script).contains("all done"));
    assert!(nbdsh(&server.tcp_uri("disk"), script).contains("all done"));
}

#[test]
fn libnbd_sees_each_error() {
    let server = TestServer::start();
    server.run(|bench| {
        let error = IoError::new(Errno::Io, "the disk says no").at(8192);
        *bench.device("disk").fault.borrow_mut() = Some((8192, error));
        let mut read_only = Export::new(
            "ro",
            Rc::clone(&bench.exports.get("disk").expect("disk").device),
        );
        read_only.read_only = true;
        bench.exports.add(read_only).expect("a new name");
    });
    let script = r"
import errno
h.set_strict_mode(0)
def fails(code, call, *args):
    try:
        call(*args)
    except nbd.Error as e:
        assert e.errnum == code, (e.errnum, code)
    else:
        assert False, 'no error'
size = h.get_size()
fails(errno.EINVAL, h.pread, 512, size)
fails(errno.EINVAL, h.pread, 511, 0)
fails(errno.EINVAL, h.pread, 512, 1)
fails(errno.EIO, h.pread, 4096, 8192)
chunks = []
def chunk(buf, offset, status, error):
    chunks.append((offset, status, error.value))
fails(errno.EIO, h.pread_structured, 12288, 4096, chunk)
assert (8192, nbd.READ_ERROR, errno.EIO) in chunks, chunks
if h.is_read_only():
    for call in (lambda: h.pwrite(bytes(512), 0), lambda: h.trim(512, 0), lambda: h.zero(512, 0)):
        fails(errno.EPERM, call)
else:
    fails(errno.ENOSPC, h.pwrite, bytes(1024), size - 512)
    fails(errno.ENOSPC, h.zero, 1024, size - 512)
    fails(errno.EOPNOTSUPP, h.zero, 4096, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    fails(errno.EINVAL, h.pwrite, bytes(512), 7)
    fails(errno.EINVAL, h.trim, 512, size)
assert h.pread(512, 0) == bytes(512)
print('all done')
";
    assert!(nbdsh(&server.unix_uri("disk"), script).contains("all done"));
    assert!(nbdsh(&server.unix_uri("ro"), script).contains("all done"));
}

#[test]
fn libnbd_without_structured_replies_and_without_go() {
    let server = TestServer::start();
    let script = format!(
        r"
for structured, full_info, flags in ((False, False, 3), (True, True, 3), (False, False, 0), (False, False, 1)):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    h.set_full_info(full_info)
    h.set_handshake_flags(flags)
    h.set_export_name('disk')
    h.connect_unix('{}')
    assert h.get_protocol() == ('newstyle-fixed' if flags & 1 else 'newstyle'), h.get_protocol()
    assert h.get_structured_replies_negotiated() == structured
    h.pwrite(b'x' * 4096, 0)
    assert h.pread(8192, 0) == b'x' * 4096 + bytes(4096)
    h.shutdown()

h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix('{}')
h.set_export_name('nothing')
for call in (h.opt_info, h.opt_go):
    try:
        call()
    except nbd.Error as e:
        assert e.errno == 'ENOENT', e.errno
    else:
        assert False
names = []
h.opt_list(lambda name, description: names.append(name))
assert names == ['disk'], names
h.opt_abort()
print('all done')
",
        server.path.display(),
        server.path.display()
    );
    assert!(succeed(program("nbdsh").args(["-c", &script])).contains("all done"));
}

#[test]
fn nbdinfo_tells_what_there_is() {
    let server = TestServer::start();
    server.run(|bench| {
        let mut export = Export::new(
            "pg",
            Rc::clone(&bench.exports.get("disk").expect("disk").device),
        );
        export.description = "the database".to_owned();
        bench.exports.add(export).expect("a new name");
        bench.device("disk").memory.mark_dirty(1 << 20..2 << 20);
    });
    let info = succeed(program("nbdinfo").arg(server.unix_uri("pg")));
    for expected in [
        "export=\"pg\"",
        "description: the database",
        "export-size: 67108864",
        "base:allocation",
        "kagami:dirty",
        "can_multi_conn: true",
        "block_size_minimum: 512",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(info.contains(expected), "{expected} is not in:\n{info}");
    }
    let list = succeed(program("nbdinfo").args(["--list", &server.tcp_uri("")]));
    assert!(
        list.contains("export=\"disk\"") && list.contains("export=\"pg\""),
        "{list}"
    );
    let map = succeed(program("nbdinfo").args(["--map=kagami:dirty", &server.unix_uri("disk")]));
    let rows: Vec<Vec<&str>> = map
        .lines()
        .map(|line| line.split_whitespace().take(3).collect())
        .collect();
    assert_eq!(
        rows,
        [
            ["0", "1048576", "0"],
            ["1048576", "1048576", "1"],
            ["2097152", "65011712", "0"],
        ]
    );
    let map = succeed(program("nbdinfo").args(["--map", &server.unix_uri("disk")]));
    assert!(map.contains("hole,zero"), "{map}");
}

#[test]
fn a_secondarys_refusal_reaches_the_user() {
    let server = TestServer::start();
    let text = "mirror pg is Secondary here; node beta is Primary: connect there";
    server.run(move |bench| {
        bench
            .device("disk")
            .memory
            .set_refusal(Some(Refusal::policy(text)));
    });
    // libnbd's programs show the error's number, its debugging output and qemu the sentence.
    let error = fail(
        program("nbdinfo")
            .env("LIBNBD_DEBUG", "1")
            .arg(server.unix_uri("disk")),
    );
    assert!(error.contains(text), "{error}");
    let error = fail(program("qemu-img").args(["info", &server.unix_uri("disk")]));
    assert!(error.contains(text), "{error}");
}

#[test]
fn nbdcopy_there_and_back() {
    let server = TestServer::start();
    let file = server.dir.path().join("image");
    let back = server.dir.path().join("back");
    image(&file, SIZE as usize);
    for uri in [server.unix_uri("disk"), server.tcp_uri("disk")] {
        succeed(program("nbdcopy").args(["--flush", &file.display().to_string(), &uri]));
        succeed(program("nbdcopy").args([&uri, &back.display().to_string()]));
        assert!(std::fs::read(&file).expect("read") == std::fs::read(&back).expect("read"));
    }
    // The holes of the image are holes of the device.
    let pages = server.run(|bench| bench.device("disk").memory.allocated_pages());
    assert_eq!(pages as u64, SIZE / 4096 / 4 * 3);
}

#[test]
fn qemu_converts_compares_and_verifies() {
    let server = TestServer::start();
    server.run(|bench| {
        bench.add(
            "large",
            DeviceInfo {
                min_block: 4096,
                ..DeviceInfo::new(SIZE)
            },
        );
    });
    let file = server.dir.path().join("image").display().to_string();
    image(Path::new(&file), SIZE as usize);
    for uri in [server.unix_uri("disk"), server.tcp_uri("large")] {
        let raw = ["-f", "raw", "-O", "raw"];
        succeed(
            program("qemu-img")
                .args(["convert", "-n"])
                .args(raw)
                .args([&file, &uri]),
        );
        succeed(program("qemu-img").args(["compare", "-f", "raw", "-F", "raw", &file, &uri]));
        let script = [
            "write -P 0xaa 4096 1M",
            "write -f -P 0xbb 1M 64k",
            "write -z -u 2M 1M",
            "write -z 3M 1M",
            "discard 4M 4M",
            "flush",
            "read -P 0xaa 4096 1044480",
            "read -P 0xbb 1M 64k",
            "read -P 0 2M 2M",
            "write -P 0xcc 123 456",
            "read -P 0xcc 123 456",
            "aio_write -P 0xdd 8M 1M",
            "aio_write -P 0xee 9M 1M",
            "aio_flush",
            "read -P 0xdd 8M 1M",
            "read -P 0xee 9M 1M",
        ];
        let mut command = program("qemu-io");
        command.args(["-f", "raw", &uri]);
        for line in script {
            command.args(["-c", line]);
        }
        let output = succeed(&mut command);
        assert!(!output.contains("failed"), "{output}");
    }
}

#[test]
fn fio_verifies() {
    let server = TestServer::start();
    for uri in [server.unix_uri("disk"), server.tcp_uri("disk")] {
        let report = succeed(program("fio").current_dir(server.dir.path()).args([
            "--name=verify",
            "--ioengine=nbd",
            &format!("--uri={uri}"),
            "--rw=randrw",
            "--bsrange=512-256k",
            "--size=48m",
            "--iodepth=32",
            "--fsync=64",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--randrepeat=1",
        ]));
        assert!(report.contains("err= 0"), "{report}");
    }
    assert!(server.run(|bench| bench.device("disk").memory.flushes()) > 0);
}

/// The `nbd` crate: a blocking sketch by somebody else, `EXPORT_NAME` and simple replies.
#[test]
fn the_nbd_crate_reads_and_writes() {
    trait Wire: Read + Write {}
    impl<T: Read + Write> Wire for T {}
    let server = TestServer::start();
    let streams: [Box<dyn Wire>; 2] = [
        Box::new(unix_stream(&server.path)),
        Box::new(tcp_stream(server.tcp)),
    ];
    for (round, mut stream) in streams.into_iter().enumerate() {
        let export = nbd::client::handshake(&mut stream, b"disk").expect("a handshake");
        assert_eq!(export.size, SIZE);
        let mut client = nbd::client::NbdClient::new(stream, &export);
        let pattern = vec![round as u8 + 1; 1 << 20];
        client.seek(SeekFrom::Start(4096)).expect("there");
        client.write_all(&pattern).expect("written");
        client.flush().expect("flushed");
        client.seek(SeekFrom::Start(0)).expect("there");
        let mut bytes = vec![0xff; 4096 + (1 << 20)];
        client.read_exact(&mut bytes).expect("read");
        assert!(bytes[..4096] == [0; 4096] && bytes[4096..] == pattern);
    }
}
