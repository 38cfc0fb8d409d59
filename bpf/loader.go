package bpf

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"

	"github.com/sockflow/sockflow/flowcache"
)

// Hook is one attachment and what it is for.
type Hook struct {
	Name   string // program
	Target string // what it is attached to
	Use    string // what is lost without it
	Err    error  // why it is not attached; nil if it is
	Spare  bool   // not needed: a better hook is attached, or there is nothing for it to see

	insteadOf string // tried only if that one could not be attached
	first     bool   // attached until every socket that was there before has been seen, and then only if it is needed instead of another
	twin      bool   // the hook before has the same target: what the kernel skips for one, the other sees
	late      bool   // loaded at the start, and attached when there is something for it to see
}

var hookUses = []Hook{
	{Name: "destroyed", Target: "tp_btf/tcp_destroy_sock", Use: "TCP connections"},
	{Name: "destroyed2", Target: "tp_btf/tcp_destroy_sock (again)", Use: "TCP connections that end while another's end is handled on the same CPU", twin: true},
	{Name: "connect4", Target: "cgroup/connect4", Use: "who began TCP connections, and when"},
	{Name: "connect6", Target: "cgroup/connect6", Use: "who began TCP connections, and when"},
	{Name: "set_state", Target: "tp_btf/inet_sock_set_state", Use: "who began TCP connections, and when", insteadOf: "connect4", first: true},
	{Name: "subflow_state", Target: "tp_btf/inet_sock_set_state (MPTCP)", Use: "MPTCP connections", late: true},
	{Name: "send_reset", Target: "tp_btf/tcp_send_reset", Use: "the counters of TCP connections that are aborted"},
	{Name: "error_report", Target: "tp_btf/inet_sk_error_report", Use: "timely ends of TCP connections that fail"},
	{Name: "bind4", Target: "cgroup/post_bind4", Use: "the owner of connections that no process accepts"},
	{Name: "bind6", Target: "cgroup/post_bind6", Use: "the owner of connections that no process accepts"},
	{Name: "send_length", Target: "tp_btf/sock_send_length", Use: "the owner of accepted and passed sockets"},
	{Name: "recv_length", Target: "tp_btf/sock_recv_length", Use: "the owner of accepted and passed sockets"},
	{Name: "send4", Target: "fexit/inet_sendmsg", Use: "the owner of accepted and passed sockets", insteadOf: "send_length"},
	{Name: "send6", Target: "fexit/inet6_sendmsg", Use: "the owner of accepted and passed sockets", insteadOf: "send_length"},
	{Name: "receive4", Target: "fexit/inet_recvmsg", Use: "the owner of accepted and passed sockets", insteadOf: "recv_length"},
	{Name: "receive6", Target: "fexit/inet6_recvmsg", Use: "the owner of accepted and passed sockets", insteadOf: "recv_length"},
	{Name: "accept_return", Target: "kretprobe/inet_csk_accept", Use: "the owner of accepted sockets", insteadOf: "receive4"},
	{Name: "count_out", Target: "cgroup_skb/egress", Use: "datagrams sent"},
	{Name: "count_in", Target: "cgroup_skb/ingress", Use: "datagrams received"},
	{Name: "release", Target: "cgroup/sock_release", Use: "the end of datagram flows (they end by idle timeout), and who closes a connection"},
	{Name: "process_exec", Target: "tp_btf/sched_process_exec", Use: "names of short-lived processes"},
	{Name: "process_fork", Target: "tp_btf/sched_process_fork", Use: "names of short-lived processes"},
	{Name: "process_exit", Target: "tp_btf/sched_process_exit", Use: "timely forgetting of processes"},
	{Name: "process_move", Target: "tp_btf/cgroup_attach_task", Use: "the control groups of processes that are moved"},
	{Name: "walk", Target: "iter/task_file", Use: "passes over all sockets"},
}

// HookNames returns the names of all hooks.
func HookNames() []string {
	var names []string
	for _, h := range hookUses {
		names = append(names, h.Name)
	}
	return names
}

// Missing returns the hooks of first choice that could not be attached, and that no other is attached instead of; and those others
// that are.
func Missing(hooks []Hook) (missing, instead []Hook) {
	var covered func(name string) bool
	covered = func(name string) bool {
		for _, h := range hooks {
			if h.insteadOf == name && !h.Spare && (h.Err == nil || covered(h.Name)) {
				return true
			}
		}
		return false
	}
	for _, h := range hooks {
		switch {
		case h.insteadOf == "" && h.Err != nil && !covered(h.Name):
			missing = append(missing, h)
		case h.insteadOf != "" && h.Err == nil && !h.Spare:
			instead = append(instead, h)
		}
	}
	return missing, instead
}

var errDisabled = errors.New("switched off")

// load is New, but returns what it tried with the error; that Source is closed. With all it goes on trying hooks though the first, without
// which there is no source, is refused: each refusal takes the kernel's verifier and, on an old kernel, seconds.
func load(cfg Config, all bool) (*Source, error) {
	if cfg.SnapshotInterval == 0 {
		cfg.SnapshotInterval = 5 * time.Second
	}
	if cfg.SnapshotInterval < 0 {
		return nil, errors.New("the snapshot interval must be positive")
	}
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return nil, fmt.Errorf("%w: the kernel has no BTF (/sys/kernel/btf/vmlinux; CONFIG_DEBUG_INFO_BTF)", ErrUnsupported)
	}
	spec, err := loadProgram()
	if err != nil {
		return nil, fmt.Errorf("read eBPF object: %w", err)
	}
	s := &Source{cfg: cfg, clk: newClock(), audits: make(chan *audit, 1)}
	rlimit.RemoveMemlock() // kernels before 5.11 charge maps to it; later ones do not care, and where it fails New says so
	only := spec.Copy()
	only.Programs = nil
	if s.maps, err = ebpf.NewCollection(only); err != nil {
		if errors.Is(err, os.ErrPermission) || os.Geteuid() != 0 {
			return nil, fmt.Errorf("%w: create maps: %w (needs root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN)", ErrUnsupported, os.ErrPermission)
		}
		return nil, fmt.Errorf("%w: create maps: %w", ErrUnsupported, err)
	}
	for _, m := range spec.Maps {
		m.Contents = nil // they have it: to be put into a map of maps again with every program means to wait for all processors each time
	}
	s.attachAll(spec, all)
	s.began = uint64(flowcache.Now() - int64(s.clk))
	if err := s.hooks[0].Err; err != nil {
		s.Close()
		return s, fmt.Errorf("%w: %s: %w", ErrUnsupported, s.hooks[0].Target, err)
	}
	if err := s.control(0); err != nil {
		s.Close()
		return s, err
	}
	if s.reader, err = ringbuf.NewReader(s.maps.Maps["events"]); err != nil {
		s.Close()
		return s, fmt.Errorf("open ring buffer: %w", err)
	}
	s.grams = newDatagrams(s.maps.Maps["datagrams"], s.maps.Maps["datagrams_a"], s.maps.Maps["datagrams_b"])
	return s, nil
}

// attachAll fills in s.hooks. The hooks of first choice are loaded at the same time, for the kernel takes up to a tenth of a second to verify
// one and waits for its other processors to attach it; what some are tried instead of is known then.
func (s *Source) attachAll(spec *ebpf.CollectionSpec, all bool) {
	s.hooks, s.programs = slices.Clone(hookUses), map[string]*ebpf.Program{}
	l := loader{spec: spec, maps: s.maps.Maps, kernel: btf.NewCache(), probe: all}
	l.cgroup, l.cgroupErr = CGroupRoot(s.cfg.Proc)
	missing := map[string]bool{}
	try := func(hooks []*Hook) {
		got := make([]attached, len(hooks))
		var wg sync.WaitGroup
		for i, h := range hooks {
			if slices.Contains(s.cfg.Without, h.Name) {
				got[i].err = errDisabled
				continue
			}
			wg.Go(func() { got[i] = l.attach(h) })
		}
		wg.Wait()
		for i, a := range got {
			h := hooks[i]
			h.Err, missing[h.Name] = a.err, a.err != nil
			if a.program != nil {
				s.programs[h.Name] = a.program
			}
			if a.err != nil {
				continue
			}
			if a.link == nil {
				h.Spare = true // attachLate will attach it
				continue
			}
			if h.first {
				s.firstLink = a.link
				continue
			}
			s.links = append(s.links, a.link)
			if walker, ok := a.link.(*link.Iter); ok {
				s.walker = walker
			}
		}
	}
	if try([]*Hook{&s.hooks[0]}); s.hooks[0].Err != nil && !all {
		s.hooks = s.hooks[:1]
		return
	}
	var first []*Hook
	for i := range s.hooks[1:] {
		if h := &s.hooks[1+i]; h.insteadOf == "" || h.first {
			first = append(first, h)
		}
	}
	try(first)
	for i := range s.hooks {
		switch h := &s.hooks[i]; {
		case h.insteadOf == "" || h.first:
		case missing[h.insteadOf]:
			try([]*Hook{h})
		default:
			h.Spare = true
		}
	}
	for i := range s.hooks {
		if h := &s.hooks[i]; h.first {
			h.Spare = s.walker != nil && !missing["connect4"] && !missing["connect6"]
			if !h.Spare && s.firstLink != nil { // it stays, and sees the subflows of MPTCP too
				s.links, s.firstLink = append(s.links, s.firstLink), nil
				s.late.Store(&Hook{Name: "subflow_state", Spare: true, late: true})
			}
		}
	}
}

// loader loads and attaches the programs of hooks; safe for concurrent use.
type loader struct {
	spec      *ebpf.CollectionSpec
	maps      map[string]*ebpf.Map
	kernel    *btf.Cache // its types are read once
	cgroup    string     // root of the cgroup2 hierarchy
	cgroupErr error      // why there is none
	probe     bool       // everything is attached at once
}

// attached is what has become of a hook.
type attached struct {
	program *ebpf.Program // nil if it could not be loaded
	link    link.Link     // valid if err is nil
	err     error
}

func (l *loader) attach(h *Hook) (a attached) {
	one := l.spec.Copy()
	name := programOf(h.Name, runtime.GOARCH)
	one.Programs = map[string]*ebpf.ProgramSpec{name: one.Programs[name]}
	c, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{MapReplacements: l.maps, Cache: l.kernel})
	if err != nil {
		return attached{err: oneLine(err)}
	}
	a.program = c.DetachProgram(name)
	c.Close() // its references to the maps
	switch {
	case h.late && !l.probe:
	case strings.HasPrefix(h.Target, "cgroup"):
		if err = l.cgroupErr; err == nil {
			a.link, err = link.AttachCgroup(link.CgroupOptions{Path: l.cgroup, Attach: one.Programs[name].AttachType, Program: a.program})
		}
	case strings.HasPrefix(h.Target, "kretprobe/"):
		a.link, err = link.Kretprobe(strings.TrimPrefix(h.Target, "kretprobe/"), a.program, nil)
	case strings.HasPrefix(h.Target, "iter/"):
		a.link, err = link.AttachIter(link.IterOptions{Program: a.program})
	default:
		a.link, err = link.AttachTracing(link.TracingOptions{Program: a.program})
	}
	a.err = oneLine(err)
	return a
}

// programOf is the program of a hook: where registers are read, each machine has its own.
func programOf(hook, arch string) string {
	if hook == "accept_return" && arch == "arm64" {
		return "accept_return_arm64"
	}
	return hook
}

// oneLine keeps of the verifier's log the line that says why.
func oneLine(err error) error {
	var v *ebpf.VerifierError
	if !errors.As(err, &v) {
		return err
	}
	for _, line := range slices.Backward(v.Log) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "processed ") {
			return fmt.Errorf("the kernel refused the program: %w: %s", v.Cause, line)
		}
	}
	return fmt.Errorf("the kernel refused the program: %w", v.Cause)
}
