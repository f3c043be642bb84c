# shellcheck shell=bash
# vm: --backend qemu --mem 256 --disk 840M --disk 840M --disk 256M --timeout 1100
# not when SHORT: its machine is emulated, and it needs it for minutes
# long
# Memory pressure, which most userspace block devices do not survive: in a guest of 256 MiB three
# times that (SHORT=1: half as much again) is dirtied on the mounted mirror, with limits that let dirty pages fill
# nearly all memory. Only the daemons can make it free again, and must not need memory for that.
# Both run in it, with 16 MiB of buffers each.
BUFFERS=16MiB
# shellcheck source=tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
DIRTIED_MIB=${SHORT:+384}
DIRTIED_MIB=${DIRTIED_MIB:-768}
# An emulated machine on a busy host stands still by itself for a while; a daemon that waits for memory which
# only it can free stands still for good.
STANDSTILL_MAX_S=45
work=$(mktemp -d -p /dev/shm)

# What prctl(PR_SET_IO_FLUSHER) sets: PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE (include/linux/sched.h).
IO_FLUSHER=$((0x180000))

# The threads of a process that lack it; a thread may end while it is looked at. The kernel's flags
# are the seventh field behind the name, which may hold blanks.
without_flag() { # PID
    local task stat flags
    for task in /proc/"$1"/task/*; do
        stat=$(cat "$task/stat" 2>/dev/null) || continue
        flags=$(cut -d ' ' -f 7 <<<"${stat##*) }")
        [ $((flags & IO_FLUSHER)) = "$IO_FLUSHER" ] || printf '%s\n' "${stat%%)*})"
    done
}

make_pair 840M
attach_device alpha /dev/nbd0
mkfs.ext4 -q -E lazy_itable_init=1,lazy_journal_init=1 /dev/nbd0
mkdir -p /mnt/alpha
mount /dev/nbd0 /mnt/alpha

for node in alpha beta; do
    naked=$(without_flag "${DAEMON[$node]}")
    [ -z "$naked" ] || fail "threads of $node without PR_SET_IO_FLUSHER: $naked"
done
proof 'PR_SET_IO_FLUSHER is set on every thread of both daemons'

# Dirty pages may fill memory: nobody is throttled before reclaim has to write them back.
echo 90 >/proc/sys/vm/dirty_ratio
echo 80 >/proc/sys/vm/dirty_background_ratio
memory=$(awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
file=(--name=big --directory=/mnt/alpha --size="${DIRTIED_MIB}M" --bs=1M --ioengine=psync --direct=0
    --fallocate=none --verify=crc32c --output="$work/fio")
"$KAGAMI" --config "$NODES/alpha/kagami.toml" status "$MIRROR" --json --watch --every 500ms >"$work/watched" & watcher=$!
began=$SECONDS
fio "${file[@]}" --rw=write --do_verify=0 --end_fsync=1 & writer=$!
most=0
while kill -0 "$writer" 2>/dev/null; do
    dirty=$(awk '/^(Dirty|Writeback):/ { sum += $2 } END { print int(sum / 1024) }' /proc/meminfo)
    [ "$dirty" -le "$most" ] || most=$dirty
    sleep 0.2
done
wait "$writer" || fail "fio: $(cat "$work/fio")"
took=$((SECONDS - began))
kill "$watcher" 2>/dev/null || fail 'the daemon stopped saying its state'
wait "$watcher" || :
[ "$most" -gt $((memory / 4)) ] || fail "only $most MiB of $memory were dirty at a time: no pressure"
proof "$DIRTIED_MIB MiB dirtied in $memory MiB of memory, at most $most MiB of it dirty at a time, in $took s"

# The longest time in which the daemon's count of written bytes stood still (or it said nothing).
# Between its first and last change: fio first fills memory, and ends with nothing left to write.
standstill=$(sed -n 's/.*"time_ms":\([0-9]*\).*"write_bytes":\([0-9]*\).*/\1 \2/p' "$work/watched" | awk '
    $2 != bytes { if (changes++ > 1 && $1 - since > most) most = $1 - since; bytes = $2; since = $1 }
    END { print changes, most + 0 }')
read -r changes milliseconds <<<"$standstill"
[ "$changes" -gt 10 ] || fail "the daemon was seen at work $changes times only"
[ "$milliseconds" -le $((STANDSTILL_MAX_S * 1000)) ] || fail "the daemon stood still for $milliseconds ms"
proof "the daemon kept making progress: seen at work $changes times, never still for more than $milliseconds ms"
for node in alpha beta; do
    proof "memory of $node: $(awk '/^VmHWM/ { print int($2 / 1024) }' "/proc/${DAEMON[$node]}/status") MiB at most"
done

umount /mnt/alpha
mount /dev/nbd0 /mnt/alpha
fio "${file[@]}" --rw=read --verify_only >/dev/null || fail "fio: $(cat "$work/fio")"
wait_for alpha in-sync
no_kernel_errors
proof 'every block is read back with its checksum, and the mirror is in sync'
umount /mnt/alpha
e2fsck -fn /dev/nbd0 >"$work/fsck" 2>&1 || fail "e2fsck: $(cat "$work/fsck")"
proof 'e2fsck -fn is clean'
