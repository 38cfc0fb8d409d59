package replay

import "github.com/sockflow/sockflow/flowcache"

// tcpFlow is what sequence numbers and flags tell of a connection: one cache line.
type tcpFlow struct {
	next      [2]uint32 // sequence number after the highest that was seen
	gap       [2]gap    // the latest that was left out
	isn       uint32    // of the initiator's SYN
	roundTrip uint32    // microseconds from the latest SYN to the acknowledgment of its answer; 0 unknown
	retrans   [2]uint32 // segments
	repeated  [2]uint32 // their octets
	reordered [2]uint32 // segments
}

// gap is a range of sequence numbers that was skipped, and when.
type gap struct {
	from, to uint32
	time     uint32 // microseconds, wrapping; before the first gap that of the latest SYN
}

// synUnit is 4 ms: SYNs are sent again after a second and more.
const synUnit = 4e6

// reorderTime is how long a segment may be overtaken: what comes later is a retransmission of what was lost before it could be
// captured. Wireshark takes the same.
const reorderTime = 3000 // microseconds

// sequence compares a segment with what its sender has sent before (seen: anything). It returns how many octets of its payload were
// seen already.
func (t *tcpFlow) sequence(p *packet, d int, seen bool) (again uint32) {
	if p.flags&flowcache.FlagRST != 0 {
		return 0
	}
	length := p.payload
	if p.flags&flowcache.FlagSYN != 0 {
		length++
	}
	if p.flags&flowcache.FlagFIN != 0 {
		length++
	}
	end := p.seq + length
	ahead := int32(p.seq - t.next[d])
	switch {
	case !seen:
		t.next[d] = end
	case length == 0:
	case ahead == 0:
		t.next[d] = end
	case ahead > 0:
		t.gap[d] = gap{t.next[d], p.seq, uint32(p.time / 1000)}
		t.next[d] = end
	case int32(end-t.next[d]) > 0: // in part
		again = min(p.payload, uint32(-ahead))
		t.next[d] = end
		t.repeat(d, again)
	case t.fills(p, d, end):
		if uint32(p.time/1000)-t.gap[d].time <= reorderTime {
			t.reordered[d]++
		} else {
			t.repeat(d, p.payload)
		}
		if g := &t.gap[d]; p.seq == g.from {
			g.from = end
		} else {
			g.to = p.seq // what is left behind it is forgotten
		}
	case p.payload <= 1 && ahead == -1 && p.flags&(flowcache.FlagSYN|flowcache.FlagFIN) == 0:
		again = p.payload // keep-alive
	default:
		again = p.payload
		t.repeat(d, again)
	}
	return again
}

func (t *tcpFlow) repeat(d int, octets uint32) {
	t.retrans[d]++
	t.repeated[d] += octets
}

// fills reports whether a segment lies in the gap.
func (t *tcpFlow) fills(p *packet, d int, end uint32) bool {
	g := &t.gap[d]
	return g.from != g.to && int32(p.seq-g.from) >= 0 && int32(g.to-end) >= 0
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
			f.tcp.isn = p.seq
		} else if d == f.initiator() {
			f.resent = uint16(min(max(0, p.time-f.start)/synUnit, 1<<16-1))
		}
		f.tcp.gap[d].time = uint32(p.time / 1000)
	case p.flags&syn != 0:
		if f.state&(stateKnown|stateTold) == 0 {
			f.state = f.state&^stateSecond | stateKnown
			if d == 0 {
				f.state |= stateSecond
			}
		}
		if d != f.initiator() {
			f.state |= stateAccepted
		}
	case f.state&(stateAccepted|stateEstablished) == stateAccepted && p.flags&ack != 0 && d == f.initiator():
		f.state |= stateEstablished
		if f.state&(stateSYN|stateTold) == stateSYN {
			f.tcp.roundTrip = uint32(p.time/1000) - f.tcp.gap[d].time
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
	return f.state&stateSYN == 0 || d != f.initiator() || p.seq != f.tcp.isn
}

// tcpRecord fills what is known of a connection; i is the initiator's direction.
func (f *flow) tcpRecord(r *flowcache.Record, i int) {
	const econnrefused = 111

	t, o := &f.tcp, i^1
	r.Forward.RetransPackets, r.Reverse.RetransPackets = uint64(t.retrans[i]), uint64(t.retrans[o])
	r.Forward.RetransOctets, r.Reverse.RetransOctets = uint64(t.repeated[i]), uint64(t.repeated[o])
	r.Reordered, r.ReverseReordered = uint64(t.reordered[i]), uint64(t.reordered[o])
	t.retrans, t.repeated, t.reordered = [2]uint32{}, [2]uint32{}, [2]uint32{}
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
