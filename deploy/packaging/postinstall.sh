#!/bin/sh
# The service is not started: it needs a collector in /etc/sockflow/sockflow.yaml.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl try-restart sockflow.service
fi
echo "sockflow: name a collector in /etc/sockflow/sockflow.yaml, then: systemctl enable --now sockflow; sockflow doctor tells what works here"
