package flowcache

// TCPTotals are the raw counters of a TCP socket since its birth, as struct tcp_sock and tcp_info (RFC 4898 names in the
// kernel's comments) have them. Both socket sources read them; this is the one place that turns them into Counters.
type TCPTotals struct {
	BytesSent     uint64 // payload, retransmissions included; neither SYN nor FIN
	BytesRetrans  uint64 // payload retransmitted
	BytesReceived uint64 // payload in order; a FIN counts as one octet
	SegsOut       uint64 // segments sent, GSO counted by segment
	SegsIn        uint64
	Retrans       uint64 // segments retransmitted
	HeaderLen     uint16 // TCP header with the options of every segment: 20, or 32 with timestamps
	State         uint8  // Linux numbering; at the end the state before CLOSE
	IPv4          bool
	FINReceived   bool
	Accepted      bool   // the socket is the child of a listener
	Ended         bool   // these are the final counters
	Last          bool   // of an ended socket: the segments that it sent last, a reset say, are among them
	SYNRetrans    uint64 // of Retrans, as far as that is known
	CookieOut     uint8  // octets of the Fast Open option in the SYN sent
	CookieIn      uint8  // and in the SYN received
	Error         bool   // of an ended socket: it ended by an error (reset by the peer, timed out)
}

// finReceived reports whether the peer's FIN is in BytesReceived.
func (t *TCPTotals) finReceived() bool {
	return t.FINReceived || t.State == TCPCloseWait || t.State == TCPLastAck || t.State == TCPClosing || t.State == TCPTimeWait
}

// Header returns the octets of the headers of a segment, IP and TCP.
func (t *TCPTotals) Header() uint16 {
	header := t.HeaderLen
	if header < 20 {
		header = 32
	}
	if t.IPv4 {
		return header + 20
	}
	return header + 40
}

// bareHeader returns the octets of the headers of a segment without options.
func (t *TCPTotals) bareHeader() uint64 {
	if t.IPv4 {
		return 20 + 20
	}
	return 40 + 20
}

// Counters returns the counters of both directions.
//
// Payload is exact. IP octets are computed: payload and retransmissions, plus the headers of every segment. What the socket
// does not count is added, and was found by comparison with captures: the SYN-ACK of an accepted connection, which the request
// socket sent (its SYN is counted); the longer options of a SYN; for an end that aborts, the RST, sent after the end.
// Not seen at all is payload that arrives for a closed socket. What a TIME_WAIT socket handles is Tail.
func (t *TCPTotals) Counters() (out, in Counters) {
	const synOptions = 8 // MSS, SACK permitted, window scale and padding, beside the timestamps

	header := uint64(t.Header())
	received := t.BytesReceived
	if received > 0 && t.finReceived() {
		received--
	}
	out = Counters{Payload: t.BytesSent - min(t.BytesRetrans, t.BytesSent), Packets: t.SegsOut, RetransPackets: t.Retrans, RetransOctets: t.BytesRetrans}
	in = Counters{Payload: received, Packets: t.SegsIn}
	if t.Accepted {
		out.Packets++
	}
	if t.Ended && !t.Error {
		switch t.State {
		case TCPEstablished, TCPSynRecv, TCPCloseWait:
			if !t.Last {
				out.Packets++
			}
		}
	}
	out.Octets = t.BytesSent + out.Packets*header
	in.Octets = received + in.Packets*header
	switch {
	case t.State == TCPSynSent:
		out.Octets += out.Packets * synOptions
		in.Octets -= in.Packets * (header - t.bareHeader()) // a reset has no options
	case out.Packets > 0:
		out.Octets += (1 + t.SYNRetrans) * synOptions
	}
	if in.Packets > 0 && t.State != TCPSynSent {
		in.Octets += synOptions + uint64(t.CookieIn)
	}
	if out.Packets > 0 {
		out.Octets += uint64(t.CookieOut)
	}
	return out, in
}

// Tail reports whether the connection's own socket was gone before the other end closed: a TIME_WAIT socket waits for its FIN and acknowledges
// that, a packet each way. It may wait in vain, or meet a reset; who knows is the other end.
func (t *TCPTotals) Tail() bool {
	return t.Ended && !t.Error && t.State == TCPFinWait2 && !t.FINReceived
}

// ControlBits returns the tcpControlBits of both directions that a connection in this state proves: PSH with payload, the rest by the
// state. A direction has the peer's FIN as well where Counters counts it.
func (t *TCPTotals) ControlBits() (out, in uint16) {
	switch t.State {
	case TCPSynSent:
		return FlagSYN, 0
	case TCPSynRecv: // with Fast Open there is a socket before the handshake is over
		out, in = FlagSYN|FlagACK, FlagSYN
	default:
		out, in = FlagSYN|FlagACK, FlagSYN|FlagACK
	}
	if t.BytesSent > 0 {
		out |= FlagPSH
	}
	if t.BytesReceived > 1 || t.BytesReceived == 1 && !t.finReceived() {
		in |= FlagPSH
	}
	switch t.State {
	case TCPFinWait1, TCPFinWait2, TCPLastAck, TCPClosing, TCPTimeWait:
		out |= FlagFIN
	}
	if t.finReceived() || t.Ended && !t.Error && t.State == TCPFinWait2 {
		in |= FlagFIN
	}
	return out, in
}
