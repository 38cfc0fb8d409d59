package flowcache

// Entries live in chunks that never move, and are named by number: 0 is none. A socket's live flow is found by cookie where the
// socket is a connection's, and by tuple and cookie otherwise.

const chunkLen = 4096 // entries allocated at once

func (c *Cache) at(i uint32) *entry { return &c.chunks[i/chunkLen][i%chunkLen] }

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

// complete gives the key of a connection that ended without its local address the one that its live flow has, if there is one.
func (c *Cache) complete(k *Key, cookie uint64) {
	i := c.connections[cookie]
	if i == 0 {
		return
	}
	live := c.at(i).id.key
	if k.Src = live.Src; *k != live {
		k.Src = Addr{}
	}
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
	c.unlinkSocket(e)
	*e = entry{next: c.unused}
	c.unused = i
	c.used--
}
