#! /bin/sh
# The application is loaded to be watched: its unexpected end moves the group.

APP_HOME=${APP_HOME:-/opt/app}

if [ "$ARMS_EVENT" = "START" ] || [ "$ARMS_EVENT" = "FAILOVER" ]
then
	if [ "$ARMS_DISK" = "SUCCESS" ]
	then
		ARMLOAD app-watch /M /R 1 /H 24 $APP_HOME/app --instance "one two"
		if [ $? -ne 0 ]
		then
			ARMBCAST /MSG "app could not be loaded" /A
			exit 1
		fi
		[ "$ARMS_SERVER" = "OTHER" ] && ARMLOG "it runs on the other server"
	fi
fi
exit 0
