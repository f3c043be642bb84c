#! /bin/sh
# Orderly: the watch pauses, the application gets its own stop command, what is left is ended.

APP_HOME=${APP_HOME:-/opt/app}

ARMLOADC app-watch /W PAUSE
[ -x $APP_HOME/app-stop ] && $APP_HOME/app-stop
ARMKILL app-watch /T 5
exit 0
