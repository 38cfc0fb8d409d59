#!/bin/sh
# Makes sockflow.yaml of the chart, for who does not use Helm.
set -eu
cd "$(dirname "$0")"
{
	cat <<'EOF'
# Made of the chart by deploy/kubernetes/make.sh. Name your collector in the ConfigMap, then: kubectl apply -f sockflow.yaml
apiVersion: v1
kind: Namespace
metadata:
  name: sockflow
  labels:
    pod-security.kubernetes.io/enforce: privileged # for hostPID, hostNetwork and hostPath; no container is privileged
EOF
	helm template sockflow ../helm/sockflow --namespace sockflow --kube-version 1.29.0 | sed '/helm.sh\/chart/d; s/managed-by: Helm/managed-by: manifests/'
} >sockflow.yaml
