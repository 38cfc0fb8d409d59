package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockflow/sockflow/bpf"
	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/sockdiag"
)

func (d *doctor) kernel() {
	var u unix.Utsname
	unix.Uname(&u)
	d.say(note, "version", unix.ByteSliceToString(u.Release[:])+" "+unix.ByteSliceToString(u.Machine[:]))
	if st, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		d.say(bad, "BTF", err.Error(), "use a kernel built with CONFIG_DEBUG_INFO_BTF (Debian 11, Ubuntu 20.10, RHEL 8.2 and later have it); until then netlink is used")
	} else {
		d.say(good, "BTF", fmt.Sprintf("/sys/kernel/btf/vmlinux, %d kB", st.Size()/1000))
	}
	if b, err := os.ReadFile("/sys/kernel/security/lockdown"); err != nil {
		d.say(note, "lockdown", "not known: "+err.Error())
	} else {
		mode := string(b)
		if _, after, ok := strings.Cut(mode, "["); ok {
			mode, _, _ = strings.Cut(after, "]")
		}
		switch mode {
		case "confidentiality":
			d.say(bad, "lockdown", mode+": the kernel lets no program read its memory", "boot with lockdown=integrity or none; until then netlink is used")
		case "integrity":
			d.say(note, "lockdown", mode+": no kprobe or fentry; tracepoints, which are used first, are allowed")
		default:
			d.say(note, "lockdown", mode)
		}
	}
	if b, err := os.ReadFile("/sys/kernel/security/lsm"); err == nil {
		d.say(note, "security modules", strings.TrimSpace(string(b)))
	}
	if b, err := os.ReadFile("/proc/sys/kernel/bpf_stats_enabled"); err == nil {
		on := map[string]string{"0": "off: sysctl kernel.bpf_stats_enabled=1 turns it on, at some cost", "1": "on"}[strings.TrimSpace(string(b))]
		d.say(note, "run time of hooks", on)
	}
}

// capabilities that the program uses (include/uapi/linux/capability.h).
var capabilities = []struct {
	name    string
	bit     uint
	use     string
	instead verdict // without it
}{
	{"CAP_BPF", unix.CAP_BPF, "load eBPF programs", bad},
	{"CAP_PERFMON", unix.CAP_PERFMON, "attach them to tracepoints, and walk all sockets", bad},
	{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN, "count datagrams, be told by netlink of ends, ask conntrack", bad},
	{"CAP_SYS_PTRACE", unix.CAP_SYS_PTRACE, "read paths and namespaces of other users' processes", bad},
	{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN, "enter other network namespaces for netlink: the audit, and conntrack there", reduced},
}

// effective returns the effective capabilities of this process.
func effective(proc string) (uint64, error) {
	b, err := os.ReadFile(proc + "/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		}
	}
	return 0, errors.New("no CapEff in status")
}

func (d *doctor) privileges() {
	user := fmt.Sprintf("uid %d", os.Geteuid())
	if os.Geteuid() == 0 {
		user = "root"
	}
	d.say(note, "user", user)
	caps, err := effective(d.settings.proc)
	if err != nil {
		d.say(bad, "capabilities", err.Error(), "mount proc, or name its place with --proc")
		return
	}
	for _, c := range capabilities {
		switch {
		case caps&(1<<c.bit) != 0:
			d.say(good, c.name, c.use)
		case caps&(1<<unix.CAP_SYS_ADMIN) != 0 && (c.bit == unix.CAP_BPF || c.bit == unix.CAP_PERFMON):
			d.say(good, c.name, c.use+": by CAP_SYS_ADMIN")
		default:
			d.say(c.instead, c.name, "missing, to "+c.use, "run as root, or give it: AmbientCapabilities= of systemd, securityContext.capabilities of Kubernetes, docker run --cap-add")
		}
	}
	// The kernel's first namespaces have fixed inode numbers (include/linux/proc_ns.h).
	if own, err := os.Readlink("/proc/self/ns/user"); err == nil && own != "user:[4026531837]" {
		d.say(bad, "user namespace", "this is a container's: its capabilities count for nothing outside", "run as root of the host: hostUsers: true, docker run --userns=host, no rootless engine")
	}
	var limit unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit)
	memlock := "unlimited"
	if limit.Cur != unix.RLIM_INFINITY {
		memlock = fmt.Sprintf("%d kB; kernels from 5.11 on do not charge maps to it", limit.Cur/1024)
	}
	d.say(note, "memlock", memlock)
	unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	d.say(note, "open files", strconv.FormatUint(limit.Cur, 10))
	d.procMount()
}

// procMount looks at what of other processes may be seen.
func (d *doctor) procMount() {
	b, err := os.ReadFile(d.settings.proc + "/self/mountinfo")
	if err != nil {
		d.say(bad, "proc", err.Error(), "mount proc, or name its place with --proc")
		return
	}
	for line := range strings.Lines(string(b)) {
		before, after, _ := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if len(f) < 5 || f[4] != d.settings.proc || !strings.HasPrefix(after, "proc ") {
			continue
		}
		for _, option := range strings.FieldsFunc(after, func(r rune) bool { return r == ' ' || r == ',' || r == '\n' }) {
			if v, ok := strings.CutPrefix(option, "hidepid="); ok && v != "0" && v != "off" && os.Geteuid() != 0 {
				d.say(bad, "hidepid", v+": other users' processes are hidden", "run as root, or with the group of the mount's gid= option")
				return
			}
		}
	}
	d.say(good, "hidepid", "processes are not hidden")
	if own, err := os.Readlink("/proc/self/ns/pid"); err == nil && own != "pid:[4026531836]" && d.settings.proc == "/proc" {
		d.say(bad, "PID namespace", "this is a container's: processes outside have no names", "run with the host's: hostPID: true, docker run --pid=host")
	} else {
		d.say(good, "PID namespace", "the host's")
	}
}

func (d *doctor) controlGroups() {
	b, _ := os.ReadFile(d.settings.proc + "/self/mountinfo")
	first := strings.Count(string(b), " - cgroup ")
	root, err := bpf.CGroupRoot(d.settings.proc)
	switch {
	case errors.Is(err, bpf.ErrLesserCGroup):
		d.say(bad, "layout", err.Error()+"; lost are datagrams", remedyOf(err))
	case err != nil:
		d.say(bad, "layout", err.Error()+"; datagrams are not counted, and containers are found by /proc", "mount -t cgroup2 none /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1")
	case first > 0:
		d.say(good, "layout", fmt.Sprintf("hybrid: the root of cgroup2 at %s, %d mounts of cgroup v1", root, first))
	default:
		d.say(good, "layout", "the root of cgroup2 at "+root)
	}
	own, nsErr := os.Readlink("/proc/self/ns/cgroup")
	switch {
	case nsErr != nil || own == "cgroup:[4026531835]":
		d.say(good, "cgroup namespace", "the host's")
	case err == nil:
		d.say(good, "cgroup namespace", "a container's; paths are completed from the hierarchy's root")
	default:
		d.say(reduced, "cgroup namespace", "a container's: containers outside are known by their ids, without pods beside this one", "mount the host's /sys/fs/cgroup, or run with the host's cgroup namespace (docker run --cgroupns=host)")
	}
	d.memory()
}

// memory compares the flows that may be kept with the memory that there may be.
func (d *doctor) memory() {
	limit := d.settings.memory()
	if limit.octets == 0 {
		d.say(note, "memory limit", fmt.Sprintf("none is set, or seen: %d flows at most", d.settings.maxFlows))
		return
	}
	bound, fit := d.settings.flowBound(limit)
	said := fmt.Sprintf("%d MiB (%s): %d flows at most", limit.octets>>20, limit.from, bound)
	if !fit {
		d.say(reduced, "memory limit", fmt.Sprintf("%s, and %d fit", said, limit.flows(d.settings)), "give more memory, or a lower --max-flows; left out, it is what fits")
		return
	}
	d.say(good, "memory limit", said)
}

// hooks attaches every hook and lets go of it.
func (d *doctor) hooks() {
	if d.settings.source == "netlink" {
		d.say(note, "not tried", "--source netlink")
		return
	}
	hooks, err := bpf.Probe(bpf.Config{Proc: d.settings.proc, Without: d.settings.withoutHooks})
	missing, instead := bpf.Missing(hooks)
	lost := func(h bpf.Hook) bool {
		return slices.ContainsFunc(missing, func(m bpf.Hook) bool { return m.Name == h.Name })
	}
	for _, h := range hooks {
		switch {
		case h.Spare:
			d.say(note, h.Target, "not needed: a better one is attached")
		case h.Err == nil && slices.ContainsFunc(instead, func(i bpf.Hook) bool { return i.Name == h.Name }):
			d.say(good, h.Target, "attached as second choice: "+h.Use)
		case h.Err == nil:
			d.say(good, h.Target, "attached: "+h.Use)
		case lost(h):
			d.say(bad, h.Target, fmt.Sprintf("%v; lost is %s", h.Err, h.Use), remedyOf(h.Err))
		default:
			d.say(reduced, h.Target, fmt.Sprintf("%v; another hook does its work", h.Err), remedyOf(h.Err))
		}
	}
	if err != nil {
		d.say(bad, "source", err.Error()+"; netlink is used", remedyOf(err))
		return
	}
	d.say(good, "source", "eBPF works")
}

func remedyOf(err error) string {
	switch {
	case errors.Is(err, bpf.ErrLesserCGroup):
		return "mount the host's /sys/fs/cgroup at the same place: hostPath of Kubernetes, docker run -v /sys/fs/cgroup:/sys/fs/cgroup"
	case errors.Is(err, os.ErrPermission) || os.Geteuid() != 0:
		return "run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; a kernel locked down refuses some hooks even then"
	case errors.Is(err, os.ErrNotExist):
		return "this kernel does not have it: docs/kernels.md says from which version on"
	}
	return "docs/kernels.md says what each kernel allows"
}

// netlink reads the sockets once.
func (d *doctor) netlink() {
	var lines []string
	src, err := sockdiag.New(sockdiag.Config{Proc: d.settings.proc, Notify: func(line string) { lines = append(lines, line) }})
	if err != nil {
		d.say(bad, "sock_diag", err.Error())
		return
	}
	begin := time.Now()
	n, namespaces := 0, map[uint32]bool{}
	err = src.Each(func(o *flowcache.Observation) {
		n++
		namespaces[o.Key.NetNS] = true
	})
	_, noProc := os.Stat(d.settings.proc + "/self/ns/net")
	if err != nil && noProc != nil {
		d.say(bad, "sock_diag", err.Error(), "mount proc, or name its place with --proc")
	} else if err != nil {
		d.say(bad, "sock_diag", err.Error(), "load the modules tcp_diag and udp_diag: modprobe tcp_diag udp_diag")
	} else {
		d.say(good, "sock_diag", fmt.Sprintf("%d sockets in %d network namespaces, %.0f ms", n, len(namespaces), time.Since(begin).Seconds()*1000))
	}
	for _, l := range lines {
		d.say(reduced, "namespaces", l, "run as root, or with CAP_SYS_ADMIN and CAP_SYS_PTRACE")
	}
	tracking := enrich.NewConntrack(func() map[uint32]string { return sockdiag.Namespaces(d.settings.proc) })
	defer tracking.Close()
	tracking.Translate(flowcache.Key{Src: flowcache.AddrFrom4([4]byte{192, 0, 2, 1}), Dst: flowcache.AddrFrom4([4]byte{192, 0, 2, 2}), SrcPort: 7, DstPort: 7, Proto: flowcache.ProtoUDP, NetNS: ownNamespace(d.settings.proc)}, flowcache.Now())
	switch st := tracking.Stats(); {
	case st.Errors > 0:
		d.say(reduced, "conntrack", "not answered: published ports and service addresses are joined by eBPF only", "CAP_NET_ADMIN in each namespace; modprobe nf_conntrack_netlink")
	case st.Lookups == 0:
		d.say(note, "conntrack", "not in use in this namespace")
	default:
		d.say(good, "conntrack", "answers")
	}
}

func ownNamespace(proc string) uint32 {
	var st syscall.Stat_t
	if syscall.Stat(proc+"/self/ns/net", &st) != nil {
		return 0
	}
	return uint32(st.Ino)
}

// selfTest makes a connection and looks for it, with its process, as run would see it.
func (d *doctor) selfTest() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		d.say(bad, "loopback", err.Error(), "ip link set lo up")
		return
	}
	defer l.Close()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	var src source
	by := "netlink"
	if d.settings.source != "netlink" {
		if b, err := bpf.New(bpf.Config{SnapshotInterval: time.Hour, Proc: d.settings.proc, Without: d.settings.withoutHooks}); err == nil {
			defer b.Close()
			src, by = b, "eBPF"
		}
	}
	if src == nil {
		n, err := sockdiag.New(sockdiag.Config{Proc: d.settings.proc, Interval: 100 * time.Millisecond})
		if err != nil {
			d.say(bad, "connection", err.Error())
			return
		}
		src = n
	}
	owners := enrich.NewOwners(d.settings.proc)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	out := make(chan *flowcache.Batch, 16)
	go func() { // ends with ctx
		src.Run(ctx, out)
		close(out)
	}()
	begin := time.Now()
	connection := func() {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return
		}
		defer c.Close()
		if a, err := l.Accept(); err == nil {
			c.Write([]byte("sockflow"))
			time.Sleep(250 * time.Millisecond) // a snapshot must find it
			a.Close()
		}
	}
	go connection() // ends by itself
	seen, owned := false, false
	for b := range out {
		for i := range b.Observations {
			o := &b.Observations[i]
			if o.Key.Proto != flowcache.ProtoTCP || o.Key.DstPort != port {
				continue
			}
			seen = true
			pid := o.Process.PID
			if pid == 0 && o.Inode != 0 {
				pid = owners.Lookup(o.Inode).PID
			}
			owned = owned || pid == uint32(os.Getpid()) || pid != 0 && d.settings.proc != "/proc"
		}
		if owned {
			cancel()
		}
	}
	switch took := time.Since(begin).Round(time.Millisecond); {
	case owned:
		d.say(good, "connection", fmt.Sprintf("of this process on the loopback: seen by %s, with its process, after %s", by, took))
	case seen:
		d.say(bad, "connection", "on the loopback: seen by "+by+", but not whose it was", "see PID namespace, the hooks send_length and recv_length, and CAP_SYS_PTRACE, above")
	default:
		d.say(bad, "connection", "on the loopback: not seen by "+by, "see the lines above")
	}
}
