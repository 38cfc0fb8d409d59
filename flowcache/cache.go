package flowcache

import (
	"errors"
	"time"
)

// Config configures a Cache. Its zero value is the documented default.
type Config struct {
	ActiveTimeout time.Duration // a live flow is reported at least this often; default 60 s
	IdleTimeout   time.Duration // a flow that is not TCP ends after this silence; default 15 s
	MaxFlows      int           // default 1 000 000

	// Hold and Release, if set, are told which processes live flows belong to, so that their names are kept.
	Hold, Release func(ProcessID)
}

// Stats counts what the cache did. Every observation is in exactly one of Created, Merged, Direct, Stale, Listening and Closed.
type Stats struct {
	Observations uint64
	Created      uint64 // made a flow
	Merged       uint64 // found theirs
	Direct       uint64 // began and ended a flow in one: a short connection
	Stale        uint64 // a snapshot's view of a socket that has ended since
	Listening    uint64
	Closed       uint64 // datagram sockets that closed
	Forgotten    uint64 // evicted flows whose totals could not be kept: they may be counted again
	Records      [6]uint64
	Live         int
}

// Cache merges Observations into flows and flows into Records. It belongs to one goroutine. Nothing but the caller's clock
// moves its time.
type Cache struct {
	cfg   Config
	stats Stats
	index map[identity]uint32
	// Datagram sockets: the first of the flows of each, by cookie.
	sockets map[uint64]uint32
	chunks  [][]entry
	unused  uint32 // list of free entries, linked by next
	wheel   wheel

	// Local ends that listen, by the pass that saw them last: who accepts is the responder.
	listening map[listener]uint32
	pass      uint32
	// Sockets that ended in this and in the previous pass: a pass that began before may still bring them.
	ended [2]map[uint64]struct{}
	// What evicted sockets have already told.
	residue map[uint64]residue
}

type listener struct {
	netns uint32
	port  uint16
	proto uint8
}

type residue struct{ out, in Counters }

const chunkLen = 4096

// New returns an empty cache.
func New(cfg Config) (*Cache, error) {
	if cfg.ActiveTimeout == 0 {
		cfg.ActiveTimeout = time.Minute
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = 15 * time.Second
	}
	if cfg.MaxFlows == 0 {
		cfg.MaxFlows = 1_000_000
	}
	if cfg.ActiveTimeout < 0 || cfg.IdleTimeout < 0 || cfg.MaxFlows < 0 {
		return nil, errors.New("timeouts and the number of flows must be positive")
	}
	if cfg.Hold == nil {
		cfg.Hold = func(ProcessID) {}
	}
	if cfg.Release == nil {
		cfg.Release = func(ProcessID) {}
	}
	return &Cache{
		cfg:       cfg,
		index:     make(map[identity]uint32),
		sockets:   make(map[uint64]uint32),
		wheel:     newWheel(),
		listening: make(map[listener]uint32),
		ended:     [2]map[uint64]struct{}{{}, {}},
		residue:   make(map[uint64]residue),
	}, nil
}

// Stats returns a copy of the counts.
func (c *Cache) Stats() Stats {
	s := c.stats
	s.Live = len(c.index)
	return s
}

// Live is the number of flows in the cache.
func (c *Cache) Live() int { return len(c.index) }

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
	}

	i, ok := c.index[identity{o.Key, o.Cookie}]
	if ok {
		c.stats.Merged++
		e := c.at(i)
		was := e.owner
		e.merge(o)
		if e.owner != was {
			c.cfg.Hold(e.owner)
			if was.PID != 0 {
				c.cfg.Release(was)
			}
		}
		if o.Event == EventEnd {
			c.cancel(i)
			e.last = max(e.last, o.Time)
			dst = c.emit(dst, e, EndDetected, true)
			c.remove(i)
			c.end(o)
		}
		return dst
	}

	if !o.Delta && o.Cookie != 0 && o.Snapshot {
		_, now := c.ended[0][o.Cookie]
		_, before := c.ended[1][o.Cookie]
		if now || before {
			c.stats.Stale++
			return dst
		}
	}
	if o.Event == EventEnd {
		c.stats.Direct++
		var e entry
		c.begin(&e, o)
		dst = c.emit(dst, &e, EndDetected, true)
		c.end(o)
		return dst
	}
	c.stats.Created++
	if len(c.index) >= c.cfg.MaxFlows {
		dst = c.evict(dst)
	}
	i = c.take()
	e := c.at(i)
	c.begin(e, o)
	c.index[e.id] = i
	if e.id.key.Proto != ProtoTCP && o.Cookie != 0 {
		c.adopt(i)
	}
	if e.owner.PID != 0 {
		c.cfg.Hold(e.owner)
	}
	e.activeAt = max(e.begin, o.Time-int64(c.cfg.ActiveTimeout)) + int64(c.cfg.ActiveTimeout)
	if o.Preexisting {
		// Sockets of the first pass all begin now: spread their records over the timeout.
		e.activeAt = o.Time + int64(o.Cookie*0x9E3779B97F4A7C15>>1)%int64(c.cfg.ActiveTimeout)
	}
	if c.wheel.cursor < 0 {
		c.wheel.cursor = o.Time / tick
	}
	c.set(i, c.next(e))
	return dst
}

// begin makes e the flow of o.
func (c *Cache) begin(e *entry, o *Observation) {
	e.reset(o)
	if r, ok := c.residue[o.Cookie]; ok && !o.Delta && o.Cookie != 0 {
		e.out, e.in, e.outTold, e.inTold = r.out, r.in, r.out, r.in
		e.exported, e.synTold = true, true
		delete(c.residue, o.Cookie)
	}
	e.merge(o)
	e.changed = true
	if e.role == RoleUnknown {
		if _, ok := c.listening[listener{o.Key.NetNS, o.Key.SrcPort, o.Key.Proto}]; ok {
			e.role = RoleResponder
		}
	}
}

// next is when e must be looked at again.
func (c *Cache) next(e *entry) int64 {
	if e.id.key.Proto == ProtoTCP {
		return e.activeAt
	}
	return min(e.activeAt, e.last+int64(c.cfg.IdleTimeout))
}

// SnapshotDone tells that a pass over all sockets is over.
func (c *Cache) SnapshotDone() {
	c.ended[1], c.ended[0] = c.ended[0], c.ended[1]
	clear(c.ended[0])
	for l, pass := range c.listening {
		if pass != c.pass {
			delete(c.listening, l)
		}
	}
	c.pass++
}

// Expire appends to dst the records that are due at now, at most limit of them, and reports whether there are more.
func (c *Cache) Expire(dst []Record, now int64, limit int) ([]Record, bool) {
	if c.wheel.cursor < 0 {
		c.wheel.cursor = now / tick
	}
	for n := 0; n < limit; {
		i := c.due(now)
		if i == 0 {
			return dst, false
		}
		e := c.at(i)
		if e.id.key.Proto != ProtoTCP && now >= e.last+int64(c.cfg.IdleTimeout) {
			if e.changed {
				dst = c.emit(dst, e, EndIdle, true)
				n++
			}
			c.remove(i)
			continue
		}
		if now >= e.activeAt {
			if e.changed {
				dst = c.emit(dst, e, EndActive, false)
				n++
			}
			for e.activeAt <= now {
				e.activeAt += int64(c.cfg.ActiveTimeout)
			}
		}
		c.set(i, c.next(e))
	}
	return dst, true
}

// Flush ends flows by force, at most limit of them, and reports whether there are more.
func (c *Cache) Flush(dst []Record, limit int) ([]Record, bool) {
	for _, i := range c.index {
		if limit == 0 {
			return dst, true
		}
		limit--
		c.cancel(i)
		dst = c.emit(dst, c.at(i), EndForced, true)
		c.remove(i)
	}
	return dst, false
}

func (c *Cache) emit(dst []Record, e *entry, reason EndReason, final bool) []Record {
	c.stats.Records[reason]++
	if len(dst) == cap(dst) {
		dst = append(dst, Record{})
	} else {
		dst = dst[:len(dst)+1]
	}
	e.record(&dst[len(dst)-1], reason, final)
	return dst
}

// evict makes room: the flow whose timer comes next leaves early.
func (c *Cache) evict(dst []Record) []Record {
	i := c.soonest()
	if i == 0 {
		return dst
	}
	e := c.at(i)
	c.cancel(i)
	dst = c.emit(dst, e, EndLack, true)
	if e.id.key.Proto == ProtoTCP && e.id.cookie != 0 {
		// The socket lives on, and its next observation counts from its birth.
		if len(c.residue) >= c.memories() {
			c.stats.Forgotten++
		} else {
			c.residue[e.id.cookie] = residue{e.out, e.in}
		}
	}
	c.remove(i)
	return dst
}

// closeSocket ends every flow of a datagram socket.
func (c *Cache) closeSocket(dst []Record, o *Observation) []Record {
	for i := c.sockets[o.Cookie]; i != 0; {
		e := c.at(i)
		sibling := e.sibling
		c.cancel(i)
		if o.Process.PID != 0 && e.owner.PID == 0 {
			e.owner, e.uid, e.gid = o.Process, o.UID, o.GID
		}
		if e.changed {
			dst = c.emit(dst, e, EndDetected, true)
		}
		c.remove(i)
		i = sibling
	}
	return dst
}

// memories bounds what is remembered of sockets that have no flow: far less than a flow takes each.
func (c *Cache) memories() int { return max(c.cfg.MaxFlows, 1<<16) }

// end remembers that a socket is gone.
func (c *Cache) end(o *Observation) {
	if o.Cookie == 0 || o.Delta {
		return
	}
	if len(c.ended[0]) >= c.memories() {
		// No pass to forget them by, or more ends in one than flows allowed: the oldest go.
		c.ended[1], c.ended[0] = c.ended[0], c.ended[1]
		clear(c.ended[0])
	}
	c.ended[0][o.Cookie] = struct{}{}
	delete(c.residue, o.Cookie)
}

func (c *Cache) at(i uint32) *entry { return &c.chunks[i/chunkLen][i%chunkLen] }

// take returns an unused entry.
func (c *Cache) take() uint32 {
	if c.unused == 0 {
		n := uint32(len(c.chunks)) * chunkLen
		c.chunks = append(c.chunks, make([]entry, chunkLen))
		for i := n + chunkLen - 1; i >= n && i != 0; i-- { // entry 0 is "none"
			c.at(i).next = c.unused
			c.unused = i
		}
	}
	i := c.unused
	c.unused = c.at(i).next
	return i
}

// remove forgets an entry whose timer is not armed.
func (c *Cache) remove(i uint32) {
	e := c.at(i)
	delete(c.index, e.id)
	if e.owner.PID != 0 {
		c.cfg.Release(e.owner)
	}
	if e.id.key.Proto != ProtoTCP && e.id.cookie != 0 {
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
	}
	*e = entry{next: c.unused}
	c.unused = i
}

// adopt links entry i to the other flows of its socket.
func (c *Cache) adopt(i uint32) {
	e := c.at(i)
	first := c.sockets[e.id.cookie]
	e.sibling = first
	if first != 0 {
		c.at(first).elder = i
	}
	c.sockets[e.id.cookie] = i
}
