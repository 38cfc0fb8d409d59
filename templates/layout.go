package templates

import "github.com/sockflow/sockflow/flowcache"

// context is what values are made of beside the record.
type context struct {
	node   string
	uptime int64 // Unix nanoseconds at which sysUptime was 0 (NetFlow v9)

	programs bool // Options.Programs

	opposite *flowcache.Record // the record of the other direction, if records are uniflows

	congestion congestionNames
}

// field is an element as flow records have it: in which kinds, and how its value is found. One of number, text and address is set.
type field struct {
	element *Element
	name    string
	in      func(kind) bool
	on      presence
	key     bool // it is a Flow Key

	number  func(*context, *flowcache.Record) uint64
	text    func(*context, *flowcache.Record) string
	address func(*flowcache.Record) *flowcache.Addr
	node    func(kind) bool // in these kinds text is always this node's name
}

// presence says when a field is in the templates that it fits.
type presence uint8

const (
	always      presence = iota
	commandLine          // with Options.CommandLine
	aggregates           // with Options.Aggregates
	ianaOnly             // in the dialect iana
	application          // in the dialect iana, or with Options.Programs
	v9Only
	notV9
	biflow
	padding // with Options.Padding
)

func anyKind(kind) bool  { return true }
func isV4(k kind) bool   { return !k.v6() }
func isV6(k kind) bool   { return k.v6() }
func isTCP(k kind) bool  { return k.class() == classTCP }
func hasNAT(k kind) bool { return k.nat() }

func hasPorts(k kind) bool  { return k.class() <= classPorts }
func bothLocal(k kind) bool { return k.source() >= endKernel && k.dest() >= endKernel }

func forward(r *flowcache.Record) *flowcache.Counters { return &r.Forward }
func reverse(r *flowcache.Record) *flowcache.Counters { return &r.Reverse }

// local returns the counters of what the local end sent, or the source if both are local: retransmissions are known of it alone.
func local(r *flowcache.Record) *flowcache.Counters {
	if r.Dest.Local && !r.Source.Local {
		return &r.Reverse
	}
	return &r.Forward
}

func localEnd(r *flowcache.Record) *flowcache.End {
	if r.Source.Local {
		return &r.Source
	}
	return &r.Dest
}

// packetsOnly holds for TCP of which neither end is here: it was metered by packets, which show both directions alike.
func packetsOnly(k kind) bool { return isTCP(k) && k.source() < endKernel && k.dest() < endKernel }

// bothSeen holds for TCP where what each end sent again is known.
func bothSeen(k kind) bool { return isTCP(k) && bothLocal(k) || packetsOnly(k) }

// icmp is type * 256 + code of the question. The cache keeps it in the port of the end that is spoken to; the other port is 0.
func icmp(r *flowcache.Record) uint64 { return uint64(r.Key.SrcPort | r.Key.DstPort) }

// portApplication is applicationId (RFC 6759, section 4.1): engine 3, IANA's port numbers, and the responder's port as the selector.
func portApplication(port uint16) uint32 { return 3<<24 | uint32(port) }

// station is virtualStationName: the pod, or else the container.
func station(w *flowcache.Workload) string {
	switch {
	case w.PodName != "":
		return w.PodName
	case w.ContainerName != "":
		return w.ContainerName
	}
	return w.ContainerID
}

func number(name string, in func(kind) bool, f func(r *flowcache.Record) uint64) field {
	return field{name: name, in: in, number: func(_ *context, r *flowcache.Record) uint64 { return f(r) }}
}

func address(name string, in func(kind) bool, f func(r *flowcache.Record) *flowcache.Addr) field {
	return field{name: name, in: in, address: f}
}

func (f field) when(p presence) field { f.on = p; return f }
func (f field) asKey() field          { f.key = true; return f }

// flowFields lists the fields of flow records in the order they have in templates: those of fixed length first, so that a record
// needs room for them only once; next to one another what a run (run.go) writes at once.
func flowFields() []field {
	l := []field{
		address("sourceIPv4Address", isV4, func(r *flowcache.Record) *flowcache.Addr { return &r.Key.Src }).asKey(),
		address("destinationIPv4Address", isV4, func(r *flowcache.Record) *flowcache.Addr { return &r.Key.Dst }).asKey(),
		address("sourceIPv6Address", isV6, func(r *flowcache.Record) *flowcache.Addr { return &r.Key.Src }).asKey(),
		address("destinationIPv6Address", isV6, func(r *flowcache.Record) *flowcache.Addr { return &r.Key.Dst }).asKey(),
		number("sourceTransportPort", hasPorts, func(r *flowcache.Record) uint64 { return uint64(r.Key.SrcPort) }).asKey(),
		number("destinationTransportPort", hasPorts, func(r *flowcache.Record) uint64 { return uint64(r.Key.DstPort) }).asKey(),
		number("icmpTypeCodeIPv4", func(k kind) bool { return k.class() == classICMP && !k.v6() }, icmp).asKey(),
		number("icmpTypeCodeIPv6", func(k kind) bool { return k.class() == classICMP && k.v6() }, icmp).asKey(),
		number("protocolIdentifier", anyKind, func(r *flowcache.Record) uint64 { return uint64(r.Key.Proto) }).asKey(),
		number("flowEndReason", anyKind, func(r *flowcache.Record) uint64 { return uint64(r.EndReason) }),
		{name: "biflowDirection", in: anyKind, number: (*context).direction},
		number("octetDeltaCount", anyKind, func(r *flowcache.Record) uint64 { return forward(r).Octets }),
		number("packetDeltaCount", anyKind, func(r *flowcache.Record) uint64 { return forward(r).Packets }),
		number("transportOctetDeltaCount", anyKind, func(r *flowcache.Record) uint64 { return forward(r).Payload }),
		number("flowStartMilliseconds", anyKind, func(r *flowcache.Record) uint64 { return uint64(r.Start / 1e6) }).when(notV9),
		number("flowEndMilliseconds", anyKind, func(r *flowcache.Record) uint64 { return uint64(r.End / 1e6) }).when(notV9),
		// NetFlow v9 has but the uptime clock (RFC 3954, section 8): FIRST_SWITCHED and LAST_SWITCHED.
		{name: "flowStartSysUpTime", in: anyKind, on: v9Only, number: func(c *context, r *flowcache.Record) uint64 { return c.sinceBoot(r.Start) }},
		{name: "flowEndSysUpTime", in: anyKind, on: v9Only, number: func(c *context, r *flowcache.Record) uint64 { return c.sinceBoot(r.End) }},
		// A biflow has these reverse elements, that of the flags below, and no other: nfdump takes an unknown reverse element for the forward one.
		number("reverseOctetDeltaCount", anyKind, func(r *flowcache.Record) uint64 { return reverse(r).Octets }).when(biflow),
		number("reversePacketDeltaCount", anyKind, func(r *flowcache.Record) uint64 { return reverse(r).Packets }).when(biflow),
		number("reverseTransportOctetDeltaCount", anyKind, func(r *flowcache.Record) uint64 { return reverse(r).Payload }).when(biflow),
		// Before the forward one: nfdump takes it for that, and the last that it reads holds.
		number("reverseTcpControlBits", isTCP, func(r *flowcache.Record) uint64 { return uint64(r.ControlBack) }).when(biflow),
		number("observationSource", anyKind, func(r *flowcache.Record) uint64 { return uint64(r.Origin) }),

		number("tcpControlBits", isTCP, func(r *flowcache.Record) uint64 { return uint64(r.Control) }),
		number("tcpState", isTCP, func(r *flowcache.Record) uint64 { return uint64(r.TCP.State) }),
		number("connectionError", isTCP, func(r *flowcache.Record) uint64 { return uint64(r.TCP.ConnectError) }),
		number("tcpConnectTimeMicroseconds", isTCP, func(r *flowcache.Record) uint64 { return uint64(r.TCP.ConnectTime) }),
		number("tcpSmoothedRoundTripTimeMicroseconds", isTCP, func(r *flowcache.Record) uint64 { return uint64(r.TCP.SRTT) }),
		number("tcpMinimumRoundTripTimeMicroseconds", isTCP, func(r *flowcache.Record) uint64 { return uint64(r.TCP.MinRTT) }),
		number("retransmittedPacketDeltaCount", isTCP, func(r *flowcache.Record) uint64 { return local(r).RetransPackets }),
		number("retransmittedOctetDeltaCount", isTCP, func(r *flowcache.Record) uint64 { return local(r).RetransOctets }),
		number("tcpRoundTripTimeVarianceMicroseconds", isTCP, func(r *flowcache.Record) uint64 { return uint64(r.TCP.RTTVar) }),
		number("tcpLostPackets", isTCP, func(r *flowcache.Record) uint64 { return uint64(r.TCP.Lost) }),
		number("tcpUnacknowledgedPackets", isTCP, func(r *flowcache.Record) uint64 { return uint64(r.TCP.Unacked) }),
		number("tcpCongestionWindow", isTCP, func(r *flowcache.Record) uint64 { return uint64(r.TCP.CongestionWindow) }),
		number("tcpDeliveryRate", isTCP, func(r *flowcache.Record) uint64 { return r.TCP.DeliveryRate }),
		number("tcpPacingRate", isTCP, func(r *flowcache.Record) uint64 { return r.TCP.PacingRate }),
		number("reverseRetransmittedPacketDeltaCount", bothSeen, func(r *flowcache.Record) uint64 { return r.Reverse.RetransPackets }),
		number("reverseRetransmittedOctetDeltaCount", bothSeen, func(r *flowcache.Record) uint64 { return r.Reverse.RetransOctets }),
		number("reorderedPacketDeltaCount", packetsOnly, func(r *flowcache.Record) uint64 { return r.Reordered }),
		number("reverseReorderedPacketDeltaCount", packetsOnly, func(r *flowcache.Record) uint64 { return r.ReverseReordered }),

		address("postNATSourceIPv4Address", func(k kind) bool { return hasNAT(k) && isV4(k) }, func(r *flowcache.Record) *flowcache.Addr { return &r.Post.Src }),
		address("postNATDestinationIPv4Address", func(k kind) bool { return hasNAT(k) && isV4(k) }, func(r *flowcache.Record) *flowcache.Addr { return &r.Post.Dst }),
		address("postNATSourceIPv6Address", func(k kind) bool { return hasNAT(k) && isV6(k) }, func(r *flowcache.Record) *flowcache.Addr { return &r.Post.Src }),
		address("postNATDestinationIPv6Address", func(k kind) bool { return hasNAT(k) && isV6(k) }, func(r *flowcache.Record) *flowcache.Addr { return &r.Post.Dst }),
		number("postNAPTSourceTransportPort", func(k kind) bool { return hasNAT(k) && hasPorts(k) }, func(r *flowcache.Record) uint64 { return uint64(r.Post.SrcPort) }),
		number("postNAPTDestinationTransportPort", func(k kind) bool { return hasNAT(k) && hasPorts(k) }, func(r *flowcache.Record) uint64 { return uint64(r.Post.DstPort) }),
		number("deltaFlowCount", hasPorts, func(r *flowcache.Record) uint64 { return r.Flows }).when(aggregates),
	}
	l = append(l, endNumbers(false)...)
	l = append(l, endNumbers(true)...)
	l = append(l, field{name: "applicationId", in: hasPorts, on: application, number: func(c *context, r *flowcache.Record) uint64 { return uint64(c.applicationID(r)) }})
	l = append(l, endTexts(false)...)
	l = append(l, endTexts(true)...)
	return append(l,
		field{name: "tcpCongestionControl", in: isTCP, text: func(c *context, r *flowcache.Record) string { return c.congestion.of(&r.TCP.CongestionControlName) }},
		// Of the IANA registry, for where nothing of an enterprise is wanted.
		field{name: "userName", in: func(k kind) bool { return max(k.source(), k.dest()) >= endHost }, on: ianaOnly, text: func(_ *context, r *flowcache.Record) string { return who(localEnd(r)).UserName }},
		field{name: "virtualStationName", in: func(k kind) bool { return max(k.source(), k.dest()) >= endContainer }, on: ianaOnly, text: func(_ *context, r *flowcache.Record) string { return station(workload(localEnd(r))) }},
		field{name: "applicationName", in: hasPorts, on: ianaOnly, text: func(c *context, r *flowcache.Record) string { return ServiceName(c.responder(r)) }},
		field{name: "observationDomainName", in: anyKind, on: ianaOnly, node: anyKind, text: func(c *context, _ *flowcache.Record) string { return c.node }},
		field{name: "paddingOctets", in: anyKind, on: padding, text: func(*context, *flowcache.Record) string { return "" }},
	)
}

// direction is biflowDirection (RFC 5103, section 6.3): 1 the source is the initiator, 2 it is the responder, 0 nobody knows.
func (c *context) direction(r *flowcache.Record) uint64 {
	switch {
	case r.Arbitrary:
		return 0
	case r == c.opposite:
		return 2
	}
	return 1
}

// responder is the port of the end that was spoken to.
func (c *context) responder(r *flowcache.Record) uint16 {
	if r == c.opposite {
		return r.Key.SrcPort
	}
	return r.Key.DstPort
}

func (c *context) sinceBoot(t int64) uint64 { return uint64(max(0, t-c.uptime) / 1e6) }

var (
	nobody  = flowcache.Process{UID: flowcache.NoID, GID: flowcache.NoID, ParentUID: flowcache.NoID}
	nowhere flowcache.Workload
)

func who(e *flowcache.End) *flowcache.Process {
	if e.Who == nil {
		return &nobody
	}
	return e.Who
}

func workload(e *flowcache.End) *flowcache.Workload {
	if e.Container == nil {
		return &nowhere
	}
	return e.Container
}

// end returns what makes the fields of one end.
func end(dest bool) (prefix string, state func(kind) int, of func(*flowcache.Record) *flowcache.End) {
	if dest {
		return "destination", kind.dest, func(r *flowcache.Record) *flowcache.End { return &r.Dest }
	}
	return "source", kind.source, func(r *flowcache.Record) *flowcache.End { return &r.Source }
}

func endNumbers(dest bool) []field {
	prefix, state, of := end(dest)
	socket := func(k kind) bool { return state(k) >= endKernel }
	process := func(k kind) bool { return state(k) >= endHost }
	container := func(k kind) bool { return state(k) >= endContainer }
	n := func(name string, in func(kind) bool, f func(*flowcache.End) uint64) field {
		return field{name: prefix + name, in: in, number: func(_ *context, r *flowcache.Record) uint64 { return f(of(r)) }}
	}
	return []field{
		n("NetworkNamespace", socket, func(e *flowcache.End) uint64 { return uint64(e.NetNS) }).asKey(),
		n("SocketCookie", socket, func(e *flowcache.End) uint64 { return e.Cookie }),
		n("ControlGroupId", socket, func(e *flowcache.End) uint64 { return e.CGroup }),
		n("ProcessId", process, func(e *flowcache.End) uint64 { return uint64(e.Process.PID) }),
		n("UserId", process, func(e *flowcache.End) uint64 { return uint64(e.UID) }),
		n("GroupId", process, func(e *flowcache.End) uint64 { return uint64(e.GID) }),
		n("ProcessStartTime", process, func(e *flowcache.End) uint64 { return uint64(who(e).StartTime / 1e6) }),
		n("ParentProcessId", process, func(e *flowcache.End) uint64 { return uint64(who(e).ParentPID) }),
		n("ParentUserId", process, func(e *flowcache.End) uint64 { return uint64(who(e).ParentUID) }),
		n("NamedBy", func(k kind) bool { return container(k) || state(k) == endElsewhere }, func(e *flowcache.End) uint64 { return uint64(e.NamedBy) }),
		n("NamedLate", container, func(e *flowcache.End) uint64 {
			if e.NamedLate {
				return 1
			}
			return 0
		}),
	}
}

func endTexts(dest bool) []field {
	prefix, state, of := end(dest)
	socket := func(k kind) bool { return state(k) >= endKernel }
	process := func(k kind) bool { return state(k) >= endHost }
	container := func(k kind) bool { return state(k) >= endContainer }
	pod := func(k kind) bool { return state(k) == endPod || state(k) == endElsewhere }
	t := func(name string, in func(kind) bool, f func(*flowcache.End) string) field {
		return field{name: prefix + name, in: in, text: func(_ *context, r *flowcache.Record) string { return f(of(r)) }}
	}
	return []field{
		t("ProcessPath", process, func(e *flowcache.End) string { return who(e).Path }),
		t("ProcessName", process, func(e *flowcache.End) string { return who(e).Name }),
		t("ProcessCommandLine", process, func(e *flowcache.End) string { return who(e).CommandLine }).when(commandLine),
		t("UserName", process, func(e *flowcache.End) string { return who(e).UserName }),
		t("ParentProcessPath", process, func(e *flowcache.End) string { return who(e).ParentPath }),
		t("ServiceUnit", func(k kind) bool { return state(k) == endHost }, func(e *flowcache.End) string { return workload(e).ServiceUnit }),
		t("ContainerId", container, func(e *flowcache.End) string { return workload(e).ContainerID }),
		t("ContainerName", container, func(e *flowcache.End) string { return workload(e).ContainerName }),
		t("ContainerImage", container, func(e *flowcache.End) string { return workload(e).ContainerImage }),
		t("ContainerRuntime", container, func(e *flowcache.End) string { return workload(e).ContainerRuntime }),
		t("PodName", pod, func(e *flowcache.End) string { return workload(e).PodName }),
		t("PodNamespace", pod, func(e *flowcache.End) string { return workload(e).PodNamespace }),
		t("PodUid", pod, func(e *flowcache.End) string { return workload(e).PodUID }),
		t("PodLabels", func(k kind) bool { return container(k) || pod(k) }, func(e *flowcache.End) string { return workload(e).PodLabels }),
		t("ServiceName", pod, func(e *flowcache.End) string { return e.Service }),
		{name: prefix + "NodeName", in: func(k kind) bool { return state(k) != endNone }, text: func(c *context, r *flowcache.Record) string {
			if e := of(r); !e.Local {
				return e.Node
			}
			return c.node
		}, node: socket},
	}
}

// giveWay lists what is left out of templates with more than MaxFields fields, first to last: those of flows between two
// containers of this host.
var giveWay = []string{
	"paddingOctets", "sourceNamedLate", "destinationNamedLate",
	"tcpPacingRate", "tcpUnacknowledgedPackets", "tcpRoundTripTimeVarianceMicroseconds", "tcpCongestionControl", "tcpCongestionWindow",
	"tcpDeliveryRate", "tcpLostPackets", "reverseRetransmittedOctetDeltaCount", "retransmittedOctetDeltaCount",
	"sourceNodeName", "destinationNodeName", "sourceContainerRuntime", "destinationContainerRuntime", "sourceNamedBy", "destinationNamedBy",
	"sourceParentUserId", "destinationParentUserId", "sourcePodUid", "destinationPodUid",
	"sourceControlGroupId", "destinationControlGroupId", "sourceContainerImage", "destinationContainerImage",
	"sourceGroupId", "destinationGroupId", "sourceProcessName", "destinationProcessName",
	"sourcePodLabels", "destinationPodLabels", "sourceParentProcessId", "destinationParentProcessId",
}
