package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// runNaming runs the exporter, and returns when the runtimes have reported their containers.
func runNaming(t *testing.T, runtimes int, args ...string) *running {
	t.Helper()
	r := runExporter(t, append([]string{"--metrics", "none"}, args...)...)
	eventually(t, "runtimes answer", func() bool { return strings.Count(r.errs.String(), "names containers") == runtimes })
	return r
}

// within returns the records of a container, by its id, at either end.
func within(recs []jsonRecord, id string) (ends []*jsonEnd) {
	for i := range recs {
		for _, e := range []*jsonEnd{recs[i].SourceEnd, recs[i].DestEnd} {
			if e != nil && e.Container != nil && e.Container.ID == id {
				ends = append(ends, e)
			}
		}
	}
	return ends
}

// TestContainerd: plain containers, pods, and a pod on the host's network, with their names, images and labels; by the system's containerd
// (1.6) and by those of later Debian suites (1.7, 2.1).
func TestContainerd(t *testing.T) {
	needRoot(t)
	oci, _ := image(t)
	for _, suite := range []string{"bookworm", "trixie", "sid"} {
		t.Run(suite, func(t *testing.T) {
			bin := ""
			if suite != "bookworm" {
				out, err := exec.Command("../../testdata/containerd/fetch.sh", suite).CombinedOutput()
				if err != nil {
					t.Skipf("no containerd of %s: %v\n%s", suite, err, out)
				}
				bin = strings.TrimSpace(string(out))
			}
			testContainerd(t, startContainerd(newNode(t), bin, 211, oci))
		})
	}
}

// testContainerd reads the containers by containerd's own API and, in another exporter, by CRI, which does not know those of other clients.
func testContainerd(t *testing.T, c *containerdNode) {
	c.run("shop", "run", "-d", "--label", "app=web", "--label", "team=a", podImage, "older", "/bin/pod", "-serve", "7000", "-for", "1h")
	args := []string{"--active-timeout", "1s", "--docker", "none", "--podman", "none", "--labels", "app,tier"}
	r := runNaming(t, 1, append(args, "--containerd", c.socket, "--cri", "none")...)
	byCRI := runNaming(t, 1, append(args, "--cri", c.socket, "--containerd", "none")...)
	ctx := context.Background()
	a, err := c.runPod(ctx, "server", false, map[string]string{"app": "shop", "tier": "back"}, "/bin/pod", "-serve", "7000", "-for", "1h")
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.runPod(ctx, "client", false, map[string]string{"app": "shop"}, "/bin/pod", "-for", "1h", a.ip+":7000", a.ip+":7001")
	if err != nil {
		t.Fatal(err)
	}
	h, err := c.runPod(ctx, "onhost", true, nil, "/bin/pod", "-for", "1h", a.ip+":7000")
	if err != nil {
		t.Fatal(err)
	}
	// Two tenths of a second.
	c.run("shop", "run", "--rm", "--net-host", "--label", "app=brief", podImage, "brief", "/bin/pod", "-for", "200ms", a.ip+":7000")
	c.run("shop", "task", "exec", "--exec-id", "x", "older", "/bin/pod", "127.0.0.1:7000")
	time.Sleep(patience() * 3 / 20)
	table := must(t, buildExporter(t), "list", "--listening", "--containerd", c.socket, "--docker", "none", "--podman", "none", "--cri", "none")
	for _, want := range []string{"pod=tests/server", "container=older"} {
		if !strings.Contains(table, want) {
			t.Errorf("list does not show %s:\n%s", want, table)
		}
	}
	r.stop()
	byCRI.stop()
	recs := r.json()
	names(t, recs, 2, jsonContainer{"older", "older", podImage, "containerd", "", "", "", "app=web"})
	names(t, recs, 2, jsonContainer{"brief", "brief", podImage, "containerd", "", "", "", "app=brief"})
	for _, recs := range [][]jsonRecord{recs, byCRI.json()} {
		names(t, recs, 6, jsonContainer{a.container, "main", podImage, "containerd", "server", "tests", a.uid, "app=shop,tier=back"})
		names(t, recs, 2, jsonContainer{b.container, "main", podImage, "containerd", "client", "tests", b.uid, "app=shop"})
		names(t, recs, 2, jsonContainer{h.container, "main", podImage, "containerd", "onhost", "tests", h.uid, ""})
		// No process listens at 7001: no socket shows the owner of the address.
		refused := 0
		for _, j := range recs {
			if j.DestPort == 7001 && j.SourceEnd != nil {
				refused++
				if e := j.DestEnd; e == nil || e.Container == nil || e.Container.Pod != "server" || e.Container.ID != "" || e.Container.Labels != "app=shop,tier=back" {
					t.Errorf("%s refused by a pod: the other end is %+v", j.Protocol, j.DestEnd)
				}
			}
		}
		if refused == 0 {
			t.Error("no record of what was refused")
		}
	}
	show(t, r, recs)
	show(t, byCRI, byCRI.json())
}

// names compares every end in a container with what must be known of it.
func names(t *testing.T, recs []jsonRecord, least int, want jsonContainer) {
	t.Helper()
	ends := within(recs, want.ID)
	if len(ends) < least {
		t.Errorf("%s%s: %d ends of records, want at least %d", want.Name, want.Pod, len(ends), least)
	}
	for _, e := range ends {
		if *e.Container != want {
			t.Errorf("%+v, want %+v", *e.Container, want)
		}
	}
}

// show logs the records that the program pod has to do with, if the test failed.
func show(t *testing.T, r *running, recs []jsonRecord) {
	t.Helper()
	if !t.Failed() {
		return
	}
	t.Log(r.errs.String())
	end := func(e *jsonEnd) string {
		if e == nil {
			return "elsewhere"
		}
		return fmt.Sprintf("%s[%d] %+v", e.Name, e.PID, e.Container)
	}
	for _, j := range recs {
		for _, e := range []*jsonEnd{j.SourceEnd, j.DestEnd} {
			if e != nil && (e.Container != nil || e.Name == "pod") {
				t.Logf("%s %s %v:%d > %v:%d %d/%d %d/%d %s; %s; %s", j.Start, j.Protocol, j.Source, j.SourcePort, j.Dest, j.DestPort, j.Forward.Payload, j.Forward.Packets, j.Reverse.Payload, j.Reverse.Packets,
					j.Reason, end(j.SourceEnd), end(j.DestEnd))
				break
			}
		}
	}
}

// TestDocker: names, image and labels, and who is behind a published port: through NAT, through docker-proxy, and where nobody answers.
func TestDocker(t *testing.T) {
	n := newNode(t)
	_, rootfs := image(t)
	d := startDocker(n, 212, rootfs)
	older := d.run("run", "-d", "--name", "older", "shop/web:2", "/bin/pod", "-serve", "7000", "-for", "1h")
	r := runNaming(t, 1, "--active-timeout", "1s", "--docker", d.socket, "--containerd", "none", "--podman", "none", "--cri", "none",
		"--labels", "com.docker.compose.service,app")
	web := d.run("run", "-d", "--name", "web", "-l", "app=web", "-l", "com.docker.compose.service=front", "-p", "18080:7000", "-p", "18080:7000/udp", "shop/web:2", "/bin/pod", "-serve", "7000", "-for", "1h")
	gone := d.run("run", "--name", "client", "shop/web:2", "/bin/pod", "10.212.0.1:18080")
	brief := d.run("run", "-d", "--rm", "--name", "brief", "-l", "app=brief", "shop/web:2", "/bin/pod", "-for", "200ms", "10.212.0.2:7000")
	d.run("run", "--rm", "--name", "refused", "shop/web:2", "/bin/pod", "10.212.0.2:7001")
	d.run("exec", "older", "/bin/pod", "127.0.0.1:7000")
	// On the loopback of the node the proxy answers.
	n.inside("busybox", "nc", "-w", "1", "127.0.0.1", "18080")
	time.Sleep(1500 * time.Millisecond)
	client := strings.TrimSpace(d.run("inspect", "-f", "{{.Id}}", "client"))
	d.run("rm", "client")
	r.stop()
	recs := r.json()
	const img = "shop/web:2"
	names(t, recs, 2, jsonContainer{ID: older, Name: "older", Image: img, Runtime: "docker"})
	names(t, recs, 4, jsonContainer{ID: web, Name: "web", Image: img, Runtime: "docker", Labels: "com.docker.compose.service=front,app=web"})
	names(t, recs, 2, jsonContainer{ID: client, Name: "client", Image: img, Runtime: "docker"})
	names(t, recs, 2, jsonContainer{ID: brief, Name: "brief", Image: img, Runtime: "docker", Labels: "app=brief"})
	_ = gone
	seen := map[string]int{}
	for _, j := range recs {
		if j.SourceEnd == nil {
			continue
		}
		switch {
		case j.SourceEnd.Container != nil && j.SourceEnd.Container.ID == client:
			if j.DestEnd == nil || j.DestEnd.Container == nil || j.DestEnd.Container.ID != web {
				t.Errorf("%s to the published port: the other end is %+v", j.Protocol, j.DestEnd)
			}
			seen["published "+j.Protocol]++
		case j.SourceEnd.Name == "busybox" && j.DestPort == 18080 && j.Dest.IsLoopback():
			if j.DestEnd == nil || j.DestEnd.Name != "docker-proxy" || j.DestEnd.Container == nil || j.DestEnd.Container.ID != web {
				t.Errorf("to the proxy: the other end is %+v", j.DestEnd)
			}
			seen["proxy"]++
		case j.DestPort == 7001 && j.SourceEnd.Container != nil && j.SourceEnd.Container.Name == "refused":
			if j.DestEnd == nil || j.DestEnd.Container == nil {
				t.Errorf("%s to a port where nobody listens: the other end is %+v", j.Protocol, j.DestEnd)
			}
			seen["refused "+j.Protocol]++
		}
	}
	for _, what := range []string{"published tcp", "published udp", "proxy", "refused tcp", "refused udp"} {
		if seen[what] == 0 {
			t.Errorf("no record of %s", what)
		}
	}
	show(t, r, recs)
}

// TestPodman: its containers, and those of its pods.
func TestPodman(t *testing.T) {
	n := newNode(t)
	_, rootfs := image(t)
	p := startPodman(n, rootfs)
	older := p.run("run", "-d", "--name", "older", "--network", "host", "localhost/shop:1", "/bin/pod", "-serve", "7000", "-for", "1h")
	// The socket as a docker socket, which it often is: it says itself what it is.
	r := runNaming(t, 1, "--active-timeout", "1s", "--docker", p.socket, "--podman", "none", "--containerd", "none", "--cri", "none", "--labels", "app")
	brief := p.run("run", "-d", "--rm", "--name", "brief", "--network", "host", "-l", "app=brief", "localhost/shop:1", "/bin/pod", "-for", "200ms", "127.0.0.1:7000")
	p.run("pod", "create", "--name", "group", "--infra=false")
	member := p.run("run", "-d", "--pod", "group", "--name", "member", "--network", "host", "-l", "app=m", "localhost/shop:1", "/bin/pod", "-wait", "1s", "-for", "1h", "127.0.0.1:7000")
	time.Sleep(2500 * time.Millisecond)
	r.stop()
	recs := r.json()
	const img = "localhost/shop:1"
	names(t, recs, 4, jsonContainer{ID: older, Name: "older", Image: img, Runtime: "podman"})
	names(t, recs, 2, jsonContainer{ID: brief, Name: "brief", Image: img, Runtime: "podman", Labels: "app=brief"})
	names(t, recs, 2, jsonContainer{ID: member, Name: "member", Image: img, Runtime: "podman", Pod: "group", Labels: "app=m"})
	show(t, r, recs)
}
