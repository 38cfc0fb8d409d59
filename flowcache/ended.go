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
}

const (
	endedPlaces = 1 << 18
	endedPasses = 3 // how many passes, and audits between them, may still bring it
)

func newEnded() ended { return ended{make([]endedSocket, endedPlaces)} }

// put remembers a socket.
func (d *ended) put(cookie, conv uint64, pass uint32) {
	d.places[cookie%endedPlaces] = endedSocket{cookie, shorten(conv), pass}
}

// has reports whether the conversation of a socket has ended. A socket may connect again: then it is another conversation.
func (d *ended) has(cookie, conv uint64, pass uint32) bool {
	s := &d.places[cookie%endedPlaces]
	return s.cookie == cookie && pass-s.pass < endedPasses && (s.conv == shorten(conv) || s.conv == 0 || conv == 0)
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
	c.ended.put(o.Cookie, o.Conversation, c.pass)
	delete(c.residue, o.Cookie)
}

// isStale reports whether o tells of a connection that has ended since, or ended before.
func (c *Cache) isStale(o *Observation) bool {
	if o.Delta || o.Cookie == 0 || !o.Snapshot && o.Event != EventEnd {
		return false
	}
	return c.ended.has(o.Cookie, o.Conversation, c.pass)
}
