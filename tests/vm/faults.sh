# shellcheck shell=bash
# The faults, each as a function: from the moment it begins until its cause is gone. What must hold
# afterwards is `episode`'s business (service.sh).
# shellcheck source=tests/vm/service.sh
. "$(dirname "${BASH_SOURCE[0]}")/service.sh"

other() { if [ "$1" = alpha ]; then echo beta; else echo alpha; fi; }
# A fault lasts for its time, whatever comes of it.
last() { sleep "$1"; }
more_commits() { # COUNT
    local before
    before=$(acknowledged)
    wait_until 60 "$1 more commits" has_acknowledged_more $((before + $1))
}

# ---- daemons --------------------------------------------------------------------------------

kill_daemon() { # NODE TIMES
    local round
    for round in $(seq "$2"); do
        crash "$1"
        # Without its peer the Primary goes on after a while; without its own daemon the service waits.
        [ "$1" = "$ACTIVE" ] || serves_again 60
        start "$1" up
        serves_again 60
        # Every other time it is killed while it is brought up to date, perhaps.
        [ $((round % 2)) = 1 ] || wait_for "$ACTIVE" in-sync 120
    done
}

stop_daemon() { # NODE SECONDS
    kill -STOP "${DAEMON[$1]}"
    last "$2"
    kill -CONT "${DAEMON[$1]}"
}

# alpha is Primary and stands still, beta takes over and is written to, alpha wakes up: with requests of its kernel
# before it, and a file system that knows of nothing. None of them may be done, and no commit be acknowledged.
take_over_from_stopped() { # SECONDS-MORE
    local before
    kill -STOP "${DAEMON[alpha]}"
    promote beta
    before=$(acknowledged)
    nbd-client -unix "$NODES/beta/$MIRROR.nbd" /dev/nbd1 -N "$MIRROR" >/dev/null
    mkdir -p /mnt/other
    mount /dev/nbd1 /mnt/other
    dd if=/dev/urandom of=/mnt/other/new bs=1M count=4 conv=fsync status=none
    umount /mnt/other
    drop_device /dev/nbd1
    last "$1"
    kill -CONT "${DAEMON[alpha]}"
    wait_until 60 "alpha's device is stale ($(device_state alpha))" is_stale
    [ "$(acknowledged)" = "$before" ] || fail 'a Primary that had lost its place answered writes'
    no_kernel_errors
    kill_service
    umount -l "$MOUNTED"
    on alpha detach "$MIRROR" --force --yes >"$work/detached" 2>&1 || fail "kagami detach --force: $(cat "$work/detached")"
    wait_until 30 'nothing of the dead service is left' nothing_is_left
    dmesg -C
    begin_service_on beta
}
is_stale() { [ "$(device_state alpha)" = stale ]; }

# As an upgrade goes: the secondary first.
upgrade() { # PROGRAM
    local node
    for node in beta alpha; do
        terminate "$node"
        start "$node" up "$1"
        wait_for "$node" in-sync 60
    done
}

# ---- disks ----------------------------------------------------------------------------------

# The daemon that has lost a disk gets it back when it is started again. On the Primary that is a move: its copy is
# brought up to date with the other's, and what its kernel holds belongs to neither any more (docs/symptoms.md,
# STALE). So the service is stopped before; or, where its requests failed or are held (failing_metadata), killed.
with_disk_back() { # STORE
    local node=${1%%-*}
    if [ "$node" != "$ACTIVE" ]; then
        terminate "$node"
        heal "$1"
        start "$node" up
        return
    fi
    if [[ $1 = *-metadata ]]; then
        # Neither its disk nor its peer was there: an error is the answer then.
        dmesg -C
        crash "$node"
        lose_service
    else
        stop_service
        detach_device "$node"
        terminate "$node"
    fi
    heal "$1"
    start "$node" up
    wait_for "$node" in-sync 120
    begin_service_on "$node"
}
stop_service() {
    stop_database
    kill -KILL -- "-$FIO"
    wait_until 20 'nobody uses the file system' unmounted
}

# Every write and flush fails, reads are right.
failing_disk() { # STORE
    local from
    from=$(now_ms)
    put_under "$1" "0 $(sectors "$1") flakey $(side "$1") 0 0 86400 1 error_writes"
    wait_until 60 "the mirror has one copy left (it is $(condition "$ACTIVE"))" has_one_copy
    more_commits 20
    MORE=" ($(longest_gap_ms "$from") when the disk failed)"
    with_disk_back "$1"
}
# While both copies are in sync and all extents in use are hot nobody writes metadata: the link fails, too. The
# other one's node has something to write once it is heard again. The Primary's would go on alone, and can't record
# it: the arbiter has named it by then, so that nobody goes on until its disk is back.
failing_metadata() { # STORE
    local node=${1%%-*}
    put_under "$1" "0 $(sectors "$1") flakey $(side "$1") 0 0 86400 1 error_writes"
    link_down 3
    if [ "$node" = "$ACTIVE" ]; then
        wait_until 60 "nobody may go on (it is $(condition "$node"))" is "$node" held
    else
        wait_until 60 "$node can't write its metadata (it is $(condition "$node"))" is "$node" unusable
        wait_until 60 "the mirror has one copy left (it is $(condition "$ACTIVE"))" has_one_copy
    fi
    with_disk_back "$1"
}
has_one_copy() { case $(condition "$ACTIVE" 2>/dev/null) in one-copy | alone) ;; *) return 1 ;; esac; }

# Writes are answered, and dropped. Nobody can notice but who compares.
lying_disk() { # STORE SECONDS
    put_under "$1" "0 $(sectors "$1") flakey $(side "$1") 0 0 86400 1 drop_writes"
    last "$2"
    heal "$1"
    on "$ACTIVE" verify "$MIRROR" --repair --wait --timeout 100s >"$work/repaired" 2>&1 || fail "kagami verify --repair: $(cat "$work/repaired")"
    grep -q 'differed and were resynchronised' "$work/repaired" || fail "the dropped writes were not found: $(cat "$work/repaired")"
}

slow_disk() { # STORE MILLISECONDS SECONDS
    put_under "$1" "0 $(sectors "$1") delay $(side "$1") 0 0 $(side "$1") 0 $2"
    last "$3"
    heal "$1"
}

# Nothing is answered at all, then everything.
stalled_disk() { # STORE SECONDS
    dmsetup suspend --noflush --nolockfs "$1"
    last "$2"
    dmsetup resume "$1"
}

# ---- the link -------------------------------------------------------------------------------

link_down() { # SECONDS
    ip link set to-beta down
    last "$1"
    ip link set to-beta up
}

# What a node sends to the other, on its way: lost, late, in disorder.
on_the_way_from() { # NODE NETEM-OPTION...
    case $1 in
        alpha) tc qdisc replace dev to-beta root netem "${@:2}" ;;
        beta) tc -n beta qdisc replace dev to-alpha root netem "${@:2}" ;;
    esac
}
clear_way_from() { # NODE
    case $1 in
        alpha) tc qdisc del dev to-beta root ;;
        beta) tc -n beta qdisc del dev to-alpha root ;;
    esac
}
one_way() { # NODE-THAT-IS-NOT-HEARD SECONDS
    on_the_way_from "$1" loss 100%
    last "$2"
    clear_way_from "$1"
}
bad_link() { # SECONDS NETEM-OPTION...
    local node
    for node in alpha beta; do on_the_way_from "$node" "${@:2}"; done
    last "$1"
    for node in alpha beta; do clear_way_from "$node"; done
}
small_mtu() { # BYTES SECONDS
    set_mtu "$1"
    last "$2"
    set_mtu 1500
}
set_mtu() {
    ip link set to-beta mtu "$1"
    ip -n beta link set to-alpha mtu "$1"
}

# beta moves, and alpha is told.
new_address_of_beta() { # OLD NEW
    ip -n beta address del "$1/24" dev to-alpha
    ip -n beta address add "$2/24" dev to-alpha
    on alpha peer set beta --address "$2:7002" >/dev/null
    wait_until 60 "connected to $2" connected_to "$2"
}
connected_to() { on alpha status "$MIRROR" --json | grep -q "\"address\":\"$1:7002\"" && is alpha in-sync; }
# alpha moves, and nobody tells beta: alpha has the lower id, and dials.
new_address_of_alpha() { # OLD NEW
    ip address del "$1/24" dev to-beta
    ip address add "$2/24" dev to-beta
    serves_again 60
}

# ---- power ----------------------------------------------------------------------------------

# From now on a node's disks have a volatile cache: what is written is recorded, so that what a power cut leaves
# can be told. The disk that stays is the other side, as it is now.
power_may_fail() { # NODE
    local store
    for store in "$1-data" "$1-metadata"; do
        dmsetup suspend --nolockfs "$store"
        dd if="$(side "$store")" of="$(other_side "$store")" bs=1M oflag=direct iflag=direct status=none
        dmsetup load "$store" --table "0 $(sectors "$store") log-writes $(side "$store") /dev/mapper/$store.log"
        dmsetup resume "$store"
    done
}

# Its power has failed, and is back: its disks hold what had been flushed, and some of the sectors that had not.
# Its daemon is dead.
power_is_back() { # NODE
    local store
    for store in "$1-data" "$1-metadata"; do
        SIDE[$store]=$(tr ab ba <<<"${SIDE[$store]}")
        heal "$store"
        "$VM/replay-writes" "/dev/mapper/$store.log" "$(side "$store")" --keep $((RANDOM % 101)) --seed $RANDOM >"$work/replayed-$store" ||
            fail "replay of $store"
    done
    new_boot "$1"
}

# The kernel of the node that served is gone: its device, its mounts, what ran on it.
lose_service() {
    no_kernel_errors
    kill_service
    if [ "$ACTIVE" = alpha ]; then
        drop_device /dev/nbd0
        rm -f "/dev/kagami/$MIRROR"
    else
        drop_device /dev/nbd1
    fi
    umount -l "$MOUNTED"
    wait_until 30 'nothing of the dead machine is left' nothing_is_left
    dmesg -C
}
nothing_is_left() { ! pgrep -u postgres >/dev/null && has_ended "-$FIO"; }

# The service on the node that is Primary, or may be.
begin_service_on() { # NODE
    ACTIVE=$1
    if [ "$1" = alpha ]; then
        wait_until 60 "alpha serves /dev/nbd0 ($(condition alpha))" served_or_attached
        mount_mirror /dev/nbd0
    else
        promote beta
        # The kernel hands out its devices in one network only, and beta lives in another.
        nbd-client -unix "$NODES/beta/$MIRROR.nbd" /dev/nbd1 -N "$MIRROR" >/dev/null
        mount_mirror /dev/nbd1
    fi
    rm -f "$MOUNTED/pg/postmaster.pid"
    start_database
    start_fio
}
served_or_attached() { is_served alpha || on alpha attach "$MIRROR" --device /dev/nbd0 >/dev/null 2>&1; }

power_loss_of_secondary() {
    local node
    node=$(other "$ACTIVE")
    power_may_fail "$node"
    more_commits 60
    crash "$node"
    power_is_back "$node"
    serves_again 60
    start "$node" up
}

# The service moves to the other node.
power_loss_of_primary() {
    local node=$ACTIVE
    power_may_fail "$node"
    more_commits 60
    crash "$node"
    lose_service
    begin_service_on "$(other "$node")"
    power_is_back "$node"
    start "$node" up
}

# Both machines at once; the service begins again where it was.
power_loss_of_both() {
    local node back
    for node in alpha beta; do power_may_fail "$node"; done
    more_commits 60
    kill -KILL "${DAEMON[alpha]}" "${DAEMON[beta]}"
    wait "${DAEMON[alpha]}" "${DAEMON[beta]}" 2>/dev/null || :
    unset "DAEMON[alpha]" "DAEMON[beta]"
    lose_service
    for node in alpha beta; do power_is_back "$node"; done
    back=$(now_ms)
    start beta up
    start alpha up
    begin_service_on "$ACTIVE"
    serves_again 60
    MORE=" ($(($(now_ms) - back)) after the power was back)"
}

# Handed over from beta to alpha, where the kernel's device is kagami's own.
move_back() {
    stop_service
    drop_device /dev/nbd1
    on beta demote "$MIRROR" >/dev/null
    begin_service_on alpha
}
