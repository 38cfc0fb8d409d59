#!/bin/bash
# build.sh DIR: builds a real kube-apiserver as DIR/kube-apiserver, unless it is there. Its module cannot be installed by go install, because it
# replaces its staging modules; so we make a module that does the same. Takes five minutes of a processor and 2 GB.
set -eu
version=1.34.4
dir=$1
[ -x "$dir/kube-apiserver" ] && exit 0
mkdir -p "$dir/src"
cd "$dir/src"
{
	echo "module kubeapiserver"
	echo "go 1.24"
	echo "require k8s.io/kubernetes v$version"
	for m in api apiextensions-apiserver apimachinery apiserver cli-runtime client-go cloud-provider cluster-bootstrap code-generator \
		component-base component-helpers controller-manager cri-api cri-client csi-translation-lib dynamic-resource-allocation endpointslice \
		externaljwt kms kube-aggregator kube-controller-manager kube-proxy kube-scheduler kubectl kubelet metrics mount-utils \
		pod-security-admission sample-apiserver; do
		echo "replace k8s.io/$m => k8s.io/$m v0.${version#*.}"
	done
} >go.mod
cat >main.go <<'GO'
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() { os.Exit(cli.Run(app.NewAPIServerCommand())) }
GO
go mod tidy
v=k8s.io/component-base/version
CGO_ENABLED=0 GOFLAGS=-mod=mod go build -trimpath -o ../kube-apiserver.new \
	-ldflags "-s -w -X $v.gitVersion=v$version -X $v.gitMajor=${version%%.*} -X $v.gitMinor=$(echo $version | cut -d. -f2)" .
mv ../kube-apiserver.new ../kube-apiserver
