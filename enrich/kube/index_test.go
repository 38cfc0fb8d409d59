package kube

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/sockflow/sockflow/flowcache"
)

func addr(s string) flowcache.Addr { return netip.MustParseAddr(s).As16() }

func set(o Object) []Change { return []Change{{Set, o}} }

func newIndex() *Index {
	x := NewIndex(0, nil)
	x.Apply(set(Object{Kind: Pod, UID: "u1", Namespace: "shop", Name: "web-1", Node: "n1", Addrs: []flowcache.Addr{addr("10.1.0.1"), addr("fd00::1")}}))
	x.Apply(set(Object{Kind: Pod, UID: "u2", Namespace: "shop", Name: "db-1", Node: "n2", Addrs: []flowcache.Addr{addr("10.1.0.2")}}))
	x.Apply(set(Object{
		Kind: Service, UID: "s1", Namespace: "shop", Name: "web", Addrs: []flowcache.Addr{addr("10.96.0.1")}, External: []flowcache.Addr{addr("198.51.100.1")},
		Ports: []Port{{6, 80, 30080}},
	}))
	x.Apply(set(Object{Kind: Service, UID: "s2", Namespace: "shop", Name: "dns", External: []flowcache.Addr{addr("198.51.100.1")}, Ports: []Port{{17, 53, 0}}}))
	x.Apply(set(Object{Kind: Node, UID: "n1", Name: "n1", Addrs: []flowcache.Addr{addr("192.168.0.1")}}))
	return x
}

func TestName(t *testing.T) {
	key := func(src, dst string, port uint16) flowcache.Key {
		return flowcache.Key{Src: addr(src), Dst: addr(dst), SrcPort: 40000, DstPort: port, Proto: 6}
	}
	here := flowcache.End{Local: true, Container: &flowcache.Workload{PodName: "own"}}
	for name, c := range map[string]struct {
		rec          flowcache.Record
		source, dest string // pod@node service
	}{
		"pod elsewhere":  {flowcache.Record{Key: key("10.1.0.9", "10.1.0.1", 80), Source: here}, "own@ ", "web-1@n1 "},
		"IPv6":           {flowcache.Record{Key: key("fd00::9", "fd00::1", 80), Source: here}, "own@ ", "web-1@n1 "},
		"node elsewhere": {flowcache.Record{Key: key("192.168.0.1", "10.1.0.9", 80), Dest: here}, "@n1 ", "own@ "},
		"service, translated": {flowcache.Record{
			Key: key("10.1.0.9", "10.96.0.1", 80), Source: here, Post: key("10.1.0.9", "10.1.0.2", 8080).Translation(),
		}, "own@ ", "db-1@n2 shop/web"},
		"service of a pod here": {flowcache.Record{
			Key: key("10.1.0.9", "10.96.0.1", 80), Source: here, Dest: here, Post: key("10.1.0.9", "10.1.0.1", 8080).Translation(),
		}, "own@ ", "own@ shop/web"},
		"from a pod elsewhere, by a service": {flowcache.Record{
			Key: key("192.168.0.1", "10.1.0.9", 8080), Dest: here, Pre: key("10.1.0.2", "10.96.0.1", 80).Translation(),
		}, "db-1@n2 ", "own@ shop/web"},
		"node port":           {flowcache.Record{Key: key("203.0.113.1", "192.168.0.1", 30080), Source: here}, "own@ ", "@n1 shop/web"},
		"not a node":          {flowcache.Record{Key: key("203.0.113.1", "192.168.0.2", 30080), Source: here}, "own@ ", "@ "},
		"service, other port": {flowcache.Record{Key: key("10.1.0.9", "10.96.0.1", 443), Source: here}, "own@ ", "@ shop/web"},
		"shared address":      {flowcache.Record{Key: key("10.1.0.9", "198.51.100.1", 80), Source: here}, "own@ ", "@ shop/web"},
		"its other protocol":  {flowcache.Record{Key: key("10.1.0.9", "198.51.100.1", 53), Source: here}, "own@ ", "@ "},
		"nobody":              {flowcache.Record{Key: key("10.1.0.9", "8.8.8.8", 53), Source: here}, "own@ ", "@ "},
		"own stays":           {flowcache.Record{Key: key("10.1.0.1", "10.1.0.2", 53), Source: here, Dest: here}, "own@ ", "own@ "},
		"own, by its UID":     {flowcache.Record{Key: key("10.1.0.9", "8.8.8.8", 53), Source: flowcache.End{Local: true, Container: &flowcache.Workload{PodUID: "u2"}}}, "db-1@ ", "@ "},
		"own, not known":      {flowcache.Record{Key: key("10.1.0.9", "8.8.8.8", 53), Source: flowcache.End{Local: true, Container: &flowcache.Workload{PodUID: "u9"}}}, "@ ", "@ "},
		"known by others":     {flowcache.Record{Key: key("10.1.0.9", "10.1.0.2", 53), Source: here, Dest: flowcache.End{Container: here.Container}}, "own@ ", "own@n2 "},
	} {
		x := newIndex()
		x.Name(&c.rec)
		show := func(e *flowcache.End) string {
			s := ""
			if e.Container != nil {
				s = e.Container.PodName
			}
			return s + "@" + e.Node + " " + e.Service
		}
		if s, d := show(&c.rec.Source), show(&c.rec.Dest); s != c.source || d != c.dest {
			t.Errorf("%s: %q and %q, want %q and %q", name, s, d, c.source, c.dest)
		}
		if n := testing.AllocsPerRun(10, func() { x.Name(&c.rec) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// TestIndexBounds: no more than was said is remembered, what was left out is counted and told once, and a change is no new object.
func TestIndexBounds(t *testing.T) {
	told := 0
	x := NewIndex(10, func(string) { told++ })
	for round := range 3 {
		for i := range 12 {
			x.Apply(set(Object{Kind: Pod, UID: fmt.Sprint(i), Name: fmt.Sprint(i, round), Addrs: []flowcache.Addr{addr(fmt.Sprintf("10.0.%d.%d", round, i))}}))
		}
	}
	if st := x.Stats(); st.Objects[Pod] != 10 || st.Overflow != 6 || told != 1 || len(x.pods) != 10 {
		t.Errorf("%+v, told %d times, %d addresses", st, told, len(x.pods))
	}
	x.Apply([]Change{{Step: Listing}, {Set, Object{Kind: Pod, UID: "3", Name: "x"}}, {Step: Listing, Object: Object{Kind: Node}}, {Step: Listed}})
	if st := x.Stats(); st.Objects[Pod] != 1 || len(x.pods) != 0 {
		t.Errorf("%+v, %d addresses", st, len(x.pods))
	}
	x.Apply([]Change{{Delete, Object{Kind: Pod, UID: "3"}}, {Delete, Object{Kind: Pod, UID: "none"}}})
	if st := x.Stats(); st.Objects[Pod] != 0 || x.count != 0 {
		t.Errorf("%+v", st)
	}
	x = newIndex()
	for _, uid := range []string{"s1", "s2"} {
		x.Apply([]Change{{Delete, Object{Kind: Service, UID: uid}}})
	}
	if len(x.doors) != 0 || len(x.services) != 0 {
		t.Errorf("%d doors and %d services are left", len(x.doors), len(x.services))
	}
}

func BenchmarkName(b *testing.B) {
	x := NewIndex(0, nil)
	for i := range 100_000 {
		x.Apply(set(Object{Kind: Pod, UID: fmt.Sprint(i), Name: "p", Namespace: "n", Node: "m", Addrs: []flowcache.Addr{addr(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255))}}))
	}
	r := flowcache.Record{Key: flowcache.Key{Src: addr("10.200.0.1"), Dst: addr("10.1.5.1"), Proto: 6}, Source: flowcache.End{Local: true}}
	b.ReportAllocs()
	for b.Loop() {
		x.Name(&r)
	}
}
