# shellcheck shell=bash
# vm: --backend uml --mem 1024 --mod nbd,dm_mod,dm-flakey,dm-delay,dm-log-writes,sch_netem,veth --disk 256M --disk 256M --disk 256M --disk 64M --disk 1G --disk 1G --timeout 900
# long
# Real faults, one after the other, under PostgreSQL and fio on a mounted ext4: dead and stopped daemons, bad
# disks, a bad link, lost power with volatile caches. After each: every acknowledged commit is there, the
# file system is whole, both copies are equal, byte for byte; and how long nothing was committed.
# FAULTS=REGEX: only those whose words fit. LONG=1: each for longer, and the slow ones. SHORT=1: one of each kind.
LONG=${LONG:-}
FAULTS=${FAULTS:-${SHORT:+SIGKILL of the primary|to alpha-data fails|dropped|link down|power loss of both}}
VERIFY=${VERIFY:-$LONG}
# shellcheck source=tests/vm/faults.sh
. "$(dirname "${BASH_SOURCE[0]}")/../faults.sh"
try_long() { [ -z "$LONG" ] || try "$@"; }

make_nodes
make_service
proof "PostgreSQL and fio are at work on ext4 on the mirror ($(uname -r))"

times=${LONG:+10}
try "SIGKILL of the secondary, ${times:=2} times" kill_daemon beta "$times"
try "SIGKILL of the primary, $times times" kill_daemon alpha "$times"
for seconds in ${LONG:+1} 5 ${LONG:+60}; do
    try "SIGSTOP of the secondary for $seconds s" stop_daemon beta "$seconds"
    try "SIGSTOP of the primary for $seconds s" stop_daemon alpha "$seconds"
done
try 'the primary is stopped, the other takes over, it wakes up' take_over_from_stopped "$([ -n "$LONG" ] && echo 30 || echo 0)"
[ "$ACTIVE" = alpha ] || episode 'handed over' move_back
[ "$KAGAMI" = "$KAGAMI_OTHER" ] || try_long 'another build, on both nodes' upgrade "$KAGAMI_OTHER"

for node in beta alpha; do
    try "every write to $node-data fails" failing_disk "$node-data"
    try "every write to $node-metadata fails, and the link for 3 s" failing_metadata "$node-metadata"
done
try 'writes to beta-data are dropped for 2 s, and verify --repair' lying_disk beta-data 2
for store in beta-data beta-metadata alpha-data alpha-metadata; do
    try_long "$store takes 100 ms longer, for 5 s" slow_disk "$store" 100 5
    try_long "$store stands still for 5 s" stalled_disk "$store" 5
    try_long "$store stands still for 15 s" stalled_disk "$store" 15
done
try "alpha-data takes 50 ms longer, for 2 s" slow_disk alpha-data 50 2
try "beta-metadata stands still for 3 s" stalled_disk beta-metadata 3

seconds=${LONG:+30}
try "link down for ${seconds:=3} s" link_down "$seconds"
try "alpha is not heard for $seconds s" one_way alpha "$seconds"
try "beta is not heard for $seconds s" one_way beta "$seconds"
try "1 % of packets lost, for $seconds s" bad_link "$seconds" loss 1%
try_long "5 % lost, 20 ms late, in disorder, for $seconds s" bad_link "$seconds" loss 5% delay 20ms 10ms
try "MTU 1280 for $seconds s" small_mtu 1280 "$seconds"
try 'beta has another address' new_address_of_beta 10.1.0.2 10.1.0.4
try 'alpha has another address' new_address_of_alpha 10.1.0.1 10.1.0.5

for round in $(seq "$([ -n "$LONG" ] && echo 5 || echo 1)"); do
    try "power loss of the secondary (round $round)" power_loss_of_secondary
    try "power loss of the primary (round $round)" power_loss_of_primary
    [ "$ACTIVE" = alpha ] || episode 'handed over' move_back
    try "power loss of both (round $round)" power_loss_of_both
done
something_was_tried
end_service
