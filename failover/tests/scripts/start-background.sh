#! /bin/sh
# The application goes into the background and writes its own pid file; nothing watches it.
# (exec resource: synchronous)

APP_HOME=${APP_HOME:-/opt/app}
PIDFILE=$APP_HOME/app.pid

if [ "$CLP_DISK" != "SUCCESS" ]; then
	ARMLOG "the disk is not there: the application is not started"
	exit 1
fi
if [ "$CLP_EVENT" = "FAILOVER" ]; then
	# What the other server left.
	rm -f $PIDFILE
	[ -x $APP_HOME/repair ] && $APP_HOME/repair
fi
nohup $APP_HOME/app > $APP_HOME/app.log 2>&1 &
echo $! > $PIDFILE
ARMSLEEP 0
exit 0
