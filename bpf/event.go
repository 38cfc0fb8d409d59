package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/sockflow/sockflow/flowcache"
)

// The Go side of include/events.h. Records are decoded by hand at fixed offsets after one length check.

const (
	kindSocket = 1 + iota
	kindDatagram
	kindRelease
	kindExec
	kindFork
	kindExit
	kindMove
	kindMPTCP
	kindBound
)

const (
	flagBorn = 1 << iota
	flagTouched
	flagFINReceived
	flagKernel
	flagShared
	flagFinal
	flagEnded // of a slot's state
)

const flagReset = flagEnded // of a record: the socket aborted, and sent a reset

const (
	socketLen   = 224
	datagramLen = 64
	processLen  = 80
)

var errShort = errors.New("record is shorter than its kind")

// le is the byte order of the kernels the objects are built for (bpfel).
var le = binary.LittleEndian

// socketRecord is struct socket_record.
type socketRecord struct {
	cookie, time, start, taskStart, cgroup              uint64
	bytesSent, bytesRetrans, bytesReceived, pacing      uint64
	src, dst                                            flowcache.Addr
	ca                                                  [16]byte
	netns, tgid, uid, gid                               uint32
	segsOut, segsIn, retrans, srtt, rttvar, minRTT      uint32
	lost, unacked, cwnd, mss, delivered, interval, conn uint32
	seq, peerSeq, exec                                  uint32
	sport, dport, headerLen, err                        uint16
	proto, state, oldState, role, flags, synRetrans     uint8
	cookieOut, cookieIn                                 uint8
	v4                                                  bool
}

func (r *socketRecord) decode(b []byte) error {
	if len(b) < socketLen {
		return fmt.Errorf("decode socket of %d octets: %w", len(b), errShort)
	}
	b = b[:socketLen]
	r.netns, r.cookie, r.time, r.start = le.Uint32(b[4:]), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:])
	r.taskStart, r.cgroup, r.bytesSent = le.Uint64(b[32:]), le.Uint64(b[40:]), le.Uint64(b[48:])
	r.bytesRetrans, r.bytesReceived, r.pacing = le.Uint64(b[56:]), le.Uint64(b[64:]), le.Uint64(b[72:])
	r.src, r.dst, r.ca = flowcache.Addr(b[80:96]), flowcache.Addr(b[96:112]), [16]byte(b[112:128])
	r.tgid, r.uid, r.gid = le.Uint32(b[128:]), le.Uint32(b[132:]), le.Uint32(b[136:])
	r.segsOut, r.segsIn, r.retrans = le.Uint32(b[140:]), le.Uint32(b[144:]), le.Uint32(b[148:])
	r.srtt, r.rttvar, r.minRTT = le.Uint32(b[152:]), le.Uint32(b[156:]), le.Uint32(b[160:])
	r.lost, r.unacked, r.cwnd, r.mss = le.Uint32(b[164:]), le.Uint32(b[168:]), le.Uint32(b[172:]), le.Uint32(b[176:])
	r.delivered, r.interval, r.conn = le.Uint32(b[180:]), le.Uint32(b[184:]), le.Uint32(b[188:])
	r.seq, r.peerSeq = le.Uint32(b[192:]), le.Uint32(b[196:])
	r.sport, r.dport, r.headerLen, r.err = le.Uint16(b[200:]), le.Uint16(b[202:]), le.Uint16(b[204:]), le.Uint16(b[206:])
	r.proto, r.state, r.oldState, r.role, r.flags = b[208], b[209], b[210], b[211], b[212]
	r.v4, r.synRetrans, r.cookieOut, r.cookieIn, r.exec = b[213] != 0, b[214], b[215], b[216], le.Uint32(b[220:])
	return nil
}

// datagramEvent is struct datagram_event.
type datagramEvent struct {
	cookie, time, taskStart, cgroup uint64
	netns, tgid, uid, gid, exec     uint32
	flags                           uint8
}

func (e *datagramEvent) decode(b []byte) error {
	if len(b) < datagramLen {
		return fmt.Errorf("decode datagram event of %d octets: %w", len(b), errShort)
	}
	e.netns, e.cookie, e.time = le.Uint32(b[4:]), le.Uint64(b[8:]), le.Uint64(b[16:])
	e.taskStart, e.cgroup = le.Uint64(b[24:]), le.Uint64(b[32:])
	e.tgid, e.uid, e.gid, e.flags = le.Uint32(b[40:]), le.Uint32(b[44:]), le.Uint32(b[48:]), b[52]
	e.exec = le.Uint32(b[56:])
	return nil
}

// kindOf returns the kind of a record of the ring buffer, 0 if it has none.
func kindOf(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return le.Uint32(b)
}

// decodeProcess reads a struct process_event and the names behind it. Times are still the kernel's.
func decodeProcess(b []byte, clk clock) (flowcache.ProcessEvent, error) {
	var ev flowcache.ProcessEvent
	if len(b) < processLen {
		return ev, fmt.Errorf("decode process of %d octets: %w", len(b), errShort)
	}
	pathLen, cgroupLen := int(le.Uint16(b[52:])), int(le.Uint16(b[54:]))
	if len(b) < processLen+pathLen+cgroupLen {
		return ev, fmt.Errorf("decode names of a process in %d octets: %w", len(b), errShort)
	}
	switch kindOf(b) {
	case kindExec:
		ev.Kind = flowcache.ProcessExec
	case kindFork:
		ev.Kind = flowcache.ProcessFork
	case kindExit:
		ev.Kind = flowcache.ProcessExit
	case kindMove:
		ev.Kind = flowcache.ProcessMove
	default:
		return ev, fmt.Errorf("decode process: kind %d is not one", kindOf(b))
	}
	ev.Time = clk.time(le.Uint64(b[8:]))
	ev.Parent = flowcache.ProcessID{PID: le.Uint32(b[40:]), Exec: le.Uint32(b[60:]), Start: ticks(le.Uint64(b[24:]))}
	names := b[processLen:]
	ev.Process = flowcache.Process{
		ID:        flowcache.ProcessID{PID: le.Uint32(b[4:]), Exec: le.Uint32(b[56:]), Start: ticks(le.Uint64(b[16:]))},
		CGroup:    le.Uint64(b[32:]),
		UID:       le.Uint32(b[44:]),
		GID:       le.Uint32(b[48:]),
		ParentPID: ev.Parent.PID,
		ParentUID: flowcache.NoID,
		Name:      cString(b[64:80]),
	}
	switch ev.Kind {
	case flowcache.ProcessMove:
		ev.Process.CGroupPath = joinNames(names[:cgroupLen])
	case flowcache.ProcessExec:
		ev.Process.Path = joinNames(names[:pathLen])
		ev.Process.CGroupPath = joinNames(names[pathLen : pathLen+cgroupLen])
	}
	return ev, nil
}

// joinNames makes a path of names that come from the leaf to the root, each ended by a NUL.
func joinNames(b []byte) string {
	path := make([]byte, 0, len(b)+1)
	for len(b) > 0 {
		end := len(b)
		if b[end-1] == 0 {
			end--
		}
		begin := end
		for begin > 0 && b[begin-1] != 0 {
			begin--
		}
		if name := b[begin:end]; len(name) > 0 && string(name) != "/" {
			path = append(path, '/')
			path = append(path, name...)
		}
		b = b[:begin]
	}
	if len(path) == 0 {
		return "/"
	}
	return string(path)
}

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// ticks turns nanoseconds since boot into the clock ticks of /proc/PID/stat (USER_HZ is 100 on every Linux).
func ticks(ns uint64) uint64 { return ns / 10_000_000 }

// conversation is a number that both ends of a connection have and no other: its two initial sequence numbers, which the kernel
// chooses at random and which no NAT changes. 0 if the connection never came to be.
func (r *socketRecord) conversation() uint64 {
	if r.peerSeq == 0 && r.seq == 0 {
		return 0
	}
	return uint64(max(r.seq, r.peerSeq))<<32 | uint64(min(r.seq, r.peerSeq))
}

// observe turns a socket record into an observation.
func (r *socketRecord) observe(o *flowcache.Observation, clk clock, snapshot bool) {
	*o = flowcache.Observation{
		Key: flowcache.Key{
			Src: r.src, Dst: r.dst, SrcPort: r.sport, DstPort: r.dport, Proto: r.proto, NetNS: r.netns,
		},
		Cookie:       r.cookie,
		Conversation: r.conversation(),
		Kernel:       r.flags&flagKernel != 0,
		Time:         clk.time(r.time),
		Role:         flowcache.Role(r.role),
		Origin:       flowcache.OriginEBPF,
		Preexisting:  r.flags&flagBorn == 0,
		Snapshot:     snapshot,
		UID:          flowcache.NoID,
		GID:          flowcache.NoID,
		CGroup:       r.cgroup,
	}
	if r.start != 0 {
		o.First = clk.time(r.start)
	}
	// Of a live connection that was accepted and not used yet it is who holds the socket: one that is only spliced never is (docker-proxy's).
	if r.tgid != 0 {
		o.Process = flowcache.ProcessID{PID: r.tgid, Exec: r.exec, Start: ticks(r.taskStart)}
		o.UID, o.GID = r.uid, r.gid
	}
	state := r.state
	if !snapshot {
		o.Event = flowcache.EventEnd
		state = r.oldState
		switch {
		case state == flowcache.TCPFinWait2 && r.flags&flagFINReceived == 0:
			o.Peer = flowcache.PeerOpen
		case state == flowcache.TCPLastAck || r.err == econnreset || r.err == epipe:
			o.Peer = flowcache.PeerGone
		}
	}
	t := flowcache.TCPTotals{
		BytesSent:     r.bytesSent,
		BytesRetrans:  r.bytesRetrans,
		BytesReceived: r.bytesReceived,
		SegsOut:       uint64(r.segsOut),
		SegsIn:        uint64(r.segsIn),
		Retrans:       uint64(r.retrans),
		HeaderLen:     r.headerLen,
		State:         state,
		IPv4:          r.v4,
		FINReceived:   r.flags&flagFINReceived != 0,
		Accepted:      r.role == uint8(flowcache.RoleResponder) && r.flags&flagBorn != 0,
		Ended:         !snapshot,
		Last:          r.flags&flagFinal != 0,
		SYNRetrans:    uint64(r.synRetrans),
		CookieOut:     r.cookieOut,
		CookieIn:      r.cookieIn,
		Error:         r.err != 0,
	}
	o.Out, o.In = t.Counters()
	o.Header, o.Tail = t.Header(), t.Tail()
	o.ControlOut, o.ControlIn = t.ControlBits()
	if !snapshot {
		r.resets(o, state)
	}
	o.TCP = flowcache.TCPMetrics{
		SRTT: r.srtt >> 3, RTTVar: r.rttvar >> 2, MinRTT: r.minRTT,
		Lost: r.lost, Unacked: r.unacked, CongestionWindow: r.cwnd,
		ConnectTime: r.conn, PacingRate: r.pacing, State: r.state, CongestionControlName: r.ca,
	}
	if r.minRTT == ^uint32(0) {
		o.TCP.MinRTT = 0 // none measured
	}
	if r.interval != 0 {
		o.TCP.DeliveryRate = uint64(r.delivered) * uint64(r.mss) * 1_000_000 / uint64(r.interval)
	}
	if !snapshot && state == flowcache.TCPSynSent {
		o.TCP.ConnectError = r.err
	}
}

// resets adds the reset that ended a connection to the direction that it had. state is the last one before CLOSE.
func (r *socketRecord) resets(o *flowcache.Observation, state uint8) {
	switch {
	case r.err == econnrefused && state == flowcache.TCPSynSent:
		o.ControlIn |= flowcache.FlagRST | flowcache.FlagACK // RFC 9293, 3.10.7.3: the answer to a SYN
		return
	case r.err == econnreset || r.err == epipe: // tcp_reset()
		o.ControlIn |= flowcache.FlagRST
		return
	case r.flags&flagReset != 0:
		o.ControlOut |= flowcache.FlagRST
	}
	switch state {
	case flowcache.TCPEstablished, flowcache.TCPCloseWait, flowcache.TCPSynRecv:
		// Closed without a FIN and with no error of the other side's: aborted here, which sends a reset.
		if r.err == 0 || r.err == econnaborted {
			o.ControlOut |= flowcache.FlagRST
		}
	}
}

const (
	epipe        = 32
	econnaborted = 103
	econnreset   = 104
	etimedout    = 110
	econnrefused = 111
)
