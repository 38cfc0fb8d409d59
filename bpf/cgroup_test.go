package bpf

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestCGroupRoot: the hierarchy's root is found wherever it is mounted, as from within a control group namespace of
// its own, which is what a pod has; another control group is never taken for it. Each case mounts in namespaces of
// its own.
func TestCGroupRoot(t *testing.T) {
	if script := os.Getenv("SOCKFLOW_TEST_MOUNTS"); script != "" { // the process in the namespaces
		if out, err := exec.Command("/bin/sh", "-ec", script).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		root, err := CGroupRoot("/proc")
		fmt.Printf("root %q lesser %t error %v\n", root, errors.Is(err, ErrLesserCGroup), err)
		return
	}
	needRoot(t)
	host, err := CGroupRoot("/proc")
	if err != nil {
		t.Fatal(err)
	}
	group := filepath.Join(host, "sockflow-test-"+strconv.Itoa(os.Getpid()), "pod")
	if err := os.MkdirAll(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(group); os.Remove(filepath.Dir(group)) })
	fd, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	const away = "umount -lR /sys/fs/cgroup\n"
	own := fmt.Sprintf("mkdir -p %s/own && mount -t cgroup2 none %[1]s/own\n", dir)
	bind := func(at string) string {
		return fmt.Sprintf("mkdir -p '%s' && mount --bind %s '%[1]s'\n", at, host)
	}
	blank := filepath.Join(dir, "with blank")
	for _, tc := range []struct{ name, script, want string }{
		{"the host's mounts", "", fmt.Sprintf("root %q lesser false error <nil>", host)},
		{"the host's hierarchy by a bind mount", own + bind(dir+"/host") + away, fmt.Sprintf("root %q lesser false error <nil>", dir+"/host")},
		{"on top of the pod's own", own + bind(dir+"/own") + away, fmt.Sprintf("root %q lesser false error <nil>", dir+"/own")},
		{"a blank in the path", own + bind(blank) + away, fmt.Sprintf("root %q lesser false error <nil>", blank)},
		{"the pod's own on top", own + bind(dir+"/host") + fmt.Sprintf("mount --move %s/own %[1]s/host\n", dir) + away, `root "" lesser true error only a part of the cgroup2 hierarchy is mounted: ` + dir + "/host is one"},
		{"the pod's own alone", own + away, `root "" lesser true`},
		{"hidden below another root with inode 1", bind(dir+"/host") + "mount -t proc proc " + dir + "/host\n" + away, `root "" lesser false error no cgroup2`},
		{"none", away, `root "" lesser false error no cgroup2`},
	} {
		c := exec.Command(self, "-test.run=^TestCGroupRoot$")
		c.Env = append(os.Environ(), "SOCKFLOW_TEST_MOUNTS=:\n"+tc.script)
		c.SysProcAttr = &syscall.SysProcAttr{
			UseCgroupFD: true, CgroupFD: int(fd.Fd()), Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWCGROUP,
		}
		out, err := c.CombinedOutput()
		if err != nil || !strings.Contains(string(out), tc.want) {
			t.Errorf("%s: %v, %s; want %s", tc.name, err, out, tc.want)
		}
	}
}
