# What reads and runs a package control file (HP Serviceguard). Arguments: the file, a verb:
#   list        the services: name and halt time-out, a line each
#   run         customer_defined_run_cmds
#   halt        customer_defined_halt_cmds
#   service N   the service at N, again as often as its SERVICE_RESTART says
# A whole control script has the manager's own code behind what people write in it; that code is not
# run: the file is read up to the line where it begins.
control=$0 verb=$1

# In control files it follows a command and stops the package if that has failed.
test_return() {
    local status=$?
    if [ $status -ne 0 ]; then
        echo "a command before test_return $1 failed with status $status" >&2
        exit_value=1
    fi
}
customer_defined_run_cmds() { :; }
customer_defined_halt_cmds() { :; }
exit_value=0

part=$(sed '/^#.*END OF CUSTOMER DEFINED FUNCTIONS/,$d; /^#.*START OF RUN FUNCTIONS/,$d' "$control") || exit 2
# It sees no arguments: those are for the code that is not run.
set --
eval "$part" || { echo "$control can't be read" >&2; exit 2; }

case $verb in
list)
    for n in "${!SERVICE_NAME[@]}"; do
        [ -n "${SERVICE_NAME[n]}" ] && echo "$n ${SERVICE_HALT_TIMEOUT[n]:-0} ${SERVICE_NAME[n]}"
    done
    exit 0 ;;
run)
    customer_defined_run_cmds
    exit "$exit_value" ;;
halt)
    customer_defined_halt_cmds
    exit "$exit_value" ;;
service)
    n=$SERVICE_INDEX command=${SERVICE_CMD[n]} restart=${SERVICE_RESTART[n]} left=0
    if [ -z "$command" ]; then echo "SERVICE_CMD[$n] is not set" >&2; exit 2; fi
    case $restart in
    '' | none | None) ;;
    -R) left=-1 ;;
    -r*) left=${restart#-r}; left=${left//[[:space:]]/} ;;
    *) echo "SERVICE_RESTART[$n]: $restart is none of -r N, -R" >&2; exit 2 ;;
    esac
    while :; do
        begun=$SECONDS
        ( eval "$command" )
        status=$?
        echo "service ${SERVICE_NAME[n]} ended with status $status; restarts left: $left" >&2
        [ "$left" = 0 ] && exit "$status"
        [ "$left" -gt 0 ] && left=$((left - 1))
        # A service that ends at once is not begun a thousand times a second.
        [ $((SECONDS - begun)) -ge 1 ] || sleep 1
    done ;;
esac
echo "no such verb: $verb" >&2
exit 2
