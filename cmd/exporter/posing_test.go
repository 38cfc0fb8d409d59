package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestPosing: a user without rights in a control group that is delegated to it, root in a container's own, and a user's program by the name of docker-proxy
// have not the name of the container whose id they know.
func TestPosing(t *testing.T) {
	n := newNode(t)
	oci, rootfs := image(t)
	program := filepath.Join(filepath.Dir(oci), "pod")
	os.Chmod(filepath.Dir(oci), 0o755)
	d := startDocker(n, 224, rootfs)
	root := cgroup2(t)
	r := runNaming(t, 1, "--docker", d.socket, "--containerd", "none", "--podman", "none", "--cri", "none", "--active-timeout", "1s", "--idle-timeout", "1s")
	victim := d.run("run", "-d", "--name", "payments", "-p", "127.0.0.1:18099:7000", "shop/web:2", "/bin/pod", "-serve", "7000", "-for", "1h")
	attacker := d.run("run", "-d", "--name", "attacker", "shop/web:2", "/bin/pod", "-for", "1h")
	own := fmt.Sprintf("%s/sfposing%d", root, os.Getpid())
	groups := map[string]string{ // port to which it speaks: control group
		"7101": own + "/docker-" + victim + ".scope",
		"7102": own + "/docker/" + victim,
		"7103": root + "/docker/" + attacker + "/docker-" + victim + ".scope",
	}
	if err := os.Mkdir(own, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(own, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, g := range groups {
			os.Remove(g)
		}
		os.Remove(own + "/docker")
		os.Remove(own)
	})
	for port, g := range groups {
		if strings.HasPrefix(g, own) {
			must(t, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "mkdir", "-p", g)
		} else if err := os.Mkdir(g, 0o755); err != nil {
			t.Fatal(err)
		}
		c := exec.Command("nsenter", "--net=/run/netns/"+n.name, "sh", "-c", "echo $$ >"+g+"/cgroup.procs && exec setpriv --reuid=65534 --regid=65534 --clear-groups "+program+" 127.0.0.1:"+port)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	n.inside("busybox", "nc", "-w", "1", "127.0.0.1", "18099") // by the true proxy
	proxy := filepath.Join(t.TempDir(), "docker-proxy")
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(proxy, b, 0o755)
	os.Chmod(filepath.Dir(proxy), 0o755)
	os.Chmod(filepath.Dir(filepath.Dir(proxy)), 0o755)
	ns := n.name + "u"
	newNamespace(t, ns) // where the port is free
	server := exec.Command("nsenter", "--net=/run/netns/"+ns, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", proxy, "-serve", "18099", "-for", "1h")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Process.Kill(); server.Wait() })
	eventually(t, "it serves", func() bool {
		out, _ := exec.Command("nsenter", "--net=/run/netns/"+ns, "cat", "/proc/net/tcp", "/proc/net/tcp6").Output()
		return strings.Contains(string(out), fmt.Sprintf(":%04X ", 18099))
	})
	must(t, "nsenter", "--net=/run/netns/"+ns, program, "127.0.0.1:18099")
	time.Sleep(1500 * time.Millisecond)
	r.stop()
	seen := map[string]int{}
	for _, j := range r.json() {
		if j.SourceEnd == nil {
			continue
		}
		id, name := "", ""
		if c := j.SourceEnd.Container; c != nil {
			id, name = c.ID, c.Name
		}
		port := fmt.Sprint(j.DestPort)
		switch {
		case groups[port] != "":
			seen[port]++
			want := ""
			if port == "7103" {
				want = attacker
			}
			if id != want || want == "" && (name != "" || j.SourceEnd.NamedBy != "") || want != "" && j.SourceEnd.NamedBy != "runtime" {
				t.Errorf("port %s, in %s: %q %q, known by %q; want %q", port, groups[port], id, name, j.SourceEnd.NamedBy, want)
			}
		case port == "18099" && j.DestEnd != nil && j.DestEnd.Name == "docker-proxy":
			got := ""
			if c := j.DestEnd.Container; c != nil {
				got = c.Name
			}
			who := "true proxy"
			if j.DestEnd.UID != nil && *j.DestEnd.UID == 65534 {
				who = "false proxy"
			}
			seen[who]++
			if (got == "payments") != (who == "true proxy") {
				t.Errorf("the %s is %q", who, got)
			}
		}
	}
	for _, what := range []string{"7101", "7102", "7103", "true proxy", "false proxy"} {
		if seen[what] == 0 {
			t.Errorf("no record of %s", what)
		}
	}
	show(t, r, r.json())
	t.Log(seen)
}
