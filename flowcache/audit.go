package flowcache

// Sources tell of sockets one by one, and may miss some. A pass over all sockets that there are, by the source itself or by an
// audit from elsewhere, shows what is missing and what is gone.

const maxSuspects = 1 << 16

// passesHere is after how many passes addresses are learned anew.
const passesHere = 64

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

// lonely lists the connections that have not met their peer, by addresses.
func (c *Cache) lonely() map[uint64]uint64 {
	convs := map[uint64]uint64{}
	for i := uint32(1); i < uint32(len(c.chunks))*chunkLen; i++ {
		if e := c.at(i); e.used && !e.datagram && e.conv != 0 && e.peer == 0 {
			convs[c.byAddress(e.id.key)] = e.conv
		}
	}
	return convs
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
		c.end(&Observation{Cookie: e.id.cookie, Conversation: conv, Time: began})
		dst = c.finish(dst, i)
	}
	return dst
}
