package flowcache

import "hash/maphash"

// A datagram socket has a flow with each of its peers. They end by silence or, together, when it closes.

// linkSocket links entry i into the list of its socket's flows.
func (c *Cache) linkSocket(i uint32) {
	e := c.at(i)
	first := c.sockets[e.id.cookie]
	e.sibling = first
	if first != 0 {
		c.at(first).elder = i
	}
	c.sockets[e.id.cookie] = i
	e.linked = true
}

// unlinkSocket unlinks a flow from the list of its socket's flows.
func (c *Cache) unlinkSocket(e *entry) {
	if !e.linked {
		return
	}
	if e.elder != 0 {
		c.at(e.elder).sibling = e.sibling
	} else if e.sibling != 0 {
		c.sockets[e.id.cookie] = e.sibling
	} else {
		delete(c.sockets, e.id.cookie)
	}
	if e.sibling != 0 {
		c.at(e.sibling).elder = e.elder
	}
	e.linked = false
}

// closeSocket ends every flow of a datagram socket. Where the other end is here too its half ends with it: nothing more can
// come.
func (c *Cache) closeSocket(dst []Record, o *Observation) []Record {
	for i := c.sockets[o.Cookie]; i != 0; i = c.sockets[o.Cookie] {
		if o.Process.PID != 0 && c.at(i).owner.PID == 0 {
			c.merge(i, o)
		}
		dst = c.closeFlow(dst, i, o.Time)
	}
	return dst
}

// closeFlow ends flow i of a datagram socket at the time now, or parts it from a peer that is not its only one: then it is to be called again.
func (c *Cache) closeFlow(dst []Record, i uint32, now int64) []Record {
	e := c.at(i)
	if e.peer == 0 && e.conv != 0 && !e.listed {
		// Another socket with its port was in the way.
		c.meet(i, e.conv, false)
		if e.peer == 0 {
			if claimed, ok := c.claim(dst, i); ok {
				return claimed
			}
		}
	}
	switch p := e.peer; {
	case p == 0 && e.parted:
		c.leave(i, now)
		return dst
	case p == 0:
	case c.beyond(p, i):
		return c.part(dst, i, p)
	case c.beyond(i, p):
		return c.part(dst, p, i)
	}
	lead := i
	if e.follows {
		lead = e.peer
	}
	if c.changed(c.at(lead)) {
		dst = c.emitFlow(dst, lead, EndDetected, true)
	}
	c.removeFlow(lead)
	return dst
}

// wayOf is how the source says that the addresses of a datagram flow are translated, shortened; 0 if it does not.
func (c *Cache) wayOf(o *Observation) uint64 {
	if !o.Delta || o.Path == (Path{}) {
		return 0
	}
	return maphash.Comparable(c.seed, o.Path) | 1
}

// diverted reports whether what e's socket sends goes elsewhere by now, by another translation of the same addresses: another conversation.
func (c *Cache) diverted(e *entry, o *Observation) bool {
	if e.way == 0 {
		e.way = c.wayOf(o)
		return false
	}
	way := c.wayOf(o)
	return way != 0 && way != e.way
}

// A short conversation's port is soon another's, perhaps before its server's counters are read: then the server's one flow with that port is of
// several sockets. It has received more than the one that it met has sent.

// beyond reports whether datagram flow i was spoken to by more sockets than its peer p since the last record.
func (c *Cache) beyond(i, p uint32) bool {
	e := c.at(i)
	out, in := c.rest(e, c.at(p))
	return in.Packets > 0 || e.kernel && out.Packets > 0 // the kernel answers echoes without a socket that receives them
}

// rest is what e counted since the last record and p did not.
func (c *Cache) rest(e, p *entry) (out, in Counters) {
	e.hear(p)
	heard, said := p.in.since(&p.inTold), p.out.since(&p.outTold)
	out, in = e.out.since(&e.outTold), e.in.since(&e.inTold)
	return out.since(&heard), in.since(&said)
}

// claim emits the ended flow i, paired with its share of the counters of a flow that is already paired with another
// peer. It reports whether there is such a flow.
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

// part emits the record of flow i and its peer p, and ends i. The excess that p counted stays with p, for its next
// peer.
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

// leave keeps the rest of flow i, whose socket was closed at the time now, for PeerWait: other peers may not have been
// reported yet.
func (c *Cache) leave(i uint32, now int64) {
	e := c.at(i)
	c.unlinkSocket(e)
	c.unlink(i)
	e.ended = true
	c.cancel(i)
	c.set(i, now+int64(c.cfg.PeerWait))
}
