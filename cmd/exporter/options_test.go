package main

import (
	"bytes"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/netsampler/goflow2/v2/decoders/netflow"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
	"github.com/sockflow/sockflow/templates"
)

var sessionTime = time.Unix(1_700_000_002, 5e8)

// sessionRecords are one of each class: TCP and UDP over IPv4 and IPv6, ICMP, translated addresses, both ends here, a pod elsewhere.
func sessionRecords() []flowcache.Record {
	pod := &flowcache.Workload{ContainerID: "c0ffee", ContainerName: "web", ContainerImage: "nginx:1.27", ContainerRuntime: "containerd",
		PodName: "web-1", PodNamespace: "shop", PodUID: "6f1c0f0e-0001-4c6f-9b1e-000000000001", PodLabels: "app=web,tier=front"}
	base := flowcache.Record{
		Key:   flowcache.Key{Src: flowcache.AddrFrom4([4]byte{192, 0, 2, 1}), Dst: flowcache.AddrFrom4([4]byte{192, 0, 2, 2}), SrcPort: 40000, DstPort: 443, Proto: 6, NetNS: 99},
		Start: 1_700_000_000e9, End: 1_700_000_001e9, EndReason: flowcache.EndDetected, Control: 0x1b, HasTCP: true, Origin: flowcache.OriginEBPF,
		Forward: flowcache.Counters{Payload: 1000, Octets: 1500, Packets: 10, RetransPackets: 1, RetransOctets: 100},
		Reverse: flowcache.Counters{Payload: 2000, Octets: 2600, Packets: 12, RetransPackets: 2, RetransOctets: 200},
		TCP: flowcache.TCPMetrics{SRTT: 11, RTTVar: 12, MinRTT: 13, Lost: 14, Unacked: 15, CongestionWindow: 16, ConnectTime: 17, DeliveryRate: 18, PacingRate: 19, State: 7,
			CongestionControlName: [16]byte{'c', 'u', 'b', 'i', 'c'}},
		Source: flowcache.End{Local: true, Process: flowcache.ProcessID{PID: 4242}, UID: 33, GID: 34, NetNS: 99, CGroup: 77, Cookie: 1234, Container: pod,
			Who: &flowcache.Process{Path: "/usr/bin/curl", Name: "curl", UserName: "www-data", StartTime: 1_600_000_000_123e6, ParentPID: 7, ParentPath: "/usr/bin/bash", ParentUID: 35}},
		Dest: flowcache.End{UID: flowcache.NoID, GID: flowcache.NoID},
	}
	l := make([]flowcache.Record, 7)
	for i := range l {
		l[i] = base
		l[i].Key.SrcPort += uint16(i) // collectors may add up what has equal keys
	}
	l[1].Key.Proto, l[1].HasTCP = 17, false
	l[2].Key.Src, l[2].Key.Dst = flowcache.Addr{0: 0x20, 1: 1, 15: 1}, flowcache.Addr{0: 0x20, 1: 1, 15: 2}
	l[3].Key.Proto, l[3].Key.SrcPort, l[3].Key.DstPort, l[3].HasTCP = 1, 0, 8<<8, false
	l[4].Post = flowcache.Translation{Src: flowcache.AddrFrom4([4]byte{198, 51, 100, 1}), Dst: flowcache.AddrFrom4([4]byte{198, 51, 100, 2}), SrcPort: 50001, DstPort: 50002}
	l[5].Dest = l[5].Source
	l[6].Dest.Container, l[6].Dest.Service, l[6].Dest.Node = &flowcache.Workload{PodName: "db-0", PodNamespace: "data"}, "data/db", "node-2"
	return l
}

// session is what a collector is sent: options data, records, interfaces, and all of it again after two minutes.
func session(t *testing.T, proto ipfix.Protocol, opt templates.Options) [][]byte {
	t.Helper()
	var msgs [][]byte
	opt.Node = "node-1"
	e, err := ipfix.NewEncoder(proto, opt, 7, 1400, sessionTime.Add(-time.Hour), func(m []byte, _ int) error {
		msgs = append(msgs, bytes.Clone(m))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	lost := uint64(0)
	e.Describe(ipfix.Info{Version: "v1.2", Kernel: "6.18.0", Facts: func() ipfix.Facts {
		return ipfix.Facts{Messages: 11, Octets: 12, Flows: 13, NotSentFlows: lost, NotSentPackets: 2 * lost, NotSentOctets: 3 * lost,
			Metering: ipfix.Metering{Flows: 14, IgnoredPackets: 15, IgnoredOctets: 16}}
	}})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(e.Templates(sessionTime))
	for _, r := range sessionRecords() {
		must(e.Record(&r, sessionTime))
	}
	must(e.Flush(sessionTime))
	must(e.Interfaces([]flowcache.Interface{{
		NetNS: 99, Index: 3, Name: "eth0", Type: 1, Kind: "veth", Up: true, MTU: 1500, Time: sessionTime.UnixNano(),
		In: flowcache.InterfaceCounters{Octets: 101, Packets: 102, Errors: 103, Drops: 104}, Out: flowcache.InterfaceCounters{Octets: 105, Packets: 106, Errors: 107, Drops: 108},
		Container: &flowcache.Workload{ContainerID: "c0ffee", ContainerName: "web", PodName: "web-1", PodNamespace: "shop"},
	}}, sessionTime))
	lost = 21
	must(e.Statistics(sessionTime.Add(time.Minute)))
	must(e.Templates(sessionTime.Add(2 * time.Minute)))
	return msgs
}

// find returns the records that have every one of the values.
func find(recs []fields, want fields) []fields {
	var l []fields
next:
	for _, r := range recs {
		for k, v := range want {
			if r[k] != v {
				continue next
			}
		}
		l = append(l, r)
	}
	return l
}

// TestOptionsData: libfixbuf, which is strict, reads the options records, and every field of the flow records, by name.
func TestOptionsData(t *testing.T) {
	needTool(t, "ipfixDump")
	for _, dialect := range []templates.Dialect{templates.Known, templates.Native, templates.IANA} {
		msgs := session(t, ipfix.IPFIX, templates.Options{Dialect: dialect})
		sequence(t, msgs)
		recs := ipfixDump(t, bytes.Join(msgs, nil))
		has := func(what string, times int, want fields) {
			t.Helper()
			if n := len(find(recs, want)); n != times {
				t.Errorf("dialect %d: %s: %d times, want %d", dialect, what, n, times)
			}
		}
		has("exporter", 2, fields{"observationDomainName": "node-1", "systemInitTimeMilliseconds": "2023-11-14 21:13:22.500", "29305:1": ""})
		has("statistics", 3, fields{"observationDomainId": "7", "exportedMessageTotalCount": "11", "exportedOctetTotalCount": "12", "exportedFlowRecordTotalCount": "13", "observedFlowTotalCount": "14"})
		has("metering reliability", 3, fields{"observationDomainId": "7", "ignoredPacketTotalCount": "15", "ignoredOctetTotalCount": "16"})
		has("no loss", 1, fields{"notSentFlowTotalCount": "0", "observationTimeMilliseconds": "2023-11-14 22:13:22.500"})
		has("loss", 2, fields{"notSentFlowTotalCount": "21", "notSentPacketTotalCount": "42", "notSentOctetTotalCount": "63", "observationTimeMilliseconds": "2023-11-14 22:14:22.500"})
		has("selection", 2, fields{"selectorId": "1", "selectorAlgorithm": "1", "samplingPacketInterval": "1", "samplingPacketSpace": "0"})
		has("interface", 1, fields{"ingressInterface": "3", "ingressVRFID": "99", "interfaceName": "eth0", "ingressInterfaceType": "6", "octetTotalCount": "101", "packetTotalCount": "102",
			"droppedPacketTotalCount": "104", "postOctetTotalCount": "105", "postPacketTotalCount": "106"})
		icmp := fields{"icmpTypeCodeIPv4": "2048", "protocolIdentifier": "1", "sourceTransportPort": ""}
		nat := fields{"postNATSourceIPv4Address": "198.51.100.1", "postNATDestinationIPv4Address": "198.51.100.2", "postNAPTSourceTransportPort": "50001", "postNAPTDestinationTransportPort": "50002"}
		if dialect == templates.IANA {
			has("icmp, both directions", 2, icmp)
			has("translation", 1, nat)
			has("other direction", 6, fields{"biflowDirection": "2", "applicationName": "https", "sourceTransportPort": "443", "userName": "www-data", "transportOctetDeltaCount": "2000"})
			// ipfixDump shows the octets 03 00 01 bb as a number of this host.
			has("application", 1, fields{"applicationId": "3137404931", "applicationName": "https", "applicationDescription": "IANA port 443"})
			has("flow", 6, fields{"userName": "www-data", "virtualStationName": "web-1", "applicationName": "https", "observationDomainName": "node-1", "transportOctetDeltaCount": "1000"})
			continue
		}
		has("exporter's versions", 2, fields{"exporterVersion": "v1.2", "kernelVersion": "6.18.0"})
		has("interface", 1, fields{"interfaceInputErrorPackets": "103", "interfaceOutputErrorPackets": "107", "interfaceOutputDropPackets": "108", "interfaceMtu": "1500",
			"interfaceOperational": "1", "interfaceKind": "veth", "sourceNetworkNamespace": "99", "sourceContainerId": "c0ffee", "sourceContainerName": "web", "sourcePodName": "web-1", "sourcePodNamespace": "shop"})
		has("icmp", 1, icmp)
		has("translation", 1, nat)
		has("tcp", 1, fields{"sourceIPv6Address": "2001::0001", "tcpSmoothedRoundTripTimeMicroseconds": "11", "tcpRoundTripTimeVarianceMicroseconds": "12", "tcpMinimumRoundTripTimeMicroseconds": "13",
			"retransmittedPacketDeltaCount": "1", "retransmittedOctetDeltaCount": "100", "tcpLostPackets": "14", "tcpUnacknowledgedPackets": "15", "tcpCongestionWindow": "16",
			"tcpConnectTimeMicroseconds": "17", "tcpDeliveryRate": "18", "tcpPacingRate": "19", "tcpState": "7", "tcpCongestionControl": "cubic", "tcpControlBits": "27"})
		has("process", 7, fields{"sourceProcessId": "4242", "sourceProcessPath": "/usr/bin/curl", "sourceUserId": "33", "sourceGroupId": "34", "sourceUserName": "www-data",
			"sourceProcessStartTime": "2020-09-13 12:26:40.123", "sourceParentProcessId": "7", "sourceParentProcessPath": "/usr/bin/bash", "sourceNetworkNamespace": "99", "sourceSocketCookie": "1234"})
		has("pod", 6, fields{"sourceContainerId": "c0ffee", "sourceContainerName": "web", "sourceContainerImage": "nginx:1.27", "sourceContainerRuntime": "containerd", "sourcePodName": "web-1",
			"sourcePodNamespace": "shop", "sourcePodUid": "6f1c0f0e-0001-4c6f-9b1e-000000000001", "sourcePodLabels": "app=web,tier=front", "sourceNodeName": "node-1"})
		has("both ends here", 1, fields{"destinationProcessId": "4242", "destinationPodName": "web-1", "reverseRetransmittedPacketDeltaCount": "2"})
		has("pod elsewhere", 1, fields{"destinationPodName": "db-0", "destinationPodNamespace": "data", "destinationServiceName": "data/db", "destinationNodeName": "node-2", "destinationProcessId": ""})
	}
}

// TestFlowKeys: the bits of flowKeyIndicator are those of the keys, by the order of the fields that goflow2 reads in the template.
func TestFlowKeys(t *testing.T) {
	keys := map[uint16]bool{8: true, 12: true, 27: true, 28: true, 7: true, 11: true, 4: true, 32: true, 139: true}
	layouts, indicators := map[uint16]uint64{}, map[uint16]uint64{}
	sys := netflow.CreateTemplateSystem()
	for _, m := range session(t, ipfix.IPFIX, templates.Options{}) {
		var x netflow.IPFIXPacket
		if err := netflow.DecodeMessageVersion(bytes.NewBuffer(m), sys, nil, &x); err != nil {
			t.Fatal(err)
		}
		for _, set := range x.FlowSets {
			switch set := set.(type) {
			case netflow.TemplateFlowSet:
				for _, r := range set.Records {
					for i, f := range r.Fields {
						if !f.PenProvided && keys[f.Type] || f.PenProvided && f.Pen == templates.PENExample && (f.Type == 37 || f.Type == 38) {
							layouts[r.TemplateId] |= 1 << i
						}
					}
				}
			case netflow.OptionsDataFlowSet:
				for _, r := range set.Records {
					if len(r.OptionsValues) == 1 && r.OptionsValues[0].Type == 173 {
						indicators[uint16(number(r.ScopesValues[0].Value))] = number(r.OptionsValues[0].Value)
					}
				}
			}
		}
	}
	if len(layouts) != 7 || fmt.Sprint(layouts) != fmt.Sprint(indicators) {
		t.Errorf("keys %v, told %v", layouts, indicators)
	}
}

func number(v any) (n uint64) {
	for _, c := range v.([]byte) {
		n = n<<8 | uint64(c)
	}
	return n
}

// TestOptionsV9: NetFlow v9 has scopes of its own.
func TestOptionsV9(t *testing.T) {
	msgs := session(t, ipfix.NetFlowV9, templates.Options{})
	sys := netflow.CreateTemplateSystem()
	got := map[string]int{}
	for i, m := range msgs {
		var v9 netflow.NFv9Packet
		if err := netflow.DecodeMessageVersion(bytes.NewBuffer(m), sys, &v9, nil); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		count := 0
		for _, set := range v9.FlowSets {
			switch set := set.(type) {
			case netflow.TemplateFlowSet:
				count += len(set.Records)
			case netflow.NFv9OptionsTemplateFlowSet:
				count += len(set.Records)
			case netflow.DataFlowSet:
				count += len(set.Records)
			case netflow.OptionsDataFlowSet:
				count += len(set.Records)
				for _, r := range set.Records {
					scope := r.ScopesValues[0]
					values := ""
					for _, f := range r.OptionsValues {
						if b := f.Value.([]byte); len(b) <= 8 && f.Type != 323 && f.Type != 160 {
							values += fmt.Sprintf(" %d=%d", f.Type, number(b))
						}
					}
					got[fmt.Sprintf("scope %d:%s", scope.Type, values)]++
				}
			}
		}
		if count != int(v9.Count) {
			t.Errorf("message %d: %d records, the header says %d", i, count, v9.Count)
		}
	}
	for want, times := range map[string]int{
		"scope 1: 41=11 42=13 40=12 163=14": 3,
		"scope 1: 164=15 165=16":            3,
		"scope 1: 166=21 167=42 168=63":     2,
		"scope 1: 34=1 35=1":                2,
	} {
		if got[want] != times {
			t.Errorf("%q: %d times, want %d; got %v", want, got[want], times, got)
		}
	}
	interfaces := 0
	for k := range got {
		if strings.HasPrefix(k, "scope 2:") && strings.Contains(k, " 85=101 86=102") {
			interfaces++
		}
	}
	if interfaces != 1 {
		t.Errorf("no interface in %v", got)
	}
	tshark(t, msgs)
}

// TestOptionsAreNoFlows: nfdump, which stores what looks like a flow, gets the flows and nothing else.
func TestOptionsAreNoFlows(t *testing.T) {
	for _, proto := range []ipfix.Protocol{ipfix.IPFIX, ipfix.NetFlowV9} {
		n := newNfcapd(t)
		c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", n.port))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range session(t, proto, templates.Options{}) {
			if _, err := c.Write(m); err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
		flows := n.stop()
		if len(flows) != len(sessionRecords()) {
			t.Errorf("protocol %d: %d flows, want %d: %+v", proto, len(flows), len(sessionRecords()), flows)
		}
		for _, f := range flows {
			if f.InBytes != 1500 || f.OutBytes != 2600 || !strings.HasPrefix(f.First, "2023-11-14") {
				t.Errorf("protocol %d: %+v", proto, f)
			}
		}
	}
	tshark(t, session(t, ipfix.IPFIX, templates.Options{}))
}

// TestPrograms: with ?application=process applicationId stands for the programs at a flow's ends, and libfixbuf and nfdump have their names.
func TestPrograms(t *testing.T) {
	needTool(t, "ipfixDump")
	recs := ipfixDump(t, bytes.Join(session(t, ipfix.IPFIX, templates.Options{Programs: true}), nil))
	for _, c := range []struct {
		name, where string
		flows       int
	}{
		{"curl", "web-1", 4}, // ICMP has no application
		{"curl", "web-1>db-0", 1},
		{"curl>curl", "web-1>web-1", 1},
	} {
		told := find(recs, fields{"applicationName": c.name, "applicationDescription": c.where})
		if len(told) != 1 {
			t.Fatalf("%s of %s is told %d times", c.name, c.where, len(told))
		}
		got := 0
		for _, r := range find(recs, fields{"applicationId": told[0]["applicationId"]}) {
			if r["transportOctetDeltaCount"] != "" {
				got++
			}
		}
		if got != c.flows {
			t.Errorf("%d flows of %s of %s, want %d", got, c.name, c.where, c.flows)
		}
	}

	n := newNfcapd(t)
	c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", n.port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, m := range session(t, ipfix.NetFlowV9, templates.Options{Programs: true}) {
		if _, err := c.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	n.stop()
	out, err := exec.Command("nfdump", "-R", n.dir, "-q", "-o", "fmt:%sp %nbnam").CombinedOutput()
	for _, want := range []string{"40000 curl/web-1\n", "40005 curl>curl/web-1>web-1\n"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("nfdump does not show %q (%v):\n%s", want, err, out)
		}
	}
}
