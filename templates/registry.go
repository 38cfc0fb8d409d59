package templates

import "github.com/sockflow/sockflow/flowcache"

// The registry. Append only: a number, once used, keeps its meaning. IANA and reverse elements first, then an end's, then TCP's.

func forward(c *context) *flowcache.Counters { return &c.rec.Forward }
func reverse(c *context) *flowcache.Counters { return &c.rec.Reverse }

// local returns the counters of what the local end sent: retransmissions are known of it alone.
func local(c *context) *flowcache.Counters {
	if c.rec.Dest.Local && !c.rec.Source.Local {
		return &c.rec.Reverse
	}
	return &c.rec.Forward
}

var (
	sourceIPv4 = element{name: "sourceIPv4Address", typ: IPv4Address, iana: 8, address: func(c *context) *flowcache.Addr { return &c.rec.Key.Src }}
	destIPv4   = element{name: "destinationIPv4Address", typ: IPv4Address, iana: 12, address: func(c *context) *flowcache.Addr { return &c.rec.Key.Dst }}
	sourceIPv6 = element{name: "sourceIPv6Address", typ: IPv6Address, iana: 27, address: func(c *context) *flowcache.Addr { return &c.rec.Key.Src }}
	destIPv6   = element{name: "destinationIPv6Address", typ: IPv6Address, iana: 28, address: func(c *context) *flowcache.Addr { return &c.rec.Key.Dst }}
)

var common = []element{
	{name: "sourceTransportPort", typ: Unsigned16, iana: 7, number: func(c *context) uint64 { return uint64(c.rec.Key.SrcPort) }},
	{name: "destinationTransportPort", typ: Unsigned16, iana: 11, number: func(c *context) uint64 { return uint64(c.rec.Key.DstPort) }},
	{name: "protocolIdentifier", typ: Unsigned8, iana: 4, number: func(c *context) uint64 { return uint64(c.rec.Key.Proto) }},
	{name: "octetDeltaCount", typ: Unsigned64, iana: 1, number: func(c *context) uint64 { return forward(c).Octets }},
	{name: "packetDeltaCount", typ: Unsigned64, iana: 2, number: func(c *context) uint64 { return forward(c).Packets }},
	{name: "transportOctetDeltaCount", typ: Unsigned64, iana: 401, number: func(c *context) uint64 { return forward(c).Payload }},
	{name: "flowEndReason", typ: Unsigned8, iana: 136, number: func(c *context) uint64 { return uint64(c.rec.EndReason) }},
}

var milliseconds = []element{
	{name: "flowStartMilliseconds", typ: Milliseconds, iana: 152, number: func(c *context) uint64 { return uint64(c.rec.Start / 1e6) }},
	{name: "flowEndMilliseconds", typ: Milliseconds, iana: 153, number: func(c *context) uint64 { return uint64(c.rec.End / 1e6) }},
}

// NetFlow v9 has but the uptime clock (RFC 3954, section 8): FIRST_SWITCHED and LAST_SWITCHED.
var sinceBoot = []element{
	{name: "flowStartSysUpTime", typ: Unsigned32, iana: 22, number: func(c *context) uint64 { return uptime(c, c.rec.Start) }},
	{name: "flowEndSysUpTime", typ: Unsigned32, iana: 21, number: func(c *context) uint64 { return uptime(c, c.rec.End) }},
}

func uptime(c *context, t int64) uint64 { return uint64(max(0, t-c.uptime) / 1e6) }

// A biflow has these reverse elements and no other: nfdump takes an unknown reverse element for the forward one.
var reverseDirection = []element{
	{name: "reverseOctetDeltaCount", typ: Unsigned64, iana: 1, reverse: true, v9: 23, number: func(c *context) uint64 { return reverse(c).Octets }},
	{name: "reversePacketDeltaCount", typ: Unsigned64, iana: 2, reverse: true, v9: 24, number: func(c *context) uint64 { return reverse(c).Packets }},
	{name: "reverseTransportOctetDeltaCount", typ: Unsigned64, iana: 401, reverse: true, number: func(c *context) uint64 { return reverse(c).Payload }},
}

var biflowDirection = element{name: "biflowDirection", typ: Unsigned8, iana: 239, number: func(c *context) uint64 {
	if c.rec.Arbitrary {
		return 0
	}
	return 1
}}

// One octet: pmacct reads 0 from two. Reduced-size encoding of unsigned16 is legal (RFC 7011, section 6.2).
var tcpControlBits = element{name: "tcpControlBits", typ: Unsigned8, semantics: Flags, iana: 6, number: func(c *context) uint64 { return uint64(c.rec.Control) }}

// Of the IANA registry, where nothing of an enterprise is wanted.
var ianaNames = []element{
	{name: "userName", typ: String, iana: 371, v9Length: 32, text: func(c *context) string { return who(localEnd(c)).UserName }},
	{name: "observationDomainName", typ: String, iana: 300, v9Length: 32, text: func(c *context) string { return c.node }},
	{name: "virtualStationName", typ: String, iana: 350, v9Length: 64, text: func(c *context) string {
		w := workload(localEnd(c))
		for _, s := range [...]string{w.PodName, w.ContainerName, w.ContainerID} {
			if s != "" {
				return s
			}
		}
		return ""
	}},
}

func localEnd(c *context) *flowcache.End {
	if c.rec.Source.Local {
		return &c.rec.Source
	}
	return &c.rec.Dest
}

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

// endElement is an element that exists for each end: the source's number is native, the destination's the next.
type endElement struct {
	name               string // after "source" or "destination"
	typ                Type
	semantics          Semantics
	native             uint16
	knownSrc, knownDst Number
	v9Length           uint16
	number             func(*context, *flowcache.End) uint64
	text               func(*context, *flowcache.End) string
	commandLine        bool // only with Options.CommandLine
}

func ntop(id uint16) Number   { return Number{PENNtop, id} }
func antrea(id uint16) Number { return Number{PENAntrea, id} }

var endElements = []endElement{
	{name: "ProcessId", typ: Unsigned32, semantics: Identifier, native: 1, knownSrc: ntop(168), knownDst: ntop(375),
		number: func(_ *context, e *flowcache.End) uint64 { return uint64(e.Process.PID) }},
	{name: "ProcessPath", typ: String, native: 3, knownSrc: ntop(169), knownDst: ntop(376), v9Length: 64,
		text: func(_ *context, e *flowcache.End) string { return who(e).Path }},
	{name: "ProcessName", typ: String, native: 5, v9Length: 16,
		text: func(_ *context, e *flowcache.End) string { return who(e).Name }},
	{name: "ProcessCommandLine", typ: String, native: 7, knownSrc: ntop(556), knownDst: ntop(557), v9Length: 64, commandLine: true,
		text: func(_ *context, e *flowcache.End) string { return who(e).CommandLine }},
	{name: "UserId", typ: Unsigned32, semantics: Identifier, native: 11, knownSrc: ntop(425), knownDst: ntop(426),
		number: func(_ *context, e *flowcache.End) uint64 { return uint64(e.UID) }},
	{name: "UserName", typ: String, native: 13, knownSrc: ntop(372), knownDst: ntop(377), v9Length: 32,
		text: func(_ *context, e *flowcache.End) string { return who(e).UserName }},
	{name: "ParentProcessId", typ: Unsigned32, semantics: Identifier, native: 17, knownSrc: ntop(373), knownDst: ntop(378),
		number: func(_ *context, e *flowcache.End) uint64 { return uint64(who(e).ParentPID) }},
	{name: "ParentProcessPath", typ: String, native: 19, knownSrc: ntop(374), knownDst: ntop(379), v9Length: 64,
		text: func(_ *context, e *flowcache.End) string { return who(e).ParentPath }},
	{name: "ParentUserId", typ: Unsigned32, semantics: Identifier, native: 21, knownSrc: ntop(564), knownDst: ntop(567),
		number: func(_ *context, e *flowcache.End) uint64 { return uint64(who(e).ParentUID) }},
	{name: "ContainerId", typ: String, native: 23, knownSrc: ntop(558), knownDst: ntop(559), v9Length: 64,
		text: func(_ *context, e *flowcache.End) string { return workload(e).ContainerID }},
	{name: "ContainerName", typ: String, native: 25, v9Length: 32,
		text: func(_ *context, e *flowcache.End) string { return workload(e).ContainerName }},
	{name: "PodName", typ: String, native: 31, knownSrc: antrea(101), knownDst: antrea(103), v9Length: 64,
		text: func(_ *context, e *flowcache.End) string { return workload(e).PodName }},
	{name: "PodNamespace", typ: String, native: 33, knownSrc: antrea(100), knownDst: antrea(102), v9Length: 32,
		text: func(_ *context, e *flowcache.End) string { return workload(e).PodNamespace }},
	{name: "NetworkNamespace", typ: Unsigned32, semantics: Identifier, native: 37,
		number: func(_ *context, e *flowcache.End) uint64 { return uint64(e.NetNS) }},
	{name: "ControlGroupId", typ: Unsigned64, semantics: Identifier, native: 39,
		number: func(_ *context, e *flowcache.End) uint64 { return e.CGroup }},
	{name: "ServiceUnit", typ: String, native: 41, v9Length: 32,
		text: func(_ *context, e *flowcache.End) string { return workload(e).ServiceUnit }},
	{name: "SocketCookie", typ: Unsigned64, semantics: Identifier, native: 43,
		number: func(_ *context, e *flowcache.End) uint64 { return e.Cookie }},
}

// Antrea's names of the nodes: this host, on the ends that are here.
var nodeNames = []element{
	{name: "sourceNodeName", typ: String, known: antrea(104), v9Length: 32, text: func(c *context) string { return nodeOf(c, &c.rec.Source) }},
	{name: "destinationNodeName", typ: String, known: antrea(105), v9Length: 32, text: func(c *context) string { return nodeOf(c, &c.rec.Dest) }},
}

func nodeOf(c *context, e *flowcache.End) string {
	if e.Local {
		return c.node
	}
	return ""
}

var tcpElements = []element{
	{name: "tcpSmoothedRoundTripTimeMicroseconds", typ: Unsigned32, semantics: Quantity, units: MicroUnits, native: 60, number: func(c *context) uint64 { return uint64(c.rec.TCP.SRTT) }},
	{name: "tcpRoundTripTimeVarianceMicroseconds", typ: Unsigned32, semantics: Quantity, units: MicroUnits, native: 61, number: func(c *context) uint64 { return uint64(c.rec.TCP.RTTVar) }},
	{name: "tcpMinimumRoundTripTimeMicroseconds", typ: Unsigned32, semantics: Quantity, units: MicroUnits, native: 62, number: func(c *context) uint64 { return uint64(c.rec.TCP.MinRTT) }},
	{name: "retransmittedPacketDeltaCount", typ: Unsigned64, semantics: DeltaCounter, units: Packets, native: 63, number: func(c *context) uint64 { return local(c).RetransPackets }},
	{name: "tcpLostPackets", typ: Unsigned32, semantics: Quantity, units: Packets, native: 67, number: func(c *context) uint64 { return uint64(c.rec.TCP.Lost) }},
	{name: "tcpState", typ: Unsigned8, semantics: Identifier, native: 69, number: func(c *context) uint64 { return uint64(c.rec.TCP.State) }},
	{name: "tcpConnectTimeMicroseconds", typ: Unsigned32, semantics: Quantity, units: MicroUnits, native: 73, number: func(c *context) uint64 { return uint64(c.rec.TCP.ConnectTime) }},
	{name: "connectionError", typ: Unsigned16, semantics: Identifier, native: 74, number: func(c *context) uint64 { return uint64(c.rec.TCP.ConnectError) }},
}

var observationSource = element{name: "observationSource", typ: Unsigned8, semantics: Identifier, native: 75, number: func(c *context) uint64 { return uint64(c.rec.Origin) }}
