package flowcache

import "net/netip"

// Protocol numbers (IANA protocolIdentifier) that the cache distinguishes.
const (
	ProtoTCP     = 6
	ProtoUDP     = 17
	ProtoUDPLite = 136
)

// Addr is an IPv6 address, or an IPv4 address in IPv4-mapped form. It is comparable and pointer-free, which a
// netip.Addr is not: as a map key it costs 45 ns against 71 ns a lookup.
type Addr [16]byte

// AddrFrom4 returns the IPv4-mapped form of an IPv4 address given in network byte order.
func AddrFrom4(b [4]byte) Addr {
	return Addr{10: 0xff, 11: 0xff, 12: b[0], 13: b[1], 14: b[2], 15: b[3]}
}

// Is4 reports whether a is an IPv4 address in IPv4-mapped form.
func (a Addr) Is4() bool {
	return a[10] == 0xff && a[11] == 0xff && [10]byte(a[:10]) == [10]byte{}
}

// IsUnspecified reports whether a is 0.0.0.0 or ::.
func (a Addr) IsUnspecified() bool {
	return a == Addr{} || a == Addr{10: 0xff, 11: 0xff}
}

// Netip returns a as a netip.Addr, IPv4 unmapped.
func (a Addr) Netip() netip.Addr { return netip.AddrFrom16(a).Unmap() }

// IsLoopback reports whether a is in 127.0.0.0/8 or is ::1.
func (a Addr) IsLoopback() bool {
	return a.Is4() && a[12] == 127 || a == Addr{15: 1}
}

// IsMulticast reports whether a is a multicast address or the limited broadcast address: one that stands for many ends.
func (a Addr) IsMulticast() bool {
	if a.Is4() {
		return a[12]>>4 == 14 || [4]byte(a[12:]) == [4]byte{255, 255, 255, 255}
	}
	return a[0] == 0xff
}

// Key is the Flow Key: the 5-tuple and the network namespace (its inode number, as in readlink /proc/PID/ns/net).
// Two pods that both use 127.0.0.1:8080 are two flows. In an Observation of a socket, Src is the local end; in a
// Record, Src is the initiator.
type Key struct {
	Src, Dst         Addr
	SrcPort, DstPort uint16
	Proto            uint8
	Mapped           bool // IPv6 packets between IPv4-mapped addresses; a socket's IPv4-mapped addresses are IPv4
	NetNS            uint32
}

// Reverse returns the key as the other end sees it.
func (k Key) Reverse() Key {
	k.Src, k.Dst = k.Dst, k.Src
	k.SrcPort, k.DstPort = k.DstPort, k.SrcPort
	return k
}

// Is4 reports whether the flow is an IPv4 flow.
func (k Key) Is4() bool { return k.Src.Is4() && k.Dst.Is4() && !k.Mapped }

// Netip returns both addresses, IPv4-mapped ones unmapped if the flow is IPv4.
func (k Key) Netip() (src, dst netip.Addr) {
	src, dst = netip.AddrFrom16(k.Src), netip.AddrFrom16(k.Dst)
	if k.Is4() {
		src, dst = src.Unmap(), dst.Unmap()
	}
	return src, dst
}

// ProcessID names a process for good: the thread group id in the host's PID namespace and its start time, which
// guards against PID reuse.
type ProcessID struct {
	PID   uint32
	Exec  uint32 // which of the programs that it ran one after the other (task_struct.self_exec_id); 0 where a source does not know
	Start uint64 // clock ticks (1/100 s) since boot, as field 22 of /proc/PID/stat
}

// AnyProgram returns the process whatever program it runs.
func (p ProcessID) AnyProgram() ProcessID {
	p.Exec = 0
	return p
}

// NoID is the user or group id of an owner that is not known (the kernel's overflow "-1").
const NoID = ^uint32(0)

// Role says who began the conversation, as the local end of a socket sees it.
type Role uint8

// Roles.
const (
	RoleUnknown   Role = iota // the socket existed before the start, and no source knows its role
	RoleInitiator             // the local end called connect() or sent first
	RoleResponder             // the local end accepted, or was sent to first
)

// Origin is the kind of source (Information Element observationSource).
type Origin uint8

// Origins.
const (
	OriginEBPF    Origin = 1
	OriginNetlink Origin = 2
	OriginPackets Origin = 3
)

// TCP states, Linux numbering (include/net/tcp_states.h), which sock_diag and the tracepoints use.
const (
	TCPEstablished = 1
	TCPSynSent     = 2
	TCPSynRecv     = 3
	TCPFinWait1    = 4
	TCPFinWait2    = 5
	TCPTimeWait    = 6
	TCPClose       = 7
	TCPCloseWait   = 8
	TCPLastAck     = 9
	TCPListen      = 10
	TCPClosing     = 11
)

// Bits of tcpControlBits(6).
const (
	FlagFIN = 1 << iota
	FlagSYN
	FlagRST
	FlagPSH
	FlagACK
	FlagURG
	FlagECE
	FlagCWR
	FlagNS // RFC 3540; AE of RFC 9768
)

// flagsOnce are sent with the first segment of a direction, or with its last: one record has them.
const flagsOnce = FlagSYN | FlagFIN

// TCPMetrics are gauges of a TCP socket at its last observation. Times in microseconds, rates in octets per second.
type TCPMetrics struct {
	SRTT, RTTVar, MinRTT  uint32
	Lost, Unacked         uint32
	CongestionWindow      uint32
	ConnectTime           uint32 // SYN to ESTABLISHED; 0 unknown
	DeliveryRate          uint64
	PacingRate            uint64
	ConnectError          uint16 // errno of a failed connect, 0
	State                 uint8  // Linux numbering
	CongestionControlName [16]byte
}
