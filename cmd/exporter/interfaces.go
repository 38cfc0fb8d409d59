package main

import (
	"context"
	"time"

	"github.com/spf13/pflag"

	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/sockdiag"
)

// interfaceSettings are the flags of interface counters.
type interfaceSettings struct {
	interval time.Duration
}

func (s *interfaceSettings) addFlags(f *pflag.FlagSet) {
	f.DurationVar(&s.interval, "interface-interval", 30*time.Second, "export the counters of every network interface this often; 0: do not")
}

func (s *interfaceSettings) check() error {
	if s.interval != 0 && s.interval < 100*time.Millisecond {
		return usagef("--interface-interval %s: must be 0 or at least 100ms", s.interval)
	}
	return nil
}

// open returns the reader of interfaces, nil if there is to be none.
func (s *interfaceSettings) open(proc string) (*sockdiag.Interfaces, error) {
	if s.interval == 0 {
		return nil, nil
	}
	return sockdiag.NewInterfaces(sockdiag.InterfacesConfig{Proc: proc, Interval: s.interval})
}

// interfaceReading is a reading with the control group that each namespace belongs to.
type interfaceReading struct {
	*sockdiag.Reading
	cgroups map[uint32]string
}

// readInterfaces sends readings to the cache loop until ctx ends.
func (p *pipeline) readInterfaces(ctx context.Context, r *sockdiag.Interfaces, proc string) {
	r.Run(ctx, func(reading *sockdiag.Reading) {
		select {
		case p.readings <- interfaceReading{reading, enrich.OldestCGroups(proc, reading.Members)}:
		case <-ctx.Done():
		}
	})
}

// interfacesAtOnce are handed over together.
const interfacesAtOnce = 256

// giveInterfaces names the containers behind interfaces and hands the interfaces over.
func (p *pipeline) giveInterfaces(r interfaceReading) {
	for i := range r.List {
		f := &r.List[i]
		p.enricher.Interface(f, r.cgroups[f.NetNS], r.cgroups[r.Peers[i]])
		if p.cluster != nil {
			f.Container = p.cluster.index.Complete(f.Container)
		}
	}
	for list := r.List; len(list) > 0; {
		n := min(len(list), interfacesAtOnce)
		out := p.pool.Get()
		out.Interfaces = append(out.Interfaces, list[:n]...)
		p.offer(out)
		list = list[n:]
	}
}
