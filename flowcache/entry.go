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
	first    int64 // begin of the flow
	last     int64 // when counters last moved
	activeAt int64 // when the active timeout ends
	deadline int64 // of the timer
	slot     uint32
	next     uint32 // in the slot of the wheel
	prev     uint32
	sibling  uint32 // flows of the same datagram socket
	elder    uint32
	peer     uint32 // the flow of the socket at the other end
	conv     uint64 // what both have in common; 0 if there can be no such peer
	seen     int64  // when the socket was last seen alive

	way        uint64 // how the source said that its addresses are translated, shortened; 0 if it did not
	translated uint32 // where the cache keeps what the other end sees; 0 if nothing is known to be translated

	role     Role
	origin   Origin
	control  [2]uint16 // tcpControlBits of what the socket sent, and received
	ctlTold  [2]uint16 // of these the ones that are sent once, and that a record has carried
	older    bool      // than the metering: what it had counted before is in outTold and inTold
	used     bool
	armed    bool // its timer is set
	listed   bool // it waits for a peer, in unpaired
	holds    bool // its owner's name is kept for it
	follows  bool // it has a peer whose timer is that of both
	ended    bool // the socket is gone
	other    Peer // and what it knew of the other end
	told     bool // an end without a peer: its last record has left
	exported bool // a record has left
	changed  bool // has something that no record has reported yet
	asked    bool // how its addresses are translated
	hasTCP   bool
	kernel   bool
	linked   bool // it is among the flows of its datagram socket
	parted   bool // it had a peer, and what is left may be another's
	unsent   bool // what it sends is out of the source's sight: the other end knows
	datagram bool // not TCP, or observed in deltas: ends by silence or with its socket

	tail uint16 // of an end that closed first: octets of the headers of the other's FIN and of its acknowledgement, not in the counters yet

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
		used:     true,
		datagram: o.Delta || o.Key.Proto != ProtoTCP,
	}
	if o.Preexisting || e.begin == 0 || e.begin > o.Time {
		e.begin = o.Time // it counts from here
	}
	e.first = e.begin
	if o.Preexisting && !o.Delta {
		e.out, e.in = o.Out, o.In
		e.outTold, e.inTold = o.Out, o.In
		e.ctlTold = [2]uint16{FlagSYN, FlagSYN} // long ago
		e.older = true
	}
}

// bornWith makes e, whose socket seemed to be older than the metering, as young as the other end of its connection: what it has counted
// is in no record yet.
func (e *entry) bornWith(peer *entry) {
	if e.older && !peer.older && !e.exported {
		e.older, e.begin, e.first = false, peer.begin, peer.first
		e.outTold, e.inTold, e.ctlTold = Counters{}, Counters{}, [2]uint16{}
	}
}

// merge merges o into e. Totals never decrease: of two observations the one that counted more is the later one, in
// whatever order they come.
func (e *entry) merge(o *Observation) {
	e.origin = o.Origin
	e.control[0] |= o.ControlOut
	e.control[1] |= o.ControlIn
	e.kernel = e.kernel || o.Kernel
	e.seen = max(e.seen, o.Time)
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
	if o.Tail {
		e.tail = o.Header
	}
	moved := false
	if o.Delta {
		if e.unsent && o.Out != (Counters{}) {
			e.unsent, e.out = false, e.outTold // only the first was missed
		}
		moved = o.Out != Counters{} || o.In != Counters{}
		e.out.Add(&o.Out)
		e.in.Add(&o.In)
		if o.Snapshot {
			e.last = max(e.last, o.Time) // no counters, but the socket is there
		}
		if o.First != 0 && !e.exported && o.First < e.begin {
			e.begin, e.first = o.First, o.First
		}
	} else {
		out, in := o.Out, o.In
		if o.Header != 0 {
			out.unwrap(&e.out, o.Header)
			in.unwrap(&e.in, o.Header)
		}
		moved = e.out.raise(&out)
		moved = e.in.raise(&in) || moved
	}
	if moved {
		e.changed = true
		e.last = max(e.last, o.Time)
	}
	if o.Key.Proto == ProtoTCP && !o.Delta {
		if !e.hasTCP || moved || o.TCP.State != e.tcp.State {
			e.tcp = o.TCP
		}
		e.hasTCP = true
	}
}
