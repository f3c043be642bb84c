# shellcheck shell=bash
# vm: --backend uml --mem 1024 --mod nbd,sch_netem,veth --disk 256M --disk 256M --disk 256M --timeout 400
# not when SHORT: the simulator has full stores in all their orders
# long
# The stores are sparse files, and the file system that one of them lies on becomes full, under PostgreSQL and fio:
# beta's, alpha's, and the one with keys and metadata. The service goes on from the other copy; with room again
# and its daemon started again the copy is brought up to date.
STORES=files
# shellcheck source=tests/vm/faults.sh
. "$(dirname "${BASH_SOURCE[0]}")/../faults.sh"
COPIES=("$NODES/alpha/store/data" "$NODES/beta/store/data")
MIRROR_MIB=160
FILLED=0

# Nothing is left on the file system of a folder but so many MiB.
fill_up() { # FOLDER MIB-LEFT
    local left
    left=$(df --output=avail -BM "$1" | tail -n 1 | tr -dc 0-9)
    fallocate -l "$((left - $2))M" "$1/filler"
}
# Something that the store has no room for yet.
write_more() { # MIB
    FILLED=$((FILLED + 1))
    dd if=/dev/urandom of="$MOUNTED/more$FILLED" bs=1M count="$1" oflag=direct conv=fsync status=none ||
        fail "a write failed while the other copy has room"
}
store_full() { # NODE
    fill_up "$NODES/$1/store" 4
    write_more 16
    wait_until 60 "one copy is left (it is $(condition alpha))" has_one_copy
    more_commits 20
    rm "$NODES/$1/store/filler"
    if [ "$1" = alpha ]; then
        stop_service
        detach_device alpha
    fi
    terminate "$1"
    start "$1" up
    [ "$1" != alpha ] || { wait_for alpha in-sync 120; begin_service_on alpha; }
}
# Metadata are allocated whole when they are made: a full file system is nothing to them. The state folder is there,
# too. Changes of all kinds: alone, a mark, in sync again.
metadata_full() {
    fill_up "$NODES" 0
    link_down 4
    more_commits 20
    wait_for alpha in-sync 60
    crash alpha
    start alpha up
    serves_again 60
    rm "$NODES/filler"
}

make_network
begin_initdb
make_pair "${MIRROR_MIB}M"
make_service
proof "PostgreSQL and fio are at work on ext4 on the mirror, its stores are sparse files ($(uname -r))"
episode "beta's store is full" store_full beta
episode "alpha's store is full" store_full alpha
episode 'the file system with metadata and state is full' metadata_full
end_service
