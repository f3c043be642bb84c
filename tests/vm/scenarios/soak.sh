# shellcheck shell=bash
# vm: --backend uml --mem 1024 --mod nbd,dm_mod,dm-flakey,dm-delay,dm-log-writes,sch_netem,veth --disk 256M --disk 256M --disk 256M --disk 64M --disk 2G --disk 2G --timeout 900
# by name only: ./do soak [MINUTES]
# Random faults, one after the other, for SOAK_MINUTES under PostgreSQL and fio. SOAK_SEED draws their order and
# their figures; what happens in between is the machine's own time. After each: as in `faults`.
VERIFY=1
# shellcheck source=tests/vm/faults.sh
. "$(dirname "${BASH_SOURCE[0]}")/../faults.sh"
SOAK_MINUTES=${SOAK_MINUTES:-2}
RANDOM=${SOAK_SEED:=$((RANDOM * 32768 + RANDOM))}
printf 'SOAK_SEED=%s, %s minutes\n' "$SOAK_SEED" "$SOAK_MINUTES"

draw() { # WORD... -> $drawn: one of them (no subshell: it would draw the same for ever)
    local -a words=("$@")
    drawn=${words[RANDOM % $#]}
}
from_to() { drawn=$(($1 + RANDOM % ($2 - $1 + 1))); }

# One fault: its words, and what to do, in $fault.
draw_fault() {
    local kind node number
    draw kill kill stop stop disk-fails metadata-fails lies slow stalls down one-way lossy mtu address \
        power-secondary power-primary power-both
    kind=$drawn
    draw alpha beta
    node=$drawn
    case $kind in
        kill) from_to 1 3; fault=("SIGKILL of $node, $drawn times" kill_daemon "$node" "$drawn") ;;
        stop) draw 1 2 3 5 5 12 30; fault=("SIGSTOP of $node for $drawn s" stop_daemon "$node" "$drawn") ;;
        disk-fails) fault=("every write to $node-data fails" failing_disk "$node-data") ;;
        metadata-fails) fault=("every write to $node-metadata fails, and the link for 3 s" failing_metadata "$node-metadata") ;;
        lies) from_to 1 4; fault=("writes to beta-data are dropped for $drawn s, and verify --repair" lying_disk beta-data "$drawn") ;;
        slow)
            from_to 10 200; number=$drawn
            draw data metadata; node=$node-$drawn
            from_to 1 8; fault=("$node takes $number ms longer, for $drawn s" slow_disk "$node" "$number" "$drawn") ;;
        stalls)
            draw data metadata; node=$node-$drawn
            from_to 1 14; fault=("$node stands still for $drawn s" stalled_disk "$node" "$drawn") ;;
        down) from_to 1 15; fault=("link down for $drawn s" link_down "$drawn") ;;
        one-way) from_to 1 15; fault=("$node is not heard for $drawn s" one_way "$node" "$drawn") ;;
        lossy)
            draw 1 1 2 5 10; number=$drawn
            from_to 2 15; fault=("$number % of packets lost, 5 ms late, in disorder, for $drawn s" bad_link "$drawn" loss "$number%" delay 5ms 4ms) ;;
        mtu) from_to 2 10; fault=("MTU 1280 for $drawn s" small_mtu 1280 "$drawn") ;;
        address)
            number=$((BETA_AT ^ 6)); fault=('beta has another address' new_address_of_beta "10.1.0.$BETA_AT" "10.1.0.$number")
            BETA_AT=$number ;;
        power-secondary) fault=('power loss of the secondary' power_loss_of_secondary) ;;
        power-primary) fault=('power loss of the primary' power_loss_of_primary) ;;
        power-both) fault=('power loss of both' power_loss_of_both) ;;
    esac
}
BETA_AT=2
make_nodes
make_service
began=$SECONDS
while [ $((SECONDS - began)) -lt $((SOAK_MINUTES * 60)) ]; do
    draw_fault
    episode "${fault[@]}"
    [ "$ACTIVE" = alpha ] || episode 'handed over' move_back
done
end_service
printf 'counts:\n'
# By kind: figures are left out of the words.
sed 's/[0-9][0-9]* /N /g; s/ [0-9][0-9]*$/ N/' "$work/figures" | awk -F '\t' '{ count[$1]++; commits[$1] += $3; if ($2 > most[$1]) most[$1] = $2 }
    END { for (kind in count) printf "  %3d x %s: at most %d ms without a commit, %d commits\n", count[kind], kind, most[kind], commits[kind] }' | sort -k 3
