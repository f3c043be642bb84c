# shellcheck shell=bash
# vm: --backend uml --mem 1024 --disk 256M --disk 256M --disk 256M --timeout 300
# The daemon is killed with SIGKILL and started again, time and again, under a mounted ext4 while
# fio writes and verifies what it wrote. The kernel holds the device until the daemon takes it back:
# no error, no lost write, no old write on a newer one.
# shellcheck source=tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
CRASHES=4
work=$(mktemp -d)

make_pair 256M
attach_device alpha /dev/nbd0
mkfs.ext4 -q -b 4096 /dev/nbd0
mkdir -p /mnt/alpha
mount /dev/nbd0 /mnt/alpha
proof "ext4 is mounted on /dev/nbd0 ($(uname -r))"

# What it wrote last is verified once more below.
verify_on_and_on "$work" --size=32M & writer=$!
for round in $(seq "$CRASHES"); do
    wait_until 60 "writes under way, round $round" has_written 500
    crash alpha
    began=$(now_ms)
    start alpha up
    wait_until 60 '/dev/nbd0 is served' is_served alpha
    proof "killed, and started: /dev/nbd0 is served after $(($(now_ms) - began)) ms"
    wait_for alpha in-sync
done
wait_until 60 'writes after the last restart' has_written 500
touch "$work/end"
wait "$writer" || fail "fio: $(cat "$work"/fio-*)"
no_kernel_errors
proof "the daemon was killed $CRASHES times with writes in flight: no error, every block verified"
proof "longest time without an answer for the application: $(longest_ms "$work") ms"

umount /mnt/alpha
mount /dev/nbd0 /mnt/alpha
fio "${VERIFIED[@]}" --size=32M --randseed="$(cat "$work/rounds")" --verify_only >"$work/last" || fail "$(cat "$work/last")"
umount /mnt/alpha
e2fsck -fn /dev/nbd0 >"$work/fsck" 2>&1 || fail "e2fsck: $(cat "$work/fsck")"
proof 'mounted again: every block verified, e2fsck -fn is clean'
detach_device alpha
stop alpha
stop beta
cmp /dev/disk0 /dev/disk1 || fail 'the copies differ'
proof 'detached; both disks are equal, byte for byte'
