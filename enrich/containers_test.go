package enrich

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

const second = int64(time.Second)

// tell applies what a runtime says of one container.
func tell(c *CGroups, t Container) {
	c.Apply(&ContainerUpdate{Runtime: "/run/r.sock", Answering: true, Containers: []Container{t}})
}

func named(id, path, name string, created int64) Container {
	return Container{Workload: flowcache.Workload{ContainerID: id, CGroupPath: path, ContainerName: name}, Created: created}
}

// inside returns a record of a process in a control group.
func inside(p *Processes, path string, pid uint32, start int64) *flowcache.Record {
	id := flowcache.ProcessID{PID: pid, Start: uint64(start / int64(tick))}
	p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessExec, Process: flowcache.Process{ID: id, Path: "/bin/pod", Name: "pod", CGroup: uint64(pid), CGroupPath: path}})
	return &flowcache.Record{Final: true, Start: start, Source: flowcache.End{Local: true, Process: id, UID: flowcache.NoID}}
}

func newEnricher(t *testing.T) (*Enricher, *Processes) {
	t.Helper()
	p := newTable(t, ProcConfig{Proc: t.TempDir()})
	p.boot = 0
	return &Enricher{Processes: p, CGroups: p.cgroups}, p
}

func TestContainerOfPath(t *testing.T) {
	pods := "/kubepods/burstable/pod" + pod + "/"
	c := NewCGroups("/proc")
	tell(c, named("web", "/shop/web", "web", 1))
	tell(c, named(id64, "", "hex", 1))
	tell(c, Container{Workload: flowcache.Workload{ContainerID: in64, CGroupPath: pods + in64, ContainerName: "main", PodName: "p", PodNamespace: "n", PodLabels: "app=x"}, Created: 1})
	for _, tc := range []struct{ name, path, want, pod string }{
		{"where the runtime put it", "/shop/web", "web", ""},
		{"a control group of its own below", "/shop/web/system.slice/nginx.service", "web", ""},
		{"no more than the beginning", "/shop/web2", "", ""},
		{"the same name elsewhere", "/other/shop/web", "", ""},
		{"seen from another control group namespace", "/../../shop/web", "web", ""},
		{"by id", "/docker/" + id64, "hex", ""},
		{"by id, systemd", "/system.slice/docker-" + id64 + ".scope", "hex", ""},
		{"of a pod", pods + in64, "main", "p"},
		{"a runtime inside a container, its own unknown: the pod is that of the outer", pods + in64 + "/docker/" + strings.Repeat("9", 64), "", "p"},
		{"a runtime inside a container, both known", pods + in64 + "/docker/" + id64, "hex", ""},
		{"the monitor", "/libpod_parent/conmon-" + id64, "", ""},
	} {
		w := c.Workload(tc.path)
		if w == nil {
			w = &flowcache.Workload{}
		} else if w.CGroupPath != tc.path {
			t.Errorf("%s: path %q", tc.name, w.CGroupPath)
		}
		if w.ContainerName != tc.want || w.PodName != tc.pod {
			t.Errorf("%s: %+v", tc.name, *w)
		}
	}
}

// TestLateNames: what was not known in time completes the next record, and is counted.
func TestLateNames(t *testing.T) {
	e, p := newEnricher(t)
	e.Clock(100*second, 0)
	r := inside(p, "/docker/"+id64, 5, 99*second)
	if !e.EnrichOrWait(r) || r.Source.Container.ContainerName != "" {
		t.Error("a record waits, though no runtime answers")
	}
	e.CGroups.Apply(&ContainerUpdate{Runtime: "/run/r.sock", Answering: true})
	if e.EnrichOrWait(r) {
		t.Error("a last record leaves, though a runtime may be telling names")
	}
	r.Final = false
	if !e.EnrichOrWait(r) {
		t.Error("a record that others follow waits")
	}
	r.Final = true
	e.Clock(103*second, 0)
	if !e.EnrichOrWait(r) {
		t.Error("a record waits for longer than three seconds")
	}
	tell(e.CGroups, named(id64, "", "web", 98*second))
	if !e.EnrichOrWait(r) || r.Source.Container.ContainerName != "web" {
		t.Errorf("%+v", r.Source.Container)
	}
	if st := e.CGroups.Stats(); st.Named != 1 || st.Unnamed != 3 || st.Late != 1 || st.Known != 1 {
		t.Errorf("%+v", st)
	}
	if n := testing.AllocsPerRun(100, func() { e.Enrich(r) }); n != 0 {
		t.Errorf("%v allocations for a known container", n)
	}
	// A path that may be an id of containerd's is waited for as well, a unit is not.
	e.Clock(200*second, 0)
	if e.EnrichOrWait(inside(p, "/shop/new", 6, 200*second)) || !e.EnrichOrWait(inside(p, "/system.slice/a.service", 7, 200*second)) || !e.EnrichOrWait(inside(p, "/lxc/web", 8, 200*second)) {
		t.Error("waits for the wrong ones")
	}
	e.CGroups.Apply(&ContainerUpdate{Runtime: "/run/r.sock"})
	if !e.EnrichOrWait(inside(p, "/shop/newer", 9, 200*second)) {
		t.Error("waits for a runtime that does not answer")
	}
}

// TestPathUsedAgain: a path that a runtime gives to one container after another.
func TestPathUsedAgain(t *testing.T) {
	e, p := newEnricher(t)
	tell(e.CGroups, named("web", "/shop/web", "first", 100*second))
	old := inside(p, "/shop/web", 5, 101*second)
	young := inside(p, "/shop/web", 6, 203*second)
	name := func(r *flowcache.Record) string {
		e.Enrich(r)
		if r.Source.Container == nil {
			return ""
		}
		return r.Source.Container.ContainerName
	}
	tell(e.CGroups, Container{Workload: flowcache.Workload{ContainerID: "web", CGroupPath: "/shop/web"}, Created: 100 * second, Ended: 200 * second})
	if a, b := name(old), name(young); a != "first" || b != "" {
		t.Errorf("after the end of the first: %q and %q", a, b)
	}
	e.Clock(203*second, 0)
	if e.EnrichOrWait(young) {
		t.Error("the record of a container that took the place of another does not wait")
	}
	tell(e.CGroups, named("web", "/shop/web", "second", 202*second))
	if a, b := name(old), name(young); a != "first" || b != "second" {
		t.Errorf("after the second came: %q and %q", a, b)
	}
	tell(e.CGroups, named("web", "/shop/web", "first", 100*second)) // late
	if a, b := name(old), name(young); a != "first" || b != "second" {
		t.Errorf("after old news: %q and %q", a, b)
	}
}

func TestTwoRuntimesKnowOne(t *testing.T) {
	c := NewCGroups("/proc")
	path := "/docker/" + id64
	tell(c, Container{Workload: flowcache.Workload{ContainerID: id64, ContainerName: "web", ContainerImage: "shop/web"}, Created: 1})
	tell(c, Container{Workload: flowcache.Workload{ContainerID: id64, PodName: "p"}, Created: 2})
	if w := c.Workload(path); w.ContainerName != "web" || w.ContainerImage != "shop/web" || w.PodName != "p" {
		t.Errorf("%+v", w)
	}
	before := c.Workload(path)
	tell(c, Container{Workload: flowcache.Workload{ContainerID: id64, ContainerName: "renamed"}, Created: 1})
	if w := c.Workload(path); w.ContainerName != "renamed" || before.ContainerName != "web" {
		t.Errorf("%+v, what records share: %+v", w, before)
	}
}

// TestAddresses: an end of which no socket is seen has the name of who has its address, at that time, if that is one alone.
func TestAddresses(t *testing.T) {
	e, _ := newEnricher(t)
	addr := flowcache.AddrFrom4([4]byte{10, 1, 0, 2})
	lease := func(id string, created, ended int64) {
		tell(e.CGroups, Container{
			Workload: flowcache.Workload{ContainerID: id, ContainerName: "pause", PodName: "pod-" + id[:1]}, Created: created, Ended: ended,
			Addresses: []flowcache.Addr{addr}, Behind: &flowcache.Workload{PodName: "pod-" + id[:1]},
		})
	}
	at := func(start int64, post bool) string {
		r := flowcache.Record{Start: start, Source: flowcache.End{Local: true}}
		r.Key.Dst = addr
		if post {
			r.Key.Dst = flowcache.AddrFrom4([4]byte{10, 96, 0, 1})
			r.Post = flowcache.Translation{Dst: addr}
		}
		e.Enrich(&r)
		if r.Dest.Container == nil {
			return ""
		}
		return r.Dest.Container.PodName + r.Dest.Container.ContainerName
	}
	lease(id64, 100*second, 0)
	if got := at(150*second, false) + at(50*second, false); got != "pod-0" {
		t.Errorf("%q", got)
	}
	if got := at(150*second, true); got != "pod-0" {
		t.Errorf("behind a service address: %q", got)
	}
	lease(in64, 200*second, 0)
	if got := at(250*second, false); got != "" {
		t.Errorf("two have it: %q", got)
	}
	lease(id64, 100*second, 190*second)
	if got := at(250*second, false) + at(150*second, false) + at(195*second, false); got != "pod-fpod-0" {
		t.Errorf("one after the other: %q", got)
	}
	if st := e.CGroups.Stats(); st.Peers != 4 {
		t.Errorf("%+v", st)
	}
}

func TestPortProxy(t *testing.T) {
	e, p := newEnricher(t)
	tell(e.CGroups, Container{Workload: flowcache.Workload{ContainerID: id64, ContainerName: "web"}, Created: 1, Published: []PublishedPort{{6, 8080}}})
	for _, tc := range []struct {
		process string
		port    uint16
		want    bool
	}{{"docker-proxy", 8080, true}, {"docker-proxy", 8081, false}, {"nginx", 8080, false}} {
		r := inside(p, "/system.slice/docker.service", 5, second)
		r.Source, r.Dest = flowcache.End{}, r.Source
		p.table[r.Dest.Process].facts.Name = tc.process
		r.Key.Proto, r.Key.DstPort = 6, tc.port
		e.Enrich(r)
		if got := r.Dest.Container.ContainerName == "web"; got != tc.want {
			t.Errorf("%+v: %+v", tc, r.Dest.Container)
		}
	}
}

func TestContainersAreBounded(t *testing.T) {
	c := NewCGroups("/proc")
	for i := range 3 * maxContainers {
		id := fmt.Sprintf("%064x", i)
		tell(c, Container{Workload: flowcache.Workload{ContainerID: id, ContainerName: "x", CGroupPath: "/docker/" + id}, Created: 1})
	}
	if st := c.Stats(); st.Known != maxContainers || st.Overflow != 2*maxContainers {
		t.Errorf("%+v", st)
	}
	for i := range 5 * maxCGroups {
		c.Workload(fmt.Sprintf("/a/%d", i))
	}
	if len(c.works) > 2*maxCGroups || len(c.open) > 2*maxCGroups {
		t.Errorf("%d paths, %d open", len(c.works), len(c.open))
	}
	c.Sweep(time.Now().UnixNano())
	if len(c.works) != 0 || len(c.open) != 0 {
		t.Errorf("%d paths, %d open after a long time", len(c.works), len(c.open))
	}
	for i := range maxContainers {
		id := fmt.Sprintf("%064x", i)
		tell(c, Container{Workload: flowcache.Workload{ContainerID: id}, Created: 1, Ended: 2})
	}
	c.Sweep(time.Now().UnixNano())
	if st := c.Stats(); st.Known != 0 {
		t.Errorf("%+v after their ends", st)
	}
}

func BenchmarkEnrich(b *testing.B) {
	p := NewProcesses(ProcConfig{Proc: b.TempDir()}, NewCGroups("/proc"))
	e := &Enricher{Processes: p, CGroups: p.cgroups}
	var records []*flowcache.Record
	for i := range 256 {
		id := fmt.Sprintf("%064x", i)
		tell(p.cgroups, named(id, "", "web", 1))
		r := inside(p, "/kubepods/burstable/pod"+pod+"/"+id, uint32(i+1), second)
		r.Dest = r.Source
		records = append(records, r)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		e.EnrichOrWait(records[i%len(records)])
	}
}
