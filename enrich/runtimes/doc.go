// Package runtimes asks container runtimes what they call their containers: containerd by its gRPC API, Docker and podman by their HTTP
// APIs, CRI-O and others by the Container Runtime Interface. Each is watched by a goroutine of its own, live as containers come and go.
// A runtime that is absent, hangs or restarts costs names only.
package runtimes
