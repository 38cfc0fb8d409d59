package selection

import (
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

// Aggregator makes one record of those that differ in nothing but the port of the client, which changes with every connection
// (RFC 7015: spatial aggregation, over intervals of the caller's clock). The port is then 0, the counters are sums. It belongs to one
// goroutine. Every record that it gives out has Flows: a flow counts with its first record, and so once (RFC 7015: the conservative
// count, deltaFlowCount).
//
// Only records leave the exporter in this form: the cache goes on to keep connections apart, so that counts stay exact and both ends find
// each other.
type Aggregator struct {
	max    int
	begin  int64 // of the first interval
	every  int64 // 0: intervals are the caller's
	index  map[aggregate]int
	list   []flowcache.Record
	merged uint64
}

// aggregate is what records that are made one have in common.
type aggregate struct {
	key          flowcache.Key
	source, dest end
	post, pre    flowcache.Translation
	failed       uint16 // errno: connections that failed are not counted together with others
	interval     int64
}

type end struct {
	local, kernel bool
	process       flowcache.ProcessID
	uid, netns    uint32
	cgroup        uint64
}

// ephemeral is the first port that is a client's and not a service's: others below are assigned or registered by habit.
const ephemeral = 1024

// NewAggregator returns an Aggregator that holds at most max records.
func NewAggregator(max int) *Aggregator {
	return &Aggregator{max: max, index: map[aggregate]int{}}
}

// ByEnd keeps records apart by the interval in which they end, for records that come in no order of time: intervals of the length every, the first of
// which begins at begin (nanoseconds, as flowcache.Now).
func (g *Aggregator) ByEnd(begin int64, every time.Duration) { g.begin, g.every = begin, int64(every) }

// Merged is the number of records that went into others.
func (g *Aggregator) Merged() uint64 { return g.merged }

// Len is the number of records that it holds.
func (g *Aggregator) Len() int { return len(g.list) }

// Add takes a record, or appends to dst what has to go: r itself if its client's port is no ephemeral one or who is the client is not
// known, and all it holds if there is no room.
func (g *Aggregator) Add(dst []flowcache.Record, r *flowcache.Record) []flowcache.Record {
	if r.First {
		r.Flows = 1
	}
	if r.Reverse.Packets > 0 && (r.First || r.ReverseTotal.Packets == r.Reverse.Packets) {
		r.FlowsBack = 1
	}
	if r.Arbitrary || r.Key.SrcPort < ephemeral || r.Key.Proto != flowcache.ProtoTCP && r.Key.Proto != flowcache.ProtoUDP && r.Key.Proto != flowcache.ProtoUDPLite {
		return append(dst, *r)
	}
	k := aggregate{key: r.Key, source: endKey(&r.Source), dest: endKey(&r.Dest), post: r.Post, pre: r.Pre, failed: r.TCP.ConnectError}
	if g.every > 0 {
		k.interval = (r.End - g.begin) / g.every
	}
	k.key.SrcPort, k.post.SrcPort, k.pre.SrcPort = 0, 0, 0
	if i, ok := g.index[k]; ok {
		g.merged++
		merge(&g.list[i], r)
		return dst
	}
	if len(g.list) >= g.max {
		dst = g.Flush(dst)
	}
	g.index[k] = len(g.list)
	g.list = append(g.list, *r)
	one := &g.list[len(g.list)-1]
	one.Key.SrcPort, one.Post.SrcPort, one.Pre.SrcPort = 0, 0, 0
	one.Source.Cookie, one.Dest.Cookie = 0, 0
	one.ForwardTotal, one.ReverseTotal = flowcache.Counters{}, flowcache.Counters{} // of one flow each
	return dst
}

// Flush appends what it holds to dst, and begins anew.
func (g *Aggregator) Flush(dst []flowcache.Record) []flowcache.Record {
	dst = append(dst, g.list...)
	clear(g.list) // let go of strings
	g.list = g.list[:0]
	clear(g.index)
	return dst
}

func endKey(e *flowcache.End) end {
	return end{e.Local, e.Kernel, e.Process, e.UID, e.NetNS, e.CGroup}
}

// merge adds r to the record of its aggregate.
func merge(to, r *flowcache.Record) {
	to.Start, to.End = min(to.Start, r.Start), max(to.End, r.End)
	to.Control |= r.Control
	to.ControlBack |= r.ControlBack
	to.Flows += r.Flows
	to.FlowsBack += r.FlowsBack
	add(&to.Forward, &r.Forward)
	add(&to.Reverse, &r.Reverse)
	to.Reordered += r.Reordered
	to.ReverseReordered += r.ReverseReordered
	if !r.Final || !to.Final { // one of them goes on
		to.EndReason, to.Final = flowcache.EndActive, false
	} else if r.EndReason != to.EndReason {
		to.EndReason = flowcache.EndDetected
	}
	if r.HasTCP {
		least := r.TCP.MinRTT
		if to.HasTCP && to.TCP.MinRTT != 0 && (least == 0 || to.TCP.MinRTT < least) {
			least = to.TCP.MinRTT
		}
		to.HasTCP, to.TCP = true, r.TCP // gauges: of the last
		to.TCP.MinRTT = least
	}
	// Names that were not known in time are in a later record.
	fill(&to.Source, &r.Source)
	fill(&to.Dest, &r.Dest)
}

func fill(to, e *flowcache.End) {
	if to.Who == nil {
		to.Who = e.Who
	}
	if to.Container == nil {
		to.Container = e.Container
	}
	if to.Service == "" {
		to.Service = e.Service
	}
	if to.Node == "" {
		to.Node = e.Node
	}
}

func add(to, c *flowcache.Counters) {
	to.Payload += c.Payload
	to.Octets += c.Octets
	to.Packets += c.Packets
	to.RetransPackets += c.RetransPackets
	to.RetransOctets += c.RetransOctets
}
