# shellcheck shell=bash
# vm: --backend uml --mem 1024 --disk 256M --disk 256M --disk 256M --timeout 400
# The daemon is replaced by another build under a mounted ext4, while fio writes and verifies: on the
# secondary first, then on the primary, as an upgrade goes; then back, in the other order.
# shellcheck source=tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
work=$(mktemp -d)

# Both nodes begin with the older version of the link's protocol, where both builds have two: an upgrade
# meets a peer of the version before.
speak() { # NODE VERSION
    sed -i '/^link-version/d' "$NODES/$1/kagami.toml"
    sed -i "s/^\[node\]\$/&\nlink-version = \"$2\"/" "$NODES/$1/kagami.toml"
}
has_two() { "$1" --config "$NODES/alpha/kagami.toml" config show --defaults | grep -q 'link-version'; }
before_start() {
    versions=0
    if has_two "$KAGAMI" && has_two "$KAGAMI_OTHER"; then versions=2; fi
    for node in alpha beta; do [ "$versions" = 0 ] || speak "$node" 1; done
}
expect_link() { # VERSION
    local spoken
    [ "$versions" != 0 ] || return 0
    spoken=$(number alpha link_version)
    [ "$spoken" = "$1" ] || fail "the nodes speak version $spoken of the protocol instead of $1"
    proof "the nodes speak version $1 of the protocol"
}

make_pair 256M
attach_device alpha /dev/nbd0
mkfs.ext4 -q -b 4096 /dev/nbd0
mkdir -p /mnt/alpha
mount /dev/nbd0 /mnt/alpha
build() { "$1" --version; }
proof "ext4 is mounted on /dev/nbd0 ($(uname -r)); $(build "$KAGAMI") is replaced by $(build "$KAGAMI_OTHER"), $(cmp -s "$KAGAMI" "$KAGAMI_OTHER" && echo 'the same build' || echo 'another build')"

verify_on_and_on "$work" --size=32M & writer=$!

replace() { # NODE PROGRAM VERSION
    local began
    [ "$versions" = 0 ] || speak "$1" "$3"
    wait_until 60 "writes under way before $1 is replaced" has_written 500
    began=$(now_ms)
    terminate "$1"
    start "$1" up "$2"
    [ "$1" != alpha ] || wait_until 60 '/dev/nbd0 is served' is_served alpha
    took=$(($(now_ms) - began))
    [ "$(readlink "/proc/${DAEMON[$1]}/exe")" = "$2" ] || fail "$1 does not run $2"
    wait_for alpha in-sync
    proof "the daemon on $1 was replaced in $took ms, and the mirror is in sync"
}
expect_link 1
replace beta "$KAGAMI_OTHER" 2
expect_link 1
replace alpha "$KAGAMI_OTHER" 2
expect_link 2
replace alpha "$KAGAMI" 1
expect_link 1
replace beta "$KAGAMI" 1

wait_until 60 'writes after the last one' has_written 500
touch "$work/end"
wait "$writer" || fail "fio: $(cat "$work"/fio-*)"
no_kernel_errors
proof "no error, every block verified; longest time without an answer: $(longest_ms "$work") ms"
umount /mnt/alpha
e2fsck -fn /dev/nbd0 >"$work/fsck" 2>&1 || fail "e2fsck: $(cat "$work/fsck")"
detach_device alpha
stop alpha
stop beta
cmp /dev/disk0 /dev/disk1 || fail 'the copies differ'
proof 'e2fsck -fn is clean; both disks are equal, byte for byte'
