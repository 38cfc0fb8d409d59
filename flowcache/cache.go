package flowcache

import "hash/maphash"

// Stats counts what the cache did. Every observation is in exactly one of Created, Merged, Direct, Stale, Listening, Closed,
// Owners and Suspects.
type Stats struct {
	Observations uint64
	Created      uint64 // made a flow
	Merged       uint64 // found theirs
	Direct       uint64 // began and ended a flow in one: a short connection
	Stale        uint64 // a snapshot's view of a socket that has ended since
	Listening    uint64
	Closed       uint64 // datagram sockets that closed
	Owners       uint64 // datagram sockets whose owner became known after their first flow
	Paired       uint64 // conversations with both ends here
	Audited      uint64 // flows that only an audit saw
	Vanished     uint64 // connections whose end no source reported
	Suspects     uint64 // of an audit under way: not yet known to be missed
	Forgotten    uint64 // evicted flows whose totals could not be kept: they may be counted again
	Records      [6]uint64
	Live         int // sockets' flows in the cache, those included that have ended and wait for their peer
}

// Cache merges Observations into flows and flows into Records. It belongs to one goroutine. Nothing but the caller's clock
// moves its time.
type Cache struct {
	cfg   Config
	stats Stats
	index map[identity]uint32
	// The same for the connections of sockets, by cookie alone.
	connections map[uint64]uint32
	// Datagram sockets: the first of the flows of each, by cookie.
	sockets map[uint64]uint32
	chunks  [][]entry
	unused  uint32 // list of free entries, linked by next
	used    int
	flushed uint32 // entries before it are flushed
	wheel   wheel
	// Flows that could have a peer and have not met it, by conversation.
	unpaired map[uint64]uint32
	seed     maphash.Seed
	here     [2]addrSet // addresses of sockets: since some passes, and before

	// Local ends that listen, by the pass that saw them last: who accepts is the responder.
	listening map[listener]uint32
	pass      uint32
	ended     ended
	// Of an audit: when it began, how many passes to wait for before it is judged, and what it saw that the cache does not have.
	auditBegan  int64
	auditPasses int
	suspects    []Observation
	missed      map[uint64]struct{} // sockets, by cookie, that the audit before saw and the cache did not have
	suspected   bool                // it is being judged
	// The counters that records of evicted sockets have carried, by cookie.
	residue map[uint64]residue
	// Flows with addresses translated: what the other end sees, by entry.translated; and places that are free.
	translations []Translation
	untranslated []uint32
}

type listener struct {
	netns uint32
	port  uint16
	proto uint8
}

// New returns an empty cache.
func New(cfg Config) (*Cache, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	return &Cache{
		cfg:         cfg,
		index:       make(map[identity]uint32),
		connections: make(map[uint64]uint32),
		sockets:     make(map[uint64]uint32),
		wheel:       newWheel(),
		listening:   make(map[listener]uint32),
		ended:       newEnded(),
		unpaired:    make(map[uint64]uint32),
		seed:        maphash.MakeSeed(),
		residue:     make(map[uint64]residue),
	}, nil
}

// Stats returns a copy of the counts.
func (c *Cache) Stats() Stats {
	s := c.stats
	s.Live = c.used
	return s
}

// Observe merges o and appends to dst the records that it completes.
func (c *Cache) Observe(dst []Record, o *Observation) []Record {
	c.stats.Observations++
	switch o.Event {
	case EventListen:
		c.stats.Listening++
		c.listening[listener{o.Key.NetNS, o.Key.SrcPort, o.Key.Proto}] = c.pass
		return dst
	case EventClose:
		c.stats.Closed++
		return c.closeSocket(dst, o)
	case EventOwner:
		c.stats.Owners++
		for i := c.sockets[o.Cookie]; i != 0; i = c.at(i).sibling {
			c.merge(i, o)
		}
		return dst
	}

	if o.Event == EventEnd && o.Key.Src.IsUnspecified() {
		c.complete(&o.Key, o.Cookie)
	}
	i := c.lookup(&identity{o.Key, o.Cookie})
	for i != 0 && c.diverted(c.at(i), o) {
		dst = c.closeFlow(dst, i, o.Time)
		i = c.lookup(&identity{o.Key, o.Cookie})
	}
	if i != 0 {
		c.stats.Merged++
		if e := c.at(i); o.Audit && e.origin != o.Origin {
			e.seen = max(e.seen, o.Time) // it is there; its own source counts
			return dst
		}
		c.merge(i, o)
		if e := c.at(i); o.Conversation != 0 && e.conv != o.Conversation && e.peer == 0 && c.cfg.Merge {
			c.meet(i, o.Conversation, true) // another source made the flow, and did not know
		}
		if o.Event == EventEnd {
			e := c.at(i)
			e.last = max(e.last, o.Time)
			e.other = o.Peer
			c.end(o)
			return c.finish(dst, i)
		}
		return dst
	}
	if c.isStale(o) {
		c.stats.Stale++
		return dst
	}
	if o.Audit && !c.suspected {
		c.stats.Suspects++
		if len(c.suspects) < maxSuspects {
			c.suspects = append(c.suspects, *o)
		}
		return dst
	}
	conv, path, asked := c.conversation(o)
	if o.Event == EventEnd {
		c.stats.Direct++
		if conv == 0 {
			var e entry
			c.begin(&e, o)
			c.end(o)
			return c.emit(dst, &e, nil, EndDetected, true)
		}
	} else {
		c.stats.Created++
	}
	if o.Audit {
		c.stats.Audited++
	}
	if c.used >= c.cfg.MaxFlows {
		dst = c.evict(dst)
	}
	i = c.take()
	e := c.at(i)
	c.begin(e, o)
	e.way = c.wayOf(o)
	if e.asked = asked; path != (Path{}) {
		c.remember(e, path.beyond(o.Key).Translation())
		e.began(&path)
	}
	if c.wheel.cursor < 0 {
		c.wheel.cursor = o.Time / tick
	}
	if o.Event == EventEnd {
		e.other = o.Peer
		c.end(o)
		c.meet(i, conv, o.Conversation != 0)
		return c.finish(dst, i)
	}
	if e.owner.PID != 0 {
		c.cfg.Hold(e.owner)
		e.holds = true
	}
	c.link(i)
	if e.datagram && o.Cookie != 0 {
		c.linkSocket(i)
	}
	e.activeAt = max(e.begin, o.Time-int64(c.cfg.ActiveTimeout)) + int64(c.cfg.ActiveTimeout)
	if o.Preexisting {
		// Sockets of the first pass all begin now: spread their records over the timeout.
		e.activeAt = o.Time + int64(o.Cookie*0x9E3779B97F4A7C15>>1)%int64(c.cfg.ActiveTimeout)
	}
	c.meet(i, conv, o.Conversation != 0)
	if !e.follows {
		c.cancel(i)
		c.set(i, c.next(e))
	}
	return dst
}

// merge adds o to the flow i.
func (c *Cache) merge(i uint32, o *Observation) {
	e := c.at(i)
	was := e.owner
	e.merge(o)
	if e.owner != was {
		c.cfg.Hold(e.owner)
		if e.holds {
			c.cfg.Release(was)
		}
		e.holds = true
	}
}

// begin makes e the flow of o.
func (c *Cache) begin(e *entry, o *Observation) {
	e.reset(o)
	if r, ok := c.residue[o.Cookie]; ok && !o.Delta && o.Cookie != 0 {
		e.out, e.in, e.outTold, e.inTold = r.out, r.in, r.out, r.in
		e.exported, e.ctlTold = true, [2]uint16{FlagSYN, FlagSYN}
		delete(c.residue, o.Cookie)
	}
	e.merge(o)
	e.changed = true
	if c.cfg.Merge {
		c.here[0].add(o.Key.Src)
	}
	if e.role == RoleUnknown {
		if _, ok := c.listening[listener{o.Key.NetNS, o.Key.SrcPort, o.Key.Proto}]; ok {
			e.role = RoleResponder
		}
	}
}
