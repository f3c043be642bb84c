#! /bin/sh
# Mode 0: would it work? Mode 1: stop the server.
case "$CLP_FORCESTOP_MODE" in
0) [ -e "${POWER_SWITCH:-/dev/ttyS9}" ] || { echo "no power switch"; exit 1; } ;;
1)
	[ "$CLP_SERVER_DOWN" != "$CLP_SERVER_LOCAL" ] || exit 2
	echo "off $CLP_SERVER_DOWN" >> "${POWER_SWITCH:-/dev/ttyS9}" || exit 1
	;;
*) exit 1 ;;
esac
exit 0
