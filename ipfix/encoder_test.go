package ipfix

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/netsampler/goflow2/v2/decoders/netflow"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/templates"
)

func record(i int) *flowcache.Record {
	r := &flowcache.Record{
		Key:   flowcache.Key{Src: flowcache.AddrFrom4([4]byte{192, 0, 2, 1}), Dst: flowcache.AddrFrom4([4]byte{192, 0, 2, 2}), SrcPort: uint16(i), DstPort: 443, Proto: 6, NetNS: 9},
		Start: 1_700_000_000e9, End: 1_700_000_001e9, EndReason: flowcache.EndDetected, Control: 0x1b, HasTCP: true,
		Forward: flowcache.Counters{Payload: uint64(i), Octets: 1500, Packets: 10},
		Reverse: flowcache.Counters{Payload: 2000, Octets: 2600, Packets: 12},
		Source: flowcache.End{Local: true, Process: flowcache.ProcessID{PID: 4242}, UID: 33, GID: 33,
			Who: &flowcache.Process{Path: "/usr/bin/curl", Name: "curl", UserName: "www-data"}},
		Dest: flowcache.End{UID: flowcache.NoID, GID: flowcache.NoID},
	}
	switch i % 4 {
	case 1:
		r.Key.Proto, r.HasTCP = 17, false
	case 2:
		r.Key.Src, r.Key.Dst = flowcache.Addr{0: 0x20, 1: 1, 15: 1}, flowcache.Addr{0: 0x20, 1: 1, 15: 2}
	case 3:
		r.Key.Src, r.Key.Dst = flowcache.Addr{0: 0x20, 1: 1, 15: 1}, flowcache.Addr{0: 0x20, 1: 1, 15: 2}
		r.Key.Proto, r.HasTCP = 17, false
	}
	return r
}

var now = time.Unix(1_700_000_002, 5e8)

// TestHundredThousand encodes 100 000 records and decodes them with goflow2: the sequence has no gap, no message is longer than
// allowed, and every record is there.
func TestHundredThousand(t *testing.T) {
	const n = 100_000
	for _, tc := range []struct {
		proto Protocol
		opt   templates.Options
		max   int
	}{
		{IPFIX, templates.Options{Node: "n"}, 1400},
		{IPFIX, templates.Options{Node: "n", Uniflow: true}, 65535},
		{NetFlowV9, templates.Options{Node: "n"}, 1400},
	} {
		dec := netflow.CreateTemplateSystem()
		want, records, messages := uint32(0), 0, uint32(0)
		seen := make([]bool, n)
		var e *Encoder
		e, err := NewEncoder(tc.proto, tc.opt, 7, tc.max, now.Add(-time.Hour), func(m []byte, data int) error {
			if len(m) > tc.max {
				t.Fatalf("message of %d octets", len(m))
			}
			var v9 netflow.NFv9Packet
			var x netflow.IPFIXPacket
			if err := netflow.DecodeMessageVersion(bytes.NewBuffer(m), dec, &v9, &x); err != nil {
				t.Fatal(err)
			}
			seq, domain := x.SequenceNumber, x.ObservationDomainId
			if tc.proto == NetFlowV9 {
				seq, domain = v9.SequenceNumber, v9.SourceId
				if seq != messages {
					t.Fatalf("v9 sequence %d, want %d", seq, messages)
				}
			} else if seq != want {
				t.Fatalf("sequence %d, want %d", seq, want)
			}
			if domain != 7 {
				t.Fatalf("domain %d", domain)
			}
			messages++
			inMessage, inOptions := 0, 0
			for _, set := range append(v9.FlowSets, x.FlowSets...) {
				switch set := set.(type) {
				case netflow.DataFlowSet:
					inMessage += len(set.Records)
					records += len(set.Records)
					for _, r := range set.Records {
						for _, f := range r.Values {
							if f.Type == 401 && !f.PenProvided {
								if i := binary.BigEndian.Uint64(f.Value.([]byte)); i < n {
									seen[i] = true
								}
							}
						}
					}
				case netflow.OptionsDataFlowSet:
					inOptions += len(set.Records)
				}
			}
			if inMessage != data {
				t.Fatalf("%d records in the message, told %d", inMessage, data)
			}
			want += uint32(inMessage + inOptions)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Templates(now); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if err := e.Record(record(i), now); err != nil {
				t.Fatal(err)
			}
			if i%1000 == 999 {
				e.Flush(now)
			}
			if i == n/2 {
				e.Flush(now)
				e.Templates(now)
			}
		}
		e.Flush(now)
		if wantRecords := map[bool]int{false: n, true: 2 * n}[tc.opt.Uniflow]; records != wantRecords {
			t.Errorf("%d records, want %d", records, wantRecords)
		}
		for i, ok := range seen {
			if !ok {
				t.Fatalf("record %d is lost", i)
			}
		}
	}
}

// TestLongStrings: a record that does not fit has its strings cut, not lost.
func TestLongStrings(t *testing.T) {
	msgs, all, known := 0, 0, newSession()
	e, err := NewEncoder(IPFIX, templates.Options{}, 1, 512, now, func(m []byte, _ int) error {
		_, n, err := known.admit(nil, m, everything)
		if err != nil {
			t.Error(err)
		}
		all += n
		if binary.BigEndian.Uint16(m[headerIPFIX:]) >= templates.FirstID {
			msgs++
		}
		if len(m) > 512 {
			t.Errorf("%d octets", len(m))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r := record(0)
	r.Source.Who = &flowcache.Process{Path: "/" + strings.Repeat("é", 400), ParentPath: "/" + strings.Repeat("x", 900)}
	for range 3 {
		if err := e.Record(r, now); err != nil {
			t.Error(err)
		}
	}
	e.Flush(now)
	if msgs != 3 || e.cut != 3 || e.sequence != uint32(all) {
		t.Errorf("%d messages, %d cut, sequence %d", msgs, e.cut, e.sequence)
	}
}

func TestV9Times(t *testing.T) {
	boot := now.Add(-time.Hour)
	e, err := NewEncoder(NetFlowV9, templates.Options{}, 1, 1400, boot, func(m []byte, _ int) error {
		abs := int64(binary.BigEndian.Uint32(m[8:]))*1000 - int64(binary.BigEndian.Uint32(m[4:]))
		if abs != boot.UnixMilli() {
			t.Errorf("boot at %d, want %d", abs, boot.UnixMilli())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	e.Record(record(0), now)
	e.Flush(now)
}

// TestV9ClockSteps: sysUptime goes on, whichever way the wall clock goes, and flows have their times by what it shows.
func TestV9ClockSteps(t *testing.T) {
	for name, step := range map[string]time.Duration{
		"back, to before the boot": -time.Hour, "forward": time.Hour, "from 1970": 55 * 365 * 24 * time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			at := time.Now()
			if step > 24*time.Hour {
				at = stepped(t, at, -step)
			}
			boot := at.Add(-time.Minute)
			system := netflow.CreateTemplateSystem()
			told := 0
			e, err := NewEncoder(NetFlowV9, templates.Options{}, 1, 1400, boot, func(m []byte, _ int) error {
				var p netflow.NFv9Packet
				if err := netflow.DecodeMessageVersion(bytes.NewBuffer(m), system, &p, nil); err != nil {
					t.Fatal(err)
				}
				if p.SystemUptime < 60_000 || p.SystemUptime > 62_000 {
					t.Errorf("sysUptime %d, want a minute", p.SystemUptime)
				}
				for _, set := range p.FlowSets {
					data, _ := set.(netflow.DataFlowSet)
					for _, r := range data.Records {
						told++
						for _, f := range r.Values {
							ago := map[uint16]time.Duration{netflow.NFV9_FIELD_FIRST_SWITCHED: 2 * time.Second, netflow.NFV9_FIELD_LAST_SWITCHED: time.Second}[f.Type]
							if ago == 0 {
								continue
							}
							ms := int64(p.UnixSeconds)*1000 - int64(p.SystemUptime) + int64(binary.BigEndian.Uint32(f.Value.([]byte)))
							if off := time.UnixMilli(ms).Sub(at.Add(-ago)).Abs(); off > 2*time.Millisecond {
								t.Errorf("field %d is %s off", f.Type, off)
							}
						}
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			tell := func() {
				r := record(0)
				r.Start, r.End = at.Add(-2*time.Second).UnixNano(), at.Add(-time.Second).UnixNano()
				e.Record(r, at)
			}
			tell()
			e.Flush(at)
			tell() // on its way when the clock steps
			at = stepped(t, at, step)
			e.Flush(at)
			tell()
			e.Flush(at)
			if told != 3 {
				t.Errorf("%d records", told)
			}
		})
	}
}

// stepped returns what time.Now would have returned for t with a wall clock stepped by d.
func stepped(t *testing.T, at time.Time, d time.Duration) time.Time {
	t.Helper()
	was := at
	*(*uint64)(unsafe.Pointer(&at)) += uint64(d/time.Second) << 30 // package time: seconds, and 30 bits of nanoseconds
	if at.UnixNano()-was.UnixNano() != int64(d) || at.Sub(was) != 0 {
		t.Fatal("package time keeps its clocks in another way")
	}
	return at
}

func TestEncoderAllocatesNothing(t *testing.T) {
	e, err := NewEncoder(IPFIX, templates.Options{}, 1, 8192, now, func([]byte, int) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	r := record(0)
	e.Record(r, now)
	if n := testing.AllocsPerRun(1000, func() { e.Record(r, now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkEncoder makes messages of records of TCP over IPv4 with the default fields, the source local. "four-strings" is a process with
// path, name, user and parent's path; "all" has its unit, the node and the congestion control too; "pod" is one in a pod.
func BenchmarkEncoder(b *testing.B) {
	four := *record(0)
	four.Source.Who = &flowcache.Process{Path: "/usr/sbin/nginx", Name: "nginx", UserName: "www-data", ParentPath: "/usr/lib/systemd/systemd", ParentPID: 1, StartTime: 1_600_000_000e9}
	all := four
	all.TCP.CongestionControlName = [16]byte{'c', 'u', 'b', 'i', 'c'}
	all.Source.Container = &flowcache.Workload{ServiceUnit: "nginx.service"}
	pod := all
	pod.Source.Container = &flowcache.Workload{ContainerID: strings.Repeat("3f", 32), ContainerName: "web", ContainerImage: "docker.io/library/nginx:1.27", ContainerRuntime: "containerd",
		PodName: "web-5d4f8c7b9-x2x4z", PodNamespace: "default", PodUID: "6f1c0f0e-0001-4c6f-9b1e-000000000001"}
	for _, bc := range []struct {
		name  string
		proto Protocol
		size  int
		node  string
		rec   flowcache.Record
	}{
		{"four-strings/1400", IPFIX, 1400, "", four},
		{"four-strings/65535", IPFIX, 65535, "", four},
		{"all/1400", IPFIX, 1400, "node-1", all},
		{"all/65535", IPFIX, 65535, "node-1", all},
		{"pod/65535", IPFIX, 65535, "node-1", pod},
		{"v9/1400", NetFlowV9, 1400, "node-1", all},
	} {
		b.Run(bc.name, func(b *testing.B) {
			octets, n := 0, 0
			e, err := NewEncoder(bc.proto, templates.Options{Node: bc.node}, 1, bc.size, now, func(m []byte, _ int) error { octets += len(m); return nil })
			if err != nil {
				b.Fatal(err)
			}
			recs := make([]flowcache.Record, 256) // as a batch brings them
			for i := range recs {
				recs[i] = bc.rec
			}
			e.Record(&recs[0], now)
			e.Flush(now)
			octets = 0
			b.ReportAllocs()
			for b.Loop() {
				e.Record(&recs[n&255], now)
				n++
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "Mrecords/s")
			b.ReportMetric(float64(octets)/float64(n), "octets/record")
		})
	}
}
