# shellcheck shell=bash
# vm: --backend uml --mem 768 --disk 128M --disk 128M --disk 512M --timeout 580
# A group of the failover manager on a mirror: ext4 on the kernel's device, and a service on it. It starts at
# home, moves and comes back by an order, lives through the death of its manager, and is taken over when all
# of its node is killed at once; nothing that was synced is lost.
ARBITER=${ARBITER:-witness}
[ "$ARBITER" = witness ] || SOLO=never
# shellcheck source=tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
VM=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
MOUNT=/srv/shop
declare -A MANAGER=()

if [ "$ARBITER" = etcd ]; then
    before_start() {
        ETCD_UNSUPPORTED_ARCH=$(uname -m) setsid etcd --data-dir "$NODES/etcd" --listen-client-urls http://127.0.0.1:2379 \
            --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 >"$NODES/etcd.log" 2>&1 </dev/null &
        ETCD=$!
        for node in alpha beta; do
            printf '\n[arbiter.etcd]\nkind = "etcd"\nendpoints = ["http://127.0.0.1:2379"]\n' >>"$NODES/$node/kagami.toml"
        done
    }
fi
make_pair 96M
if [ "$ARBITER" = etcd ]; then
    for node in alpha beta; do on "$node" arbiter use etcd --mirror "$MIRROR" >/dev/null; done
    proof 'the mirror has an etcd as its arbiter'
fi
mkdir -p "$MOUNT" /var/shop
cat >/var/shop/start <<END
#!/bin/sh
echo "\$KAGAMI_NODE \$CLP_EVENT \$CLP_DISK" >>$MOUNT/starts && sync $MOUNT/starts && touch /var/shop/active.\$KAGAMI_NODE
END
cat >/var/shop/stop <<END
#!/bin/sh
rm -f /var/shop/active.\$KAGAMI_NODE
END
chmod +x /var/shop/start /var/shop/stop
for node in alpha beta; do
    cat >"$NODES/$node/cluster.toml" <<END
[cluster]
name = "shop"
revision = 1
nodes = ["alpha", "beta"]
[arbiter]
kind = "$ARBITER"
name = "$ARBITER"
[heartbeat.lan]
type = "lan"
priority = 1
addresses = { alpha = "127.0.0.1:7791", beta = "127.0.0.1:7792" }
[group.shop]
nodes = ["alpha", "beta"]
[group.shop.resource.data]
type = "mirror"
mirror = "$MIRROR"
mount = "$MOUNT"
filesystem = "ext4"
initial-mkfs = true
[group.shop.resource.service]
type = "exec"
start = "/var/shop/start"
stop = "/var/shop/stop"
depends = ["data"]
END
done
on alpha failover init-key >/dev/null
mkdir -p "$NODES/beta/failover"
cp -p "$NODES/alpha/failover/cluster.key" "$NODES/beta/failover/"

start_manager() { # NODE
    # shellcheck disable=SC2086 # words
    setsid ${INSIDE[$1]:-} "$KAGAMI" --config "$NODES/$1/kagami.toml" failover --no-reset >>"$NODES/$1/log" 2>&1 </dev/null &
    MANAGER[$1]=$!
}
crash_manager() { # NODE
    kill -KILL "${MANAGER[$1]}"
    wait "${MANAGER[$1]}" 2>/dev/null || :
}
guard_of() { # NODE
    pgrep -f -- "--config $NODES/$1/kagami.toml guard"
}
active() { [ -e "/var/shop/active.$1" ] && mountpoint -q "$MOUNT"; } # NODE
group_state() { # NODE WORD
    on "$1" cluster status --json 2>/dev/null | grep -q "\"name\":\"shop\",\"state\":\"$2\""
}
device_of() { findmnt -n -o SOURCE "$MOUNT"; }
show_more() {
    for node in alpha beta; do cat "$NODES/$node/failover/guard.log" 2>/dev/null || :; done
    cat "$MOUNT/starts" 2>/dev/null || :
    findmnt "$MOUNT" || :
    tail -n 5 "$NODES/etcd.log" 2>/dev/null || :
}

start_manager alpha
start_manager beta
wait_until 90 'the group is active at its home' active alpha
wait_until 30 'and said to be' group_state alpha online
[ "$(role alpha)" = Primary ] || fail "alpha is $(role alpha)"
guard_of alpha >/dev/null || fail 'alpha has no guard'
refused "beta promote $MIRROR" 'failover manager decides'
proof "active on alpha: $(device_of) on $MOUNT; another's promotion is refused"

echo 'before the move' >"$MOUNT/said"
sync "$MOUNT/said"
began=$(now_ms)
on alpha group move shop >/dev/null
wait_until 90 'the group is active on beta' active beta
proof "moved by an order in $(($(now_ms) - began)) ms"
[ "$(cat "$MOUNT/said")" = 'before the move' ] || fail "beta has $(cat "$MOUNT/said")"
wait_until 30 'online' group_state beta online
on beta group move shop >/dev/null
wait_until 90 'the group is back' active alpha
wait_until 30 'online' group_state alpha online

before=$(cat "$MOUNT/starts")
crash_manager alpha
start_manager alpha
wait_until 60 'the new manager has the group as it was' group_state alpha online
[ "$(cat "$MOUNT/starts")" = "$before" ] || fail 'the service was started again'
proof 'the manager was killed: the next one found the group active and began nothing'

echo 'before the end' >"$MOUNT/said"
sync "$MOUNT/said"
wait_until 60 'both copies are the same' is alpha in-sync
no_kernel_errors
device=$(device_of)
guard=$(guard_of alpha)
began=$(now_ms)
# shellcheck disable=SC2086 # each is a process
kill -KILL "${MANAGER[alpha]}" "${DAEMON[alpha]}" $guard
# What alpha's own kernel had goes with it: first what waits in its device.
drop_device "$device"
umount -l "$MOUNT"
rm -f /var/shop/active.alpha
wait "${MANAGER[alpha]}" "${DAEMON[alpha]}" 2>/dev/null || :
unset 'DAEMON[alpha]'
wait_until 120 'the group is taken over' active beta
proof "alpha was killed with all its processes: active on beta after $(($(now_ms) - began)) ms"
[ "$(cat "$MOUNT/said")" = 'before the end' ] || fail "beta has $(cat "$MOUNT/said")"
[ "$(tail -n 1 "$MOUNT/starts")" = 'beta FAILOVER SUCCESS' ] || fail "$(cat "$MOUNT/starts")"
[ "$(condition beta)" = alone ] || fail "beta is $(condition beta)"

# Its machine has booted anew.
cat /proc/sys/kernel/random/uuid >"$NODES/alpha/boot-id"
INSIDE[alpha]="$VM/in-boot $NODES/alpha/boot-id"
start alpha up
start_manager alpha
wait_for beta in-sync 120
[ "$(role alpha)" = Secondary ] || fail "alpha is $(role alpha)"
wait_until 60 'alpha sees where the group is' group_state alpha online
active beta || fail 'the group did not stay'
proof 'alpha is back, resynchronised, and the group stays where it is'

kill -TERM "${MANAGER[alpha]}"
wait "${MANAGER[alpha]}" || fail "alpha's manager ended with $?"
# What is in alpha's boot has a copy of every mount.
stop alpha
no_guard() { ! guard_of "$1" >/dev/null; }
wait_until 30 "alpha's guard has nothing to guard and ends" no_guard alpha
kill -TERM "${MANAGER[beta]}"
wait "${MANAGER[beta]}" || fail "beta's manager ended with $?"
! mountpoint -q "$MOUNT" || fail 'something is mounted still'
[ "$(role beta)" = Secondary ] || fail "beta is $(role beta)"
proof 'both managers were ended: the group has stopped, and beta is not Primary any more'
start alpha up
wait_for beta in-sync 120
stop alpha
stop beta
cmp /dev/disk0 /dev/disk1 || fail 'the copies differ'
proof 'both copies are equal'
if [ -n "${ETCD:-}" ]; then kill "$ETCD"; fi
