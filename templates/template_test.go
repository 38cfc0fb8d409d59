package templates

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
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
		Start: 1_700_000_000_123e6, End: 1_700_000_001_456e6, EndReason: flowcache.EndDetected, Control: 0x1b, HasTCP: true, Origin: flowcache.OriginEBPF,
		Forward: flowcache.Counters{Payload: 1000, Octets: 1500, Packets: 10, RetransPackets: 1},
		Reverse: flowcache.Counters{Payload: 2000, Octets: 2600, Packets: 12},
		TCP:     flowcache.TCPMetrics{SRTT: 120, RTTVar: 30, MinRTT: 90, State: 7, ConnectTime: 55, Lost: 2},
		Source: flowcache.End{Local: true, Process: flowcache.ProcessID{PID: 4242}, UID: 33, GID: 33, NetNS: 99, CGroup: 77, Cookie: 1234,
			Who:       &flowcache.Process{Path: "/usr/bin/curl", Name: "curl", UserName: "www-data", ParentPID: 7, ParentPath: "/usr/bin/bash", ParentUID: 0},
			Container: &flowcache.Workload{ContainerID: strings.Repeat("c", 64), PodName: "pod-1", PodNamespace: "default"}},
		Dest: flowcache.End{UID: flowcache.NoID, GID: flowcache.NoID},
	}
}

func TestTemplates(t *testing.T) {
	ids := map[uint16]string{}
	for _, o := range allOptions() {
		if o.Dialect == IANA && !o.Uniflow {
			continue // is uniflow anyway
		}
		s := mustNew(t, o)
		for _, tpl := range s.Templates() {
			seen := map[Number]bool{}
			var layout strings.Builder
			for _, f := range tpl.Fields {
				if seen[f.Number] {
					t.Errorf("%+v template %d: %v twice", o, tpl.ID, f)
				}
				seen[f.Number] = true
				fmt.Fprint(&layout, f, " ")
				switch {
				case f.PEN == 0 && f.ID >= 32768 && !o.V9, f.ID == 0, f.Length == 0:
					t.Errorf("%+v: bad field %+v", o, f)
				case o.V9 && (f.PEN != 0 || f.Length == Variable || f.ID >= 57554 && f.ID <= 57559):
					t.Errorf("v9 cannot carry %+v", f)
				case o.Dialect == IANA && f.PEN != 0:
					t.Errorf("dialect iana carries %+v", f)
				}
			}
			key := fmt.Sprintf("%v %s", o.V9, layout.String())
			if !o.V9 {
				if other, ok := ids[tpl.ID]; ok && other != key && o.Dialect != IANA {
					t.Errorf("template id %d has two layouts", tpl.ID)
				}
				ids[tpl.ID] = key
			}
			if len(tpl.Fields) > MaxFields {
				t.Errorf("%+v template %d: %d fields", o, tpl.ID, len(tpl.Fields))
			}
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
			fmt.Fprintf(&b, "  %d:%d %d %s\n", f.PEN, f.ID, f.Length, f.Name)
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
	o := s.Opposite(r)
	if o.Key != r.Key.Reverse() || o.Forward != r.Reverse || !o.Dest.Local || o.Source.Local {
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
		b := AppendString(nil, s, limit)
		n, body := int(b[0]), b[1:]
		if n == 255 {
			n, body = int(b[1])<<8|int(b[2]), b[3:]
		}
		if n != len(body) || n > limit || !utf8.Valid(body) || bytes.IndexByte(body, 0) >= 0 {
			t.Fatalf("%q limit %d: %q", s, limit, b)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	s, r := mustNew(b, Options{}), sample()
	buf := make([]byte, 0, 4096)
	tpl := s.For(r)
	b.ReportAllocs()
	for b.Loop() {
		buf = s.Append(buf[:0], tpl, r)
	}
	b.SetBytes(int64(len(buf)))
}
