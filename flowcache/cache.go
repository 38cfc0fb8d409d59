package flowcache

import (
	"errors"
	"hash/maphash"
	"time"
)

// Config configures a Cache. Its zero value is the documented default.
type Config struct {
	ActiveTimeout time.Duration // a live flow is reported at least this often; default 60 s
	IdleTimeout   time.Duration // a flow that is not TCP ends after this silence; default 15 s
	MaxFlows      int           // default 1 000 000

	// Merge makes one record of the two sockets of a conversation that has both its ends on this host.
	Merge bool
	// PeerWait is how long a connection that has ended waits for the end of its other socket, where nothing is known of that yet, and ten
	// times that where its address is one that sockets of this host have: on a busy machine the last segment may be late;
	// default 50 ms. PeerMemory is how long it is remembered after that, for a peer that had not closed, half as long for one
	// that may not know yet that it is to end, an eighth for one that ends with it; default 15 s, and should be more than the time between two passes over all sockets.
	PeerWait, PeerMemory time.Duration
	// Translate, if set, tells how the addresses of a flow are translated (NAT) between its ends: Key is what the end here sees, and begin
	// when it began. It is asked once for a flow, and must be quick: at its begin where the source knows no Conversation, and else at its
	// first record, if the other end is not here. Where both are here, they tell themselves.
	Translate func(k Key, begin int64) (Path, bool)

	// Known, if set, completes what an audit saw of a connection that its source has not told, by what that knows of the socket all the same:
	// its owner and role.
	Known func(o *Observation)

	// Hold and Release, if set, are told which processes live flows belong to, so that their names are kept.
	Hold, Release func(ProcessID)
}

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
	Vanished     uint64 // connections whose end nobody told
	Suspects     uint64 // of an audit under way: not yet known to be missed
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
	suspected   bool // it is being judged
	// What evicted sockets have already told.
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

type residue struct{ out, in Counters }

const (
	chunkLen    = 4096
	maxSuspects = 1 << 16
)

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
	if cfg.PeerWait == 0 {
		cfg.PeerWait = 50 * time.Millisecond
	}
	if cfg.PeerMemory == 0 {
		cfg.PeerMemory = 15 * time.Second
	}
	if cfg.ActiveTimeout < 0 || cfg.IdleTimeout < 0 || cfg.MaxFlows < 0 {
		return nil, errors.New("timeouts and the number of flows must be positive")
	}
	if cfg.Known == nil {
		cfg.Known = func(*Observation) {}
	}
	if cfg.Hold == nil {
		cfg.Hold = func(ProcessID) {}
	}
	if cfg.Release == nil {
		cfg.Release = func(ProcessID) {}
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

// Live is the number of sockets' flows in the cache, those included that have ended and wait for their peer.
func (c *Cache) Live() int { return c.used }

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

	if i := c.lookup(&identity{o.Key, o.Cookie}); i != 0 {
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
	i := c.take()
	e := c.at(i)
	c.begin(e, o)
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
		c.adopt(i)
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

// isStale reports whether o tells of a connection that has ended since, or ended before.
func (c *Cache) isStale(o *Observation) bool {
	if o.Delta || o.Cookie == 0 || !o.Snapshot && o.Event != EventEnd {
		return false
	}
	return c.ended.has(o.Cookie, o.Conversation, c.pass)
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
	if c.cfg.Merge {
		c.here[0].add(o.Key.Src)
	}
	if e.role == RoleUnknown {
		if _, ok := c.listening[listener{o.Key.NetNS, o.Key.SrcPort, o.Key.Proto}]; ok {
			e.role = RoleResponder
		}
	}
}

// next is when e must be looked at again.
func (c *Cache) next(e *entry) int64 {
	if !e.datagram {
		return e.activeAt
	}
	return min(e.activeAt, c.last(e)+int64(c.cfg.IdleTimeout))
}

// last is when a flow last moved, at either end.
func (c *Cache) last(e *entry) int64 {
	if e.peer != 0 {
		return max(e.last, c.at(e.peer).last)
	}
	return e.last
}

// changed reports whether a flow has something to tell, of either end.
func (c *Cache) changed(e *entry) bool {
	return e.changed || e.peer != 0 && c.at(e.peer).changed
}

// SnapshotDone tells that a pass over all sockets is over. It appends to dst the records of what an audit found.
func (c *Cache) SnapshotDone(dst []Record) []Record {
	if c.auditPasses > 0 {
		if c.auditPasses--; c.auditPasses == 0 {
			dst = c.judge(dst)
		}
	}
	for l, pass := range c.listening {
		if pass != c.pass {
			delete(c.listening, l)
		}
	}
	c.pass++
	if c.pass%passesHere == 0 {
		c.here[1] = c.here[0]
		clear(c.here[0][:])
	}
	return dst
}

// AuditDone tells that an audit, begun at the time began, has shown every TCP socket there is. What it showed and the cache does not
// have, and what the cache has and it did not show, is judged after the next passes of the source itself: by then
// what was under way has arrived.
func (c *Cache) AuditDone(began int64) {
	c.auditBegan, c.auditPasses = began, 2
}

// judge adds what the source did not see, and ends what it did not end.
func (c *Cache) judge(dst []Record) []Record {
	dst = c.Sweep(dst, c.auditBegan)
	c.suspected = true
	var lonely map[uint64]uint64
	for i := range c.suspects {
		o := &c.suspects[i]
		c.stats.Suspects--
		c.stats.Observations--
		if c.lookup(&identity{o.Key, o.Cookie}) == 0 && !c.isStale(o) {
			c.cfg.Known(o)
			if lonely == nil {
				lonely = c.lonely()
			}
			if conv, _, _ := c.conversation(o); o.Conversation == 0 {
				o.Conversation = lonely[conv] // by addresses; its source knows more
			}
		}
		dst = c.Observe(dst, o)
	}
	c.suspected = false
	c.suspects = c.suspects[:0]
	return dst
}

// Sweep ends the connections whose sockets a pass over all of them, begun at the time began, did not show: their ends were
// not told, or were lost.
func (c *Cache) Sweep(dst []Record, began int64) []Record {
	for i := uint32(1); i < uint32(len(c.chunks))*chunkLen; i++ {
		e := c.at(i)
		if !e.used || e.ended || e.datagram || e.seen >= began || c.lookup(&e.id) != i {
			continue
		}
		c.stats.Vanished++
		conv := e.conv
		if e.origin == OriginNetlink {
			conv = 0
		}
		e.other = PeerUnknown
		c.end(&Observation{Cookie: e.id.cookie, Conversation: conv})
		dst = c.finish(dst, i)
	}
	return dst
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
		if e.ended && e.peer == 0 {
			var told bool
			dst, told = c.lone(dst, i, now)
			if told {
				n++
			}
			continue
		}
		if e.datagram && now >= c.last(e)+int64(c.cfg.IdleTimeout) {
			if c.changed(e) {
				dst = c.emitFlow(dst, i, EndIdle, true)
				n++
			}
			c.removeFlow(i)
			continue
		}
		if now >= e.activeAt {
			if c.changed(e) {
				dst = c.emitFlow(dst, i, EndActive, false)
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
	for ; c.flushed < uint32(len(c.chunks))*chunkLen; c.flushed++ {
		e := c.at(c.flushed)
		if !e.used || e.follows {
			continue
		}
		if limit == 0 {
			return dst, true
		}
		limit--
		switch {
		case e.told: // nothing is left to tell
		case e.ended:
			dst = c.emitFlow(dst, c.flushed, EndDetected, true)
		default:
			dst = c.emitFlow(dst, c.flushed, EndForced, true)
		}
		c.removeFlow(c.flushed)
	}
	c.flushed = 0
	return dst, false
}

// emitFlow tells of flow i, and of its peer with it.
func (c *Cache) emitFlow(dst []Record, i uint32, reason EndReason, final bool) []Record {
	e := c.at(i)
	if e.peer == 0 {
		return c.emit(dst, e, nil, reason, final)
	}
	return c.emit(dst, e, c.at(e.peer), reason, final)
}

func (c *Cache) emit(dst []Record, e, peer *entry, reason EndReason, final bool) []Record {
	c.stats.Records[reason]++
	if len(dst) == cap(dst) {
		dst = append(dst, Record{})
	} else {
		dst = dst[:len(dst)+1]
	}
	r := &dst[len(dst)-1]
	e.record(r, peer, reason, final)
	if peer == nil {
		c.translate(r, e, final)
	}
	return dst
}

// evict makes room: the flow whose timer comes next leaves early.
func (c *Cache) evict(dst []Record) []Record {
	i := c.soonest()
	if i == 0 {
		return dst
	}
	e := c.at(i)
	switch {
	case e.told:
	case e.ended && e.peer == 0:
		dst = c.emitFlow(dst, i, EndDetected, true)
	default:
		dst = c.emitFlow(dst, i, EndLack, true)
		c.outlive(e)
		if e.peer != 0 {
			c.outlive(c.at(e.peer))
		}
	}
	c.removeFlow(i)
	return dst
}

// outlive remembers what a connection that is still open has told: its next observation counts from its birth.
func (c *Cache) outlive(e *entry) {
	if e.datagram || e.id.cookie == 0 || e.ended {
		return
	}
	if len(c.residue) >= c.memories() {
		c.stats.Forgotten++
		return
	}
	c.residue[e.id.cookie] = residue{e.out, e.in}
}

// closeSocket ends every flow of a datagram socket. Where the other end is here too its half ends with it: nothing more can
// come.
func (c *Cache) closeSocket(dst []Record, o *Observation) []Record {
	for i := c.sockets[o.Cookie]; i != 0; i = c.sockets[o.Cookie] {
		e := c.at(i)
		if o.Process.PID != 0 && e.owner.PID == 0 {
			c.merge(i, o)
		}
		if e.peer == 0 && e.conv != 0 && !e.listed {
			// Another socket with its port was in the way.
			c.meet(i, e.conv, false)
			var claimed bool
			if e.peer == 0 {
				dst, claimed = c.claim(dst, i)
			}
			if claimed {
				continue
			}
		}
		switch p := e.peer; {
		case p == 0 && e.parted:
			c.leave(i, o.Time)
			continue
		case p == 0:
		case c.beyond(p, i):
			dst = c.part(dst, i, p)
			continue
		case c.beyond(i, p):
			dst = c.part(dst, p, i)
			continue
		}
		lead := i
		if e.follows {
			lead = e.peer
		}
		if c.changed(c.at(lead)) {
			dst = c.emitFlow(dst, lead, EndDetected, true)
		}
		c.removeFlow(lead)
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
	c.ended.put(o.Cookie, o.Conversation, c.pass)
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
	c.used++
	return i
}

// removeFlow forgets flow i and its peer.
func (c *Cache) removeFlow(i uint32) {
	peer := c.at(i).peer
	c.remove(i)
	if peer != 0 {
		c.remove(peer)
	}
}

// remove forgets an entry.
func (c *Cache) remove(i uint32) {
	e := c.at(i)
	c.cancel(i)
	c.unlink(i)
	c.unlist(e)
	if e.holds {
		c.cfg.Release(e.owner)
	}
	if e.translated != 0 {
		c.untranslated = append(c.untranslated, e.translated)
	}
	c.disown(e)
	*e = entry{next: c.unused}
	c.unused = i
	c.used--
}

// disown takes a flow from its datagram socket.
func (c *Cache) disown(e *entry) {
	if !e.adopted {
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
	e.adopted = false
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
	e.adopted = true
}
