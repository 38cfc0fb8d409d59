package templates

import (
	"encoding/binary"
	"slices"

	"github.com/sockflow/sockflow/flowcache"
)

// run is a sequence of fields that are written at once, by hand: several times faster than one by one. A template uses it where it
// has just these fields in this order, and their own functions otherwise; a test holds the two equal. Its fields are of fixed
// length (put), or strings of variable length (text).
type run struct {
	names  []string
	octets int
	put    func(c *context, b []byte, r *flowcache.Record)
	text   func(dst []byte, r *flowcache.Record, limit int) []byte
}

// flowRuns lists the runs, a longer one before one that it begins with.
func flowRuns() []run {
	key4 := []string{"sourceIPv4Address", "destinationIPv4Address", "sourceTransportPort", "destinationTransportPort", "protocolIdentifier", "flowEndReason", "biflowDirection"}
	key6 := append([]string{"sourceIPv6Address", "destinationIPv6Address"}, key4[2:]...)
	counters := []string{"octetDeltaCount", "packetDeltaCount", "transportOctetDeltaCount", "flowStartMilliseconds", "flowEndMilliseconds"}
	reverse := []string{"reverseOctetDeltaCount", "reversePacketDeltaCount", "reverseTransportOctetDeltaCount"}
	back := []string{"reverseTcpControlBits"}
	tcp := []string{
		"observationSource", "tcpControlBits", "tcpState", "connectionError", "tcpConnectTimeMicroseconds",
		"tcpSmoothedRoundTripTimeMicroseconds", "tcpMinimumRoundTripTimeMicroseconds", "retransmittedPacketDeltaCount",
		"retransmittedOctetDeltaCount", "tcpRoundTripTimeVarianceMicroseconds", "tcpLostPackets", "tcpUnacknowledgedPackets",
		"tcpCongestionWindow", "tcpDeliveryRate", "tcpPacingRate",
	}
	process := []string{"NetworkNamespace", "SocketCookie", "ControlGroupId", "ProcessId", "UserId", "GroupId", "ProcessStartTime", "ParentProcessId", "ParentUserId"}
	processTexts := []string{"ProcessPath", "ProcessName", "UserName", "ParentProcessPath"}
	containerTexts := []string{"ContainerId", "ContainerName", "ContainerImage", "ContainerRuntime"}
	podTexts := []string{"PodName", "PodNamespace", "PodUid", "PodLabels", "ServiceName"}
	return []run{
		{names: slices.Concat(key4, counters, reverse, back, tcp), octets: 145, put: putFlow4},
		{names: slices.Concat(key6, counters, reverse, back, tcp), octets: 169, put: putFlow6},
		{names: key4, octets: 15, put: putKey4},
		{names: key6, octets: 39, put: putKey6},
		{names: slices.Concat(counters, reverse), octets: 64, put: putBiflow},
		{names: counters, octets: 40, put: putUniflow},
		{names: tcp, octets: 65, put: putTCP},
		{names: tcp[:8], octets: 25, put: putTCPLess},
		{names: names(false, process), octets: 48, put: func(_ *context, b []byte, r *flowcache.Record) { putProcess(b, &r.Source) }},
		{names: names(true, process), octets: 48, put: func(_ *context, b []byte, r *flowcache.Record) { putProcess(b, &r.Dest) }},
		{names: names(false, append(processTexts, "ServiceUnit")), text: func(dst []byte, r *flowcache.Record, limit int) []byte { return appendUnit(dst, &r.Source, limit) }},
		{names: names(true, append(processTexts, "ServiceUnit")), text: func(dst []byte, r *flowcache.Record, limit int) []byte { return appendUnit(dst, &r.Dest, limit) }},
		{names: names(false, processTexts), text: func(dst []byte, r *flowcache.Record, limit int) []byte { return appendProcess(dst, &r.Source, limit) }},
		{names: names(true, processTexts), text: func(dst []byte, r *flowcache.Record, limit int) []byte { return appendProcess(dst, &r.Dest, limit) }},
		{names: names(false, containerTexts), text: func(dst []byte, r *flowcache.Record, limit int) []byte { return appendContainer(dst, &r.Source, limit) }},
		{names: names(true, containerTexts), text: func(dst []byte, r *flowcache.Record, limit int) []byte { return appendContainer(dst, &r.Dest, limit) }},
		{names: names(false, podTexts), text: func(dst []byte, r *flowcache.Record, limit int) []byte { return appendPod(dst, &r.Source, limit) }},
		{names: names(true, podTexts), text: func(dst []byte, r *flowcache.Record, limit int) []byte { return appendPod(dst, &r.Dest, limit) }},
	}
}

func names(dest bool, l []string) []string {
	prefix, _, _ := end(dest)
	full := make([]string, len(l))
	for i := range l {
		full[i] = prefix + l[i]
	}
	return full
}

var be = binary.BigEndian

func putKey4(c *context, b []byte, r *flowcache.Record) {
	d := (*[15]byte)(b)
	*(*[4]byte)(d[0:]) = [4]byte(r.Key.Src[12:])
	*(*[4]byte)(d[4:]) = [4]byte(r.Key.Dst[12:])
	be.PutUint16(d[8:], r.Key.SrcPort)
	be.PutUint16(d[10:], r.Key.DstPort)
	d[12], d[13], d[14] = r.Key.Proto, byte(r.EndReason), byte(c.direction(r))
}

func putKey6(c *context, b []byte, r *flowcache.Record) {
	d := (*[39]byte)(b)
	*(*[16]byte)(d[0:]) = r.Key.Src
	*(*[16]byte)(d[16:]) = r.Key.Dst
	be.PutUint16(d[32:], r.Key.SrcPort)
	be.PutUint16(d[34:], r.Key.DstPort)
	d[36], d[37], d[38] = r.Key.Proto, byte(r.EndReason), byte(c.direction(r))
}

func putUniflow(_ *context, b []byte, r *flowcache.Record) {
	d := (*[40]byte)(b)
	be.PutUint64(d[0:], r.Forward.Octets)
	be.PutUint64(d[8:], r.Forward.Packets)
	be.PutUint64(d[16:], r.Forward.Payload)
	be.PutUint64(d[24:], uint64(r.Start/1e6))
	be.PutUint64(d[32:], uint64(r.End/1e6))
}

func putBiflow(c *context, b []byte, r *flowcache.Record) {
	d := (*[64]byte)(b)
	putUniflow(c, d[:40], r)
	be.PutUint64(d[40:], r.Reverse.Octets)
	be.PutUint64(d[48:], r.Reverse.Packets)
	be.PutUint64(d[56:], r.Reverse.Payload)
}

func putTCPLess(_ *context, b []byte, r *flowcache.Record) {
	d := (*[25]byte)(b)
	t := &r.TCP
	d[0], d[1], d[2] = byte(r.Origin), byte(r.Control), t.State
	be.PutUint16(d[3:], t.ConnectError)
	be.PutUint32(d[5:], t.ConnectTime)
	be.PutUint32(d[9:], t.SRTT)
	be.PutUint32(d[13:], t.MinRTT)
	be.PutUint64(d[17:], local(r).RetransPackets)
}

func putTCP(c *context, b []byte, r *flowcache.Record) {
	d := (*[65]byte)(b)
	t := &r.TCP
	putTCPLess(c, d[:25], r)
	be.PutUint64(d[25:], local(r).RetransOctets)
	be.PutUint32(d[33:], t.RTTVar)
	be.PutUint32(d[37:], t.Lost)
	be.PutUint32(d[41:], t.Unacked)
	be.PutUint32(d[45:], t.CongestionWindow)
	be.PutUint64(d[49:], t.DeliveryRate)
	be.PutUint64(d[57:], t.PacingRate)
}

// putFlow4 is all that a biflow of TCP over IPv4 has beside its ends.
func putFlow4(c *context, b []byte, r *flowcache.Record) {
	d := (*[145]byte)(b)
	putKey4(c, d[:15], r)
	putBiflow(c, d[15:79], r)
	d[79] = byte(r.ControlBack)
	putTCP(c, d[80:], r)
}

func putFlow6(c *context, b []byte, r *flowcache.Record) {
	d := (*[169]byte)(b)
	putKey6(c, d[:39], r)
	putBiflow(c, d[39:103], r)
	d[103] = byte(r.ControlBack)
	putTCP(c, d[104:], r)
}

func putProcess(b []byte, e *flowcache.End) {
	d, p := (*[48]byte)(b), who(e)
	be.PutUint32(d[0:], e.NetNS)
	be.PutUint64(d[4:], e.Cookie)
	be.PutUint64(d[12:], e.CGroup)
	be.PutUint32(d[20:], e.Process.PID)
	be.PutUint32(d[24:], e.UID)
	be.PutUint32(d[28:], e.GID)
	be.PutUint64(d[32:], uint64(p.StartTime/1e6))
	be.PutUint32(d[40:], p.ParentPID)
	be.PutUint32(d[44:], p.ParentUID)
}

func appendProcess(dst []byte, e *flowcache.End, limit int) []byte {
	p := who(e)
	dst = AppendString(dst, p.Path, limit)
	dst = AppendString(dst, p.Name, limit)
	dst = AppendString(dst, p.UserName, limit)
	return AppendString(dst, p.ParentPath, limit)
}

func appendUnit(dst []byte, e *flowcache.End, limit int) []byte {
	return AppendString(appendProcess(dst, e, limit), workload(e).ServiceUnit, limit)
}

func appendContainer(dst []byte, e *flowcache.End, limit int) []byte {
	w := workload(e)
	dst = AppendString(dst, w.ContainerID, limit)
	dst = AppendString(dst, w.ContainerName, limit)
	dst = AppendString(dst, w.ContainerImage, limit)
	return AppendString(dst, w.ContainerRuntime, limit)
}

func appendPod(dst []byte, e *flowcache.End, limit int) []byte {
	w := workload(e)
	dst = AppendString(dst, w.PodName, limit)
	dst = AppendString(dst, w.PodNamespace, limit)
	dst = AppendString(dst, w.PodUID, limit)
	dst = AppendString(dst, w.PodLabels, limit)
	return AppendString(dst, e.Service, limit)
}
