# shellcheck shell=bash
# vm: --backend qemu --mem 1536 --disk 256M --disk 256M --disk 256M --timeout 400
# not when SHORT: an emulated machine
# long
# A file system outlives either node: ext4 on the mirror, under Debian's stock kernel, while a tree
# of files is copied with fsync. The secondary is killed under that load and returns; then the
# primary is killed under the same load, and the other node takes over. Whatever was synced by then
# is there, and the file system is whole.
# shellcheck source=tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
SOURCE=/usr/include/linux
work=$(mktemp -d)

make_pair 256M
proof 'alpha and beta are in sync; a first full copy was made'
attach_device alpha /dev/nbd0
mkfs.ext4 -q -b 4096 /dev/nbd0
mkdir -p /mnt/alpha /mnt/beta
mount /dev/nbd0 /mnt/alpha
proof "ext4 is mounted on /dev/nbd0 ($(uname -r))"

copy_tree "$SOURCE" /mnt/alpha/first "$work/first" 480 & copier=$!
wait_until 60 'a hundred files synced' at_least "$work/first" 100
crash beta
before=$(lines "$work/first")
wait_for alpha alone
wait "$copier" || fail 'the copying of files stopped when the secondary was killed'
after=$(lines "$work/first")
[ "$after" -gt "$before" ] || fail 'nothing was written while the secondary was away: no load'
proof "the secondary was killed at $before of $after files: alpha went on alone, no error"

start beta up
wait_for alpha in-sync
no_kernel_errors
proof 'beta returned and was resynchronised'

copy_tree "$SOURCE" /mnt/alpha/second "$work/second" 480 >"$work/copier.log" 2>&1 & copier=$!
wait_until 60 'a hundred files synced' at_least "$work/second" 100
crash alpha
proof "the primary was killed while files were written, $(lines "$work/second") of them synced"

# As far as the guest goes, the dead node's kernel goes with its daemon.
drop_device /dev/nbd0
wait "$copier" && fail 'files were still copied to a dead primary'
umount -l /mnt/alpha

took=$SECONDS
promote beta
attach_device beta /dev/nbd1
mount /dev/nbd1 /mnt/beta
dmesg | grep -q 'EXT4-fs (nbd1): recovery complete' || fail 'the mount replayed no journal'
proof "beta is promoted and attached, the journal is replayed ($((SECONDS - took)) s)"

check_tree /mnt/beta/first "$work/first"
check_tree /mnt/beta/second "$work/second"
proof "every checksum matches: $(lines "$work/first") and $(lines "$work/second") files"
copy_tree "$SOURCE" /mnt/beta/third "$work/third" 80
check_tree /mnt/beta/third "$work/third"
umount /mnt/beta
e2fsck -fn /dev/nbd1 >"$work/fsck" 2>&1 || fail "e2fsck: $(cat "$work/fsck")"
proof "beta takes new files, and e2fsck -fn is clean"

start alpha up
wait_for beta in-sync
detach_device beta
stop alpha
stop beta
cmp /dev/disk0 /dev/disk1 || fail 'the copies differ'
proof 'alpha returned as the secondary; both disks are equal, byte for byte'
