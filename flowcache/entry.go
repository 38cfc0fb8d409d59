package flowcache

// identity names an entry: a tuple that is reused by a new socket is a new flow, and one datagram socket has a flow with
// each of its peers.
type identity struct {
	key    Key // Src is the local end
	cookie uint64
}

// entry is a live flow. It has no pointers: the garbage collector does not look into the cache, and links are indexes
// (0 is none).
type entry struct {
	id identity

	begin    int64 // of the record under way
	last     int64 // when counters last moved
	activeAt int64 // when the active timeout ends
	deadline int64 // of the timer
	slot     uint32
	next     uint32 // in the slot of the wheel
	prev     uint32
	sibling  uint32 // flows of the same datagram socket
	elder    uint32

	role     Role
	origin   Origin
	control  uint8
	synTold  bool // a record has carried the SYN
	exported bool // a record has left
	changed  bool // something to tell since
	hasTCP   bool
	preexist bool

	owner    ProcessID
	uid, gid uint32
	cgroup   uint64
	out, in  Counters // totals
	outTold  Counters // totals that records have carried
	inTold   Counters
	tcp      TCPMetrics
}

// reset makes e the flow of o, with no counters yet.
func (e *entry) reset(o *Observation) {
	*e = entry{
		id:       identity{o.Key, o.Cookie},
		begin:    o.First,
		last:     o.Time,
		role:     o.Role,
		uid:      NoID,
		gid:      NoID,
		changed:  true,
		preexist: o.Preexisting,
	}
	if o.Preexisting || e.begin == 0 || e.begin > o.Time {
		e.begin = o.Time // it counts from here
	}
	if o.Preexisting && !o.Delta {
		e.out, e.in = o.Out, o.In
		e.outTold, e.inTold = o.Out, o.In
		e.synTold = true // long ago
	}
}

// merge takes over what o tells. Totals never go back: of two observations the one that counted more is the later one,
// in whatever order they come.
func (e *entry) merge(o *Observation) {
	e.origin = o.Origin
	e.control |= o.Control
	if o.Process.PID != 0 {
		e.owner = o.Process
	}
	if o.UID != NoID {
		e.uid, e.gid = o.UID, o.GID
	}
	if o.CGroup != 0 {
		e.cgroup = o.CGroup
	}
	if e.role == RoleUnknown {
		e.role = o.Role
	}
	moved := false
	if o.Delta {
		moved = o.Out != Counters{} || o.In != Counters{}
		e.out.add(&o.Out)
		e.in.add(&o.In)
		if o.Snapshot {
			e.last = max(e.last, o.Time) // no counters, but the socket is there
		}
		if o.First != 0 && !e.exported && o.First < e.begin {
			e.begin = o.First
		}
	} else {
		moved = e.out.raise(&o.Out)
		moved = e.in.raise(&o.In) || moved
	}
	if moved {
		e.changed = true
		e.last = max(e.last, o.Time)
	}
	if o.Key.Proto == ProtoTCP {
		if !e.hasTCP || moved || o.TCP.State != e.tcp.State {
			e.tcp = o.TCP
		}
		e.hasTCP = true
	}
}

// record writes what happened since the previous record into r, and remembers that it is told.
func (e *entry) record(r *Record, reason EndReason, final bool) {
	*r = Record{
		Key:       e.id.key,
		Start:     e.begin,
		End:       max(e.begin, e.last),
		EndReason: reason,
		Final:     final,
		Origin:    e.origin,
		Control:   e.control,
		Arbitrary: e.role == RoleUnknown,
		HasTCP:    e.hasTCP,
		TCP:       e.tcp,
		Source:    End{UID: NoID, GID: NoID},
		Dest:      End{UID: NoID, GID: NoID},
	}
	if e.synTold {
		r.Control &^= FlagSYN
	}
	out, in := e.out.since(&e.outTold), e.in.since(&e.inTold)
	end := End{Local: true, Process: e.owner, UID: e.uid, GID: e.gid, CGroup: e.cgroup, NetNS: e.id.key.NetNS, Cookie: e.id.cookie}
	if e.role == RoleResponder {
		r.Key = r.Key.Reverse()
		r.Forward, r.Reverse, r.Dest = in, out, end
	} else {
		r.Forward, r.Reverse, r.Source = out, in, end
	}
	e.outTold, e.inTold = e.out, e.in
	e.begin = r.End
	e.synTold = e.synTold || e.control&FlagSYN != 0
	e.exported, e.changed = true, false
}

func (c *Counters) add(d *Counters) {
	c.Payload += d.Payload
	c.Octets += d.Octets
	c.Packets += d.Packets
	c.RetransPackets += d.RetransPackets
	c.RetransOctets += d.RetransOctets
}

// raise lifts each counter to that of d where d is higher, and reports whether one moved.
func (c *Counters) raise(d *Counters) bool {
	before := *c
	c.Payload = max(c.Payload, d.Payload)
	c.Octets = max(c.Octets, d.Octets)
	c.Packets = max(c.Packets, d.Packets)
	c.RetransPackets = max(c.RetransPackets, d.RetransPackets)
	c.RetransOctets = max(c.RetransOctets, d.RetransOctets)
	return *c != before
}

// since returns c - told.
func (c *Counters) since(told *Counters) Counters {
	return Counters{
		Payload:        c.Payload - told.Payload,
		Octets:         c.Octets - told.Octets,
		Packets:        c.Packets - told.Packets,
		RetransPackets: c.RetransPackets - told.RetransPackets,
		RetransOctets:  c.RetransOctets - told.RetransOctets,
	}
}
