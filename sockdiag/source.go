package sockdiag

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

// Config configures a Source. Its zero value is the documented default.
type Config struct {
	Proc     string        // where proc is mounted; default /proc
	Interval time.Duration // between passes; default 5 s
	Batches  flowcache.Batches
	// Audit reads TCP connections only, to check what another source reports, and does not subscribe to socket ends.
	Audit bool
	// Notify, if set, is called once for each thing that cannot be seen. It must not wait.
	Notify func(line string)
}

// Stats counts what the source did.
type Stats struct {
	Passes     uint64
	Sockets    uint64 // read in passes
	Destroyed  uint64 // socket ends that the kernel reported
	Overruns   uint64 // times the kernel reported more socket ends than could be read: some are lost
	Errors     uint64 // dumps that failed
	Namespaces int
}

// Source is the netlink source.
type Source struct {
	cfg      Config
	open     map[uint32]*namespace
	said     map[string]bool
	buf      []byte // of a dump
	watchers sync.WaitGroup

	passes, sockets, destroyed, overruns, errs atomic.Uint64
	count                                      atomic.Int64
}

// New checks cfg. Any user may use sock_diag in the own namespace.
func New(cfg Config) (*Source, error) {
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	if cfg.Interval == 0 {
		cfg.Interval = 5 * time.Second
	}
	if cfg.Interval < 0 {
		return nil, errors.New("the interval must be positive")
	}
	if cfg.Notify == nil {
		cfg.Notify = func(string) {}
	}
	return &Source{cfg: cfg, open: map[uint32]*namespace{}, said: map[string]bool{}, buf: make([]byte, 256<<10)}, nil
}

// Stats returns the counts so far. Safe for concurrent use.
func (s *Source) Stats() Stats {
	return Stats{s.passes.Load(), s.sockets.Load(), s.destroyed.Load(), s.overruns.Load(), s.errs.Load(), int(s.count.Load())}
}

// Run takes a pass each interval until ctx ends, and one more then. Batches go to out.
func (s *Source) Run(ctx context.Context, out chan<- *flowcache.Batch) error {
	defer func() {
		s.Close()
		s.watchers.Wait()
	}()
	tick := time.NewTicker(s.cfg.Interval)
	defer tick.Stop()
	look := time.NewTicker(lookInterval)
	defer look.Stop()
	for last := false; ; {
		if err := s.follow(out); err != nil {
			return err
		}
		s.pass(out)
		if last {
			return nil
		}
		if s.cfg.Audit {
			s.Close() // until the next one
			look.Stop()
		}
		for due := false; !due; {
			select {
			case <-ctx.Done():
				last, due = true, true
			case <-tick.C:
				due = true
			case <-look.C:
				if !s.gone() {
					continue
				}
				if err := s.follow(out); err != nil {
					return err
				}
			}
		}
	}
}

// An open namespace lives on, with the devices in it, when everybody else has left it: it is let go of soon.
const lookInterval = time.Second

// gone reports whether an open namespace is no longer where it was found.
func (s *Source) gone() bool {
	for inode, ns := range s.open {
		var st syscall.Stat_t
		if ns.path != "" && (syscall.Stat(ns.path, &st) != nil || uint32(st.Ino) != inode) {
			return true
		}
	}
	return false
}

// Close lets go of all namespaces.
func (s *Source) Close() {
	for inode, ns := range s.open {
		ns.close()
		delete(s.open, inode)
	}
}

func (s *Source) say(line string) {
	if !s.said[line] {
		s.said[line] = true
		s.cfg.Notify(line)
	}
}

// follow opens new namespaces and closes those that are gone. If out is not nil, and except for an audit, it also
// starts to watch the ends of their sockets.
func (s *Source) follow(out chan<- *flowcache.Batch) error {
	found, hidden := namespaces(s.cfg.Proc)
	if hidden && !isRoot(s.cfg.Proc) {
		s.say("without privileges only sockets of this network namespace and processes of this user are seen")
	}
	var self syscall.Stat_t
	if err := syscall.Stat(s.cfg.Proc+"/self/ns/net", &self); err != nil {
		return fmt.Errorf("find the own network namespace: %s/self/ns/net: %w: proc must be mounted there", s.cfg.Proc, err)
	}
	own := uint32(self.Ino)
	found[own] = ""
	for inode, ns := range s.open {
		if _, still := found[inode]; !still {
			ns.close()
			delete(s.open, inode)
		}
	}
	for inode, path := range found {
		if ns := s.open[inode]; ns != nil {
			ns.path = path
			continue
		}
		ns, err := openNamespace(inode, path)
		if err != nil {
			if inode == own {
				return fmt.Errorf("netlink: %w", err)
			}
			if errors.Is(err, os.ErrPermission) {
				s.say("without CAP_SYS_ADMIN only sockets of this network namespace are seen")
			}
			continue // or it went meanwhile
		}
		s.open[inode] = ns
		if out == nil || s.cfg.Audit {
			continue
		}
		if err := ns.listen(path); err != nil {
			s.say("the ends of connections are not told (needs CAP_NET_ADMIN): what lives shorter than --snapshot-interval is missed")
			continue
		}
		s.watchers.Add(1)
		go s.watch(ns, out) // ends when the namespace is closed
	}
	s.count.Store(int64(len(s.open)))
	return nil
}

var families = [...]uint8{afInet, afInet6}

// pass reads all sockets: of each namespace the listening ones first, so that the roles of the others are known.
func (s *Source) pass(out chan<- *flowcache.Batch) {
	s.passes.Add(1)
	complete := true
	batch := s.cfg.Batches.Get()
	add := func(o *flowcache.Observation) {
		batch.Observations = append(batch.Observations, *o)
		if len(batch.Observations) >= flowcache.BatchLen {
			out <- batch
			batch = s.cfg.Batches.Get()
		}
	}
	began := flowcache.Now()
	firstPass := s.passes.Load() == 1
	for inode, ns := range s.open {
		now := flowcache.Now()
		whole := true
		var sock socket
		var o flowcache.Observation
		check := func(err error) {
			if err != nil {
				complete, whole = false, false
				s.errs.Add(1)
			}
		}
		for _, family := range families {
			check(ns.each(s.buf, family, flowcache.ProtoTCP, statesListen, &sock, func(k *socket) {
				ns.accepts(k.sport, now)
				if s.cfg.Audit {
					return
				}
				k.observe(&o, inode, now)
				o.Event = flowcache.EventListen
				add(&o)
			}))
		}
		for _, family := range families {
			check(ns.each(s.buf, family, flowcache.ProtoTCP, statesLive, &sock, func(k *socket) {
				if !k.hasInfo {
					return // TIME_WAIT, in the state that the socket had: that has ended, and this has another cookie
				}
				s.sockets.Add(1)
				k.observe(&o, inode, now)
				o.Snapshot, o.Audit = true, s.cfg.Audit
				o.Preexisting = firstPass
				t := flowcache.TCPTotals{State: k.state, Accepted: ns.accepted(k.sport)}
				if t.Accepted {
					ns.accepts(k.sport, now)
					o.Role = flowcache.RoleResponder
				}
				k.tcp(&o, &t)
				add(&o)
			}))
		}
		if whole {
			ns.forget(now - int64(max(2*s.cfg.Interval, portMemory)))
		}
		if s.cfg.Audit {
			continue
		}
		for _, proto := range [...]uint8{flowcache.ProtoUDP, flowcache.ProtoUDPLite} {
			for _, family := range families {
				check(ns.each(s.buf, family, proto, statesAny, &sock, func(k *socket) {
					if k.dport == 0 {
						return // talks to anybody; the kernel keeps no counts
					}
					s.sockets.Add(1)
					k.observe(&o, inode, now)
					o.Snapshot, o.Delta, o.Preexisting = true, true, firstPass
					add(&o)
				}))
			}
		}
	}
	batch.SnapshotDone = complete && !s.cfg.Audit
	if complete {
		batch.Swept, batch.Audit = began, s.cfg.Audit
	}
	out <- batch
}

// watch sends the ends of the sockets of a namespace to out.
func (s *Source) watch(ns *namespace, out chan<- *flowcache.Batch) {
	defer s.watchers.Done()
	buf := make([]byte, 64<<10)
	var sock socket
	var o flowcache.Observation
	for {
		n, err := receive(ns.dead, buf)
		if errors.Is(err, syscall.ENOBUFS) {
			s.overruns.Add(1)
			continue
		}
		if err != nil {
			return // closed
		}
		batch := s.cfg.Batches.Get()
		err = walk(buf[:n], &sock, func(k *socket) {
			s.destroyed.Add(1)
			k.observe(&o, ns.inode, flowcache.Now())
			switch k.proto {
			case flowcache.ProtoTCP:
				if k.dport == 0 || !k.hasInfo {
					return // it listened, or never connected
				}
				k.ended(&o, ns.accepted(k.sport))
			default:
				o.Event = flowcache.EventClose
			}
			batch.Observations = append(batch.Observations, o)
		})
		if err != nil {
			s.errs.Add(1)
		}
		out <- batch
	}
}

// ended completes the last observation of a connection. The kernel says CLOSE of all, and so not whether the peer's FIN is
// among the octets received. It is assumed; where this end closed first, and so never got the FIN itself (the
// TIME_WAIT socket did), one octet of payload is then missing, and a packet each way.
func (s *socket) ended(o *flowcache.Observation, accepted bool) {
	o.Event = flowcache.EventEnd
	if accepted {
		o.Role = flowcache.RoleResponder
	}
	t := flowcache.TCPTotals{State: flowcache.TCPLastAck, FINReceived: true, Ended: true, Accepted: accepted}
	s.tcp(o, &t)
}

// Each calls f for every socket of every namespace that may be seen, once: TCP and UDP, listening and unconnected ones too.
func (s *Source) Each(f func(o *flowcache.Observation)) error {
	if err := s.follow(nil); err != nil {
		return err
	}
	defer s.Close()
	var errs error
	for inode, ns := range s.open {
		now := flowcache.Now()
		var sock socket
		var o flowcache.Observation
		for _, proto := range [...]uint8{flowcache.ProtoTCP, flowcache.ProtoUDP, flowcache.ProtoUDPLite} {
			for _, family := range families {
				states := uint32(statesAny)
				if proto == flowcache.ProtoTCP {
					states = statesLive | statesListen
				}
				errs = errors.Join(errs, ns.each(s.buf, family, proto, states, &sock, func(k *socket) {
					k.observe(&o, inode, now)
					if proto == flowcache.ProtoTCP {
						k.tcp(&o, &flowcache.TCPTotals{State: k.state})
					}
					f(&o)
				}))
			}
		}
	}
	return errs
}
