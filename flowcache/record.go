package flowcache

import "slices"

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

var endNames = [...]string{"", "idle", "active", "end", "forced", "lack"}

func (e EndReason) String() string {
	if e == 0 || int(e) >= len(endNames) {
		return "unknown"
	}
	return endNames[e]
}

// End is one end of a flow, where it is on this host. Local is false for an end elsewhere; nil pointers are facts
// that are not known (yet).
type End struct {
	Local     bool
	Kernel    bool    // the socket belongs to the kernel itself: there is no process
	NamedBy   NamedBy // what Container is known by; filled by enrich
	NamedLate bool    // names came after a record of the same control group had left without them; filled by enrich
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

// NamedBy says what a container or pod is known by. Its numbers are those of sourceNamedBy and destinationNamedBy.
type NamedBy uint8

// What a name comes from. Where two sources agree the first of these that holds.
const (
	NamedByNothing     NamedBy = iota
	NamedByRuntime             // the runtime says that this control group is the container's
	NamedByCGroup              // the control group's path alone: an id, and no name
	NamedByUID                 // the pod's UID in the control group's path, which Kubernetes knows
	NamedByAddress             // the runtime: the container or pod had the address, or the published port, when the flow began
	NamedByKubeAddress         // Kubernetes: the pod or node had the address when the flow began
)

var namedBy = [...]string{"", "runtime", "cgroup", "uid", "address", "kubernetes-address"}

// NamedByOf returns what String gives s; of what it never gives NamedByNothing.
func NamedByOf(s string) NamedBy { return NamedBy(max(0, slices.Index(namedBy[:], s))) }

// String is the name in JSON; "" of NamedByNothing.
func (n NamedBy) String() string { return namedBy[min(int(n), len(namedBy)-1)] }

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
	Key         Key // Src is the initiator
	Start, End  int64
	Began       int64 // when the flow began, of which this may be a later record; 0: not known
	EndReason   EndReason
	Arbitrary   bool // who began is not known: Src is the local end (biflowDirection 0)
	First       bool // the first record of its flow
	Final       bool // the last one
	Origin      Origin
	Control     uint16   // tcpControlBits from Src to Dst
	ControlBack uint16   // and from Dst to Src
	Forward     Counters // from Src to Dst
	Reverse     Counters // from Dst to Src
	HasTCP      bool     // TCP is filled
	TCP         TCPMetrics
	Source      End         // at Src
	Dest        End         // at Dst
	Post        Translation // what Key becomes on the way to the other end
	Pre         Translation // what Key was before, where only the end beyond the translation is here
	Flows       uint64      // of an aggregate: the flows of which a first record is in it; else 0
	FlowsBack   uint64      // and those in which something came back, for the record of that direction alone
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
