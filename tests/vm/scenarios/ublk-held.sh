# shellcheck shell=bash
# vm: --backend qemu --mem 1024 --mod ublk_drv --disk 128M --disk 128M --disk 512M --timeout 900
# not when SHORT: it waits
# Requests to /dev/ublkb0 are held for minutes since the peer is gone (`solo = "never"`), then answered without
# an error; held again, they outlive the daemon; held once more, `detach --force` fails them at once.
# HOLD: for how many seconds; the kernel's own timer of 1 s comes by time and again.
SOLO=never
# shellcheck source=tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
HOLD=${HOLD:-45}
DEV=/dev/ublkb0
work=$(mktemp -d)

make_pair 128M
attach_device alpha "$DEV"
# Whoever waits longer than two minutes is a warning to this kernel, and the point here.
{ echo 0 >/proc/sys/kernel/hung_task_timeout_secs; } 2>/dev/null || :
dd if=/dev/urandom of="$work/data" bs=1M count=4 status=none
copy() { # MIB
    dd if="$work/data" of="$DEV" bs=1M seek="$1" oflag=direct conv=notrunc status=none 2>"$work/error$1"
}
check() { # MIB
    dd if="$DEV" bs=1M skip="$1" count=4 iflag=direct status=none | cmp - "$work/data" || fail "$DEV holds something else"
}
hold() { # MIB
    crash beta
    copy "$1" & waiter=$!
    wait_for alpha held
    kill -0 "$waiter" || fail "a request ended: $(cat "$work/error$1")"
}
waits() { [ "$(device_state alpha)" = waiting ]; }
copy 0

began=$SECONDS
hold 8
refused "alpha detach $MIRROR" 'not detached' "has $DEV open"
until [ $((SECONDS - began)) -ge "$HOLD" ]; do
    kill -0 "$waiter" 2>/dev/null || fail "a request ended: $(cat "$work/error8")"
    sleep 1
done
start beta up
wait "$waiter" || fail "the write failed: $(cat "$work/error8")"
proof "a write waited for $((SECONDS - began)) s for the peer, and is done without an error"
wait_for alpha in-sync

hold 16
crash alpha
start alpha up
wait_until 60 'a word why it is not served' waits
kill -0 "$waiter" || fail "a request ended: $(cat "$work/error16")"
start beta up
wait "$waiter" || fail "the write failed: $(cat "$work/error16")"
wait_until 60 "$DEV is served" is_served alpha
wait_for alpha in-sync
proof 'a write outlived a daemon that held it, and is done without an error'
check 0
check 8
check 16

hold 24
on alpha detach "$MIRROR" --force --yes >/dev/null
if wait "$waiter"; then fail 'a write that waited at a forced detach was told to be done'; fi
[ ! -e "$DEV" ] || fail "$DEV is still there"
proof 'detached by force: what waited failed, and the device is gone'
start beta up
wait_for alpha in-sync
stop alpha
stop beta
cmp /dev/disk0 /dev/disk1 || fail 'the copies differ'
proof 'both disks are equal, byte for byte'
