# shellcheck shell=bash
# Two machines with the failover manager and a service, for the scenario failover-service; cluster-faults.sh has the
# faults. On top of service.sh, whose stores, checks and client it uses.
#
# alpha, beta, a witness, a client and a stranger are network namespaces, plugged into a switch `lan`; alpha and beta
# also into a switch `direct`, over which the mirror is written. The switches are bridges in a namespace of their own, so that
# each cable can be pulled by itself, and the address that moves is really asked for and announced.
#
# alpha and beta are machines besides: process, mount and control group namespaces, a boot id, /run (node-boot).
# SIGKILL of a machine's first process ends all that runs there at once. They share the kernel, so its part of a dead
# machine is taken away by hand: the nbd device, and with it what its file system had not written.
# shellcheck source=tests/vm/service.sh
. "$(dirname "${BASH_SOURCE[0]}")/service.sh"
# shellcheck disable=SC2034 # make_stores reads it
LOG_MIB=(8 8)
FLOATING=10.0.0.10
MOUNTED=/srv/shop
SHOP=/etc/shop
SEEN=$work/never-two
declare -A LAN=([alpha]=10.0.0.1 [beta]=10.0.0.2 [witness]=10.0.0.3 [client]=10.0.0.9 [stranger]=10.0.0.66)
declare -A DIRECT=([alpha]=10.1.0.1 [beta]=10.1.0.2)
# The number of a machine's first process, and of its manager, as this script sees them; the device that its mirror has.
declare -A BOOT=() MANAGER=() DEVICE=()
# shellcheck disable=SC2034 # lib.sh reads them
ADDRESS=([alpha]=10.1.0.1)
WITNESS=([alpha]=10.0.0.3 [beta]=10.0.0.3)
WATCHER='' BEGUN='' REVISION=1
# The kernel's part of a machine was taken away: it says so.
KERNEL_COMPLAINS=''

# ---- the network ----------------------------------------------------------------------------

plug_in() { # NODE DEVICE SWITCH ADDRESS
    ip -n switches link add "$1-$2" type veth peer name "$2" netns "$1"
    ip -n switches link set "$1-$2" master "$3" up
    ip -n "$1" address add "$4/24" dev "$2"
    ip -n "$1" link set "$2" up
}
make_network() {
    local name
    mount --make-rshared /
    mkdir -p /cg
    mount -t cgroup2 none /cg
    for name in switches "${!LAN[@]}"; do
        ip netns add "$name"
        ip -n "$name" link set lo up
    done
    for name in lan direct; do
        ip -n switches link add "$name" type bridge
        ip -n switches link set "$name" up
    done
    for name in "${!LAN[@]}"; do plug_in "$name" eth0 lan "${LAN[$name]}"; done
    for name in "${!DIRECT[@]}"; do plug_in "$name" eth1 direct "${DIRECT[$name]}"; done
    INSIDE[witness]='nsenter --net=/run/netns/witness'
}
# All cables of a node at once.
cables() { # NODE up|down
    printf 'link set %s-eth0 %s\nlink set %s-eth1 %s\n' "$1" "$2" "$1" "$2" | ip -n switches -batch -
}
# No word from one node to an address.
deafen() { ip -n "$1" route add blackhole "$2/32"; }  # NODE ADDRESS
hear_again() { ip -n "$1" route del blackhole "$2/32"; }
has_address() { [ -n "$(ip -n "$1" -o address show to "$FLOATING")" ]; } # NODE

# ---- machines -------------------------------------------------------------------------------

has_child() { pgrep -P "$1" >/dev/null; }
inside() { # NODE COMMAND...
    # shellcheck disable=SC2086 # words
    ${INSIDE[$1]} "${@:2}"
}
boot_machine() { # NODE
    cat /proc/sys/kernel/random/uuid >"$work/boot-id.$1"
    setsid unshare --mount --propagation slave --pid --fork "$VM/node-boot" "$1" "$work/boot-id.$1" >>"$work/boot.$1" 2>&1 </dev/null &
    disown
    wait_until 20 "the first process of $1" has_child $!
    BOOT[$1]=$(pgrep -P $!)
    INSIDE[$1]="nsenter --target ${BOOT[$1]} --mount --pid --net=/run/netns/$1"
    wait_until 20 "$1 is up ($(cat "$work/boot.$1"))" inside "$1" test -e /run/booted
    inside "$1" ln -s "/dev/mapper/$1-data" /run/store
    inside "$1" install -d -o postgres -g postgres /run/pg
}
# Begins a program of kagami on a machine; BEGUN: its number, as this script sees it.
begin() { # NODE ARG...
    local node=$1 outer
    shift
    # shellcheck disable=SC2086 # words
    setsid ${INSIDE[$node]} "$KAGAMI" --config "$NODES/$node/kagami.toml" "$@" >>"$NODES/$node/log" 2>&1 </dev/null &
    outer=$!
    disown
    wait_until 20 "kagami $1 on $node" has_child "$outer"
    BEGUN=$(pgrep -P "$outer")
}
# What lib.sh does with children of its own, here with grandchildren.
# shellcheck disable=SC2317 # lib.sh calls it
start() { # NODE VERB
    if [ "$1" = witness ]; then
        # shellcheck disable=SC2086 # words
        setsid ${INSIDE[$1]} "$KAGAMI" --config "$NODES/$1/kagami.toml" "$2" >>"$NODES/$1/log" 2>&1 </dev/null &
        DAEMON[$1]=$!
        disown
        return
    fi
    begin "$1" "$2"
    DAEMON[$1]=$BEGUN
    wait_until 60 "an answer of the daemon on $1" answers "$1"
}
crash() { # NODE
    kill -KILL "${DAEMON[$1]}"
    wait_until 20 "the daemon on $1 is dead" has_ended "${DAEMON[$1]}"
    unset "DAEMON[$1]"
}
terminate() { # NODE
    kill -TERM "${DAEMON[$1]}"
    wait_until 60 "the daemon on $1 has ended" has_ended "${DAEMON[$1]}"
    unset "DAEMON[$1]"
}
stop() { # NODE
    on "$1" down >/dev/null
    wait_until 60 "the daemon on $1 has ended" has_ended "${DAEMON[$1]}"
    unset "DAEMON[$1]"
}
# Where a reset would end the virtual machine it is only called for.
start_manager() { # NODE
    begin "$1" failover --no-reset
    MANAGER[$1]=$BEGUN
}

# A machine is gone: its cables, its processes, all of them at once, and its part of the kernel. From the moment FROM.
kill_machine() { # NODE
    KERNEL_COMPLAINS=1
    FROM=$(now_ms)
    cables "$1" down
    kill -KILL "${BOOT[$1]}"
    # What waits in its device, and what its file system would still write, goes with it.
    [ -z "${DEVICE[$1]:-}" ] || drop_device "${DEVICE[$1]}" 2>/dev/null || :
    ! has_address "$1" || ip -n "$1" address del "$FLOATING/24" dev eth0
    unset "DEVICE[$1]" "DAEMON[$1]" "MANAGER[$1]"
}
is_dead() { has_ended "${BOOT[$1]}" && grep -q 'populated 0' "/cg/$1/cgroup.events"; }
power_on() { # NODE
    wait_until 30 "nothing of $1 is left" is_dead "$1"
    cables "$1" up
    boot_machine "$1"
    start "$1" up
    start_manager "$1"
}

# ---- the group ------------------------------------------------------------------------------

write_scripts() {
    mkdir -p "$SHOP"
    # In these machines a program that is begun takes a twentieth of a second of the only processor, pg_isready a fourth: the
    # scripts begin as few as they can.
    cat >"$SHOP/start" <<END
#!/bin/sh
# PostgreSQL in the foreground: its process is what is watched.
set -eu
# Of another machine, or another boot.
[ ! -e $MOUNTED/pg/postmaster.pid ] || rm $MOUNTED/pg/postmaster.pid
exec setpriv --reuid postgres --regid postgres --init-groups $PG_BIN/postgres -D $MOUNTED/pg
END
    cat >"$SHOP/stop" <<END
#!/bin/sh
set -eu
[ ! -e $work/stop-hangs.\$KAGAMI_NODE ] || sleep 600
read -r pid <$MOUNTED/pg/postmaster.pid 2>/dev/null || exit 0
kill -INT "\$pid" 2>/dev/null || exit 0
while kill -0 "\$pid" 2>/dev/null; do sleep 0.02; done
END
    cat >"$SHOP/ready" <<END
#!/bin/bash
# The group is online when the database takes sessions: its lock file's eighth line says so. pg_ctl looks there, too.
set -eu
[ ! -e $work/start-fails.\$KAGAMI_NODE ] || { echo 'told to fail' >&2; exit 1; }
[ ! -e $work/start-hangs.\$KAGAMI_NODE ] || sleep 600
# Nothing ever comes from there.
exec 9<> <(:)
until { mapfile -t said <$MOUNTED/pg/postmaster.pid; } 2>/dev/null && [[ \${said[7]:-} = ready* ]]; do
    read -r -t 0.05 <&9 || :
done
END
    chmod +x "$SHOP"/{start,stop,ready}
}

# The same on both nodes. With a shorter time-out heartbeats are sent more often.
write_cluster() { # FILE TIMEOUT INTERVAL
    cat >"$1" <<END
[cluster]
name = "shop"
revision = $REVISION
nodes = ["alpha", "beta"]
stop-bound = "10s"
[arbiter]
kind = "witness"
name = "witness"
[heartbeat.direct]
type = "lan"
priority = 1
addresses = { alpha = "10.1.0.1:7791", beta = "10.1.0.2:7791" }
interval = "$3"
timeout = "$2"
[heartbeat.lan]
type = "lan"
priority = 2
addresses = { alpha = "10.0.0.1:7791", beta = "10.0.0.2:7791" }
interval = "$3"
timeout = "$2"
[group.shop]
nodes = ["alpha", "beta"]
[group.shop.resource.data]
type = "mirror"
mirror = "$MIRROR"
mount = "$MOUNTED"
filesystem = "ext4"
[group.shop.resource.address]
type = "floating-ip"
address = "$FLOATING/24"
[group.shop.resource.server]
type = "exec"
mode = "async"
start = "$SHOP/start"
stop = "$SHOP/stop"
stop-timeout = "15s"
depends = ["data"]
[group.shop.resource.ready]
type = "exec"
start = "$SHOP/ready"
start-timeout = "20s"
depends = ["server", "address"]
[monitor.server]
type = "pid"
resource = "shop/server"
interval = "1s"
reactivations = 1
[monitor.address]
type = "floating-ip"
resource = "shop/address"
interval = "5s"
[monitor.port]
type = "tcp"
address = "$FLOATING:5432"
active = "shop/ready"
target = "shop/server"
interval = "2s"
timeout = "5s"
retries = 1
reactivations = 1
[monitor.rows]
type = "database"
engine = "postgresql"
address = "$FLOATING:5432"
database = "postgres"
user = "postgres"
active = "shop/ready"
target = "shop/server"
interval = "3s"
timeout = "20s"
retries = 1
reactivations = 2
[monitor.store]
type = "disk"
path = "/run/store"
target = "shop"
interval = "2s"
timeout = "20s"
reactivations = 0
failovers = 1
END
}

# shellcheck disable=SC2317 # lib.sh calls it
before_start() { sed -i 's|^run-dir = .*|run-dir = "/run/kagami"|' "$NODES"/{alpha,beta}/kagami.toml; }

# A database on the mirror, as it is before a cluster has it.
put_database() {
    local device
    wait "$INITDB" || fail "initdb: $(cat "$work/initdb")"
    echo 'host all all 10.0.0.0/24 trust' >>"$work/pg/pg_hba.conf"
    cat >>"$work/pg/postgresql.conf" <<END
listen_addresses = '0.0.0.0'
unix_socket_directories = '/run/pg'
shared_buffers = 16MB
min_wal_size = 8MB
max_wal_size = 16MB
checkpoint_timeout = 30s
max_connections = 20
recovery_init_sync_method = syncfs
# A client that was about to log in when the address went would keep the server from ending for a minute.
authentication_timeout = 3s
END
    on alpha attach "$MIRROR" >/dev/null
    device=$(inside alpha readlink -f "/dev/kagami/$MIRROR")
    mkdir -p "$MOUNTED"
    mkfs.ext4 -q -b 4096 -J size=8 -E lazy_itable_init=0,lazy_journal_init=0 "$device"
    inside alpha mount "$device" "$MOUNTED"
    inside alpha cp -a "$work/pg" "$MOUNTED/pg"
    inside alpha umount "$MOUNTED"
    on alpha detach "$MIRROR" >/dev/null
    on alpha demote "$MIRROR" >/dev/null
    rm -r "$work/pg"
}

# All of it, up to a service that is used.
make_cluster() {
    local node
    begin_initdb
    make_network
    make_stores
    for node in alpha beta; do boot_machine "$node"; done
    make_pair "${DATA_MIB}M"
    put_database
    write_scripts
    for node in alpha beta; do write_cluster "$NODES/$node/cluster.toml" 2s 500ms; done
    on alpha failover init-key >/dev/null
    mkdir -p "$NODES/beta/failover"
    cp -p "$NODES/alpha/failover/cluster.key" "$NODES/beta/failover/"
    start_watcher
    start_manager alpha
    start_manager beta
    wait_until 90 'the group is online' is_online
    note_active
    sql 'CREATE TABLE commits (id bigint PRIMARY KEY);
        CREATE TABLE spread (id int PRIMARY KEY, last bigint, filler text) WITH (fillfactor = 50);
        INSERT INTO spread SELECT n, 0, repeat(md5(n::text), 8) FROM generate_series(0, 1999) n; CHECKPOINT'
    : >"$ACKNOWLEDGED"
    nsenter --net=/run/netns/client "$VM/commits" --rate "$COMMITS_PER_SECOND" --connections 2 --patience 1 --pause 0.1 "$FLOATING:5432" "$ACKNOWLEDGED" & CLIENT=$!
    disown
    wait_until 120 'the first commits' at_least "$ACKNOWLEDGED" 20
}

# From where the service is used.
# shellcheck disable=SC2317 # service.sh calls it
sql() {
    nsenter --net=/run/netns/client "${AS_POSTGRES[@]}" PGCONNECT_TIMEOUT=5 \
        "$PG_BIN/psql" -qAtX -v ON_ERROR_STOP=1 -h "$FLOATING" -c "$1"
}

# Which node has the group: the one with its address and its mount. And the device that it would leave behind.
note_active() {
    local node
    ACTIVE=
    for node in alpha beta; do
        unset "DEVICE[$node]"
        if has_address "$node" && inside "$node" mountpoint -q "$MOUNTED"; then
            ACTIVE=$node
            DEVICE[$node]=$(inside "$node" readlink -f "/dev/kagami/$MIRROR")
        fi
    done
    [ -n "$ACTIVE" ] || fail 'the group is active nowhere'
}
other() { if [ "$1" = alpha ]; then echo beta; else echo alpha; fi; }
group_state() { # WORD
    local node
    for node in alpha beta; do
        [ -n "${MANAGER[$node]:-}" ] || continue
        if on "$node" cluster status --json 2>/dev/null | grep -q "\"name\":\"shop\",\"state\":\"$1\""; then return; fi
    done
    return 1
}
is_online() { group_state online; }
both_are_heard() { [ "$(on alpha cluster status --json 2>/dev/null | grep -o '"state":"online","phase":"running"' | wc -l)" = 2 ]; }
alerts() { on "$1" alerts --json --last 400 "${@:2}"; } # NODE [OBJECT]...
# An alert with these words that was told since the episode began.
alerted() { # NODE WORDS
    alerts "$1" | awk -v from="$BEGAN_WALL" '{ match($0, /"time_ms":[0-9]+/); if (substr($0, RSTART + 10, RLENGTH - 10) + 0 >= from) print }' |
        grep -qF -- "$2"
}

# ---- what must hold -------------------------------------------------------------------------

start_watcher() { "$VM/never-two" "$FLOATING" "$SEEN" alpha beta 2>"$work/never-two.log" & WATCHER=$!; disown; }
never_two() {
    kill -0 "$WATCHER" 2>/dev/null || fail "the watcher has ended: $(cat "$work/never-two.log")"
    [ -s "$SEEN" ] || fail 'the watcher has not looked yet'
    ! grep -B 6 BOTH "$SEEN" || fail 'both nodes answered at once'
}
# What the watcher saw of a node last.
last_seen() { awk -v node="$1" '$2 == node { last = $3 " " $4 } END { print last }' "$SEEN"; } # NODE
was_seen() { [[ $(last_seen "$1") = "$2"* ]]; }                                                # NODE WORDS
# It has eyes: it sees who serves now, and who does not.
watcher_sees() {
    wait_until 10 "the watcher sees that $ACTIVE serves (it sees: $(last_seen "$ACTIVE"))" was_seen "$ACTIVE" 'address=1 runs=1'
    wait_until 10 "the watcher sees that $(other "$ACTIVE") does not (it sees: $(last_seen "$(other "$ACTIVE")"))" was_seen "$(other "$ACTIVE")" 'address=0 '
}
# And it looked all the time: the longest time between two looks since FROM, as far as it is worth telling.
not_looked_for_ms() { awk -v from="$1" '$1 >= from && $2 == "BLIND" && $3 > most { most = $3 } END { print most + 0 }' "$SEEN"; } # FROM-MS
# From FROM to the first commit after the longest time without one.
back_after_ms() { # FROM-MS
    awk -v from="$1" 'BEGIN { last = from } $2 > last { if ($2 - last > most) { most = $2 - last; end = $2 } last = $2 } END { print end - from }' "$ACKNOWLEDGED"
}

# shellcheck disable=SC2317 # scenarios call it
check_all() {
    local status=0
    kill -STOP "$CLIENT"
    nothing_is_missing
    sql CHECKPOINT
    inside "$ACTIVE" fsfreeze -f "$MOUNTED"
    (memory_is_on_the_device inside "$ACTIVE" && compare_stores && fsck "${COPIES[0]}") || status=$?
    inside "$ACTIVE" fsfreeze -u "$MOUNTED"
    kill -CONT "$CLIENT"
    [ "$status" = 0 ] || exit "$status"
    [ -n "$KERNEL_COMPLAINS" ] || no_kernel_errors
    dmesg -C
    KERNEL_COMPLAINS=
    never_two
    watcher_sees
    serves_again 30
}

# One fault, from its beginning until everything is well again. The fault sets FROM, when it begins; it may say more in
# MORE; `stays` and `moved` say where the group has to be then.
episode() { # "WORDS" COMMAND...
    local words=$1 before gap back MORE='' synced blind
    shift
    wait_until 60 'both managers are at work' both_are_heard
    wait_for "$ACTIVE" in-sync 120
    note_active
    before=$(acknowledged) FROM=$(now_ms) BEGAN_WALL=$(date +%s%3N)
    "$@"
    serves_again 90
    wait_until 90 'the group is online' is_online
    note_active
    wait_for "$ACTIVE" in-sync 120
    synced=$(($(now_ms) - FROM))
    blind=$(not_looked_for_ms "$FROM")
    [ "$blind" -le 3000 ] || fail "the watcher did not look for $blind ms: two could have answered unseen"
    gap=$(longest_gap_ms "$FROM") back=$(back_after_ms "$FROM")
    wait_until 60 'both managers are at work' both_are_heard
    check_all
    proof "$words: back after $back ms$MORE, at most $gap ms without a commit, $(($(acknowledged) - before)) commits, none missing, never two; in sync after $synced ms, copies equal"
    printf '%s\t%s\t%s\n' "$words" "$back" "$gap" >>"$work/figures"
    [ -z "${TIMELINE:-}" ] || timeline
}
# Where the time went: what both managers told and what the watcher saw, in milliseconds since FROM.
timeline() {
    local wall
    wall=$(($(date +%s%3N) - $(now_ms) + FROM))
    {
        alerts alpha | sed -n 's/.*"time_ms":\([0-9]*\),"node":"\([a-z]*\)".*"name":"\([^"]*\)","what":"\([^"]*\)",\(.*\)/\1 \2 \3: \4 \5/p' |
            awk -v from="$wall" '$1 >= from - 200 { $1 -= from; print }'
        awk -v from="$FROM" '$1 >= from - 200 { $1 -= from; print }' "$SEEN"
    } | sort -n | sed 's/^/      /'
}
stays_on() { note_active; [ "$ACTIVE" = "$1" ] || fail "the group is on $ACTIVE, and should have stayed on $1"; }
is_on() { note_active; [ "$ACTIVE" = "$1" ] || fail "the group is on $ACTIVE, and should be on $1"; }

# Of each fault that was tried more than once.
table() {
    printf '  %-72s %6s %8s %8s\n' 'ms from the fault to the first commit after it' times median worst
    awk -F '\t' '{ print $1 }' "$work/figures" | sort -u | while IFS= read -r words; do
        awk -F '\t' -v words="$words" '$1 == words { print $2 }' "$work/figures" | sort -n |
            awk -v words="$words" '{ all[NR] = $1 } END { printf "  %-72s %6d %8d %8d\n", words, NR, (all[int((NR + 1) / 2)] + all[int(NR / 2) + 1]) / 2, all[NR] }'
    done
}

# shellcheck disable=SC2317 # lib.sh calls it
show_more() {
    local node
    echo '-- what the watcher saw last'
    tail -n 12 "$SEEN" || :
    for node in alpha beta; do
        [ -n "${MANAGER[$node]:-}" ] || continue
        echo "-- alerts on $node"
        on "$node" alerts --last 40 2>&1 || :
        on "$node" cluster status 2>&1 || :
        break
    done
    for node in alpha beta; do
        echo "-- guard and scripts of $node"
        tail -n 8 "$NODES/$node/failover/guard.log" "$NODES/$node"/failover/logs/*.log || :
    done
}

# The link's time-out, on both nodes, and the heartbeats'. Each daemon is started again while its node has nothing to do.
shorter_time_out() { # TIMEOUT INTERVAL
    local node
    for node in alpha beta; do
        sed -i "/^\[peer\./,/^\[/{/^timeout/d;s/^\(\[peer\..*\)/\1\ntimeout = \"$1\"/}" "$NODES/$node/kagami.toml"
    done
    for _ in 1 2; do
        node=$(other "$ACTIVE")
        terminate "$node"
        start "$node" up
        wait_for "$ACTIVE" in-sync 60
        wait_until 30 "$node could take it over" could_be_taken_over
        on "$ACTIVE" group move shop >/dev/null
        note_active
    done
    REVISION=$((REVISION + 1))
    write_cluster "$work/cluster.toml" "$1" "$2"
    on "$ACTIVE" cluster push "$work/cluster.toml" >"$work/pushed" 2>&1 || fail "kagami cluster push: $(cat "$work/pushed")"
    wait_until 60 'both managers are at work' both_are_heard
    wait_until 60 'the group is online' is_online
}
could_be_taken_over() { on "$ACTIVE" cluster status --json | grep -q '"other_ready":true'; }

# The client ends, the managers stop the group, both copies are the same.
end_cluster() {
    local node manager
    kill "$CLIENT"
    nothing_is_missing
    # Read again, from the device.
    on "$ACTIVE" group stop shop >/dev/null
    echo 3 >/proc/sys/vm/drop_caches
    on "$ACTIVE" group start shop --on "$ACTIVE" >/dev/null
    wait_until 60 'the group is online' is_online
    nothing_is_missing
    on "$ACTIVE" group stop shop >/dev/null
    never_two
    kill -TERM "$WATCHER"
    wait_until 10 'the watcher has ended' has_ended "$WATCHER"
    for node in alpha beta; do
        manager=${MANAGER[$node]}
        kill -TERM "$manager"
        wait_until 60 "the manager of $node has ended" has_ended "$manager"
        unset "MANAGER[$node]"
    done
    for node in alpha beta; do stop "$node"; done
    compare_stores
    fsck "${COPIES[0]}"
    proof "$(acknowledged) commits were acknowledged in all; the watcher: $(tail -n 1 "$SEEN" | cut -d ' ' -f 2-); both stores are equal, byte for byte"
}
