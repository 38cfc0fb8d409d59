package ipfix

import (
	"fmt"

	"github.com/sockflow/sockflow/flowcache"
)

// Policy says which of several collectors gets a record.
type Policy uint8

// Policies.
const (
	All      Policy = iota // every one
	Failover               // the first that takes messages, in the order given
	Hash                   // one, by the flow's addresses, ports and protocol: both directions and all records of a flow go to the same
)

// ParsePolicy returns the policy of a name.
func ParsePolicy(s string) (Policy, error) {
	switch s {
	case "all":
		return All, nil
	case "failover":
		return Failover, nil
	case "hash":
		return Hash, nil
	}
	return 0, fmt.Errorf("policy %q: must be all, failover or hash", s)
}

// Member is a collector of a Group.
type Member interface {
	Offer(r *flowcache.Records) bool
	Healthy() bool
}

// Group hands records to its members. It belongs to one goroutine.
type Group struct {
	policy  Policy
	members []Member
	pool    flowcache.RecordPool
	shares  []*flowcache.Records
	healthy []int
}

// NewGroup returns a group of members; nil if there are none.
func NewGroup(p Policy, members []Member) *Group {
	if len(members) == 0 {
		return nil
	}
	return &Group{policy: p, members: members, pool: make(flowcache.RecordPool, 64), shares: make([]*flowcache.Records, len(members))}
}

// Offer hands r over, which it releases.
func (g *Group) Offer(r *flowcache.Records) {
	switch {
	case g.policy == Failover:
		g.members[g.first()].Offer(r)
	case g.policy == Hash && len(g.members) > 1:
		g.share(r)
	default:
		r.Retain(len(g.members) - 1)
		for _, m := range g.members {
			m.Offer(r)
		}
	}
}

// first is the first healthy member; if there is none the first, whose queue and spool hold what they can.
func (g *Group) first() int {
	for i, m := range g.members {
		if m.Healthy() {
			return i
		}
	}
	return 0
}

// share gives each member its part. The part of one that is not healthy goes to the others, as long as there is one.
func (g *Group) share(r *flowcache.Records) {
	g.healthy = g.healthy[:0]
	for i, m := range g.members {
		if m.Healthy() {
			g.healthy = append(g.healthy, i)
		}
	}
	for i := range r.List {
		h := flowHash(&r.List[i].Key)
		to := int(h % uint64(len(g.members)))
		if n := len(g.healthy); n > 0 && !g.members[to].Healthy() {
			to = g.healthy[h/uint64(len(g.members))%uint64(n)]
		}
		if g.shares[to] == nil {
			g.shares[to] = g.pool.Get()
		}
		g.shares[to].List = append(g.shares[to].List, r.List[i])
	}
	// Interface counters are of no flow: they follow each other to one collector.
	if len(r.Interfaces) > 0 {
		to := g.first()
		if g.shares[to] == nil {
			g.shares[to] = g.pool.Get()
		}
		g.shares[to].Interfaces = append(g.shares[to].Interfaces, r.Interfaces...)
	}
	r.Release()
	for i, s := range g.shares {
		if s != nil {
			g.members[i].Offer(s)
			g.shares[i] = nil
		}
	}
}

// flowHash is the same for both directions of a flow.
func flowHash(k *flowcache.Key) uint64 {
	return mix(endHash(&k.Src, k.SrcPort) + endHash(&k.Dst, k.DstPort) + uint64(k.Proto))
}

// endHash is FNV-1a, mixed: bits that both ends have must not cancel out in the sum.
func endHash(a *flowcache.Addr, port uint16) uint64 {
	h := uint64(14695981039346656037)
	for _, b := range a {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return mix((h ^ uint64(port)) * 1099511628211)
}

// mix is the last step of MurmurHash3 (fmix64).
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
