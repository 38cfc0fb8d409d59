// Package deploy holds no code but what checks the deployment files beside it: systemd unit, container image, Kubernetes manifests.
package deploy
