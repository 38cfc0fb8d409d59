package enrich

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

const second = int64(time.Second)

// apply applies a runtime's report of one container.
func apply(c *CGroups, t Container) {
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
	apply(c, named("web", "/shop/web", "web", 1))
	apply(c, named(id64, "", "hex", 1))
	apply(c, Container{Workload: flowcache.Workload{ContainerID: in64, CGroupPath: pods + in64, ContainerName: "main", PodName: "p", PodNamespace: "n", PodLabels: "app=x"}, Created: 1})
	for _, tc := range []struct{ name, path, want, pod string }{
		{"where the runtime put it", "/shop/web", "web", ""},
		{"a control group of its own below", "/shop/web/system.slice/nginx.service", "web", ""},
		{"no more than the beginning", "/shop/web2", "", ""},
		{"the same name elsewhere", "/other/shop/web", "", ""},
		{"seen from another control group namespace", "/../../shop/web", "web", ""},
		{"by id", "/docker/" + id64, "hex", ""},
		{"by id, systemd", "/system.slice/docker-" + id64 + ".scope", "hex", ""},
		{"of a pod", pods + in64, "main", "p"},
		{"what is made inside a container is of that container", pods + in64 + "/docker/" + strings.Repeat("9", 64), "main", "p"},
		{"whatever its name", pods + in64 + "/docker/" + id64, "main", "p"},
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
	apply(e.CGroups, named(id64, "", "web", 98*second))
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
	apply(e.CGroups, named("web", "/shop/web", "first", 100*second))
	old := inside(p, "/shop/web", 5, 101*second)
	young := inside(p, "/shop/web", 6, 203*second)
	name := func(r *flowcache.Record) string {
		e.Enrich(r)
		if r.Source.Container == nil {
			return ""
		}
		return r.Source.Container.ContainerName
	}
	apply(e.CGroups, Container{Workload: flowcache.Workload{ContainerID: "web", CGroupPath: "/shop/web"}, Created: 100 * second, Ended: 200 * second})
	if a, b := name(old), name(young); a != "first" || b != "" {
		t.Errorf("after the end of the first: %q and %q", a, b)
	}
	e.Clock(203*second, 0)
	if e.EnrichOrWait(young) {
		t.Error("the record of a container that took the place of another does not wait")
	}
	apply(e.CGroups, named("web", "/shop/web", "second", 202*second))
	if a, b := name(old), name(young); a != "first" || b != "second" {
		t.Errorf("after the second came: %q and %q", a, b)
	}
	apply(e.CGroups, named("web", "/shop/web", "first", 100*second)) // late
	if a, b := name(old), name(young); a != "first" || b != "second" {
		t.Errorf("after old news: %q and %q", a, b)
	}
}

func TestTwoRuntimesKnowOne(t *testing.T) {
	c := NewCGroups("/proc")
	path := "/docker/" + id64
	apply(c, Container{Workload: flowcache.Workload{ContainerID: id64, ContainerName: "web", ContainerImage: "shop/web"}, Created: 1})
	apply(c, Container{Workload: flowcache.Workload{ContainerID: id64, PodName: "p"}, Created: 2})
	if w := c.Workload(path); w.ContainerName != "web" || w.ContainerImage != "shop/web" || w.PodName != "p" {
		t.Errorf("%+v", w)
	}
	before := c.Workload(path)
	apply(c, Container{Workload: flowcache.Workload{ContainerID: id64, ContainerName: "renamed"}, Created: 1})
	if w := c.Workload(path); w.ContainerName != "renamed" || before.ContainerName != "web" {
		t.Errorf("%+v, what records share: %+v", w, before)
	}
}

// TestAddresses: an end of which no socket is seen has the name of who has its address, at that time, if that is one alone.
func TestAddresses(t *testing.T) {
	e, _ := newEnricher(t)
	addr := flowcache.AddrFrom4([4]byte{10, 1, 0, 2})
	lease := func(id string, created, ended int64) {
		apply(e.CGroups, Container{
			Workload: flowcache.Workload{ContainerID: id, ContainerName: "pause", PodName: "pod-" + id[:1]}, Created: created, Ended: ended,
			At: created, Addresses: []flowcache.Addr{addr}, Behind: &flowcache.Workload{PodName: "pod-" + id[:1]},
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
	if got := at(250*second, false) + at(150*second, false); got != "pod-fpod-0" {
		t.Errorf("who gets it has it from whom it was: %q", got)
	}
	lease(id64, 100*second, 190*second)
	if got := at(250*second, false) + at(150*second, false) + at(195*second, false); got != "pod-fpod-0" {
		t.Errorf("one after the other: %q", got)
	}
	if st := e.CGroups.Stats(); st.Peers != 6 {
		t.Errorf("%+v", st)
	}
	e.CGroups.Apply(&ContainerUpdate{Runtime: "/run/other.sock", Containers: []Container{{
		Workload: flowcache.Workload{ContainerID: strings.Repeat("a", 64)}, Created: 240 * second, At: 240 * second, Addresses: []flowcache.Addr{addr},
	}}})
	if got := at(250*second, false) + at(230*second, false); got != "pod-f" {
		t.Errorf("two runtimes have it: %q", got)
	}
}

func TestPortProxy(t *testing.T) {
	e, p := newEnricher(t)
	apply(e.CGroups, Container{Workload: flowcache.Workload{ContainerID: id64, ContainerName: "web"}, Created: 1, Published: []PublishedPorts{{6, 8080, 8080}}, At: 1})
	for _, tc := range []struct {
		process string
		uid     uint32
		port    uint16
		want    bool
	}{
		{"docker-proxy", 0, 8080, true}, {"docker-proxy", 0, 8081, false}, {"nginx", 0, 8080, false}, {"rootlessport", 0, 8080, true},
		{"docker-proxy", 1000, 8080, false}, // a user who gives a program this name
	} {
		r := inside(p, "/system.slice/docker.service", 5, second)
		r.Source, r.Dest = flowcache.End{}, r.Source
		p.table[r.Dest.Process].facts.Name, p.table[r.Dest.Process].facts.UID = tc.process, tc.uid
		r.Dest.UID = tc.uid
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
		apply(c, Container{Workload: flowcache.Workload{ContainerID: id, ContainerName: "x", CGroupPath: "/docker/" + id}, Created: 1})
	}
	if st := c.Stats(); st.Known != maxContainers || st.Overflow != 2*maxContainers {
		t.Errorf("%+v", st)
	}
	for i := range 5 * maxCGroups {
		c.Workload(fmt.Sprintf("/a/%d", i))
	}
	if len(c.works)+len(c.former) > 2*maxCGroups {
		t.Errorf("%d paths", len(c.works)+len(c.former))
	}
	c.Sweep(time.Now().UnixNano())
	c.Sweep(time.Now().Add(2 * containerMemory).UnixNano())
	if len(c.works)+len(c.former) != 0 {
		t.Errorf("%d paths after a long time", len(c.works)+len(c.former))
	}
	for i := range maxContainers {
		id := fmt.Sprintf("%064x", i)
		apply(c, Container{Workload: flowcache.Workload{ContainerID: id}, Created: 1, Ended: 2})
	}
	for range maxContainers/departAtOnce + 1 {
		c.Sweep(time.Now().UnixNano())
	}
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
		apply(p.cgroups, named(id, "", "web", 1))
		r := inside(p, "/kubepods/burstable/pod"+pod+"/"+id, uint32(i+1), second)
		r.Dest = r.Source
		records = append(records, r)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		e.EnrichOrWait(records[i%len(records)])
	}
}

// TestAddressEnds: an address and a published port are a container's until the runtime says that it has them no more, and whose they are then is
// another's; a connection stays with whom it began with.
func TestAddressEnds(t *testing.T) {
	addr := flowcache.AddrFrom4([4]byte{10, 1, 0, 2})
	full := func(id string, at int64) Container {
		return Container{
			Workload: flowcache.Workload{ContainerID: id, ContainerName: id[:1]}, Created: 90 * second, At: at, Since: at,
			Addresses: []flowcache.Addr{addr}, Published: []PublishedPorts{{6, 8080, 8080}, {17, 10000, 20000}},
		}
	}
	none := func(id string, at int64) Container {
		return Container{Workload: flowcache.Workload{ContainerID: id}, Created: 90 * second, At: at}
	}
	ended := func(id string, at int64) Container {
		return Container{Workload: flowcache.Workload{ContainerID: id}, Created: 90 * second, Ended: at}
	}
	const day = 86400 * second
	for name, c := range map[string]struct {
		say  []Container
		want map[int64]string // who had it when
	}{
		"removed":                          {[]Container{full(id64, 100*second), ended(id64, 200*second)}, map[int64]string{95 * second: "", 150 * second: "0", 200 * second: "", day: ""}},
		"stopped, then removed":            {[]Container{full(id64, 100*second), none(id64, 200*second), ended(id64, 300*second)}, map[int64]string{150 * second: "0", 250 * second: ""}},
		"stopped, and used by another":     {[]Container{full(id64, 100*second), none(id64, 200*second), full(in64, 210*second)}, map[int64]string{150 * second: "0", 205 * second: "", 215 * second: "f"}},
		"taken by another, the end is old": {[]Container{full(id64, 100*second), full(in64, 210*second), ended(id64, 200*second)}, map[int64]string{150 * second: "0", 205 * second: "", 215 * second: "f"}},
		"renamed without a word of it":     {[]Container{full(id64, 100*second), {Workload: flowcache.Workload{ContainerID: id64, ContainerName: "0"}, Created: 90 * second}}, map[int64]string{150 * second: "0", day: "0"}},
		"stopped and started":              {[]Container{full(id64, 100*second), none(id64, 200*second), full(id64, 300*second)}, map[int64]string{150 * second: "0", 250 * second: "", 350 * second: "0"}},
		"said twice":                       {[]Container{full(id64, 100*second), full(id64, 150*second), none(id64, 200*second)}, map[int64]string{120 * second: "0", 250 * second: ""}},
	} {
		e, p := newEnricher(t)
		for _, s := range c.say {
			apply(e.CGroups, s)
		}
		for when, want := range c.want {
			r := flowcache.Record{Start: when, Source: flowcache.End{Local: true}}
			r.Key.Dst, r.Key.Proto = addr, 17
			later := r
			later.Key.Proto, later.Began, later.Start = 6, when, day+when
			e.Enrich(&r)
			e.Enrich(&later)
			for _, r := range []flowcache.Record{r, later} {
				got := ""
				if r.Dest.Container != nil {
					got = r.Dest.Container.ContainerName
				}
				if got != want || (got != "") != (r.Dest.NamedBy == flowcache.NamedByAddress) {
					t.Errorf("%s: after %d s %q (by %d), want %q", name, when/second, got, r.Dest.NamedBy, want)
				}
			}
			for _, port := range []uint16{8080, 15000} {
				r := inside(p, "/system.slice/docker.service", 5, second)
				r.Source, r.Dest, r.Start = flowcache.End{}, r.Source, when
				r.Dest.UID, r.Key.DstPort, r.Key.Proto = 0, port, 6
				if port == 15000 {
					r.Key.Proto = 17
				}
				p.table[r.Dest.Process].facts.Path = "/usr/bin/docker-proxy"
				e.Enrich(r)
				if got := r.Dest.Container.ContainerName; got != want {
					t.Errorf("%s: published port %d after %d s: %q, want %q", name, port, when/second, got, want)
				}
			}
		}
		for range 1000 {
			apply(e.CGroups, full(id64, 400*second))
			apply(e.CGroups, none(id64, 401*second))
		}
		if n := len(e.CGroups.leases.byAddr[addr]); n > maxLeases {
			t.Errorf("%s: %d leases", name, n)
		}
		e.CGroups.Sweep(2 * day)
		e.CGroups.Sweep(3 * day)
		if n := e.CGroups.leases.count; n != 0 && name != "renamed without a word of it" && !strings.Contains(name, "another") {
			t.Errorf("%s: %d leases are left", name, n)
		}
	}
}

// TestGenerations: of containers that have one path after another each is named as it was, in whatever order they become known.
func TestGenerations(t *testing.T) {
	for _, order := range [][]int{{1, 2, 3}, {3, 2, 1}, {2, 1, 3}, {1, 3, 2}} {
		e, p := newEnricher(t)
		for _, n := range order {
			apply(e.CGroups, Container{
				Workload: flowcache.Workload{ContainerID: "web", CGroupPath: "/shop/web", ContainerName: "web", ContainerImage: fmt.Sprint("image", n)},
				Created:  int64(n) * 10 * second,
			})
		}
		for n := 1; n <= 3; n++ {
			r := inside(p, "/shop/web", uint32(n), (int64(n)*10+5)*second)
			if e.Enrich(r); r.Source.Container == nil || r.Source.Container.ContainerImage != fmt.Sprint("image", n) || r.Source.NamedBy != flowcache.NamedByRuntime {
				t.Errorf("in the order %v, generation %d: %+v", order, n, r.Source.Container)
			}
		}
	}
}

// TestPosing: a control group that others than root may have made is no container, whatever its name.
func TestPosing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes directories of others")
	}
	root := t.TempDir()
	for _, dir := range []string{"own/there/docker-" + id64 + ".scope", "foo/" + id64, "user.slice/user-7.slice/user@7.service/app.slice", "custom"} {
		os.MkdirAll(root+"/"+dir, 0o755)
	}
	os.Chown(root+"/own", 7, 7)
	victim := Container{Workload: flowcache.Workload{ContainerID: id64, ContainerName: "payments", ContainerImage: "shop/pay"}, Created: 1}
	said := victim
	said.Workload.CGroupPath = "/docker/" + id64
	pods := "/kubepods/burstable/pod" + pod + "/"
	for name, c := range map[string]struct {
		path     string
		id       string // without a runtime's word
		name     string // with the id
		whereNot string // and with where it is, beside
		podUID   string
	}{
		"where Docker puts it":                     {"/docker/" + id64, id64, "payments", "payments", ""},
		"systemd":                                  {"/system.slice/docker-" + id64 + ".scope", id64, "payments", "", ""},
		"a slice that was asked for":               {"/shop.slice/shop-web.slice/docker-" + id64 + ".scope", id64, "payments", "", ""},
		"a parent that was asked for, and is seen": {"/foo/" + id64, id64, "payments", "", ""},
		"a parent that nobody sees":                {"/bar/" + id64, "", "", "", ""},
		"of a user's manager":                      {"/user.slice/user-7.slice/user@7.service/app.slice/docker-" + id64 + ".scope", "", "", "", ""},
		"of a user's manager, gone":                {"/user.slice/user-8.slice/user@8.service/docker-" + id64 + ".scope", "", "", "", ""},
		"delegated by chown":                       {"/own/there/docker-" + id64 + ".scope", "", "", "", ""},
		"delegated by chown, deeper and gone":      {"/own/x.slice/y.slice/docker-" + id64 + ".scope", "", "", "", ""},
		"delegated, LXC":                           {"/own/lxc.payload.web", "", "", "", ""},
		"a service with rights of its own":         {"/system.slice/evil.service/docker/" + id64, "", "", "", ""},
		"a pod of a user":                          {"/own/pod" + pod, "", "", "", ""},
		"a pod of a user, gone":                    {"/user.slice/user-7.slice/user@7.service/kubepods/pod" + pod + "/" + id64, "", "", "", ""},
		"in a pod":                                 {pods + in64 + "/docker-" + id64 + ".scope", in64, "", "", pod},
		"in a pod, as a pod":                       {pods + in64 + "/kubepods/pod" + strings.Replace(pod, "4", "5", 1) + "/" + id64, in64, "", "", pod},
		"in LXC":                                   {"/lxc.payload.web/docker/" + id64, "web", "", "", ""},
		"podman's pod":                             {"/libpod_parent/" + in64 + "/libpod-" + id64, id64, "payments", "", ""},
		"in podman's container":                    {"/libpod_parent/libpod-" + in64 + "/libpod-" + id64, in64, "", "", ""},
	} {
		for i, say := range []*Container{nil, &victim, &said} {
			e, p := newEnricher(t)
			e.CGroups.mounts = []string{root}
			if say != nil {
				apply(e.CGroups, *say)
			}
			r := inside(p, c.path, 5, second)
			e.Enrich(r)
			var w flowcache.Workload
			if r.Source.Container != nil {
				w = *r.Source.Container
			}
			wantID, wantName := c.id, []string{"", c.name, c.whereNot}[i]
			if wantID == id64 && i == 2 && wantName == "" {
				wantID = "" // it is elsewhere
			}
			if w.ContainerID != wantID || w.ContainerName != wantName || w.ContainerImage != "" && wantName == "" || w.PodUID != c.podUID {
				t.Errorf("%s (%d): %+v, want %q %q", name, i, w, wantID, wantName)
			}
			if by := r.Source.NamedBy; (by == flowcache.NamedByRuntime) != (wantName != "") || wantID != "" && by == flowcache.NamedByNothing {
				t.Errorf("%s (%d): known by %d", name, i, by)
			}
		}
	}
}

// TestLateNamesOfParents: what a runtime says late counts in whatever a path looked like before.
func TestLateNamesOfParents(t *testing.T) {
	for path, at := range map[string]string{
		"/system.slice/ctr-c1.scope":                        "/system.slice/ctr-c1.scope",
		"/system.slice/k3s.service/ns1/c2":                  "/system.slice/k3s.service/ns1/c2",
		"/kubepods/pod" + pod + "/c4":                       "/kubepods/pod" + pod + "/c4",
		"/shop/web/nested/c5":                               "/shop/web/nested/c5",
		"/user.slice/user-7.slice/user@7.service/x/y.scope": "/user.slice/user-7.slice/user@7.service/x/y.scope",
	} {
		c := NewCGroups("/proc")
		apply(c, named("web", "/shop/web", "outer", 1))
		c.Workload(path)
		apply(c, named("c", at, "late", 2))
		if w := c.Workload(path); w == nil || w.ContainerName != "late" {
			t.Errorf("%s: %+v", path, w)
		}
	}
}

// BenchmarkApply is what an update of one container costs the loop beside 60 000 control groups that may be containers.
func BenchmarkApply(b *testing.B) {
	c := NewCGroups("/proc")
	for i := range 60000 {
		c.Workload(fmt.Sprintf("/a%d/b/c", i))
	}
	for i := 0; b.Loop(); i++ {
		apply(c, named(fmt.Sprintf("%064x", i%1000), "", "x", 1))
	}
}

// TestAskedAddresses: while a runtime is asked for the addresses of a container, the last record of a flow to one that nobody has, in a network of
// containers, waits; one to anybody else does not, and none does for long.
func TestAskedAddresses(t *testing.T) {
	e, p := newEnricher(t)
	c := e.CGroups
	near, far := flowcache.AddrFrom4([4]byte{10, 1, 0, 2}), flowcache.AddrFrom4([4]byte{192, 0, 2, 1})
	apply(c, Container{Workload: flowcache.Workload{ContainerID: id64}, Created: 1, At: 1, Addresses: []flowcache.Addr{flowcache.AddrFrom4([4]byte{10, 1, 0, 9})}})
	ask := func(since int64) {
		c.Apply(&ContainerUpdate{Runtime: "/run/r.sock", Answering: true, Asking: since})
	}
	waits := func(to flowcache.Addr, start int64, final bool) bool {
		r := flowcache.Record{Final: final, Start: start, Key: flowcache.Key{Dst: to, Proto: 17}, Source: flowcache.End{Local: true, Kernel: true}}
		return !e.EnrichOrWait(&r)
	}
	e.Clock(101*second, 0)
	ask(100 * second)
	for name, c := range map[string]struct{ got, want bool }{
		"near":                {waits(near, 101*second, true), true},
		"before it was asked": {waits(near, 99*second, true), false},
		"others follow":       {waits(near, 101*second, false), false},
		"far":                 {waits(far, 101*second, true), false},
	} {
		if c.got != c.want {
			t.Errorf("%s: waits %v", name, c.got)
		}
	}
	proxy := inside(p, "/system.slice/docker.service", 5, 50*second)
	proxy.Source, proxy.Dest, proxy.Start = flowcache.End{}, proxy.Source, 101*second
	proxy.Key.Proto, proxy.Key.DstPort, proxy.Dest.UID = 6, 8080, 0
	p.table[proxy.Dest.Process].facts.Path = "/usr/bin/docker-proxy"
	if e.EnrichOrWait(proxy) {
		t.Error("the record of a proxy whose container is not known yet does not wait")
	}
	apply(c, Container{
		Workload: flowcache.Workload{ContainerID: in64, ContainerName: "web"}, Created: 1, At: 100 * second, Since: 100 * second,
		Addresses: []flowcache.Addr{near}, Published: []PublishedPorts{{6, 8080, 8080}},
	})
	if !e.EnrichOrWait(proxy) || proxy.Dest.Container.ContainerName != "web" {
		t.Errorf("%+v", proxy.Dest.Container)
	}
	ask(100 * second)
	e.Clock(110*second, 0)
	if !waits(flowcache.AddrFrom4([4]byte{10, 1, 0, 3}), 101*second, true) {
		t.Error("does not wait for who answers late")
	}
	e.Clock(112*second, 0)
	if waits(flowcache.AddrFrom4([4]byte{10, 1, 0, 3}), 101*second, true) {
		t.Error("waits for too long")
	}
}

// TestAppearingContainer: a container runs that its runtime has not reported. Meanwhile the last record of a flow to an
// address without an owner, in a network of containers, waits as well. The address may be that container's, and its own
// end of the flow may be reported later or not at all.
func TestAppearingContainer(t *testing.T) {
	e, p := newEnricher(t)
	c := e.CGroups
	apply(c, Container{Workload: flowcache.Workload{ContainerID: id64}, Created: 1, At: 1, Addresses: []flowcache.Addr{flowcache.AddrFrom4([4]byte{10, 1, 0, 9})}})
	c.Apply(&ContainerUpdate{Runtime: "/run/r.sock", Answering: true})
	client := flowcache.AddrFrom4([4]byte{10, 1, 0, 2})
	record := func(from flowcache.Addr) *flowcache.Record {
		return &flowcache.Record{Final: true, Start: 101 * second, Began: 101 * second, Key: flowcache.Key{Src: from, Proto: 6}, Dest: flowcache.End{Local: true, Kernel: true}}
	}
	e.Clock(101*second, 0)
	if !e.EnrichOrWait(record(client)) {
		t.Error("the record of a stranger waits though no container appeared")
	}
	p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessExec, Process: flowcache.Process{ID: flowcache.ProcessID{PID: 7, Start: 9}, CGroup: 77, CGroupPath: "/docker/" + in64}})
	r := record(client)
	if e.EnrichOrWait(r) {
		t.Error("the record does not wait")
	}
	if !e.EnrichOrWait(record(flowcache.AddrFrom4([4]byte{192, 0, 2, 1}))) {
		t.Error("the record of an address far from those of containers waits")
	}
	apply(c, Container{Workload: flowcache.Workload{ContainerID: in64, ContainerName: "new"}, Created: 100 * second, At: 100 * second, Addresses: []flowcache.Addr{client}})
	if !e.EnrichOrWait(r) || r.Source.Container == nil || r.Source.Container.ContainerName != "new" {
		t.Errorf("%+v", r.Source.Container)
	}
	stranger := flowcache.AddrFrom4([4]byte{10, 1, 0, 3})
	e.Crowded = true
	if !e.EnrichOrWait(record(stranger)) {
		t.Error("the record of another's address waits though there is hardly room for those of own names")
	}
	e.Crowded = false
	e.Clock(105*second, 0)
	if !e.EnrichOrWait(record(flowcache.AddrFrom4([4]byte{10, 1, 0, 3}))) {
		t.Error("waits for too long")
	}
}

// TestNoMore: at the end no record waits any more, whatever a runtime was asked for.
func TestNoMore(t *testing.T) {
	e, p := newEnricher(t)
	c := e.CGroups
	apply(c, Container{Workload: flowcache.Workload{ContainerID: id64}, Created: 1, At: 1, Addresses: []flowcache.Addr{flowcache.AddrFrom4([4]byte{10, 1, 0, 9})}})
	c.Apply(&ContainerUpdate{Runtime: "/run/r.sock", Answering: true, Asking: 100 * second})
	e.Clock(101*second, 0)
	stranger := &flowcache.Record{Final: true, Start: 101 * second, Key: flowcache.Key{Dst: flowcache.AddrFrom4([4]byte{10, 1, 0, 2}), Proto: 17}}
	own := inside(p, "/docker/"+in64, 5, 101*second)
	own.Final = true
	if e.EnrichOrWait(stranger) || e.EnrichOrWait(own) {
		t.Error("they do not wait")
	}
	e.NoMore()
	if !e.EnrichOrWait(stranger) || !e.EnrichOrWait(own) {
		t.Error("they wait at the end")
	}
}

// TestSweepInSteps: of thousands of containers that ended together some are forgotten in each step.
func TestSweepInSteps(t *testing.T) {
	c := NewCGroups("/proc")
	const many = 3 * departAtOnce
	for i := range many {
		apply(c, Container{Workload: flowcache.Workload{ContainerID: fmt.Sprintf("%064x", i)}, Created: 1, Ended: second})
	}
	now := second + int64(containerMemory) + 1
	for left := many; left > 0; {
		c.Sweep(now)
		left = max(0, left-departAtOnce)
		if n := c.Stats().Known; n != left {
			t.Fatalf("%d are known, want %d", n, left)
		}
	}
}
