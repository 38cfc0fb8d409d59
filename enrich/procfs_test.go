package enrich

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockflow/sockflow/flowcache"
)

// unusual is a process that lives unlike the usual, which is this test binary run again: it prints the inode of a
// socket of its own, and waits.
func unusual(how string) {
	open := func() {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		var st unix.Stat_t
		if err == nil {
			err = unix.Fstat(s, &st)
		}
		fmt.Println("inode", st.Ino, err)
	}
	switch how {
	case "headless": // the first thread ends
		open()
		endFirstThread()
	case "tables": // a thread has descriptors of its own, with the same number as another socket of the process
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FILES); err != nil {
			fmt.Println(err)
		}
		done := make(chan struct{})
		go func() { unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); close(done) }()
		<-done
		open()
	case "chroot": // into the folder that has its program
		if err := unix.Chroot(filepath.Dir(os.Getenv("SOCKFLOW_TEST_PATH"))); err != nil {
			fmt.Println(err)
		}
		open()
	}
	fmt.Println("ready")
	select {}
}

// endFirstThread ends the thread that the process began with, as pthread_exit(3) does in main. It returns when that
// is gone.
func endFirstThread() {
	gone := make(chan struct{})
	var try func()
	try = func() {
		runtime.LockOSThread() // for good: the next goroutine gets another thread
		if unix.Gettid() == unix.Getpid() {
			close(gone)
			syscall.Syscall(unix.SYS_EXIT, 0, 0, 0)
		}
		go try()
		select {}
	}
	go try()
	<-gone
	for {
		if st, ok := procFS("/proc").stat(uint32(os.Getpid())); ok && st.state == 'Z' {
			return
		}
	}
}

// TestUnusualProcesses: who holds a socket, and the path of its program, of processes whose first thread has ended,
// that have a thread with a descriptor table of its own, and that have another root.
func TestUnusualProcesses(t *testing.T) {
	if how := os.Getenv("SOCKFLOW_TEST_UNUSUAL"); how != "" {
		unusual(how)
	}
	needRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ how, path string }{{"headless", ""}, {"tables", ""}, {"chroot", "/program"}} {
		t.Run(tc.how, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "program")
			b, err := os.ReadFile(self)
			if err == nil {
				err = os.WriteFile(path, b, 0o755)
			}
			if err != nil {
				t.Fatal(err)
			}
			c := exec.Command(path, "-test.run=^TestUnusualProcesses$", "word")
			c.Env = append(os.Environ(), "SOCKFLOW_TEST_UNUSUAL="+tc.how, "SOCKFLOW_TEST_PATH="+path, "GOMAXPROCS=4", "GOGC=off")
			out, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { c.Process.Kill(); c.Wait() }()
			var inode uint32
			lines := bufio.NewScanner(out)
			for lines.Scan() && lines.Text() != "ready" {
				if n, err := fmt.Sscanf(lines.Text(), "inode %d <nil>", &inode); n != 1 || err != nil {
					t.Fatal(lines.Text())
				}
			}
			pid := uint32(c.Process.Pid)
			if id := NewOwners("/proc").Lookup(inode); id.PID != pid {
				t.Errorf("socket %d is of process %d, not %d", inode, id.PID, pid)
			}
			if tc.path != "" {
				path = tc.path
			}
			p := newTable(t, ProcConfig{CommandLine: true})
			f, ok := p.read(pid)
			if !ok || f.Path != path || !strings.HasSuffix(f.CommandLine, " word") || f.UID != 0 || f.CGroupPath == "" {
				t.Errorf("%t, %+v; want the path %s", ok, f, path)
			}
			if tc.how == "headless" {
				st, _ := procFS("/proc").stat(pid)
				if st.state != 'Z' {
					t.Errorf("the first thread has not ended: %c", st.state)
				}
			}
		})
	}
}

// TestParentWithoutFirstThread: the path of a parent whose first thread has ended.
func TestParentWithoutFirstThread(t *testing.T) {
	if os.Getenv("SOCKFLOW_TEST_PARENT") != "" {
		c := exec.Command("sleep", "60")
		fmt.Println(c.Start())
		fmt.Println(c.Process.Pid)
		endFirstThread()
		fmt.Println("ready")
		select {}
	}
	needRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(self, "-test.run=^TestParentWithoutFirstThread$")
	c.Env = append(os.Environ(), "SOCKFLOW_TEST_PARENT=1", "GOMAXPROCS=4", "GOGC=off")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { c.Process.Kill(); c.Wait() }()
	var failed string
	var child uint32
	var ready string
	if n, err := fmt.Fscanln(out, &failed); n != 1 || failed != "<nil>" {
		t.Fatal(failed, err)
	}
	if _, err := fmt.Fscanln(out, &child); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(int(child), syscall.SIGKILL)
	if _, err := fmt.Fscanln(out, &ready); err != nil {
		t.Fatal(err)
	}
	f, ok := newTable(t, ProcConfig{}).read(child)
	if !ok || f.ParentPID != uint32(c.Process.Pid) || f.ParentPath != self || f.ParentUID != 0 {
		t.Errorf("%t, %+v; want the parent %s[%d]", ok, f, self, c.Process.Pid)
	}
}

// TestUserChanges: a process that changes its user without running another program has the name of the user that
// its socket was of, each time; so has the parent of what it starts then.
func TestUserChanges(t *testing.T) {
	e, p := newEnricher(t)
	p.users.names = map[uint32]string{0: "root", 33: "www", 34: "backup"}
	id := flowcache.ProcessID{PID: 10, Start: 7}
	p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessExec, Process: flowcache.Process{ID: id, Path: "/sbin/nginx", UID: 0, GID: 0}})
	named := func(id flowcache.ProcessID, uid uint32) *flowcache.Process {
		t.Helper()
		r := flowcache.Record{Source: flowcache.End{Local: true, Process: id, UID: uid, GID: uid}}
		e.Enrich(&r)
		if r.Source.Who == nil || r.Source.Who.UID != r.Source.UID || r.Source.Who.UserName != p.users.name(r.Source.UID) {
			t.Errorf("user %d: %+v", uid, r.Source.Who)
		}
		return r.Source.Who
	}
	www := named(id, 33)
	if www.Path != "/sbin/nginx" || www.UserName != "www" || www.GID != 33 {
		t.Errorf("%+v", www)
	}
	for _, uid := range []uint32{0, 33, 34, 1234, 33, 0} {
		named(id, uid)
	}
	if again := named(id, 33); again != www {
		t.Error("made twice")
	}
	if n := testing.AllocsPerRun(100, func() { p.As(id, 33, 33); p.As(id, 34, 34); p.As(id, 0, 0) }); n != 0 {
		t.Errorf("%g allocations", n)
	}
	for uid := range uint32(1000) {
		named(id, uid)
	}
	if n := len(p.table[id].as); n > maxUsers {
		t.Errorf("%d users are kept", n)
	}
	// Of a process that is not known but for its id the user is.
	if f := named(flowcache.ProcessID{PID: 1 << 30, Start: 1}, 34); f.UserName != "backup" {
		t.Errorf("%+v", f)
	}
	// A socket whose user is not known has that of the process.
	if f := named(id, flowcache.NoID); f.UserName != "root" {
		t.Errorf("%+v", f)
	}
	// What it starts begins with the user that it has then.
	child := flowcache.ProcessID{PID: 11, Start: 9}
	p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessFork, Process: flowcache.Process{ID: child, UID: 33, GID: 33, ParentPID: 10}, Parent: id})
	if f := p.Get(child); f.ParentUID != 33 || f.UserName != "www" || f.ParentPath != "/sbin/nginx" {
		t.Errorf("%+v", f)
	}
	p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessExec, Process: flowcache.Process{ID: child, Path: "/bin/sh", UID: 34, GID: 34, ParentPID: 10}, Parent: id})
	if f := p.Get(child); f.ParentUID != 33 || f.UserName != "backup" {
		t.Errorf("%+v", f)
	}
	if f := p.Get(id); f.UID != 33 || f.UserName != "www" {
		t.Errorf("the parent: %+v", f)
	}
}

// TestSweepDoesNotWait: what has to be read of proc is read beside the loop: a proc that hangs holds nothing up,
// and processes that exited unseen are forgotten when it answers.
func TestSweepDoesNotWait(t *testing.T) {
	proc := t.TempDir()
	dir := filepath.Join(proc, "10")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := newTable(t, ProcConfig{Proc: proc})
	stuck := flowcache.ProcessID{PID: 10, Start: 1}
	p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessExec, Process: flowcache.Process{ID: stuck, Path: "/bin/x"}})
	p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessExec, Process: flowcache.Process{ID: flowcache.ProcessID{PID: 11, Start: 1}, Path: "/bin/x"}})
	fifo := filepath.Join(dir, "stat")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	now := int64(0)
	sweep := func() { now += int64(time.Second); p.Sweep(now) }
	for range 1000 {
		sweep()
	}
	if len(p.table) != 2 {
		t.Errorf("%d processes while proc does not answer", len(p.table))
	}
	w, err := os.OpenFile(fifo, os.O_WRONLY, 0) // whoever reads it finds nothing
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(fifo)
	w.Close()
	for deadline := time.Now().Add(20 * time.Second); len(p.table) > 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		now += int64(time.Minute)
		sweep()
	}
	if len(p.table) != 0 {
		t.Errorf("%d processes are remembered for ever", len(p.table))
	}
}

// BenchmarkSweep is what a step of Sweep takes of the loop, with a full table of processes that live.
func BenchmarkSweep(b *testing.B) {
	for _, n := range []int{12_000, 1 << 18} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := NewProcesses(ProcConfig{Proc: b.TempDir()}, NewCGroups("/proc"))
			for i := range n {
				id := flowcache.ProcessID{PID: uint32(i + 1), Start: 1}
				p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessExec, Process: flowcache.Process{ID: id, Path: "/bin/x"}})
			}
			p.looking = make(chan lookedUp) // what proc takes is not the loop's
			for b.Loop() {
				p.Sweep(1)
			}
		})
	}
}
