#! /bin/sh
#***************************************
#*               stop.sh               *
#***************************************

#ulimit -s unlimited

if [ "$CLP_EVENT" = "START" -o "$CLP_EVENT" = "FAILOVER" ]
then
	if [ "$CLP_DISK" = "SUCCESS" ]
	then
		echo "$CLP_EVENT stop: ${CLP_FACTOR:-only this resource}"
	else
		echo "ERROR_DISK from $CLP_EVENT"
		exit 1
	fi
else
	echo "NO_CLP"
	exit 1
fi
echo "EXIT"
exit 0
