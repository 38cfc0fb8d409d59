package ipfix

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/sockflow/sockflow/flowcache"
)

// AgentJSON makes the JSON of ntop's "packetless" agents, one object for each end of a flow that is on this host. Its counters of TCP
// are the totals of the socket, as the kernel counts them.
type AgentJSON struct {
	Exporter netip.Addr // of this host; the zero value is left out
}

type agentObject struct {
	Timestamp string `json:"timestamp"` // seconds.microseconds
	Version   int    `json:"IP_PROTOCOL_VERSION"`
	Protocol  uint8  `json:"PROTOCOL"`
	Local4    string `json:"IPV4_LOCAL_ADDR,omitempty"`
	Remote4   string `json:"IPV4_REMOTE_ADDR,omitempty"`
	Local6    string `json:"IPV6_LOCAL_ADDR,omitempty"`
	Remote6   string `json:"IPV6_REMOTE_ADDR,omitempty"`
	LocalPort uint16 `json:"L4_LOCAL_PORT"`
	Remote    uint16 `json:"L4_REMOTE_PORT"`
	Exporter4 string `json:"EXPORTER_IPV4_ADDRESS,omitempty"`
	TCPEvent  string `json:"TCP_EVENT_TYPE,omitempty"`
	UDPEvent  string `json:"UDP_EVENT_TYPE,omitempty"`
	// The names must begin with LOCAL: ntopng looks at how they end, and one of the remote end would take this one's place.
	Process   *agentProcess   `json:"LOCAL_PROCESS,omitempty"`
	Father    *agentProcess   `json:"LOCAL_FATHER_PROCESS,omitempty"`
	Container *AgentContainer `json:"LOCAL_CONTAINER,omitempty"`
	TCP       *agentTCP       `json:"TCP,omitempty"`
	// INTERFACE_NAME is not sent: it makes ntopng exit.
}

type agentProcess struct {
	PID  uint32  `json:"PID"`
	UID  *uint32 `json:"UID,omitempty"`
	User string  `json:"UID_NAME,omitempty"`
	GID  *uint32 `json:"GID,omitempty"`
	Path string  `json:"PROCESS_PATH,omitempty"`
}

// AgentContainer is a container in the form that ntop's agents send.
type AgentContainer struct {
	ID     string       `json:"ID"`
	K8S    *agentK8S    `json:"K8S,omitempty"`
	Docker *agentDocker `json:"DOCKER,omitempty"`
}

type agentK8S struct {
	Pod       string `json:"POD"`
	Namespace string `json:"NS"`
	Name      string `json:"NAME,omitempty"`
}

type agentDocker struct {
	Name string `json:"NAME"`
}

type agentTCP struct {
	State         string  `json:"CONN_STATE"`
	SegmentsIn    uint64  `json:"SEGS_IN"`
	SegmentsOut   uint64  `json:"SEGS_OUT"`
	Unacked       uint32  `json:"UNACK_SEGMENTS"`
	Retransmitted uint64  `json:"RETRAN_PKTS"`
	Lost          uint32  `json:"LOST_PKTS"`
	RTT           float64 `json:"RTT"` // ms
	RTTVariance   float64 `json:"RTT_VARIANCE"`
	Received      uint64  `json:"BYTES_RCVD"`
	Acked         uint64  `json:"BYTES_ACKED"`
}

// Append appends the objects of r, each followed by separator.
func (a *AgentJSON) Append(dst []byte, r *flowcache.Record, separator byte) []byte {
	if r.Source.Local {
		dst = append(a.object(dst, r, true), separator)
	}
	if r.Dest.Local {
		dst = append(a.object(dst, r, false), separator)
	}
	return dst
}

func (a *AgentJSON) object(dst []byte, r *flowcache.Record, source bool) []byte {
	end, key, out, in, sent := &r.Source, r.Key, &r.ForwardTotal, &r.ReverseTotal, r.Forward.Packets
	if !source {
		end, key, out, in, sent = &r.Dest, r.Key.Reverse(), &r.ReverseTotal, &r.ForwardTotal, r.Reverse.Packets
	}
	o := agentObject{
		Timestamp: fmt.Sprintf("%d.%06d", r.End/1e9, r.End%1e9/1e3), Version: 4, Protocol: key.Proto,
		LocalPort: key.SrcPort, Remote: key.DstPort,
		Container: NewAgentContainer(end.Container),
	}
	local, remote := key.Netip()
	if key.Is4() {
		o.Local4, o.Remote4 = local.String(), remote.String()
	} else {
		o.Version, o.Local6, o.Remote6 = 6, local.String(), remote.String()
	}
	if a.Exporter.Is4() {
		o.Exporter4 = a.Exporter.String()
	}
	o.event(r, source, sent)
	if end.Process.PID != 0 {
		o.Process = &agentProcess{PID: end.Process.PID, UID: known(end.UID), GID: known(end.GID)}
	}
	if p := end.Who; p != nil && o.Process != nil {
		o.Process.User, o.Process.Path = p.UserName, p.Path
		if p.Path == "" {
			o.Process.Path = p.Name
		}
		if p.ParentPID != 0 {
			o.Father = &agentProcess{PID: p.ParentPID, UID: known(p.ParentUID), Path: p.ParentPath}
		}
	}
	if r.HasTCP {
		o.TCP = &agentTCP{
			State: agentState(r.TCP.State), SegmentsIn: in.Packets, SegmentsOut: out.Packets, Unacked: r.TCP.Unacked,
			Retransmitted: out.RetransPackets, Lost: r.TCP.Lost, RTT: float64(r.TCP.SRTT) / 1000, RTTVariance: float64(r.TCP.RTTVar) / 1000,
			Received: in.Payload, Acked: out.Payload,
		}
	}
	b, err := json.Marshal(&o)
	if err != nil { // numbers and strings only: it cannot be
		return dst
	}
	return append(dst, b...)
}

// event says what happened, in the words of ntop's agents.
func (o *agentObject) event(r *flowcache.Record, source bool, sent uint64) {
	switch {
	case !r.HasTCP && sent > 0:
		o.UDPEvent = "SEND"
	case !r.HasTCP:
		o.UDPEvent = "RECV"
	case r.TCP.ConnectError != 0:
		o.TCPEvent = "CONNECT_FAILED"
	case r.Final:
		o.TCPEvent = "CLOSE"
	case source:
		o.TCPEvent = "CONNECT"
	default:
		o.TCPEvent = "ACCEPT"
	}
}

// AppendCounter appends the state of a network interface.
func (a *AgentJSON) AppendCounter(dst []byte, i *flowcache.Interface) []byte {
	var device uint32 // a number, in the order of the host
	if a.Exporter.Is4() {
		v4 := a.Exporter.As4()
		device = binary.BigEndian.Uint32(v4[:])
	}
	status := "Down"
	if i.Up {
		status = "Up"
	}
	c := struct {
		Device      uint32          `json:"deviceIP"`
		Index       uint32          `json:"ifIndex"`
		Name        string          `json:"ifName"`
		Type        uint16          `json:"ifType"`
		Speed       uint64          `json:"ifSpeed"`
		Direction   string          `json:"ifDirection"`
		Admin       string          `json:"ifAdminStatus"`
		Operation   string          `json:"ifOperStatus"`
		InOctets    uint64          `json:"ifInOctets"`
		InPackets   uint64          `json:"ifInPackets"`
		InErrors    uint64          `json:"ifInErrors"`
		OutOctets   uint64          `json:"ifOutOctets"`
		OutPackets  uint64          `json:"ifOutPackets"`
		OutErrors   uint64          `json:"ifOutErrors"`
		Promiscuous bool            `json:"ifPromiscuousMode"`
		Container   *AgentContainer `json:"LOCAL_CONTAINER,omitempty"`
	}{
		Device: device, Index: i.Index, Name: i.Name, Type: i.Type, Direction: "Full", Admin: status, Operation: status,
		InOctets: i.In.Octets, InPackets: i.In.Packets, InErrors: i.In.Errors,
		OutOctets: i.Out.Octets, OutPackets: i.Out.Packets, OutErrors: i.Out.Errors,
		Container: NewAgentContainer(i.Container),
	}
	b, err := json.Marshal(c)
	if err != nil {
		return dst // numbers and strings only: it cannot be
	}
	return append(dst, b...)
}

// NewAgentContainer returns w for JSON; nil where there is no container.
func NewAgentContainer(w *flowcache.Workload) *AgentContainer {
	switch {
	case w == nil || w.ContainerID == "":
		return nil
	case w.PodName != "":
		return &AgentContainer{ID: w.ContainerID, K8S: &agentK8S{w.PodName, w.PodNamespace, w.ContainerName}}
	case w.ContainerName != "":
		return &AgentContainer{ID: w.ContainerID, Docker: &agentDocker{w.ContainerName}}
	}
	return &AgentContainer{ID: w.ContainerID}
}

func known(id uint32) *uint32 {
	if id == flowcache.NoID {
		return nil
	}
	return &id
}

// agentState is a state's name in the kernel, as ntop's agents print it.
func agentState(s uint8) string {
	names := [...]string{"", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING"}
	if int(s) < len(names) {
		return names[s]
	}
	return ""
}
