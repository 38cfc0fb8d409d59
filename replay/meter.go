package replay

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

// Config configures a Meter. Its zero value is the documented default.
type Config struct {
	ActiveTimeout time.Duration // a live flow is reported at least this often; default 60 s
	IdleTimeout   time.Duration // a flow ends after this silence; default 15 s
	// Linger is how long a connection that was closed waits for what comes late, such as the last acknowledgment; default the idle timeout.
	Linger   time.Duration
	MaxFlows int  // default 1 000 000
	Decap    bool // count the packets that VXLAN, GRE, IP in IP and Geneve carry, not those of the tunnel
	// Pool, if set, is where the batches of records come from, and Release returns them.
	Pool flowcache.RecordPool
}

const (
	// longest is for timeouts that mean never: sums of times stay in range.
	longest = 50 * 365 * 24 * time.Hour
	// Two shards from so many flows on; with less the limit is exact, and one is enough.
	shardedFlows = 1 << 13
	roundLen     = 1024
)

// ErrIdle is what the source of a Meter's packets returns to say that there is none now. The packet's Time is what the clock shows.
var ErrIdle = errors.New("no packet now")

// Meter turns packets into flow records. The packets' own times are its only clock: the same packets make the same records, in the
// same order.
type Meter struct {
	cfg    Config
	seed   *seed
	dec    decoder
	shards []*shard
	free   chan *round
	round  *round
	clock  int64
	fates  [fates]uint64
	unread Links
	octets uint64
	first  int64
	stop   atomic.Bool

	mu    sync.Mutex
	stats Stats // of the decoder, at the end of its latest round
}

// round is what passes from the decoder to the shards at once.
type round struct {
	packets [2][]packet
	n       int
	clock   int64
	flush   bool // records must be handed over now
	end     bool // every flow ends
}

// shard has the flows of one half of the tuples.
type shard struct {
	table *table
	side  int
	in    chan *round
	out   chan produced

	mu      sync.Mutex
	created uint64
	live    int
	records [6]uint64
	gaps    uint64
}

// produced is a batch of records, or the end of a round.
type produced struct {
	records *flowcache.Records
	done    *round
}

// NewMeter returns a Meter for one Run.
func NewMeter(cfg Config) (*Meter, error) {
	if cfg.ActiveTimeout < 0 || cfg.IdleTimeout < 0 || cfg.Linger < 0 || cfg.MaxFlows < 0 {
		return nil, errors.New("timeouts and the number of flows must be positive")
	}
	if cfg.ActiveTimeout == 0 {
		cfg.ActiveTimeout = time.Minute
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = 15 * time.Second
	}
	if cfg.MaxFlows == 0 {
		cfg.MaxFlows = 1_000_000
	}
	if cfg.Linger == 0 {
		cfg.Linger = cfg.IdleTimeout
	}
	cfg.Linger = min(cfg.Linger, cfg.IdleTimeout, longest)
	cfg.ActiveTimeout, cfg.IdleTimeout = min(cfg.ActiveTimeout, longest), min(cfg.IdleTimeout, longest)
	m := &Meter{cfg: cfg, seed: newSeed(), free: make(chan *round, 16), dec: decoder{decap: cfg.Decap}}
	n := 1
	if cfg.MaxFlows >= shardedFlows {
		n = 2
	}
	for side := range n {
		s := &shard{side: side, in: make(chan *round, 1), out: make(chan produced, 2)}
		s.table = newTable(&cfg, min(cfg.MaxFlows/n, 1<<31), m.seed, func(full *flowcache.Records) *flowcache.Records {
			if full != nil {
				s.out <- produced{records: full}
			}
			return cfg.Pool.Get()
		})
		m.shards = append(m.shards, s)
	}
	m.round = m.getRound()
	return m, nil
}

// Run reads packets with next until it returns io.EOF or another error, which Run returns but for io.EOF, and gives records to emit, which takes
// them over (Release). next runs in a goroutine of its own and must return at times (ErrIdle), or Run cannot end early; emit
// runs in the caller's, and its error ends the run.
func (m *Meter) Run(next func(*Packet) error, emit func(*flowcache.Records) error) error {
	var readErr error
	go func() { // ends with next, or when stop is set
		readErr = m.read(next)
		for _, s := range m.shards {
			close(s.in)
		}
	}()
	for _, s := range m.shards {
		go s.run() // ends when its input is closed
	}
	var err error
	take := func(r *flowcache.Records) {
		if len(r.List) == 0 || err != nil {
			r.Release()
		} else if err = emit(r); err != nil {
			m.stop.Store(true)
		}
	}
	for open := true; open; {
		var done *round
		for _, s := range m.shards {
			p, ok := <-s.out
			for ; ok && p.done == nil; p, ok = <-s.out {
				take(p.records)
			}
			if done, open = p.done, ok; !ok {
				break
			}
		}
		if done != nil {
			select {
			case m.free <- done:
			default:
			}
		}
	}
	// Every channel is closed, so the reader is done.
	if err == nil {
		err = readErr
	}
	return err
}

func (m *Meter) getRound() *round {
	select {
	case r := <-m.free:
		for i := range r.packets {
			r.packets[i] = r.packets[i][:0]
		}
		*r = round{packets: r.packets}
		return r
	default:
		r := &round{}
		for i := range m.shards {
			r.packets[i] = make([]packet, 0, roundLen+roundLen/4)
		}
		return r
	}
}

// read is the decoder's loop.
func (m *Meter) read(next func(*Packet) error) error {
	var raw Packet
	var err error
	for !m.stop.Load() {
		if err = next(&raw); err != nil {
			if !errors.Is(err, ErrIdle) {
				break
			}
			m.clock = max(m.clock, raw.Time)
			m.round.flush = true
			m.pass()
			continue
		}
		m.observe(&raw)
		if m.round.n >= roundLen {
			m.pass()
		}
	}
	m.dec.frags.drop(len(m.dec.frags.fifo) - m.dec.frags.head)
	m.ready()
	m.round.flush, m.round.end = true, true
	m.pass()
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

// Restart ends every flow and sets the clock back, before packets that are older than those before. It may be called by next.
func (m *Meter) Restart() {
	m.dec.frags.drop(len(m.dec.frags.fifo) - m.dec.frags.head)
	m.ready()
	m.round.end = true
	m.pass()
	m.clock = 0
}

// Clock is the latest time of any packet. It may be called by next.
func (m *Meter) Clock() int64 { return m.clock }

// observe decodes a packet.
func (m *Meter) observe(raw *Packet) {
	if m.first == 0 {
		m.first = raw.Time
	}
	m.clock = max(m.clock, raw.Time)
	m.round.n++
	ip, ether, fate := network(raw.Link, raw.Data)
	if fate == Counted {
		p := packet{time: raw.Time, packets: 1}
		var waits bool
		fate, waits = m.dec.ip(ip, ether, raw.Length-(len(raw.Data)-len(ip)), &p)
		if fate == Counted && !waits {
			if n := uint32(raw.Segment); n > 0 && p.payload > n { // one header here, one for each on the wire
				p.packets = (p.payload + n - 1) / n
				p.octets += (p.packets - 1) * (p.octets - p.payload)
			}
			m.dispatch(&p)
		}
		if len(m.dec.frags.ready) > 0 {
			m.ready()
		}
	}
	if fate == UnknownLink {
		m.unread.add(ether)
	}
	m.fates[fate]++
}

// ready passes on the fragments that have waited.
func (m *Meter) ready() {
	for i := range m.dec.frags.ready {
		m.dispatch(&m.dec.frags.ready[i])
	}
	m.dec.frags.ready = m.dec.frags.ready[:0]
}

func (m *Meter) dispatch(p *packet) {
	m.octets += uint64(p.octets)
	if p.kind&kindMapped != 0 {
		p.ports |= mappedBit
	}
	if p.order() {
		p.kind |= kindSwapped
	}
	p.hash = m.seed.hash(&p.tuple)
	s := 0
	if len(m.shards) > 1 {
		s = p.shard()
	}
	m.round.packets[s] = append(m.round.packets[s], *p)
}

// pass hands the round to the shards.
func (m *Meter) pass() {
	r := m.round
	r.clock = m.clock
	m.mu.Lock()
	m.stats.Fates, m.stats.Octets, m.stats.First, m.stats.Clock, m.stats.Unread = m.fates, m.octets, m.first, m.clock, m.unread
	m.stats.Orphans, m.stats.Datagrams = m.dec.frags.orphans, m.dec.frags.met
	m.mu.Unlock()
	for _, s := range m.shards {
		s.in <- r
	}
	m.round = m.getRound()
}

// run takes rounds until there are no more.
func (s *shard) run() {
	t := s.table
	for r := range s.in {
		t.addAll(r.packets[s.side])
		t.expire(r.clock)
		if r.end {
			t.flush()
		}
		if r.flush && len(t.out.List) > 0 {
			t.out = t.give(t.out)
		}
		s.mu.Lock()
		s.created, s.live, s.records, s.gaps = t.created, t.used, t.records, t.gaps.forgotten
		s.mu.Unlock()
		s.out <- produced{done: r}
	}
	t.out.Release()
	close(s.out)
}

// Stats returns the counts so far. Safe for concurrent use.
func (m *Meter) Stats() Stats {
	m.mu.Lock()
	st := m.stats
	m.mu.Unlock()
	for _, n := range st.Fates {
		st.Packets += n
	}
	for _, s := range m.shards {
		s.mu.Lock()
		st.Created += s.created
		st.Live += s.live
		st.Gaps += s.gaps
		for i, n := range s.records {
			st.Records[i] += n
		}
		s.mu.Unlock()
	}
	return st
}
