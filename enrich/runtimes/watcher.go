package runtimes

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/sockflow/sockflow/enrich"
)

// Config configures a Watcher. A list of sockets is "auto" for the usual ones, wherever they appear; "none"; or paths, separated by
// commas.
type Config struct {
	Containerd, Docker, CRI, Podman string
	Labels                          []string // keys of the labels that names carry, in this order
	Proc                            string   // where proc is mounted; default /proc
	// Notify, if set, is called once when a runtime begins to answer (true) and once when it no longer does.
	Notify func(ok bool, line string)
}

// usual are the sockets that distributions use.
var usual = map[string][]string{
	"containerd": {
		"/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock", "/run/k0s/containerd.sock",
		"/var/snap/microk8s/common/run/containerd.sock",
	},
	"docker": {"/var/run/docker.sock"},
	"cri":    {"/run/crio/crio.sock", "/run/cri-dockerd.sock"},
	"podman": {"/run/podman/podman.sock"},
}

// Watcher watches runtimes.
type Watcher struct {
	endpoints []*endpoint
}

// New returns a Watcher; an error if a socket is not one.
func New(cfg Config) (*Watcher, error) {
	if cfg.Notify == nil {
		cfg.Notify = func(bool, string) {}
	}
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	w := &Watcher{}
	for _, k := range []struct {
		kind, sockets string
		client        func(*endpoint) client
	}{
		{"containerd", cfg.Containerd, newContainerd},
		{"docker", cfg.Docker, newEngine},
		{"cri", cfg.CRI, newCRI},
		{"podman", cfg.Podman, newEngine},
	} {
		list, chosen := usual[k.kind], false
		switch k.sockets {
		case "", "auto":
		case "none":
			continue
		default:
			list, chosen = strings.Split(k.sockets, ","), true
		}
		for _, path := range list {
			path = strings.TrimPrefix(strings.TrimSpace(path), "unix://")
			if err := checkSocket(k.kind, path); err != nil && chosen {
				return nil, err
			}
			e := &endpoint{
				kind: k.kind, socket: path, chosen: chosen, labels: cfg.Labels, proc: cfg.Proc, notify: cfg.Notify,
				nudged: make(chan struct{}, 1), known: map[string]known{},
			}
			e.client = k.client(e)
			w.endpoints = append(w.endpoints, e)
		}
	}
	return w, nil
}

// checkSocket refuses a path that can never be a socket. One that is not there yet may come.
func checkSocket(kind, path string) error {
	if !filepath.IsAbs(path) {
		return &Error{kind, path, errNotAbsolute}
	}
	if st, err := os.Stat(path); err == nil && st.Mode()&os.ModeSocket == 0 {
		return &Error{kind, path, errNotSocket}
	}
	return nil
}

// Run watches until ctx ends, and sends what runtimes report. It returns when every goroutine that it started is gone.
func (w *Watcher) Run(ctx context.Context, out chan<- *enrich.ContainerUpdate) {
	var wg sync.WaitGroup
	for _, e := range w.endpoints {
		wg.Add(1)
		go func() { // ends with ctx
			defer wg.Done()
			e.run(ctx, out)
		}()
	}
	wg.Wait()
}

// Nudge notes that a container was seen that no runtime has reported: runtimes that send no events are asked at once.
// It does not wait.
func (w *Watcher) Nudge() {
	for _, e := range w.endpoints {
		select {
		case e.nudged <- struct{}{}:
		default:
		}
	}
}

// Settled reports whether every runtime that is there has reported all its containers, or did not answer.
func (w *Watcher) Settled() bool {
	for _, e := range w.endpoints {
		if !e.settled.Load() {
			return false
		}
	}
	return true
}

// Stats returns the counts of every runtime that was ever there.
func (w *Watcher) Stats() []Stats {
	var all []Stats
	for _, e := range w.endpoints {
		if s := e.stats(); e.chosen || s.Connects > 0 || s.Errors > 0 {
			all = append(all, s)
		}
	}
	return all
}
