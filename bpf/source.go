package bpf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/sockflow/sockflow/flowcache"
)

// Config configures a Source. Its zero value is the documented default.
type Config struct {
	SnapshotInterval time.Duration // between passes over all sockets; default 5 s
	Proc             string        // default /proc
	Batches          flowcache.Batches
	Without          []string // names of hooks that are not to be attached
}

// Stats counts events and losses; the status line has all of it.
type Stats struct {
	Events         uint64 // read from the ring buffer
	Malformed      uint64
	LostSocket     uint64 // ring buffer full: a connection's end or a datagram socket's event
	LostProcess    uint64 // ring buffer full: a step of a process
	LostDatagrams  uint64 // datagrams not counted: map full
	LostStorage    uint64 // sockets without storage: no owner
	LostRecursion  uint64 // calls of tracing programs that the kernel skipped, for the program ran on that CPU already
	UnseenEnds     uint64 // connections that an audit found gone, and whose end no program saw: no counters
	Abandoned      uint64 // connects for which there was no way: no record
	Refused        uint64 // datagrams counted as sent that were refused, the count of which could not be taken back
	LostSubflows   uint64 // ends of MPTCP subflows that were not seen, before the program that sees them was attached: no record
	Shared         uint64 // sockets that another process than the owner has used too
	Snapshots      uint64
	SnapshotErrors uint64
}

// Source is the eBPF source.
type Source struct {
	cfg       Config
	maps      *ebpf.Collection
	links     []link.Link
	programs  map[string]*ebpf.Program
	hooks     []Hook
	late      atomic.Pointer[Hook] // the hook that is attached when there is use for it, since then
	firstLink link.Link            // of the hook that goes after the first pass; nil after that
	walker    *link.Iter           // nil without iter/task_file
	reader    *ringbuf.Reader
	record    ringbuf.Record // the last that was read
	grams     *datagrams
	clk       clock
	began     uint64 // when the programs began to watch, CLOCK_MONOTONIC, ns
	pass      uint32 // over all sockets
	out       chan<- *flowcache.Batch
	batch     *flowcache.Batch

	audits chan *audit

	events, malformed, snapshots, snapshotErrors, unseen, freed atomic.Uint64
}

// ErrUnsupported is wrapped by the error of New where the kernel or the privileges do not allow the eBPF source at all.
var ErrUnsupported = errors.New("eBPF source not available")

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

// Hooks returns what is attached and what is not. Safe for concurrent use.
func (s *Source) Hooks() []Hook {
	hooks := slices.Clone(s.hooks)
	if late := s.late.Load(); late != nil {
		hooks[slices.IndexFunc(hooks, func(h Hook) bool { return h.late })] = *late
	}
	return hooks
}

// Missing is the function Missing of this source's hooks.
func (s *Source) Missing() (missing, instead []Hook) { return Missing(s.Hooks()) }

// CanWalk reports whether the source sees sockets that existed before it, and counts of live ones. Otherwise another
// source must take snapshots.
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
		o.Process = flowcache.ProcessID{PID: slot.State.Tgid, Exec: slot.State.Exec, Start: ticks(slot.State.TaskStart)}
		o.UID, o.GID = slot.State.Uid, slot.State.Gid
	}
}

// Causes of losses, in the order of enum loss.
var causes = [...]string{"ring_socket", "ring_process", "datagram_map", "storage", "abandoned_connect", "refused_datagram", "mptcp_subflow"}

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
		LostRecursion: s.recursion(nil),
		LostSocket:    sum(0), LostProcess: sum(1), LostDatagrams: sum(2), LostStorage: sum(3), Abandoned: sum(4), Refused: sum(5), LostSubflows: sum(6), UnseenEnds: s.unseen.Load(), Shared: sum(len(causes)),
	}
}

// Lost returns what the kernel side had to drop, by cause and CPU; recursion, which the kernel counts for a program, has one count. Safe
// for concurrent use.
func (s *Source) Lost() map[string][]uint64 {
	lost := map[string][]uint64{"unseen_end": {s.unseen.Load()}}
	s.recursion(func(program string, n uint64) { lost["recursion_"+program] = []uint64{n} })
	for i, cause := range causes {
		lost[cause] = s.perCPU(i)
	}
	return lost
}

// RecursionMisses returns, for each tracing program, the calls that the kernel skipped because the program ran on that CPU already
// (recursion_misses of struct bpf_prog_info). They are losses, but for those of twins.
func (s *Source) RecursionMisses() map[string]uint64 {
	misses := map[string]uint64{}
	for name, p := range s.programs {
		if p.Type() != ebpf.Tracing {
			continue // no other kind is ever skipped
		}
		if st, err := p.Stats(); err == nil {
			misses[name] = st.RecursionMisses
		}
	}
	return misses
}

// recursion sums up the calls that no program saw, and hands over each program's. A call that interrupts one of two twins finds the other
// free, for they run one after the other: none is missed by both.
func (s *Source) recursion(each func(program string, n uint64)) (sum uint64) {
	misses := s.RecursionMisses()
	for i, h := range s.hooks {
		n, tracing := misses[h.Name]
		if !tracing || h.twin || i+1 < len(s.hooks) && s.hooks[i+1].twin && s.hooks[i+1].Err == nil {
			continue
		}
		sum += n
		if each != nil {
			each(h.Name, n)
		}
	}
	return sum
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
	s.detachFirst()
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
	maxEvents     = 4096    // between looks at the clock
	allEvents     = 1 << 17 // more than the ring buffer holds
	// A released socket's flows end with the next drain, and a map fills up; this bounds how often.
	soonInterval = 100 * time.Millisecond
)

// Run observes until ctx ends, then takes a last pass over all sockets and returns. Batches go to out.
func (s *Source) Run(ctx context.Context, out chan<- *flowcache.Batch) error {
	s.out, s.batch = out, s.cfg.Batches.Get()
	s.snapshot()
	unblock := context.AfterFunc(ctx, func() { s.reader.Flush() })
	defer unblock()
	var lastDrain time.Time
	lastSnapshot := time.Now()
	behind := false // the last round left events
	for {
		now := time.Now()
		wait, most := min(drainInterval, s.cfg.SnapshotInterval-now.Sub(lastSnapshot)), maxEvents
		if s.grams.soon() {
			wait = min(wait, soonInterval)
		}
		stop := ctx.Err() != nil
		if stop {
			most = allEvents
		}
		if stop || behind {
			wait = 0
		}
		var err error
		if behind, err = s.read(wait, most); err != nil {
			return err
		}
		now = time.Now()
		if stop || now.Sub(lastDrain) >= drainInterval || s.grams.soon() && now.Sub(lastDrain) >= soonInterval {
			lastDrain = now
			if err := s.grams.drain(s.clk, now, stop, s.add); err != nil {
				return err
			}
		}
		if stop || now.Sub(lastSnapshot) >= s.cfg.SnapshotInterval {
			lastSnapshot = now
			s.snapshot()
		}
		s.send()
		if stop {
			return nil
		}
		select {
		case a := <-s.audits:
			if err := s.reap(a); err != nil {
				return err
			}
		default:
		}
	}
}

// read handles the events that come within wait and in the batchInterval after the first, at most most. It reports whether it left any.
func (s *Source) read(wait time.Duration, most int) (more bool, err error) {
	now := time.Now()
	s.reader.SetDeadline(now.Add(wait))
	for n := range most {
		err := s.reader.ReadInto(&s.record)
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, ringbuf.ErrFlushed) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("read ring buffer: %w", err)
		}
		s.event(s.record.RawSample)
		if n == 0 && wait > 0 {
			time.Sleep(batchInterval)
			s.reader.SetDeadline(now) // what is there, and no more waiting
		}
	}
	return true, nil
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
	case kindDatagram, kindRelease, kindBound:
		var e datagramEvent
		if e.decode(b) != nil {
			s.malformed.Add(1)
			return
		}
		by := owner{flowcache.ProcessID{PID: e.tgid, Exec: e.exec, Start: ticks(e.taskStart)}, e.uid, e.gid, e.cgroup, e.netns, e.flags&flagKernel != 0}
		switch kindOf(b) {
		case kindRelease:
			s.grams.release(e.cookie, s.clk.time(e.time), by)
		case kindBound:
			s.grams.bound(e.cookie, by)
		default:
			s.grams.own(e.cookie, by)
		}
	case kindMPTCP:
		s.attachLate()
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

// attachLate attaches the program for MPTCP, which only hosts that use it pay for. It is loaded, which is what takes privileges.
func (s *Source) attachLate() {
	if s.late.Load() != nil {
		return
	}
	i := slices.IndexFunc(s.hooks, func(h Hook) bool { return h.late })
	if i < 0 {
		return
	}
	h := s.hooks[i]
	if h.Spare && h.Err == nil && s.programs[h.Name] != nil {
		l, err := link.AttachTracing(link.TracingOptions{Program: s.programs[h.Name]})
		if err == nil {
			s.links = append(s.links, l)
		}
		h.Spare, h.Err = false, err
	}
	s.late.Store(&h)
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

// snapshot walks all sockets; the first time twice, for listeners come first then, so that the roles of the others are known.
func (s *Source) snapshot() {
	if s.walker == nil {
		return
	}
	s.snapshots.Add(1)
	listeners := func(o *flowcache.Observation) {
		if o.Key.Proto == flowcache.ProtoTCP && o.TCP.State == flowcache.TCPListen {
			o.Event = flowcache.EventListen
			s.add(o)
		}
	}
	var err error
	if s.pass == 0 {
		err = s.Walk(listeners)
	}
	if err == nil {
		err = s.Walk(func(o *flowcache.Observation) {
			switch {
			case o.Key.Proto != flowcache.ProtoTCP:
				s.grams.own(o.Cookie, owner{o.Process, o.UID, o.GID, o.CGroup, o.Key.NetNS, o.Kernel})
			case o.TCP.State == flowcache.TCPListen:
				listeners(o)
			default:
				s.add(o)
			}
		})
	}
	if err != nil {
		s.snapshotErrors.Add(1)
		return // not a whole pass: nothing may be concluded from it
	}
	s.detachFirst() // from now on a socket that is not known was accepted since
	s.grams.passed()
	s.batch.SnapshotDone = true
	s.send()
}

func (s *Source) detachFirst() {
	if s.firstLink != nil {
		s.firstLink.Close()
		s.firstLink = nil
	}
}

// control gives the programs the time when they began to watch and the number of the pass that begins, 0 before the first.
func (s *Source) control(pass uint32) error {
	s.pass = pass
	if err := s.maps.Maps["controls"].Put(uint32(0), programControl{Began: s.began, Pass: pass}); err != nil {
		return fmt.Errorf("write the control map: %w", err)
	}
	return nil
}

// Walk reads every socket that a process holds, in all network namespaces, in one pass. A socket that several hold comes several times. Of a
// connection that has ended while a process holds its socket it reads the end, once.
func (s *Source) Walk(emit func(*flowcache.Observation)) error {
	if err := s.control(s.pass + 1); err != nil {
		return err
	}
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
			live := rec.state != flowcache.TCPClose || rec.proto != flowcache.ProtoTCP
			if live {
				rec.time = now
			}
			rec.observe(&o, s.clk, live)
			if rec.proto != flowcache.ProtoTCP {
				// Whoever holds a datagram socket owns it: it has no listener to inherit from.
				o.Process = flowcache.ProcessID{PID: rec.tgid, Exec: rec.exec, Start: ticks(rec.taskStart)}
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
