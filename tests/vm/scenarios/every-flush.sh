# shellcheck shell=bash
# vm: --backend uml --mem 1408 --mod nbd,dm_mod,dm-log-writes,sch_netem,veth --disk 800M --disk 800M --disk 256M --disk 64M --disk 1G --disk 1G --timeout 600
# Both stores of the Primary lie on one device, of which every write and flush is recorded in its order, under
# PostgreSQL and fio: without its peer, while the peer is brought up to date, in sync. Then the copy that a power cut
# would have left is looked at for each flush and each write: every block is marked on stable storage before it is
# written, every block that differs from the peer's is marked, the metadata can be read. The reader (tests/vm/marks.py)
# is written after docs/on-disk-format.md, not after kagami's code.
# COMMITS: how many while the peer is away (90).
# shellcheck source=tests/vm/faults.sh
. "$(dirname "${BASH_SOURCE[0]}")/../faults.sh"
COMMITS=${COMMITS:-90}
# More extents than may be hot (64 at least), so that the activity log and the pages are written all the time.
DATA_MIB=400

# From now on every write of both of alpha's stores goes to one log. Nothing is written meanwhile.
record_both() {
    local store at=0
    local -A offset=()
    for store in alpha-data alpha-metadata; do
        dmsetup suspend --nolockfs "$store"
        dd if="$(side "$store")" of="$(other_side "$store")" bs=1M oflag=direct iflag=direct status=none
        offset[$store]=$at
        at=$((at + $(sectors "$store")))
    done
    both side | dmsetup create alpha-now
    both other_side | dmsetup create alpha-before
    dmsetup create alpha-both --table "0 $at log-writes /dev/mapper/alpha-now /dev/mapper/alpha-data.log"
    for store in alpha-data alpha-metadata; do
        dmsetup load "$store" --table "0 $(sectors "$store") linear /dev/mapper/alpha-both ${offset[$store]}"
        dmsetup resume "$store"
    done
}
# The data, then the metadata, in one device.
both() { # SIDE
    printf '0 %s linear %s 0\n' "$(sectors alpha-data)" "$("$1" alpha-data)"
    printf '%s %s linear %s 0\n' "$(sectors alpha-data)" "$(sectors alpha-metadata)" "$("$1" alpha-metadata)"
}
# All over the disk, beside what PostgreSQL and fio do: 256 MiB are 64 extents.
spread() {
    (cd "$MOUNTED" && exec setsid fio --name=spread --thread --filename=spread --size=256M --fallocate=native --bs=4k --ioengine=libaio --direct=1 --iodepth=4 \
        --rw=randwrite --rate_iops=20 --time_based --runtime=3600) >"$work/spread" 2>&1 & SPREAD=$!
    disown
}
note() { dmsetup message alpha-both 0 mark "$1"; }
look_at_every_flush() { # [ARG...]
    "$VM/every-flush" /dev/mapper/alpha-data.log /dev/mapper/alpha-before /dev/mapper/alpha-now "$work/peer" "$@"
}

begin_initdb
make_network
make_stores
make_pair "${DATA_MIB}M" --activity-log-extents 64
make_service
proof "PostgreSQL and fio are at work on ext4 on the mirror ($(uname -r))"
ip link set to-beta down
wait_for alpha alone
# Nobody writes beta's copy from here on, until it is met again.
dd if=/dev/mapper/beta-data of="$work/peer" bs=1M iflag=direct status=none
record_both
note alone
spread
more_commits "$COMMITS"
note met
ip link set to-beta up
wait_for alpha in-sync 120
more_commits $((COMMITS / 3))
proof "recorded: $(acknowledged) commits, without the peer, then with it"

kill "$CLIENT"
kill -KILL -- "-$SPREAD"
stop_service
detach_device alpha
stop alpha
stop beta
compare_stores
for store in alpha-data alpha-metadata; do heal "$store"; done
dmsetup remove alpha-both
counts=$(look_at_every_flush) || fail "a copy that a power cut could have left is not sound: $counts"
proof "at each of them the copy is sound: $counts"
found=$(look_at_every_flush --forget 5 2>&1) && fail "a log without every fifth write of the metadata passed: $found"
case $found in *'not marked'*) ;; *) fail "a log without every fifth write of the metadata: $found" ;; esac
proof "with every fifth write of the metadata left out it is found: ${found#every-flush: }"
