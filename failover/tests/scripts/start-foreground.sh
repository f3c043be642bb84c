#! /bin/sh
# The application stays in the foreground: its process is watched by the cluster.
# (exec resource: asynchronous; pid monitor)

APP_HOME=${APP_HOME:-/opt/app}
LOG=$APP_HOME/app.log

case "$CLP_EVENT" in
RECOVER)
	# Nothing is started on a node that only came back.
	exit 0
	;;
esac

cd $APP_HOME || exit 1
echo "`date` started on `uname -n` as $CLP_SERVER ($CLP_EVENT)" >> $LOG
clplogcmd -m "app is started: $CLP_EVENT" -i 1 -l INFO
exec ./app
