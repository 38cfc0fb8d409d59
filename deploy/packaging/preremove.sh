#!/bin/sh
# $1 is "remove" (deb) or 0 (rpm) when the package goes, and not when it is replaced.
set -e
if [ -d /run/systemd/system ] && { [ "$1" = remove ] || [ "$1" = 0 ]; }; then
	systemctl disable --now sockflow.service
fi
