package enrich

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sockflow/sockflow/flowcache"
)

// needRoot skips a test that needs the kernel's permission, and fails it where CI promised to be root.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ROOT") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// inGroup starts a process in a control group of its own below the hierarchy's root, until the test ends.
func inGroup(t *testing.T, root, group string, c *exec.Cmd) {
	t.Helper()
	dir := filepath.Join(root, group)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for ; dir != root; dir = filepath.Dir(dir) {
			os.Remove(dir)
		}
	})
	fd, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if c.SysProcAttr == nil {
		c.SysProcAttr = &syscall.SysProcAttr{}
	}
	c.SysProcAttr.UseCgroupFD, c.SysProcAttr.CgroupFD = true, int(fd.Fd())
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
}

// TestCGroupNamespace: from within a control group namespace of its own, where /proc/PID/cgroup is relative to the
// namespace's root, processes have the paths and ids that they have outside of it, so that they are in the same
// containers.
func TestCGroupNamespace(t *testing.T) {
	if pids := os.Getenv("SOCKFLOW_TEST_PIDS"); pids != "" { // the process in the namespace
		out, err := exec.Command("/bin/sh", "-ec", os.Getenv("SOCKFLOW_TEST_MOUNTS")).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		p := NewProcesses(ProcConfig{}, NewCGroups("/proc"))
		for _, pid := range strings.Fields(pids + " " + strconv.Itoa(os.Getpid())) {
			n, _ := strconv.Atoi(pid)
			f, ok := p.read(uint32(n))
			if !ok {
				t.Fatalf("no process %s", pid)
			}
			fmt.Println("place", f.CGroupPath, f.CGroup)
		}
		return
	}
	needRoot(t)
	root, depth := cgroupMount("/proc")
	if root == "" || depth != 0 {
		t.Skipf("this test is %d levels down a control group namespace, or no cgroup2 is mounted", depth)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	top := "/sockflow-enrich-" + strconv.Itoa(os.Getpid())
	pods := top + "/kubepods/burstable/pod" + pod
	groups := []string{pods + "/" + in64, pods, top + "/kubepods/besteffort/pod" + strings.Repeat("ab", 16) + "/" + id64, top + "/default/web1", pods + "/" + id64 + "/sub"}
	var pids []string
	var want []string
	place := func(group string) string { return fmt.Sprintf("place %s %d", group, inode(root+group)) }
	for _, g := range groups {
		c := exec.Command("sleep", "3600")
		inGroup(t, root, g, c)
		pids = append(pids, strconv.Itoa(c.Process.Pid))
		want = append(want, place(g))
	}
	pids = append(pids, "1")
	_, init := parseProcCGroup(cgroupLines("/proc/1"))
	for _, tc := range []struct{ name, mounts, group string }{
		{"the exporter's pod", "mkdir -p %[1]s && mount --bind %[2]s %[1]s && umount -lR /sys/fs/cgroup", pods + "/" + id64},
		{"the pod's own mount below the host's", "mkdir -p %[1]s && mount -t cgroup2 none %[1]s && mkdir -p %[1]s2 && mount --bind %[2]s %[1]s2 && mount --move %[1]s2 %[1]s && umount -lR /sys/fs/cgroup", pods + "/" + id64},
	} {
		c := exec.Command(self, "-test.run=^TestCGroupNamespace$")
		c.Env = append(os.Environ(), "SOCKFLOW_TEST_PIDS="+strings.Join(pids, " "), "SOCKFLOW_TEST_MOUNTS="+fmt.Sprintf(tc.mounts, filepath.Join(t.TempDir(), "host"), root))
		c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWCGROUP}
		var out strings.Builder
		c.Stdout = &out
		c.Stderr = &out
		inGroup(t, root, tc.group, c)
		if err := c.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", tc.name, err, out.String())
			continue
		}
		var got []string
		for line := range strings.Lines(out.String()) {
			if strings.HasPrefix(line, "place ") {
				got = append(got, strings.TrimSpace(line))
			}
		}
		if d := cmp.Diff(append(want[:len(want):len(want)], place(init), place(tc.group)), got); d != "" {
			t.Errorf("%s: %s\n%s", tc.name, d, out.String())
		}
	}
	// Where the hierarchy's root is not mounted, what is outside of the namespace still names its containers.
	c := &CGroups{}
	if w, _ := parseCGroup(c.absolute("/../../besteffort/pod" + pod + "/" + id64)); w.ContainerID != id64 || w.PodUID != pod {
		t.Errorf("%+v", w)
	}
}

// TestMoveOnV1: the kernel's event of a move has the path of cgroup2. Where cgroup v1 is in use a container may be
// known by a hierarchy of that only, and stays known, whichever hierarchy the process is moved in.
func TestMoveOnV1(t *testing.T) {
	docker := "/docker/" + id64
	const unit = "/system.slice/docker.service"
	for _, tc := range []struct{ name, before, after, event, want string }{
		{"moved in memory, in a container by cpu", "2:cpu:" + docker + "\n1:memory:" + docker + "\n0::/\n", "2:cpu:" + docker + "\n1:memory:/\n0::/\n", "/", docker},
		{"moved into the container", "1:memory:/\n0::/\n", "1:memory:" + docker + "\n0::/\n", "/", docker},
		{"moved out of it", "1:memory:" + docker + "\n0::/\n", "1:memory:/\n0::/\n", "/", "/"},
		{"v1 alone", "2:cpu:/\n1:memory:" + docker + "\n", "2:cpu:/other\n1:memory:" + docker + "\n", "/", docker},
		{"cgroup2 has the runtime's unit", "1:memory:" + docker + "\n0::" + unit + "\n", "1:memory:" + docker + "\n0::" + unit + "\n", unit, docker},
		{"gone meanwhile", "1:memory:" + docker + "\n0::/\n", "", "/", docker},
		{"moved in cgroup2, into another container", "1:memory:/\n0::" + docker + "\n", "1:memory:/\n0::/docker/" + in64 + "\n", "/docker/" + in64, "/docker/" + in64},
	} {
		proc := t.TempDir()
		write := func(dir, lines string) {
			os.MkdirAll(filepath.Join(proc, dir), 0o755)
			if err := os.WriteFile(filepath.Join(proc, dir, "cgroup"), []byte(lines), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		write("self", tc.before)
		write("10", tc.before)
		p := newTable(t, ProcConfig{Proc: proc})
		id := flowcache.ProcessID{PID: 10, Start: 1}
		root := "/"
		if strings.HasSuffix(tc.before, unit+"\n") {
			root = unit
		}
		p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessExec, Process: flowcache.Process{ID: id, Path: "/bin/x", CGroup: 1, CGroupPath: root}})
		write("10", tc.after)
		if tc.after == "" {
			os.RemoveAll(filepath.Join(proc, "10"))
		}
		move := flowcache.ProcessEvent{Kind: flowcache.ProcessMove, Process: flowcache.Process{ID: id, CGroup: 1, CGroupPath: tc.event}}
		if tc.event != root {
			move.Process.CGroup = 2
		}
		p.Apply(&move)
		if got := p.Get(id); got.CGroupPath != tc.want || got.CGroup != move.Process.CGroup {
			t.Errorf("%s: %q in %d, want %q in %d", tc.name, got.CGroupPath, got.CGroup, tc.want, move.Process.CGroup)
		}
	}
}
