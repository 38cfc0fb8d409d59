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

func shorten(conv uint64) uint32 {
	if conv == 0 {
		return 0
	}
	return uint32(conv^conv>>32) | 1
}

// put remembers a socket.
func (d *ended) put(cookie, conv uint64, pass uint32) {
	d.places[cookie%endedPlaces] = endedSocket{cookie, shorten(conv), pass}
}

// has reports whether the conversation of a socket has ended. A socket may connect again: then it is another conversation.
func (d *ended) has(cookie, conv uint64, pass uint32) bool {
	s := &d.places[cookie%endedPlaces]
	return s.cookie == cookie && pass-s.pass < endedPasses && (s.conv == shorten(conv) || s.conv == 0 || conv == 0)
}

// lookup finds the live flow of a socket, 0 if there is none. A connection's socket has one at a time.
func (c *Cache) lookup(id *identity) uint32 {
	if id.key.Proto != ProtoTCP || id.cookie == 0 {
		return c.index[*id]
	}
	i := c.connections[id.cookie]
	if i != 0 && c.at(i).id.key != id.key {
		return 0
	}
	return i
}

// link makes flow i the live one of its socket.
func (c *Cache) link(i uint32) {
	if id := &c.at(i).id; id.key.Proto != ProtoTCP || id.cookie == 0 {
		c.index[*id] = i
	} else {
		c.connections[id.cookie] = i
	}
}

// unlink makes it no longer that.
func (c *Cache) unlink(i uint32) {
	e := c.at(i)
	if c.lookup(&e.id) != i {
		return
	}
	if e.id.key.Proto != ProtoTCP || e.id.cookie == 0 {
		delete(c.index, e.id)
	} else {
		delete(c.connections, e.id.cookie)
	}
}
