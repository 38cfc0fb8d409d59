package kube

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/sockflow/sockflow/flowcache"
)

func addr(s string) flowcache.Addr { return netip.MustParseAddr(s).As16() }

func set(o Object) []Change { return []Change{{Step: Set, Object: o}} }

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

// TestIndexBounds: no more than was said is remembered, what was left out is counted and said once, and a change is no new object.
func TestIndexBounds(t *testing.T) {
	said := 0
	x := NewIndex(10, func(string) { said++ })
	for round := range 3 {
		for i := range 12 {
			x.Apply(set(Object{Kind: Pod, UID: fmt.Sprint(i), Name: fmt.Sprint(i, round), Addrs: []flowcache.Addr{addr(fmt.Sprintf("10.0.%d.%d", round, i))}}))
		}
	}
	if st := x.Stats(); st.Objects[Pod] != 10 || st.Overflow != 6 || said != 1 || len(x.pods) != 10 || x.count != 10 {
		t.Errorf("%+v, said %d times, %d addresses", st, said, len(x.pods))
	}
	x.Apply([]Change{{Step: Listing}, {Step: Set, Object: Object{Kind: Pod, UID: "3", Name: "x"}}, {Step: Listing, Object: Object{Kind: Node}}, {Step: Listed}})
	if st := x.Stats(); st.Objects[Pod] != 1 || x.count > 10 {
		t.Errorf("%+v, weight %d", st, x.count)
	}
	x.Apply([]Change{{Step: Delete, Object: Object{Kind: Pod, UID: "3"}}, {Step: Delete, Object: Object{Kind: Pod, UID: "none"}}})
	x.Apply([]Change{{Step: Delete, At: memory + 1, Object: Object{Kind: Pod, UID: "none"}}})
	if st := x.Stats(); st.Objects[Pod] != 0 || st.Former != 0 || x.count != 0 || len(x.pods)+len(x.former)+len(x.all[Pod]) != 0 {
		t.Errorf("%+v, weight %d", st, x.count)
	}
	x = newIndex()
	for _, uid := range []string{"s1", "s2"} {
		x.Apply([]Change{{Step: Delete, Object: Object{Kind: Service, UID: uid}}})
	}
	x.Apply([]Change{{Step: Delete, At: memory + 1, Object: Object{Kind: Service, UID: "none"}}})
	if len(x.doors) != 0 || len(x.services)+len(x.external) != 0 || x.others != 1 {
		t.Errorf("%d doors and %d services are left", len(x.doors), len(x.services))
	}
}

// show is what an index says of an address at a time, of an end that has sent something or not.
func (x *Index) at(ip string, when int64, sent bool) string {
	r := flowcache.Record{Start: when, Key: flowcache.Key{Dst: addr(ip), DstPort: 80, Proto: 17}, Source: flowcache.End{Local: true}}
	if sent {
		r.Reverse.Packets = 1
	}
	x.Name(&r)
	s := ""
	if w := r.Dest.Container; w != nil {
		s = w.PodName
	}
	return s + "@" + r.Dest.Node + " " + r.Dest.Service
}

const second = int64(1e9)

// TestTimes: whose an address is depends on when it was asked for, not on when it became known.
func TestTimes(t *testing.T) {
	web := func(name string, since int64, ips ...string) Object {
		o := Object{Kind: Pod, UID: "uid-" + name, Name: name, Node: "n", Since: since}
		for _, ip := range ips {
			o.Addrs = append(o.Addrs, addr(ip))
		}
		return o
	}
	leaving := func(o Object) Object { o.Terminating = true; return o }
	is := func(o Object, at int64) Change { return Change{Step: Set, At: at * second, Object: o} }
	gone := func(o Object, at int64) Change { return Change{Step: Delete, At: at * second, Object: o} }
	a, b := web("a", 90*second, "10.1.0.1"), web("b", 205*second, "10.1.0.1")
	none := web("a", 90*second)
	type asked struct {
		at   int64
		sent bool
		want string
	}
	for name, c := range map[string]struct {
		steps []Change
		asked []asked
	}{
		"a pod that is gone": {[]Change{is(a, 100), gone(a, 200)}, []asked{
			{80, true, ""}, {95, false, "a"}, {150, false, "a"}, {199, false, "a"}, {200, true, ""}, {900, true, ""}}},
		"its address is given away": {[]Change{is(a, 100), gone(a, 200), is(b, 210)}, []asked{
			{150, false, "a"}, {202, false, ""}, {202, true, ""}, {207, false, ""}, {207, true, "b"}, {210, false, "b"}, {900, false, "b"}}},
		"given away before the end is known": {[]Change{is(a, 100), is(b, 210), gone(a, 220)}, []asked{
			{150, false, "a"}, {207, false, "a"}, {215, false, "b"}, {300, false, "b"}}},
		"the terminating pod is listed last": {[]Change{is(b, 210), is(leaving(a), 210)}, []asked{{215, false, "b"}, {900, false, "b"}}},
		"and is deleted":                     {[]Change{is(b, 210), is(leaving(a), 210), gone(a, 220)}, []asked{{215, false, "b"}, {225, false, "b"}}},
		"and changes":                        {[]Change{is(b, 210), is(a, 210), is(leaving(a), 215)}, []asked{{225, false, "b"}}},
		"and is listed again": {[]Change{{Step: Listing, At: 210 * second}, is(b, 210), is(leaving(a), 210), {Step: Listed, At: 210 * second},
			{Step: Listing, At: 300 * second}, is(b, 300), is(leaving(a), 300), {Step: Listed, At: 300 * second}}, []asked{{250, false, "b"}, {310, false, "b"}}},
		"the new one goes first": {[]Change{is(a, 100), is(b, 210), gone(b, 220)}, []asked{{215, false, "b"}, {225, false, "a"}}},
		"completed":              {[]Change{is(a, 100), is(none, 200), is(b, 210)}, []asked{{150, false, "a"}, {203, false, ""}, {215, false, "b"}}},
		"missed, and found by a list": {[]Change{{Step: Listing, At: 100 * second}, is(a, 100), {Step: Listed, At: 100 * second},
			{Step: Listing, At: 300 * second}, is(b, 301), {Step: Listed, At: 300 * second}}, []asked{{150, false, "a"}, {250, false, "a"}, {302, false, "b"}}},
		"one address of two": {[]Change{is(web("a", 90*second, "10.1.0.1", "fd00::1"), 100), is(web("a", 90*second, "fd00::1"), 200)}, []asked{
			{150, false, "a"}, {250, false, ""}}},
		"it comes later": {[]Change{is(none, 100), is(a, 110)}, []asked{{95, true, "a"}, {105, false, "a"}, {115, false, "a"}}},
		"another node":   {[]Change{is(a, 100), is(web("a", 90*second, "10.1.0.1"), 150), gone(a, 160)}, []asked{{155, false, "a"}, {165, false, ""}}},
	} {
		x := NewIndex(0, nil)
		for _, s := range c.steps {
			x.Apply([]Change{s})
		}
		for _, q := range c.asked {
			want := "@ "
			if q.want != "" {
				want = q.want + "@n "
			}
			if got := x.at("10.1.0.1", q.at*second, q.sent); got != want {
				t.Errorf("%s: after %d s (%v) %q, want %q", name, q.at, q.sent, got, want)
			}
		}
		// A connection stays with whom it began with.
		r := flowcache.Record{Start: 10000 * second, Began: c.asked[len(c.asked)-1].at * second, Key: flowcache.Key{Dst: addr("10.1.0.1"), Proto: 6}, Source: flowcache.End{Local: true}}
		x.Name(&r)
		if got, want := r.Dest.Container != nil, c.asked[len(c.asked)-1].want != ""; got != want {
			t.Errorf("%s: a connection: %+v", name, r.Dest.Container)
		}
	}
}

// TestFormerUID: a pod of this host that is gone is named by the UID of its control group still, and one that kubelet has by itself by its other UID.
func TestFormerUID(t *testing.T) {
	x := newIndex()
	x.Apply(set(Object{Kind: Pod, UID: "mirror", Alias: "0123456789abcdef0123456789abcdef", Namespace: "kube-system", Name: "etcd-n1"}))
	name := func(uid string) string {
		r := flowcache.Record{Source: flowcache.End{Local: true, NamedBy: flowcache.NamedByCGroup, Container: &flowcache.Workload{PodUID: uid}}}
		x.Name(&r)
		if r.Source.Container.PodName != "" && r.Source.NamedBy != flowcache.NamedByUID {
			t.Errorf("known by %d", r.Source.NamedBy)
		}
		return r.Source.Container.PodName
	}
	for range 2 {
		if a, b := name("u1"), name("0123456789abcdef0123456789abcdef"); a != "web-1" || b != "etcd-n1" {
			t.Errorf("%q %q", a, b)
		}
		x.Apply([]Change{{Step: Delete, At: 1, Object: Object{Kind: Pod, UID: "u1"}}, {Step: Delete, At: 1, Object: Object{Kind: Pod, UID: "mirror"}}})
	}
	x.Apply([]Change{{Step: Delete, At: memory + 2, Object: Object{Kind: Pod, UID: "none"}}})
	if a, b := name("u1"), name("0123456789abcdef0123456789abcdef"); a != "" || b != "" {
		t.Errorf("after a long time: %q %q", a, b)
	}
}

// TestShared: who shared an address, or a port of the nodes, has it again when others leave it, and nobody takes a service's address from it.
func TestShared(t *testing.T) {
	service := func(uid string, since int64) Object {
		return Object{Kind: Service, UID: uid, Namespace: "shop", Name: uid, External: []flowcache.Addr{addr("198.51.100.1")}, Ports: []Port{{6, 80, 30080}}, Since: since}
	}
	node := func(uid string) Object {
		return Object{Kind: Node, UID: uid, Name: uid, Addrs: []flowcache.Addr{addr("192.168.0.1")}}
	}
	name := func(x *Index, ip string, port uint16) string {
		r := flowcache.Record{Start: 100 * second, Key: flowcache.Key{Dst: addr(ip), DstPort: port, Proto: 6}, Source: flowcache.End{Local: true}}
		x.Name(&r)
		return r.Dest.Node + " " + r.Dest.Service
	}
	x := NewIndex(0, nil)
	x.Apply(set(node("n1")))
	x.Apply(set(service("first", 1)))
	x.Apply([]Change{{Step: Set, At: 50 * second, Object: service("second", 50*second)}})
	if a, b := name(x, "198.51.100.1", 80), name(x, "192.168.0.1", 30080); a != " shop/first" || b != "n1 shop/first" {
		t.Errorf("taken from who has it: %q %q", a, b)
	}
	x.Apply([]Change{{Step: Delete, At: 60 * second, Object: service("first", 1)}})
	if a, b := name(x, "198.51.100.1", 80), name(x, "192.168.0.1", 30080); a != " shop/second" || b != "n1 shop/second" {
		t.Errorf("not given back: %q %q", a, b)
	}
	x.Apply([]Change{{Step: Set, At: 70 * second, Object: node("n2")}, {Step: Delete, At: 80 * second, Object: node("n2")}})
	if a := name(x, "192.168.0.1", 1); a != "n1 " {
		t.Errorf("the node: %q", a)
	}
}

// TestLarge: a service of many addresses and ports costs their sum, not their product, and weighs what it costs; one that is larger costs nothing.
func TestLarge(t *testing.T) {
	big := func(n int) *item {
		it := &item{Metadata: metadata{Name: "big", UID: "big"}}
		for i := range n {
			it.Spec.ExternalIPs = append(it.Spec.ExternalIPs, fmt.Sprintf("198.51.%d.%d", i>>8, i&255))
			it.Spec.Ports = append(it.Spec.Ports, struct {
				Port, NodePort uint16
				Protocol       string
			}{uint16(i + 1), 0, "TCP"})
		}
		return it
	}
	x := NewIndex(0, nil)
	o, err := big(2000).object(Service)
	if err != nil {
		t.Fatal(err)
	}
	x.Apply(set(o))
	r := flowcache.Record{Start: flowcache.Now(), Key: flowcache.Key{Dst: addr("198.51.7.1"), DstPort: 1999, Proto: 6}, Source: flowcache.End{Local: true}}
	if x.Name(&r); r.Dest.Service != "/big" {
		t.Errorf("%+v", r.Dest)
	}
	if n := len(x.external) + len(x.doors); n != 2000 || x.count < 500 {
		t.Errorf("%d entries, weight %d", n, x.count)
	}
	if _, err := big(maxAddrs + 1).object(Service); !errors.Is(err, errLarge) {
		t.Error(err)
	}
	// Pods fill the index: services and nodes have their quarter.
	x = NewIndex(100, nil)
	for i := range 200 {
		x.Apply(set(Object{Kind: Pod, UID: fmt.Sprint(i), Name: "p", Addrs: []flowcache.Addr{addr(fmt.Sprintf("10.0.0.%d", i))}}))
	}
	for i := range 30 {
		x.Apply(set(Object{Kind: Service, UID: fmt.Sprint("s", i), Name: "s", Addrs: []flowcache.Addr{addr(fmt.Sprintf("10.96.0.%d", i))}}))
	}
	if st := x.Stats(); st.Objects[Service] != 25 || st.Objects[Pod] != 75 || x.count != 100 || x.Wants(Pod) {
		t.Errorf("%+v, weight %d", st, x.count)
	}
	for i := range 20 {
		x.Apply([]Change{{Step: Delete, At: int64(i), Object: Object{Kind: Service, UID: fmt.Sprint("s", i)}}})
	}
	x.Apply([]Change{{Step: Delete, At: memory + 100, Object: Object{Kind: Service, UID: "none"}}})
	if !x.Wants(Pod) || x.Wants(Pod) || !x.Wants(Service) || x.Wants(Node) {
		t.Errorf("there is room, and nothing is wanted: %+v", x.Stats())
	}
}

// BenchmarkLargeService is what the largest service costs the loop that takes it.
func BenchmarkLargeService(b *testing.B) {
	o := Object{Kind: Service, UID: "big", Name: "big"}
	for i := range maxAddrs {
		o.External = append(o.External, addr(fmt.Sprintf("198.51.%d.%d", i>>8, i&255)))
		o.Ports = append(o.Ports, Port{6, uint16(i + 1), uint16(i + 1)})
	}
	x := NewIndex(0, nil)
	for i := 0; b.Loop(); i++ {
		o.Name = fmt.Sprint(i)
		x.Apply(set(o))
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

// TestCrowd: services of many addresses that others have too are left out, before it costs the loop something to look through all of them; a service of few
// addresses never is, nor one that is named and changes.
func TestCrowd(t *testing.T) {
	said := 0
	x := NewIndex(0, func(string) { said++ })
	service := func(uid string, addrs int) Object {
		o := Object{Kind: Service, UID: uid, Name: uid, Ports: []Port{{6, uint16(len(x.all[Service]) + 1), 0}}}
		for i := range addrs {
			o.External = append(o.External, addr(fmt.Sprintf("198.51.%d.%d", i>>8, i&255)))
		}
		return o
	}
	x.Apply(set(service("first", maxAddrs)))
	for i := range 100 {
		x.Apply(set(service(fmt.Sprint("many", i), maxAddrs)))
	}
	for i := range 100 {
		x.Apply(set(service(fmt.Sprint("few", i), 10)))
	}
	st := x.Stats()
	if n := st.Objects[Service]; n < 101+maxCrowd/maxAddrs || n > 102+maxCrowd/maxAddrs || st.Overflow != uint64(201-n) || said != 1 {
		t.Errorf("%d services, %d left out, said %d times", n, st.Overflow, said)
	}
	first := service("first", maxAddrs)
	first.Ports = []Port{{6, 1, 0}, {6, 9999, 0}}
	x.Apply(set(first))
	r := flowcache.Record{Start: flowcache.Now(), Key: flowcache.Key{Dst: addr("198.51.0.1"), DstPort: 9999, Proto: 6}, Source: flowcache.End{Local: true}}
	if x.Name(&r); r.Dest.Service != "/first" {
		t.Errorf("after its change: %q", r.Dest.Service)
	}
}

// TestForgetInSteps: what is long gone is forgotten in steps, also while nothing changes; a list that shows nothing removes large services by their weight.
func TestForgetInSteps(t *testing.T) {
	x := NewIndex(0, nil)
	const many = 4 * forgetAtOnce
	for i := range many {
		x.Apply([]Change{{Step: Set, At: 1, Object: Object{Kind: Pod, UID: fmt.Sprint(i), Name: "p", Addrs: []flowcache.Addr{flowcache.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}}}})
	}
	apply := func(k Kind, s Step, at int64) { x.Apply([]Change{{Step: s, At: at, Object: Object{Kind: k}}}) }
	apply(Pod, Listing, 2)
	for range many/Sweep + 1 {
		apply(Pod, Listed, 2)
	}
	if st := x.Stats(); st.Objects[Pod] != 0 || st.Former != many || x.Pending() {
		t.Fatalf("%+v", st)
	}
	apply(Pod, Listing, memory+3)
	if n := x.Stats().Former; n > many-forgetAtOnce/2 || n < many-forgetAtOnce {
		t.Errorf("%d are remembered after one step", n)
	}
	steps := 0
	for ; x.Pending(); steps++ {
		x.Apply(nil)
	}
	if st := x.Stats(); st.Former != 0 || x.count != 0 || len(x.pods) != 0 || steps < 2 || steps > 10 {
		t.Errorf("%+v, weight %d, %d steps", st, x.count, steps)
	}
	// Large services: the steps that a source makes of their weights are enough, and not one of them removes all.
	weight := 0
	for i := range 20 {
		o := Object{Kind: Service, UID: fmt.Sprint("s", i), Name: "s"}
		for n := range maxAddrs {
			o.External = append(o.External, flowcache.AddrFrom4([4]byte{20, byte(i), byte(n >> 8), byte(n)}))
		}
		weight += o.weight()
		x.Apply(set(o))
	}
	apply(Service, Listing, memory+4)
	apply(Service, Listed, memory+4)
	if n := x.Stats().Objects[Service]; n == 20 || n < 18 {
		t.Errorf("%d services are left after one step", n)
	}
	for range weight/Sweep + 1 {
		apply(Service, Listed, memory+4)
	}
	if st := x.Stats(); st.Objects[Service] != 0 {
		t.Errorf("%+v", st)
	}
}
