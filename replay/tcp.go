package replay

import "github.com/sockflow/sockflow/flowcache"

// tcpFlow is what sequence numbers and flags show of a connection: one cache line. Of each direction the numbers
// [floor, next) were seen, but for its gaps.
type tcpFlow struct {
	next      [2]uint32
	floor     [2]uint32
	gaps      [2]uint32 // in the table's gapPool, the highest first
	syn       uint32    // when the initiator's latest SYN was sent: microseconds, wrapping
	roundTrip uint32    // microseconds from the latest SYN to the acknowledgment of its answer; 0 unknown
	retrans   [2]uint32 // segments
	reordered [2]uint32 // segments
	repeated  [2]uint64 // octets of retransmitted segments
}

const (
	// synUnit is 4 ms: SYNs are sent again after a second and more.
	synUnit = 4e6
	// reorderTime is how long a segment may be overtaken: what comes later is a retransmission of what was lost before
	// it could be captured. Wireshark takes the same.
	reorderTime = 3000 // microseconds
	// maxWindow is the largest window of TCP (RFC 7323, section 2.3): a segment further away than that is of another
	// sequence.
	maxWindow = 1 << 30
	// maxEarly is how far behind a first segment the SYN may be that comes after it.
	maxEarly = 1 << 16
)

// elapsed is the time from one reading of the wrapping microsecond clock to another, negative where the clock was
// stepped back.
func elapsed(from, to uint32) int32 { return int32(to - from) }

// sequence compares a segment with what its sender has sent before. It returns how many octets of its payload were seen
// already. recent says that the flow has just begun.
func (t *tcpFlow) sequence(p *packet, d int, recent bool, pool *gapPool) (again uint32) {
	if p.flags&flowcache.FlagRST != 0 && p.payload == 0 {
		return 0 // its number may be anything
	}
	begin, end := p.seq, p.seq+p.payload // of the payload
	if p.flags&flowcache.FlagSYN != 0 {
		begin, end = begin+1, end+1
	}
	last := end
	if p.flags&flowcache.FlagFIN != 0 {
		last++
	}
	ahead := int32(p.seq - t.next[d])
	switch {
	case t.floor[d]|t.next[d] == 0, p.flags&flowcache.FlagSYN != 0 && t.otherSequence(p.seq, d):
		t.anew(d, p.seq, last, pool)
		return 0
	case last == p.seq:
		return 0
	case ahead == 0:
		t.next[d] = last
		if t.next[d]-t.floor[d] > maxWindow+maxWindow/2 {
			t.floor[d] = t.next[d] - maxWindow
			pool.cut(&t.gaps[d], t.floor[d])
		}
		return 0
	case ahead > maxWindow || ahead < -maxWindow:
		t.anew(d, p.seq, last, pool)
		return 0
	case ahead == -1 && p.payload <= 1 && p.flags&(flowcache.FlagSYN|flowcache.FlagFIN) == 0:
		return p.payload // keep-alive
	case ahead > 0:
		pool.open(&t.gaps[d], t.next[d], p.seq, uint32(p.time/1000))
		t.next[d] = last
		return 0
	}
	// Some of it the sender has sent before, whether that was seen or not.
	sent := p.payload
	if int32(end-t.next[d]) > 0 {
		sent -= min(sent, end-t.next[d])
	}
	fresh, late := t.mark(p.seq, begin, d, p, recent, pool)
	n, l := t.mark(begin, end, d, p, recent, pool)
	again = p.payload - n
	fresh, late = fresh+n, late || l
	n, l = t.mark(end, last, d, p, recent, pool)
	fresh, late = fresh+n, late || l
	switch {
	case fresh == 0, late, again > 0:
		t.retrans[d]++
		t.repeated[d] += uint64(sent)
	default:
		t.reordered[d]++
	}
	return again
}

// otherSequence reports whether a SYN with this number is not the one that began what was seen of direction d, nor a
// late one.
func (t *tcpFlow) otherSequence(seq uint32, d int) bool {
	early := t.floor[d] - seq
	return early != 0 && (t.floor[d] == t.next[d] || early > maxEarly)
}

// anew begins a direction with the numbers [seq, end).
func (t *tcpFlow) anew(d int, seq, end uint32, pool *gapPool) {
	pool.clear(&t.gaps[d])
	t.floor[d], t.next[d] = seq, end
}

// mark notes that [from, to) was seen, and returns how many numbers of it were not before, and whether these came too
// late to have been overtaken on the way.
func (t *tcpFlow) mark(from, to uint32, d int, p *packet, recent bool, pool *gapPool) (fresh uint32, late bool) {
	if from == to {
		return 0, false
	}
	now := uint32(p.time / 1000)
	if int32(t.floor[d]-from) > 0 { // older than all that was seen
		floor := t.floor[d]
		t.floor[d], late = from, !recent
		if int32(to-floor) < 0 {
			pool.deepen(&t.gaps[d], to, floor, now)
			return to - from, late
		}
		fresh, from = floor-from, floor
	}
	if next := t.next[d]; int32(to-next) > 0 {
		fresh += to - next
		t.next[d], to = to, next
	}
	if int32(to-from) > 0 {
		n, opened := pool.fill(&t.gaps[d], from, to)
		fresh += n
		if e := elapsed(opened, now); n > 0 && (e > reorderTime || e < -reorderTime) {
			late = true
		}
	}
	return fresh, late
}

// life follows the connection by its flags, and reports whether this segment closes it.
func (f *flow) life(p *packet, d int) (closed bool) {
	const syn, ack, fin, rst = flowcache.FlagSYN, flowcache.FlagACK, flowcache.FlagFIN, flowcache.FlagRST
	was := f.state & stateClosed
	switch {
	case p.flags&rst != 0:
		if f.state&(stateSYN|stateAccepted|stateEstablished) == stateSYN && d != f.initiator() {
			f.state |= stateRefused
		}
		f.state |= stateClosed
	case p.flags&(syn|ack) == syn:
		if f.state&stateSYN == 0 {
			f.state = f.state&^stateSecond | stateSYN | stateKnown
			if d == 1 {
				f.state |= stateSecond
			}
		} else if d == f.initiator() && f.state&stateEstablished == 0 { // else a copy of an old one
			f.resent = uint16(min(max(0, p.time-f.start)/synUnit, 1<<16-1))
			f.state &^= stateClosed // the RST before it was not the last word
		}
		if d == f.initiator() {
			f.tcp.syn = uint32(p.time / 1000)
		}
	case p.flags&syn != 0:
		if f.state&(stateKnown|stateTold) == 0 {
			f.state = f.state&^stateSecond | stateKnown
			if d == 0 {
				f.state |= stateSecond
			}
		}
		if d != f.initiator() {
			f.state = f.state&^stateRefused | stateAccepted
		}
	case f.state&(stateAccepted|stateEstablished) == stateAccepted && p.flags&ack != 0 && d == f.initiator():
		f.state |= stateEstablished
		if f.state&(stateSYN|stateTold) == stateSYN {
			f.tcp.roundTrip = uint32(max(0, elapsed(f.tcp.syn, uint32(p.time/1000)))) // 0 where the clock was stepped back meanwhile
		}
	}
	if p.flags&fin != 0 {
		f.state |= stateFIN0 << d
		if f.state&(stateFIN0|stateFIN1) == stateFIN0|stateFIN1 {
			f.state |= stateClosed
		}
	}
	return was == 0 && f.state&stateClosed != 0
}

// reopened reports whether p begins another connection between the same ends: a SYN, and not the one that began this.
func (f *flow) reopened(p *packet) bool {
	if p.kind&kindTCP == 0 || p.flags&(flowcache.FlagSYN|flowcache.FlagACK|flowcache.FlagRST) != flowcache.FlagSYN {
		return false
	}
	d := int(p.kind & kindSwapped >> 1)
	if f.state&(stateFrom0<<d) == 0 {
		return false
	}
	return f.state&stateSYN == 0 || d != f.initiator() || p.seq != f.tcp.floor[d]
}

// tcpRecord fills what is known of a connection; i is the initiator's direction.
func (f *flow) tcpRecord(r *flowcache.Record, i int) {
	const econnrefused = 111

	t, o := &f.tcp, i^1
	r.Forward.RetransPackets, r.Reverse.RetransPackets = uint64(t.retrans[i]), uint64(t.retrans[o])
	r.Forward.RetransOctets, r.Reverse.RetransOctets = t.repeated[i], t.repeated[o]
	r.Reordered, r.ReverseReordered = uint64(t.reordered[i]), uint64(t.reordered[o])
	t.retrans, t.repeated, t.reordered = [2]uint32{}, [2]uint64{}, [2]uint32{}
	if t.roundTrip != 0 {
		r.TCP.SRTT, r.TCP.MinRTT, r.TCP.ConnectTime = t.roundTrip, t.roundTrip, t.roundTrip+uint32(f.resent)*(synUnit/1000)
	}
	if f.state&stateRefused != 0 {
		r.TCP.ConnectError = econnrefused
	}
	switch fin := f.state & (stateFIN0 | stateFIN1); {
	case f.state&stateClosed != 0:
		r.TCP.State = flowcache.TCPClose
	case fin == stateFIN0<<i:
		r.TCP.State = flowcache.TCPFinWait1
	case fin != 0:
		r.TCP.State = flowcache.TCPCloseWait
	case f.state&(stateSYN|stateAccepted|stateEstablished) == stateSYN && f.state&(stateFrom0|stateFrom1) != stateFrom0|stateFrom1:
		r.TCP.State = flowcache.TCPSynSent
	case f.state&(stateAccepted|stateEstablished) == stateAccepted:
		r.TCP.State = flowcache.TCPSynRecv
	default:
		r.TCP.State = flowcache.TCPEstablished
	}
}
