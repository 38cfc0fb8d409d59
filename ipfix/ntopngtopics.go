package ipfix

import (
	"encoding/json"
	"time"
)

// announce publishes the names of the fields (topic template) and the state of the probe (topic event), which ntopng needs.
func (x *Ntopng) announce(within time.Duration) {
	x.send("template", 0, templateTopic(), within)
	x.send("event", 0, x.event(), within)
}

// ntopngField describes a key, as nProbe does.
type ntopngField struct {
	PEN    uint32 `json:"PEN"`
	Field  uint16 `json:"field"`
	Length int    `json:"len"`
	Format string `json:"format"`
	Name   string `json:"name"`
	Descr  string `json:"descr"`
}

var ntopngFields = []struct {
	key           uint16
	length        int // octets; 0: text
	name, meaning string
}{
	{keyInBytes, 8, "IN_BYTES", "octets from source to destination"},
	{keyInPackets, 8, "IN_PKTS", "packets from source to destination"},
	{keyProtocol, 1, "PROTOCOL", "IP protocol"},
	{keyTCPFlags, 1, "TCP_FLAGS", "TCP flags of both directions"},
	{keySrcPort, 2, "L4_SRC_PORT", "source port"},
	{keySrcIPv4, 4, "IPV4_SRC_ADDR", "source address"},
	{keyDstPort, 2, "L4_DST_PORT", "destination port"},
	{keyDstIPv4, 4, "IPV4_DST_ADDR", "destination address"},
	{keyLast, 4, "LAST_SWITCHED", "end in Unix seconds"},
	{keyFirst, 4, "FIRST_SWITCHED", "begin in Unix seconds"},
	{keyOutBytes, 8, "OUT_BYTES", "octets from destination to source"},
	{keyOutPackets, 8, "OUT_PKTS", "packets from destination to source"},
	{keySrcIPv6, 16, "IPV6_SRC_ADDR", "source address"},
	{keyDstIPv6, 16, "IPV6_DST_ADDR", "destination address"},
	{keyVersion, 1, "IP_PROTOCOL_VERSION", "4 or 6"},
	{keyExporter4, 4, "EXPORTER_IPV4_ADDRESS", "this host"},
	{keyExporter6, 16, "EXPORTER_IPV6_ADDRESS", "this host"},
	{keyClientTCPFlags, 1, "CLIENT_TCP_FLAGS", "TCP flags of the client"},
	{keyServerTCPFlags, 1, "SERVER_TCP_FLAGS", "TCP flags of the server"},
	{keyRetransIn, 4, "RETRANSMITTED_IN_PKTS", "segments sent again by the source"},
	{keyRetransOut, 4, "RETRANSMITTED_OUT_PKTS", "segments sent again by the destination"},
	{keyRetransOctetsIn, 4, "RETRANSMITTED_IN_BYTES", "octets sent again by the source"},
	{keyRetransOctetsOut, 4, "RETRANSMITTED_OUT_BYTES", "octets sent again by the destination"},
	{keyClientLatency, 4, "CLIENT_NW_LATENCY_MS", "half the round trip to the client"},
	{keyServerLatency, 4, "SERVER_NW_LATENCY_MS", "half the round trip to the server"},
	{keySrcPID, 4, "SRC_PROC_PID", "process at the source"},
	{keySrcPath, 0, "SRC_PROC_NAME", "its executable"},
	{keySrcUID, 4, "SRC_PROC_UID", "its user"},
	{keySrcUser, 0, "SRC_PROC_USER_NAME", "its user's name"},
	{keySrcCommand, 0, "SRC_PROC_CMDLINE", "its command line"},
	{keySrcContainer, 0, "SRC_PROC_CONTAINER_ID", "its container"},
	{keySrcParentPID, 4, "SRC_FATHER_PROC_PID", "its parent"},
	{keySrcParentPath, 0, "SRC_FATHER_PROC_NAME", "its parent's executable"},
	{keySrcParentUID, 4, "SRC_FATHER_PROC_UID", "its parent's user"},
	{keyDstPID, 4, "DST_PROC_PID", "process at the destination"},
	{keyDstPath, 0, "DST_PROC_NAME", "its executable"},
	{keyDstUID, 4, "DST_PROC_UID", "its user"},
	{keyDstUser, 0, "DST_PROC_USER_NAME", "its user's name"},
	{keyDstCommand, 0, "DST_PROC_CMDLINE", "its command line"},
	{keyDstContainer, 0, "DST_PROC_CONTAINER_ID", "its container"},
	{keyDstParentPID, 4, "DST_FATHER_PROC_PID", "its parent"},
	{keyDstParentPath, 0, "DST_FATHER_PROC_NAME", "its parent's executable"},
	{keyDstParentUID, 4, "DST_FATHER_PROC_UID", "its parent's user"},
}

// ntopBase is where ntop's own numbers begin among those of NetFlow v9.
const ntopBase = 57472

func templateTopic() []byte {
	fields := make([]ntopngField, 0, len(ntopngFields))
	for _, f := range ntopngFields {
		t := ntopngField{0, f.key, f.length, "formatted_uint", f.name, f.meaning}
		if f.key >= ntopBase {
			t.PEN, t.Field = 35632, f.key-ntopBase
		}
		if f.length == 0 {
			t.Length, t.Format = maxTLVString, "formatted_string"
		}
		fields = append(fields, t)
	}
	b, err := json.Marshal(fields)
	if err != nil {
		return nil // numbers and strings only: it cannot be
	}
	return b
}

// event is the state of this probe, since its start and since the last event.
func (x *Ntopng) event() []byte {
	now := time.Now()
	since := x.last
	if since.IsZero() {
		since = x.began
	}
	seconds := max(now.Sub(since).Seconds(), 1)
	octets, packets := x.volume[0], x.volume[1]
	bps, pps := float64(octets-x.octets0)*8/seconds, float64(packets-x.packets0)/seconds
	x.last, x.octets0, x.packets0 = now, octets, packets
	address := x.publisher().local()
	st := x.Stats()
	dropped := st.DroppedQueue + st.DroppedSend
	b, err := json.Marshal(map[string]any{
		"iface": map[string]any{"name": x.cfg.Node, "speed": 0, "ip": address},
		"probe": map[string]any{
			"ip": address, "public_ip": "", "uuid": x.cfg.Node, "unique_source_id": x.cfg.SourceID, "version": x.cfg.Version, "osname": "Linux",
			"license": "", "edition": "", "maintenance": "",
		},
		"mode": "packet", "time": now.Unix(), "bytes": octets, "packets": packets, "packet_drops": 0,
		"avg":     map[string]any{"bps": uint64(bps), "pps": uint64(pps)},
		"drops":   map[string]any{"export_queue_full": dropped, "too_many_flows": 0, "elk_flow_drops": 0, "sflow_pkt_sample_drops": 0, "flow_collection_drops": 0},
		"timeout": map[string]any{"lifetime": int(x.cfg.ActiveTimeout.Seconds()), "idle": int(x.cfg.IdleTimeout.Seconds()), "collected_lifetime": 0},
		"zmq":     map[string]any{"num_flow_exports": st.Records, "num_zmq_exporters": 1},
	})
	if err != nil {
		return nil // numbers and strings only: it cannot be
	}
	return b
}
