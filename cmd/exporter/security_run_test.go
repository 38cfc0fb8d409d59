package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// without becomes another program, to which a system call does not exist, as on an older kernel.
func without(number string, program []string) error {
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return err
	}
	f := &filter{}
	f.load(seccompNumber)
	f.call(uint32(n), func() { f.refuse(unix.ENOSYS) })
	f.allow()
	prog := unix.SockFprog{Len: uint16(len(f.p)), Filter: &f.p[0]}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
		return err
	}
	os.Unsetenv(trafficEnv)
	return syscall.Exec(program[0], program, os.Environ())
}

// TestNoLandlock: a kernel that has no Landlock is a line of the log, and no reason not to work.
func TestNoLandlock(t *testing.T) {
	exporter := buildExporter(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{exporter, "replay", "../../testdata/captures/http.pcap"}, {exporter, "replay", "../../testdata/captures/http.pcap", "--privileges", "keep"}} {
		cmd := exec.Command(self, append([]string{strconv.Itoa(unix.SYS_LANDLOCK_CREATE_RULESET)}, args...)...)
		cmd.Env = append(os.Environ(), trafficEnv+"=without")
		out, err := cmd.CombinedOutput()
		if said := strings.Contains(string(out), "this kernel has no Landlock"); err != nil || !strings.Contains(string(out), `"flowStart"`) || said != (len(args) == 3) {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
}

// TestAround: of what the settings name the folder can be read, but of a folder of the system the file alone.
func TestAround(t *testing.T) {
	dir := t.TempDir()
	real, link := filepath.Join(dir, "a", "real"), filepath.Join(dir, "b", "link")
	for _, path := range []string{real, link} {
		os.MkdirAll(filepath.Dir(path), 0o755)
	}
	os.WriteFile(real, nil, 0o644)
	os.Symlink(real, link)
	for path, want := range map[string]string{
		"/etc/passwd": "/etc/passwd /etc/passwd", "/nowhere": "/nowhere /nowhere", "/etc/sockflow/x.yaml": "/etc/sockflow /etc/sockflow",
		link: filepath.Dir(link) + " " + filepath.Dir(real),
	} {
		if got := strings.Join(around(path), " "); got != want {
			t.Errorf("around %s is %s, want %s", path, got, want)
		}
	}
}

// TestKeep: keep keeps everything.
func TestKeep(t *testing.T) {
	needRoot(t)
	r := runExporter(t, "--metrics", "none", "--privileges", "keep", "-c", "udp://127.0.0.1:9")
	for _, line := range []string{"CapEff", "CapBnd", "Seccomp"} {
		own, its := threads(t, os.Getpid(), line)[0], threads(t, r.cmd.Process.Pid, line)[0]
		if own != its {
			t.Errorf("%s is %s, and was %s", line, its, own)
		}
	}
	r.stop()
}

// TestMetricsConfined: /metrics has the process's own figures whatever was given up.
func TestMetricsConfined(t *testing.T) {
	needRoot(t)
	for _, privileges := range []string{"keep", "drop", "least"} {
		port := freePort(t)
		r := runExporter(t, "--metrics", fmt.Sprintf("127.0.0.1:%d", port), "--privileges", privileges, "-c", "udp://127.0.0.1:9")
		m := scrape(t, port)
		for _, name := range []string{"process_cpu_seconds_total", "process_open_fds", "process_resident_memory_bytes", "process_start_time_seconds", "go_goroutines"} {
			if m[name] <= 0 {
				t.Errorf("--privileges %s: no %s", privileges, name)
			}
		}
		r.stop()
	}
}

// TestLeastNetlink: netlink mode finds owners of sockets with least privileges, too, and says what it leaves open for
// that.
func TestLeastNetlink(t *testing.T) {
	needRoot(t)
	r := runExporter(t, "--metrics", "none", "--source", "netlink", "--privileges", "least", "--snapshot-interval", "200ms", "--active-timeout", "300ms")
	if !strings.Contains(r.errs.String(), "files are not closed by Landlock") {
		t.Error(r.errs.String())
	}
	srv := start(t, "least-server", "", "server", "127.0.0.1", "10")
	port := srv.next().TCP
	h := start(t, "least-hold", "", "hold", "127.0.0.1", strconv.Itoa(port))
	h.next()
	eventually(t, "the owner of a connection", func() bool {
		return strings.Contains(r.out.String(), "/least-hold") && strings.Contains(r.out.String(), "/least-server")
	})
	h.end()
	srv.end()
	r.stop()
}

// TestReloadConfined: what was given up at the start is not to be had by SIGHUP, which says so and changes the rest; what
// was not, is.
func TestReloadConfined(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	elsewhere := t.TempDir()
	config := filepath.Join(dir, "sockflow.yaml")
	for _, tc := range []struct {
		name, privileges, before, after string
		path                            string // what is written, or not
		ok                              bool
	}{
		{"first file", "drop", "udp://127.0.0.1:9", "file:" + dir + "/a.ipfix", dir + "/a.ipfix", false},
		{"another file", "drop", "file:" + dir + "/b.ipfix", "file:" + dir + "/c.ipfix", dir + "/c.ipfix", true},
		{"the same folder", "least", "file:" + dir + "/d.ipfix", "file:" + dir + "/e.ipfix", dir + "/e.ipfix", true},
		{"another folder", "least", "file:" + dir + "/f.ipfix", "file:" + elsewhere + "/g.ipfix", elsewhere + "/g.ipfix", false},
		{"kept", "keep", "udp://127.0.0.1:9", "file:" + dir + "/h.ipfix", dir + "/h.ipfix", true},
		{"first spool", "drop", "tcp://127.0.0.1:9", "tcp://127.0.0.1:9?spool=" + dir + "/i", dir + "/i", false},
		{"another spool", "drop", "tcp://127.0.0.1:9?spool=" + dir + "/j", "tcp://127.0.0.1:9?spool=" + dir + "/k", dir + "/k", true},
		{"a spool elsewhere", "least", "tcp://127.0.0.1:9?spool=" + dir + "/l", "tcp://127.0.0.1:9?spool=" + elsewhere + "/m", elsewhere + "/m", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			write := func(url, more string) {
				// As editors do it: another file in its place.
				if err := os.WriteFile(config+".new", fmt.Appendf(nil, "collector: %q\n%s", url, more), 0o644); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(config+".new", config); err != nil {
					t.Fatal(err)
				}
			}
			write(tc.before, "")
			r := runExporter(t, "--metrics", "none", "--config", config, "--privileges", tc.privileges)
			write(tc.after, "idle-timeout: 20s\n")
			r.cmd.Process.Signal(syscall.SIGHUP)
			eventually(t, "settings are read again", func() bool {
				return strings.Contains(r.errs.String(), `settings are read again" changed="collector idle-timeout"`)
			})
			if tc.ok == strings.Contains(r.errs.String(), "that was given up at the start") {
				t.Error(r.errs.String())
			}
			eventually(t, "the file is written, or not", func() bool {
				_, err := os.Stat(tc.path)
				return (err == nil) == tc.ok
			})
			r.stop()
		})
	}
}
