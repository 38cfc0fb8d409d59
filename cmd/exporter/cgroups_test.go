package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
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

// placed connects once for each line of its standard input, and holds the connections until its end, at which each sends once more.
func placed(addr string) error {
	in := bufio.NewScanner(os.Stdin)
	var held []net.Conn
	for in.Scan() {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		held = append(held, c)
		c.Write([]byte("x"))
		r := newReport()
		r.Flows = []counted{{Proto: "tcp", Local: addrOf(c.LocalAddr()), Remote: addrOf(c.RemoteAddr()), Sent: 1, PID: r.PID}}
		r.print()
	}
	for _, c := range held {
		c.Write([]byte("y"))
		c.Close()
	}
	return in.Err()
}

// TestCGroups: what control groups' names say, of processes that are put into them as runtimes do it, before they run their program; older than the
// exporter and younger; in all hierarchies that this kernel has mounted, or in those of one version only; and after they were moved in another
// hierarchy, where they are not in the container. The same cases hold with cgroup v2 alone, v1 alone and both (testdata/kernels/run.sh).
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
		{"docker/" + outer + "/kubelet/kubepods/pod" + pod + "/" + id, jsonContainer{ID: id, PodUID: pod}},
	}
	places := map[string][]string{"all": v1}
	if v2 != "" {
		places["all"] = append([]string{v2}, v1...)
	}
	if v2 != "" && len(v1) > 0 {
		places["v1"], places["v2"] = v1, []string{v2}
	}
	// put puts a process into a group of each of some hierarchies.
	put := func(pid int, group string, in []string) {
		t.Helper()
		for _, root := range in {
			dir := filepath.Join(root, group)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				eventually(t, dir+" is empty", func() bool { return os.Remove(dir) == nil || !exists(dir) })
				for up := filepath.Dir(dir); up != root; up = filepath.Dir(up) {
					os.Remove(up)
				}
			})
			if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, pid), 0); err != nil {
				t.Fatalf("%s: %v", dir, err)
			}
		}
	}
	srv := start(t, "placed-server", "", "server", "127.0.0.1", "10")
	addr := fmt.Sprintf("127.0.0.1:%d", srv.next().TCP)
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
				put(p.cmd.Process.Pid, filepath.Join(top, tc.group), mounts)
				p.in.Write([]byte("\n")) // now it runs the program
				connect(p, expected{what, tc.want})
				running = append(running, p)
				if len(v1) < 2 && !(in == "v2" && len(v1) > 0) {
					continue
				}
				// Another hierarchy of cgroup v1 than that which knows the container, or than one of those.
				put(p.cmd.Process.Pid, top+"/elsewhere", v1[:1])
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
			End       *jsonEnd   `json:"socket"`
		}
		if err := d.Decode(&l); err != nil {
			t.Fatal(err)
		}
		if local := netip.AddrPortFrom(l.Local, l.LocalPort); wanted[local].what != "" {
			check("list", local, l.End)
			listed++
		}
	}
	for _, p := range running {
		p.in.Close() // and each connection sends more
		p.cmd.Wait()
	}
	srv.end()
	r.stop()
	seen := map[netip.AddrPort]bool{}
	for _, j := range r.json() {
		for local, e := range map[netip.AddrPort]*jsonEnd{netip.AddrPortFrom(j.Source, j.SourcePort): j.SourceEnd, netip.AddrPortFrom(j.Dest, j.DestPort): j.DestEnd} {
			seen[local] = true
			check("run", local, e)
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
