# shellcheck shell=bash
# vm: --backend uml --mem 768 --disk 256M --disk 256M --disk 256M --timeout 300
# boots: cut end end
# What is attached is remembered. After a power cut, a clean stop and a reboot, and the reboot of one
# machine of the two, a daemon that is simply started has the mirror as the same device, by the same
# link, with the file system whole on it.
# shellcheck source=tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
SOURCE=/usr/include/linux
DEVICE=/dev/nbd3
work=$(mktemp -d)
mkdir -p /mnt/alpha

# Both machines and the witness start; DEVICE is back by itself.
boot() {
    mkdir -p "$NODES"
    mount /dev/disk2 "$NODES"
    [ -e "$NODES/boot$((BOOT - 1))" ] || fail "boot $((BOOT - 1)) did not come to its end"
    start witness witness
    start beta up
    begin_alpha
}
# Starts alpha's daemon, and says in `took` after how many milliseconds DEVICE was served.
begin_alpha() {
    local began
    began=$(now_ms)
    start alpha up
    wait_until 60 "$DEVICE is back" is_served alpha
    took=$(($(now_ms) - began))
    [ "$(readlink -f "/dev/kagami/$MIRROR")" = "$DEVICE" ] || fail "/dev/kagami/$MIRROR does not lead to $DEVICE"
}
has_recovered() { dmesg | grep -q "EXT4-fs (${DEVICE##*/}): recovery complete"; }

case $BOOT in
    1)
        make_pair 256M
        attach_device alpha "$DEVICE"
        mkfs.ext4 -q -b 4096 "$DEVICE"
        mount "$DEVICE" /mnt/alpha
        copy_tree "$SOURCE" /mnt/alpha/first "$NODES/first" 160
        copy_tree "$SOURCE" /mnt/alpha/second "$NODES/second" 480 &
        wait_until 60 'fifty more files synced' at_least "$NODES/second" 50
        : >"$NODES/boot1"
        sync -f "$NODES"
        proof "pg is $DEVICE with ext4 ($(uname -r)); the power fails while files are written, $(lines "$NODES/second") of them synced"
        power_cut ;;
    2)
        boot
        proof "after the power cut: pg is $DEVICE again, $took ms after its daemon was started"
        mount "/dev/kagami/$MIRROR" /mnt/alpha
        has_recovered || fail 'the mount replayed no journal: nothing was cut'
        check_tree /mnt/alpha/first "$NODES/first"
        check_tree /mnt/alpha/second "$NODES/second"
        proof "the journal is replayed, every checksum matches: $(lines "$NODES/first") and $(lines "$NODES/second") files"
        wait_for alpha in-sync

        copy_tree "$SOURCE" /mnt/alpha/third "$NODES/third" 480 & copier=$!
        wait_until 60 'fifty more files synced' at_least "$NODES/third" 50
        stopped=$(now_ms)
        terminate alpha
        proof "alpha's daemon is stopped with SIGTERM while files are written: $(($(now_ms) - stopped)) ms"
        kill -0 "$copier" 2>/dev/null || fail 'the copying of files ended without a daemon'
        begin_alpha
        wait "$copier" || fail 'the copying of files failed'
        wait_for alpha in-sync
        [ "$(number alpha resync_bytes)" = 0 ] || fail 'after a clean stop something was resynchronised'
        check_tree /mnt/alpha/third "$NODES/third"
        no_kernel_errors
        proof "started again it has its device after $took ms; no error, nothing to resynchronise"

        umount /mnt/alpha
        terminate alpha
        terminate beta
        : >"$NODES/boot2"
        sync -f "$NODES" ;;
    3)
        boot
        proof "after a clean stop and a reboot: pg is $DEVICE again, $took ms after its daemon was started"
        mount "/dev/kagami/$MIRROR" /mnt/alpha
        ! has_recovered || fail 'the file system was not clean'
        for name in first second third; do check_tree "/mnt/alpha/$name" "$NODES/$name"; done
        proof 'all files are there'

        # alpha's machine alone: its kernel and what tells one boot from another go with it. What it
        # wrote last is on beta, so beta is the source.
        wait_for alpha in-sync
        copy_tree "$SOURCE" /mnt/alpha/fourth "$NODES/fourth" 480 2>/dev/null & copier=$!
        wait_until 60 'fifty more files synced' at_least "$NODES/fourth" 50
        crash alpha
        drop_device "$DEVICE"
        wait "$copier" && fail 'files were still copied to a dead machine'
        umount -l /mnt/alpha
        rm "$NODES/alpha/$MIRROR.unbroken" "/dev/kagami/$MIRROR"
        begin_alpha
        on alpha status "$MIRROR" --json | grep -q 'resynchronised from beta' || fail 'alpha was not brought up to date by beta'
        mount "/dev/kagami/$MIRROR" /mnt/alpha
        check_tree /mnt/alpha/fourth "$NODES/fourth"
        proof "alpha's machine alone crashed: brought up to date by beta, $DEVICE was back after $took ms, $(lines "$NODES/fourth") synced files are there"

        umount /mnt/alpha
        e2fsck -fn "$DEVICE" >"$work/fsck" 2>&1 || fail "e2fsck: $(cat "$work/fsck")"
        wait_for alpha in-sync
        detach_device alpha
        stop alpha
        stop beta
        cmp /dev/disk0 /dev/disk1 || fail 'the copies differ'
        proof 'e2fsck -fn is clean; both disks are equal, byte for byte' ;;
esac
