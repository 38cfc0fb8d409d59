package enrich

import (
	"net/netip"
	"slices"

	"github.com/sockflow/sockflow/flowcache"
)

// lease is the time in which a container had an address, or a port of the host.
type lease struct {
	holder      string // which container, or pod: see container.holder
	runtime     string // that said so
	owner       uint32 // the user whose runtime it is
	work        *flowcache.Workload
	since, till int64 // till 0: still
}

// leases are those of one address, or port, in the order of their beginnings.
type leases []lease

const (
	maxLeases    = 256     // of one address or port, the newest
	maxAllLeases = 1 << 17 // together
	maxNets      = 4096
	maxSubnets   = 256 // of a runtime
	// Ranges of ports of up to this many are looked up by port, wider ones are looked through.
	narrow = 16
)

// leaseTable knows which container had what, and when.
type leaseTable struct {
	byAddr map[flowcache.Addr]leases
	byPort map[port]leases
	wide   []wideLease
	nets   map[flowcache.Addr]bool // that had a lease: the first 24 bits of IPv4, 64 of IPv6
	// subnets are those of which runtimes say that they have them, by runtime.
	subnets map[string][]netip.Prefix
	count   int
	queue   []visit // of addresses and ports, to see what of them is to be forgotten, first to last
}

// visit is when to look at the leases of an address, or of a port.
type visit struct {
	at   int64 // not before leaseMemory after this
	addr flowcache.Addr
	port port // if its proto is not 0
}

// maxVisits is how many visits are made at once.
const maxVisits = 1024

// port is a port of the host.
type port struct {
	proto  uint8
	number uint16
}

type wideLease struct {
	ports PublishedPorts
	lease
}

func (t *leaseTable) init() {
	t.byAddr = make(map[flowcache.Addr]leases)
	t.byPort = make(map[port]leases)
	t.nets = make(map[flowcache.Addr]bool)
	t.subnets = make(map[string][]netip.Prefix)
}

// move ends what of the old a container has no more, as of at, and begins what is new, as of since. It returns how many there was no room for.
func (t *leaseTable) move(old, now *container, since, at int64) (overflow int) {
	if old != nil {
		for _, a := range old.Addresses {
			if !slices.Contains(now.Addresses, a) {
				t.byAddr[a].end(old.holder, at)
			}
		}
		kept := slices.Contains[[]PublishedPorts]
		if len(now.Published) > narrow {
			set := make(map[PublishedPorts]bool, len(now.Published))
			for _, p := range now.Published {
				set[p] = true
			}
			kept = func(_ []PublishedPorts, p PublishedPorts) bool { return set[p] }
		}
		for _, p := range old.Published {
			if !kept(now.Published, p) {
				t.endPorts(p, old.holder, at)
			}
		}
	}
	l := lease{now.holder, now.runtime, now.owner, now.stands(), since, now.Ended}
	for _, a := range now.Addresses {
		if len(t.nets) < maxNets {
			t.nets[network(a)] = true
		}
		overflow += add(t, t.byAddr, a, l, visit{at: now.said, addr: a})
	}
	for _, p := range now.Published {
		if int(p.To)-int(p.From) < narrow {
			for n := int(p.From); n <= int(p.To); n++ {
				k := port{p.Proto, uint16(n)}
				overflow += add(t, t.byPort, k, l, visit{at: now.said, port: k})
			}
			continue
		}
		i := slices.IndexFunc(t.wide, func(w wideLease) bool { return w.ports == p && w.holder == l.holder && w.till == 0 })
		switch {
		case i >= 0:
			t.wide[i].work, t.wide[i].till = l.work, l.till
		case l.till == 0 && len(t.wide) < maxLeases:
			t.wide = append(t.wide, wideLease{p, l})
		case l.till == 0:
			overflow++
		}
	}
	return overflow
}

// add begins a lease of k, which v is to visit if it is the first.
func add[K comparable](t *leaseTable, m map[K]leases, k K, l lease, v visit) (overflow int) {
	had := len(m[k])
	list, grown := m[k].begin(l, t.count < maxAllLeases)
	if len(list) == 0 {
		return 1 - min(int(l.till), 1) // what has ended is no loss
	}
	m[k], t.count = list, t.count+grown
	if had == 0 {
		t.queue = append(t.queue, v)
	}
	return 0
}

func (t *leaseTable) endPorts(p PublishedPorts, holder string, at int64) {
	if int(p.To)-int(p.From) < narrow {
		for n := int(p.From); n <= int(p.To); n++ {
			t.byPort[port{p.Proto, uint16(n)}].end(holder, at)
		}
		return
	}
	for i := range t.wide {
		if w := &t.wide[i]; w.ports == p && w.holder == holder && w.till == 0 {
			w.till = at
		}
	}
}

// end ends what a holder has at a time, or had for longer as far as was known.
func (l leases) end(holder string, at int64) {
	for i := range l {
		if o := &l[i]; (o.till == 0 || o.since <= at && at < o.till) && o.holder == holder {
			o.till = max(at, o.since)
		}
	}
}

// begin adds a lease, unless its holder has it already: then what it stands for is renewed. Two containers of one runtime cannot have an address at
// one time: who gets it ends the time of who had it. It returns the list and by how much it grew.
func (l leases) begin(n lease, room bool) (leases, int) {
	for i := range l {
		if l[i].till == 0 && l[i].holder == n.holder {
			if l[i].work = n.work; n.till != 0 {
				l[i].till = max(n.till, l[i].since)
			}
			return l, 0
		}
	}
	if n.till != 0 && slices.ContainsFunc(l, func(o lease) bool { return o.holder == n.holder && o.since <= n.till }) {
		return l, 0 // its end was known
	}
	for i := range l {
		switch o := &l[i]; {
		case o.till != 0 && o.till <= n.since: // most of them, and nothing else of these is looked at
		case o.runtime != n.runtime || o.holder == n.holder && o.since == n.since:
		case o.since <= n.since && (o.till == 0 || o.till > n.since):
			o.till = n.since
		case o.since > n.since && (n.till == 0 || n.till > o.since): // old news
			n.till = o.since
		}
	}
	if len(l) >= maxLeases || !room && len(l) > 0 {
		l = slices.Delete(l, 0, 1)
		return append(l, n), 0
	}
	if !room {
		return l, 0
	}
	return append(l, n), 1
}

// at returns the lease that was valid at a time: nil if there was none, or if several holders had one.
func (l leases) at(t int64) *lease {
	var found *lease
	for i := range l {
		if o := &l[i]; o.since <= t && (o.till == 0 || t < o.till) {
			if found != nil && found.holder != o.holder {
				return nil
			}
			found = o
		}
	}
	return found
}

// publisher returns whose port of the host it was at a time.
func (t *leaseTable) publisher(proto uint8, number uint16, at int64) *lease {
	found := t.byPort[port{proto, number}].at(at)
	for i := range t.wide {
		w := &t.wide[i]
		if w.ports.Proto != proto || number < w.ports.From || number > w.ports.To || at < w.since || w.till != 0 && at >= w.till {
			continue
		}
		if found != nil && found.holder != w.holder {
			return nil
		}
		found = &w.lease
	}
	return found
}

// sweep forgets what ended long ago.
func (t *leaseTable) sweep(now int64) {
	old := func(l lease) bool { return l.till != 0 && now-l.till > int64(leaseMemory) }
	t.wide = slices.DeleteFunc(t.wide, func(w wideLease) bool { return old(w.lease) })
	for range min(maxVisits, len(t.queue)) {
		v := t.queue[0]
		if now-v.at <= int64(leaseMemory) {
			return
		}
		t.queue = t.queue[1:]
		left := 0
		if v.port.proto != 0 {
			left = visitLeases(t, t.byPort, v.port, old)
		} else {
			left = visitLeases(t, t.byAddr, v.addr, old)
		}
		if left > 0 {
			v.at = now
			t.queue = append(t.queue, v)
		}
	}
}

func visitLeases[K comparable](t *leaseTable, m map[K]leases, k K, old func(lease) bool) (left int) {
	list := m[k]
	kept := slices.DeleteFunc(list, old)
	t.count -= len(list) - len(kept)
	if len(kept) == 0 {
		delete(m, k)
	} else {
		m[k] = kept
	}
	return len(kept)
}

// network returns the network that an address is taken to be in.
func network(a flowcache.Addr) flowcache.Addr {
	if a.Is4() {
		a[15] = 0
		return a
	}
	clear(a[8:])
	return a
}

// near reports whether an address is in a network of which containers have, or may have, addresses.
func (t *leaseTable) near(a flowcache.Addr) bool {
	if t.nets[network(a)] {
		return true
	}
	ip := netip.AddrFrom16(a).Unmap()
	for _, list := range t.subnets {
		for _, p := range list {
			if p.Contains(ip) {
				return true
			}
		}
	}
	return false
}
