# shellcheck shell=bash
# vm: --backend uml --mem 768 --mod dm_mod,dm_delay --disk 128M --disk 128M --disk 256M --timeout 300
# What is refused, in which words, and that nothing is lost by it: the module is missing, the right is
# missing, the peer is Primary, the device is another's or in use, a second daemon, a foreign disk.
# shellcheck source=tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
work=$(mktemp -d)
mkdir -p /mnt/alpha

mkfs.ext4 -q /dev/disk1
sum=$(sha256sum </dev/disk1)
mkdir -p "$NODES"
make_node stranger 7009
refused 'stranger init x --device /dev/disk1' ext4 --keep-data
truncate -s 64M "$work/image"
mkfs.ext4 -q "$work/image"
before=$(sha256sum <"$work/image")
refused "stranger init x --size 64M --backing $work/image" "$work/image"
refused 'stranger init x --size 64M --metadata /dev/disk1' ext4
[ "$(sha256sum </dev/disk1)" = "$sum" ] || fail 'init wrote to a foreign disk'
[ "$(sha256sum <"$work/image")" = "$before" ] || fail 'init wrote to a foreign file'
proof 'init refuses a disk and a file with a foreign file system, and changes no byte of it'
dd if=/dev/zero of=/dev/disk1 bs=1M count=4 status=none

make_pair 128M
refused "alpha attach $MIRROR" 'not attached' "module \`nbd\` is not loaded" 'modprobe nbd' linux-image
refused "alpha attach $MIRROR --ublk" 'not attached' "module \`ublk_drv\` is not loaded" 'modprobe ublk_drv'
[ "$(role alpha)" = Secondary ] || fail 'alpha is Primary after an attach that was refused'
modprobe nbd max_part=8
proof 'without the module attach names it and its package, and changes no role; nor with --ublk'

stop alpha
start alpha up setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin "$KAGAMI"
wait_for alpha in-sync
refused "alpha attach $MIRROR" CAP_SYS_ADMIN 'as root'
[ "$(role alpha)" = Secondary ] || fail 'alpha is Primary after an attach that was refused'
stop alpha
start alpha up
wait_for alpha in-sync
proof 'without the capability attach names it'

promote alpha
refused "beta attach $MIRROR" 'may not be Primary' 'demote'
proof 'on a Secondary whose peer is Primary attach says so'

nbd-client -unix "$NODES/alpha/$MIRROR.nbd" /dev/nbd1 -N "$MIRROR" >/dev/null
refused "alpha attach $MIRROR --device /dev/nbd1" '/dev/nbd1 is in use by another program' --device
nbd-client -d /dev/nbd1 >/dev/null
exec 9</dev/nbd2
refused "alpha attach $MIRROR --device /dev/nbd2" 'in use' "process $$ (bash) has /dev/nbd2 open"
exec 9<&-
proof 'on a device that another program has set up, or has open, attach names that program'

attach_device alpha /dev/nbd0
refused "alpha attach $MIRROR --device /dev/nbd3" 'attached already, as /dev/nbd0'
refused "alpha demote $MIRROR" 'it is attached' "kagami detach $MIRROR"
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 /mnt/alpha
refused "alpha detach $MIRROR" '/dev/nbd0 is mounted on /mnt/alpha (ext4)' umount
echo written >/mnt/alpha/file
umount /mnt/alpha
dmsetup create above --table "0 $(blockdev --getsz /dev/nbd0) linear /dev/nbd0 0"
refused "alpha detach $MIRROR" 'dm-0 is built on it'
dmsetup remove above
exec 9</dev/nbd0
refused "alpha detach $MIRROR" "process $$ (bash) has /dev/nbd0 open"
exec 9<&-
mount /dev/nbd0 /mnt/alpha
[ "$(cat /mnt/alpha/file)" = written ] || fail 'the file is lost'
umount /mnt/alpha
detach_device alpha
proof 'detach names the mount, the device above and the process, and the device works on'

# Two daemons on one store. Its disk takes its time, so that a killed daemon's writes are on their way.
refused 'alpha up' 'already'
stop alpha
sectors=$(blockdev --getsz /dev/disk0)
dmsetup create slow --table "0 $sectors delay /dev/disk0 0 0 /dev/disk0 0 2500"
sed -i 's|^backing = .*|backing = "/dev/mapper/slow"|' "$NODES/alpha/kagami.toml"
start alpha up
wait_for alpha in-sync
attach_device alpha /dev/nbd0
for name in old new; do dd if=/dev/urandom of="$work/$name" bs=1M count=2 status=none; done
dd if="$work/old" of=/dev/nbd0 bs=1M oflag=direct status=none & writer=$!
wait_until 20 'writes under way' under_way
crash alpha
began=$(now_ms)
start alpha up
wait_until 60 'the next daemon has the device' is_served alpha
took=$(($(now_ms) - began))
grep -q 'in use: .*tried again' "$NODES/alpha/log" || fail 'the next daemon did not wait for the writes of the one before'
wait "$writer" || fail 'a write failed'
dd if="$work/new" of=/dev/nbd0 bs=1M oflag=direct status=none
dd if=/dev/nbd0 bs=1M count=2 iflag=direct status=none | cmp - "$work/new" || fail 'an old write lies over a new one'
no_kernel_errors
proof "a second daemon is refused; one that follows a killed one waits for its last writes ($took ms)"
detach_device alpha
stop alpha
stop beta
cmp /dev/disk0 /dev/disk1 || fail 'the copies differ'
proof 'detached; both disks are equal, byte for byte'
