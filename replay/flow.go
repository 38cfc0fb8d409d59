package replay

import (
	"github.com/sockflow/sockflow/flowcache"
)

// flow is a live flow: three cache lines, the third for TCP alone. Where there are two of something, the first is of packets from the
// first (lower) end of the tuple.
type flow struct {
	tuple
	last   int64 // latest packet
	octets [2]uint64

	payload [2]uint64
	packets [2]uint64
	start   int64  // earliest packet of the record under way
	active  int64  // when the record under way is due
	next    uint32 // in the slot of the wheel; of an unused flow, the next unused
	prev    uint32
	slot    uint16
	state   state
	control [2]uint8 // tcpControlBits of the record under way, but for NS
	resent  uint16   // of TCP: from the first SYN to the latest, in units of synUnit

	tcp tcpFlow
}

type state uint16

const (
	stateSecond      state = 1 << iota // the initiator is the second end
	stateKnown                         // who began is certain, or the first packet's sender stands for it
	stateFrom0                         // the first end has sent
	stateFrom1                         // the second end has sent
	stateSYN                           // the initiator's SYN was seen
	stateAccepted                      // the responder's SYN was seen
	stateEstablished                   // the initiator has acknowledged that
	stateFIN0                          // the first end has said its last
	stateFIN1
	stateRefused // the SYN was answered by RST
	stateClosed  // by both FINs, or RST
	stateTold    // a record has left
	stateMoved   // there are packets that no record has
	stateNS0     // the first end has sent NS in the record under way
	stateNS1
)

// initiator is the index of the initiator's direction.
func (f *flow) initiator() int {
	return int(f.state & stateSecond)
}

// begin makes f the flow of p, which is not counted yet. The links of the wheel stay.
func (f *flow) begin(p *packet) {
	f.last, f.start = p.time, p.time
	f.octets, f.payload, f.packets = [2]uint64{}, [2]uint64{}, [2]uint64{}
	f.state, f.control, f.resent = 0, [2]uint8{}, 0
	if p.kind&kindTCP != 0 {
		f.tcp = tcpFlow{}
	}
	from := p.kind & kindSwapped >> 1 // the sender began
	if p.kind&kindAnswer != 0 {
		from ^= 1
	}
	if from != 0 {
		f.state = stateSecond
	}
	if p.proto() != protoTCP || p.kind&kindAnswer != 0 {
		f.state |= stateKnown
	}
}

// count adds p, and reports whether it closed the connection.
func (f *flow) count(p *packet, activeTimeout int64, gaps *gapPool) (closed bool) {
	d := int(p.kind & kindSwapped >> 1)
	f.octets[d] += uint64(p.octets)
	f.packets[d] += uint64(p.packets)
	if f.state&stateMoved == 0 {
		f.state |= stateMoved
		f.start, f.active = p.time, p.time+activeTimeout
	} else if p.time < f.start {
		f.start = p.time
	}
	f.last = max(f.last, p.time)
	payload := p.payload
	if p.kind&kindTCP != 0 {
		f.control[d] |= p.flags
		if p.kind&kindNS != 0 {
			f.state |= stateNS0 << d
		}
		recent := f.state&stateTold == 0 && p.time-f.start <= reorderTime*1000
		payload -= f.tcp.sequence(p, d, recent, gaps)
		if p.flags&(flowcache.FlagSYN|flowcache.FlagFIN|flowcache.FlagRST) != 0 || f.state&(stateAccepted|stateEstablished) == stateAccepted {
			closed = f.life(p, d)
		}
	}
	f.payload[d] += uint64(payload)
	f.state |= stateFrom0 << d
	return closed
}

// record writes what is not yet reported into r, and begins the next record.
func (f *flow) record(r *flowcache.Record, reason flowcache.EndReason, final bool) {
	i := f.initiator()
	o := i ^ 1
	t := f.tuple
	if i == 1 {
		t.swap()
	}
	*r = flowcache.Record{
		Key: t.key(), Start: f.start, End: f.last, EndReason: reason, First: f.state&stateTold == 0, Final: final,
		Arbitrary: f.state&stateKnown == 0, Origin: flowcache.OriginPackets, Control: f.flags(i), ControlBack: f.flags(o),
		Forward: flowcache.Counters{Payload: f.payload[i], Octets: f.octets[i], Packets: f.packets[i]},
		Reverse: flowcache.Counters{Payload: f.payload[o], Octets: f.octets[o], Packets: f.packets[o]},
		Source:  flowcache.End{UID: flowcache.NoID, GID: flowcache.NoID},
		Dest:    flowcache.End{UID: flowcache.NoID, GID: flowcache.NoID},
	}
	if f.proto() == protoTCP {
		r.HasTCP = true
		f.tcpRecord(r, i)
	}
	f.octets, f.payload, f.packets = [2]uint64{}, [2]uint64{}, [2]uint64{}
	f.control = [2]uint8{}
	r.ForwardTotal, r.ReverseTotal = r.Forward, r.Reverse
	f.state &^= stateMoved | stateNS0 | stateNS1
}

// flags returns the tcpControlBits of direction d in the record under way.
func (f *flow) flags(d int) uint16 {
	bits := uint16(f.control[d])
	if f.state&(stateNS0<<d) != 0 {
		bits |= flowcache.FlagNS
	}
	return bits
}
