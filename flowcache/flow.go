package flowcache

import (
	"net/netip"
)

// Protocol numbers (IANA protocolIdentifier) that the cache itself tells apart.
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
	NetNS            uint32
}

// Reverse returns the key as the other end sees it.
func (k Key) Reverse() Key {
	k.Src, k.Dst = k.Dst, k.Src
	k.SrcPort, k.DstPort = k.DstPort, k.SrcPort
	return k
}

// Is4 reports whether the flow is an IPv4 flow.
func (k Key) Is4() bool { return k.Src.Is4() && k.Dst.Is4() }

// ProcessID names a process for good: the thread group id in the host's PID namespace and its start time, which
// guards against PID reuse.
type ProcessID struct {
	PID   uint32
	Start uint64 // clock ticks (1/100 s) since boot, as field 22 of /proc/PID/stat
}

// NoID is the user or group id of an owner that is not known (the kernel's overflow "-1").
const NoID = ^uint32(0)

// Role says who began the conversation, as the local end of a socket sees it.
type Role uint8

// Roles.
const (
	RoleUnknown   Role = iota // the socket existed before the start, and nothing tells
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

// EndReason is flowEndReason(136) of the IANA registry (RFC 5102, section 5.11.3).
type EndReason uint8

// End reasons.
const (
	EndIdle     EndReason = 1
	EndActive   EndReason = 2
	EndDetected EndReason = 3
	EndForced   EndReason = 4
	EndLack     EndReason = 5
)

func (e EndReason) String() string {
	if e == 0 || int(e) >= len(endNames) {
		return "unknown"
	}
	return endNames[e]
}

var endNames = [...]string{"", "idle", "active", "end", "forced", "lack"}

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
)

// Counters of one direction of a flow.
type Counters struct {
	Payload        uint64 // octets of the application: transportOctetDeltaCount
	Octets         uint64 // octets of the IP layer: octetDeltaCount
	Packets        uint64 // IP packets: packetDeltaCount
	RetransPackets uint64 // retransmitted segments
	RetransOctets  uint64 // retransmitted payload octets
}

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

// Event is what an Observation tells of a socket's life.
type Event uint8

// Events.
const (
	EventUpdate Event = iota // counters of a live socket
	EventEnd                 // final counters: the socket is closed
	EventListen              // Key.Src, Key.SrcPort and Key.NetNS are a listening socket; nothing else counts
	EventClose               // the datagram socket Cookie is closed: every flow of it ends; counters came before
	EventOwner               // the datagram socket Cookie belongs to Process: told after its first counters
)

// Peer is what an end of a connection knows, when it ends, of the other end's socket.
type Peer uint8

// The other end's socket.
const (
	PeerUnknown Peer = iota // ends soon, or has: it may wait for an acknowledgement that is lost, or does not know of a reset
	PeerGone                // ends at the same time (the last ACK may overtake it) or has
	PeerOpen                // had not closed
)

// Observation is one view of one socket (or of a packet's flow), by one source. It is pointer-free.
type Observation struct {
	Key    Key    // Src is the local end
	Cookie uint64 // socket cookie (sock_gen_cookie), the same from eBPF and sock_diag; 0 where there is no socket
	// Conversation is a number that both sockets of a connection have in common and no other has, whatever addresses they see
	// (its two initial sequence numbers); 0 if the source does not know one, and then the addresses must tell.
	Conversation uint64
	Time         int64 // when the counters were true
	First        int64 // begin of the flow, or of the first datagram counted here; 0 unknown

	Event       Event
	Role        Role
	Origin      Origin
	Delta       bool  // counters count since the source's previous observation of the flow; else since the socket's birth
	Preexisting bool  // the socket is older than the metering: its first counters are the baseline and not counted
	Snapshot    bool  // read in a pass over all sockets, and so perhaps older than an event that came before
	Peer        Peer  // of an EventEnd: what this end knows of the other
	Audit       bool  // read to check another source: a flow that it makes was missed by that
	Control     uint8 // tcpControlBits that the socket's life proves

	Process ProcessID // owner; PID 0 when not known (or owned by the kernel)
	Kernel  bool      // the socket belongs to the kernel itself
	UID     uint32    // effective user, host user namespace; NoID when not known
	GID     uint32    // NoID when not known
	CGroup  uint64    // cgroup2 id; 0 unknown
	Inode   uint32    // socket inode, by which /proc/PID/fd names the owner where Process does not; 0 unknown

	Out, In Counters // from Src to Dst, and back
	// Header is not 0 where packets are the kernel's count of TCP segments, which has 32 bits: octets of the headers of each.
	Header uint16
	TCP    TCPMetrics
}

// End is one end of a flow, where it is on this host. Local is false for an end elsewhere; nil pointers are facts
// that are not known (yet).
type End struct {
	Local     bool
	Kernel    bool // the socket belongs to the kernel itself: there is no process
	Process   ProcessID
	UID, GID  uint32 // NoID when not known
	CGroup    uint64
	NetNS     uint32
	Cookie    uint64
	Who       *Process  // filled by enrich
	Container *Workload // filled by enrich; of an end elsewhere (not Local) what is known of its address
	Service   string    // Kubernetes service (namespace/name) that the end was spoken to as; filled by enrich
	Node      string    // Kubernetes node of an end elsewhere; filled by enrich
}

// Process holds the facts of a process. It is immutable once published: records share it.
type Process struct {
	ID          ProcessID
	Path        string // executable, as the process sees it
	Name        string // comm
	CommandLine string // only with --cmdline
	StartTime   int64  // Unix nanoseconds; resolution 10 ms
	UID, GID    uint32 // effective; NoID when not known
	UserName    string
	ParentPID   uint32
	ParentPath  string
	ParentUID   uint32 // NoID when not known
	CGroup      uint64 // cgroup2 id, 0 unknown
	CGroupPath  string // below the cgroup2 root, begins with a slash
}

// Workload is what a control group stands for: a container (with its pod), or a systemd unit. It is immutable once published.
type Workload struct {
	CGroupPath       string
	ContainerID      string
	ContainerName    string
	ContainerImage   string
	ContainerRuntime string // containerd, docker, cri-o, podman
	PodName          string
	PodNamespace     string
	PodUID           string
	PodLabels        string // key=value, comma separated
	ServiceUnit      string // systemd unit, where there is no container
}

// Record is a Flow Record: what happened in a flow since its previous record.
type Record struct {
	Key        Key // Src is the initiator
	Start, End int64
	EndReason  EndReason
	Arbitrary  bool // who began is not known: Src is the local end (biflowDirection 0)
	Final      bool // the last record of its flow
	Origin     Origin
	Control    uint8
	Forward    Counters // from Src to Dst
	Reverse    Counters // from Dst to Src
	HasTCP     bool     // TCP is filled
	TCP        TCPMetrics
	Source     End         // at Src
	Dest       End         // at Dst
	Post       Translation // what Key becomes on the way to the other end
	Pre        Translation // what Key was before, where only the end beyond the translation is here
	// Totals of both directions as the sockets have them now: since their birth, or since the flow began where a source counts differences.
	ForwardTotal, ReverseTotal Counters
	// TCP segments, forward and reverse, that others had overtaken; known of packets only.
	Reordered, ReverseReordered uint64
}

// Translation is a flow's addresses before or after network address translation; the latter are postNAT... and postNAPT... of the IANA
// registry. The zero value says that nothing was translated, or that nobody knows.
type Translation struct {
	Src, Dst         Addr
	SrcPort, DstPort uint16
}

// Translation returns the addresses and ports of k.
func (k Key) Translation() Translation { return Translation{k.Src, k.Dst, k.SrcPort, k.DstPort} }

// Path is what the two ends of a flow see of its addresses, with address translation (NAT) between them: Near at the end that
// began, Far at the other. Both are from the beginner to the other end, and in no namespace.
type Path struct{ Near, Far Key }

// beyond returns k, one end's view, as the other end has it, in k's direction.
func (p *Path) beyond(k Key) Key {
	if k.NetNS = 0; k == p.Near {
		return p.Far
	}
	return p.Near.Reverse()
}

// InterfaceCounters of one direction, since the interface exists (struct rtnl_link_stats64).
type InterfaceCounters struct {
	Octets, Packets, Errors, Drops uint64
}

// Interface is the state and the counters of a network interface at one time. Records share Container; nobody changes it.
type Interface struct {
	NetNS     uint32 // inode of its network namespace
	Index     uint32 // in that namespace
	Name      string
	Type      uint16 // ARPHRD_..., as ifi_type
	Kind      string // veth, bridge, vxlan, ...; empty for hardware
	Up        bool
	MTU       uint32
	Time      int64 // when the counters were true
	In, Out   InterfaceCounters
	Container *Workload // behind a veth or in the namespace; nil if none
}

// ProcessEvent is a step in the life of a process, in the order the kernel told it.
type ProcessEvent struct {
	Kind    ProcessKind
	Process Process   // Path only with ProcessExec, CGroupPath with that and ProcessMove
	Parent  ProcessID // of ProcessFork and ProcessExec
	Time    int64
}

// ProcessKind is the step.
type ProcessKind uint8

// Steps.
const (
	ProcessExec ProcessKind = iota // the process runs a (new) executable: all facts
	ProcessFork                    // a new process with its parent's executable: ID, Parent, CGroup
	ProcessExit                    // the process is gone: ID
	ProcessMove                    // the process was put into another control group: ID, CGroup, CGroupPath
)

// Batch is what a source hands over at once: process events, which come before the observations that need them.
type Batch struct {
	Processes    []ProcessEvent
	Observations []Observation
	// SnapshotDone marks the end of a pass over all sockets: what comes later was read later.
	SnapshotDone bool
	// Swept is when a pass began that saw every TCP socket there is, and ends with this batch; else 0. Connections that it did not
	// show are gone.
	Swept int64
	Audit bool // Swept is that of an audit, which checks what another source tells
}

// Reset empties b and keeps its memory.
func (b *Batch) Reset() {
	clear(b.Processes) // let go of strings
	b.Processes, b.Observations, b.SnapshotDone, b.Swept, b.Audit = b.Processes[:0], b.Observations[:0], false, 0, false
}

// BatchLen is the number of observations after which a source should hand over a batch.
const BatchLen = 512

// Batches is a free list of batches that sources fill and the cache loop returns, so that a steady flow of
// observations allocates nothing. Its zero value (nil) allocates every batch.
type Batches chan *Batch

// Get returns an empty batch.
func (p Batches) Get() *Batch {
	select {
	case b := <-p:
		return b
	default:
		return &Batch{Observations: make([]Observation, 0, BatchLen)}
	}
}

// Put takes a batch back.
func (p Batches) Put(b *Batch) {
	b.Reset()
	select {
	case p <- b:
	default:
	}
}
