package flowcache

// Sources report sockets one by one, and may miss some. A pass over all sockets, by the source itself or by an audit of
// another source, shows which sockets the cache misses and which are gone.

const maxSuspects = 1 << 16

// passesHere is after how many passes addresses are learned anew.
const passesHere = 64

// SnapshotDone notes the end of a pass over all sockets. It appends to dst the records of what an audit found.
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

// AuditDone notes the end of an audit, a pass over every TCP socket that began at the time began. The next two calls of
// SnapshotDone precede the decision on sockets that only the audit or only the cache has: by then the observations that
// were on their way have arrived.
func (c *Cache) AuditDone(began int64) {
	c.auditBegan, c.auditPasses = began, 2
}

// judge adds what two audits saw and the source did not, and ends what it did not end.
func (c *Cache) judge(dst []Record) []Record {
	dst = c.Sweep(dst, c.auditBegan)
	c.suspected = true
	var lonely map[uint64]uint64
	var missed map[uint64]struct{}
	for i := range c.suspects {
		o := &c.suspects[i]
		c.stats.Suspects--
		c.stats.Observations--
		if c.lookup(&identity{o.Key, o.Cookie}) == 0 && !c.isStale(o) {
			if _, twice := c.missed[o.Cookie]; !twice {
				// Perhaps its end was missed, and its other end has been reported. The next audit shows whether it is still there.
				if missed == nil {
					missed = make(map[uint64]struct{})
				}
				missed[o.Cookie] = struct{}{}
				c.stats.Stale++
				c.stats.Observations++
				continue
			}
			c.cfg.Known(o)
			if lonely == nil {
				lonely = c.unpairedConversations()
			}
			if conv, _, _ := c.conversation(o); o.Conversation == 0 {
				o.Conversation = lonely[conv] // by addresses; its source knows more
			}
		}
		dst = c.Observe(dst, o)
	}
	c.suspected = false
	c.suspects, c.missed = c.suspects[:0], missed
	return dst
}

// unpairedConversations returns the Conversations of unpaired connections, by the hash of their addresses.
func (c *Cache) unpairedConversations() map[uint64]uint64 {
	convs := map[uint64]uint64{}
	for i := uint32(1); i < uint32(len(c.chunks))*chunkLen; i++ {
		if e := c.at(i); e.used && !e.datagram && e.conv != 0 && e.peer == 0 {
			convs[c.byAddress(e.id.key)] = e.conv
		}
	}
	return convs
}

// Sweep ends the connections whose sockets a pass over all sockets, begun at the time began, did not show. The source
// did not report their ends, or the reports were lost.
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
