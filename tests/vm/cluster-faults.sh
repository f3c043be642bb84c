# shellcheck shell=bash
# The faults of the scenario failover-service, each as a function: from the moment it begins (FROM) until its cause is
# gone, and where the group has to be afterwards. What must hold then is `episode`'s business (cluster.sh).
# shellcheck source=tests/vm/cluster.sh
. "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"

# A fault lasts for its time, whatever comes of it.
last() { sleep "$1"; }
more_commits() { # COUNT
    local before
    before=$(acknowledged)
    wait_until 60 "$1 more commits" has_acknowledged_more $((before + $1))
}

# ---- processes ------------------------------------------------------------------------------

kill_postgres() {
    local node=$ACTIVE
    FROM=$(now_ms)
    # shellcheck disable=SC2016 # for the inner shell
    inside "$node" sh -c 'kill -KILL "$(head -n 1 "$0")"' "$MOUNTED/pg/postmaster.pid"
    serves_again 60
    alerted "$node" 'ended' || fail 'nobody noticed that PostgreSQL had ended'
    stays_on "$node"
}
# As a service manager starts it again.
kill_daemon() {
    local node=$ACTIVE
    FROM=$(now_ms)
    crash "$node"
    start "$node" up
    serves_again 60
    stays_on "$node"
}
kill_node() {
    local node=$ACTIVE
    kill_machine "$node"
    serves_again 90
    is_on "$(other "$node")"
    power_on "$node"
}
reboot_both() {
    local node
    kill_machine "$ACTIVE"
    node=$(other "$ACTIVE")
    cables "$node" down
    kill -KILL "${BOOT[$node]}"
    unset "DAEMON[$node]" "MANAGER[$node]"
    for node in alpha beta; do wait_until 30 "nothing of $node is left" is_dead "$node"; done
    # From the moment that the power is back.
    FROM=$(now_ms)
    power_on alpha
    power_on beta
    serves_again 90
}

# ---- links ----------------------------------------------------------------------------------

# Neither hears the other; both are heard by the arbiter and by the client.
cut_between() { # SECONDS
    local node=$ACTIVE
    FROM=$(now_ms)
    ip -n switches link set alpha-eth1 down
    deafen alpha "${LAN[beta]}"
    deafen beta "${LAN[alpha]}"
    last "$1"
    hear_again alpha "${LAN[beta]}"
    hear_again beta "${LAN[alpha]}"
    ip -n switches link set alpha-eth1 up
    serves_again 60
    stays_on "$node"
}
cut_from_arbiter() { # SECONDS
    local node=$ACTIVE
    FROM=$(now_ms)
    deafen "$node" "${LAN[witness]}"
    last "$1"
    hear_again "$node" "${LAN[witness]}"
    stays_on "$node"
}
# It lives, and nobody hears it. Its group freezes, loses its address and is stopped; what can't be stopped, since its
# disk waits for a permission that does not come, is what a reset is for. That one is done here.
cut_from_world() {
    local node=$ACTIVE device=${DEVICE[$ACTIVE]} guarded
    guarded=$(lines "$NODES/$node/failover/guard.log")
    FROM=$(now_ms)
    cables "$node" down
    serves_again 90
    is_on "$(other "$node")"
    wait_until 60 "$node has stopped its group, or calls for its reset" stopped_or_to_be_reset "$node" "$guarded"
    never_two
    if is_to_be_reset "$node" "$guarded"; then
        MORE=", $node called for its reset"
        DEVICE[$node]=$device
        reset_machine "$node"
    else
        MORE=", $node stopped what it had"
        cables "$node" up
    fi
}
is_to_be_reset() { # NODE LINES-OF-ITS-GUARD-BEFORE
    tail -n +"$(($2 + 1))" "$NODES/$1/failover/guard.log" | grep -q 'would be reset now'
}
has_stopped() { ! has_address "$1" && ! inside "$1" mountpoint -q "$MOUNTED"; }
stopped_or_to_be_reset() { is_to_be_reset "$@" || has_stopped "$1"; }
reset_machine() { # NODE
    local from=$FROM
    kill_machine "$1"
    FROM=$from
    power_on "$1"
}

# ---- disks ----------------------------------------------------------------------------------

# The service goes on from the other copy, and the group moves to where that is. The disk is replaced while it runs there.
failing_disk() {
    local node=$ACTIVE store="$ACTIVE-data" to
    to=$(other "$node")
    FROM=$(now_ms)
    put_under "$store" "0 $(sectors "$store") error"
    wait_until 60 "the group moves to $to" runs_on "$to"
    serves_again 60
    wait_until 60 'the group is online' is_online
    is_on "$to"
    alerted "$node" 'fails over' || fail 'it was no failover'
    more_commits 20
    terminate "$node"
    heal "$store"
    start "$node" up
    wait_for "$node" in-sync 120
    more_commits 20
    is_on "$to"
}
runs_on() { has_address "$1" && inside "$1" mountpoint -q "$MOUNTED"; }

# PostgreSQL takes no new session any more. The monitor that writes a row notices it and has it started again, which does
# not help before there is room.
full_disk() {
    local node=$ACTIVE
    FROM=$(now_ms)
    inside "$node" setpriv --reuid postgres --regid postgres --clear-groups \
        dd if=/dev/zero of="$MOUNTED/pg/filler" bs=1M conv=fsync status=none 2>/dev/null || :
    wait_until 60 'a full disk is in the way of PostgreSQL' refuses_a_session
    wait_until 120 'the cluster does something about it' alerted "$node" 'recovers: reactivation'
    inside "$node" rm -f "$MOUNTED/pg/filler"
    MORE=" (room was made after $(($(now_ms) - FROM)))"
    serves_again 90
    wait_until 60 'the group is online' is_online
    sql 'DROP TABLE IF EXISTS filler'
    is_on "$node"
}
refuses_a_session() {
    sql 'CREATE TABLE IF NOT EXISTS filler (text text); INSERT INTO filler SELECT repeat(md5(n::text), 8) FROM generate_series(1, 4000) n' >/dev/null 2>&1 || :
    ! sql 'SELECT 1' >/dev/null 2>&1
}

# ---- the address ----------------------------------------------------------------------------

# The stranger's hardware address.
strangers_mac() { ip -n stranger -o link show eth0 | sed 's/.*ether \([0-9a-f:]*\).*/\1/'; }
# A stranger configures it while the group is down. It must not be brought up beside that one, and comes by itself when
# the stranger has left: on the same node, which tries again after a pause.
taken_address() {
    local node=$ACTIVE mac
    on "$node" group stop shop >/dev/null
    ip -n stranger address add "$FLOATING/24" dev eth0
    mac=$(strangers_mac)
    on "$node" group start shop --on "$node" --no-wait >/dev/null
    wait_until 60 "it is said who has the address ($mac)" alerted "$node" "$mac"
    wait_until 60 'it is tried again' alerted "$node" 'is activated: retry 1'
    ! has_address "$node" || fail "$node has the stranger's address"
    FROM=$(now_ms)
    ip -n stranger address del "$FLOATING/24" dev eth0
    serves_again 60
    wait_until 60 'the group is online' is_online
    is_on "$node"
}
# A stranger takes it from a group that serves, and tells everybody. The clients come back while it still has it, and the
# group stays where it is.
stolen_address() {
    local node=$ACTIVE mac
    mac=$(strangers_mac)
    # It announces what it has when its interface comes up.
    nsenter --net=/run/netns/stranger sh -c 'echo 1 >/proc/sys/net/ipv4/conf/eth0/arp_notify'
    ip -n stranger link set eth0 down
    ip -n stranger address add "$FLOATING/24" dev eth0
    FROM=$(now_ms)
    ip -n stranger link set eth0 up
    wait_until 20 'the client believes it, or the stranger is driven away at once' is_stolen_or_told "$node" "$mac"
    wait_until 60 "it is said who has the address ($mac)" alerted "$node" "$mac"
    serves_again 60
    more_commits 40
    ! client_goes_to "$mac" || fail 'the client is still with the stranger'
    ip -n stranger address del "$FLOATING/24" dev eth0
    wait_until 60 'the monitor is content' alerted "$node" '"name":"address","what":"normal"'
    ! alerted "$node" 'recovers' || fail 'something was recovered'
    stays_on "$node"
}
is_stolen_or_told() { client_goes_to "$2" || alerted "$1" "$2"; } # NODE MAC
client_goes_to() { ip -n client neigh show "$FLOATING" | grep -qF "$1"; } # MAC

# ---- scripts --------------------------------------------------------------------------------

planned_move() {
    local node=$ACTIVE
    FROM=$(now_ms)
    on "$node" group move shop >/dev/null
    serves_again 30
    is_on "$(other "$node")"
}
# It can't be activated on the other node, and comes back.
move_in_vain() { # start-fails|start-hangs
    local node=$ACTIVE there status=0
    there=$(other "$node")
    : >"$work/$1.$there"
    FROM=$(now_ms)
    on "$node" group move shop >"$work/moved" 2>&1 || status=$?
    [ "$status" = 1 ] || fail "a move in vain has status $status: $(cat "$work/moved")"
    wait_until 60 'the group is online' is_online
    rm "$work/$1.$there"
    is_on "$node"
}
# What can't be stopped can't be moved: the node has to go.
stop_hangs() {
    local node=$ACTIVE manager=${MANAGER[$ACTIVE]}
    : >"$work/stop-hangs.$node"
    FROM=$(now_ms)
    on "$node" group move shop --no-wait >/dev/null
    wait_until 60 "the manager of $node has ended" has_ended "$manager"
    grep -q 'would poweroff now' "$NODES/$node/log" || fail "$node was not to be shut down: $(tail -n 3 "$NODES/$node/log")"
    rm "$work/stop-hangs.$node"
    local from=$FROM
    kill_machine "$node"
    FROM=$from
    serves_again 60
    is_on "$(other "$node")"
    power_on "$node"
}
