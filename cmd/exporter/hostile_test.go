package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// hostileEngine serves the API of an engine on a socket: a list, what single containers are, and nothing of events.
func hostileEngine(t *testing.T, socket string, list func(w http.ResponseWriter, r *http.Request), inspect func(id string) string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/version":
			fmt.Fprint(w, `{"Components":[{"Name":"Engine"}]}`)
		case r.URL.Path == "/_ping":
			fmt.Fprint(w, "OK")
		case r.URL.Path == "/events":
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case strings.HasSuffix(r.URL.Path, "/containers/json"):
			list(w, r)
		case inspect != nil:
			fmt.Fprint(w, inspect(strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/containers/"), "/json")))
		default:
			http.NotFound(w, r)
		}
	})}
	go s.Serve(l) // ends with the test
	t.Cleanup(func() { s.Close() })
}

func hexNumber(n int) string { return fmt.Sprintf("%064x", n) }

// hostileList writes a list of containers with the ids from first on, as Docker does; name, address and label are of the first.
func hostileList(first, count int, name, address, label string) func(w http.ResponseWriter, r *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "[")
		for n := first; n < first+count; n++ {
			networks, app, called := "{}", "x", fmt.Sprint("c", n)
			if n == first {
				networks, app, called = `{"b":{"IPAddress":"`+address+`"}}`, label, name
			} else {
				fmt.Fprint(w, ",")
			}
			fmt.Fprintf(w, `{"Id":"%s","Names":["/%s"],"Image":"shop/web:2","Labels":{"app":"%s"},"Created":7,"State":"running","Ports":[],"NetworkSettings":{"Networks":%s}}`, hexNumber(n), called, app, networks)
		}
		fmt.Fprint(w, "]")
	}
}

// hostileInspect says of the first container what its address is.
func hostileInspect(first int, name, address, label string) func(id string) string {
	return func(id string) string {
		if id != hexNumber(first) {
			return `{"Id":"` + id + `","Created":"2020-01-01T00:00:00Z","Name":"/x","State":{"StartedAt":"2020-01-01T00:00:00Z"},"Config":{"Image":"shop/web:2"}}`
		}
		return fmt.Sprintf(`{"Id":"%s","Created":"2020-01-01T00:00:00Z","Name":"/%s","State":{"StartedAt":"2020-01-01T00:00:00Z"},"Config":{"Image":"shop/web:2","Labels":{"app":"%s"}},"NetworkSettings":{"Networks":{"b":{"IPAddress":"%s"}}}}`,
			id, name, label, address)
	}
}

// hostileCluster is an API server whose watches die at every event, with a service as large as there may be, a larger one, and a pod of 1.4 MB beside others.
func hostileCluster(t *testing.T) string {
	t.Helper()
	pod := func(name, ip string, padding int) string {
		return fmt.Sprintf(`{"metadata":{"name":"%s","namespace":"shop","uid":"u-%s","annotations":{"x":"%s"}},"spec":{"nodeName":"n7"},"status":{"phase":"Running","podIP":"%s","podIPs":[{"ip":"%s"}]}}`,
			name, name, strings.Repeat("x", padding), ip, ip)
	}
	service := func(name, ip string, external string, addresses, ports int) string {
		var a, p []string
		if external != "" {
			a = append(a, strconv.Quote(external))
		}
		for i := range addresses {
			a = append(a, fmt.Sprintf(`"198.51.%d.%d"`, i>>8, i&255))
		}
		for i := range ports {
			p = append(p, fmt.Sprintf(`{"port":%d,"protocol":"UDP"}`, i+1))
		}
		return fmt.Sprintf(`{"metadata":{"name":"%s","namespace":"shop","uid":"u-%s"},"spec":{"clusterIP":"%s","externalIPs":[%s],"ports":[%s]}}`, name, name, ip, strings.Join(a, ","), strings.Join(p, ","))
	}
	lists := map[string]string{
		"/api/v1/pods":     pod("db-0", "10.99.0.70", 0) + "," + pod("fat", "10.99.0.71", 1400<<10),
		"/api/v1/services": service("web", "10.99.0.72", "", 0, 53) + "," + service("big", "None", "10.99.0.73", 1999, 2000) + "," + service("bigger", "None", "10.99.0.74", 3000, 3000),
		"/api/v1/nodes":    `{"metadata":{"name":"n8","uid":"u-n8"},"status":{"addresses":[{"type":"InternalIP","address":"10.99.0.75"}]}}`,
	}
	var version atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") == "" {
			fmt.Fprintf(w, `{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":[%s]}`, lists[r.URL.Path])
			return
		}
		if r.URL.Path == "/api/v1/pods" {
			n := version.Add(1)
			fmt.Fprintf(w, `{"type":"ADDED","object":{"metadata":{"name":"p%d","namespace":"shop","uid":"u-p%d","resourceVersion":"%d"},"spec":{"nodeName":"n7"},"status":{"phase":"Running","podIP":"10.97.%d.%d"}}}`+"\n",
				n, n, 9+n, n>>8&255, n&255)
			fmt.Fprint(w, `{"type":"MODIFIED","object":{"metadata":{"name":"p`) // and is cut
			w.(http.Flusher).Flush()
		}
		panic(http.ErrAbortHandler)
	}))
	s.Start()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.URL
}

// TestNamesUnderAttack runs the program with everything at once that a runtime, a tenant of a cluster or a bad day can do to names: 100 000 containers, labels of
// 256 kB, a runtime that hangs in the middle of a message, one that answers garbage, a socket that is a link, a file, and one that may not be opened; a
// service of 2000 addresses and 2000 ports and a larger one, a pod of 1.4 MB, watches that die at every event. The memory is within --memory-limit, and
// everything that can be named is. How late the loop was is reported; bench/hostile.sh bounds it.
func TestNamesUnderAttack(t *testing.T) {
	ns, _ := netns(t)
	dir, err := os.MkdirTemp("", "sfh") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := func(name string) string { return filepath.Join(dir, name) }
	label := strings.Repeat("l", 256<<10)
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	hostileEngine(t, socket("many"), hostileList(1<<20, 100_000, "first", "10.99.0.60", "x"), hostileInspect(1<<20, "first", "10.99.0.60", "x"))
	hostileEngine(t, socket("labels"), hostileList(1<<21, 20, "labelled", "10.99.0.61", label), hostileInspect(1<<21, "labelled", "10.99.0.61", label))
	hostileEngine(t, socket("target"), hostileList(1<<22, 1, "linked", "10.99.0.62", "x"), hostileInspect(1<<22, "linked", "10.99.0.62", "x"))
	if err := os.Symlink(socket("target"), socket("link")); err != nil {
		t.Fatal(err)
	}
	hostileEngine(t, socket("hangs"), func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `[{"Id":"%s","Names":["/c"`, hexNumber(9))
		w.(http.Flusher).Flush()
		select {
		case <-done:
		case <-r.Context().Done():
		}
	}, nil)
	hostileEngine(t, socket("garbage"), func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "<html>\x00\xff") }, nil)
	hostileEngine(t, socket("shut"), hostileList(1<<23, 1, "shut", "10.99.0.63", "x"), hostileInspect(1<<23, "shut", "10.99.0.63", "x"))
	if err := os.Chmod(socket("shut"), 0); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"10.99.0.60": "first", "10.99.0.61": "labelled", "10.99.0.62": "linked", "10.99.0.70": "db-0@n7", "10.99.0.71": "fat@n7", "10.99.0.72": "shop/web@", "10.99.0.73": "shop/big@",
		"10.99.0.75": "@n8",
	}
	addresses := []string{"10.99.0.64", "10.99.0.74"} // nobody's, and of what is left out
	for a := range want {
		addresses = append(addresses, a)
	}
	slices.Sort(addresses)
	for _, a := range addresses { // nobody is there
		ip(t, "-n "+ns+" neigh add "+a+" lladdr 02:00:00:00:00:77 dev sfv0 nud permanent")
	}
	port := freePort(t)
	const limit = 512 << 20
	names := func(list ...string) string {
		for i := range list {
			list[i] = socket(list[i])
		}
		return strings.Join(list, ",")
	}
	r := runExporter(t, "--metrics", fmt.Sprintf("127.0.0.1:%d", port), "--memory-limit", strconv.Itoa(limit), "--docker", names("many", "labels", "link", "hangs", "garbage", "shut", "file"),
		"--containerd", "none", "--podman", "none", "--cri", "none", "--labels", "app", "--kube", hostileCluster(t), "--active-timeout", "1s", "--idle-timeout", "1s")
	if err := os.WriteFile(socket("file"), []byte("no socket"), 0o600); err != nil {
		t.Fatal(err)
	}
	talker := exec.Command("ip", "netns", "exec", ns, "bash", "-c", "while [ -d /proc/"+strconv.Itoa(os.Getpid())+" ]; do for a in "+strings.Join(addresses, " ")+"; do echo x >/dev/udp/$a/53; done; sleep 0.2; done")
	if err := talker.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { talker.Process.Kill(); talker.Wait() })

	// name is what a record says of its destination.
	name := func(j *jsonRecord) string {
		d := j.DestEnd
		if d == nil {
			return ""
		}
		s := d.Service
		if d.Container != nil {
			s += d.Container.Name + d.Container.Pod
		}
		if d.Node != "" || d.Service != "" {
			s += "@" + d.Node
		}
		return s
	}
	seen := map[string]string{} // the last name of each
	read := 0
	// All is named after some time, which depends on the machine.
	for end := time.Now().Add(45 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		out := r.out.String()
		whole := strings.LastIndexByte(out, '\n') + 1
		for line := range strings.Lines(out[read:whole]) {
			var j jsonRecord
			if err := json.Unmarshal([]byte(line), &j); err == nil && j.Start != "" && slices.Contains(addresses, j.Dest.String()) {
				seen[j.Dest.String()] = name(&j)
				if l := j.DestEnd; l != nil && l.Container != nil && len(l.Container.Labels) > 1024 {
					t.Fatalf("labels of %d octets", len(l.Container.Labels))
				}
			}
		}
		read = whole
		missing := 0
		for a, n := range want {
			if seen[a] != n {
				missing++
			}
		}
		if missing == 0 {
			break
		}
		if time.Now().After(end) {
			t.Errorf("not named: %v, want %v", seen, want)
			break
		}
	}
	for _, a := range []string{"10.99.0.64", "10.99.0.74"} {
		if seen[a] != "" {
			t.Errorf("%s has the name %q", a, seen[a])
		}
	}
	metrics := func() string {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
		if err != nil {
			return ""
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return string(b)
	}
	var m string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		m = metrics()
		if strings.Contains(m, `runtime_containers{runtime="docker",socket="`+socket("many")+`"} 32768`) && strings.Contains(m, `sockflow_kube_errors_total{cause="large",kind="services"} 1`) {
			break
		}
	}
	for line, right := range map[string]bool{
		`sockflow_runtime_up{runtime="docker",socket="` + socket("many") + `"} 1`:                    true,
		`sockflow_runtime_up{runtime="docker",socket="` + socket("hangs") + `"} 0`:                   true,
		`sockflow_runtime_up{runtime="docker",socket="` + socket("garbage") + `"} 0`:                 true,
		`sockflow_runtime_up{runtime="docker",socket="` + socket("file") + `"} 0`:                    true,
		`sockflow_runtime_up{runtime="docker",socket="` + socket("shut") + `"} 0`:                    true,
		`sockflow_runtime_overflow_total{runtime="docker",socket="` + socket("many") + `"} 0` + "\n": false,
		`sockflow_kube_errors_total{cause="large",kind="services"} 1`:                                true,
		`sockflow_kube_errors_total{cause="failed",kind="pods"} 0` + "\n":                            false,
	} {
		if strings.Contains(m, line) != right {
			t.Errorf("in the metrics: %q is %v, want %v", line, !right, right)
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	most := regexp.MustCompile(`VmHWM:\s*(\d+) kB`).FindSubmatch(status)
	if most == nil {
		t.Fatal("no VmHWM")
	}
	kib, _ := strconv.Atoi(string(most[1]))
	if kib<<10 > limit {
		t.Errorf("%d MiB of memory, limit %d", kib>>10, limit>>20)
	}
	var late []string
	for _, l := range regexp.MustCompile(`sockflow_loop_late_seconds\{share="([0-9.]+)"\} (\S+)`).FindAllStringSubmatch(m, -1) {
		late = append(late, l[1]+": "+l[2])
	}
	t.Logf("%d MiB at most; the loop was late by (quantile: seconds) %s", kib>>10, strings.Join(late, ", "))
	if len(late) != 3 {
		t.Errorf("how late the loop was: %q", late)
	}
	r.stop()
	if t.Failed() {
		t.Log(r.errs.String())
	}
}
