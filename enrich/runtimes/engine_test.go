package runtimes

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/flowcache"
)

// fake is an engine that answers as its fields say.
type fake struct {
	t        *testing.T
	socket   string
	server   *http.Server
	mu       sync.Mutex
	silent   bool   // it takes requests and never answers
	version  string // what it is; empty: Docker
	networks string // the list of them
	list     string
	events   func(w http.ResponseWriter, r *http.Request)
	asked    map[string]int
	// inspect has what is known of single containers; cut, if set, holds up lists in their middle.
	inspect map[string]string
	cut     chan struct{}
}

func newFake(t *testing.T) *fake {
	t.Helper()
	dir, err := os.MkdirTemp("", "sfr") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fake{t: t, socket: filepath.Join(dir, "d.sock"), list: "[]", asked: map[string]int{}}
	f.listen()
	t.Cleanup(func() { f.server.Close() })
	return f
}

func (f *fake) listen() {
	os.Remove(f.socket)
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		f.t.Fatal(err)
	}
	f.server = &http.Server{Handler: f}
	go f.server.Serve(l) // ends with the test
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	silent, list, events, cut, version, networks := f.silent, f.list, f.events, f.cut, f.version, f.networks
	one := f.inspect[strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/containers/"), "/json")]
	f.asked[r.URL.Path]++
	f.mu.Unlock()
	switch {
	case silent:
		<-r.Context().Done()
	case r.URL.Path == "/version" && version != "":
		fmt.Fprint(w, version)
	case r.URL.Path == "/version":
		fmt.Fprint(w, `{"Components":[{"Name":"Engine"}]}`)
	case r.URL.Path == "/events":
		w.(http.Flusher).Flush()
		if events != nil {
			events(w, r)
		}
		<-r.Context().Done()
	case r.URL.Path == "/containers/json":
		fmt.Fprint(w, list)
		if cut != nil {
			w.(http.Flusher).Flush()
			<-cut
		}
	case r.URL.Path == "/networks" && networks != "":
		fmt.Fprint(w, networks)
	case one != "":
		fmt.Fprint(w, one)
	case r.URL.Path == "/_ping":
		fmt.Fprint(w, "OK")
	default:
		http.NotFound(w, r)
	}
}

func (f *fake) set(change func()) {
	f.mu.Lock()
	change()
	f.mu.Unlock()
}

// watched collects what a watcher sends, as the loop of the exporter would.
type watched struct {
	mu      sync.Mutex
	cgroups *enrich.CGroups
	lines   []string
	up      []bool
	w       *Watcher
}

func watch(t *testing.T, cfg Config) *watched {
	t.Helper()
	g := &watched{cgroups: enrich.NewCGroups("/proc")}
	cfg.Notify = func(ok bool, line string) {
		g.mu.Lock()
		g.lines, g.up = append(g.lines, line), append(g.up, ok)
		g.mu.Unlock()
	}
	w, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	g.w = w
	ctx, cancel := context.WithCancel(context.Background())
	updates := make(chan *enrich.ContainerUpdate)
	done := make(chan struct{})
	go func() { w.Run(ctx, updates); close(updates) }() // ends with ctx
	go func() {                                         // ends with updates
		defer close(done)
		for u := range updates {
			g.mu.Lock()
			g.cgroups.Apply(u)
			g.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			b := make([]byte, 1<<20)
			t.Errorf("the watcher does not end\n%s", b[:runtime.Stack(b, true)])
		}
	})
	return g
}

func (g *watched) name(id string) flowcache.Workload {
	g.mu.Lock()
	defer g.mu.Unlock()
	if w := g.cgroups.Workload("/docker/" + id); w != nil {
		return *w
	}
	return flowcache.Workload{}
}

func (g *watched) said() []bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]bool(nil), g.up...)
}

func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func id(n int) string { return fmt.Sprintf("%064x", n) }

func only(socket string) Config {
	return Config{Docker: socket, Containerd: "none", Podman: "none", CRI: "none", Labels: []string{"app"}}
}

// TestRestart: an engine that is not there, comes, goes, and comes again with other containers. Each is said once.
func TestRestart(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.list = `[{"Id":"` + id(1) + `","Names":["/web"],"Image":"shop/web","Labels":{"app":"w"},"Created":7}]`
	f.server.Close()
	os.Remove(f.socket)
	g := watch(t, only(f.socket))
	soon(t, "it is said that nobody is there", func() bool { return len(g.said()) == 1 })
	f.listen()
	soon(t, "the list", func() bool { return g.name(id(1)).ContainerName == "web" })
	if w := g.name(id(1)); w.PodLabels != "app=w" || w.ContainerImage != "shop/web" || w.ContainerRuntime != "docker" {
		t.Errorf("%+v", w)
	}
	f.server.Close()
	soon(t, "it is said that it went", func() bool { return len(g.said()) == 3 })
	f.set(func() { f.list = `[{"Id":"` + id(2) + `","Names":["/db"],"Created":7}]` })
	f.listen()
	soon(t, "the new list", func() bool { return g.name(id(2)).ContainerName == "db" })
	if w := g.name(id(1)); w.ContainerName != "web" {
		t.Errorf("what was known is forgotten: %+v", w)
	}
	soon(t, "it is said that it came", func() bool { return len(g.said()) == 4 })
	if got := fmt.Sprint(g.said()); got != "[false true false true]" {
		t.Errorf("%s %q", got, g.lines)
	}
	if st := g.w.Stats(); len(st) != 1 || st[0].Connects != 2 || st[0].Errors == 0 || !st[0].Answering || st[0].Containers != 1 {
		t.Errorf("%+v", st)
	}
}

// TestSilent: an engine that takes requests and does not answer is given up, and recovers.
func TestSilent(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.silent = true
	g := watch(t, only(f.socket))
	soon(t, "it is said that it does not answer", func() bool { return fmt.Sprint(g.said()) == "[false]" })
	if !strings.Contains(g.lines[0], "docker at "+f.socket+": no answer in time") {
		t.Errorf("%q", g.lines)
	}
	f.set(func() { f.silent = false; f.list = `[{"Id":"` + id(1) + `","Names":["/web"],"Created":7}]` })
	soon(t, "names", func() bool { return g.name(id(1)).ContainerName == "web" })
}

// TestFlood: a hundred thousand events, most of no interest, and containers beyond all bounds, in bounded memory.
func TestFlood(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	const many = maxKnown + 5000
	later := time.Now().Add(time.Hour).UnixNano() // than any list, which shows none of them
	f.events = func(w http.ResponseWriter, r *http.Request) {
		for n := range many {
			for range 2 {
				fmt.Fprintf(w, `{"Type":"container","Action":"exec_start","Actor":{"ID":"%s","Attributes":{"name":"x"}}}`+"\n", id(n))
			}
			fmt.Fprintf(w, `{"Type":"container","Action":"create","Actor":{"ID":"%s","Attributes":{"name":"c%d","image":"i","app":"a,b"}},"timeNano":%d}`+"\n", id(n), n, later)
		}
		w.(http.Flusher).Flush()
	}
	g := watch(t, only(f.socket))
	soon(t, "the end of the flood", func() bool { return g.w.Stats() != nil && g.w.Stats()[0].Events == 3*many })
	st := g.w.Stats()[0]
	if st.Containers != maxKnown || st.Overflow != many-maxKnown {
		t.Errorf("%+v", st)
	}
	if w := g.name(id(77)); w.ContainerName != "c77" || w.PodLabels != "app=a;b" {
		t.Errorf("%+v", w)
	}
}

// TestBadAnswers: whatever an engine says, it costs names only.
func TestBadAnswers(t *testing.T) {
	t.Parallel()
	for name, list := range map[string]string{
		"no JSON": "<html>", "an object": "{}", "cut": `[{"Id":"a`, "types": `[{"Id":7}]`, "endless": `[{"Id":"` + strings.Repeat("a", 2*maxValue) + `"}]`, "nothing": "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.list = list
			g := watch(t, only(f.socket))
			soon(t, "it is said", func() bool { return fmt.Sprint(g.said()) == "[false]" })
			f.set(func() { f.list = `[{"Id":"` + id(1) + `","Names":["/web"],"Created":7}]` })
			soon(t, "names", func() bool { return g.name(id(1)).ContainerName == "web" })
		})
	}
}

func TestSockets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, nil, 0o600)
	for path, want := range map[string]string{"relative.sock": "must begin with a slash", file: "no socket", "/none/such.sock": "", "unix:///none/such.sock": "", "none": "", "auto": "", "/a.sock,/b.sock": ""} {
		_, err := New(only(path))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

func FuzzList(f *testing.F) {
	f.Add([]byte(`{"Id":"a","Names":["/x"],"Created":1,"Ports":[{"Type":"tcp","PublicPort":80}],"NetworkSettings":{"Networks":{"b":{"IPAddress":"10.0.0.1"}}}}`))
	f.Add([]byte(`{"Id":"a","Names":["x"],"Created":"2026-01-01T00:00:00Z","Ports":[{"protocol":"udp","host_port":65535,"range":9}],"PodName":"p"}`))
	g := engine{e: &endpoint{labels: []string{"app"}}}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m listed
		if json.Unmarshal(b, &m) != nil {
			return
		}
		c := g.ofList(&m)
		for _, p := range c.Published {
			if p.From == 0 || p.Proto == 0 || p.To < p.From {
				t.Errorf("%+v", p)
			}
		}
	})
}
