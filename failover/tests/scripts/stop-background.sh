#! /bin/sh
# The application is asked to end, and may take two minutes for it.

APP_HOME=${APP_HOME:-/opt/app}
PIDFILE=$APP_HOME/app.pid
TICK=${APP_TICK:-1}		# seconds
LIMIT=120			# ticks

[ -f $PIDFILE ] || exit 0
PID=`cat $PIDFILE`
kill -TERM $PID 2>/dev/null
I=0
while kill -0 $PID 2>/dev/null
do
	if [ $I -ge $LIMIT ]
	then
		clplogcmd -m "the application did not end in $LIMIT s: killed" -l ERR
		kill -KILL $PID
		exit 1
	fi
	sleep $TICK
	I=`expr $I + 1`
done
echo "ended after $I"
rm -f $PIDFILE
exit 0
