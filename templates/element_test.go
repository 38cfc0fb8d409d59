package templates

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/sockflow/sockflow/flowcache"
)

func lines(t *testing.T, file string) map[string]bool {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	l := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			l[line] = true
		}
	}
	return l
}

// TestRegistryIsAppendOnly: a number, once used, keeps its meaning. A new element is to be appended to testdata/registry.txt.
func TestRegistryIsAppendOnly(t *testing.T) {
	elements, err := Elements()
	if err != nil {
		t.Fatal(err)
	}
	want := lines(t, "testdata/registry.txt")
	for _, e := range elements {
		line := fmt.Sprintf("%d %d:%d %s %s", e.Native, e.Known.PEN, e.Known.ID, e.Name, e.Type)
		if e.Native == 0 {
			continue
		}
		if !want[line] {
			t.Errorf("not in testdata/registry.txt: %s", line)
		}
		delete(want, line)
	}
	for line := range want {
		t.Errorf("gone or changed: %s", line)
	}
}

// TestRegistryIsIANAs holds name, type, semantics and units against a snapshot of IANA's registry, and name and type against the one
// that the collector was written from.
func TestRegistryIsIANAs(t *testing.T) {
	elements, err := Elements()
	if err != nil {
		t.Fatal(err)
	}
	want, collectors := lines(t, "testdata/iana.txt"), lines(t, "../collector/iana.txt")
	seen := 0
	for _, e := range elements {
		if e.IANA == 0 || e.Reverse {
			continue
		}
		seen++
		if line := fmt.Sprintf("%d %s %s %s %s", e.IANA, e.Name, e.Type, e.Semantics, e.Units); !want[line] {
			t.Errorf("IANA has it otherwise: %s", line)
		}
		if line := fmt.Sprintf("%d %s %s", e.IANA, e.Type, e.Name); !collectors[line] {
			t.Errorf("the collector knows it otherwise: %s", line)
		}
	}
	if seen != len(want) {
		t.Errorf("%d elements of IANA, %d in the snapshot", seen, len(want))
	}
}

func TestRegistry(t *testing.T) {
	elements, err := Elements()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range allOptions() {
		seen := map[Number]string{}
		for _, e := range elements {
			n, ok := e.Number(o)
			if !ok {
				continue
			}
			if seen[n] != "" {
				t.Errorf("%+v: %s and %s are both %v", o, seen[n], e.Name, n)
			}
			seen[n] = e.Name
			if l := e.Length(o); o.V9 && (l == 0 || l == Variable) {
				t.Errorf("%s: length %d in NetFlow v9", e.Name, l)
			}
		}
	}
	names := map[string]bool{}
	for _, e := range elements {
		if names[e.Name] {
			t.Errorf("%s twice", e.Name)
		}
		names[e.Name] = true
		if e.Description == "" || strings.ContainsFunc(e.Description, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%s: description %q", e.Name, e.Description)
		}
		// The source's number is odd, the destination's the next.
		if d, ok := strings.CutPrefix(e.Name, "source"); ok && e.Native != 0 {
			for _, other := range elements {
				if other.Name == "destination"+d && (other.Native != e.Native+1 || other.Type != e.Type || e.Native%2 != 1) {
					t.Errorf("%s is %d, %s is %d", e.Name, e.Native, other.Name, other.Native)
				}
			}
		}
	}
	for _, n := range giveWay {
		if !names[n] {
			t.Errorf("%s gives way, and is no element", n)
		}
	}
}

func TestParseElements(t *testing.T) {
	header := strings.SplitN(string(elementsCSV), "\n", 2)[0]
	for _, tc := range []struct{ row, err string }{
		{"a,unsigned8,default,none,,1,,,,x", ""},
		{"a,octet,default,none,,1,,,,x", "unknown type"},
		{"a,unsigned8,some,none,,1,,,,x", "unknown semantics"},
		{"a,unsigned8,default,miles,,1,,,,x", "unknown units"},
		{"a,unsigned8,default,none,99999,,,,,x", "out of range"},
		{"a,unsigned8,default,none,,1,35632,,,x", "PEN:id"},
		{"a,unsigned8,default,none,,,,,,x", "no number"},
		{"a,unsigned8,default,none,,1,,,", "wrong number of fields"},
	} {
		_, err := parseElements([]byte(header + "\n" + tc.row + "\n"))
		if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%s: %v, want %q", tc.row, err, tc.err)
		}
	}
}

func TestServices(t *testing.T) {
	for i, s := range services() {
		if i > 0 && s.Port <= services()[i-1].Port || s.Name == "" {
			t.Errorf("%+v is out of order", s)
		}
		if ServiceName(s.Port) != s.Name {
			t.Errorf("%d: %q", s.Port, ServiceName(s.Port))
		}
	}
	if n := bytes.Count([]byte(servicesText), []byte("\n")); n != len(services()) {
		t.Errorf("%d of %d lines", len(services()), n)
	}
	for port, want := range map[uint16]string{443: "https", 53: "domain", 4739: "ipfix", 0: "", 65535: "", 54: ""} {
		if got := ServiceName(port); got != want {
			t.Errorf("%d: %q, want %q", port, got, want)
		}
	}
}

// TestApplication: the same programs have the same number, others another, and without names it is the port's.
func TestApplication(t *testing.T) {
	s, err := New(Options{Programs: true})
	if err != nil {
		t.Fatal(err)
	}
	curl, nginx := &flowcache.Process{Name: "curl", UserName: "alice"}, &flowcache.Process{Name: "nginx"}
	web := &flowcache.Workload{PodName: "web-0"}
	ids := map[uint32]string{}
	for _, c := range []struct {
		source, dest      *flowcache.Process
		in                *flowcache.Workload
		name, description string
	}{
		{curl, nil, nil, "curl", "alice"},
		{nil, nginx, nil, "nginx", ""},
		{curl, nginx, web, "curl>nginx", "alice>web-0"},
		{nginx, curl, nil, "nginx>curl", "alice"},
		{curl, nginx, nil, "curl>nginx", "alice"},
	} {
		r := flowcache.Record{Key: flowcache.Key{Proto: flowcache.ProtoTCP}, Source: flowcache.End{Who: c.source}, Dest: flowcache.End{Who: c.dest, Container: c.in}}
		id, ok := s.Application(&r)
		again, _ := s.Application(&r)
		if !ok || id>>24 != 6 || id != again || ids[id] != "" {
			t.Errorf("%s: %#x, %v, again %#x, as %s", c.name, id, ok, again, ids[id])
		}
		ids[id] = c.name
		if got, want := NameApplication(id, &r), (Application{id, c.name, c.description}); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	r := flowcache.Record{Key: flowcache.Key{DstPort: 443}}
	if id, ok := s.Application(&r); ok {
		t.Errorf("a flow without names is application %#x", id)
	}
	if n := testing.AllocsPerRun(100, func() { s.Application(&flowcache.Record{Source: flowcache.End{Who: curl}}) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
