package main

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/pflag"

	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/replay"
)

// wireSettings are the flags of metering packets instead of sockets.
type wireSettings struct {
	iface       string
	promiscuous bool
	decap       bool
}

func (w *wireSettings) addFlags(f *pflag.FlagSet) {
	f.StringVar(&w.iface, "interface", "", "count the packets of this interface (`NAME`, or any), and name their flows by the sockets of this host; with --source none: packets only")
	f.BoolVar(&w.promiscuous, "promiscuous", false, "with --interface: also packets that are not for this host")
	f.BoolVar(&w.decap, "decap", false, "with --interface: meter what VXLAN, GRE, IP in IP and Geneve carry, not the tunnel itself")
}

// wire is the packets of an interface as a source. Its records go beside the cache, which then only says whose they are.
type wire struct {
	live    *replay.Live
	meter   *replay.Meter
	records chan *flowcache.Records
	gone    chan struct{} // nobody takes records any more
}

// socketReport is the interval at which sockets report their owners. lateClose is how long a flow waits for packets
// after its connection's end: by then its socket has been reported.
const (
	socketReport = 5 * time.Second
	lateClose    = time.Second
)

func openWire(s *settings, maxFlows int, log *slog.Logger) (*wire, error) {
	live, err := replay.OpenLive(replay.LiveConfig{Interface: s.wire.iface, Promiscuous: s.wire.promiscuous})
	if err != nil {
		return nil, err
	}
	m, err := replay.NewMeter(replay.Config{
		ActiveTimeout: s.activeTimeout, IdleTimeout: s.idleTimeout, Linger: min(lateClose, s.idleTimeout), MaxFlows: maxFlows,
		Decap: s.wire.decap, Pool: make(flowcache.RecordPool, 32),
	})
	if err != nil {
		live.Close()
		return nil, usageError{err}
	}
	log.Info("metering the packets of an interface", "interface", s.wire.iface)
	return &wire{live: live, meter: m, records: make(chan *flowcache.Records), gone: make(chan struct{})}, nil
}

// Run meters until ctx ends.
func (w *wire) Run(ctx context.Context, _ chan<- *flowcache.Batch) error {
	defer w.live.Close()
	return w.meter.Run(func(p *replay.Packet) error {
		if ctx.Err() != nil {
			return io.EOF
		}
		return w.live.Next(p)
	}, func(r *flowcache.Records) error {
		select {
		case w.records <- r:
		case <-w.gone:
			r.Release()
		}
		return nil
	})
}

// ready returns the channel of the records of packets; nil without an interface.
func (w *wire) ready() <-chan *flowcache.Records {
	if w == nil {
		return nil
	}
	return w.records
}

// learn keeps who the ends of sockets' flows are.
func (p *pipeline) learn(recs []flowcache.Record) {
	for i := range recs {
		r := &recs[i]
		keys := []flowcache.Key{r.Key}
		for _, t := range []*flowcache.Translation{&r.Post, &r.Pre} {
			if *t != (flowcache.Translation{}) {
				keys = append(keys, flowcache.Key{Src: t.Src, Dst: t.Dst, SrcPort: t.SrcPort, DstPort: t.DstPort, Proto: r.Key.Proto})
			}
		}
		for _, k := range keys {
			if r.Source.Local {
				p.ends.Add(k, r.Start, r.End, copyOf(&r.Source))
			}
			if r.Dest.Local {
				p.ends.Add(k.Reverse(), r.Start, r.End, copyOf(&r.Dest))
			}
		}
	}
}

func copyOf(e *flowcache.End) *flowcache.End {
	c := *e
	return &c
}

// name hands over records of packets, with the ends that are known.
func (p *pipeline) name(r *flowcache.Records) {
	defer r.Release()
	p.readClock()
	for i := range r.List {
		p.ends.Name(&r.List[i])
	}
	p.deliver(r.List)
}

// newEnds returns a table for as many sockets as there may be flows.
func newEnds(s *settings) *enrich.Ends { return enrich.NewEnds(2 * s.maxFlows) }

// reportEvery is the active timeout of the sockets' flows: often enough, where they only name those of packets.
func reportEvery(s *settings) time.Duration {
	if s.wire.iface != "" {
		return min(s.activeTimeout, socketReport)
	}
	return s.activeTimeout
}
