# shellcheck shell=bash
# vm: --backend uml --mem 768 --disk 128M --disk 128M --disk 512M --timeout 900
# not when SHORT: it waits
# A request is held for minutes, and then answered without an error. Two mirrors, two reasons: the one
# that is attached on alpha holds its requests since its peer is gone (`solo = "never"`: I/O HELD);
# the one that is attached on beta waits in the kernel, since beta's daemon is gone.
# HOLD: for how many seconds; the kernel's own timer of 30 s has to come by more than once.
SOLO=never
# shellcheck source=tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
HOLD=${HOLD:-75}
work=$(mktemp -d)

before_start() {
    on alpha init second --size 64M >/dev/null
    offer_and_join 'alpha pair second --address 127.0.0.1' 'beta pair --join'
}
make_pair 128M
attach_device alpha /dev/nbd0
on beta attach second --device /dev/nbd1 >/dev/null
proof "attached: pg on alpha as /dev/nbd0, second on beta as /dev/nbd1 ($(uname -r))"

# Whoever waits longer than two minutes is a warning to this kernel, and the point here.
{ echo 0 >/proc/sys/kernel/hung_task_timeout_secs; } 2>/dev/null || :
dd if=/dev/urandom of="$work/before" bs=1M count=1 status=none
dd if=/dev/urandom of="$work/during" bs=1M count=4 status=none
copy() { # FILE DEVICE MIB
    dd if="$1" of="$2" bs=1M seek="$3" oflag=direct conv=notrunc status=none
}
check() { # FILE DEVICE MIB
    local count=$(($(stat -c %s "$1") >> 20))
    dd if="$2" bs=1M skip="$3" count="$count" iflag=direct status=none | cmp - "$1" || fail "$2 holds something else"
}
for device in /dev/nbd0 /dev/nbd1; do copy "$work/before" "$device" 0; done

crash beta
began=$SECONDS
declare -A waiter
for device in /dev/nbd0 /dev/nbd1; do
    copy "$work/during" "$device" 8 2>"$work/error${device##*/}" & waiter[$device]=$!
done
wait_for alpha held
on alpha status "$MIRROR" | grep -q 'I/O HELD' || fail 'status does not say I/O HELD'
refused "alpha detach $MIRROR" 'not detached' 'has /dev/nbd0 open'
until [ $((SECONDS - began)) -ge "$HOLD" ]; do
    for device in "${!waiter[@]}"; do
        kill -0 "${waiter[$device]}" 2>/dev/null || fail "a request to $device ended: $(cat "$work/error${device##*/}")"
    done
    sleep 1
done
proof "beta's daemon is dead; a write to either device has waited for $((SECONDS - began)) s"

returned=$(now_ms)
start beta up
for device in /dev/nbd0 /dev/nbd1; do
    wait "${waiter[$device]}" || fail "the write to $device failed: $(cat "$work/error${device##*/}")"
    proof "the write to $device is done without an error, $(($(now_ms) - returned)) ms after beta's daemon was started"
done
wait_for alpha in-sync
no_kernel_errors
for device in /dev/nbd0 /dev/nbd1; do
    check "$work/before" "$device" 0
    check "$work/during" "$device" 8
done
proof 'both devices hold what was written before and while they waited'
detach_device alpha
on beta detach second >/dev/null
stop alpha
stop beta
cmp /dev/disk0 /dev/disk1 || fail 'the copies of pg differ'
cmp "$NODES/alpha/second.data" "$NODES/beta/second.data" || fail 'the copies of second differ'
proof 'detached; both copies of both mirrors are equal, byte for byte'
