# shellcheck shell=bash
# What the scenarios share. A scenario sources it in the guest; `tests/vm/try` says how it is run.
#
# Two nodes, alpha and beta, live in the guest, each with a folder /node/NAME and, while it runs, a
# daemon; a witness beside them decides who may go on alone (SOLO=never: nobody). Whatever takes time
# is waited for by its effect, with a deadline; nothing sleeps for a fixed time.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
KAGAMI=${KAGAMI:?the kagami to try}
KAGAMI_OTHER=${KAGAMI_OTHER:-$KAGAMI}
MIRROR=pg
SOLO=${SOLO:-arbiter}
STORES=${STORES:-disks}
BUFFERS=${BUFFERS:-64MiB}
NODES=/node
declare -A DAEMON=()
# Where a node lives, when that is not this machine's own network and disks: the address by which the other
# node reaches it, and the one by which it reaches the witness; its stores; words before its commands
# (`nsenter ...`).
declare -A ADDRESS=() WITNESS=() DATA=([alpha]=/dev/disk0 [beta]=/dev/disk1) METADATA=() INSIDE=()

# One line for each thing that is proven; the seconds are the guest's own.
proof() { printf '  %4d s  %s\n' "$SECONDS" "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

# Tries again until the command succeeds.
wait_until() { # SECONDS WHAT COMMAND...
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "did not come in time: $what"
        sleep 0.1
    done
}

# ---- nodes ----------------------------------------------------------------------------------

# Runs a command of kagami on a node.
on() { # NODE ARG...
    local node=$1
    shift
    # shellcheck disable=SC2086 # words
    timeout 120 ${INSIDE[$node]:-} "$KAGAMI" --config "$NODES/$node/kagami.toml" "$@"
}

# Runs one that must be refused; its words have to hold all of these. Nothing else counts as a refusal.
refused() { # "NODE ARG..." WORDS...
    local words status=0 word
    # shellcheck disable=SC2086 # words
    words=$(on $1 2>&1) || status=$?
    [ "$status" = 1 ] || [ "$status" = 2 ] || fail "kagami $1: status $status instead of a refusal: $words"
    for word in "${@:2}" next:; do
        case $words in
            *"$word"*) ;;
            *) fail "kagami $1 does not say '$word': $words" ;;
        esac
    done
}

make_node() { # NODE PORT [MORE-LINES]
    mkdir -p "$NODES/$1"
    cat >"$NODES/$1/kagami.toml" <<END
[node]
name = "$1"
id = $2
listen = ["${LISTEN:-127.0.0.1}:$2"]
state-dir = "$NODES/$1"
run-dir = "$NODES/$1"
buffers = "$BUFFERS"
${3:-}
END
}

# Starts what runs on a node (`up` or `witness`) and waits for its first answer.
start() { # NODE VERB [PROGRAM...]
    start_unwatched "$@"
    [ "$2" != up ] || wait_until 60 "an answer of the daemon on $1" answers "$1"
}
start_unwatched() { # NODE VERB [PROGRAM...]
    local -a program=("${@:3}")
    [ ${#program[@]} -gt 0 ] || program=("$KAGAMI")
    # shellcheck disable=SC2086 # words
    setsid ${INSIDE[$1]:-} "${program[@]}" --config "$NODES/$1/kagami.toml" "$2" >>"$NODES/$1/log" 2>&1 </dev/null &
    DAEMON[$1]=$!
}
answers() { on "$1" status --json >/dev/null 2>&1; }

# Kills a node's daemon as a crash would: SIGKILL, and nobody is told.
crash() { # NODE
    kill -KILL "${DAEMON[$1]}"
    wait "${DAEMON[$1]}" 2>/dev/null || :
    unset "DAEMON[$1]"
}

# Stops it as an init system does.
terminate() { # NODE
    kill -TERM "${DAEMON[$1]}"
    wait "${DAEMON[$1]}" || fail "the daemon on $1 ended with exit status $?"
    unset "DAEMON[$1]"
}

stop() { # NODE
    on "$1" down >/dev/null
    wait "${DAEMON[$1]}" || fail "the daemon on $1 ended with exit status $?"
    unset "DAEMON[$1]"
}

# The token in what an offering command prints.
has_token() { grep -q 'kgm1-\|kgw1-' "$1"; }
token() { grep -o 'kg[mw]1-[A-Za-z0-9_-]*' "$1" | head -n 1; }

# One node offers, another joins by the line that is printed.
offer_and_join() { # "OFFERING-NODE ARG..." "JOINING-NODE ARG..." [ARG-AFTER-THE-TOKEN]...
    local offer=$1 join=$2 out offering
    shift 2
    out=$(mktemp)
    # shellcheck disable=SC2086 # words
    on $offer >"$out" 2>&1 & offering=$!
    wait_until 60 "a token of: kagami $offer" has_token "$out"
    # shellcheck disable=SC2086
    on $join "$(token "$out")" "$@" >"$out.join" 2>&1 || fail "kagami $join: $(cat "$out.join")"
    wait "$offering" || fail "kagami $offer: $(cat "$out")"
}

# Makes the pair, its witness and its mirror, in sync. Its stores are disk0 and disk1 (STORES=files:
# sparse files on an ext4 there, of which no first copy is made); keys, metadata and logs are on disk2.
# SIZE '': the whole of disk0. A function `before_start`, where there is one, is called before the
# daemons run.
make_pair() { # SIZE [ARG-OF-INIT]...
    local size=$1 node
    local -a here=(--device "${DATA[alpha]}" ${METADATA[alpha]:+--metadata "${METADATA[alpha]}"})
    local -a there=(--device "${DATA[beta]}" ${METADATA[beta]:+--metadata "${METADATA[beta]}"})
    shift
    mkdir -p "$NODES"
    mkfs.ext4 -q /dev/disk2
    mount /dev/disk2 "$NODES"
    make_node alpha 7001
    make_node beta 7002
    [ "$SOLO" != arbiter ] || make_node witness 7003 $'[witness]\nlisten = ["0.0.0.0:7790"]'
    if [ "$STORES" = files ]; then
        mkdir "$NODES/alpha/store" "$NODES/beta/store"
        mkfs.ext4 -q /dev/disk0 && mount /dev/disk0 "$NODES/alpha/store"
        mkfs.ext4 -q /dev/disk1 && mount /dev/disk1 "$NODES/beta/store"
        here=(--backing "$NODES/alpha/store/data") there=(--backing "$NODES/beta/store/data")
    fi
    on alpha init "$MIRROR" "${here[@]}" ${size:+--size "$size"} --max-size 8G "$@" >/dev/null
    offer_and_join "alpha pair $MIRROR --address ${ADDRESS[alpha]:-127.0.0.1}" 'beta pair --join' "${there[@]}" --max-size 8G
    if declare -F before_start >/dev/null; then before_start; fi
    if [ "$SOLO" = arbiter ]; then
        for node in alpha beta; do
            offer_and_join "witness witness enrol --address ${WITNESS[$node]:-127.0.0.1}" "$node arbiter join" --mirror "$MIRROR"
        done
        start witness witness
    fi
    start alpha up
    start beta up
    case " $* $STORES" in
        # It is the source by itself; both are known to be empty.
        *' --keep-data '* | *' files') ;;
        # Of two devices nobody knows what is on them: one has to be named.
        *)
            wait_for alpha refused
            on alpha resync "$MIRROR" --from local --yes --wait --timeout 200s >"$NODES/resync" 2>&1 ||
                fail "kagami resync: $(cat "$NODES/resync")" ;;
    esac
    wait_for alpha in-sync 200
}

# ---- state ----------------------------------------------------------------------------------

# The mirror's condition in a word (docs/status-json.md).
condition() { # NODE
    on "$1" status "$MIRROR" --json | sed -n 's/.*"condition":"\([a-z-]*\)".*/\1/p'
}
# The mirror's role on a node.
role() { # NODE
    on "$1" status "$MIRROR" --json | grep -o '"role":"[A-Za-z]*"' | head -n 1 | cut -d '"' -f 4
}
# Requests of clients wait for their answer.
under_way() { [ "$(number alpha in_flight)" -gt 0 ]; }
is() { [ "$(condition "$1" 2>/dev/null)" = "$2" ]; }
wait_for() { # NODE CONDITION [SECONDS]
    wait_until "${3:-60}" "$1: $2 (it is $(condition "$1" 2>&1))" is "$1" "$2"
}

# A number of the mirror's status, by the name of its field.
number() { # NODE FIELD
    on "$1" status "$MIRROR" --json | grep -o "\"$2\":[0-9]*" | head -n 1 | cut -d : -f 2
}

# A peer that was just lost is still believed in for its timeout.
promote() { # NODE
    wait_until 60 "$1 is Primary ($(condition "$1" 2>&1))" promoted "$1"
}
promoted() { on "$1" promote "$MIRROR" >/dev/null 2>"$NODES/$1/promote"; }

# ---- the kernel's device --------------------------------------------------------------------

attach_device() { # NODE DEV
    on "$1" attach "$MIRROR" --device "$2" >/dev/null
    [ "$(blockdev --getsize64 "$2")" -gt 0 ] || fail "$2 has no size"
    [ "$(readlink -f "/dev/kagami/$MIRROR")" = "$2" ] || fail "/dev/kagami/$MIRROR does not lead to $2"
}

# How the mirror's device is served, in a word (docs/status-json.md).
device_state() { # NODE [MIRROR]
    on "$1" status "${2:-$MIRROR}" --json | grep -o '"device":{[^}]*}' | grep -o '"state":"[a-z]*"' | cut -d '"' -f 4
}
is_served() { [ "$(device_state "$@" 2>/dev/null)" = attached ]; } # NODE [MIRROR]

detach_device() { # NODE
    on "$1" detach "$MIRROR" >/dev/null
}

# Takes away the device of a node that is dead: what waits in it fails, as it would have been lost
# with that node's own kernel.
drop_device() { # DEV
    nbd-client -d "$1" >/dev/null
}

# ---- the machine ----------------------------------------------------------------------------

# The power fails: what memory holds is gone.
power_cut() {
    { echo o >/proc/sysrq-trigger; } 2>/dev/null || busybox poweroff -n -f
    sleep infinity
}

# Milliseconds since the boot.
now_ms() { local up; read -r up _ </proc/uptime; echo $((10#${up/./} * 10)); }

# ---- files ----------------------------------------------------------------------------------

# Copies the first COUNT files of a tree, some at a time. What is in MANIFEST (sha256sum's format,
# below DESTINATION) was synced before its line was written, files and folders.
copy_tree() { # SOURCE DESTINATION MANIFEST COUNT
    local source=$1 destination=$2 manifest=$3 count=$4 sums
    local -a files folders
    mkdir -p "$destination"
    while mapfile -t -n 16 files && [ ${#files[@]} -gt 0 ]; do
        cd "$source"
        cp --parents "${files[@]}" "$destination"
        sums=$(sha256sum "${files[@]}")
        cd "$destination"
        mapfile -t folders < <(printf '%s\n' "${files[@]%/*}" | sort -u)
        sync "${files[@]}" "${folders[@]}" "${folders[@]/%//..}"
        printf '%s\n' "$sums" >>"$manifest"
    done < <(cd "$source" && find . -type f | sort | head -n "$count")
    cd /
}

lines() { local n; n=$(wc -l <"$1"); printf '%s' "$n"; }
at_least() { [ -e "$1" ] && [ "$(lines "$1")" -ge "$2" ]; }

check_tree() { # DESTINATION MANIFEST
    (cd "$1" && sha256sum --check --quiet "$2") || fail "files on the mirror differ from $2"
}

# ---- load -----------------------------------------------------------------------------------

# Writes a file in random order, reads all of it back, and begins again, until there is the file `end`
# in FOLDER, where its reports go.
VERIFIED=(--name=verified --directory=/mnt/alpha --bs=4k --ioengine=libaio --direct=1 --iodepth=16
    --rw=randwrite --verify=crc32c --verify_fatal=1)
verify_on_and_on() { # FOLDER OPTION...
    local round=0 folder=$1
    shift
    until [ -e "$folder/end" ]; do
        round=$((round + 1))
        fio "${VERIFIED[@]}" "$@" --randseed="$round" --output-format=json --output="$folder/fio-$round" || return 1
    done
    echo "$round" >"$folder/rounds"
}
# The longest that one of its requests took.
longest_ms() { # FOLDER
    local longest
    longest=$(sed -n '/"clat_ns"/,/}/s/.*"max" : \([0-9]*\).*/\1/p' "$1"/fio-* | sort -n | tail -n 1)
    echo $((longest / 1000000))
}
# So many requests of clients were answered since the daemon began, and some are under way.
has_written() { # COUNT
    [ "$(number alpha writes)" -ge "$1" ] && [ "$(number alpha in_flight)" -gt 0 ]
}

# ---- the end --------------------------------------------------------------------------------

# What a kernel says about a device that failed its users.
no_kernel_errors() {
    ! dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)|lost (async|sync) page write|blocked for more than|BUG:|WARNING:' ||
        fail 'the kernel complains'
}

# A function `show_more` shows what else there is to see when a scenario has failed.
at_exit() {
    local status=$? node
    if [ "$status" != 0 ]; then
        for node in alpha beta witness; do
            [ -s "$NODES/$node/log" ] || continue
            echo "-- log of $node, its last lines"
            tail -n 15 "$NODES/$node/log"
        done
        for node in "${!DAEMON[@]}"; do
            [ "$node" = witness ] || { echo "-- status on $node"; on "$node" status 2>&1; } || :
        done
        if declare -F show_more >/dev/null; then show_more; fi
        echo '-- kernel, its last lines'
        dmesg | tail -n 15
    fi >&2
    for node in "${!DAEMON[@]}"; do kill -KILL "${DAEMON[$node]}" 2>/dev/null || :; done
    exit "$status"
}
trap at_exit EXIT
