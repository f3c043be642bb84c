# shellcheck shell=bash
# vm: --backend qemu --mem 1536 --mod ublk_drv --disk 128M --disk 128M --disk 256M --timeout 1500
# long
# /dev/ublkb0 outlives its daemon: killed time and again, with every place of a queue taken, at random moments of
# its start, replaced by another build, dead in the middle of taking the device back, all under a mounted
# ext4 while fio writes and verifies what it wrote. No request fails, no write is lost.
# shellcheck source=tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
CRASHES=4 EARLY=8
if [ -n "${SHORT:-}" ]; then CRASHES=1 EARLY=0; fi
DEV=/dev/ublkb0
work=$(mktemp -d)

# An emulated machine that has little of its host is silent for seconds.
before_start() {
    for node in alpha beta; do sed -i 's/^\[peer\..*\]$/&\ntimeout = "20s"/' "$NODES/$node/kagami.toml"; done
}
make_pair 128M
attach_device alpha "$DEV"
queues=$(find /sys/block/ublkb0/mq -mindepth 1 -maxdepth 1 -type d | wc -l)
mkfs.ext4 -q -b 4096 "$DEV"
mkdir -p /mnt/alpha
mount "$DEV" /mnt/alpha
proof "ext4 is mounted on $DEV, $queues queues ($(uname -r))"

verify_on_and_on "$work" --size=16M & writer=$!
served() { wait_until 60 "$DEV is served" is_served alpha; }
busy() { wait_until 120 "writes under way, $1" has_written "${2:-200}"; }
for round in $(seq "$CRASHES"); do
    busy "round $round"
    crash alpha
    began=$(now_ms)
    start alpha up
    served
    proof "killed, and started: $DEV is served after $(($(now_ms) - began)) ms"
    wait_for alpha in-sync
done

busy 'before the upgrade'
terminate alpha
start alpha up "$KAGAMI_OTHER"
served
wait_for alpha in-sync
proof "the daemon was stopped and replaced by $("$KAGAMI_OTHER" --version)"

# Between the kernel's word that the device is free and its first command for it.
busy 'before the death of one that takes it back'
crash alpha
device() { "$KAGAMI" kernel-device ublk list | grep -o "\"$1\":\"[^\"]*\"" | head -n 1 | cut -d '"' -f 4; }
is_left() { [ "$(device state)" = quiesced ]; }
wait_until 30 'the kernel keeps its requests' is_left
{ sleep infinity & echo $! >"$work/holder"; wait; } |
    "$KAGAMI" kernel-device ublk recover 0 $$ --mark "$(device mark)" >"$work/recover" 2>&1 & taker=$!
wait_until 30 'the device is being taken back' grep -qs waiting "$work/recover"
kill "$(cat "$work/holder")"
wait "$taker" || :
start alpha up
served
proof 'a daemon died while it took the device back: the next one has it'
wait_for alpha in-sync

if [ "$EARLY" -gt 0 ]; then
    busy 'before deaths at the start'
    crash alpha
    for round in $(seq "$EARLY"); do
        start_unwatched alpha up
        # At any moment of a start: that the moment differs is the point.
        busybox usleep $((RANDOM % 400000))
        crash alpha
    done
    start alpha up
    served
    wait_for alpha in-sync
    proof "killed $EARLY times at its start: $DEV is served"
fi

busy 'at the end'
touch "$work/end"
wait "$writer" || fail "fio: $(cat "$work"/fio-*)"
no_kernel_errors
proof "no error, every block verified; longest time without an answer: $(longest_ms "$work") ms"

# One process writes on one queue: more than that has places for, so none is left to be cancelled at a death.
fio "${VERIFIED[@]}" --size=16M --iodepth=256 --randseed=4711 --output="$work/deep" & writer=$!
is_full() { [ "$(number alpha in_flight)" -ge 48 ]; }
wait_until 60 'a queue is full' is_full
crash alpha
began=$(now_ms)
start alpha up
served
took=$(($(now_ms) - began))
wait "$writer" || fail "fio: $(cat "$work/deep")"
proof "killed with every place of a queue taken: served after $took ms, every block verified"

refused "alpha detach $MIRROR" "$DEV is in use" 'is mounted on /mnt/alpha'
refused "alpha demote $MIRROR" 'it is attached' "$DEV is served from here"
umount /mnt/alpha
mount "$DEV" /mnt/alpha
fio "${VERIFIED[@]}" --size=16M --randseed=4711 --verify_only >"$work/last" || fail "$(cat "$work/last")"
umount /mnt/alpha
e2fsck -fn "$DEV" >"$work/fsck" 2>&1 || fail "e2fsck: $(cat "$work/fsck")"
# What the file system of before does not need.
fio --name=small --filename="$DEV" --bs=512 --size=1M --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite \
    --verify=crc32c --verify_fatal=1 --sync=dsync --output="$work/small" || fail "$(cat "$work/small")"
is_zero() { cmp -n $((4 << 20)) "$DEV" /dev/zero; }
dd if=/dev/urandom of="$DEV" bs=1M count=8 oflag=direct status=none
blkdiscard --zeroout --offset 0 --length 4M "$DEV"
is_zero || fail 'what was zeroed is not zero'
blkdiscard --offset 4M --length 4M "$DEV"
proof 'requests of 512 bytes, durable at once, verified; zeroed and discarded'
no_kernel_errors
detach_device alpha
if [ -e "$DEV" ] || [ -e /dev/ublkc0 ]; then fail 'the kernel has the device still'; fi
no_kernel_errors
proof 'detached: the kernel has no such device any more'

attach_device alpha /dev/ublkb3
mkfs.ext4 -q -b 4096 /dev/ublkb3
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
