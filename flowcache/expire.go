package flowcache

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
			dst, told = c.expireUnpaired(dst, i, now)
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

// changed reports whether either end of a flow has changed since the last record.
func (c *Cache) changed(e *entry) bool {
	return e.changed || e.peer != 0 && c.at(e.peer).changed
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
		case e.told: // everything has been exported
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
