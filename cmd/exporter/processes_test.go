package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestWorkers: a pre-forked server's flows carry the worker that served them.
func TestWorkers(t *testing.T) {
	needRoot(t)
	r := runExporter(t)
	srv := start(t, "charlie-prefork", "", "workers", "127.0.0.1", "500")
	master := srv.next()
	cl := start(t, "delta-client", "", "client", "127.0.0.1", strconv.Itoa(master.TCP), "0", "20", "100")
	cl.end()
	srv.in.Close()
	var reports []*report
	for range 2 {
		reports = append(reports, srv.next())
	}
	srv.cmd.Wait()
	time.Sleep(200 * time.Millisecond)
	r.stop()
	recs := r.json()
	total := 0
	for _, w := range reports {
		for _, c := range w.Flows {
			total++
			out, in, ends, _ := sumJSON(recs, c)
			if len(ends) != 1 || out != c.Sent || in != c.Received || ends[0].Path != w.Path || int(ends[0].ParentPID) != master.PID {
				t.Errorf("worker %d, %v: %d records, %d and %d octets, want %d and %d", w.PID, c.Remote, len(ends), out, in, c.Sent, c.Received)
			}
		}
	}
	if total != 20 {
		t.Errorf("the workers served %d connections", total)
	}
}

// TestShortProcesses: processes that live a few milliseconds are named in their flows.
func TestShortProcesses(t *testing.T) {
	needRoot(t)
	r := runExporter(t)
	srv := start(t, "hotel-server", "", "server", "127.0.0.1", "10")
	ports := srv.next()
	const n = 300
	pids := map[uint32]bool{}
	for range n {
		c := exec.Command("nc", "-N", "127.0.0.1", strconv.Itoa(ports.TCP))
		c.Stdin = strings.NewReader("x")
		c.Env = []string{}
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if err := c.Run(); err != nil {
			t.Fatal(err)
		}
		pids[uint32(c.Process.Pid)] = true
	}
	srv.end()
	time.Sleep(200 * time.Millisecond)
	r.stop()
	path, err := exec.LookPath("nc")
	if err != nil {
		t.Fatal(err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		t.Fatal(err)
	}
	self, _ := os.Executable()
	right := 0
	for _, j := range r.json() {
		e := j.SourceEnd
		if e == nil || int(j.DestPort) != ports.TCP || !pids[e.PID] {
			continue
		}
		if e.Path == path && e.Name == "nc" && e.UID != nil && *e.UID == 65534 && int(e.ParentPID) == os.Getpid() && e.ParentPath == self && j.Forward.Payload == 1 && j.Reverse.Payload == 10 {
			right++
		} else {
			t.Errorf("%+v", e)
		}
	}
	t.Logf("%d of %d flows of short processes carry the right pid, path, uid and parent", right, n)
	if right != n {
		t.Errorf("%d of %d", right, n)
	}
}

// TestManyProcesses: processes of a millisecond or two, each with one connection.
func TestManyProcesses(t *testing.T) {
	needRoot(t)
	needTool(t, "gcc")
	count := 2000
	if s := os.Getenv("SOCKFLOW_TEST_PROCESSES"); s != "" {
		count, _ = strconv.Atoi(s)
	}
	path := filepath.Join(t.TempDir(), "short")
	os.Chmod(filepath.Dir(path), 0o755)
	os.Chmod(filepath.Dir(filepath.Dir(path)), 0o755)
	if out, err := exec.Command("gcc", "-O2", "-static", "-o", path, "testdata/short.c").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	for _, rate := range []string{"500", "0"} {
		for _, program := range []string{path, "/bin/busybox"} {
			t.Run(filepath.Base(program)+rate, func(t *testing.T) {
				r := runExporter(t, "--metrics", "none")
				srv := start(t, "whiskey-server", "", "server", "127.0.0.1", "10")
				ports := srv.next()
				burst := start(t, "xray-burst", "", "burst", fmt.Sprintf("127.0.0.1:%d", ports.TCP), strconv.Itoa(count), rate, program)
				br := burst.end()
				srv.end()
				time.Sleep(300 * time.Millisecond)
				r.stop()
				pids := map[int]bool{}
				for _, c := range br.Flows {
					pids[c.PID] = true
				}
				b, _ := os.ReadFile("/proc/self/cgroup")
				flows, right := 0, 0
				want := program
				if p, err := filepath.EvalSymlinks(program); err == nil {
					want = p
				}
				for _, j := range r.json() {
					if int(j.DestPort) != ports.TCP {
						continue
					}
					flows++
					e := j.SourceEnd
					if e != nil && pids[int(e.PID)] && e.Path == want && e.UID != nil && *e.UID == 65534 && int(e.ParentPID) == br.PID && e.ParentPath == br.Path && e.CGroup != 0 && j.Forward.Payload == 1 {
						right++
					} else if flows-right < 4 {
						t.Logf("wrong: %+v", e)
					}
				}
				t.Logf("%d processes: %d flows, %d with the right pid, path, uid, parent and cgroup", count, flows, right)
				if flows != count || right*1000 < count*999 {
					t.Errorf("%d flows and %d right, of %d; own cgroup %s", flows, right, count, b)
				}
			})
		}
	}
}

// TestContainer: the container is known by the control group.
func TestContainer(t *testing.T) {
	needRoot(t)
	id := strings.Repeat("0123456789abcdef", 4)
	dir := dockerGroup(t, id)
	r := runExporter(t)
	srv := start(t, "india-server", "", "server", "127.0.0.1", "10")
	ports := srv.next()
	c := exec.Command("sh", "-c", fmt.Sprintf("echo $$ > %s/cgroup.procs && echo x | exec nc -N 127.0.0.1 %d", dir, ports.TCP))
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	srv.end()
	time.Sleep(200 * time.Millisecond)
	r.stop()
	for _, j := range r.json() {
		if e := j.SourceEnd; e != nil && int(j.DestPort) == ports.TCP {
			if e.Container == nil || e.Container.ID != id || e.Container.Runtime != "docker" {
				t.Errorf("container %+v, want %s", e.Container, id)
			}
			return
		}
	}
	t.Error("no record")
}
