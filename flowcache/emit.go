package flowcache

// emitFlow emits the record of flow i and its peer.
func (c *Cache) emitFlow(dst []Record, i uint32, reason EndReason, final bool) []Record {
	e := c.at(i)
	if e.peer == 0 {
		return c.emit(dst, e, nil, reason, final)
	}
	return c.emit(dst, e, c.at(e.peer), reason, final)
}

func (c *Cache) emit(dst []Record, e, peer *entry, reason EndReason, final bool) []Record {
	c.stats.Records[reason]++
	if len(dst) >= RecordsAtOnce && c.cfg.Full != nil {
		dst = c.cfg.Full(dst)
	}
	if len(dst) == cap(dst) {
		dst = append(dst, Record{})
	} else {
		dst = dst[:len(dst)+1]
	}
	r := &dst[len(dst)-1]
	if final && e.tail != 0 {
		c.settle(e, peer)
	}
	if final && peer != nil && peer.tail != 0 {
		c.settle(peer, e)
	}
	e.record(r, peer, reason, final)
	if peer == nil {
		c.translate(r, e, final)
	}
	return dst
}

// settle adds to e, which closed first, what followed when its socket was gone. If the other end is a socket of this host it is known, or will
// be with that; else the other end's FIN and the acknowledgement are supposed.
func (c *Cache) settle(e, peer *entry) {
	out, in := Counters{Packets: 1, Octets: uint64(e.tail)}, Counters{Packets: 1, Octets: uint64(e.tail)}
	switch {
	case peer == nil && c.cfg.Merge && e.conv != 0 && (c.here[0].has(e.id.key.Dst) || c.here[1].has(e.id.key.Dst)):
		return // the other end's record has the counts
	case peer == nil || peer.ended && (peer.control[0]|peer.control[1])&FlagRST == 0:
	case !peer.ended:
		return
	case peer.other == PeerGone: // it sent more, and was answered by a reset, without options
		out.Octets = 40
		if !e.id.key.Is4() {
			out.Octets = 60
		}
	default: // it sent a reset, which has no answer
		out = Counters{}
	}
	e.out.Add(&out)
	e.in.Add(&in)
	e.tail = 0
}

// record writes what happened since the previous record into r, and marks it as exported. With a peer, another socket's
// flow, the record has both ends, and each direction as its sender counted it.
func (e *entry) record(r *Record, peer *entry, reason EndReason, final bool) {
	src, dst := e, peer // initiator and responder
	if e.role == RoleResponder || e.role == RoleUnknown && peer != nil && peer.role == RoleInitiator {
		src, dst = peer, e
	}
	*r = Record{
		Start:     e.begin,
		Began:     e.first,
		End:       max(e.begin, e.last),
		EndReason: reason,
		First:     !e.exported,
		Final:     final,
		Origin:    e.origin,
		Arbitrary: e.role == RoleUnknown,
		HasTCP:    e.hasTCP,
		TCP:       e.tcp,
		Source:    End{UID: NoID, GID: NoID},
		Dest:      End{UID: NoID, GID: NoID},
	}
	if src != nil {
		r.Key, r.TCP, r.Source = src.id.key, src.tcp, src.end()
	} else {
		r.Key = dst.id.key.Reverse()
	}
	if dst != nil {
		r.Dest = dst.end()
	}
	if peer != nil {
		e.hear(peer)
		r.End = max(r.End, peer.last)
		r.Arbitrary = r.Arbitrary && peer.role == RoleUnknown
	}
	r.Control, r.ControlBack = controlBits(src, dst), controlBits(dst, src)
	switch {
	case src == nil:
		r.Forward, r.Reverse = dst.in.since(&dst.inTold), dst.out.since(&dst.outTold)
		r.ForwardTotal, r.ReverseTotal = dst.in, dst.out
	case dst == nil:
		r.Forward, r.Reverse = src.out.since(&src.outTold), src.in.since(&src.inTold)
		r.ForwardTotal, r.ReverseTotal = src.out, src.in
	default:
		r.Forward, r.Reverse = src.out.since(&src.outTold), dst.out.since(&dst.outTold)
		r.ForwardTotal, r.ReverseTotal = src.out, dst.out
		if far := dst.id.key.Reverse().Translation(); far != r.Key.Translation() {
			r.Post = far
		}
		peer.markExported(r.End)
	}
	if peer == nil && e.id.key == e.id.key.Reverse() {
		// A socket that talks to itself is both ends, and hears what it says.
		r.Reverse, r.ReverseTotal, r.ControlBack = Counters{}, Counters{}, 0
		r.Source, r.Dest = e.end(), e.end()
	}
	e.markExported(r.End)
	if !r.First {
		clearStale(&r.Control, &r.Forward)
		clearStale(&r.ControlBack, &r.Reverse)
	}
}

// controlBits returns the tcpControlBits of the direction from one end to the other that no record has carried yet. What an end sent it knows
// itself, but for a reset that the kernel sends when the socket is gone: that is what the other end received.
func controlBits(from, to *entry) uint16 {
	switch {
	case from == nil:
		return to.control[1] &^ to.ctlTold[1]
	case to == nil:
		return from.control[0] &^ from.ctlTold[0]
	}
	return (from.control[0] | to.control[1]&(FlagRST|FlagECE|FlagCWR)) &^ from.ctlTold[0]
}

// clearStale takes away what a later record's segments cannot have had.
func clearStale(control *uint16, c *Counters) {
	if c.Payload == 0 && c.RetransOctets == 0 {
		*control &^= FlagPSH
	}
	if c.Packets == 0 {
		*control &^= FlagACK
	}
}

// markExported marks all counters as exported, in a record that ended at t.
func (e *entry) markExported(t int64) {
	e.outTold.raise(&e.out)
	e.inTold.raise(&e.in)
	e.begin = t
	for d := range e.control {
		e.ctlTold[d] |= e.control[d] & flagsOnce
	}
	e.exported, e.changed = true, false
}

func (e *entry) end() End {
	return End{Local: true, Kernel: e.kernel, Process: e.owner, UID: e.uid, GID: e.gid, CGroup: e.cgroup, NetNS: e.id.key.NetNS, Cookie: e.id.cookie}
}
