# shellcheck shell=bash
# What the scenarios share that boot a Debian of their own, with systemd, and install kagami's package in it.
# Such a scenario runs twice: on this machine, where it boots the guest again and again with the same
# disks, and with the argument `guest STEP` in it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

# ---- on this machine ------------------------------------------------------------------------

# Makes a folder with an installed system and two empty disks, and the packages: this version and a newer.
prepare() {
    local image=${KAGAMI_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kagami-vm}/debian.img
    "$here/fetch-debian" "$image"
    work=$(mktemp -d "${TMPDIR:-/tmp}/kagami-debian.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    cp --sparse=always "$image" "$work/root"
    truncate -s 96M "$work/alpha" "$work/beta"
    OLD=$("$here/../../cli/package/build" "$KAGAMI" "$work")
    NEW=$work/newer.deb
    dpkg-deb -R "$OLD" "$work/newer"
    sed -i '/^Version:/s/$/+newer/' "$work/newer/DEBIAN/control"
    dpkg-deb -Znone --root-owner-group --build "$work/newer" "$NEW" >/dev/null
}

# Boots the system and runs a step of the scenario in it. Then the guest is shut down cleanly, unless the step
# cuts its power.
boot() { # STEP [STATUS]
    local status=0
    printf '  -- boot: %s\n' "$1"
    "$here/run" --backend "${BACKEND:-uml}" --mem 1024 --timeout 900 --root "$work/root" \
        --disk "FILE:$work/alpha" --disk "FILE:$work/beta" \
        -- env KAGAMI=/usr/bin/kagami OLD="/host$OLD" NEW="/host$NEW" bash "/host$(realpath "$0")" guest "$1" \
        2>"$work/console" || status=$?
    [ "$status" = "${2:-0}" ] || { cat "$work/console" >&2; exit 1; }
}

# ---- in the guest ---------------------------------------------------------------------------

# alpha is the machine's own node: the package's unit, /etc/kagami. beta is a second instance of that unit with
# a configuration of its own, and the witness is the package's third unit.
guest() {
    # shellcheck source=tests/vm/lib.sh
    . "$here/lib.sh"
    trap guest_exit EXIT
    # shellcheck disable=SC2317 # lib.sh calls it
    on() { # NODE ARG...
        local node=$1
        shift
        case $node in
            alpha) timeout 120 kagami "$@" ;;
            beta) KAGAMI_CONFIG=/etc/kagami-beta/kagami.toml timeout 120 kagami "$@" ;;
            witness) shift; timeout 120 kagami-witness "$@" ;; # `witness enrol` is its `enrol`
        esac
    }
}

guest_exit() {
    local status=$?
    [ "$status" = 0 ] || {
        echo '-- status'
        on alpha status || :
        on beta status || :
        echo '-- units'
        systemctl --no-pager list-units '*kagami*' 'srv.mount' 'dev-kagami*' || :
        systemctl --no-pager list-jobs || :
        echo '-- journal, its last lines'
        journalctl --no-pager --no-hostname -b -n 60 || :
    } >&2
    exit "$status"
}

# Installs the package and makes the pair, in sync and not attached. What is not started by the package is
# enabled, and started.
install_pair() {
    dpkg -i "$OLD" >/var/log/install 2>&1 || fail "dpkg -i: $(cat /var/log/install)"
    mkdir -p /etc/kagami-beta /var/lib/kagami-beta
    cat >/etc/kagami-beta/kagami.toml <<END
[node]
name = "beta"
id = 7002
listen = ["127.0.0.1:7002"]
state-dir = "/var/lib/kagami-beta"
run-dir = "/run/kagami-beta"
END
    sed -e 's|/etc/kagami/|/etc/kagami-beta/|' \
        -e '/^Type=/i Environment=KAGAMI_CONFIG=/etc/kagami-beta/kagami.toml' \
        /usr/lib/systemd/system/kagami.service >/etc/systemd/system/kagami-beta.service
    systemctl daemon-reload
    systemctl --quiet enable --now kagami-witness
    on alpha init "$MIRROR" --node-name alpha --listen 127.0.0.1:7001 --device /dev/disk0 --max-size 8G >/dev/null
    offer_and_join "alpha pair $MIRROR --address 127.0.0.1" 'beta pair --join' --device /dev/disk1 --max-size 8G
    local node
    for node in alpha beta; do
        offer_and_join 'witness witness enrol --address 127.0.0.1' "$node arbiter join" --mirror "$MIRROR"
    done
    systemctl --quiet enable kagami-beta
    systemctl start kagami-beta kagami
    wait_for alpha refused
    on alpha resync "$MIRROR" --from local --yes --wait --timeout 200s >/var/log/resync 2>&1 ||
        fail "kagami resync: $(cat /var/log/resync)"
    wait_for alpha in-sync
}

# What the guide says: attach, a file system, a line of fstab.
mount_on_srv() {
    systemctl start "kagami-attach@$MIRROR"
    # All of it now: nothing is written later that a step does not know of.
    mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "/dev/kagami/$MIRROR"
    echo "/dev/kagami/$MIRROR /srv ext4 _netdev,nofail,x-systemd.requires=kagami-attach@$MIRROR.service 0 0" >>/etc/fstab
    systemctl daemon-reload
    systemctl start srv.mount
    is_mounted || fail 'srv.mount was started, and nothing is mounted'
}
is_mounted() { findmnt -n /srv >/dev/null; }
is_unit() { [ "$(systemctl show -P "$2" "$1")" = "$3" ]; } # UNIT PROPERTY VALUE
daemon_pid() { systemctl show -P MainPID kagami.service; }
# A whole look: `grep -q` would end the other half of a pipe early.
has_said() { [ "$(journalctl -b -o cat -u "$1" | grep -cF "$2")" -gt 0 ]; } # UNIT WORDS
# Since the kernel began, seconds.
at_boot() { # UNIT PROPERTY
    local us
    us=$(systemctl show -P "$2" "$1")
    printf '%d.%02d s' $((us / 1000000)) $((us % 1000000 / 10000))
}
