package main

import (
	"context"
	"time"

	"github.com/spf13/pflag"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
)

// exporter gives records to one collector, or prints them.
type exporter interface {
	Run(ctx context.Context) error
	Offer(r *flowcache.Records) bool
	Stats() ipfix.Stats
	Name() string
	Healthy() bool
}

// exporting are the flags of how records reach collectors.
type exporting struct {
	policy      string
	maxRate     int
	sendTimeout time.Duration
	spool       string
	spoolSize   string
	doctor      bool // only tries: another exporter may use the spool
}

func (e *exporting) addFlags(f *pflag.FlagSet) {
	f.StringVar(&e.policy, "policy", "all", "several collectors: all get every record; failover: the first that takes it; hash: one, by the flow")
	f.IntVar(&e.maxRate, "max-rate", ipfix.DefaultMaxRate, "most messages a second to a collector over UDP or DTLS; 0: without bound")
	f.DurationVar(&e.sendTimeout, "send-timeout", 30*time.Second, "give a stream collector up that takes nothing for so long")
	f.StringVar(&e.spool, "spool", "", "keep records in this `DIR` while a stream collector is away")
	f.StringVar(&e.spoolSize, "spool-size", "256M", "most octets on disk, for each collector; beyond it the oldest records are dropped")
}

func (e *exporting) check() error {
	if _, err := ipfix.ParsePolicy(e.policy); err != nil {
		return usagef("--%w", err)
	}
	if e.maxRate < 0 {
		return usagef("--max-rate %d: must not be negative", e.maxRate)
	}
	if e.sendTimeout < 100*time.Millisecond {
		return usagef("--send-timeout %s: must be at least 100ms", e.sendTimeout)
	}
	if n, err := ipfix.ParseSize(e.spoolSize); err != nil || n < 1<<20 {
		return usagef("--spool-size %q: must be a size of at least 1M", e.spoolSize)
	}
	return nil
}

// apply puts the flags into the configuration that every collector begins with.
func (e *exporting) apply(c *ipfix.Config) {
	c.MaxRate, c.SendTimeout, c.Spool = e.maxRate, e.sendTimeout, e.spool
	c.SpoolSize, _ = ipfix.ParseSize(e.spoolSize)
}

// newGroup puts exporters together by the policy; what prints gets every record whatever the policy is.
func newGroup(policy string, exporters []exporter) (group *ipfix.Group, printers []taker) {
	p, _ := ipfix.ParsePolicy(policy)
	var members []ipfix.Member
	for _, x := range exporters {
		if x, ok := x.(*printing); ok {
			printers = append(printers, x)
			continue
		}
		members = append(members, x)
	}
	return ipfix.NewGroup(p, members), printers
}

// newNtopng makes the exporter of a zmq: URL.
func newNtopng(url string, s *settings, node string, notify func(ok bool, line string)) (exporter, error) {
	cfg, err := ipfix.ParseNtopngURL(url, ipfix.NtopngConfig{
		SourceID: s.domain, Node: node, Version: version, ReconnectMin: s.reconnectMin, ReconnectMax: s.reconnectMax,
		ActiveTimeout: s.activeTimeout, IdleTimeout: s.idleTimeout, Notify: notify,
	})
	if err != nil {
		return nil, usageError{err}
	}
	x, err := ipfix.NewNtopng(cfg)
	if err != nil {
		return nil, usagef("collector %q: %w", url, err)
	}
	return x, nil
}
