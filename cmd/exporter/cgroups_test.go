package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hierarchies returns where control groups are mounted: cgroup2 ("" if it is not), and the hierarchies of cgroup v1.
func hierarchies(t *testing.T) (v2 string, v1 []string) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch {
		case strings.Contains(line, " - cgroup2 "):
			v2 = f[4]
		case strings.Contains(line, " - cgroup ") && !strings.Contains(line, "cpuset"): // whose groups must be set up
			v1 = append(v1, f[4])
		}
	}
	return v2, v1
}

// talk writes an octet to a connection five times a second, until it is closed.
func talk(c net.Conn) {
	for {
		if _, err := c.Write([]byte("z")); err != nil {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// placed connects once for each line of its standard input, and talks through the connections until its end.
func placed(addr string) error {
	in := bufio.NewScanner(os.Stdin)
	var held []net.Conn
	for in.Scan() {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		held = append(held, c)
		go talk(c) // ends with the connection
		r := newReport()
		r.Flows = []counted{{Proto: "tcp", Local: addrOf(c.LocalAddr()), Remote: addrOf(c.RemoteAddr()), PID: r.PID}}
		r.print()
	}
	for _, c := range held {
		c.Close()
	}
	return in.Err()
}

// TestCGroups: what control groups' names say, of processes that are put into them as runtimes do it, before they
// run their program; older than the exporter and younger; in all hierarchies that this kernel has mounted, or in
// those of one version only; and after they were moved in another hierarchy, where they are not in the container.
// The same cases hold with cgroup v2 alone, v1 alone and both (testdata/kernels/run.sh).
func TestCGroups(t *testing.T) {
	needRoot(t)
	v2, v1 := hierarchies(t)
	v1 = v1[:min(3, len(v1))] // to move a process takes the kernel a while
	id, outer := strings.Repeat("0123456789abcdef", 4), strings.Repeat("fedcba9876543210", 4)
	const pod = "4f1c2d3e-1111-2222-3333-444455556666"
	under := strings.ReplaceAll(pod, "-", "_")
	cases := []struct {
		group string
		want  jsonContainer
	}{
		{"docker/" + id, jsonContainer{ID: id, Runtime: "docker"}},
		{"system.slice/docker-" + id + ".scope", jsonContainer{ID: id, Runtime: "docker"}},
		{"system.slice:docker:" + id, jsonContainer{ID: id, Runtime: "docker"}},
		{"machine.slice:libpod:" + id, jsonContainer{ID: id, Runtime: "podman"}},
		{"kubepods/burstable/pod" + pod + "/" + id, jsonContainer{ID: id, PodUID: pod}},
		{"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/cri-containerd-" + id + ".scope", jsonContainer{ID: id, Runtime: "containerd", PodUID: pod}},
		{"kubepods-burstable-pod" + under + ".slice:cri-containerd:" + id, jsonContainer{ID: id, Runtime: "containerd", PodUID: pod}},
		{"kubepods-besteffort-pod" + under + ".slice:crio:" + id, jsonContainer{ID: id, Runtime: "cri-o", PodUID: pod}},
		{"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + under + ".slice/cri-containerd-" + id + ".scope",
			jsonContainer{ID: id, Runtime: "containerd", PodUID: pod}},
		{"docker/" + outer + "/kubelet/kubepods/pod" + pod + "/" + id, jsonContainer{ID: outer, Runtime: "docker"}}, // who is root in it may make any group
	}
	places := map[string][]string{"all": v1}
	if v2 != "" {
		places["all"] = append([]string{v2}, v1...)
	}
	if v2 != "" && len(v1) > 0 {
		places["v1"], places["v2"] = v1, []string{v2}
	}
	// put puts a process into a group of each of some hierarchies.
	put := func(p *program, group string, in []string) {
		t.Helper()
		for _, root := range in {
			dir := filepath.Join(root, group)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				p.cmd.Process.Kill()
				eventually(t, dir+" is empty", func() bool { return os.Remove(dir) == nil || !exists(dir) })
				for up := filepath.Dir(dir); up != root; up = filepath.Dir(up) {
					os.Remove(up)
				}
			})
			if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, p.cmd.Process.Pid), 0); err != nil {
				t.Fatalf("%s: %v", dir, err)
			}
		}
	}
	srv := start(t, "placed-server", "", "server", "127.0.0.1", "10")
	serverPort := uint16(srv.next().TCP)
	addr := fmt.Sprintf("127.0.0.1:%d", serverPort)
	type expected struct {
		what string
		want jsonContainer
	}
	wanted := map[netip.AddrPort]expected{}
	var running []*program
	top := fmt.Sprintf("sockflow-test-%d", os.Getpid())
	// connect makes a program connect.
	connect := func(p *program, e expected) {
		t.Helper()
		if _, err := p.in.Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
		wanted[p.next().Flows[0].Local] = e
	}
	place := func(age string) {
		t.Helper()
		for in, mounts := range places {
			for _, tc := range cases {
				what := fmt.Sprintf("%s, %s in %s", age, tc.group, in)
				p := startPlaced(t, addr)
				put(p, filepath.Join(top, tc.group), mounts)
				p.in.Write([]byte("\n")) // now it runs the program
				connect(p, expected{what, tc.want})
				running = append(running, p)
				if len(v1) < 2 && !(in == "v2" && len(v1) > 0) {
					continue
				}
				// Another hierarchy of cgroup v1 than that which knows the container, or than one of those.
				put(p, top+"/elsewhere", v1[:1])
				connect(p, expected{what + ", moved in " + v1[0], tc.want})
			}
		}
	}
	place("older")
	r := runExporter(t, "--metrics", "none", "--containerd", "none", "--docker", "none", "--podman", "none", "--cri", "none", "--snapshot-interval", "1s")
	place("younger")
	check := func(source string, local netip.AddrPort, e *jsonEnd) {
		t.Helper()
		w, ok := wanted[local]
		if !ok {
			return
		}
		switch {
		case e == nil || e.Container == nil:
			t.Errorf("%s: %s: no container: %+v", source, w.what, e)
		case *e.Container != w.want || e.Unit != "":
			t.Errorf("%s: %s: %+v in unit %q, want %+v", source, w.what, *e.Container, e.Unit, w.want)
		}
	}
	listed := 0
	d := json.NewDecoder(strings.NewReader(must(t, buildExporter(t), "list", "-o", "json", "--containerd", "none", "--docker", "none", "--podman", "none", "--cri", "none")))
	for d.More() {
		var l struct {
			Local     netip.Addr `json:"localAddress"`
			LocalPort uint16     `json:"localPort"`
			Remote    uint16     `json:"remotePort"`
			End       *jsonEnd   `json:"socket"`
		}
		if err := d.Decode(&l); err != nil {
			t.Fatal(err)
		}
		if local := netip.AddrPortFrom(l.Local, l.LocalPort); l.Remote == serverPort && wanted[local].what != "" {
			check("list", local, l.End)
			listed++
		}
	}
	for _, p := range running {
		p.in.Close()
		p.cmd.Wait()
	}
	srv.end()
	r.stop()
	seen := map[netip.AddrPort]bool{}
	for _, j := range r.json() {
		// Of another program a connection elsewhere may have the same port.
		if j.DestPort == serverPort {
			local := netip.AddrPortFrom(j.Source, j.SourcePort)
			seen[local] = true
			check("run", local, j.SourceEnd)
		} else if j.SourcePort == serverPort {
			local := netip.AddrPortFrom(j.Dest, j.DestPort)
			seen[local] = true
			check("run", local, j.DestEnd)
		}
	}
	for local, w := range wanted {
		if !seen[local] {
			t.Errorf("run: %s: no record", w.what)
		}
	}
	if listed != len(wanted) {
		t.Errorf("%d of %d sockets are listed", listed, len(wanted))
	}
	t.Logf("%d connections of %d cases; cgroup2 %q, cgroup v1 %v", len(wanted), len(cases)*len(places), v2, v1)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// startPlaced starts a shell that becomes the program placed with the first line of its standard input.
func startPlaced(t *testing.T, addr string) *program {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("/bin/sh", "-c", `read _; exec "$0" "$@"`, self, addr)
	c.Env = append(os.Environ(), trafficEnv+"=placed")
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	return &program{t, c, in, json.NewDecoder(out)}
}

// TestInCGroupNamespace: the exporter in a control group namespace and mounts of its own, as a pod has them: where
// the host's hierarchy is mounted datagrams of every control group are counted, and containers outside are named,
// older and younger ones; where only the pod's own is, that is said by the log, the metrics and doctor.
func TestInCGroupNamespace(t *testing.T) {
	needRoot(t)
	root, _ := hierarchies(t)
	if root == "" {
		miss(t, "no cgroup2 is mounted")
	}
	top := filepath.Join(root, fmt.Sprintf("sockflow-test-%d", os.Getpid()))
	id := strings.Repeat("0123456789abcdef", 4)
	const pod = "4f1c2d3e-1111-2222-3333-444455556666"
	own, docker, sibling := filepath.Join(top, "kubepods/pod"+pod, strings.Repeat("ab", 32)), filepath.Join(top, "docker", id), filepath.Join(top, "kubepods/pod"+pod, id)
	for _, dir := range []string{own, docker, sibling} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, dir := range []string{own, docker, sibling} {
			eventually(t, dir+" is empty", func() bool { return os.Remove(dir) == nil })
		}
		for _, dir := range []string{"kubepods/pod" + pod, "kubepods", "docker", ""} {
			os.Remove(filepath.Join(top, dir))
		}
	})
	// inside is the exporter in the namespaces.
	inside := func(mounts string, args ...string) *exec.Cmd {
		t.Helper()
		fd, err := os.Open(own)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { fd.Close() })
		c := exec.Command("/bin/sh", append([]string{"-ec", mounts + "\nexec \"$0\" \"$@\"", buildExporter(t)}, args...)...)
		c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd()), Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWCGROUP}
		return c
	}
	doctor := func(mounts string) map[string]check {
		t.Helper()
		out, _ := inside(mounts, "doctor", "--json").Output()
		var report struct{ Checks []check }
		if err := json.Unmarshal(out, &report); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		checks := map[string]check{}
		for _, c := range report.Checks {
			checks[c.Group+"/"+c.Name] = c
		}
		return checks
	}
	dir := t.TempDir()
	pods := fmt.Sprintf("mkdir -p %[1]s/own\nmount -t cgroup2 none %[1]s/own\n", dir)
	hosts := fmt.Sprintf("mkdir -p %[1]s/host\nmount --bind %[2]s %[1]s/host\n", dir, root)
	const away = "umount -l /sys/fs/cgroup\n"
	names := []string{"--containerd", "none", "--docker", "none", "--podman", "none", "--cri", "none"}

	srv := start(t, "namespace-server", "", "server", "127.0.0.1", "10")
	ports := srv.next()
	// join starts a program in a control group.
	join := func(dir string) *program {
		t.Helper()
		p := startPlaced(t, fmt.Sprintf("127.0.0.1:%d", ports.TCP))
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, p.cmd.Process.Pid), 0); err != nil {
			t.Fatal(err)
		}
		p.in.Write([]byte("\n"))
		return p
	}
	want := map[netip.AddrPort]jsonContainer{}
	connect := func(p *program, c jsonContainer) {
		t.Helper()
		p.in.Write([]byte("\n"))
		want[p.next().Flows[0].Local] = c
	}
	inDocker, inPod := jsonContainer{ID: id, Runtime: "docker"}, jsonContainer{ID: id, PodUID: pod}
	older, olderSibling := join(docker), join(sibling)
	connect(older, inDocker)
	connect(olderSibling, inPod)
	r := launch(t, inside(pods+hosts+away, append(names, "--metrics", "none")...))
	eventually(t, "the exporter meters", func() bool { return strings.Contains(r.errs.String(), "metering by") })
	if strings.Contains(r.errs.String(), "not attached") {
		t.Error(r.errs.String())
	}
	time.Sleep(300 * time.Millisecond) // the first pass
	younger, youngerSibling := join(docker), join(sibling)
	connect(younger, inDocker)
	connect(youngerSibling, inPod)
	datagrams := start(t, "namespace-datagrams", "", "client", "127.0.0.1", fmt.Sprint(ports.TCP), fmt.Sprint(ports.UDP), "4", "10").end()
	for _, p := range []*program{older, olderSibling, younger, youngerSibling} {
		p.in.Close()
		p.cmd.Wait()
	}
	srv.end()
	r.stop()
	recs := r.json()
	for _, c := range datagrams.Flows {
		if out, in, _, _ := sumJSON(recs, c); out != c.Sent || in != c.Received {
			t.Errorf("%d octets out, %d in, the program counted %+v", out, in, c)
		}
	}
	for local, container := range want {
		n := 0
		for _, j := range recs {
			e := j.SourceEnd
			switch local { // who began an older one may not be known
			case netip.AddrPortFrom(j.Source, j.SourcePort):
			case netip.AddrPortFrom(j.Dest, j.DestPort):
				e = j.DestEnd
			default:
				continue
			}
			if n++; e == nil || e.Container == nil || *e.Container != container {
				t.Errorf("%+v, want %+v", e, container)
			}
		}
		if n == 0 {
			t.Errorf("no record of %v, of %+v", local, container)
		}
	}
	checks := doctor(pods + hosts + away)
	wantCheck := func(name string, v verdict, detail string) {
		t.Helper()
		if c := checks[name]; c.Verdict != v || !strings.Contains(c.Detail, detail) {
			t.Errorf("%s is %+v, want %s %q", name, c, v, detail)
		}
	}
	wantCheck("Control groups/layout", good, dir+"/host")
	wantCheck("Control groups/cgroup namespace", good, "a container's")
	wantCheck("eBPF hooks/cgroup_skb/egress", good, "")

	// The pod's own group alone.
	lesser := launch(t, inside(pods+away, append(names, "--metrics", "127.0.0.1:0")...))
	eventually(t, "metrics are served", func() bool { return strings.Contains(lesser.errs.String(), "/metrics") })
	_, url, _ := strings.Cut(lesser.errs.String(), "url=")
	res, err := http.Get(strings.Fields(url)[0])
	if err != nil {
		t.Fatal(err)
	}
	page, _ := io.ReadAll(res.Body)
	res.Body.Close()
	for _, hook := range []string{"count_out", "count_in", "release"} {
		if !regexp.MustCompile(`(?m)^sockflow_hook_attached\{hook="` + hook + `",.*\} 0$`).Match(page) {
			t.Errorf("the metrics do not say that %s is not attached", hook)
		}
	}
	lesser.stop()
	for _, hook := range []string{"cgroup_skb/egress", "cgroup_skb/ingress", "cgroup/sock_release"} {
		if !strings.Contains(lesser.errs.String(), "hook="+hook+" ") {
			t.Errorf("the log does not say that %s is not attached: %s", hook, lesser.errs.String())
		}
	}
	checks = doctor(pods + away)
	wantCheck("Control groups/layout", bad, "only a part of the cgroup2 hierarchy is mounted")
	wantCheck("Control groups/cgroup namespace", reduced, "")
	wantCheck("eBPF hooks/cgroup_skb/egress", bad, "datagrams sent")
	if r := checks["eBPF hooks/cgroup_skb/egress"].Remedy; !strings.Contains(r, "hostPath") {
		t.Errorf("remedy %q", r)
	}
}
