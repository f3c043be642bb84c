# shellcheck shell=bash
# What the scenarios with real faults share, on top of lib.sh: two nodes that have a link, disks and a boot of
# their own, and a service that is used all the time. faults.sh has the faults.
#
# alpha lives in the machine's own network, since the kernel hands out nbd devices there alone; beta and the
# witness each in a network namespace. Each two are joined by a pair of virtual Ethernet devices, so that any
# link can fail by itself. Data and metadata of each node lie on a device-mapper device that can be replaced
# under a running daemon. A node's boot id is a file, mounted over the kernel's for its daemon alone.
#
# The service: ext4 on the mirror, fio that writes and verifies, and PostgreSQL, with a client (commits) that
# keeps outside of the mirror what was acknowledged.
# shellcheck source=tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
VM=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
DATA_MIB=112
METADATA_MIB=4
LOG_MIB=(768 192) # of data, of metadata
# Not empty: `kagami verify` after each fault, too; the stores are compared anyway.
VERIFY=${VERIFY:-}
COMMITS_PER_SECOND=${COMMITS_PER_SECOND:-60}
MOUNTED=/mnt/mirror
work=$(mktemp -d -p /dev/shm)
PG_BIN=$(echo /usr/lib/postgresql/*/bin)
ACKNOWLEDGED=$work/acknowledged
ACTIVE=alpha # the node that serves
declare -A SIDE=()
COPIES=(/dev/mapper/alpha-data /dev/mapper/beta-data)
POSTMASTER='' FIO='' CLIENT='' INITDB=''

# ---- two machines in one --------------------------------------------------------------------

LISTEN=0.0.0.0
ADDRESS=([alpha]=10.1.0.1)
WITNESS=([alpha]=10.2.0.3 [beta]=10.3.0.3)
DATA=([alpha]=/dev/mapper/alpha-data [beta]=/dev/mapper/beta-data)
METADATA=([alpha]=/dev/mapper/alpha-metadata [beta]=/dev/mapper/beta-metadata)

# A cable between two namespaces ('' is the machine's own).
cable() { # NETNS DEVICE ADDRESS NETNS DEVICE ADDRESS
    ip ${1:+-n "$1"} link add "$2" type veth peer name "$5" netns "$4"
    ip ${1:+-n "$1"} address add "$3/24" dev "$2"
    ip -n "$4" address add "$6/24" dev "$5"
    ip ${1:+-n "$1"} link set "$2" up
    ip -n "$4" link set "$5" up
}

make_network() {
    local name
    # What is mounted and unmounted later is so in the daemons' own views, too.
    mount --make-rshared /
    for name in beta witness; do
        ip netns add "$name"
        ip -n "$name" link set lo up
    done
    cable '' to-beta 10.1.0.1 beta to-alpha 10.1.0.2
    cable '' to-witness 10.2.0.1 witness to-alpha 10.2.0.3
    cable beta to-witness 10.3.0.2 witness to-beta 10.3.0.3
    INSIDE=([alpha]="$VM/in-boot $NODES/alpha/boot-id"
        [beta]="nsenter --net=/run/netns/beta $VM/in-boot $NODES/beta/boot-id"
        [witness]='nsenter --net=/run/netns/witness')
}

# Another boot of a node's machine: another id, and its /run is empty.
new_boot() { # NODE
    cat /proc/sys/kernel/random/uuid >"$NODES/$1/boot-id"
    rm -f "$NODES/$1"/*.unbroken
}

# A part of a disk, under a name.
carve() { # NAME DISK FROM-MIB MIB
    dmsetup create "$1" --table "0 $(($4 * 2048)) linear $2 $(($3 * 2048))"
}

# Each store has two sides, of which one is in use, and a log for dm-log-writes.
make_stores() {
    local node number=0 store
    for node in alpha beta; do
        carve "$node-data.a" "/dev/disk$number" 0 $DATA_MIB
        carve "$node-data.b" "/dev/disk$number" $DATA_MIB $DATA_MIB
        carve "$node-metadata.a" /dev/disk3 $((number * 2 * METADATA_MIB)) $METADATA_MIB
        carve "$node-metadata.b" /dev/disk3 $((number * 2 * METADATA_MIB + METADATA_MIB)) $METADATA_MIB
        carve "$node-data.log" "/dev/disk$((4 + number))" 0 "${LOG_MIB[0]}"
        carve "$node-metadata.log" "/dev/disk$((4 + number))" "${LOG_MIB[0]}" "${LOG_MIB[1]}"
        for store in "$node-data" "$node-metadata"; do
            SIDE[$store]=a
            dmsetup create "$store" --table "$(healthy "$store")"
        done
        number=$((number + 1))
    done
}
sectors() { blockdev --getsz "/dev/mapper/$1.a"; }
side() { printf '/dev/mapper/%s.%s' "$1" "${SIDE[$1]}"; }
other_side() { printf '/dev/mapper/%s.%s' "$1" "$(tr ab ba <<<"${SIDE[$1]}")"; }
healthy() { printf '0 %s linear %s 0' "$(sectors "$1")" "$(side "$1")"; }

# What lies under a store from now on. What is under way ends first.
put_under() { # STORE TABLE
    dmsetup suspend --nolockfs "$1"
    dmsetup load "$1" --table "$2"
    dmsetup resume "$1"
}
heal() { # STORE
    put_under "$1" "$(healthy "$1")"
}

# In memory, while the nodes are made.
begin_initdb() {
    chmod 711 "$work"
    install -d -o postgres -g postgres "$work/pg"
    as_postgres "$PG_BIN/initdb" -D "$work/pg" --auth trust --data-checksums --wal-segsize=4 --no-sync --no-locale >"$work/initdb" 2>&1 & INITDB=$!
}
make_nodes() {
    begin_initdb
    make_network
    make_stores
    make_pair "${DATA_MIB}M"
}
before_start() {
    local node
    for node in alpha beta; do new_boot "$node"; done
}

# ---- the service ----------------------------------------------------------------------------

AS_POSTGRES=(setpriv --reuid postgres --regid postgres --init-groups env -i PATH="$PATH" HOME=/tmp PGHOST=/run/pg)
as_postgres() { (cd / && "${AS_POSTGRES[@]}" "$@"); }
sql() { as_postgres psql -qAtX -v ON_ERROR_STOP=1 postgres -c "$1"; }

mount_mirror() { # DEVICE
    mkdir -p "$MOUNTED"
    mount "$1" "$MOUNTED"
}
make_service() {
    attach_device alpha /dev/nbd0
    mkfs.ext4 -q -b 4096 -J size=8 -E lazy_itable_init=0,lazy_journal_init=0 /dev/nbd0
    mount_mirror /dev/nbd0
    install -d -o postgres -g postgres "$MOUNTED/pg" /run/pg
    wait "$INITDB" || fail "initdb: $(cat "$work/initdb")"
    cp -a "$work/pg/." "$MOUNTED/pg"
    rm -r "$work/pg"
    cat >>"$MOUNTED/pg/postgresql.conf" <<END
listen_addresses = ''
unix_socket_directories = '/run/pg'
shared_buffers = 16MB
min_wal_size = 8MB
max_wal_size = 16MB
checkpoint_timeout = 30s
max_connections = 20
END
    # PostgreSQL looks after what it writes itself; this is ours to keep.
    sync -f "$MOUNTED"
    start_database
    sql 'CREATE TABLE commits (id bigint PRIMARY KEY);
        CREATE TABLE spread (id int PRIMARY KEY, last bigint, filler text) WITH (fillfactor = 50);
        INSERT INTO spread SELECT n, 0, repeat(md5(n::text), 8) FROM generate_series(0, 1999) n; CHECKPOINT'
    : >"$work/fio.rounds"
    start_fio
    : >"$ACKNOWLEDGED"
    "$VM/commits" --rate "$COMMITS_PER_SECOND" /run/pg "$ACKNOWLEDGED" & CLIENT=$!
    wait_until 120 'the first commits' at_least "$ACKNOWLEDGED" 20
}

# Its working folder is nowhere on the mirror: only what it has open is there.
start_database() {
    (cd / && exec "${AS_POSTGRES[@]}" "$PG_BIN/postgres" -D "$MOUNTED/pg") >>"$work/postgres" 2>&1 </dev/null & POSTMASTER=$!
    disown
    wait_until 60 "PostgreSQL answers ($(tail -n 3 "$work/postgres"))" answers_sql
}
answers_sql() { sql 'SELECT 1' >/dev/null 2>&1; }
stop_database() {
    kill -INT "$POSTMASTER"
    wait_until 60 'PostgreSQL has ended' has_ended "$POSTMASTER"
    tail -n 1 "$work/postgres" | grep -q 'database system is shut down' || fail "PostgreSQL did not end well: $(tail -n 5 "$work/postgres")"
}
# `disown` keeps the shell from telling of each one that is killed on purpose.
has_ended() { ! kill -0 -- "$1" 2>/dev/null; }

# fio writes and verifies, round after round, until it is killed. 4 KiB at a time, straight to the device.
start_fio() {
    # shellcheck disable=SC2016 # for the inner shell
    setsid bash -c 'round=0
        while :; do
            round=$((round + 1))
            fio "$@" --randseed=$round --output="$0.now" || exit 1
            echo $round >>"$0.rounds"
        done' "$work/fio" --name=verified --directory="$MOUNTED" --size=8M --bs=4k --ioengine=libaio --direct=1 --iodepth=8 \
        --rw=randwrite --rate_iops=250 --verify=crc32c --verify_fatal=1 --fallocate=none 2>/dev/null & FIO=$!
    disown
}
# The machine that the service runs on is gone, and what was in its memory.
kill_service() {
    local -a all
    mapfile -t all < <(pgrep -P "$POSTMASTER")
    kill -KILL "$POSTMASTER" "${all[@]}" 2>/dev/null || :
    kill -KILL -- "-$FIO" 2>/dev/null || :
}

# shellcheck disable=SC2317 # lib.sh calls it
show_more() {
    echo '-- PostgreSQL, its last lines'
    tail -n 15 "$work/postgres" || :
    echo '-- fio'
    tail -n 5 "$work/fio.now" || :
}

# ---- what must hold -------------------------------------------------------------------------

acknowledged() { lines "$ACKNOWLEDGED"; }
has_acknowledged_more() { [ "$(acknowledged)" -gt "$1" ]; }
serves_again() { # SECONDS
    wait_until "$1" 'commits are acknowledged' has_acknowledged_more "$(acknowledged)"
}
# The longest time without an acknowledgement that ended after the moment FROM.
longest_gap_ms() { # FROM-MS
    awk -v from="$1" '$2 >= from && last && $2 - last > most { most = $2 - last } $2 > last { last = $2 } END { print most + 0 }' "$ACKNOWLEDGED"
}

# Every acknowledged id is in the table, whether it is looked up by the index or not.
nothing_is_missing() {
    local known=$work/known found=$work/found
    cut -d ' ' -f 1 "$ACKNOWLEDGED" | sort >"$known"
    sql 'SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off; SELECT id FROM commits' | sort >"$found"
    comm -23 "$known" "$found" >"$work/missing"
    [ ! -s "$work/missing" ] || fail "$(lines "$work/missing") acknowledged commits are missing: $(head -n 5 "$work/missing" | tr '\n' ' ')"
    # One that was never acknowledged does not make up for one that the index lacks.
    sql 'SET enable_seqscan = off; SELECT id FROM commits WHERE id > 0' | sort >"$found"
    comm -23 "$known" "$found" >"$work/missing"
    [ ! -s "$work/missing" ] || fail "the index lacks $(lines "$work/missing") acknowledged commits: $(head -n 5 "$work/missing" | tr '\n' ' ')"
}
# What the database and the kernel answer from their memory is what the device holds. The file system is frozen, after a
# checkpoint.
memory_is_on_the_device() { # WORD-BEFORE-THE-COMMAND...
    "$@" "$VM/on-the-device" "$MOUNTED"/pg/{base,global,pg_wal,pg_xact} >"$work/on-the-device" 2>&1 ||
        fail "the device does not hold what was written to it: $(tail -n 5 "$work/on-the-device")"
}

# Past every cache of the devices above. A store that is a file may be longer than the mirror.
compare_stores() {
    cmp <(dd if="${COPIES[0]}" bs=1M iflag=direct status=none) <(dd if="${COPIES[1]}" bs=1M iflag=direct status=none) ||
        fail 'the copies differ'
}
fsck() { # DEVICE-OR-FILE
    [ ! -b "$1" ] || blockdev --flushbufs "$1"
    e2fsck -fn "$1" >"$work/fsck" 2>&1 || fail "e2fsck $1: $(cat "$work/fsck")"
}

# The database has every acknowledged commit, both copies are equal and hold a whole file system. Nobody writes
# for a moment: the file system is frozen.
check_all() {
    local status=0
    kill -0 -- "-$FIO" 2>/dev/null || fail "fio ended: $(cat "$work/fio.now")"
    wait_for "$ACTIVE" in-sync 120
    kill -STOP "$CLIENT"
    nothing_is_missing
    sql CHECKPOINT
    fsfreeze -f "$MOUNTED"
    (memory_is_on_the_device env && compare_stores && fsck "${COPIES[1]}") || status=$?
    fsfreeze -u "$MOUNTED"
    kill -CONT "$CLIENT"
    [ "$status" = 0 ] || exit "$status"
    [ -z "$VERIFY" ] || verify
    no_kernel_errors
    serves_again 30
}
verify() { on "$ACTIVE" verify "$MIRROR" --wait --timeout 100s >"$work/verify" 2>&1 || fail "kagami verify: $(cat "$work/verify")"; }

# One kind of fault, from its beginning until everything is well again: one line of figures. A fault may say more
# in MORE.
episode() { # "WORDS" COMMAND...
    local words=$1 from before count gap MORE=''
    shift
    before=$(acknowledged) from=$(now_ms)
    "$@"
    serves_again 90
    wait_for "$ACTIVE" in-sync 120
    gap=$(longest_gap_ms "$from")
    local synced=$(($(now_ms) - from))
    count=$(($(acknowledged) - before))
    check_all
    proof "$words: at most $gap ms without a commit$MORE, $count commits meanwhile, none missing; in sync after $synced ms, copies equal, fsck clean"
    printf '%s\t%s\t%s\t%s\n' "$words" "$gap" "$count" "$synced" >>"$work/figures"
}

# Those whose words fit FAULTS.
TRIED=0
try() { # "WORDS" COMMAND...
    [[ $1 =~ $FAULTS ]] || return 0
    TRIED=$((TRIED + 1))
    episode "$@"
}
something_was_tried() { [ "$TRIED" -gt 0 ] || fail "no fault has words that fit $FAULTS"; }

unmounted() { umount "$MOUNTED" 2>/dev/null; }

end_service() {
    verify
    kill "$CLIENT"
    wait "$CLIENT" || :
    nothing_is_missing
    stop_database
    kill -0 -- "-$FIO" 2>/dev/null || fail "fio ended: $(cat "$work/fio.now")"
    kill -KILL -- "-$FIO"
    # Read again, from the device.
    wait_until 20 'nobody uses the file system' unmounted
    echo 3 >/proc/sys/vm/drop_caches
    mount_mirror /dev/nbd0
    start_database
    nothing_is_missing
    stop_database
    as_postgres "$PG_BIN/pg_checksums" --check -D "$MOUNTED/pg" >"$work/checksums" 2>&1 || fail "pg_checksums: $(cat "$work/checksums")"
    wait_until 20 'nobody uses the file system' unmounted
    fsck /dev/nbd0
    detach_device alpha
    stop alpha
    stop beta
    compare_stores
    proof "$(acknowledged) commits were acknowledged in all, $(lines "$work/fio.rounds") rounds of fio verified; PostgreSQL's checksums are right, e2fsck is clean, both stores are equal, byte for byte"
}
