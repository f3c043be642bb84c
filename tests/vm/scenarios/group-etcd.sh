# shellcheck shell=bash
# vm: --backend uml --mem 1024 --disk 128M --disk 128M --disk 512M --timeout 580
# not when SHORT: it is `group` with another arbiter
# A group of the failover manager on a mirror whose arbiter is a real etcd.
ARBITER=etcd
# shellcheck source=tests/vm/scenarios/group.sh
. "$(dirname "${BASH_SOURCE[0]}")/group.sh"
