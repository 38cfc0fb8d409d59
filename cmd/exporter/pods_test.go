package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// size returns a number from the environment, by which `make test-pods` runs these tests in full.
func size(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// used returns the processor time and the resident memory of a process.
func used(t *testing.T, pid int) (cpu time.Duration, octets int64) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
	ticks := func(i int) int64 { n, _ := strconv.ParseInt(f[i-3], 10, 64); return n }
	return time.Duration(ticks(14)+ticks(15)) * 10 * time.Millisecond, ticks(24) * int64(os.Getpagesize())
}

// TestPods: pods come and go five a second, each talks TCP and UDP at once to others, to the host and to a published port of a container of
// Docker. Every end of every record has the container and the pod whose address it is.
func TestPods(t *testing.T) {
	count := size("SOCKFLOW_PODS", 15)
	n := newNode(t)
	oci, rootfs := image(t)
	c := startContainerd(n, "", 213, oci)
	d := startDocker(n, 214, rootfs)
	web := d.run("run", "-d", "--name", "web", "-p", "18080:7000", "-p", "18080:7000/udp", "shop/web:2", "/bin/pod", "-serve", "7000", "-for", "1h")
	// The first pod makes the bridge, whose address the host's server has.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	first, err := c.runPod(ctx, "pod0", false, map[string]string{"app": "load"}, "/bin/pod", "-serve", "7000", "-for", "1h")
	if err != nil {
		t.Fatal(err)
	}
	const gateway = "10.213.0.1"
	program := filepath.Join(filepath.Dir(oci), "pod")
	host := exec.Command("nsenter", "--net=/run/netns/"+n.name, program, "-serve", "7100", "-for", "1h")
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Process.Kill(); host.Wait() })
	n.inside("sysctl", "-qw", "net.ipv4.ip_forward=1")
	n.inside("iptables", "-P", "FORWARD", "ACCEPT")
	args, runtimes := []string{"--active-timeout", "10s", "--idle-timeout", "2s", "--podman", "none", "--cri", "none", "--labels", "app"}, 2
	if os.Getenv("SOCKFLOW_NAMES") == "none" { // what naming costs: the difference
		args, runtimes = append(args, "--containerd", "none", "--docker", "none"), 0
	} else {
		args = append(args, "--containerd", c.socket, "--docker", d.socket)
	}
	r := runNaming(t, runtimes, args...)
	before, _ := used(t, r.cmd.Process.Pid)

	var mu sync.Mutex
	pods := map[string]*pod{first.ip: first}
	alive := []*pod{first}
	var wg sync.WaitGroup
	began := time.Now()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for i := 1; i <= count; i++ {
		wg.Add(1)
		go func() { // ends with the pod
			defer wg.Done()
			mu.Lock()
			talk := []string{gateway + ":7100", gateway + ":18080"}
			for _, p := range alive[max(0, len(alive)-3):] {
				talk = append(talk, p.ip+":7000")
			}
			mu.Unlock()
			p, err := c.runPod(ctx, fmt.Sprintf("pod%d", i), false, map[string]string{"app": "load"},
				append([]string{"/bin/pod", "-serve", "7000", "-for", "3s", "-times", strconv.Itoa(size("SOCKFLOW_TIMES", 1))}, talk...)...)
			if err != nil {
				t.Errorf("pod %d: %v", i, err)
				return
			}
			mu.Lock()
			pods[p.ip] = p
			alive = append(alive, p)
			mu.Unlock()
			time.Sleep(3 * time.Second)
			mu.Lock()
			for j := range alive {
				if alive[j] == p {
					alive = append(alive[:j:j], alive[j+1:]...)
					break
				}
			}
			mu.Unlock()
			time.Sleep(300 * time.Millisecond)
			c.removePod(ctx, p.sandbox)
		}()
		<-tick.C
	}
	t.Logf("%d pods in %.1f s", count, time.Since(began).Seconds())
	wg.Wait()
	t.Logf("and gone after %.1f s", time.Since(began).Seconds())
	time.Sleep(3 * time.Second)
	after, memory := used(t, r.cmd.Process.Pid)
	r.cmd.Process.Signal(syscall.SIGUSR1)
	time.Sleep(200 * time.Millisecond)
	r.stop()
	t.Logf("exporter: %v of processor time, %d KiB", after-before, memory>>10)
	if i := strings.Index(r.errs.String(), "containers.Named"); i > 0 {
		t.Log(r.errs.String()[i:min(len(r.errs.String()), i+600)])
	} else {
		t.Log(r.errs.String())
	}
	if os.Getenv("SOCKFLOW_NAMES") == "none" {
		return
	}

	subnet := netip.MustParsePrefix("10.213.0.0/16")
	right, missing, wrong, toHost, published, byAddress := 0, 0, 0, 0, 0, 0
	for _, j := range r.json() {
		for _, end := range []struct {
			addr netip.Addr
			port uint16
			e    *jsonEnd
			sent uint64
		}{{j.Source, j.SourcePort, j.SourceEnd, j.Forward.Payload}, {j.Dest, j.DestPort, j.DestEnd, j.Reverse.Payload}} {
			if !subnet.Contains(end.addr) {
				continue
			}
			if end.e == nil {
				if end.sent == 0 {
					continue // a pod that is gone
				}
				end.e = &jsonEnd{} // known by the address at least
			}
			var got jsonContainer
			if end.e.Container != nil {
				got = *end.e.Container
			}
			p := pods[end.addr.String()]
			var want jsonContainer
			switch {
			case end.addr.String() == gateway && end.port == 18080:
				want = jsonContainer{ID: web, Name: "web", Image: "shop/web:2", Runtime: "docker"}
				published++
			case p != nil && end.e.Kernel && got == (jsonContainer{}):
				continue // what the kernel answered for a pod that had ended
			case p != nil && (end.e.Kernel || end.e.Cookie == 0): // no process, or a socket whose end no program saw: known by the address
				byAddress++
				want = jsonContainer{Pod: p.name, Namespace: p.namespace, PodUID: p.uid, Labels: "app=load"}
			case p != nil:
				want = jsonContainer{p.container, "main", podImage, "containerd", p.name, p.namespace, p.uid, "app=load"}
			case end.addr.String() == gateway:
				toHost++
			default:
				t.Errorf("whose address is %v? %+v", end.addr, end.e)
				continue
			}
			switch {
			case got == want:
				right++
			case got.ID == want.ID && got.Pod == "" && got.Name == "" || got == jsonContainer{}:
				missing++
				t.Logf("no names: %v, want %+v, in these records of %d:", end.addr, want, j.SourcePort)
				for line := range strings.Lines(r.out.String()) {
					if strings.Contains(line, fmt.Sprintf(`:%d,`, j.SourcePort)) {
						t.Log(line)
					}
				}
			default:
				wrong++
				t.Errorf("wrong: %s %v:%d %+v, want %+v", j.Protocol, end.addr, end.port, got, want)
			}
		}
	}
	t.Logf("%d ends of records right, %d without names, %d wrong, %d of them by address; %d of the host's server, %d of the published port", right, missing, wrong, byAddress, toHost, published)
	if missing*1000 > right || right < 10*count || toHost < 2*count || published < 2*count {
		t.Error("too few")
	}
}

// TestHungRuntime: containerd is stopped while flows go on. Nothing is lost, names that were known stay, the last records of new containers are
// not kept back for long, memory does not grow, one line reports it; and names of new containers come by themselves
// when it goes on.
func TestHungRuntime(t *testing.T) {
	hang := time.Duration(size("SOCKFLOW_HANG", 6)) * time.Second
	n := newNode(t)
	oci, rootfs := image(t)
	c := startContainerd(n, "", 215, oci)
	d := startDocker(n, 216, rootfs)
	ctx, cancel := context.WithTimeout(context.Background(), hang+2*time.Minute)
	defer cancel()
	server, err := c.runPod(ctx, "server", false, map[string]string{"app": "load"}, "/bin/pod", "-serve", "7000", "-for", "1h")
	if err != nil {
		t.Fatal(err)
	}
	n.inside("iptables", "-P", "FORWARD", "ACCEPT")
	r := runNaming(t, 2, "--active-timeout", "1s", "--podman", "none", "--cri", "none", "--containerd", c.socket, "--docker", d.socket)
	_, memory := used(t, r.cmd.Process.Pid)
	c.daemon.Process.Signal(syscall.SIGSTOP)
	stopped := time.Now()
	clients := 0
	for time.Since(stopped) < hang {
		// Docker's containers go on being made and named.
		d.run("run", "--rm", "--name", fmt.Sprintf("client%d", clients), "--network", "host", "shop/web:2", "/bin/pod", server.ip+":7000")
		clients++
	}
	_, later := used(t, r.cmd.Process.Pid)
	c.daemon.Process.Signal(syscall.SIGCONT)
	var recovered *pod
	eventually(t, "new pods are named again", func() bool {
		if recovered == nil {
			recovered, err = c.runPod(ctx, "recovered", false, map[string]string{"app": "load"}, "/bin/sh", "-c", "while pod "+server.ip+":7000; do sleep 1; done")
			if err != nil {
				t.Fatal(err)
			}
		}
		return strings.Contains(r.out.String(), `"pod":"recovered"`)
	})
	took := time.Since(stopped) - hang
	r.stop()
	recs := r.json()
	named, others := 0, 0
	for _, j := range recs {
		if j.Dest.String() != server.ip || j.DestPort != 7000 || j.DestEnd == nil {
			continue
		}
		if j.DestEnd.Container == nil || j.DestEnd.Container.Pod != "server" {
			t.Errorf("the server's end: %+v", j.DestEnd.Container)
		}
		if j.SourceEnd == nil || j.SourceEnd.Container == nil {
			t.Errorf("the client's end: %+v", j.SourceEnd)
		} else if strings.HasPrefix(j.SourceEnd.Container.Name, "client") {
			named++
			if j.Protocol == "tcp" && (j.Forward.Payload != 5 || j.Reverse.Payload != 12) {
				t.Errorf("%d and %d octets, want 5 and 12", j.Forward.Payload, j.Reverse.Payload)
			}
		} else {
			others++
		}
	}
	if named != 2*clients || others == 0 {
		t.Errorf("%d records of %d clients that each made two, %d of pods", named, clients, others)
	}
	if times := strings.Count(r.errs.String(), "containerd at"); hang > 10*time.Second && times != 3 {
		t.Errorf("%d lines tell of containerd, want that it answers, that it does not, and that it does:\n%s", times, r.errs.String())
	}
	if later > memory+16<<20 {
		t.Errorf("memory grew from %d to %d KiB", memory>>10, later>>10)
	}
	t.Logf("%d clients in %s; %d KiB before, %d after; a new pod was named %s after containerd went on", clients, hang, memory>>10, later>>10, took.Round(time.Millisecond))
	show(t, r, recs)
}
