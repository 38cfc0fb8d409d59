package bpf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"

	"github.com/sockflow/sockflow/flowcache"
)

// Config configures a Source. Its zero value is the documented default.
type Config struct {
	SnapshotInterval time.Duration // between passes over all sockets; default 5 s
	Proc             string        // default /proc
	Batches          flowcache.Batches
	Without          []string // names of hooks that are not to be attached
}

var errDisabled = errors.New("switched off")

// HookNames returns the names of all hooks.
func HookNames() []string {
	var names []string
	for _, h := range hookUses {
		names = append(names, h.Name)
	}
	return names
}

// Hook is one attachment and what it is for.
type Hook struct {
	Name   string // program
	Target string // what it is attached to
	Use    string // what is lost without it
	Err    error  // why it is not attached; nil if it is
	Spare  bool   // not needed: a better hook is attached

	insteadOf string // tried only if that one could not be attached
}

// Stats counts events and losses.
type Stats struct {
	Events         uint64 // read from the ring buffer
	Malformed      uint64
	LostSocket     uint64 // ring buffer full: a connection's end or a datagram socket's event
	LostProcess    uint64 // ring buffer full: a step of a process
	LostDatagrams  uint64 // datagrams not counted: map full
	LostStorage    uint64 // sockets without storage: no owner
	Shared         uint64 // sockets that another process than the owner has used too
	Snapshots      uint64
	SnapshotErrors uint64
}

// Source is the eBPF source.
type Source struct {
	cfg      Config
	maps     *ebpf.Collection
	links    []link.Link
	programs map[string]*ebpf.Program
	hooks    []Hook
	walker   *link.Iter // nil without iter/task_file
	reader   *ringbuf.Reader
	grams    *datagrams
	clk      clock
	out      chan<- *flowcache.Batch
	batch    *flowcache.Batch

	events, malformed, snapshots, snapshotErrors atomic.Uint64
}

// ErrUnsupported is wrapped by the error of New where the kernel or the privileges do not allow the eBPF source at all.
var ErrUnsupported = errors.New("eBPF source not available")

var hookUses = []Hook{
	{Name: "set_state", Target: "tp_btf/inet_sock_set_state", Use: "TCP connections"},
	{Name: "send_length", Target: "tp_btf/sock_send_length", Use: "the owner of accepted and passed sockets"},
	{Name: "recv_length", Target: "tp_btf/sock_recv_length", Use: "the owner of accepted and passed sockets"},
	{Name: "send_prepare", Target: "fentry/inet_send_prepare", Use: "the owner of accepted and passed sockets", insteadOf: "send_length"},
	{Name: "receive4", Target: "fentry/inet_recvmsg", Use: "the owner of accepted and passed sockets", insteadOf: "recv_length"},
	{Name: "receive6", Target: "fentry/inet6_recvmsg", Use: "the owner of accepted and passed sockets", insteadOf: "recv_length"},
	{Name: "accept_return", Target: "kretprobe/inet_csk_accept", Use: "the owner of accepted sockets", insteadOf: "receive4"},
	{Name: "count_out", Target: "cgroup_skb/egress", Use: "datagrams sent"},
	{Name: "count_in", Target: "cgroup_skb/ingress", Use: "datagrams received"},
	{Name: "release", Target: "cgroup/sock_release", Use: "the end of datagram flows (they end by idle timeout)"},
	{Name: "process_exec", Target: "tp_btf/sched_process_exec", Use: "names of short-lived processes"},
	{Name: "process_fork", Target: "tp_btf/sched_process_fork", Use: "names of short-lived processes"},
	{Name: "process_exit", Target: "tp_btf/sched_process_exit", Use: "timely forgetting of processes"},
	{Name: "process_move", Target: "tp_btf/cgroup_attach_task", Use: "the control groups of processes that are moved"},
	{Name: "walk", Target: "iter/task_file", Use: "passes over all sockets"},
}

// New loads the programs and attaches what the kernel allows, hook by hook. Without the TCP life-cycle there is no source: the
// error wraps ErrUnsupported. What else could not be attached is in Hooks. Needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (or
// CAP_SYS_ADMIN).
func New(cfg Config) (*Source, error) {
	s, err := load(cfg, false)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Probe tries every hook as New does and lets go of it. The hooks that were tried are returned also with an error, which is New's.
func Probe(cfg Config) ([]Hook, error) {
	s, err := load(cfg, true)
	if s == nil {
		return nil, err
	}
	hooks := s.hooks
	if err == nil {
		err = s.Close()
	}
	return hooks, err
}

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
	s := &Source{cfg: cfg, clk: newClock()}
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
		m.Contents = nil // they have it: to be put into a map of maps once more with every program means to wait for all processors each time
	}
	s.attachAll(spec, all)
	if err := s.hooks[0].Err; err != nil {
		s.Close()
		return s, fmt.Errorf("%w: %s: %w", ErrUnsupported, s.hooks[0].Target, err)
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
	l := loader{spec: spec, maps: s.maps.Maps, kernel: btf.NewCache()}
	l.cgroup, l.cgroupErr = cgroup2Root(s.cfg.Proc)
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
		if h := &s.hooks[1+i]; h.insteadOf == "" {
			first = append(first, h)
		}
	}
	try(first)
	for i := range s.hooks {
		switch h := &s.hooks[i]; {
		case h.insteadOf == "":
		case missing[h.insteadOf]:
			try([]*Hook{h})
		default:
			h.Spare = true
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

// Hooks returns what is attached and what is not.
func (s *Source) Hooks() []Hook { return s.hooks }

// Missing is the function Missing of this source's hooks.
func (s *Source) Missing() (missing, instead []Hook) { return Missing(s.hooks) }

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

// CanWalk reports whether the source sees sockets that existed before it, and counts of live ones. Without it somebody
// else must take snapshots.
func (s *Source) CanWalk() bool { return s.walker != nil }

// Known completes o, a connection that nobody has walked to, as those that a process holds in an io_uring only: with its owner and role, if
// its birth was seen. Safe for concurrent use.
func (s *Source) Known(o *flowcache.Observation) {
	spec := s.maps.Maps["slots"]
	var slot programSlot
	if spec.Lookup(uint32(o.Cookie)&(spec.MaxEntries()-1), &slot) != nil || slot.Cookie != o.Cookie {
		return
	}
	o.Role, o.First = flowcache.Role(slot.State.Role), s.clk.time(slot.State.Start)
	o.Kernel = slot.State.Flags&flagKernel != 0
	if slot.State.Tgid != 0 {
		o.Process = flowcache.ProcessID{PID: slot.State.Tgid, Start: ticks(slot.State.TaskStart)}
		o.UID, o.GID = slot.State.Uid, slot.State.Gid
	}
}

// Causes of losses, in the order of enum loss.
var causes = [...]string{"ring_socket", "ring_process", "datagram_map", "storage"}

// Stats returns the counts so far. Safe for concurrent use.
func (s *Source) Stats() Stats {
	sum := func(index int) (n uint64) {
		for _, v := range s.perCPU(index) {
			n += v
		}
		return n
	}
	return Stats{
		Events: s.events.Load(), Malformed: s.malformed.Load(),
		Snapshots: s.snapshots.Load(), SnapshotErrors: s.snapshotErrors.Load(),
		LostSocket: sum(0), LostProcess: sum(1), LostDatagrams: sum(2), LostStorage: sum(3), Shared: sum(len(causes)),
	}
}

// Lost returns what the kernel side had to drop, by cause and CPU. Safe for concurrent use.
func (s *Source) Lost() map[string][]uint64 {
	lost := map[string][]uint64{}
	for i, cause := range causes {
		lost[cause] = s.perCPU(i)
	}
	return lost
}

func (s *Source) perCPU(index int) []uint64 {
	var n []uint64
	if s.maps.Maps["losses"].Lookup(uint32(index), &n) != nil {
		return nil
	}
	return n
}

// RunTime is what a program has run.
type RunTime struct {
	Count uint64
	Time  time.Duration
}

// RunTime returns the run time of each program, by name. The kernel counts only with sysctl kernel.bpf_stats_enabled=1.
func (s *Source) RunTime() map[string]RunTime {
	all := map[string]RunTime{}
	for name, p := range s.programs {
		if st, err := p.Stats(); err == nil {
			all[name] = RunTime{st.RunCount, st.Runtime}
		}
	}
	return all
}

// Close detaches everything. Run must have returned.
func (s *Source) Close() error {
	for _, l := range s.links {
		l.Close()
	}
	if s.reader != nil {
		s.reader.Close()
	}
	for _, p := range s.programs {
		p.Close()
	}
	s.maps.Close()
	s.links, s.programs, s.walker, s.reader = nil, nil, nil, nil
	return nil
}

const (
	// Events come to a reader that waits at once, and then in batches: a reader that has not caught up is not woken again.
	batchInterval = 40 * time.Millisecond
	drainInterval = time.Second
	maxEvents     = 4096 // between looks at the clock
	// A released socket's flows end with the next drain; this bounds how often.
	releaseInterval = 100 * time.Millisecond
)

// Run observes until ctx ends, then takes a last pass over all sockets and returns. Batches go to out.
func (s *Source) Run(ctx context.Context, out chan<- *flowcache.Batch) error {
	s.out, s.batch = out, s.cfg.Batches.Get()
	s.snapshot(true)
	unblock := context.AfterFunc(ctx, func() { s.reader.Flush() })
	defer unblock()
	var rec ringbuf.Record
	var lastDrain time.Time
	lastSnapshot := time.Now()
	for {
		now := time.Now()
		wait := min(drainInterval, s.cfg.SnapshotInterval-now.Sub(lastSnapshot))
		if len(s.grams.closed) > 0 {
			wait = min(wait, releaseInterval)
		}
		s.reader.SetDeadline(now.Add(wait))
		for n := range maxEvents {
			err := s.reader.ReadInto(&rec)
			if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, ringbuf.ErrFlushed) {
				break
			}
			if err != nil {
				return fmt.Errorf("read ring buffer: %w", err)
			}
			s.event(rec.RawSample)
			if n == 0 {
				time.Sleep(batchInterval)
				s.reader.SetDeadline(now) // what is there, and no more waiting
			}
		}
		now = time.Now()
		stop := ctx.Err() != nil
		if stop || now.Sub(lastDrain) >= drainInterval || len(s.grams.closed) > 0 && now.Sub(lastDrain) >= releaseInterval {
			lastDrain = now
			if err := s.grams.drain(s.clk, now, stop, s.add); err != nil {
				return err
			}
		}
		if stop || now.Sub(lastSnapshot) >= s.cfg.SnapshotInterval {
			lastSnapshot = now
			s.snapshot(false)
		}
		s.send()
		if stop {
			return nil
		}
	}
}

// event handles one record of the ring buffer.
func (s *Source) event(b []byte) {
	s.events.Add(1)
	switch kindOf(b) {
	case kindSocket:
		var r socketRecord
		if r.decode(b) != nil {
			s.malformed.Add(1)
			return
		}
		var o flowcache.Observation
		r.observe(&o, s.clk, false)
		s.add(&o)
	case kindDatagram, kindRelease:
		var e datagramEvent
		if e.decode(b) != nil {
			s.malformed.Add(1)
			return
		}
		by := owner{flowcache.ProcessID{PID: e.tgid, Start: ticks(e.taskStart)}, e.uid, e.gid, e.cgroup, e.netns, e.flags&flagKernel != 0}
		if kindOf(b) == kindRelease {
			s.grams.release(e.cookie, s.clk.time(e.time), by)
		} else {
			s.grams.own(e.cookie, by)
		}
	default:
		ev, err := decodeProcess(b, s.clk)
		if err != nil {
			s.malformed.Add(1)
			return
		}
		if len(s.batch.Observations) > 0 && (ev.Kind == flowcache.ProcessExec || ev.Kind == flowcache.ProcessMove) {
			s.send() // what came before belongs to the program that ran before
		}
		s.batch.Processes = append(s.batch.Processes, ev)
		if len(s.batch.Processes) >= flowcache.BatchLen {
			s.send()
		}
	}
}

// add puts an observation into the batch.
func (s *Source) add(o *flowcache.Observation) {
	s.batch.Observations = append(s.batch.Observations, *o)
	if len(s.batch.Observations) >= flowcache.BatchLen {
		s.send()
	}
}

// send hands the batch over. The cache loop always takes it: it ends after the sources.
func (s *Source) send() {
	if len(s.batch.Observations) == 0 && len(s.batch.Processes) == 0 && !s.batch.SnapshotDone {
		return
	}
	s.out <- s.batch
	s.batch = s.cfg.Batches.Get()
}

// snapshot walks all sockets. In the first pass listeners come first, so that the roles of the others are known.
func (s *Source) snapshot(first bool) {
	if s.walker == nil {
		return
	}
	s.snapshots.Add(1)
	var later []flowcache.Observation
	err := s.Walk(func(o *flowcache.Observation) {
		switch {
		case o.Key.Proto != flowcache.ProtoTCP:
			s.grams.own(o.Cookie, owner{o.Process, o.UID, o.GID, o.CGroup, o.Key.NetNS, o.Kernel})
		case o.TCP.State == flowcache.TCPListen:
			o.Event = flowcache.EventListen
			s.add(o)
		case first:
			later = append(later, *o)
		default:
			s.add(o)
		}
	})
	if err != nil {
		s.snapshotErrors.Add(1)
		return // not a whole pass: nothing may be concluded from it
	}
	for i := range later {
		s.add(&later[i])
	}
	s.batch.SnapshotDone = true
	s.send()
}

// Walk reads every socket that a process holds, in all network namespaces, in one pass. A socket that several hold comes several times.
func (s *Source) Walk(emit func(*flowcache.Observation)) error {
	r, err := s.walker.Open()
	if err != nil {
		return fmt.Errorf("open iterator: %w", err)
	}
	defer r.Close()
	buf := make([]byte, 32<<10) // what a read returns at most
	var rec socketRecord
	var o flowcache.Observation
	kept := 0
	for {
		n, err := r.Read(buf[kept:])
		n += kept
		now := uint64(flowcache.Now() - int64(s.clk))
		i := 0
		for ; i+socketLen <= n; i += socketLen {
			if err := rec.decode(buf[i:]); err != nil {
				return err
			}
			rec.time = now
			rec.observe(&o, s.clk, true)
			if rec.proto != flowcache.ProtoTCP {
				// Whoever holds a datagram socket owns it: it has no listener to inherit from.
				o.Process = flowcache.ProcessID{PID: rec.tgid, Start: ticks(rec.taskStart)}
				o.UID, o.GID = rec.uid, rec.gid
			}
			emit(&o)
		}
		kept = copy(buf, buf[i:n])
		if errors.Is(err, io.EOF) || err == nil && n == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read iterator: %w", err)
		}
	}
}

// cgroup2Root finds where the cgroup2 hierarchy is mounted.
func cgroup2Root(proc string) (string, error) {
	b, err := os.ReadFile(proc + "/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find the cgroup2 mount: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		before, after, ok := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if ok && strings.HasPrefix(after, "cgroup2 ") && len(f) > 4 && f[3] == "/" {
			return f[4], nil
		}
	}
	return "", errors.New("no cgroup2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}
