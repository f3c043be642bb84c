# shellcheck shell=bash
# vm: --backend uml --mem 1024 --mod nbd:max_part=8,dm_mod --disk 384M --disk 384M --disk 256M --timeout 300
# A disk that is in use becomes a mirror and goes back: a partition table of 512-byte sectors, ext4 on
# one partition and an LVM volume with ext4 on another. `init --keep-data` takes it byte for byte;
# afterwards kagami is stopped and the disk is used as before, with what was written meanwhile.
# shellcheck source=tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
SOURCE=/usr/include/linux
work=$(mktemp -d)
mkdir -p /mnt/part /mnt/volume

# There is no udev: LVM makes its nodes itself, and looks at nothing but what it is told to.
lvm_on() { # DEVICE COMMAND...
    local device=$1
    shift
    lvm "$@" --config "devices { scan = [ \"/dev\" ] use_devicesfile = 0 filter = [ \"a|^$device\$|\", \"r|.*|\" ] }
        activation { udev_sync = 0 udev_rules = 0 verify_udev_operations = 1 } global { locking_type = 1 }" >/dev/null
}

partition() { # DEVICE NUMBER
    local name
    name=$(readlink -f "$1")
    case $name in *[0-9]) printf '%sp%s' "$name" "$2" ;; *) printf '%s%s' "$name" "$2" ;; esac
}

use() { # DEVICE
    blockdev --rereadpt "$1"
    wait_until 20 "the partitions of $1" test -b "$(partition "$1" 2)"
    mount "$(partition "$1" 1)" /mnt/part
    lvm_on "$(partition "$1" 2)" vgchange -ay vg
    mount /dev/vg/data /mnt/volume
}
leave() { # DEVICE
    umount /mnt/part /mnt/volume
    lvm_on "$(partition "$1" 2)" vgchange -an vg
}
check() { # NAME... (manifests)
    local name
    for name; do
        check_tree "/mnt/part/$name" "$work/$name.part"
        check_tree "/mnt/volume/$name" "$work/$name.volume"
    done
}
fill() { # NAME
    copy_tree "$SOURCE" "/mnt/part/$1" "$work/$1.part" 64
    copy_tree "$SOURCE" "/mnt/volume/$1" "$work/$1.volume" 64
}

disk=$(readlink -f /dev/disk0)
# 4095 is odd, and no multiple of 8: none of it lies on 4 KiB.
printf 'label: dos\nstart=4095, size=307200, type=83\nstart=315393, type=8e\n' | sfdisk --quiet "$disk"
blockdev --rereadpt "$disk"
wait_until 20 "the partitions of $disk" test -b "$(partition "$disk" 2)"
mkfs.ext4 -q "$(partition "$disk" 1)"
lvm_on "$(partition "$disk" 2)" vgcreate vg "$(partition "$disk" 2)"
lvm_on "$(partition "$disk" 2)" lvcreate -y -Zn -Wn -L 128M -n data vg
mkfs.ext4 -q /dev/vg/data
mount "$(partition "$disk" 1)" /mnt/part
mount /dev/vg/data /mnt/volume
fill before
leave "$disk"
sync
sum=$(sha256sum <"$disk")
proof 'a disk with a partition table, ext4 and an LVM volume is in use'

make_pair '' --keep-data
[ "$(sha256sum <"$disk")" = "$sum" ] || fail 'taking the disk changed it'
cmp "$disk" /dev/disk1 || fail 'the copy differs'
proof 'init --keep-data changed no byte of it, and the other node has a copy'

attach_device alpha /dev/nbd0
use /dev/nbd0
check before
fill during
check during
leave /dev/nbd0
detach_device alpha
proof 'its partitions and its volume are mounted from the mirror, and take new files'

stop beta
stop alpha
use "$disk"
check before during
fill after
check after
leave "$disk"
e2fsck -fn "$(partition "$disk" 1)" >"$work/fsck" 2>&1 || fail "e2fsck: $(cat "$work/fsck")"
proof 'the way back: kagami stopped, the disk used as before, with all files'
