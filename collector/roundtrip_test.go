package collector_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sockflow/sockflow/collector"
	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
	"github.com/sockflow/sockflow/templates"
)

// layout is how records are encoded.
type layout struct {
	proto ipfix.Protocol
	opt   templates.Options
}

func (l layout) String() string {
	s := []string{"ipfix", "netflow9"}[l.proto] + " " + []string{"known", "native", "iana"}[l.opt.Dialect]
	if l.opt.Uniflow {
		return s + " uniflow"
	}
	return s + " biflow"
}

func layouts() []layout {
	var l []layout
	for _, proto := range []ipfix.Protocol{ipfix.IPFIX, ipfix.NetFlowV9} {
		for _, d := range []templates.Dialect{templates.Known, templates.Native, templates.IANA} {
			for _, uni := range []bool{false, true} {
				l = append(l, layout{proto, templates.Options{Dialect: d, Uniflow: uni, CommandLine: true, Aggregates: true, Node: "node-1"}})
			}
		}
	}
	return l
}

// boot is when the exporter's sysUptime was 0, now when it exports.
var (
	boot = time.UnixMilli(1_700_000_000_000)
	now  = boot.Add(time.Hour)
)

// encode returns the messages that carry records.
func encode(t testing.TB, l layout, size int, records []flowcache.Record) [][]byte {
	t.Helper()
	var msgs [][]byte
	e, err := ipfix.NewEncoder(l.proto, l.opt, 7, size, boot, func(m []byte, _ int) error {
		msgs = append(msgs, bytes.Clone(m))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Templates(now); err != nil {
		t.Fatal(err)
	}
	for i := range records {
		if err := e.Record(&records[i], now); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Flush(now); err != nil {
		t.Fatal(err)
	}
	return msgs
}

// flows are the records of a result that are no options data.
func flows(recs []collector.Record) []collector.Record {
	return slices.DeleteFunc(recs, func(r collector.Record) bool { return r.Template.Options })
}

// sample is a record with something in every field; variants by n.
func sample(n int, v6 bool) flowcache.Record {
	src, dst := flowcache.AddrFrom4([4]byte{192, 0, 2, byte(n)}), flowcache.AddrFrom4([4]byte{198, 51, 100, byte(n)})
	if v6 {
		src, dst = flowcache.Addr{0x20, 1, 0xd, 0xb8, 15: byte(n)}, flowcache.Addr{0x20, 1, 0xd, 0xb8, 7: 1, 15: byte(n)}
	}
	u := uint64(n)
	r := flowcache.Record{
		Key:   flowcache.Key{Src: src, Dst: dst, SrcPort: uint16(40000 + n), DstPort: 443, Proto: flowcache.ProtoTCP, NetNS: 4026531840},
		Start: boot.Add(time.Minute).UnixNano() + 123e6, End: boot.Add(2*time.Minute).UnixNano() + 456e6, EndReason: flowcache.EndDetected, Final: true,
		Control: 0x1b, ControlBack: 0x12, HasTCP: true, Origin: flowcache.OriginEBPF, Flows: 300 + u, FlowsBack: 200 + u,
		Forward: flowcache.Counters{Payload: 1000 + u, Octets: 1500 + u, Packets: 10 + u, RetransPackets: 1, RetransOctets: 100},
		Reverse: flowcache.Counters{Payload: 2000 + u, Octets: 2600 + u, Packets: 12 + u},
		TCP:     flowcache.TCPMetrics{SRTT: 120, RTTVar: 30, MinRTT: 90, State: 7, ConnectTime: 55, Lost: 2},
		Source: flowcache.End{
			Local: true, Process: flowcache.ProcessID{PID: uint32(4242 + n)}, UID: 33, GID: 33, NetNS: 4026531840, CGroup: 77, Cookie: 1234,
			Who: &flowcache.Process{
				ID: flowcache.ProcessID{PID: uint32(4242 + n)}, Path: "/usr/bin/curl", Name: "curl", CommandLine: "curl -s http://…/", UserName: "www-data",
				UID: 33, GID: 33, ParentPID: 7, ParentPath: "/usr/bin/bash", ParentUID: 0,
			},
			Container: &flowcache.Workload{ContainerID: strings.Repeat("c", 64), ContainerName: "web", PodName: "pod-1", PodNamespace: "default"},
		},
		Dest: flowcache.End{UID: flowcache.NoID, GID: flowcache.NoID},
	}
	if n%2 == 1 {
		r.Key.Proto, r.HasTCP, r.Control, r.TCP = flowcache.ProtoUDP, false, 0, flowcache.TCPMetrics{}
	}
	return r
}

// want is what a decoder must find in a record, by the names of the IANA registry and of the project.
func want(l layout, r *flowcache.Record) map[string]any {
	w := map[string]any{
		"sourceTransportPort": uint64(r.Key.SrcPort), "destinationTransportPort": uint64(r.Key.DstPort), "protocolIdentifier": uint64(r.Key.Proto),
		"octetDeltaCount": r.Forward.Octets, "packetDeltaCount": r.Forward.Packets, "transportOctetDeltaCount": r.Forward.Payload,
		"flowEndReason": uint64(r.EndReason), "deltaFlowCount": r.Flows,
	}
	if r.Key.Is4() {
		w["sourceIPv4Address"], w["destinationIPv4Address"] = r.Key.Src.Netip(), r.Key.Dst.Netip()
	} else {
		w["sourceIPv6Address"], w["destinationIPv6Address"] = netip.AddrFrom16(r.Key.Src), netip.AddrFrom16(r.Key.Dst)
	}
	if r.HasTCP {
		w["tcpControlBits"] = uint64(r.Control)
	}
	if !l.opt.Uniflow && l.opt.Dialect != templates.IANA {
		w["reverseOctetDeltaCount"], w["reversePacketDeltaCount"] = r.Reverse.Octets, r.Reverse.Packets
		w["reverseTransportOctetDeltaCount"] = r.Reverse.Payload
		if r.HasTCP {
			w["reverseTcpControlBits"] = uint64(r.ControlBack)
		}
		if l.proto == ipfix.NetFlowV9 {
			delete(w, "reverseOctetDeltaCount")
			delete(w, "reversePacketDeltaCount")
			delete(w, "reverseTransportOctetDeltaCount")
			if l.opt.Dialect != templates.Known { // it is ntop's element
				delete(w, "reverseTcpControlBits")
			}
			w["postOctetDeltaCount"], w["postPacketDeltaCount"] = r.Reverse.Octets, r.Reverse.Packets
		}
	}
	if l.opt.Dialect == templates.IANA {
		local := &r.Source
		if !local.Local {
			local = &r.Dest
		}
		w["userName"], w["virtualStationName"] = local.Who.UserName, local.Container.PodName
		return w
	}
	for side, e := range map[string]*flowcache.End{"source": &r.Source, "destination": &r.Dest} {
		if !e.Local {
			continue
		}
		w[side+"ProcessId"], w[side+"ProcessPath"], w[side+"ProcessCommandLine"] = uint64(e.Process.PID), e.Who.Path, e.Who.CommandLine
		w[side+"UserId"], w[side+"UserName"] = uint64(e.UID), e.Who.UserName
		w[side+"ParentProcessId"], w[side+"ParentProcessPath"] = uint64(e.Who.ParentPID), e.Who.ParentPath
		w[side+"ContainerId"], w[side+"PodName"], w[side+"PodNamespace"] = e.Container.ContainerID, e.Container.PodName, e.Container.PodNamespace
	}
	return w
}

// compare returns an error if a decoded record differs from the one that was encoded.
func compare(l layout, got *collector.Record, r *flowcache.Record) error {
	for name, v := range want(l, r) {
		if g := got.Get(name); g != v {
			return fmt.Errorf("%s: %v (%T), want %v (%T)", name, g, g, v, v)
		}
	}
	for name, ns := range map[string]int64{"flowStartMilliseconds": r.Start, "flowEndMilliseconds": r.End} {
		if g := got.Time(name); !g.Equal(time.Unix(0, ns-ns%1e6)) {
			return fmt.Errorf("%s: %v, want %v", name, g, time.Unix(0, ns))
		}
	}
	return nil
}

// opposite is the record of the other direction.
func opposite(r flowcache.Record) flowcache.Record {
	r.Key = r.Key.Reverse()
	r.Forward, r.Reverse = r.Reverse, r.Forward
	r.Control, r.ControlBack = r.ControlBack, r.Control
	r.Source, r.Dest = r.Dest, r.Source
	r.Flows, r.FlowsBack = r.FlowsBack, r.Flows
	return r
}

// sent is what a layout makes of records: with uniflows, two of one.
func sent(l layout, records []flowcache.Record) []flowcache.Record {
	if !l.opt.Uniflow && l.opt.Dialect != templates.IANA {
		return records
	}
	var all []flowcache.Record
	for _, r := range records {
		all = append(all, r, opposite(r))
	}
	return all
}

// TestRoundTrip decodes what the encoder made of records, in every layout: equal by value, with nothing lost in the sequence.
func TestRoundTrip(t *testing.T) {
	var records []flowcache.Record
	for n := range 40 {
		records = append(records, sample(n, n%4 > 1))
	}
	for _, l := range layouts() {
		for _, size := range []int{512, 1400, 65535} {
			t.Run(fmt.Sprint(l, size), func(t *testing.T) {
				if size == 512 && l.proto == ipfix.NetFlowV9 {
					t.Skip("a record of fixed strings is longer")
				}
				s, err := collector.NewSession(collector.Config{Datagrams: size < 65535})
				if err != nil {
					t.Fatal(err)
				}
				got, err := s.Messages(encode(t, l, size, records))
				if err != nil {
					t.Fatal(err)
				}
				st, all := s.Stats(), sent(l, records)
				got = flows(got)
				if len(got) != len(all) {
					t.Fatalf("%d records, want %d", len(got), len(all))
				}
				for i := range got {
					if err := compare(l, &got[i], &all[i]); err != nil && !(size == 512 && strings.Contains(err.Error(), "CommandLine")) {
						t.Fatalf("record %d: %v", i, err)
					}
					for _, f := range got[i].Template.Fields {
						if f.Element == nil {
							t.Fatalf("field %s has no name", f.Name())
						}
					}
				}
				if lost := st.Gaps + st.Late + st.Restarts + st.Ignored + st.Refused + st.UnknownSets; lost != 0 || st.Records != uint64(len(all))+st.Options {
					t.Errorf("%+v", st)
				}
			})
		}
	}
}

// BenchmarkJSON decodes a record with every field, and writes it.
func BenchmarkJSON(b *testing.B) {
	msgs := encode(b, layout{}, 1400, []flowcache.Record{sample(2, false)})
	s, err := collector.NewSession(collector.Config{})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := s.Messages(msgs[:len(msgs)-1]); err != nil {
		b.Fatal(err)
	}
	var line []byte
	b.ReportAllocs()
	for b.Loop() {
		recs, err := s.Decode(msgs[len(msgs)-1], now)
		if err != nil {
			b.Fatal(err)
		}
		for i := range recs {
			line = recs[i].AppendJSON(line[:0])
		}
	}
	b.SetBytes(int64(len(line)))
}
