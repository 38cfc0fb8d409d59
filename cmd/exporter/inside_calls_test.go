//go:build amd64

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// neverCalls are what nobody who took a command over may do, whatever its settings are.
var neverCalls = map[string]func(i *insider) error{
	"execve": func(i *insider) error { _, err := i.call(unix.SYS_EXECVE, i.path("/bin/true"), 0, 0); return err },
	"execveat": func(i *insider) error {
		_, err := i.call(unix.SYS_EXECVEAT, 0, i.path("/bin/true"), 0, 0, 0)
		return err
	},
	"fork":            func(i *insider) error { _, err := i.call(unix.SYS_FORK); return err },
	"vfork":           func(i *insider) error { _, err := i.call(unix.SYS_VFORK); return err },
	"clone a process": func(i *insider) error { _, err := i.call(unix.SYS_CLONE, uintptr(unix.SIGCHLD)); return err },
	"clone(NEWUSER)": func(i *insider) error {
		_, err := i.call(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD))
		return err
	},
	"thread in NEWUSER": func(i *insider) error {
		_, err := i.call(unix.SYS_CLONE, unix.CLONE_THREAD|unix.CLONE_NEWUSER)
		return err
	},
	"unshare(NEWUSER)": func(i *insider) error { _, err := i.call(unix.SYS_UNSHARE, unix.CLONE_NEWUSER); return err },
	"unshare(NEWNS)":   func(i *insider) error { _, err := i.call(unix.SYS_UNSHARE, unix.CLONE_NEWNS); return err },
	"setns(NEWNS)":     func(i *insider) error { _, err := i.call(unix.SYS_SETNS, 0, unix.CLONE_NEWNS); return err },
	"setns(any)":       func(i *insider) error { _, err := i.call(unix.SYS_SETNS, 0, 0); return err },
	"ptrace": func(i *insider) error {
		_, err := i.call(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(os.Getpid()))
		return err
	},
	"process_vm_readv": func(i *insider) error {
		_, err := i.call(unix.SYS_PROCESS_VM_READV, uintptr(os.Getpid()), 0, 0, 0, 0)
		return err
	},
	"process_vm_writev": func(i *insider) error {
		_, err := i.call(unix.SYS_PROCESS_VM_WRITEV, uintptr(os.Getpid()), 0, 0, 0, 0)
		return err
	},
	"pidfd_open":  func(i *insider) error { _, err := i.call(unix.SYS_PIDFD_OPEN, uintptr(os.Getpid()), 0); return err },
	"pidfd_getfd": func(i *insider) error { _, err := i.call(unix.SYS_PIDFD_GETFD, 0, 0, 0); return err },
	"kcmp":        func(i *insider) error { _, err := i.call(unix.SYS_KCMP, 1, 1, 0, 0, 0); return err },
	"kill":        func(i *insider) error { _, err := i.call(unix.SYS_KILL, uintptr(os.Getpid()), 0); return err },
	"tgkill": func(i *insider) error {
		_, err := i.call(unix.SYS_TGKILL, uintptr(os.Getpid()), uintptr(os.Getpid()), 0)
		return err
	},
	"tkill": func(i *insider) error { _, err := i.call(unix.SYS_TKILL, uintptr(os.Getpid()), 0); return err },
	"fcntl(SETOWN)": func(i *insider) error {
		_, err := i.call(unix.SYS_FCNTL, 0, unix.F_SETOWN, uintptr(os.Getpid()))
		return err
	},
	"ioctl(TIOCSTI)":    func(i *insider) error { _, err := i.call(unix.SYS_IOCTL, 0, unix.TIOCSTI, i.path("x")); return err },
	"mount":             func(i *insider) error { _, err := i.call(unix.SYS_MOUNT, 0, 0, 0, 0, 0); return err },
	"umount2":           func(i *insider) error { _, err := i.call(unix.SYS_UMOUNT2, i.path("/nowhere"), 0); return err },
	"open_tree":         func(i *insider) error { _, err := i.call(unix.SYS_OPEN_TREE, 0, i.path("/"), 0); return err },
	"chroot":            func(i *insider) error { _, err := i.call(unix.SYS_CHROOT, i.path("/")); return err },
	"pivot_root":        func(i *insider) error { _, err := i.call(unix.SYS_PIVOT_ROOT, i.path("/"), i.path("/")); return err },
	"init_module":       func(i *insider) error { _, err := i.call(unix.SYS_INIT_MODULE, 0, 0, 0); return err },
	"finit_module":      func(i *insider) error { _, err := i.call(unix.SYS_FINIT_MODULE, 0, 0, 0); return err },
	"kexec_load":        func(i *insider) error { _, err := i.call(unix.SYS_KEXEC_LOAD, 0, 0, 0, 0); return err },
	"reboot":            func(i *insider) error { _, err := i.call(unix.SYS_REBOOT, 0, 0, 0, 0); return err },
	"setuid":            func(i *insider) error { _, err := i.call(unix.SYS_SETUID, 65534); return err },
	"setresuid":         func(i *insider) error { _, err := i.call(unix.SYS_SETRESUID, 65534, 65534, 65534); return err },
	"setgroups":         func(i *insider) error { _, err := i.call(unix.SYS_SETGROUPS, 0, 0); return err },
	"capset":            func(i *insider) error { _, err := i.call(unix.SYS_CAPSET, 0, 0); return err },
	"keyctl":            func(i *insider) error { _, err := i.call(unix.SYS_KEYCTL, 0, 0, 0, 0, 0); return err },
	"clock_settime":     func(i *insider) error { _, err := i.call(unix.SYS_CLOCK_SETTIME, 0, 0); return err },
	"perf_event_open":   func(i *insider) error { _, err := i.call(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0, 0, 0); return err },
	"io_uring_setup":    func(i *insider) error { _, err := i.call(unix.SYS_IO_URING_SETUP, 1, i.scratch); return err },
	"userfaultfd":       func(i *insider) error { _, err := i.call(unix.SYS_USERFAULTFD, 0); return err },
	"memfd_create":      func(i *insider) error { _, err := i.call(unix.SYS_MEMFD_CREATE, i.path("x"), 0); return err },
	"open_by_handle_at": func(i *insider) error { _, err := i.call(unix.SYS_OPEN_BY_HANDLE_AT, 0, 0, 0); return err },
	"openat2":           func(i *insider) error { _, err := i.call(unix.SYS_OPENAT2, 0, 0, 0, 24); return err },
	"open":              func(i *insider) error { _, err := i.call(unix.SYS_OPEN, i.path("/etc/passwd"), 0); return err },
	"mknodat":           func(i *insider) error { _, err := i.call(unix.SYS_MKNODAT, 0, 0, 0, 0); return err },
	"symlinkat":         func(i *insider) error { _, err := i.call(unix.SYS_SYMLINKAT, 0, 0, 0); return err },
	"fchmodat":          func(i *insider) error { _, err := i.call(unix.SYS_FCHMODAT, 0, 0, 0); return err },
	"fchownat":          func(i *insider) error { _, err := i.call(unix.SYS_FCHOWNAT, 0, 0, 0, 0, 0); return err },
	"setxattr":          func(i *insider) error { _, err := i.call(unix.SYS_SETXATTR, 0, 0, 0, 0, 0); return err },
	"bpf(PROG_LOAD)":    func(i *insider) error { _, err := i.call(unix.SYS_BPF, unix.BPF_PROG_LOAD, 0, 0); return err },
	"bpf(MAP_CREATE)":   func(i *insider) error { _, err := i.call(unix.SYS_BPF, unix.BPF_MAP_CREATE, 0, 0); return err },
	"bpf(MAP_BY_ID)":    func(i *insider) error { _, err := i.call(unix.SYS_BPF, unix.BPF_MAP_GET_FD_BY_ID, 0, 0); return err },
	"bpf(OBJ_PIN)":      func(i *insider) error { _, err := i.call(unix.SYS_BPF, unix.BPF_OBJ_PIN, 0, 0); return err },
	"bpf(LINK_CREATE)":  func(i *insider) error { _, err := i.call(unix.SYS_BPF, unix.BPF_LINK_CREATE, 0, 0); return err },
	"bpf(PROG_ATTACH)":  func(i *insider) error { _, err := i.call(unix.SYS_BPF, unix.BPF_PROG_ATTACH, 0, 0); return err },
	"prctl(SET_MM)":     func(i *insider) error { _, err := i.call(unix.SYS_PRCTL, unix.PR_SET_MM, 1, 0, 0, 0); return err },
	"prlimit of another": func(i *insider) error {
		_, err := i.call(unix.SYS_PRLIMIT64, uintptr(os.Getpid()), 7, 0, 0)
		return err
	},
	"executable memory": func(i *insider) error {
		_, err := i.call(unix.SYS_MPROTECT, i.scratch, 4096, unix.PROT_READ|unix.PROT_EXEC)
		return err
	},
	"mmap(EXEC)": func(i *insider) error {
		_, err := i.call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uintptr(0), 0)
		return err
	},
	"a packet socket": func(i *insider) error { return i.socket(unix.AF_PACKET, unix.SOCK_RAW, 0) },
	"an alg socket":   func(i *insider) error { return i.socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0) },
	"a vsock socket":  func(i *insider) error { return i.socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0) },
	"netlink audit":   func(i *insider) error { return i.socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT) },
	"a raw socket":    func(i *insider) error { return i.socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP) },
	"a number of x32": func(i *insider) error { _, err := i.call(x32 | 1); return err },
	"no such call":    func(i *insider) error { _, err := i.call(999); return err },
}

// confinedCase is a command, and what an intruder in it can and cannot do with files,
// sockets and other processes.
type confinedCase struct {
	name     string
	args     []string
	ready    string
	writes   string // a folder; empty: none
	closed   bool   // only what the settings name can be opened
	tracing  bool   // facts of other processes are read
	inet     bool
	unixes   bool
	netlink  bool
	setns    bool
	caps     string
	config   string // a file that must be readable
	mightAll bool   // writes everywhere where root may: what security.md says remains
}

// TestConfined takes over every command, with different settings, and tries everything.
func TestConfined(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	os.Chmod(filepath.Dir(dir), 0o755)
	config := filepath.Join(dir, "etc", "sockflow.yaml")
	out := filepath.Join(dir, "out")
	os.MkdirAll(filepath.Dir(config), 0o755)
	os.MkdirAll(out, 0o755)
	os.WriteFile(config, []byte("idle-timeout: 15s\n"), 0o644)
	// Pipes that are not read to an end: the commands wait.
	capture, err := os.ReadFile("../../testdata/captures/http.pcap")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	pipe := func(begin []byte) string {
		n++
		name := filepath.Join(dir, fmt.Sprint("pipe", n))
		if err := unix.Mkfifo(name, 0o600); err != nil {
			t.Fatal(err)
		}
		hold, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { hold.Close() })
		hold.Write(begin)
		return name
	}
	run := []string{"run", "--metrics", "none", "--snapshot-interval", "200ms", "--audit-interval", "1s", "--interface-interval", "500ms"}
	quiet := []string{"--containerd", "none", "--docker", "none", "--cri", "none", "--podman", "none"}
	udp := []string{"-c", "udp://127.0.0.1:9"}
	join := func(lists ...[]string) (all []string) {
		for _, l := range lists {
			all = append(all, l...)
		}
		return all
	}
	drop := hexSet(keptCapabilities...)
	least := hexSet(unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN)
	spool := []string{"-c", "tcp://127.0.0.1:9", "--spool", out}
	for _, tc := range []confinedCase{
		{name: "drop", args: join(run, udp), ready: "metering by eBPF", tracing: true, inet: true, unixes: true, netlink: true, setns: true, caps: drop},
		{name: "drop, netlink", args: join(run, udp, []string{"--source", "netlink"}), ready: "metering by netlink", tracing: true, inet: true, unixes: true, netlink: true, setns: true, caps: drop},
		{name: "drop, no runtimes", args: join(run, udp, quiet), ready: "metering by eBPF", tracing: true, inet: true, netlink: true, setns: true, caps: drop},
		{name: "drop, spool", args: join(run, spool), ready: "metering by eBPF", tracing: true, inet: true, unixes: true, netlink: true, setns: true, caps: drop, writes: out, mightAll: true},
		{name: "least", args: join(run, udp, []string{"--privileges", "least", "--config", config}), ready: "metering by eBPF", closed: true, inet: true, unixes: true, netlink: true, caps: least, config: config},
		{name: "least, netlink", args: join(run, udp, []string{"--source", "netlink", "--privileges", "least"}), ready: "metering by netlink", tracing: true, inet: true, unixes: true, netlink: true, caps: hexSet(unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN, unix.CAP_SYS_PTRACE)},
		{name: "least, spool", args: join(run, spool, quiet, []string{"--privileges", "least"}), ready: "metering by eBPF", closed: true, inet: true, netlink: true, caps: least, writes: out},
		{name: "least, json", args: join(run, quiet, []string{"-c", "json:" + out + "/x.json", "--privileges", "least"}), ready: "metering by eBPF", closed: true, inet: true, netlink: true, caps: least, writes: out},
		{name: "collect", args: []string{"collect", "--listen", "udp://127.0.0.1:0", "--listen", "tcp://127.0.0.1:0"}, ready: "listening", closed: true, caps: hexSet()},
		{name: "collect, file", args: []string{"collect", pipe(nil)}, closed: true, caps: hexSet()},
		{name: "replay", args: []string{"replay", pipe(capture)}, closed: true, caps: hexSet()},
		{name: "replay, exported", args: []string{"replay", pipe(capture), "-c", "udp://127.0.0.1:9"}, closed: true, inet: true, netlink: true, caps: hexSet()},
		{name: "replay, file", args: []string{"replay", pipe(capture), "-c", "file:" + out + "/f.ipfix"}, closed: true, caps: hexSet(), writes: out},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.try(t) })
	}
}

func (tc *confinedCase) try(t *testing.T) {
	victim := exec.Command("sleep", "60")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	defer victim.Wait()
	defer victim.Process.Kill()
	eventually(t, "the victim runs", func() bool {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", victim.Process.Pid))
		return strings.HasSuffix(exe, "sleep")
	})
	r := launch(t, exec.Command(buildExporter(t), tc.args...))
	eventually(t, "it is confined", func() bool { return confined(r.cmd.Process.Pid) && strings.Contains(r.errs.String(), tc.ready) })
	if s := r.errs.String(); strings.Contains(s, "not given up") {
		t.Fatal(s)
	}
	pid := r.cmd.Process.Pid
	for line, want := range map[string]string{"CapEff": tc.caps, "CapPrm": tc.caps, "CapInh": hexSet(), "CapAmb": hexSet(), "NoNewPrivs": "1", "Seccomp": "2"} {
		for _, got := range threads(t, pid, line) {
			if got != want {
				t.Errorf("%s is %s, want %s", line, got, want)
			}
		}
	}
	if tc.caps != hexSet() {
		for _, got := range threads(t, pid, "CapBnd") {
			if got != tc.caps {
				t.Errorf("CapBnd is %s, want %s", got, tc.caps)
			}
		}
	}
	i := enter(t, pid)
	must := func(what string, can bool, err error) {
		t.Helper()
		refused := errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES)
		if can && err != nil || !can && !refused {
			t.Errorf("%s: %v, and it should be possible: %v", what, err, can)
		}
	}
	for what, try := range neverCalls {
		must(what, false, try(i))
	}
	// Files.
	must("read /etc/shadow", !tc.closed, i.open("/etc/shadow", unix.O_RDONLY))
	for _, path := range []string{"/etc/shadow", "/etc/passwd", "/etc/cron.d/x", "/root/x", "/proc/sys/kernel/core_pattern", "/proc/self/oom_score_adj"} {
		for _, flags := range []int{unix.O_WRONLY, unix.O_RDWR, unix.O_WRONLY | unix.O_CREAT, unix.O_RDONLY | unix.O_CREAT} {
			_, err := os.Stat(path)
			if err != nil && flags&unix.O_CREAT == 0 || err == nil && flags == unix.O_RDONLY|unix.O_CREAT && tc.writes != "" || tc.mightAll {
				continue // not there; or it makes nothing, and reads what is there
			}
			must(fmt.Sprintf("open %s with %#x", path, flags), false, i.open(path, flags))
		}
	}
	if tc.writes != "" {
		must("write where the settings say", true, i.open(tc.writes+"/new", unix.O_WRONLY|unix.O_CREAT))
	} else {
		must("write anywhere", false, i.open(t.TempDir()+"/new", unix.O_WRONLY|unix.O_CREAT))
		must("truncate", false, i.open("/etc/passwd", unix.O_RDONLY|unix.O_TRUNC))
	}
	if tc.config != "" {
		os.WriteFile(tc.config+".new", nil, 0o644)
		os.Rename(tc.config+".new", tc.config) // as editors do
		must("read the configuration", true, i.open(tc.config, unix.O_RDONLY))
		must("list its folder", true, i.open(filepath.Dir(tc.config), unix.O_RDONLY|unix.O_DIRECTORY))
		must("write the configuration", false, i.open(tc.config, unix.O_WRONLY))
	}
	nothing := strings.HasPrefix(tc.name, "collect") || tc.name == "replay" || tc.name == "replay, file"
	must("read /etc/passwd", !nothing, i.open("/etc/passwd", unix.O_RDONLY))
	must("list the root", !tc.closed, i.open("/", unix.O_RDONLY|unix.O_DIRECTORY))
	must("read what a process is called", !strings.HasPrefix(tc.name, "collect") && !strings.HasPrefix(tc.name, "replay"), i.open("/proc/1/stat", unix.O_RDONLY))
	// Other processes.
	victims := fmt.Sprintf("/proc/%d/", victim.Process.Pid)
	must("which program", tc.tracing, i.readlink(victims+"exe"))
	must("which namespace", tc.tracing, i.readlink(victims+"ns/net"))
	if !tc.mightAll {
		must("write memory", false, i.open(victims+"mem", unix.O_RDWR))
	}
	if err := i.memory(victim.Process.Pid, mappedAt(t, victim.Process.Pid, "[stack]")); err == nil {
		t.Error("another process's stack was read")
	}
	if err := i.memory(victim.Process.Pid, mappedAt(t, victim.Process.Pid, "/sleep")); err == nil {
		t.Error("another process's program was read")
	}
	if tc.closed {
		for _, name := range []string{"root/etc/shadow", "cwd"} {
			must(name, false, i.open(victims+name, unix.O_RDONLY))
		}
		if tc.caps == hexSet() { // CAP_PERFMON may read these, whatever Landlock says, by mm_access of newer kernels
			must("environ", false, i.open(victims+"environ", unix.O_RDONLY))
			must("maps", false, i.open(victims+"maps", unix.O_RDONLY))
		}
	}
	// Sockets.
	must("a socket of IPv4", tc.inet, i.socket(unix.AF_INET, unix.SOCK_STREAM, 0))
	must("a socket of IPv6", tc.inet, i.socket(unix.AF_INET6, unix.SOCK_DGRAM, 0))
	must("a Unix socket", tc.unixes, i.socket(unix.AF_UNIX, unix.SOCK_STREAM, 0))
	must("a socket of sock_diag", tc.netlink, i.socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_SOCK_DIAG))
	// EBADF or EINVAL is the kernel's word: the call was made.
	if _, err := i.call(unix.SYS_SETNS, ^uintptr(0), unix.CLONE_NEWNET); tc.setns != errors.Is(err, syscall.EBADF) {
		t.Errorf("setns of a network namespace: %v", err)
	}
	if _, err := i.call(unix.SYS_BPF, unix.BPF_RAW_TRACEPOINT_OPEN, 0, 0); (tc.ready == "metering by eBPF") != errors.Is(err, syscall.EINVAL) {
		t.Errorf("attach what is loaded: %v", err)
	}
	must("compare descriptor tables", tc.ready == "metering by netlink", func() error {
		_, err := i.call(unix.SYS_KCMP, uintptr(pid), uintptr(pid), kcmpFiles, 0, 0)
		return err
	}())
	i.leave()
	if strings.HasPrefix(tc.name, "replay") || tc.name == "collect, file" {
		return // they wait for the pipe
	}
	time.Sleep(500 * time.Millisecond)
	r.stop() // it has worked on
}
