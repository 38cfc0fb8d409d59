package flowcache

import (
	"encoding/binary"
	"hash/maphash"
)

// Two sockets of this host that talk to each other are two flows and one conversation. They find each other by a number that
// both have: for TCP its two initial sequence numbers, which no address translation on the way changes; where the
// source does not tell these, the addresses and ports. From then on they are one: the lead has the timer, and there is one
// record with both ends.
//
// A connection that ends before its peer was seen waits a moment for it, because the two ends come one after the other.
// If the other end was still open it may be told later, and by then the record has left: the
// flow is remembered, so that what it told is not told again.

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

// lonely lists the connections that have not met their peer, by addresses.
func (c *Cache) lonely() map[uint64]uint64 {
	convs := map[uint64]uint64{}
	for i := uint32(1); i < uint32(len(c.chunks))*chunkLen; i++ {
		if e := c.at(i); e.used && !e.datagram && e.conv != 0 && e.peer == 0 {
			convs[c.byAddress(e.id.key)] = e.conv
		}
	}
	return convs
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
	// What one end told of the direction in which the other sends is told.
	e.outTold.raise(&lead.inTold)
	lead.outTold.raise(&e.inTold)
	if !lead.exported {
		lead.begin = min(lead.begin, e.begin)
	}
	lead.synTold = lead.synTold || e.synTold
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

// addrSet remembers addresses, and one in some hundreds that it was not told of for a thousand that it was: a bit for each.
type addrSet [1 << 13]uint64

// passesHere is after how many passes addresses are learned anew.
const passesHere = 64

func (s *addrSet) bit(a Addr) (word *uint64, mask uint64) {
	h := (binary.LittleEndian.Uint64(a[:8])*0x9E3779B97F4A7C15 ^ binary.LittleEndian.Uint64(a[8:])) * 0xD6E8FEB86659FD93 >> 45
	return &s[h>>6], 1 << (h & 63)
}

func (s *addrSet) add(a Addr) {
	word, mask := s.bit(a)
	*word |= mask
}

func (s *addrSet) has(a Addr) bool {
	word, mask := s.bit(a)
	return *word&mask != 0
}

// lone is the turn of flow i, which has ended and met no peer in time. It reports whether there is a record.
func (c *Cache) lone(dst []Record, i uint32, now int64) ([]Record, bool) {
	e := c.at(i)
	if e.told {
		c.remove(i)
		return dst, false
	}
	dst = c.emit(dst, e, nil, EndDetected, true)
	e.told = true
	memory := c.cfg.PeerMemory
	switch e.other {
	case PeerUnknown:
		memory /= 2
	case PeerGone: // only whoever reads may be late
		memory /= 8
	}
	c.set(i, now+int64(memory))
	return dst, true
}

// A short conversation's port is soon another's, perhaps before its server's counters are read: then the server's one flow with that port is of
// several sockets. It has received more than the one that it met has sent.

// beyond reports whether datagram flow i was spoken to by more sockets than its peer p since the last record.
func (c *Cache) beyond(i, p uint32) bool {
	_, in := c.rest(c.at(i), c.at(p))
	return in.Packets > 0
}

// rest is what e counted since the last record and p did not.
func (c *Cache) rest(e, p *entry) (out, in Counters) {
	heard, said := p.in.since(&p.inTold), p.out.since(&p.outTold)
	out, in = e.out.since(&e.outTold), e.in.since(&e.inTold)
	return out.since(&heard), in.since(&said)
}

// claim tells the conversation of flow i, which ends, with its part of what a flow that has another peer counted. It reports whether there is one.
func (c *Cache) claim(dst []Record, i uint32) ([]Record, bool) {
	e := c.at(i)
	p := c.unpaired[e.conv]
	if p == 0 {
		return dst, false
	}
	s := c.at(p)
	if s.role == e.role && s.peer != 0 {
		s = c.at(s.peer)
	}
	if s.peer == 0 || s.role == e.role || s.id.cookie == e.id.cookie {
		return dst, false
	}
	out, in := s.out, s.in
	moreOut, moreIn := c.rest(s, e)
	s.out, s.in = out.since(&moreOut), in.since(&moreIn)
	dst = c.emit(dst, e, s, EndDetected, true)
	s.out, s.in, s.changed = out, in, true
	c.remove(i)
	return dst, true
}

// part tells the conversation of flow i and its peer p, and ends i. What p counted beyond it is left to p, for the next that comes by.
func (c *Cache) part(dst []Record, i, p uint32) []Record {
	e, peer := c.at(i), c.at(p)
	out, in := c.rest(peer, e)
	peer.out, peer.in = peer.out.since(&out), peer.in.since(&in)
	lead := i
	if e.follows {
		lead = p
	}
	dst = c.emitFlow(dst, lead, EndDetected, true)
	e.peer, peer.peer, peer.follows = 0, 0, false
	c.remove(i)
	peer.out, peer.in, peer.outTold, peer.inTold = out, in, Counters{}, Counters{}
	peer.changed, peer.exported, peer.parted = true, false, true
	c.meet(p, peer.conv, false)
	if peer.peer == 0 {
		c.cancel(p)
		c.set(p, c.next(peer))
	}
	return dst
}

// leave lets what is left of flow i, whose socket was closed at the time now, wait for others whose end is not told yet.
func (c *Cache) leave(i uint32, now int64) {
	e := c.at(i)
	c.disown(e)
	c.unlink(i)
	e.ended = true
	c.cancel(i)
	c.set(i, now+int64(c.cfg.PeerWait))
}
