package flowcache

import (
	"hash/maphash"
	"time"
)

// Two sockets of this host that talk to each other are two flows and one conversation. They are paired by a number that
// both have: for TCP its two initial sequence numbers, which no address translation on the way changes; where the
// source does not report these, the addresses and ports. A pair has one timer, that of the lead, and one record with
// both ends.
//
// A connection that ends before its peer was seen waits a moment for it, because the two ends are reported one after
// the other. If the other end was still open, its report may come after the record has left. The flow is then
// remembered, so that its counters are not exported again.

// conversation returns what o's flow and that of its peer have in common, 0 if it can have none; and if the translation of its addresses
// had to be asked for, whether there is one.
func (c *Cache) conversation(o *Observation) (conv uint64, path Path, asked bool) {
	if !c.cfg.Merge {
		return 0, path, false
	}
	if o.Conversation != 0 {
		return o.Conversation, path, false
	}
	k := o.Key
	if k.Proto == ProtoTCP && o.Origin == OriginEBPF {
		return 0, path, false // nobody ever answered
	}
	if oneToMany(k) {
		return 0, path, false
	}
	if o.Path != (Path{}) {
		path, asked = o.Path, true
		if c.cfg.Translate != nil && samePath(k, path.Near) {
			// Other namespaces may translate what this one has made of it.
			beyond := path.Far
			beyond.NetNS = o.Key.NetNS
			if p, ok := c.cfg.Translate(beyond, o.Time); ok {
				path.Far = p.Far
			}
		}
		k = path.Far
		k.NetNS = o.Key.NetNS
		return c.byAddress(k), path, asked
	}
	if c.cfg.Translate != nil {
		asked = true
		begin := o.First
		if begin == 0 {
			begin = o.Time
		}
		if p, ok := c.cfg.Translate(k, begin); ok {
			path = p
			k = p.Far
			k.NetNS = o.Key.NetNS
		}
	}
	return c.byAddress(k), path, asked
}

// byAddress is the same for both ends: the lesser first. Loopback addresses mean something in their namespace only.
func (c *Cache) byAddress(k Key) uint64 {
	if !k.Src.IsLoopback() && !k.Dst.IsLoopback() {
		k.NetNS = 0
	}
	if string(k.Src[:]) > string(k.Dst[:]) || k.Src == k.Dst && k.SrcPort > k.DstPort {
		k = k.Reverse()
	}
	return maphash.Comparable(c.seed, k)
}

// samePath reports whether k, in any namespace, is p.
func samePath(k, p Key) bool {
	k.NetNS = 0
	return k == p
}

func oneToMany(k Key) bool {
	return k.Src.IsMulticast() || k.Dst.IsMulticast() || k.Src.IsUnspecified() || k.Dst.IsUnspecified()
}

// meet looks for the peer of flow i. Without one the flow can be found itself. What is not sure is by addresses, which two conversations
// in separate networks may have in common: there the roles must fit.
func (c *Cache) meet(i uint32, conv uint64, sure bool) {
	e := c.at(i)
	if conv == 0 {
		return
	}
	c.unlist(e)
	e.conv = conv
	p := c.unpaired[conv]
	if p == 0 {
		c.unpaired[conv] = i
		e.listed = true
		return
	}
	if lead := c.at(p); lead.id.cookie == e.id.cookie || lead.id.key.Proto != e.id.key.Proto || !sure && lead.role == e.role && e.role != RoleUnknown {
		return // not its peer: a raw socket that hears itself, say
	}
	lead := c.at(p)
	if lead.peer != 0 {
		return // taken: see claim()
	}
	if !lead.datagram {
		c.unlist(lead)
	}
	c.stats.Paired++
	lead.peer, e.peer, e.follows = i, p, true
	if sure {
		lead.bornWith(e)
		e.bornWith(lead)
	}
	// What one end's records carried of the direction in which the other sends is in them; the baseline of a connection that is older than
	// the metering is in none.
	if lead.exported {
		e.outTold.reach(&lead.inTold, &e.out)
	}
	if e.exported {
		lead.outTold.reach(&e.inTold, &lead.out)
	}
	if !lead.exported {
		lead.begin, lead.first = min(lead.begin, e.begin), min(lead.first, e.first)
	}
	for d := range lead.ctlTold {
		lead.ctlTold[d] |= e.ctlTold[1-d]
		e.ctlTold[1-d] = lead.ctlTold[d]
	}
	lead.told = false
	if lead.activeAt == 0 {
		lead.activeAt = e.activeAt // it had ended
	}
	c.cancel(i)
	c.cancel(p)
	if !lead.ended || !e.ended {
		c.set(p, c.next(lead))
	}
}

// unlist takes a flow out of those that wait for their peer.
func (c *Cache) unlist(e *entry) {
	if e.listed {
		delete(c.unpaired, e.conv)
		e.listed = false
	}
}

// finish ends the socket of flow i, and the flow if there is no more to wait for.
func (c *Cache) finish(dst []Record, i uint32) []Record {
	e := c.at(i)
	e.ended, e.changed = true, true
	c.unlink(i)
	switch {
	case e.peer != 0:
		if !c.at(e.peer).ended {
			return dst
		}
		if e.follows {
			i = e.peer
		}
	case e.conv != 0:
		c.cancel(i)
		wait := c.cfg.PeerWait
		if dst := e.id.key.Dst; c.here[0].has(dst) || c.here[1].has(dst) {
			wait *= 10
		}
		c.set(i, max(e.last, e.seen)+int64(wait))
		return dst
	}
	dst = c.emitFlow(dst, i, EndDetected, true)
	c.removeFlow(i)
	return dst
}

// openPeerMemory is how long a connection is remembered whose other end is a socket of this host and has not closed: it may wait to be accepted.
const openPeerMemory = 10 * time.Minute

// expireUnpaired expires flow i, which has ended and is unpaired at its deadline. It reports whether there is a record.
func (c *Cache) expireUnpaired(dst []Record, i uint32, now int64) ([]Record, bool) {
	e := c.at(i)
	if e.told {
		c.remove(i)
		return dst, false
	}
	dst = c.emit(dst, e, nil, EndDetected, true)
	e.told = true
	memory := c.cfg.PeerMemory
	dstHere := c.here[0].has(e.id.key.Dst) || c.here[1].has(e.id.key.Dst)
	switch {
	case dstHere && e.other == PeerOpen:
		memory = max(memory, openPeerMemory)
	case dstHere && e.origin == OriginEBPF: // a processor that is taken away for seconds holds up what others report
	case e.other == PeerUnknown:
		memory /= 2
	case e.other == PeerGone: // only whoever reads may be late
		memory /= 8
	}
	c.set(i, now+int64(memory))
	return dst, true
}
