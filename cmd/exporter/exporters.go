package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
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

// peer is a collector of a URL.
type peer struct {
	url    string
	ipfix  *ipfix.Config
	ntopng *ipfix.NtopngConfig // of zmq: URLs; one of the two is set
}

func (p *peer) name() string {
	if p.ntopng != nil {
		return p.ntopng.Name()
	}
	return p.ipfix.Name()
}

// number says which of the collectors of one address it is.
func (p *peer) number(n int) {
	if p.ntopng != nil {
		p.ntopng.Number = n
	} else {
		p.ipfix.Number = n
	}
}

// writes returns the folder in which the exporter has files written, and the file if it is one of a name of its own;
// empty without.
func (p *peer) writes() (dir, file string) {
	switch {
	case p.ntopng != nil:
	case p.ipfix.Network == "file":
		return filepath.Dir(p.ipfix.Address), p.ipfix.Address
	case spools(p.ipfix):
		return p.ipfix.Spool, ""
	}
	return "", ""
}

// open makes the exporter. Nothing is connected yet.
func (p *peer) open(notify func(ok bool, line string)) (exporter, error) {
	if dir, file := p.writes(); dir != "" {
		if err := checkFolder(dir, file); err != nil {
			return nil, fmt.Errorf("collector %q: %w", p.url, err)
		}
	}
	var x exporter
	var err error
	if p.ntopng != nil {
		p.ntopng.Notify = notify
		x, err = ipfix.NewNtopng(*p.ntopng)
	} else {
		p.ipfix.Notify = notify
		x, err = ipfix.New(*p.ipfix)
	}
	if err != nil {
		return nil, usagef("collector %q: %w", p.url, err)
	}
	return x, nil
}

// reconfigure gives an exporter that runs the options of the URL.
func (p *peer) reconfigure(x exporter) error {
	switch x := x.(type) {
	case *ipfix.Exporter:
		return x.Reconfigure(*p.ipfix)
	case *ipfix.Ntopng:
		return x.Reconfigure(*p.ntopng)
	}
	return nil
}

// peers reads the URLs that have an exporter. Several may be of one address, with other options: a further one's name has its number.
func (s *settings) peers(change func(*ipfix.Config)) ([]*peer, error) {
	base, err := s.base()
	if err != nil {
		return nil, err
	}
	var peers []*peer
	numbers, urls := map[string]int{}, map[string]bool{}
	for _, url := range exporterURLs(s.collectors) {
		p := &peer{url: url}
		if strings.HasPrefix(url, "zmq:") {
			cfg, err := ipfix.ParseNtopngURL(url, ipfix.NtopngConfig{
				SourceID: s.domain, Node: base.Options.Node, Version: version, ReconnectMin: s.reconnectMin, ReconnectMax: s.reconnectMax,
				ActiveTimeout: s.activeTimeout, IdleTimeout: s.idleTimeout,
			})
			if err != nil {
				return nil, usageError{err}
			}
			p.ntopng = &cfg
		} else {
			cfg, err := ipfix.ParseURL(url, base)
			if err != nil {
				return nil, usageError{err}
			}
			if change != nil {
				change(&cfg)
			}
			p.ipfix = &cfg
		}
		name := p.name()
		numbers[name]++
		// Two exporters cannot write one file or have one port.
		if n := numbers[name]; urls[url] || n > 1 && (p.ntopng != nil && p.ntopng.Bind || p.ntopng == nil && p.ipfix.Network == "file") {
			return nil, usagef("collector %q: given twice", url)
		} else if n > 1 {
			p.number(n)
		}
		urls[url] = true
		peers = append(peers, p)
	}
	return peers, nil
}
