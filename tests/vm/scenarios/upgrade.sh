# shellcheck shell=bash
# vm: --backend uml --mem 1024 --disk 256M --disk 256M --disk 256M --timeout 400
# The daemon is replaced by another build under a mounted ext4, while fio writes and verifies: on the
# secondary first, then on the primary, as an upgrade goes; then back, in the other order.
# shellcheck source=tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
work=$(mktemp -d)

make_pair 256M
attach_device alpha /dev/nbd0
mkfs.ext4 -q -b 4096 /dev/nbd0
mkdir -p /mnt/alpha
mount /dev/nbd0 /mnt/alpha
build() { "$1" --version; }
proof "ext4 is mounted on /dev/nbd0 ($(uname -r)); $(build "$KAGAMI") is replaced by $(build "$KAGAMI_OTHER"), $(cmp -s "$KAGAMI" "$KAGAMI_OTHER" && echo 'the same build' || echo 'another build')"

verify_on_and_on "$work" --size=32M & writer=$!

replace() { # NODE PROGRAM
    local began
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
replace beta "$KAGAMI_OTHER"
replace alpha "$KAGAMI_OTHER"
replace alpha "$KAGAMI"
replace beta "$KAGAMI"

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
