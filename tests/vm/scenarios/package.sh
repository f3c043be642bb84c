# shellcheck shell=bash
# vm: (a Debian of its own)
# host: it boots its guest itself
# long
# kagami's package, installed, upgraded and removed: an upgrade while files are written to a mounted mirror,
# one in the middle of a resynchronisation, one whose new version refuses the configuration; a removal
# that is refused while a mirror is mounted; a purge that leaves the data. A group of the failover manager runs on
# through an upgrade, and keeps the package from being removed until the manager is stopped.
# shellcheck source=tests/vm/debian.sh
. "$(dirname "${BASH_SOURCE[0]}")/../debian.sh"

TREE=/usr/lib/x86_64-linux-gnu/perl-base

installed() { dpkg-query -W -f '${Version}' kagami; }

# Copies and compares, again and again, until there is /tmp/end.
write_on_and_on() {
    local round=0
    until [ -e /tmp/end ]; do
        round=$((round + 1))
        rm -rf /srv/tree
        cp -r "$TREE" /srv/tree
        sync -f /srv
        diff -r "$TREE" /srv/tree >/tmp/differs || return 1
        echo "$round" >/tmp/rounds
    done
}
# The longest time that one small write took, milliseconds.
write_one_by_one() {
    local begin took longest=0
    until [ -e /tmp/end ]; do
        begin=${EPOCHREALTIME/./}
        dd if=/dev/zero of=/srv/one bs=4k count=1 oflag=direct conv=notrunc status=none || return 1
        took=$(((${EPOCHREALTIME/./} - begin) / 1000))
        [ "$took" -le "$longest" ] || longest=$took
        echo "$longest" >/tmp/longest
    done
}
rounds() { cat /tmp/rounds 2>/dev/null || echo 0; }
more_rounds() { [ "$(rounds)" -gt "$1" ]; }
upgrade() { # PACKAGE
    dpkg -i "$1" >/var/log/upgrade 2>&1 || fail "dpkg -i: $(cat /var/log/upgrade)"
}
is_held() { on alpha pause-sync pg >/dev/null 2>&1 && is alpha paused; }
# A group that is one process, and no mirror. The other node has no manager.
make_group() {
    cat >/etc/kagami/cluster.toml <<END
[cluster]
name = "shop"
revision = 1
nodes = ["alpha", "beta"]
wait-for-node = "1s"
[arbiter]
kind = "none"
accepted-risk = "both nodes may run a group at once and their data may differ"
[heartbeat.lan]
type = "lan"
priority = 1
timeout = "2s"
addresses = { alpha = "127.0.0.1:7791", beta = "127.0.0.1:7792" }
[group.shop]
nodes = ["alpha", "beta"]
[group.shop.resource.till]
type = "exec"
mode = "async"
start = "/usr/local/bin/till"
END
    printf '#!/bin/sh\necho $$ >>/run/till\nexec sleep infinity\n' >/usr/local/bin/till
    chmod 755 /usr/local/bin/till
    # Nothing here is to reset the guest.
    mkdir -p /etc/systemd/system/kagami-failover.service.d
    printf '[Service]\nExecStart=\nExecStart=/usr/bin/kagami failover --no-reset\n' \
        >/etc/systemd/system/kagami-failover.service.d/test.conf
    systemctl daemon-reload
    kagami failover init-key >/dev/null
    systemctl --quiet enable --now kagami-failover
    wait_until 150 'the group runs' group_is online
}
group_is() { kagami cluster status --json 2>/dev/null | grep -q "\"name\":\"shop\",\"state\":\"$1\""; } # WORD
manager_pid() { systemctl show -P MainPID kagami-failover.service; }
# Of the program that is installed, not of one that it has replaced.
guard_pid() {
    local process
    for process in /proc/[0-9]*; do
        [ "$(readlink "$process/exe")" = /usr/bin/kagami ] || continue
        if tr '\0' ' ' <"$process/cmdline" | grep -qF ' guard --socket '; then echo "${process#/proc/}"; fi
    done 2>/dev/null
}
is_guarded() { [ -n "$(guard_pid)" ]; }
still_there() {
    is_mounted || fail 'an upgrade unmounted /srv'
    is_unit kagami-attach@pg.service ActiveState active || fail 'an upgrade stopped the template'
    [ "$(readlink "/proc/$(daemon_pid)/exe")" = /usr/bin/kagami ] || fail 'the old program runs on'
}

step_all() {
    local before begin took
    # On its own, with no configuration: installed, enabled, and nothing failed.
    dpkg -i "$OLD" >/var/log/install 2>&1 || fail "dpkg -i: $(cat /var/log/install)"
    is_unit kagami.service ConditionResult no || fail "kagami.service without a configuration: $(systemctl status kagami)"
    [ -z "$(systemctl --failed --no-legend)" ] || fail "failed units: $(systemctl --failed --no-legend)"
    systemctl --quiet is-enabled kagami || fail 'not enabled'
    ! systemctl --quiet is-enabled kagami-witness || fail 'the witness is enabled'
    for file in /usr/share/man/man1/kagami-attach.1.gz /usr/share/bash-completion/completions/kagami \
        /usr/share/doc/kagami/copyright /usr/share/doc/kagami/third-party.gz /usr/share/doc/kagami/examples/kagami.toml; do
        [ -s "$file" ] || fail "no $file"
    done
    kagami config check --file-only --config /usr/share/doc/kagami/examples/kagami.toml >/dev/null
    proof "kagami $(installed) installed: $(du -sh /usr/bin/kagami | cut -f 1), $(dpkg-deb -f "$OLD" Depends)"
    install_pair
    mount_on_srv
    proof 'paired, attached, mounted'

    write_on_and_on & local writer=$!
    write_one_by_one & local one=$!
    wait_until 150 'files on /srv' more_rounds 0
    before=$(daemon_pid)
    upgrade "$NEW"
    [ "$(daemon_pid)" != "$before" ] || fail 'the daemon was not replaced'
    wait_until 150 'files after the upgrade' more_rounds "$(($(rounds) + 1))"
    still_there
    [ "$(installed)" = "$(dpkg-deb -f "$NEW" Version)" ] || fail "$(installed) is installed"
    touch /tmp/end
    wait "$writer" || fail "files on /srv differ: $(cat /tmp/differs)"
    wait "$one" || fail 'a write to /srv failed'
    no_kernel_errors
    proof "upgraded to $(installed) while files were copied: no error, all files right ($(rounds) rounds)"
    proof "longest time without an answer for the application: $(cat /tmp/longest) ms"

    # In the middle of a resynchronisation: it goes on where it was.
    printf '\n[mirror.pg.resync]\nmax-rate = "1MiB/s"\n' >>/etc/kagami/kagami.toml
    systemctl reload kagami
    # SIGTERM while the peer is away and did not say so, with a write under way: it ends in time.
    systemctl kill -s KILL kagami-beta
    systemctl stop kagami-beta
    dd if=/dev/urandom of=/srv/news bs=1M count=20 conv=fsync status=none & writer=$!
    begin=${EPOCHREALTIME/./}
    systemctl restart kagami
    took=$(((${EPOCHREALTIME/./} - begin) / 1000))
    wait "$writer" || fail 'a write to /srv failed'
    still_there
    [ "$(journalctl -b -u kagami -o cat | grep -c 'State .* timed out')" = 0 ] || fail 'it did not end in time'
    proof "stopped and started again with the peer away and writes under way: $took ms, no error"
    sha256sum /srv/news >/tmp/news
    systemctl start kagami-beta
    # Held, so that it is not over before the upgrade is, however slow this machine.
    wait_until 60 'a resynchronisation that is held' is_held
    upgrade "$OLD" # a downgrade is an upgrade to the daemon
    still_there
    # The next daemon goes on with it at once: nothing holds it any more.
    wait_for alpha in-sync 120
    sha256sum --check --quiet /tmp/news || fail 'a file on /srv differs'
    local sent
    sent=$(number alpha resync_bytes)
    [ "$sent" -gt 0 ] || fail 'nothing was left to be sent: not in the middle of it'
    [ "$sent" -lt $((48 << 20)) ] || fail "$sent bytes were sent: all of it anew"
    on alpha verify pg --wait >/tmp/verify 2>&1 || fail "kagami verify: $(cat /tmp/verify)"
    proof "upgraded in the middle of a resynchronisation: the next daemon sent the other $((sent >> 20)) MiB; verified"

    # A group of the failover manager: it runs on, under another manager and another guard.
    make_group
    local till manager guard
    till=$(cat /run/till) manager=$(manager_pid) guard=$(guard_pid)
    [ -n "$guard" ] || fail 'nothing guards the group'
    upgrade "$NEW"
    grep -q 'the failover manager and its guard were replaced' /var/log/upgrade || fail "not said: $(cat /var/log/upgrade)"
    [ "$(manager_pid)" != "$manager" ] || fail 'the failover manager was not replaced'
    wait_until 60 'a guard of the new program' is_guarded
    [ "$(guard_pid)" != "$guard" ] || fail 'the guard was not replaced'
    wait_until 60 'the group is online still' group_is online
    [ "$(cat /run/till)" = "$till" ] || fail "the group's process was started again: $(cat /run/till)"
    kill -0 "$till" || fail "the group's process has ended"
    proof 'a group ran on through an upgrade, under another failover manager and guard'
    # They keep the package, whose mirror nobody uses for them.
    ! dpkg -r kagami >/var/log/remove 2>&1 || fail 'removed under a group'
    grep -q 'not removed: failover groups may run on this node' /var/log/remove || fail "not said: $(cat /var/log/remove)"
    kill -0 "$till" || fail "a removal that was refused ended the group's process"
    kagami node stop --yes >/var/log/stop 2>&1 || fail "kagami node stop: $(cat /var/log/stop)"
    wait_until 150 'the failover manager has ended' is_unit kagami-failover.service MainPID 0
    ! kill -0 "$till" 2>/dev/null || fail "the group's process runs on"
    proof "a removal is refused while a group runs: $(grep -m 1 'not removed' /var/log/remove)"

    # A configuration that the new version refuses: the old daemon serves on.
    cp /etc/kagami/kagami.toml /tmp/good.toml
    echo 'no-such-key = 1' >>/etc/kagami/kagami.toml
    before=$(daemon_pid)
    upgrade "$NEW"
    [ "$(daemon_pid)" = "$before" ] || fail 'the daemon was stopped for one that can not start'
    grep -q 'left running' /var/log/upgrade || fail "not said: $(cat /var/log/upgrade)"
    echo still >/srv/still
    sync /srv/still
    cp /tmp/good.toml /etc/kagami/kagami.toml
    systemctl restart kagami
    proof 'a configuration that the new version refuses: the old daemon serves on, and dpkg says so'

    ! dpkg -r kagami >/var/log/remove 2>&1 || fail 'removed under a mounted mirror'
    grep -q 'not removed: mirror pg is in use as /dev/nbd0' /var/log/remove || fail "not said: $(cat /var/log/remove)"
    grep -q 'mounted on /srv' /var/log/remove || fail "not said: $(cat /var/log/remove)"
    still_there
    echo more >/srv/more
    sync /srv/more
    proof "a removal is refused while it is mounted: $(grep -m 1 'not removed' /var/log/remove)"
    umount /srv
    dpkg -r kagami >/var/log/remove 2>&1 || fail "dpkg -r: $(cat /var/log/remove)"
    [ ! -e /sys/block/nbd0/pid ] || fail '/dev/nbd0 is still set up'
    is_unit kagami.service MainPID 0 || fail 'the daemon runs on'
    dpkg --purge kagami >/var/log/purge 2>&1 || fail "dpkg --purge: $(cat /var/log/purge)"
    grep -q '/var/lib/kagami' /var/log/purge || fail "not said what is left: $(cat /var/log/purge)"
    for file in /var/lib/kagami/pg.meta /var/lib/kagami/keys /etc/kagami/kagami.toml; do
        [ -s "$file" ] || fail "a purge took $file"
    done
    [ ! -L /etc/systemd/system/multi-user.target.wants/kagami-failover.service ] || fail 'a purge left the failover manager enabled'
    systemctl stop kagami-beta
    cmp /dev/disk0 /dev/disk1 || fail 'the copies differ'
    e2fsck -fn /dev/disk0 >/tmp/fsck 2>&1 || fail "e2fsck: $(cat /tmp/fsck)"
    proof 'unmounted, removed, purged: detached, stores and keys are left and named, both disks are equal, e2fsck -fn is clean'
    # It is as it was, also where the disk comes a little later than the daemon.
    mv /dev/disk0 /dev/later
    (
        until is_unit kagami.service StatusText 'waiting for /dev/disk0'; do sleep 0.1; done
        mv /dev/later /dev/disk0
    ) &
    dpkg -i "$NEW" >/var/log/install 2>&1 || fail "dpkg -i: $(cat /var/log/install)"
    systemctl start kagami-beta srv.mount
    [ "$(cat /srv/more)" = more ] || fail 'not as it was'
    proof 'installed again, its disk a little late, and mounted: all of it is there'
}

if [ "${1:-}" = guest ]; then
    guest
    "step_$2"
    exit
fi
prepare
boot all
