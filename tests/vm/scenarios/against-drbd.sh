# shellcheck shell=bash
# vm: --backend uml --mem 1280 --mod nbd,drbd:usermode_helper=/bin/true,raid1 --disk 256M --disk 256M --disk 256M --disk 256M --disk 256M --disk 256M --disk 256M --disk 256M --timeout 1800
# by name only: it measures, and proves nothing but that both copies are equal
# packages: drbd-utils mdadm nbdkit
# A mirror of kagami (by the kernel's nbd), one of DRBD 8.4 and a RAID 1 of md with one leg over nbd, each with both
# disks in this machine, beside a bare disk: fio's random and sequential writes and its reads (beside.sh says how). Then
# kagami without its peer, which is what a program behind nbd costs before anything is replicated. docs/performance.md
# has the tables, and what is not compared.
SOLO=never
# shellcheck source=tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=tests/vm/beside.sh
. "$(dirname "${BASH_SOURCE[0]}")/../beside.sh"
RAW=/dev/disk3 DRBD=(/dev/disk4 /dev/disk5) MD=(/dev/disk6 /dev/disk7)
DRBDSETUP=/lib/drbd/drbdsetup-84
for program in "$DRBDSETUP" mdadm nbdkit; do
    command -v "$program" >/dev/null || fail "no $program: install the Debian packages drbd-utils, mdadm and nbdkit"
done

# Two minors of one kernel, each the other's peer, which need no first copy: both are known to be empty.
drbd_is() { ! grep ' cs:' /proc/drbd | grep -qv "$1"; }
make_drbd() {
    local minor
    for minor in 0 1; do
        drbdmeta --force "$minor" v08 "${DRBD[minor]}" internal create-md >/dev/null 2>&1 || fail "drbdmeta on ${DRBD[minor]}"
        "$DRBDSETUP" new-resource "r$minor"
        "$DRBDSETUP" new-minor "r$minor" "$minor" 0
        "$DRBDSETUP" attach "$minor" "${DRBD[minor]}" "${DRBD[minor]}" internal
    done
    "$DRBDSETUP" connect r0 ipv4:127.0.0.1:7788 ipv4:127.0.0.1:7789 --protocol=C
    "$DRBDSETUP" connect r1 ipv4:127.0.0.1:7789 ipv4:127.0.0.1:7788 --protocol=C
    wait_until 60 'DRBD is connected' drbd_is cs:Connected
    "$DRBDSETUP" new-current-uuid --clear-bitmap 0
    wait_until 60 "DRBD's copies are in sync" drbd_is ds:UpToDate/UpToDate
    "$DRBDSETUP" primary 0
}

# The other leg is a disk behind nbdkit at a port of 127.0.0.1, its device set as kagami sets its own.
is_there() { nbd-client 127.0.0.1 10809 /dev/nbd1 -N '' >/dev/null 2>&1; }
make_md() {
    nbdkit --foreground --ipaddr 127.0.0.1 --port 10809 file "${MD[1]}" & NBDKIT=$!
    wait_until 30 'nbdkit serves' is_there
    echo none >/sys/block/nbd1/queue/scheduler
    cat /sys/block/nbd0/queue/max_sectors_kb >/sys/block/nbd1/queue/max_sectors_kb
    # What a mirror tells is at the disks' end: its data begin where theirs do.
    mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --metadata=1.0 --bitmap=internal --assume-clean \
        "${MD[0]}" --write-mostly /dev/nbd1 >/dev/null 2>&1 || fail "mdadm: $(cat /proc/mdstat)"
}

are_equal() { cmp -n $((200 << 20)) "$1" "$2" || fail "the copies on $1 and $2 differ"; }

make_pair 256M
attach_device alpha /dev/nbd0
make_drbd
make_md
DEVICE=([raw]=$RAW [kagami]=/dev/nbd0 [drbd]=/dev/drbd0 [md]=/dev/md0)
WATCH=([primary]=${DAEMON[alpha]} [secondary]=${DAEMON[beta]} [nbdkit]=$NBDKIT)
proof "raw, kagami, DRBD and md stand beside each other (Linux $(uname -r), $(nproc) CPU)"
BY=(raw drbd)
prepare raw kagami drbd md
compare raw kagami drbd md

"$DRBDSETUP" secondary 0
"$DRBDSETUP" down r0
"$DRBDSETUP" down r1
are_equal "${DRBD[@]}"
mdadm --stop /dev/md0 >/dev/null 2>&1
nbd-client -d /dev/nbd1 >/dev/null
are_equal "${MD[@]}"
proof "both copies of DRBD's and of md's are equal"

unset 'WATCH[secondary]' 'WATCH[nbdkit]'
stop beta
wait_for alpha alone
DEVICE[alone]=/dev/nbd0
BY=(raw)
proof 'kagami without its peer:'
compare raw alone
start beta up
wait_for alpha in-sync 200
detach_device alpha
stop alpha
stop beta
cmp /dev/disk0 /dev/disk1 || fail "kagami's copies differ"
proof "both copies of kagami's are equal"
