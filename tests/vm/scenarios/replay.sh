# shellcheck shell=bash
# vm: --backend uml --mem 1024 --mod nbd,dm_mod,dm-log-writes,dm-snapshot,sch_netem,veth --disk 256M --disk 256M --disk 256M --disk 64M --disk 1G --disk 1G --timeout 600
# not when SHORT: every-flush looks at each write
# long
# All that both nodes' four stores are given is recorded (dm-log-writes) while PostgreSQL and fio are at work: in
# sync, without the link, while beta is brought up to date. Then both machines lose power at each of some moments:
# the stores are what had been flushed by then, the boots are new ones, the witness knows what it knew. From there
# the mirror must come up with every commit that was acknowledged by that moment, by its marks alone.
# POINTS: how many moments (3).
# shellcheck source=tests/vm/faults.sh
. "$(dirname "${BASH_SOURCE[0]}")/../faults.sh"
POINTS=${POINTS:-3}
STORES_OF_BOTH=(alpha-data alpha-metadata beta-data beta-metadata)
moments=()

# One moment in which both machines could lose power. Both daemons stand still: none can act upon what another
# store does between two marks.
mark() {
    local name=m${#moments[@]} store
    kill -STOP "${DAEMON[alpha]}" "${DAEMON[beta]}"
    for store in "${STORES_OF_BOTH[@]}"; do dmsetup message "$store" 0 mark "$name"; done
    cp "$ACKNOWLEDGED" "$work/$name"
    cp -r "$NODES/witness" "$work/$name.witness"
    moments+=("$name $phase")
    kill -CONT "${DAEMON[alpha]}" "${DAEMON[beta]}"
}
different_blocks() {
    cmp -l <(dd if=/dev/mapper/alpha-data bs=1M iflag=direct status=none) <(dd if=/dev/mapper/beta-data bs=1M iflag=direct status=none) |
        awk '{ blocks[int(($1 - 1) / 4096)] } END { print length(blocks) }' || :
}
marks() { # COUNT
    local number
    for number in $(seq "$1"); do
        more_commits $((15 + number % 3))
        mark
    done
}

make_nodes
make_service
proof "PostgreSQL and fio are at work on ext4 on the mirror ($(uname -r))"
for node in alpha beta; do power_may_fail "$node"; done
each=$(((POINTS + 2) / 3))
phase='in sync'
marks "$each"
phase='alpha alone'
ip link set to-beta down
wait_for alpha alone
marks "$each"
phase='beta is brought up to date'
# Slowly, so that the power fails in the middle of it.
for node in alpha beta; do
    printf '\n[mirror.%s.resync]\nmax-rate = "1MiB/s"\n' "$MIRROR" >>"$NODES/$node/kagami.toml"
    on "$node" reload >/dev/null
done
ip link set to-beta up
wait_for alpha resynchronising
marks $((POINTS - 2 * each > 0 ? POINTS - 2 * each : 1))
kill "$CLIENT"
for node in alpha beta; do crash "$node"; done
lose_service
for node in alpha beta; do sed -i "/^\[mirror.$MIRROR.resync\]/,\$d" "$NODES/$node/kagami.toml"; done
# The logs are whole once nobody writes to them; the disks as they were are the other sides.
for store in "${STORES_OF_BOTH[@]}"; do
    SIDE[$store]=b
    heal "$store"
done
proof "${#moments[@]} moments are recorded, $(acknowledged) commits"

before=''
for moment in "${moments[@]}"; do
    name=${moment%% *}
    [ -z "${DAEMON[witness]:-}" ] || crash witness
    rm -rf "$NODES/witness"
    cp -r "$work/$name.witness" "$NODES/witness"
    for store in "${STORES_OF_BOTH[@]}"; do
        heal "$store"
        "$VM/replay-writes" "/dev/mapper/$store.log" "/dev/mapper/$store.b" ${before:+--from-mark "$before"} --to-mark "$name" >"$work/replayed-$store" ||
            fail "replay of $store to $name"
        # What comes of it is written elsewhere: the next moment goes on from these disks.
        put_under "$store" "0 $(sectors "$store") snapshot /dev/mapper/$store.b /dev/mapper/$store.a N 8"
    done
    before=$name
    different=$(different_blocks)
    for node in alpha beta; do new_boot "$node"; done
    began=$(now_ms)
    start witness witness
    start beta up
    start alpha up
    ACKNOWLEDGED=$work/$name
    wait_until 60 'alpha serves /dev/nbd0' served_or_attached
    mount_mirror /dev/nbd0
    rm -f "$MOUNTED/pg/postmaster.pid"
    start_database
    took=$(($(now_ms) - began))
    nothing_is_missing
    wait_for alpha in-sync 60
    sent=$(number alpha resync_bytes)
    stop_database
    umount "$MOUNTED"
    fsck /dev/nbd0
    detach_device alpha
    on alpha demote "$MIRROR" >/dev/null
    stop alpha
    stop beta
    compare_stores
    no_kernel_errors
    proof "power loss of both, ${moment#* }, after $(acknowledged) commits: $different blocks differed; the database is back after $took ms with all of them, $((sent / 4096)) blocks were sent, copies equal, fsck clean"
done
