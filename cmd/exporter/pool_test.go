package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// tenure is the time in which a container or pod had an address, and a published port, by what the test did with it: it had them between started and
// stopping for certain, and before connecting and after gone for certain not.
type tenure struct {
	name                                string
	ip                                  netip.Addr
	port                                int
	connecting, started, stopping, gone time.Time
}

// pool is a runtime whose containers share a few addresses.
type pool struct {
	addresses []string
	ports     []int
	// run starts the container i, which serves at port 7000, and returns its address; stop ends it, in one of several ways.
	run  func(i int) (ip string, err error)
	stop func(i int) error
	name func(j *jsonContainer) string
}

// poolSlack is how far the clocks of a record and of the test may be apart: a record has milliseconds, a process's start 10 ms.
const poolSlack = 20 * time.Millisecond

// inFull skips what takes a minute each: make test-pods.
func inFull(t *testing.T) {
	t.Helper()
	if os.Getenv("SOCKFLOW_POOL") == "" {
		t.Skip("only in full: make test-pods")
	}
}

// TestAddressPool: containers come and go over a pool of a few addresses and published ports, while connections, datagrams and pings go to each of them all
// the time, to those that nobody has too, and connections go on when who had the address is gone. No record has the name of who had the address at
// another time, and each has the name of who had it. make test-pods runs it in full: then one in a thousand may have no name; of a few
// pods of containerd, which make test runs, two.
func TestAddressPool(t *testing.T) {
	oci, rootfs := image(t)
	program := filepath.Join(filepath.Dir(oci), "pod")
	serve := []string{"/bin/pod", "-serve", "7000", "-for", "1h"}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	byName := func(j *jsonContainer) string { return j.Name }
	ofRange := func(format string, from, to int) (list []string) {
		for i := from; i <= to; i++ {
			list = append(list, fmt.Sprintf(format, i))
		}
		return list
	}
	t.Run("docker", func(t *testing.T) {
		inFull(t)
		n := newNode(t)
		d := startDocker(n, 220, rootfs)
		d.run("network", "create", "--subnet", "10.221.0.0/24", "--ip-range", "10.221.0.8/29", "pool")
		p := &pool{addresses: ofRange("10.221.0.%d", 8, 15), ports: []int{20000, 20001, 20002, 20003, 20004}, name: byName}
		try := func(args ...string) (string, error) {
			out, err := exec.Command("docker", append([]string{"-H", "unix://" + d.socket}, args...)...).CombinedOutput()
			return strings.TrimSpace(string(out)), err
		}
		p.run = func(i int) (string, error) {
			port := fmt.Sprintf("127.0.0.1:%d:7000", p.ports[i%len(p.ports)])
			args := []string{"run", "-d", "--name", fmt.Sprint("c", i), "--network", "pool", "-p", port, "-p", port + "/udp"}
			if i%3 == 0 {
				args = append(args, "--rm")
			}
			if out, err := try(append(append(args, "shop/web:2"), serve...)...); err != nil {
				return "", fmt.Errorf("%w: %s", err, out)
			}
			return try("inspect", "-f", "{{.NetworkSettings.Networks.pool.IPAddress}}", fmt.Sprint("c", i))
		}
		p.stop = func(i int) error {
			name := fmt.Sprint("c", i)
			switch i % 3 {
			case 0:
				if _, err := try("kill", name); err != nil {
					return err
				}
				for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
					if _, err := try("inspect", name); err != nil {
						return nil // removed
					}
					if time.Now().After(end) {
						return fmt.Errorf("container %s is not removed", name)
					}
				}
			case 1:
				_, err := try("rm", "-f", name)
				return err
			}
			if _, err := try("network", "disconnect", "pool", name); err != nil {
				return err
			}
			_, err := try("rm", "-f", name)
			return err
		}
		testPool(t, n, p, program, "--docker", d.socket, "--containerd", "none", "--podman", "none", "--cri", "none")
	})
	t.Run("podman", func(t *testing.T) {
		inFull(t)
		n := newNode(t)
		pm := startPodman(n, rootfs)
		pm.run("network", "create", "--disable-dns", "--subnet", "10.222.0.0/24", "--ip-range", "10.222.0.8/29", "pool")
		p := &pool{addresses: ofRange("10.222.0.%d", 8, 15), name: func(j *jsonContainer) string {
			if j.Pod != "" {
				return j.Pod
			}
			return strings.TrimPrefix(j.Name, "member") // its pod is not known yet
		}}
		p.run = func(i int) (string, error) {
			name := fmt.Sprint("c", i)
			if i%3 == 0 { // a pod: the infra container has the address, a member serves
				if out, err := pm.try("pod", "create", "--name", name, "--network", "pool", "--infra-image", "localhost/shop:1", "--infra-command", "/bin/sleep 3600"); err != nil {
					return "", fmt.Errorf("%w: %s", err, out)
				}
				if out, err := pm.try(append([]string{"run", "-d", "--name", "member" + name, "--pod", name, "localhost/shop:1"}, serve...)...); err != nil {
					return "", fmt.Errorf("%w: %s", err, out)
				}
				infra, err := pm.try("pod", "inspect", "-f", "{{.InfraContainerID}}", name)
				if err != nil {
					return "", err
				}
				return pm.try("inspect", "-f", "{{.NetworkSettings.Networks.pool.IPAddress}}", infra)
			}
			if out, err := pm.try(append([]string{"run", "-d", "--name", name, "--network", "pool", "localhost/shop:1"}, serve...)...); err != nil {
				return "", fmt.Errorf("%w: %s", err, out)
			}
			return pm.try("inspect", "-f", "{{.NetworkSettings.Networks.pool.IPAddress}}", name)
		}
		p.stop = func(i int) error {
			args := []string{"rm", "-f", "-t", "0", fmt.Sprint("c", i)}
			if i%3 == 0 {
				args = append([]string{"pod"}, args...)
			}
			_, err := pm.try(args...)
			return err
		}
		testPool(t, n, p, program, "--podman", pm.socket, "--containerd", "none", "--docker", "none", "--cri", "none")
	})
	t.Run("containerd", func(t *testing.T) {
		n := newNode(t)
		n.pool = `,"rangeStart":"10.223.0.8","rangeEnd":"10.223.0.15"`
		c := startContainerd(n, "", 223, oci)
		var mu sync.Mutex
		pods := map[int]*pod{}
		p := &pool{addresses: ofRange("10.223.0.%d", 8, 15), name: func(j *jsonContainer) string { return j.Pod }}
		p.run = func(i int) (string, error) {
			q, err := c.runPod(ctx, fmt.Sprint("c", i), false, nil, serve...)
			if err != nil {
				return "", err
			}
			mu.Lock()
			pods[i] = q
			mu.Unlock()
			return q.ip, nil
		}
		p.stop = func(i int) error {
			mu.Lock()
			q := pods[i]
			mu.Unlock()
			if i%2 == 0 { // completed, and kept
				_, err := c.runtime.StopPodSandbox(ctx, stopRequest(q.sandbox))
				return err
			}
			c.removePod(ctx, q.sandbox)
			return nil
		}
		testPool(t, n, p, program, "--containerd", c.socket, "--docker", "none", "--podman", "none", "--cri", "none")
	})
}

func testPool(t *testing.T, n *node, p *pool, program string, args ...string) {
	count := size("SOCKFLOW_POOL", 4)
	// The bridge is there when the first container is.
	if _, err := p.run(1000002); err != nil {
		t.Fatal(err)
	}
	if err := p.stop(1000002); err != nil {
		t.Fatal(err)
	}
	n.inside("sysctl", "-qw", "net.ipv4.ip_forward=1")
	r := runExporter(t, append(args, "--metrics", "none", "--active-timeout", "1s", "--idle-timeout", "1s")...)
	for end := time.Now().Add(time.Minute); !strings.Contains(r.errs.String(), "names containers"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) { // podman takes seconds for its first answer on a busy host
			t.Fatalf("the runtime does not answer: %s", r.errs.String())
		}
	}
	talk := []string{"--net=/run/netns/" + n.name, program, "-every", "100ms", "-hold", "-for", "1h"}
	for _, a := range p.addresses {
		talk = append(talk, a+":7000")
	}
	for _, port := range p.ports {
		talk = append(talk, fmt.Sprintf("127.0.0.1:%d", port))
	}
	talker := exec.Command("nsenter", talk...)
	pings := exec.Command("nsenter", "--net=/run/netns/"+n.name, "busybox", "sh", "-c", fmt.Sprintf("while [ -d /proc/%d ]; do for a in ", os.Getpid())+strings.Join(p.addresses, " ")+"; do busybox ping -c 1 -W 1 $a >/dev/null & done; sleep 1; done")
	for _, c := range []*exec.Cmd{talker, pings} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	}

	var mu sync.Mutex
	var tenures []*tenure
	var wg sync.WaitGroup
	next := make(chan int)
	began := time.Now()
	for range 2 {
		wg.Add(1)
		go func() { // ends with next
			defer wg.Done()
			for i := range next {
				h := &tenure{name: fmt.Sprint("c", i), connecting: time.Now()}
				ip, err := p.run(i)
				if err != nil {
					t.Errorf("container %d: %v", i, err)
					continue
				}
				h.started, h.ip = time.Now(), netip.MustParseAddr(ip)
				if len(p.ports) > 0 {
					h.port = p.ports[i%len(p.ports)]
				}
				time.Sleep(time.Second) // its life
				h.stopping = time.Now()
				if err := p.stop(i); err != nil {
					t.Errorf("stop container %d: %v", i, err)
				}
				h.gone = time.Now()
				mu.Lock()
				tenures = append(tenures, h)
				mu.Unlock()
			}
		}()
	}
	for i := range count {
		next <- i
	}
	close(next)
	wg.Wait()
	took := time.Since(began)
	time.Sleep(3 * time.Second) // of traffic to nobody, and the timeouts
	talker.Process.Kill()
	pings.Process.Kill()
	r.stop()
	recs := r.json()

	// A connection is of the time when it began.
	type flow struct {
		cookie   uint64
		dst      netip.Addr
		port     uint16
		protocol string
	}
	first := map[flow]time.Time{}
	start := func(j *jsonRecord) time.Time {
		s, err := time.Parse(time.RFC3339Nano, j.Start)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	keyOf := func(j *jsonRecord) flow {
		k := flow{dst: j.Dest, port: j.DestPort, protocol: j.Protocol}
		if j.SourceEnd != nil {
			k.cookie = j.SourceEnd.Cookie
		}
		return k
	}
	for i := range recs {
		k, s := keyOf(&recs[i]), start(&recs[i])
		if f, ok := first[k]; !ok || s.Before(f) {
			first[k] = s
		}
	}
	pooled := map[netip.Addr]bool{}
	for _, a := range p.addresses {
		pooled[netip.MustParseAddr(a)] = true
	}
	right, missing, wrong, empty, edge, later, unaccepted := 0, 0, 0, 0, 0, 0, 0
	protocols := map[string]int{}
	for i := range recs {
		j := &recs[i]
		at := start(j)
		if j.Protocol == "tcp" && j.SourceEnd != nil && j.SourceEnd.Cookie != 0 {
			if f := first[keyOf(j)]; f.Before(at) {
				at = f
				later++
			}
		}
		var mine func(h *tenure) bool
		switch {
		case pooled[j.Dest] && j.SourceEnd != nil:
			mine = func(h *tenure) bool { return h.ip == j.Dest }
		case j.Dest.IsLoopback() && j.DestPort >= 20000 && j.DestPort < 20010 && j.DestEnd != nil:
			mine = func(h *tenure) bool { return h.port == int(j.DestPort) }
		default:
			continue
		}
		got := ""
		if j.DestEnd != nil && j.DestEnd.Container != nil {
			got = p.name(j.DestEnd.Container)
		}
		certain, perhaps := "", ""
		for _, h := range tenures {
			switch {
			case !mine(h):
			case at.After(h.started.Add(poolSlack)) && at.Before(h.stopping.Add(-poolSlack)):
				certain = h.name
			case at.After(h.connecting.Add(-poolSlack)) && at.Before(h.gone.Add(poolSlack)):
				perhaps += " " + h.name + " "
			}
		}
		switch {
		case certain != "" && got == certain:
			right++
			protocols[j.Protocol]++
		case got == "" && certain != "" && perhaps == "" && j.Dest.IsLoopback() && j.Protocol == "tcp" && j.DestEnd.PID == 0 && j.Reverse.Payload == 0:
			unaccepted++ // the proxy had not accepted it when it was given up
		case got == "" && certain != "" && perhaps == "":
			missing++
			t.Logf("no name: %s %s %v:%d at %v, want %s: %+v", j.Start, j.Protocol, j.Dest, j.DestPort, at, certain, j.DestEnd)
			for _, h := range tenures {
				if h.name == certain {
					t.Logf("which began at %v, was there at %v, was to go at %v and gone at %v", h.connecting, h.started, h.stopping, h.gone)
				}
			}
		case certain == "" && perhaps == "" && got == "":
			empty++
		case certain == "" && got == "" || strings.Contains(perhaps, " "+got+" "):
			edge++
		default:
			wrong++
			t.Errorf("wrong: %s %s %v:%d at %v has the name %q, want %q%s: %+v", j.Start, j.Protocol, j.Dest, j.DestPort, at, got, certain, perhaps, j.DestEnd)
		}
	}
	t.Logf("%d containers in %.1f s, %d addresses; records: %d right %v, %d later ones of connections, %d without a name that there was, %d wrong, %d to nobody, %d while one came or went, %d that no proxy accepted",
		count, took.Seconds(), len(p.addresses), right, protocols, later, missing, wrong, empty, edge, unaccepted)
	if missing*1000 > right && (missing > 2 || os.Getenv("SOCKFLOW_POOL") != "") || right < 10*count || unaccepted*50 > right || empty < 10*count || protocols["tcp"] == 0 || protocols["udp"] == 0 || protocols["icmp"] == 0 {
		t.Error("too few, or too many without a name")
	}
	if t.Failed() {
		t.Log(r.errs.String())
	}
}
