# shellcheck shell=bash
# vm: --backend qemu --mem 1536 --cpus 2 --mod ublk_drv --disk 128M --disk 128M --disk 256M --timeout 900
# long
# What daemon-restart and upgrade show of nbd, with ublk: under a mounted ext4, while fio writes and verifies, the
# daemon is killed and started again, and is replaced. No error, no lost write. Then it is detached: not while it is
# mounted, and by force while it is.
# shellcheck source=tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
CRASHES=${SHORT:+2}
CRASHES=${CRASHES:-4}
work=$(mktemp -d)

# An emulated machine that has little of its host is silent for seconds.
before_start() {
    for node in alpha beta; do sed -i 's/^\[peer\..*\]$/&\ntimeout = "20s"/' "$NODES/$node/kagami.toml"; done
}
make_pair 128M
on alpha attach "$MIRROR" --ublk >"$work/attach"
[ "$(readlink -f "/dev/kagami/$MIRROR")" = /dev/ublkb0 ] || fail "$(cat "$work/attach")"
[ "$(blockdev --getsize64 /dev/ublkb0)" = "$((128 << 20))" ] || fail '/dev/ublkb0 has another size'
queues=$(find /sys/block/ublkb0/mq -mindepth 1 -maxdepth 1 | wc -l)
[ "$queues" -ge 2 ] || fail "it has $queues queues"
mkfs.ext4 -q -b 4096 /dev/ublkb0
mkdir -p /mnt/alpha
mount /dev/ublkb0 /mnt/alpha
proof "ext4 is mounted on /dev/ublkb0, which has $queues queues ($(uname -r))"

# What it wrote last is verified once more below.
verify_on_and_on "$work" --size=16M & writer=$!
for round in $(seq "$CRASHES"); do
    wait_until 120 "writes under way, round $round" has_written 200
    crash alpha
    began=$(now_ms)
    start alpha up
    wait_until 60 '/dev/ublkb0 is served' is_served alpha
    proof "killed, and started: /dev/ublkb0 is served after $(($(now_ms) - began)) ms"
    wait_for alpha in-sync
done
for program in "$KAGAMI_OTHER" "$KAGAMI"; do
    wait_until 120 'writes under way before it is replaced' has_written 200
    began=$(now_ms)
    terminate alpha
    start alpha up "$program"
    wait_until 60 '/dev/ublkb0 is served' is_served alpha
    proof "stopped, and another started: /dev/ublkb0 is served after $(($(now_ms) - began)) ms"
    wait_for alpha in-sync
done
wait_until 120 'writes after the last restart' has_written 200
refused "alpha detach $MIRROR" '/dev/ublkb0 is in use' 'is mounted on /mnt/alpha'
refused "alpha demote $MIRROR" 'it is attached' '/dev/ublkb0 is served from here'
touch "$work/end"
wait "$writer" || fail "fio: $(cat "$work"/fio-*)"
no_kernel_errors
proof "the daemon was killed $CRASHES times and replaced twice with writes in flight: no error, every block verified"
proof "longest time without an answer for the application: $(longest_ms "$work") ms"

umount /mnt/alpha
mount /dev/ublkb0 /mnt/alpha
fio "${VERIFIED[@]}" --size=16M --randseed="$(cat "$work/rounds")" --verify_only >"$work/last" || fail "$(cat "$work/last")"
umount /mnt/alpha
e2fsck -fn /dev/ublkb0 >"$work/fsck" 2>&1 || fail "e2fsck: $(cat "$work/fsck")"
proof 'mounted again: every block verified, e2fsck -fn is clean'
detach_device alpha
[ ! -e /dev/ublkb0 ] && [ ! -e /dev/ublkc0 ] || fail 'the kernel has the device still'
no_kernel_errors
proof 'detached: the kernel has no such device any more'

attach_device alpha /dev/ublkb3
mount /dev/ublkb3 /mnt/alpha
on alpha detach "$MIRROR" --force --yes >/dev/null
[ ! -e /dev/ublkb3 ] || fail 'the kernel has the device still'
umount /mnt/alpha
attach_device alpha /dev/ublkb3
e2fsck -fp /dev/ublkb3 >"$work/fsck" 2>&1 || [ $? = 1 ] || fail "e2fsck: $(cat "$work/fsck")"
detach_device alpha
proof 'detached by force under a mounted ext4, attached again, and detached'
stop alpha
stop beta
cmp /dev/disk0 /dev/disk1 || fail 'the copies differ'
proof 'both disks are equal, byte for byte'
