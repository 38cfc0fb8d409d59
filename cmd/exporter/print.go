package main

import (
	"fmt"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

// jsonRecord is a record as a JSON line. Names are those of the Information Elements where there is one.
type jsonRecord struct {
	Start       string       `json:"flowStart"`
	End         string       `json:"flowEnd"`
	Reason      string       `json:"flowEndReason"`
	Protocol    string       `json:"protocol"`
	Source      netip.Addr   `json:"sourceAddress"`
	SourcePort  uint16       `json:"sourcePort"`
	Dest        netip.Addr   `json:"destinationAddress"`
	DestPort    uint16       `json:"destinationPort"`
	Arbitrary   bool         `json:"directionArbitrary,omitempty"`
	Forward     jsonCounters `json:"forward"`
	Reverse     jsonCounters `json:"reverse"`
	Flows       uint64       `json:"flows,omitempty"` // of an aggregate
	TCPFlags    string       `json:"tcpControlBits,omitempty"`
	TCPBack     string       `json:"reverseTcpControlBits,omitempty"`
	SourceEnd   *jsonEnd     `json:"source,omitempty"`
	DestEnd     *jsonEnd     `json:"destination,omitempty"`
	PostNAT     *jsonAddress `json:"postNAT,omitempty"`
	PreNAT      *jsonAddress `json:"preNAT,omitempty"`
	TCP         *jsonTCP     `json:"tcp,omitempty"`
	Observation string       `json:"observationSource"`
}

type jsonCounters struct {
	Payload uint64 `json:"payloadOctets"`
	Octets  uint64 `json:"octets"`
	Packets uint64 `json:"packets"`
}

// jsonAddress is what the addresses are on the other side of their translation.
type jsonAddress struct {
	Source     netip.Addr `json:"sourceAddress"`
	SourcePort uint16     `json:"sourcePort"`
	Dest       netip.Addr `json:"destinationAddress"`
	DestPort   uint16     `json:"destinationPort"`
}

// jsonEnd is an end that is here, or of one elsewhere what is known by its address: no process, namespace and socket.
type jsonEnd struct {
	PID        uint32         `json:"pid,omitempty"`
	Kernel     bool           `json:"kernel,omitempty"`
	Path       string         `json:"path,omitempty"`
	Name       string         `json:"name,omitempty"`
	Command    string         `json:"commandLine,omitempty"`
	Started    string         `json:"startTime,omitempty"`
	UID        *uint32        `json:"uid,omitempty"`
	User       string         `json:"user,omitempty"`
	GID        *uint32        `json:"gid,omitempty"`
	ParentPID  uint32         `json:"parentPid,omitempty"`
	ParentPath string         `json:"parentPath,omitempty"`
	ParentUID  *uint32        `json:"parentUid,omitempty"`
	Container  *jsonContainer `json:"container,omitempty"`
	NamedBy    string         `json:"namedBy,omitempty"`   // runtime, cgroup, uid, address, kubernetes-address
	NamedLate  bool           `json:"namedLate,omitempty"` // names came after records without them
	Unit       string         `json:"serviceUnit,omitempty"`
	CGroup     uint64         `json:"controlGroupId,omitempty"`
	NetNS      uint32         `json:"networkNamespace,omitempty"`
	Cookie     uint64         `json:"socketCookie,omitempty"`
	Service    string         `json:"service,omitempty"`
	Node       string         `json:"node,omitempty"`
}

type jsonContainer struct {
	ID        string `json:"id,omitempty"`
	Name      string `json:"name,omitempty"`
	Image     string `json:"image,omitempty"`
	Runtime   string `json:"runtime,omitempty"`
	Pod       string `json:"pod,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	PodUID    string `json:"podUid,omitempty"`
	Labels    string `json:"labels,omitempty"`
}

type jsonTCP struct {
	State   string `json:"state"`
	SRTT    uint32 `json:"smoothedRttMicroseconds"`
	RTTVar  uint32 `json:"rttVarianceMicroseconds"`
	MinRTT  uint32 `json:"minimumRttMicroseconds"`
	Connect uint32 `json:"connectTimeMicroseconds,omitempty"`
	Retrans uint64 `json:"retransmittedPackets"`
	// Of flows of packets: what the responder sent again, and what others had overtaken.
	ReverseRetrans   uint64 `json:"reverseRetransmittedPackets,omitempty"`
	Reordered        uint64 `json:"reorderedPackets,omitempty"`
	ReverseReordered uint64 `json:"reverseReorderedPackets,omitempty"`
	Lost             uint32 `json:"lostPackets"`
	Unacked          uint32 `json:"unacknowledgedPackets"`
	Window           uint32 `json:"congestionWindow"`
	Error            uint16 `json:"connectionError,omitempty"`
	Congestion       string `json:"congestionControl,omitempty"`
}

func toJSON(r *flowcache.Record) *jsonRecord {
	src, dst := r.Key.Netip()
	j := &jsonRecord{
		Start: timestamp(r.Start), End: timestamp(r.End), Reason: r.EndReason.String(), Protocol: protocol(r.Key.Proto),
		Source: src, SourcePort: r.Key.SrcPort, Dest: dst, DestPort: r.Key.DstPort,
		Arbitrary: r.Arbitrary, Flows: r.Flows,
		Forward:   jsonCounters{r.Forward.Payload, r.Forward.Octets, r.Forward.Packets},
		Reverse:   jsonCounters{r.Reverse.Payload, r.Reverse.Octets, r.Reverse.Packets},
		SourceEnd: endToJSON(&r.Source), DestEnd: endToJSON(&r.Dest),
		PostNAT: addressToJSON(r.Post), PreNAT: addressToJSON(r.Pre),
		Observation: map[flowcache.Origin]string{flowcache.OriginEBPF: "ebpf", flowcache.OriginNetlink: "netlink", flowcache.OriginPackets: "packets"}[r.Origin],
	}
	if r.HasTCP {
		j.TCPFlags, j.TCPBack = flags(r.Control), flags(r.ControlBack)
		local := r.Forward
		if r.Dest.Local {
			local = r.Reverse
		}
		j.TCP = &jsonTCP{
			State: stateName(r.TCP.State), SRTT: r.TCP.SRTT, RTTVar: r.TCP.RTTVar, MinRTT: r.TCP.MinRTT, Connect: r.TCP.ConnectTime,
			Retrans: local.RetransPackets, Lost: r.TCP.Lost, Unacked: r.TCP.Unacked, Window: r.TCP.CongestionWindow,
			Error: r.TCP.ConnectError, Congestion: fixedString(r.TCP.CongestionControlName[:]),
		}
		if r.Origin == flowcache.OriginPackets {
			j.TCP.Retrans, j.TCP.ReverseRetrans = r.Forward.RetransPackets, r.Reverse.RetransPackets
			j.TCP.Reordered, j.TCP.ReverseReordered = r.Reordered, r.ReverseReordered
		}
	}
	return j
}

func endToJSON(e *flowcache.End) *jsonEnd {
	if !e.Local && e.Container == nil && e.Service == "" && e.Node == "" {
		return nil
	}
	j := &jsonEnd{NamedBy: e.NamedBy.String(), NamedLate: e.NamedLate, Service: e.Service, Node: e.Node, PID: e.Process.PID, Kernel: e.Kernel, UID: idOrNil(e.UID), GID: idOrNil(e.GID), CGroup: e.CGroup, NetNS: e.NetNS, Cookie: e.Cookie}
	if p := e.Who; p != nil {
		j.Path, j.Name, j.Command, j.User = p.Path, p.Name, p.CommandLine, p.UserName
		j.ParentPID, j.ParentPath, j.ParentUID = p.ParentPID, p.ParentPath, idOrNil(p.ParentUID)
		if p.StartTime != 0 {
			j.Started = timestamp(p.StartTime)
		}
	}
	if c := e.Container; c != nil {
		j.Unit = c.ServiceUnit
		j.Container = containerToJSON(c)
	}
	return j
}

func containerToJSON(c *flowcache.Workload) *jsonContainer {
	if c == nil || c.ContainerID == "" && c.PodName == "" && c.PodUID == "" {
		return nil
	}
	return &jsonContainer{c.ContainerID, c.ContainerName, c.ContainerImage, c.ContainerRuntime, c.PodName, c.PodNamespace, c.PodUID, c.PodLabels}
}

func addressToJSON(t flowcache.Translation) *jsonAddress {
	if t == (flowcache.Translation{}) {
		return nil
	}
	return &jsonAddress{t.Src.Netip(), t.SrcPort, t.Dst.Netip(), t.DstPort}
}

func idOrNil(id uint32) *uint32 {
	if id == flowcache.NoID {
		return nil
	}
	return &id
}

func timestamp(ns int64) string {
	return time.Unix(0, ns).UTC().Format("2006-01-02T15:04:05.000Z")
}

func fixedString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

func protocol(p uint8) string {
	switch p {
	case flowcache.ProtoTCP:
		return "tcp"
	case flowcache.ProtoUDP:
		return "udp"
	case flowcache.ProtoUDPLite:
		return "udplite"
	case 1:
		return "icmp"
	case 58:
		return "icmp6"
	case 132:
		return "sctp"
	}
	return strconv.Itoa(int(p))
}

// flags shows tcpControlBits as nfdump does, with NS before its eight: a letter or a dot for each.
func flags(b uint16) string {
	const letters = "NCEUAPRSF"

	s := []byte(letters)
	for i := range s {
		if b>>(len(s)-1-i)&1 == 0 {
			s[i] = '.'
		}
	}
	return string(s)
}

var stateNames = [...]string{"", "ESTAB", "SYN-SENT", "SYN-RECV", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT", "CLOSED", "CLOSE-WAIT", "LAST-ACK", "LISTEN", "CLOSING"}

func stateName(s uint8) string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return strconv.Itoa(int(s))
}

// tableForm is one line a record, for a terminal.
type tableForm struct {
	lines int
	line  []byte
}

const (
	tableFormat = "%-12s %-5s %-28s %-28s %9s %9s %-6s %s"
	headerEvery = 40
)

// interfaces are not for people to read as they go by.
func (f *tableForm) interfaces(dst []byte, _ []flowcache.Interface) []byte { return dst }

func (f *tableForm) records(dst []byte, list []flowcache.Record) []byte {
	for i := range list {
		r := &list[i]
		if f.lines%headerEvery == 0 {
			dst = append(appendTableHeader(dst), '\n')
		}
		f.lines++
		from, to := r.Key.Netip()
		f.line = fmt.Appendf(f.line[:0], tableFormat, time.Unix(0, r.End).Format("15:04:05.000"), protocol(r.Key.Proto),
			netip.AddrPortFrom(from, r.Key.SrcPort), netip.AddrPortFrom(to, r.Key.DstPort),
			octets(r.Forward.Payload), octets(r.Reverse.Payload), r.EndReason, who(&r.Source, &r.Dest)+several(r.Flows))
		dst = append(appendPrintable(dst, f.line), '\n')
	}
	return dst
}

func appendTableHeader(dst []byte) []byte {
	return fmt.Appendf(dst, tableFormat, "TIME", "PROTO", "SOURCE", "DESTINATION", "SENT", "RECEIVED", "END", "WHO")
}

// several says how many flows a record stands for, if it is an aggregate.
func several(flows uint64) string {
	if flows < 2 {
		return ""
	}
	return fmt.Sprintf(" (%d flows)", flows)
}

func endpoint(a flowcache.Addr, port uint16) string {
	return netip.AddrPortFrom(a.Netip(), port).String()
}

// octets shows a count in at most seven characters.
func octets(n uint64) string {
	if n < 10_000 {
		return strconv.FormatUint(n, 10)
	}
	f := float64(n)
	for _, unit := range "kMGTPE" {
		f /= 1000
		if f < 1000 {
			return fmt.Sprintf("%.4g%c", f, unit)
		}
	}
	return strconv.FormatUint(n, 10)
}

func who(source, dest *flowcache.End) string {
	switch {
	case source.Local && dest.Local:
		return whoIs(source) + " → " + whoIs(dest)
	case dest.Local:
		return elsewhere(source) + "→ " + whoIs(dest)
	}
	return strings.TrimSuffix(whoIs(source)+" → "+elsewhere(dest), " ")
}

// elsewhere names an end that is not here, with a blank after each word.
func elsewhere(e *flowcache.End) string {
	s := ""
	switch c := e.Container; {
	case c == nil:
	case c.PodNamespace != "":
		s = "pod=" + c.PodNamespace + "/" + c.PodName + " "
	case c.ContainerName != "":
		s = "container=" + c.ContainerName + " "
	}
	if e.Service != "" {
		s += "service=" + e.Service + " "
	}
	if e.Node != "" {
		s += "node=" + e.Node + " "
	}
	return s
}

// whoIs names an end: program, PID, user, and its container or service.
func whoIs(e *flowcache.End) string {
	s := "?"
	user := ""
	if e.UID != flowcache.NoID {
		user = strconv.FormatUint(uint64(e.UID), 10)
	}
	if p := e.Who; p != nil {
		if s = path.Base(p.Path); p.Path == "" {
			s = p.Name
		}
		if p.UserName != "" {
			user = p.UserName
		}
	}
	if e.Kernel {
		return "kernel"
	}
	if e.Process.PID != 0 {
		s += "[" + strconv.FormatUint(uint64(e.Process.PID), 10) + "]"
	}
	if user != "" {
		s += " " + user
	}
	if c := e.Container; c != nil {
		switch {
		case c.PodName != "":
			s += " pod=" + c.PodNamespace + "/" + c.PodName
		case c.ContainerName != "":
			s += " container=" + c.ContainerName
		case c.ContainerID != "":
			s += " container=" + c.ContainerID[:min(12, len(c.ContainerID))]
		case c.ServiceUnit != "":
			s += " unit=" + c.ServiceUnit
		}
	}
	return s
}
