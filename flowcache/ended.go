package flowcache

// ended remembers the sockets that ended lately: a pass over all sockets that began before may still bring them, and an audit too. A
// socket has one place, by its cookie. The kernel counts cookies up, so that those that end together are neighbours in memory; one that
// comes 2^18 sockets later takes the place of one that nobody asks for any more.
type ended struct {
	places []endedSocket
}

type endedSocket struct {
	cookie uint64
	conv   uint32 // its conversation, shortened; 0 unknown
	pass   uint32 // in which it ended
	at     uint32 // when, in microseconds; wraps, and is compared only within endedPasses
}

const (
	endedPlaces = 1 << 18
	endedPasses = 3 // how many passes, and audits between them, may still bring it
)

func newEnded() ended { return ended{make([]endedSocket, endedPlaces)} }

// put remembers a socket that ended at the time at.
func (d *ended) put(cookie, conv uint64, pass uint32, at int64) {
	d.places[cookie%endedPlaces] = endedSocket{cookie, shorten(conv), pass, uint32(at / 1000)}
}

// has reports whether the connection of a socket that began at the time begin (0 if that is not known) has ended. A socket may connect again,
// also one whose first attempt had no conversation: what began after the end is another connection.
func (d *ended) has(cookie, conv uint64, pass uint32, begin int64) bool {
	s := &d.places[cookie%endedPlaces]
	if s.cookie != cookie || pass-s.pass >= endedPasses {
		return false
	}
	if begin != 0 {
		return int32(uint32(begin/1000)-s.at) <= 0
	}
	return s.conv == shorten(conv) || s.conv == 0 || conv == 0
}

func shorten(conv uint64) uint32 {
	if conv == 0 {
		return 0
	}
	return uint32(conv^conv>>32) | 1
}

// end remembers that a socket is gone.
func (c *Cache) end(o *Observation) {
	if o.Cookie == 0 || o.Delta {
		return
	}
	c.ended.put(o.Cookie, o.Conversation, c.pass, o.Time)
	delete(c.residue, o.Cookie)
}

// isStale reports whether o is an observation of a connection that has ended.
func (c *Cache) isStale(o *Observation) bool {
	if o.Delta || o.Cookie == 0 || !o.Snapshot && o.Event != EventEnd {
		return false
	}
	return c.ended.has(o.Cookie, o.Conversation, c.pass, o.First)
}
