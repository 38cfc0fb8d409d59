package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/sockflow/sockflow/enrich/kube"
)

// kubeSettings are the flags of names from a Kubernetes API server.
type kubeSettings struct {
	server, token, ca, pods, node string
	max                           int
	atOnce                        bool // for who asks once: the first lists are not spread
}

func (s *kubeSettings) addFlags(f *pflag.FlagSet) {
	f.StringVar(&s.server, "kube", "none", "name pods, services and nodes elsewhere by this Kubernetes API `SERVER`: https://HOST:PORT, a kubeconfig file, auto (the cluster that this pod is in, or KUBECONFIG), or none")
	f.StringVar(&s.token, "kube-token", "", "`file` with the bearer token; auto: the service account's")
	f.StringVar(&s.ca, "kube-ca", "", "`file` with the certificates of the server's authority; auto: the service account's")
	f.StringVar(&s.pods, "kube-pods", "all", "all: of the whole cluster; node: of this node, which spares the server of a large one")
	f.StringVar(&s.node, "kube-node", "", "this node's name in the cluster (default --node-name, or the host name)")
	f.IntVar(&s.max, "kube-max", kube.DefaultMax, "most Kubernetes objects remembered")
}

func (s *kubeSettings) check() error {
	if s.pods != "all" && s.pods != "node" {
		return usagef("--kube-pods %q: must be all or node", s.pods)
	}
	if s.max < 1 {
		return usagef("--kube-max %d: must be at least 1", s.max)
	}
	if (s.server == "none" || s.server == "") && (s.token != "" || s.ca != "" || s.node != "" || s.pods != "all") {
		return usagef("--kube-token, --kube-ca, --kube-node and --kube-pods need --kube")
	}
	return nil
}

// cluster is what is known of a Kubernetes cluster. Without one it is nil.
type cluster struct {
	source  *kube.Source
	index   *kube.Index // the cache loop's
	changes chan []kube.Change
	listed  [3]time.Time // when lists were asked for anew, by kind
}

// relistInterval is the least time between two lists that are asked for because there is room again for what they show.
const relistInterval = time.Minute

// apply takes over what the source said, in the cache loop.
func (c *cluster) apply(changes []kube.Change) {
	c.index.Apply(changes)
	for k := range kube.Kinds() {
		if now := time.Now(); now.Sub(c.listed[k]) >= relistInterval && c.index.Wants(k) {
			c.listed[k] = now
			c.source.Relist(k)
		}
	}
}

// forget goes on with forgetting what is long gone, where the source says nothing.
func (c *cluster) forget() {
	if c != nil && c.index.Pending() {
		c.index.Apply(nil)
	}
}

// open returns the cluster of the flags, nil if there is to be none.
func (s *kubeSettings) open(nodeName string, log *slog.Logger) (*cluster, error) {
	if s.server == "none" || s.server == "" {
		return nil, nil
	}
	cfg := kube.Config{Server: s.server, TokenFile: s.token, CAFile: s.ca, Notify: notifier(log)}
	if s.atOnce {
		cfg.Spread = -1
	}
	if s.pods == "node" {
		cfg.Node = s.node
		if cfg.Node == "" {
			cfg.Node = nodeName
		}
		if cfg.Node == "" {
			cfg.Node, _ = os.Hostname()
		}
	}
	src, err := kube.New(cfg)
	if s.server == "auto" && errors.Is(err, kube.ErrNoCluster) {
		log.Info("no Kubernetes names", "reason", err)
		return nil, nil
	}
	if err != nil {
		return nil, usagef("--kube %s: %w", s.server, err)
	}
	log.Info("names of ends elsewhere by Kubernetes", "server", src.Server())
	return &cluster{source: src, index: kube.NewIndex(s.max, func(line string) { log.Warn(line) }), changes: make(chan []kube.Change, 16)}, nil
}

// follow sends changes to the cache loop until ctx ends.
func (c *cluster) follow(ctx context.Context) {
	if c != nil {
		c.source.Run(ctx, c.changes)
	}
}

// ready returns the channel that the cache loop receives changes from; nil, which never delivers, without a cluster.
func (c *cluster) ready() <-chan []kube.Change {
	if c == nil {
		return nil
	}
	return c.changes
}

// stats of the index; for the cache loop.
func (c *cluster) stats() (st kube.IndexStats) {
	if c != nil {
		st = c.index.Stats()
	}
	return st
}

// notifier logs what comes and goes.
func notifier(log *slog.Logger) func(ok bool, line string) {
	return func(ok bool, line string) {
		if ok {
			log.Info(line)
		} else {
			log.Warn(line)
		}
	}
}

var (
	kubeObjects  = describe(prometheus.GaugeValue, "kube_objects", "Kubernetes objects remembered.", "kind")
	kubeOverflow = describe(prometheus.CounterValue, "kube_overflow_total", "Kubernetes objects that there was no room for (--kube-max), or that share their addresses with too many others.")
	kubeFormer   = describe(prometheus.GaugeValue, "kube_former_objects", "Kubernetes objects that are gone, or have given up addresses, and are remembered for flows that began before.")
	kubeNamed    = describe(prometheus.CounterValue, "kube_named_ends_total", "Ends of records that were named by Kubernetes: a pod, a service that was spoken to, or a node only.", "kind")
	kubeChanges  = describe(prometheus.CounterValue, "kube_changes_total", "Changes of objects that the Kubernetes API server told.", "kind")
	kubeRequests = describe(prometheus.CounterValue, "kube_requests_total", "Lists and watches that were asked of the Kubernetes API server, those included that were not answered.", "kind", "verb")
	kubeTrouble  = describe(prometheus.CounterValue, "kube_errors_total", "What went wrong with the Kubernetes API server: refused (401 and 403), failed, gone (the server no longer remembered, and all was listed anew), malformed (an object that could not be read), large (an object left out: longer than 4 MB, or more than 2048 addresses or ports).", "kind", "cause")
)

// collect shows what came of the cluster.
func (c *cluster) collect(put func(d description, v uint64, labels ...string), index kube.IndexStats) {
	if c == nil {
		return
	}
	st := c.source.Stats()
	put(kubeOverflow, index.Overflow)
	put(kubeFormer, uint64(index.Former))
	for k := range kube.Kinds() {
		kind := k.String()
		put(kubeObjects, uint64(index.Objects[k]), kind)
		put(kubeNamed, index.Named[k], kind)
		put(kubeChanges, st.Changes[k], kind)
		put(kubeRequests, st.Lists[k], kind, "list")
		put(kubeRequests, st.Watches[k], kind, "watch")
		put(kubeTrouble, st.Refused[k], kind, "refused")
		put(kubeTrouble, st.Failed[k], kind, "failed")
		put(kubeTrouble, st.Gone[k], kind, "gone")
		put(kubeTrouble, st.Malformed[k], kind, "malformed")
		put(kubeTrouble, st.Large[k], kind, "large")
	}
}
