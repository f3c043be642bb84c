# shellcheck shell=bash
# vm: --backend uml --mem 1024 --mod nbd,dm_mod,dm-flakey,veth,bridge --disk 256M --disk 256M --disk 256M --disk 64M --disk 32M --disk 32M --timeout 900
# long
# A group of the failover manager with PostgreSQL on ext4 on the mirror and a floating address, on two machines with a
# witness. A client commits through that address and remembers what was acknowledged, and when. One fault after the
# other; after each: nothing acknowledged is missing, both nodes have never answered at once, the copies are equal, and
# how long it took until a commit was acknowledged again.
# FAULTS=REGEX: those whose words fit; without it four of them, FAULTS=. for all. ROUNDS=N: those that have a time to beat, N times each, as a table. TIMELINE=1: what happened when.
ROUNDS=${ROUNDS:-1}
FAULTS=${FAULTS:-a planned move|SIGKILL of a node|SIGKILL of postgres|do not hear each other}
# shellcheck source=tests/vm/cluster-faults.sh
. "$(dirname "${BASH_SOURCE[0]}")/../cluster-faults.sh"
# N times, with a shorter time-out of the link and of the heartbeats from the second word on.
each_round() { # "WORDS" COMMAND...
    for _ in $(seq "$ROUNDS"); do try "$@"; done
}

make_cluster
proof "PostgreSQL is at work at $FLOATING, on $ACTIVE ($(uname -r))"

each_round 'a planned move' planned_move
each_round 'SIGKILL of a node' kill_node
if [ "$ROUNDS" = 1 ]; then
    try 'SIGKILL of postgres' kill_postgres
    try 'SIGKILL of the daemon' kill_daemon
    try 'the arbiter is not reached from the active node for 4 s' cut_from_arbiter 4
    try 'the nodes do not hear each other for 6 s' cut_between 6
    try 'the active node is cut off from the world' cut_from_world
    try 'the disk of the active node fails' failing_disk
    try 'a stranger has the address' taken_address
    try 'a stranger takes the address' stolen_address
    try 'a start script fails' move_in_vain start-fails
    try 'a start script hangs' move_in_vain start-hangs
    try 'a stop script hangs' stop_hangs
    try 'the disk is full' full_disk
    try 'both nodes reboot' reboot_both
fi
if [[ 'time-out 0.8 s' =~ $FAULTS ]] || [ "$ROUNDS" != 1 ]; then
    shorter_time_out 800ms 200ms
    each_round 'SIGKILL of a node, time-out 0.8 s' kill_node
fi
something_was_tried
[ "$ROUNDS" = 1 ] || table
end_cluster
