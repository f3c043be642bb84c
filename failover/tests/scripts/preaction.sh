#! /bin/sh
# Before each recovery action: keep what can be of use afterwards.
case "$CLP_ACTION" in
RECOVERY) COUNT=$CLP_RECOVERYCOUNT ;;
RESTART) COUNT=$CLP_RESTARTCOUNT ;;
FAILOVER) COUNT=$CLP_FAILOVERCOUNT ;;
FINALACTION) COUNT=- ;;
*) exit 1 ;;
esac
echo "$CLP_MONITORNAME: $CLP_ACTION $COUNT"
exit 0
