# shellcheck shell=bash
# Block devices beside each other within one boot: the same fio jobs on each in turn, there and back (A B C, C B A, ...),
# and a table of their medians, each also as a part of what the candidates in BY did in the same round. One of them is
# `raw`, a bare disk. A scenario fills DEVICE and, for processes whose processor time is of interest, WATCH; a function
# `use`, where there is one, is told which candidate comes next, outside of the time that counts.
#
# ROUNDS, EACH: how often, and for how many seconds each time. JSON=1: every sample as a line of JSON, too.
ROUNDS=${ROUNDS:-6} EACH=${EACH:-4}
REGION=200M
# Candidate -> block device; name -> process ids.
declare -A DEVICE=() WATCH=()
BY=(raw)
JOBS=('4 KiB random write, depth 1' '4 KiB random write, depth 32' '1 MiB sequential write, depth 4' '4 KiB random read, depth 32')
declare -A FIO=(
    ["${JOBS[0]}"]='--rw=randwrite --bs=4k --iodepth=1'
    ["${JOBS[1]}"]='--rw=randwrite --bs=4k --iodepth=32'
    ["${JOBS[2]}"]='--rw=write --bs=1M --iodepth=4'
    ["${JOBS[3]}"]='--rw=randread --bs=4k --iodepth=32'
)
samples=$(mktemp -d)

fio_on() { # CANDIDATE OPTION...
    fio --name=beside --filename="${DEVICE[$1]}" --size="$REGION" --ioengine=libaio --direct=1 "${@:2}" &&
        # What is still on its way to a disk gets there in nobody else's turn.
        dd if=/dev/null of="${DEVICE[$1]}" conv=fsync,notrunc status=none
}

# Processor time so far, in ticks, of each name in WATCH.
processor() {
    local name pid ticks
    local -a stat
    for name in "${!WATCH[@]}"; do
        ticks=0
        for pid in ${WATCH[$name]}; do
            read -ra stat <"/proc/$pid/stat"
            ticks=$((ticks + stat[13] + stat[14]))
        done
        echo "$name $ticks"
    done
}

prepare() { # CANDIDATE...
    local candidate
    for candidate; do
        if declare -F use >/dev/null; then use "$candidate"; fi
        fio_on "$candidate" --rw=write --bs=1M --iodepth=4 --output="$samples/prepare" || fail "$(cat "$samples/prepare")"
    done
}

# Each sample: what fio says, the ticks before and after, and in `list` what it is of.
compare() { # CANDIDATE...
    local round job candidate turn=0 number=0
    local -a back=() order
    for candidate; do back=("$candidate" "${back[@]}"); done
    rm -f "$samples"/*
    for round in $(seq "$ROUNDS"); do
        for job in "${JOBS[@]}"; do
            order=("$@")
            [ $((turn % 2)) = 0 ] || order=("${back[@]}")
            for candidate in "${order[@]}"; do
                if declare -F use >/dev/null; then use "$candidate"; fi
                number=$((number + 1))
                processor >"$samples/$number.before"
                # shellcheck disable=SC2086 # words
                fio_on "$candidate" ${FIO[$job]} --norandommap --time_based --runtime="$EACH" \
                    --output-format=json --output="$samples/$number.fio" || fail "$(cat "$samples/$number.fio")"
                processor >"$samples/$number.after"
                printf '%s\t%s\t%s\t%s\n' "$number" "$round" "$candidate" "$job" >>"$samples/list"
            done
            turn=$((turn + 1))
        done
        # Each job goes the other way in the next round.
        turn=$((turn + 1 + ${#JOBS[@]} % 2))
    done
    "$(dirname "${BASH_SOURCE[0]}")/beside" "$samples" "$(getconf CLK_TCK)" "${BY[@]/#/--by=}" ${JSON:+--json}
}
