# shellcheck shell=bash
# vm: (several boots of a Debian of its own)
# host: it boots its guests itself
# long
# kagami under systemd, installed from its package, with a line of fstab: the machine is rebooted, and the
# device is back with what is mounted on it; so after a power cut. What was mounted by hand is unmounted
# before the daemon stops, also when a service uses it. Where the other node is Primary the machine boots all the same. The watchdog
# ends a daemon with a stuck thread, and none with a slow disk.
# shellcheck source=tests/vm/debian.sh
. "$(dirname "${BASH_SOURCE[0]}")/../debian.sh"

step_install() {
    install_pair
    mount_on_srv
    proof "installed, paired, attached and mounted by a line of fstab ($(uname -r), systemd $(systemctl --version | sed -n '1s/systemd \([0-9]*\).*/\1/p'))"

    for unit in kagami.service kagami-attach@pg.service kagami-witness.service; do
        systemd-analyze verify --man=no "$unit" >/tmp/verify 2>&1 || fail "systemd-analyze verify $unit: $(cat /tmp/verify)"
        [ ! -s /tmp/verify ] || fail "systemd-analyze verify $unit: $(cat /tmp/verify)"
        proof "systemd-analyze verify $unit: nothing to say; security: $(systemd-analyze security --no-pager "$unit" | tail -n 1 | grep -o 'for .*: .*' || :)"
    done
    is_unit kagami.service StatusText 'pg in sync, Primary here' || wait_until 10 'the line of state' \
        is_unit kagami.service StatusText 'pg in sync, Primary here'
    local pid thread
    pid=$(daemon_pid)
    [ "$(cat "/proc/$pid/oom_score_adj")" = -1000 ] || fail "OOM score $(cat "/proc/$pid/oom_score_adj")"
    grep -q '^Seccomp:[[:space:]]*2$' "/proc/$pid/status" || fail 'no system call filter'
    [ "$(awk '/^VmLck:/ { print $2 }' "/proc/$pid/status")" -gt 65536 ] || fail 'memory is not locked'
    if journalctl -b -u kagami -u kagami-beta -u kagami-witness -p warning -o cat --no-pager |
        grep -E 'PR_SET_IO_FLUSHER|not locked|OOM|permitted|PERM|could not be made'; then fail 'the sandbox keeps the daemon from something'; fi
    proof 'under its sandbox the daemon has locked its memory, told the kernel that it writes back, and is the last to be killed'

    # The template stays when the daemon is restarted, reloaded, or killed by the watchdog.
    cp -r /usr/lib/udev /srv/tree
    systemctl reload kagami
    is_unit kagami.service SubState running || fail 'a reload does not end'
    systemctl restart kagami
    is_mounted || fail 'a restart of the daemon unmounted /srv'
    is_unit kagami-attach@pg.service ActiveState active || fail 'a restart of the daemon stopped the template'
    diff -r /usr/lib/udev /srv/tree || fail 'files differ after a restart'
    proof 'reload, restart: /srv stays mounted, its files are right'
    mkdir -p /run/systemd/system/kagami.service.d
    printf '[Service]\nWatchdogSec=2s\n' >/run/systemd/system/kagami.service.d/watchdog.conf
    systemctl daemon-reload
    systemctl restart kagami
    # A disk that takes five writes a second is slow, and no more than that.
    pid=$(daemon_pid)
    dd if=/dev/zero of=/srv/slow bs=4k count=25 status=none
    sync -f /srv
    systemctl set-property --runtime kagami.service 'IOWriteIOPSMax=/dev/disk0 5'
    timeout 100 dd if=/dev/zero of=/srv/slow bs=4k count=25 oflag=direct conv=notrunc status=none || fail 'writes to a slow disk do not end'
    systemctl set-property --runtime kagami.service IOWriteIOPSMax=
    [ "$(daemon_pid)" = "$pid" ] || fail 'the watchdog ended a daemon whose disk was slow'
    # A data-plane thread that is held is stuck: a debugger stops it, and it alone.
    thread=$(grep -l kagami-data-0 "/proc/$pid/task/"*/comm | cut -d / -f 5)
    perl -e '$thread = 0 + shift; syscall(101, 0x4206, $thread, 0, 0) == 0 && syscall(101, 0x4207, $thread, 0, 0) == 0
        or die "ptrace: $!"; 1 while waitpid($thread, 0x40000000) > 0' "$thread" &
    wait_until 30 'the watchdog ends a daemon that is stuck' has_another_pid "$pid"
    has_said kagami 'a data-plane thread is stuck' || fail 'the daemon does not say so'
    rm -r /run/systemd/system/kagami.service.d
    systemctl daemon-reload
    systemctl restart kagami
    echo after >/srv/after-the-watchdog
    sync /srv/after-the-watchdog
    proof 'a slow disk does not wake the watchdog; a stuck data-plane thread does: the daemon is started again, /srv stays mounted'

    # Mounted by hand, with no unit that knows of kagami, and not written back when the machine goes down.
    systemctl stop srv.mount
    mount /dev/kagami/pg /mnt
    sync -f /mnt
    manifest /mnt
    dd if=/dev/urandom of=/mnt/by-hand bs=1M count=16 status=none
    (cd /mnt && sha256sum by-hand) >>/root/manifest
    sync /root/manifest
    # And in use until that is stopped, too.
    systemd-run --quiet --unit=user-of-mnt --working-directory=/mnt sleep infinity
}
has_another_pid() { local now; now=$(daemon_pid); [ "$now" != 0 ] && [ "$now" != "$1" ]; }
manifest() { (cd "$1" && find . -xdev -type f -print0 | xargs -0 sha256sum) >/root/manifest; sync /root/manifest; }
check() { (cd /srv && sha256sum --check --quiet /root/manifest) || fail 'files on /srv differ'; }

# The device is back, mounted, and its files are there.
is_back() {
    wait_until 90 '/srv is mounted by fstab' is_mounted
    check
    [ "$(findmnt -n -o SOURCE /srv)" = /dev/nbd0 ] || fail "mounted from $(findmnt -n -o SOURCE /srv)"
    proof "$1: daemon ready $(at_boot kagami.service ActiveEnterTimestampMonotonic), attached $(at_boot kagami-attach@pg.service ActiveEnterTimestampMonotonic), mounted $(at_boot srv.mount ActiveEnterTimestampMonotonic) after the kernel began; multi-user at $(at_boot multi-user.target ActiveEnterTimestampMonotonic)"
}

step_after_reboot() {
    is_back 'rebooted'
    proof 'what was written to a mount by hand and not synced is there: it was unmounted before the daemon stopped'
    [ -z "$(systemctl --failed --no-legend)" ] || fail "failed units: $(systemctl --failed --no-legend)"
    wait_for alpha in-sync
    # Into the power cut: what was synced is in the manifest, and writes are under way.
    cp -r /usr/lib/x86_64-linux-gnu/perl-base /srv/perl
    sync -f /srv
    manifest /srv
    (while :; do cp -r /usr/lib/udev /srv/unfinished; rm -r /srv/unfinished; done) &
    wait_until 60 'writes under way' test -d /srv/unfinished
    # What this machine's disks have is theirs: a cut loses the guest's memory.
    echo o >/proc/sysrq-trigger
    wait_until 30 'the end of this machine' false
}

step_after_power_cut() {
    is_back 'after a power cut'
    [ "$(dmesg | grep -c 'EXT4-fs (nbd0): recovery complete')" -gt 0 ] || fail 'no journal was replayed'
    proof 'the journal was replayed'
    wait_for alpha in-sync
    no_kernel_errors
    # At the next boot beta is Primary before alpha asks.
    cat >/etc/systemd/system/beta-is-primary.service <<END
[Unit]
After=kagami-beta.service kagami.service
Before=kagami-attach@pg.service
[Service]
Type=oneshot
Environment=KAGAMI_CONFIG=/etc/kagami-beta/kagami.toml
ExecStart=/bin/sh -c 'until kagami status --json | grep -q in-sync; do sleep 0.1; done; kagami promote pg'
[Install]
WantedBy=multi-user.target
END
    systemctl --quiet enable beta-is-primary
}

step_other_is_primary() {
    wait_until 60 'the attach is refused' is_unit kagami-attach@pg.service ActiveState failed
    has_said kagami-attach@pg 'the peer is Primary' || fail 'it does not say why'
    wait_until 30 'the mount is given up' is_unit srv.mount ActiveState inactive
    ! is_mounted || fail 'mounted on both nodes'
    is_unit multi-user.target ActiveState active || fail 'no boot'
    proof "beta is Primary: multi-user at $(at_boot multi-user.target ActiveEnterTimestampMonotonic), the attach was refused at $(at_boot kagami-attach@pg.service InactiveEnterTimestampMonotonic), nothing is mounted"
    # Handed over, the mount is one command.
    on beta demote pg >/dev/null
    systemctl start srv.mount
    proof 'handed over: starting srv.mount attaches and mounts'
    check
}

if [ "${1:-}" = guest ]; then
    guest
    "step_$2"
    exit
fi
prepare
boot install
boot after_reboot 125
boot after_power_cut
boot other_is_primary
