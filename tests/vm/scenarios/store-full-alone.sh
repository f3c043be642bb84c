# shellcheck shell=bash
# vm: --backend uml --mem 512 --disk 192M --disk 192M --disk 64M --timeout 200
# not when SHORT: the simulator has full stores in all their orders
# The store of the only copy that is left is full: each write that has no room fails with ENOSPC, the copy does not,
# what was acknowledged is there, and with room again the same write goes through, without a restart. Then both
# stores are full at once, as two of the same size are: one copy at least serves on.
STORES=files
# shellcheck source=tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
PLACE="nbd+unix:///$MIRROR?socket=$NODES/alpha/$MIRROR.nbd"
# What a MiB of the mirror holds, as far as it was acknowledged.
declare -A HOLDS=()
SAID=''

# No client of the kernel's: its driver makes EIO of every error.
client() { SAID=$(qemu-io -f raw -c "$1" -c flush "$PLACE" 2>&1); }
written() { # MIB BYTE
    client "write -P $2 ${1}M 1M" || :
    case $SAID in
        *'wrote 1048576/1048576'*) HOLDS[$1]=$2 ;;
        *) return 1 ;;
    esac
}
write_one() { written "$@" || fail "the write of MiB $1 failed: $SAID"; }
no_room() { # MIB
    ! written "$1" 255 || fail "MiB $1 found room"
    case $SAID in
        *'No space left on device'*) ;;
        *) fail "a write without room says: $SAID" ;;
    esac
}
# Writes one MiB after the other until there is no room. What failed first: NEXT.
write_until_full() { # FROM BYTE
    NEXT=$1
    while written "$NEXT" "$2"; do
        NEXT=$((NEXT + 1))
        [ "$NEXT" -lt 95 ] || fail 'the store is not full'
    done
    no_room "$NEXT"
}
all_is_there() {
    local mib
    for mib in "${!HOLDS[@]}"; do
        client "read -P ${HOLDS[$mib]} ${mib}M 1M" || :
        case $SAID in
            *'verification failed'* | *'read failed'*) fail "MiB $mib: $SAID" ;;
            *'read 1048576/1048576'*) ;;
            *) fail "MiB $mib: $SAID" ;;
        esac
    done
}
# Root has all of a file system: nothing is left but so many MiB.
fill_up() { # NODE MIB-LEFT
    local filler=$NODES/$1/store/filler
    dd if=/dev/zero of="$filler" bs=1M status=none 2>/dev/null || :
    sync "$filler"
    truncate -s "-$2M" "$filler"
}
serves_alone() { case $(condition alpha) in alone | one-copy) ;; *) return 1 ;; esac; }

make_pair 96M
promote alpha
for mib in 0 1 2 3; do write_one "$mib" 1; done
crash beta
wait_for alpha alone
for mib in 4 5; do write_one "$mib" 2; done

fill_up alpha 4
write_until_full 6 3
full_at=$NEXT
for _ in 1 2 3; do no_room "$full_at"; done
is alpha alone || fail "a full store took the only copy away: $(condition alpha)"
write_one 2 4
all_is_there
proof "alone and full: ENOSPC from MiB $full_at on, four times; what has room is written, ${#HOLDS[@]} MiB are as acknowledged"

rm "$NODES/alpha/store/filler"
write_one "$full_at" 5
start beta up
wait_for alpha in-sync 60
on alpha verify "$MIRROR" --wait --timeout 60s >"$NODES/verify" 2>&1 || fail "kagami verify: $(cat "$NODES/verify")"
all_is_there
proof 'with room the same write goes through; beta is back, in sync, and verified'

fill_up alpha 2
fill_up beta 2
write_until_full $((full_at + 1)) 6
wait_until 30 "one copy serves ($(condition alpha))" serves_alone
write_one 3 7
no_room "$NEXT"
all_is_there
proof "both full: ENOSPC from MiB $NEXT on, and the mirror serves on ($(condition alpha))"

rm "$NODES/alpha/store/filler" "$NODES/beta/store/filler"
for node in beta alpha; do terminate "$node"; done
for node in alpha beta; do start "$node" up; done
wait_for alpha in-sync 60
promote alpha
write_one "$NEXT" 8
all_is_there
stop alpha
stop beta
cmp "$NODES/alpha/store/data" "$NODES/beta/store/data" || fail 'the copies differ'
proof "with room and both started again: in sync, ${#HOLDS[@]} MiB as acknowledged, copies equal"
