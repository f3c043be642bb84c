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

# Writes a file in random order, reads all of it back, and begins again. It ends when there is the
# file `end`; what it wrote last is verified once more below.
job=(--name=verified --directory=/mnt/alpha --size=32M --bs=4k --ioengine=libaio --direct=1 --iodepth=16
    --rw=randwrite --verify=crc32c --verify_fatal=1)
verify_on_and_on() {
    local round=0
    until [ -e "$work/end" ]; do
        round=$((round + 1))
        fio "${job[@]}" --randseed="$round" --output-format=json --output="$work/fio-$round" || return 1
    done
    echo "$round" >"$work/rounds"
}
verify_on_and_on & writer=$!

# So many requests of clients were answered, and are under way.
has_written() { # COUNT
    [ "$(number alpha writes)" -ge "$1" ] && [ "$(number alpha in_flight)" -gt 0 ]
}
for round in $(seq "$CRASHES"); do
    wait_until 60 "writes under way, round $round" has_written 500
    crash alpha
    start alpha up
    wait_for alpha in-sync
done
wait_until 60 'writes after the last restart' has_written 500
touch "$work/end"
wait "$writer" || fail "fio: $(cat "$work"/fio-*)"
no_kernel_errors
longest=$(sed -n '/"clat_ns"/,/}/s/.*"max" : \([0-9]*\).*/\1/p' "$work"/fio-* | sort -n | tail -n 1)
proof "the daemon was killed $CRASHES times with writes in flight: no error, every block verified"
proof "longest time without an answer for the application: $((longest / 1000000)) ms"

umount /mnt/alpha
mount /dev/nbd0 /mnt/alpha
fio "${job[@]}" --randseed="$(cat "$work/rounds")" --verify_only >"$work/last" || fail "$(cat "$work/last")"
umount /mnt/alpha
e2fsck -fn /dev/nbd0 >"$work/fsck" 2>&1 || fail "e2fsck: $(cat "$work/fsck")"
proof 'mounted again: every block verified, e2fsck -fn is clean'
detach_device alpha
stop alpha
stop beta
cmp /dev/disk0 /dev/disk1 || fail 'the copies differ'
proof 'detached; both disks are equal, byte for byte'
