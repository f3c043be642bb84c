# shellcheck shell=bash
# The faults, each as a function: from the moment it begins until its cause is gone. What must hold
# afterwards is `episode`'s business (service.sh).
# shellcheck source=tests/vm/service.sh
. "$(dirname "${BASH_SOURCE[0]}")/service.sh"

other() { if [ "$1" = alpha ]; then echo beta; else echo alpha; fi; }
# For as long as a fault lasts.
last() { sleep "$1"; }

# ---- daemons --------------------------------------------------------------------------------

kill_daemon() { # NODE TIMES
    local round
    for round in $(seq "$2"); do
        crash "$1"
        # Without its peer the Primary goes on after a while; without its daemon the service just waits.
        [ "$1" = alpha ] || serves_again 60
        start "$1" up
        serves_again 60
        # Again and again: also while it is being brought up to date.
        [ $((round % 2)) = 1 ] || wait_for alpha in-sync 120
    done
}
stop_daemon() { # NODE SECONDS
    kill -STOP "${DAEMON[$1]}"
    last "$2"
    kill -CONT "${DAEMON[$1]}"
}
