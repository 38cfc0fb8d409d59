package flowcache

// Event is the step in a socket's life that an Observation reports.
type Event uint8

// Events.
const (
	EventUpdate Event = iota // counters of a live socket
	EventEnd                 // final counters: the socket is closed
	EventListen              // Key.Src, Key.SrcPort and Key.NetNS are a listening socket; nothing else counts
	EventClose               // the datagram socket Cookie is closed: every flow of it ends; counters came before
	EventOwner               // the datagram socket Cookie belongs to Process: reported after its first counters
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
	// (its two initial sequence numbers); 0 if the source does not know one: then the addresses pair the sockets.
	Conversation uint64
	Time         int64 // when the counters were true; this and other times are by Now
	First        int64 // begin of the flow, or of the first datagram counted here; 0 unknown

	Event       Event
	Role        Role
	Origin      Origin
	Delta       bool   // counters count since the source's previous observation of the flow; else since the socket's birth
	Preexisting bool   // the socket is older than the metering: its first counters are the baseline and not counted
	Snapshot    bool   // read in a pass over all sockets, and so perhaps older than an event that came before
	Peer        Peer   // of an EventEnd: what this end knows of the other
	Audit       bool   // read to check another source: a flow that it makes was missed by that
	ControlOut  uint16 // tcpControlBits that the socket's life proves of what it sent
	ControlIn   uint16 // and of what it received

	Process ProcessID // owner; PID 0 when not known (or owned by the kernel)
	Kernel  bool      // the socket belongs to the kernel itself
	UID     uint32    // effective user, host user namespace; NoID when not known
	GID     uint32    // NoID when not known
	CGroup  uint64    // cgroup2 id; 0 unknown
	Inode   uint32    // socket inode, by which /proc/PID/fd names the owner where Process does not; 0 unknown

	// Path is how this host translates the addresses of the flow, where the source sees that; else zero. What else is on the way is not in it.
	Path Path

	Out, In Counters // from Src to Dst, and back
	// Header is not 0 where packets are the kernel's count of TCP segments, which has 32 bits: octets of the headers of each.
	Header uint16
	// Tail: of an EventEnd, the socket closed first and was gone before the other end's FIN. That and its acknowledgement are not in Out and In.
	Tail bool
	TCP  TCPMetrics
}

// ProcessEvent is a step in the life of a process, in the order in which the kernel reported it.
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
