package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/sockflow/sockflow/flowcache"
)

// Numbers of include/uapi/linux/{netlink,sock_diag,inet_diag,tcp}.h.
const (
	netlinkSockDiag  = 4
	sockDiagByFamily = 20

	nlmsgError = 2
	nlmsgDone  = 3

	nlmsgHeader = 16
	nlattHeader = 4
	requestLen  = 56 // struct inet_diag_req_v2
	messageLen  = 72 // struct inet_diag_msg

	attrInfo     = 2
	attrCong     = 4
	attrProtocol = 10
	attrCGroup   = 21

	extInfo = 1 << (attrInfo - 1)
	extCong = 1 << (attrCong - 1)

	optTimestamps = 1 // tcpi_options
	tcpInfoLen    = 216

	afInet  = 2
	afInet6 = 10

	// Every state that has a full socket: not TIME_WAIT(6), CLOSE(7), LISTEN(10), NEW_SYN_RECV(12).
	statesLive   = 1<<flowcache.TCPEstablished | 1<<flowcache.TCPSynSent | 1<<flowcache.TCPSynRecv | 1<<flowcache.TCPFinWait1 | 1<<flowcache.TCPFinWait2 | 1<<flowcache.TCPCloseWait | 1<<flowcache.TCPLastAck | 1<<flowcache.TCPClosing
	statesListen = 1 << flowcache.TCPListen
	statesAny    = 0xfff
)

// ne is the byte order of netlink: the host's.
var ne = binary.NativeEndian

var (
	errDone      = errors.New("end of dump")
	errTruncated = errors.New("netlink message is cut")
)

// socket is the contents of a struct inet_diag_msg and its attributes. It holds no pointer into the buffer.
type socket struct {
	family, state, proto uint8
	src, dst             flowcache.Addr
	sport, dport         uint16
	cookie, cgroup       uint64
	uid, inode           uint32
	info                 [tcpInfoLen]byte // zero-filled: older kernels send less
	hasInfo              bool
	cong                 [16]byte
}

// messages calls f for each netlink message of a datagram. It returns errDone at the end of a dump, the kernel's error as a
// syscall.Errno, what f returns, and never reads beyond b.
func messages(b []byte, f func(kind uint16, body []byte) error) error {
	for len(b) >= nlmsgHeader {
		length, kind := int(ne.Uint32(b)), ne.Uint16(b[4:])
		if length < nlmsgHeader || length > len(b) {
			return errTruncated
		}
		body := b[nlmsgHeader:length]
		b = b[min(align(length), len(b)):]
		switch kind {
		case nlmsgDone:
			return errDone
		case nlmsgError:
			if len(body) < 4 {
				return errTruncated
			}
			if code := int32(ne.Uint32(body)); code != 0 {
				return syscall.Errno(-code)
			}
		default:
			if err := f(kind, body); err != nil {
				return err
			}
		}
	}
	if len(b) != 0 {
		return errTruncated
	}
	return nil
}

// walk calls f for each socket of a datagram, with the errors of messages.
func walk(b []byte, s *socket, f func(*socket)) error {
	return messages(b, func(kind uint16, body []byte) error {
		if kind != sockDiagByFamily {
			return nil
		}
		if err := s.parse(body); err != nil {
			return err
		}
		f(s)
		return nil
	})
}

// attributes calls f for each struct nlattr of b. It returns errTruncated for one that does not fit.
func attributes(b []byte, f func(kind uint16, v []byte) error) error {
	for len(b) >= nlattHeader {
		length, kind := int(ne.Uint16(b)), ne.Uint16(b[2:])&0x3fff
		if length < nlattHeader || length > len(b) {
			return fmt.Errorf("attribute %d: %w", kind, errTruncated)
		}
		if err := f(kind, b[nlattHeader:length]); err != nil {
			return err
		}
		b = b[min(align(length), len(b)):]
	}
	return nil
}

func align(n int) int { return (n + 3) &^ 3 }

// parse reads a message and its attributes in place.
func (s *socket) parse(b []byte) error {
	if len(b) < messageLen {
		return fmt.Errorf("inet_diag_msg of %d octets: %w", len(b), errTruncated)
	}
	*s = socket{family: b[0], state: b[1]}
	s.sport, s.dport = binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
	if s.family == afInet {
		s.src, s.dst = flowcache.AddrFrom4([4]byte(b[8:])), flowcache.AddrFrom4([4]byte(b[24:]))
	} else {
		s.src, s.dst = flowcache.Addr(b[8:24]), flowcache.Addr(b[24:40])
	}
	s.cookie = uint64(ne.Uint32(b[44:])) | uint64(ne.Uint32(b[48:]))<<32
	s.uid, s.inode = ne.Uint32(b[64:]), ne.Uint32(b[68:])
	return attributes(b[messageLen:], func(kind uint16, v []byte) error {
		switch kind {
		case attrInfo:
			s.hasInfo = len(v) >= 104 // up to tcpi_total_retrans, which every kernel has
			copy(s.info[:], v)
		case attrCong:
			copy(s.cong[:15], v)
		case attrProtocol:
			if len(v) > 0 {
				s.proto = v[0]
			}
		case attrCGroup:
			if len(v) >= 8 {
				s.cgroup = ne.Uint64(v)
			}
		}
		return nil
	})
}

// appendRequest appends a dump request (struct inet_diag_req_v2) without its netlink header.
func appendRequest(b []byte, family, proto uint8, states uint32) []byte {
	b = append(b, family, proto, extInfo|extCong, 0)
	b = ne.AppendUint32(b, states)
	return append(b, make([]byte, requestLen-8)...)
}

func (s *socket) info32(at int) uint32 { return ne.Uint32(s.info[at:]) }
func (s *socket) info64(at int) uint64 { return ne.Uint64(s.info[at:]) }

// observe turns the socket into an observation of the namespace.
func (s *socket) observe(o *flowcache.Observation, netns uint32, now int64) {
	*o = flowcache.Observation{
		Key:    flowcache.Key{Src: s.src, Dst: s.dst, SrcPort: s.sport, DstPort: s.dport, Proto: s.proto, NetNS: netns},
		Cookie: s.cookie,
		Time:   now,
		Origin: flowcache.OriginNetlink,
		UID:    s.uid,
		GID:    flowcache.NoID,
		CGroup: s.cgroup,
		Inode:  s.inode,
	}
	if s.inode == 0 && s.uid == 0 {
		// No process has it any more, or none yet (struct sock without a struct socket, or a TIME_WAIT one): the
		// kernel then writes 0, whoever it was.
		o.UID = flowcache.NoID
	}
	if s.proto == flowcache.ProtoTCP {
		o.TCP.State = s.state
	}
}

// tcp adds the counters and gauges of tcp_info.
func (s *socket) tcp(o *flowcache.Observation, t *flowcache.TCPTotals) {
	if !s.hasInfo {
		return
	}
	t.BytesSent, t.BytesRetrans = s.info64(200), s.info64(208)
	t.BytesReceived = s.info64(128)
	t.SegsOut, t.SegsIn = uint64(s.info32(136)), uint64(s.info32(140))
	t.Retrans = uint64(s.info32(100))
	t.HeaderLen = 20
	if s.info[5]&optTimestamps != 0 {
		t.HeaderLen = 32
	}
	t.IPv4 = s.dst.Is4()
	if s.info32(152) == 0 && t.BytesReceived <= 1 {
		t.BytesReceived = 0 // no segment had data: it is the FIN
	}
	o.Out, o.In = t.Counters()
	o.Header = t.Header()
	o.ControlOut, o.ControlIn = t.ControlBits()
	o.TCP = flowcache.TCPMetrics{
		SRTT: s.info32(68), RTTVar: s.info32(72), MinRTT: s.info32(148),
		Lost: s.info32(32), Unacked: s.info32(24), CongestionWindow: s.info32(80),
		PacingRate: s.info64(104), DeliveryRate: s.info64(160),
		State: s.state, CongestionControlName: s.cong,
	}
	if o.TCP.MinRTT == ^uint32(0) {
		o.TCP.MinRTT = 0
	}
}
