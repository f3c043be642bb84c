# shellcheck shell=bash
# vm: --backend uml --mem 1024 --mod nbd,dm_mod,dm-flakey,dm-delay,dm-log-writes,sch_netem,veth --disk 320M --disk 320M --disk 256M --disk 64M --disk 1G --disk 1G --timeout 600
# shellcheck source=tests/vm/faults.sh
. "$(dirname "${BASH_SOURCE[0]}")/../faults.sh"

make_nodes
make_service
proof "PostgreSQL and fio are at work on ext4 on the mirror ($(uname -r))"
episode 'SIGKILL of the secondary, 3 times' kill_daemon beta 3
episode 'SIGKILL of the primary, 3 times' kill_daemon alpha 3
episode 'SIGSTOP of the secondary for 1 s' stop_daemon beta 1
episode 'SIGSTOP of the primary for 1 s' stop_daemon alpha 1
end_service
