package templates

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/sockflow/sockflow/flowcache"
)

var update = flag.Bool("update", false, "rewrite the golden file")

func allOptions() []Options {
	var l []Options
	for _, d := range []Dialect{Known, Native, IANA} {
		for _, uni := range []bool{false, true} {
			for _, cmd := range []bool{false, true} {
				for _, v9 := range []bool{false, true} {
					l = append(l, Options{Dialect: d, Uniflow: uni, CommandLine: cmd, V9: v9, Node: "node-1"})
				}
			}
		}
	}
	return l
}

func mustNew(t testing.TB, o Options) *Set {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatalf("%+v: %v", o, err)
	}
	return s
}

// sample is a record with something in every field.
func sample() *flowcache.Record {
	return &flowcache.Record{
		Key:   flowcache.Key{Src: flowcache.AddrFrom4([4]byte{192, 0, 2, 1}), Dst: flowcache.AddrFrom4([4]byte{192, 0, 2, 2}), SrcPort: 40000, DstPort: 443, Proto: 6, NetNS: 99},
		Start: 1_700_000_000_123e6, End: 1_700_000_001_456e6, EndReason: flowcache.EndDetected, Control: 0x1b, ControlBack: 0x12, HasTCP: true, Origin: flowcache.OriginEBPF,
		Forward: flowcache.Counters{Payload: 1000, Octets: 1500, Packets: 10, RetransPackets: 1},
		Reverse: flowcache.Counters{Payload: 2000, Octets: 2600, Packets: 12},
		TCP: flowcache.TCPMetrics{SRTT: 120, RTTVar: 30, MinRTT: 90, State: 7, ConnectTime: 55, Lost: 2, Unacked: 3, CongestionWindow: 10, DeliveryRate: 1e6, PacingRate: 2e6,
			CongestionControlName: [16]byte{'c', 'u', 'b', 'i', 'c'}},
		Source: flowcache.End{Local: true, Process: flowcache.ProcessID{PID: 4242}, UID: 33, GID: 33, NetNS: 99, CGroup: 77, Cookie: 1234,
			Who: &flowcache.Process{Path: "/usr/bin/curl", Name: "curl", StartTime: 1_699_999_000_500e6, UserName: "www-data", ParentPID: 7, ParentPath: "/usr/bin/bash", ParentUID: 0},
			Container: &flowcache.Workload{ContainerID: strings.Repeat("c", 64), ContainerName: "web", ContainerImage: "nginx:1.27", ContainerRuntime: "containerd",
				PodName: "pod-1", PodNamespace: "default", PodUID: "6f1c0f0e-0001-4c6f-9b1e-000000000001", PodLabels: "app=web"}},
		Dest: flowcache.End{UID: flowcache.NoID, GID: flowcache.NoID},
	}
}

// kindsOfRecords returns a record of each kind that there is.
func kindsOfRecords() []*flowcache.Record {
	ends := []flowcache.End{
		{UID: flowcache.NoID, GID: flowcache.NoID},
		{Container: &flowcache.Workload{PodName: "far", PodNamespace: "ns"}, Service: "ns/web", Node: "node-2"},
		{Local: true, Kernel: true, NetNS: 1, Cookie: 5},
		{Local: true, NetNS: 1, Process: flowcache.ProcessID{PID: 7}, Who: sample().Source.Who, Container: &flowcache.Workload{ServiceUnit: "a.service"}},
		{Local: true, Who: sample().Source.Who, Container: &flowcache.Workload{ContainerID: "cc", ContainerName: "c", ContainerImage: "i", ContainerRuntime: "docker"}},
		{Local: true, Who: sample().Source.Who, Container: sample().Source.Container, Service: "ns/svc"},
	}
	var l []*flowcache.Record
	for _, proto := range []uint8{6, 17, 1, 58, 47} {
		for _, v6 := range []bool{false, true} {
			for _, source := range ends {
				for _, dest := range ends {
					for _, nat := range []bool{false, true} {
						r := sample()
						r.Key.Proto, r.HasTCP, r.Source, r.Dest = proto, proto == 6, source, dest
						if v6 {
							r.Key.Src, r.Key.Dst = flowcache.Addr{0: 0x20, 15: 1}, flowcache.Addr{0: 0x20, 15: 2}
						}
						if nat {
							r.Post = flowcache.Translation{Src: r.Key.Dst, Dst: r.Key.Src, SrcPort: 1, DstPort: 2}
						}
						l = append(l, r)
					}
				}
			}
		}
	}
	return l
}

// TestTemplates holds what every collector needs of a template, for each kind of record.
func TestTemplates(t *testing.T) {
	for _, o := range allOptions() {
		s := mustNew(t, o)
		for _, r := range kindsOfRecords() {
			s.For(r)
		}
		ids := map[uint16]bool{}
		for _, tpl := range s.Templates() {
			if ids[tpl.ID] || tpl.ID < FirstID {
				t.Errorf("%+v: template id %d", o, tpl.ID)
			}
			ids[tpl.ID] = true
			seen := map[Number]bool{}
			for _, f := range tpl.Fields {
				if seen[f.Number] {
					t.Errorf("%+v template %d: %v twice", o, tpl.ID, f)
				}
				seen[f.Number] = true
				switch {
				case f.PEN == 0 && f.ID >= 32768 && !o.V9, f.ID == 0, f.Length == 0:
					t.Errorf("%+v: bad field %+v", o, f)
				case o.V9 && (f.PEN != 0 || f.Length == Variable || f.ID >= 57554 && f.ID <= 57559):
					t.Errorf("v9 cannot carry %+v", f)
				case o.Dialect == IANA && f.PEN != 0:
					t.Errorf("dialect iana carries %+v", f)
				case f.PEN == PENReverse && f.ID == 6 && seen[Number{ID: 6}]:
					t.Error("nfdump takes the reverse flags for the forward ones, unless these come after them")
				case f.PEN == PENReverse && f.ID != 1 && f.ID != 2 && f.ID != 6 && f.ID != 401:
					t.Errorf("nfdump would take reverse element %d for the forward one", f.ID)
				}
			}
			if len(tpl.Fields) > MaxFields {
				t.Errorf("%+v template %d: %d fields", o, tpl.ID, len(tpl.Fields))
			}
		}
	}
}

// TestRecordsOfV9Fit: strings of fixed length cannot be cut when a record is too long, so it must not become so.
func TestRecordsOfV9Fit(t *testing.T) {
	ids := map[uint16]bool{}
	for _, max := range []int{0, 1000, 485} {
		s := mustNew(t, Options{V9: true, MaxRecord: max, CommandLine: true})
		if max == 0 {
			max = 1372
		}
		for _, r := range kindsOfRecords() {
			tpl := s.For(r)
			if n := len(s.Append(nil, tpl, r)); n > max || n != tpl.Fixed {
				t.Errorf("template %d: %d octets, template says %d, want at most %d", tpl.ID, n, tpl.Fixed, max)
			}
			l := fieldNames(tpl)
			if !slices.Contains(l, "octetDeltaCount") || r.Source.Local && !r.Source.Kernel && !slices.Contains(l, "sourceProcessPath") {
				t.Errorf("template %d lost its essence: %q", tpl.ID, l)
			}
		}
		id := s.For(sample()).ID
		if ids[id] {
			t.Errorf("two layouts have the id %d", id)
		}
		ids[id] = true
	}
	s := mustNew(t, Options{V9: true, MaxString: 20})
	for _, f := range s.For(sample()).Fields {
		if f.Element.Type == String && f.Length != 20 {
			t.Errorf("%s: %d octets, want 20", f.Element.Name, f.Length)
		}
	}
}

func fieldNames(t *Template) []string {
	var l []string
	for _, f := range t.Fields {
		l = append(l, f.Element.Name)
	}
	return l
}

// TestAbsentFieldsCostNothing: a template has only the fields that its kind of record can have.
func TestAbsentFieldsCostNothing(t *testing.T) {
	s := mustNew(t, Options{Node: "n"})
	for _, tc := range []struct {
		name        string
		change      func(*flowcache.Record)
		has, hasNot []string
	}{
		{"pod", func(*flowcache.Record) {}, []string{"sourcePodName", "sourcePodUid", "sourceGroupId", "sourceProcessStartTime", "sourceContainerImage", "tcpCongestionControl", "tcpDeliveryRate"},
			[]string{"destinationProcessId", "destinationPodName", "destinationNodeName", "sourceServiceUnit", "postNATSourceIPv4Address", "icmpTypeCodeIPv4", "sourceIPv6Address", "reverseRetransmittedPacketDeltaCount"}},
		{"no container", func(r *flowcache.Record) { r.Source.Container = nil }, []string{"sourceServiceUnit"}, []string{"sourceContainerId", "sourcePodName"}},
		{"udp", func(r *flowcache.Record) { r.Key.Proto = 17 }, []string{"sourceTransportPort"}, []string{"tcpState", "tcpControlBits"}},
		{"icmp", func(r *flowcache.Record) { r.Key.Proto = 1 }, []string{"icmpTypeCodeIPv4"}, []string{"sourceTransportPort", "icmpTypeCodeIPv6"}},
		{"gre", func(r *flowcache.Record) { r.Key.Proto = 47 }, nil, []string{"sourceTransportPort", "icmpTypeCodeIPv4"}},
		{"nat", func(r *flowcache.Record) {
			r.Post = flowcache.Translation{Src: r.Key.Src, Dst: r.Key.Dst, SrcPort: 1, DstPort: 2}
		},
			[]string{"postNATSourceIPv4Address", "postNAPTDestinationTransportPort"}, []string{"postNATSourceIPv6Address"}},
		{"other end known", func(r *flowcache.Record) { r.Dest.Service, r.Dest.Node = "a/b", "node-9" }, []string{"destinationServiceName", "destinationNodeName", "destinationPodName"}, []string{"destinationProcessId"}},
		{"kernel", func(r *flowcache.Record) { r.Source.Kernel = true }, []string{"sourceSocketCookie"}, []string{"sourceProcessId", "sourceProcessPath"}},
	} {
		r := sample()
		tc.change(r)
		l := fieldNames(s.For(r))
		for _, n := range tc.has {
			if !slices.Contains(l, n) {
				t.Errorf("%s: no %s", tc.name, n)
			}
		}
		for _, n := range tc.hasNot {
			if slices.Contains(l, n) {
				t.Errorf("%s: has %s", tc.name, n)
			}
		}
	}
}

func TestFields(t *testing.T) {
	r := sample()
	for _, tc := range []struct{ fields, err, has, hasNot string }{
		{fields: "-sourceProcessName", hasNot: "sourceProcessName"},
		{fields: "-processName", hasNot: "sourceProcessName"},
		{fields: "+observationDomainName,-tcpState", has: "observationDomainName", hasNot: "tcpState"},
		{fields: "userName", has: "userName"},
		{fields: "-userName,+sourceUserName", has: "sourceUserName"},
		{fields: "+sourceProcessCommandLine", err: "--cmdline"},
		{fields: "+deltaFlowCount", err: "--aggregate-ports"},
		{fields: "+flowEndSysUpTime", err: "cannot be"},
		{fields: "+nonsense", err: "no flow record"},
		{fields: "-tcp", err: "no flow record"},
	} {
		s, err := New(Options{Fields: tc.fields})
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q: %v, want %q", tc.fields, err, tc.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", tc.fields, err)
			continue
		}
		l := fieldNames(s.For(r))
		if tc.has != "" && !slices.Contains(l, tc.has) || tc.hasNot != "" && slices.Contains(l, tc.hasNot) {
			t.Errorf("%q: %q", tc.fields, l)
		}
		if s.For(r).ID == mustNew(t, Options{}).For(r).ID {
			t.Errorf("%q: another layout has the same id", tc.fields)
		}
	}
	if _, err := New(Options{Dialect: IANA, Fields: "+sourceProcessId"}); err == nil || !strings.Contains(err.Error(), "no number") {
		t.Errorf("an enterprise element in the dialect iana: %v", err)
	}
	var all []string
	for _, f := range flowFields() {
		if f.on == always {
			all = append(all, f.name)
		}
	}
	if _, err := New(Options{Fields: strings.Join(all, ",")}); err == nil || !strings.Contains(err.Error(), "Wireshark") {
		t.Errorf("too many fields: %v", err)
	}
	all = nil
	for _, f := range flowFields() {
		all = append(all, "-"+f.name)
	}
	if _, err := New(Options{Fields: strings.Join(all, ",")}); err == nil || !strings.Contains(err.Error(), "without fields") {
		t.Errorf("no fields: %v", err)
	}
}

// TestRuns: what is written by hand is what the fields' own functions give.
func TestRuns(t *testing.T) {
	for _, o := range allOptions() {
		fast, slow := mustNew(t, o), mustNew(t, o)
		slow.runs = nil
		for _, r := range append(kindsOfRecords(), sample()) {
			a, b := fast.Append(nil, fast.For(r), r), slow.Append(nil, slow.For(r), r)
			if !bytes.Equal(a, b) {
				t.Fatalf("%+v: runs give\n%s, fields\n%s", o, hex.Dump(a), hex.Dump(b))
			}
		}
		tpl := fast.For(sample())
		runs := 0
		for _, st := range tpl.steps {
			if st.op == opRun {
				runs++
			}
		}
		if runs < 1 {
			t.Errorf("%+v: %d runs", o, runs)
		}
	}
}

// TestGolden holds the octets of a record in each layout against testdata/golden.txt.
func TestGolden(t *testing.T) {
	var b bytes.Buffer
	for _, o := range allOptions() {
		s := mustNew(t, o)
		s.SetUptime(1_700_000_000_000e6)
		r := sample()
		tpl := s.For(r)
		fmt.Fprintf(&b, "dialect %d uniflow %t command %t v9 %t template %d fields %d\n", o.Dialect, o.Uniflow, o.CommandLine, o.V9, tpl.ID, len(tpl.Fields))
		for _, f := range tpl.Fields {
			fmt.Fprintf(&b, "  %d:%d %d %s\n", f.PEN, f.ID, f.Length, f.Element.Name)
		}
		fmt.Fprintln(&b, hex.Dump(s.Append(nil, tpl, r)))
	}
	const file = "testdata/golden.txt"
	if *update {
		os.MkdirAll("testdata", 0o755)
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Error(d)
	}
}

func TestAppendAllocatesNothing(t *testing.T) {
	for _, o := range allOptions() {
		s, r := mustNew(t, o), sample()
		buf := make([]byte, 0, 4096)
		if n := testing.AllocsPerRun(100, func() { buf = s.Append(buf[:0], s.For(r), r) }); n != 0 {
			t.Errorf("%+v: %v allocations", o, n)
		}
	}
}

func TestOpposite(t *testing.T) {
	r := sample()
	if mustNew(t, Options{}).Opposite(r) != nil {
		t.Error("a biflow has no opposite")
	}
	s := mustNew(t, Options{Uniflow: true})
	r.Flows, r.FlowsBack = 5, 3
	o := s.Opposite(r)
	if o.Flows != 3 || o.Key != r.Key.Reverse() || o.Forward != r.Reverse || !o.Dest.Local || o.Source.Local {
		t.Errorf("%+v", o)
	}
	r.Reverse = flowcache.Counters{}
	if s.Opposite(r) != nil {
		t.Error("nothing came back")
	}
}

func TestCut(t *testing.T) {
	for _, tc := range []struct {
		in    string
		limit int
		want  string
	}{{"abc", 5, "abc"}, {"abc", 2, "ab"}, {"aé", 2, "a"}, {"aé", 3, "aé"}, {"日本", 5, "日"}, {"", 0, ""}} {
		if got := Cut(tc.in, tc.limit); got != tc.want {
			t.Errorf("Cut(%q, %d) = %q, want %q", tc.in, tc.limit, got, tc.want)
		}
	}
}

func FuzzAppendString(f *testing.F) {
	for _, s := range []string{"", "/usr/bin/curl", "\xff\x00é", strings.Repeat("日", 200)} {
		f.Add(s, 100)
	}
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit = limit & 1023
		b := AppendString(make([]byte, 0, limit&255), s, limit) // with room or without
		n, body := int(b[0]), b[1:]
		if n == 255 {
			n, body = int(b[1])<<8|int(b[2]), b[3:]
		}
		if n != len(body) || n > limit || !utf8.Valid(body) || bytes.IndexByte(body, 0) >= 0 {
			t.Fatalf("%q limit %d: %q", s, limit, b)
		}
		sound := utf8.ValidString(s) && !strings.Contains(s, "\x00")
		if sound && string(body) != Cut(s, limit) {
			t.Fatalf("%q limit %d: %q", s, limit, body)
		}
		fixed := AppendFixed(nil, s, limit)
		text, fill := fixed, 0
		for len(text) > 0 && text[len(text)-1] == 0 {
			text, fill = text[:len(text)-1], fill+1
		}
		if len(fixed) != limit || !utf8.Valid(text) || bytes.IndexByte(text, 0) >= 0 || sound && string(text) != Cut(s, limit) {
			t.Fatalf("%q of %d octets: %q", s, limit, fixed)
		}
	})
}

// BenchmarkAppend appends records of the default templates for TCP over IPv4 with one local end, which is a process with four strings of
// its own (path, name, user, parent's path), the unit it runs in, the node's name and the congestion control; a container adds its
// id, name, image and runtime; a pod its name, namespace, UID, labels and service.
func BenchmarkAppend(b *testing.B) {
	host := sample()
	host.Source.Container = &flowcache.Workload{ServiceUnit: "nginx.service"}
	container := sample()
	container.Source.Container = &flowcache.Workload{ContainerID: strings.Repeat("c", 64), ContainerName: "web", ContainerImage: "nginx:1.27", ContainerRuntime: "containerd"}
	four := "-serviceUnit,-nodeName,-tcpCongestionControl"
	for _, bc := range []struct {
		name string
		opt  Options
		rec  *flowcache.Record
	}{
		{"four-strings", Options{Node: "node-1", Fields: four}, host},
		{"process", Options{Node: "node-1"}, host},
		{"container", Options{Node: "node-1"}, container},
		{"pod", Options{Node: "node-1"}, sample()},
		{"uniflow", Options{Node: "node-1", Uniflow: true}, host},
		{"iana", Options{Node: "node-1", Dialect: IANA}, host},
		{"v9", Options{Node: "node-1", V9: true}, host},
	} {
		b.Run(bc.name, func(b *testing.B) {
			s := mustNew(b, bc.opt)
			recs := make([]flowcache.Record, 256) // more than one, as in life
			for i := range recs {
				recs[i] = *bc.rec
			}
			buf := make([]byte, 0, 4096)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				r := &recs[i&255]
				buf = s.Append(buf[:0], s.For(r), r)
				i++
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "Mrecords/s")
			b.ReportMetric(float64(len(buf)), "octets/record")
			b.ReportMetric(float64(len(s.For(bc.rec).Fields)), "fields")
		})
	}
}
