# shellcheck shell=bash
# vm: --backend qemu --mem 1536 --mod nbd,ublk_drv --disk 256M --disk 256M --disk 256M --disk 256M --timeout 2400
# by name only: it measures, and proves nothing but that both copies are equal
# One mirror as a device of the kernel's nbd and as one of ublk, in turn, beside a bare disk: fio's random and sequential
# writes and its reads (beside.sh says how). The machine is emulated: only the quotients say something.
SOLO=never
# shellcheck source=tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=tests/vm/beside.sh
. "$(dirname "${BASH_SOURCE[0]}")/../beside.sh"
DEVICE=([raw]=/dev/disk3 [nbd]=/dev/nbd0 [ublk]=/dev/ublkb0)

# An emulated machine that has little of its host is silent for seconds.
before_start() {
    for node in alpha beta; do sed -i 's/^\[peer\..*\]$/&\ntimeout = "20s"/' "$NODES/$node/kagami.toml"; done
}
attached=
use() { # CANDIDATE
    case $1 in
        raw | "$attached") return ;;
    esac
    [ -z "$attached" ] || detach_device alpha
    attach_device alpha "${DEVICE[$1]}"
    attached=$1
}

make_pair 256M
WATCH=([primary]=${DAEMON[alpha]} [secondary]=${DAEMON[beta]})
BY=(raw nbd)
prepare raw nbd
use ublk
proof "a mirror stands beside a bare disk, by nbd and by ublk (Linux $(uname -r), $(nproc) CPUs)"
compare raw nbd ublk
detach_device alpha
stop alpha
stop beta
cmp /dev/disk0 /dev/disk1 || fail 'the copies differ'
proof 'both disks are equal, byte for byte'
