// Package kube names addresses by what a Kubernetes API server knows of its cluster: pods, services and nodes. A Source lists and watches (the
// "Efficient detection of changes" of the Kubernetes API concepts: resource versions, bookmarks, 410 Gone) and hands over changes; an Index,
// which belongs to the goroutine that asks it, holds the few fields that names need.
package kube
