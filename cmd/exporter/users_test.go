package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// dropper is a program that begins as root and goes on as nobody, as servers do, without another exec: it connects
// before and after, and then has a child that connects. It holds the connections until its standard input ends.
func dropper(addr string) error {
	var held []net.Conn
	r := newReport()
	connect := func() error {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		held = append(held, c)
		go talk(c) // ends with the connection
		r.Flows = append(r.Flows, counted{Proto: "tcp", Local: addrOf(c.LocalAddr()), Remote: addrOf(c.RemoteAddr()), PID: r.PID})
		return nil
	}
	if err := connect(); err != nil {
		return err
	}
	if err := syscall.Setresgid(65534, 65534, 65534); err != nil {
		return err
	}
	if err := syscall.Setresuid(65534, 65534, 65534); err != nil {
		return err
	}
	if err := connect(); err != nil {
		return err
	}
	child := exec.Command("/proc/self/exe", addr)
	child.Env = append(os.Environ(), trafficEnv+"=placed")
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		return err
	}
	out, err := child.StdoutPipe()
	if err != nil {
		return err
	}
	if err := child.Start(); err != nil {
		return err
	}
	in.Write([]byte("\n"))
	var theirs report
	if err := json.NewDecoder(out).Decode(&theirs); err != nil {
		return err
	}
	r.Flows = append(r.Flows, theirs.Flows...)
	r.print()
	os.Stdin.Read(make([]byte, 1)) // until it ends
	in.Close()
	child.Wait()
	for _, c := range held {
		c.Close()
	}
	return nil
}

// inTime is eventually for what netlink finds out: it reads all of proc for a twentieth of the time at most.
func inTime(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * patience()); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not within %s: %s", 5*patience(), what)
}

// TestUserWithoutExec: the name of an end's user is that of the user beside it, of a process that changed it
// without another exec; the user of its child's parent is the one that it had then. By eBPF and netlink, of
// processes older and younger than the exporter, in records, lists and filters.
func TestUserWithoutExec(t *testing.T) {
	needRoot(t)
	name := ""
	passwd, _ := os.ReadFile("/etc/passwd")
	for line := range strings.Lines(string(passwd)) {
		if f := strings.Split(line, ":"); len(f) > 2 && f[2] == "65534" && name == "" {
			name = f[0]
		}
	}
	srv := start(t, "users-server", "", "server", "127.0.0.1", "10")
	addr := fmt.Sprintf("127.0.0.1:%d", srv.next().TCP)
	older := start(t, "users-older", "", "dropper", addr)
	before := older.next()
	names := []string{"--metrics", "none", "--containerd", "none", "--docker", "none", "--podman", "none", "--cri", "none", "--snapshot-interval", "500ms"}
	r := runExporter(t, names...)
	filtered := runExporter(t, append(names, "--filter", "user "+name)...)
	// Other users' /proc/PID/fd are not to be read with what --privileges drop keeps.
	netlink := runExporter(t, append(names, "--source", "netlink", "--active-timeout", "1s", "--privileges", "keep")...)
	younger := start(t, "users-younger", "", "dropper", addr)
	after := younger.next()
	type want struct {
		uid    uint32
		user   string
		parent uint32
	}
	wanted := map[netip.AddrPort]want{}
	for _, rep := range []*report{before, after} {
		wanted[rep.Flows[0].Local] = want{0, "root", 0}
		wanted[rep.Flows[1].Local] = want{65534, name, 0}
		wanted[rep.Flows[2].Local] = want{65534, name, 65534}
	}
	check := func(source string, local netip.AddrPort, e *jsonEnd, records map[netip.AddrPort]bool) {
		w, ok := wanted[local]
		if !ok {
			return
		}
		if source == "netlink" && (e == nil || e.PID == 0) {
			return // its process is looked for now and then
		}
		if local == before.Flows[0].Local && source != "list" && source != "netlink" {
			w = wanted[before.Flows[1].Local] // eBPF found it with the user that the process had become
		}
		records[local] = true
		if e == nil || e.UID == nil || *e.UID != w.uid || e.User != w.user || e.ParentUID == nil || *e.ParentUID != w.parent {
			b, _ := json.Marshal(e)
			t.Errorf("%s: %v is %s, want %+v", source, local, b, w)
		}
	}
	listed := map[netip.AddrPort]bool{}
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
		check("list", netip.AddrPortFrom(l.Local, l.LocalPort), l.End, listed)
	}
	if len(listed) != len(wanted) {
		t.Errorf("%d of %d are listed", len(listed), len(wanted))
	}
	inTime(t, "netlink finds the processes", func() bool {
		seen := map[netip.AddrPort]bool{}
		for _, j := range netlink.json() {
			check("netlink", netip.AddrPortFrom(j.Source, j.SourcePort), j.SourceEnd, seen)
			check("netlink", netip.AddrPortFrom(j.Dest, j.DestPort), j.DestEnd, seen)
		}
		return len(seen) == len(wanted)
	})
	for _, p := range []*program{older, younger} {
		p.in.Close()
		p.cmd.Wait()
	}
	srv.end()
	for source, x := range map[string]*running{"eBPF": r, "netlink": netlink, "filter": filtered} {
		x.stop()
		seen := map[netip.AddrPort]bool{}
		for _, j := range x.json() {
			for local, e := range map[netip.AddrPort]*jsonEnd{netip.AddrPortFrom(j.Source, j.SourcePort): j.SourceEnd, netip.AddrPortFrom(j.Dest, j.DestPort): j.DestEnd} {
				check(source, local, e, seen)
				if source == "filter" && local == after.Flows[0].Local {
					t.Errorf("a record of root passes the filter: %+v", e)
				}
			}
		}
		least := len(wanted)
		if source == "filter" {
			least = 5
		}
		if len(seen) < least {
			t.Errorf("%s: records of %d of %d connections", source, len(seen), least)
		}
	}
}

// headless is a program whose first thread ends: then it connects, and holds the connection until its standard
// input ends.
func headless(addr string) error {
	gone := make(chan struct{})
	var try func()
	try = func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			close(gone)
			syscall.Syscall(unix.SYS_EXIT, 0, 0, 0)
		}
		go try()
		select {}
	}
	go try()
	<-gone
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	go talk(c) // ends with the connection
	newReport().print()
	os.Stdin.Read(make([]byte, 1))
	return c.Close()
}

// rooted is a program that runs in another root, where busybox is /inside.
func rooted(t *testing.T, addr string) (*exec.Cmd, func()) {
	t.Helper()
	needTool(t, "busybox")
	busybox, _ := exec.LookPath("busybox")
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/inside", b, 0o755); err != nil {
		t.Fatal(err)
	}
	host, port, _ := strings.Cut(addr, ":")
	c := &exec.Cmd{Path: "/inside", Args: []string{"busybox", "nc", host, port}} // by its first argument it knows what it is
	c.SysProcAttr = &syscall.SysProcAttr{Chroot: dir}
	c.Dir = "/"
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	go func() { // ends with the program
		for {
			if _, err := in.Write([]byte("z")); err != nil {
				return
			}
			time.Sleep(200 * time.Millisecond)
		}
	}()
	return c, func() { in.Close(); c.Wait() }
}

// TestUnusualPrograms: programs whose first thread has ended, and in another root, have their path, as they see it,
// older and younger than the exporter, by eBPF, netlink and list.
func TestUnusualPrograms(t *testing.T) {
	needRoot(t)
	srv := start(t, "unusual-server", "", "server", "127.0.0.1", "10")
	addr := fmt.Sprintf("127.0.0.1:%d", srv.next().TCP)
	want := map[uint32]string{}
	ends := []func(){}
	begin := func(age string) {
		p := start(t, "headless-"+age, "", "headless", addr)
		p.next()
		want[uint32(p.cmd.Process.Pid)] = p.cmd.Path
		ends = append(ends, func() { p.in.Close(); p.cmd.Wait() })
		c, end := rooted(t, addr)
		want[uint32(c.Process.Pid)] = "/inside"
		ends = append(ends, end)
	}
	begin("older")
	names := []string{"--metrics", "none", "--containerd", "none", "--docker", "none", "--podman", "none", "--cri", "none", "--snapshot-interval", "500ms"}
	r := runExporter(t, names...)
	netlink := runExporter(t, append(names, "--source", "netlink", "--active-timeout", "1s")...)
	begin("younger")
	check := func(source string, e *jsonEnd, seen map[uint32]bool) {
		if e == nil || want[e.PID] == "" {
			return
		}
		if seen[e.PID] = true; e.Path != want[e.PID] {
			t.Errorf("%s: %q, want %q", source, e.Path, want[e.PID])
		}
	}
	eventually(t, "all are listed", func() bool {
		seen := map[uint32]bool{}
		d := json.NewDecoder(strings.NewReader(must(t, buildExporter(t), "list", "-o", "json", "--containerd", "none", "--docker", "none", "--podman", "none", "--cri", "none")))
		for d.More() {
			var l struct {
				End *jsonEnd `json:"socket"`
			}
			if err := d.Decode(&l); err != nil {
				t.Fatal(err)
			}
			check("list", l.End, seen)
		}
		return len(seen) == len(want)
	})
	inTime(t, "netlink finds the processes", func() bool {
		seen := map[uint32]bool{}
		for _, j := range netlink.json() {
			check("netlink", j.SourceEnd, seen)
			check("netlink", j.DestEnd, seen)
		}
		return len(seen) == len(want)
	})
	for _, end := range ends {
		end()
	}
	srv.end()
	for source, x := range map[string]*running{"eBPF": r, "netlink": netlink} {
		x.stop()
		seen := map[uint32]bool{}
		for _, j := range x.json() {
			check(source, j.SourceEnd, seen)
			check(source, j.DestEnd, seen)
		}
		if len(seen) != len(want) {
			t.Errorf("%s: records of %d of %d processes", source, len(seen), len(want))
		}
	}
}
