package flowcache

// residue is the counters that records of an evicted connection have carried.
type residue struct{ out, in Counters }

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
		c.keepCounters(e)
		if e.peer != 0 {
			c.keepCounters(c.at(e.peer))
		}
	}
	c.removeFlow(i)
	return dst
}

// keepCounters keeps the exported counters of an evicted connection that is still open: its next observation counts from the
// birth of the socket.
func (c *Cache) keepCounters(e *entry) {
	if e.datagram || e.id.cookie == 0 || e.ended {
		return
	}
	if len(c.residue) >= c.memories() {
		c.stats.Forgotten++
		return
	}
	c.residue[e.id.cookie] = residue{e.out, e.in}
}

// memories bounds what is remembered of sockets that have no flow: far less than a flow takes each.
func (c *Cache) memories() int { return max(c.cfg.MaxFlows, 1<<16) }
