package ipfix

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/selection"
)

// Exporter sends records to one collector. The metering never waits for it.
type Exporter struct {
	cfg     atomic.Pointer[Config] // see conf
	enc     *Encoder
	queue   chan *flowcache.Records
	waiting atomic.Int64 // records in queue

	filter     *selection.Filter     // nil: all
	anonymizer *selection.Anonymizer // nil: none
	scratch    flowcache.Record

	// One of the two: direct for what takes a message or loses it, stream for what is sent again until the collector has it.
	direct direct
	stream *stream

	keepTimes bool // messages keep the Export Time that they were made with

	open    bool      // direct has a session
	opened  time.Time // since when
	good    bool      // it is more than accepted
	looking bool      // it is being looked whether the collector's name stands for another address
	moved   chan bool
	limit   int // octets of a message
	told    atomic.Bool
	looked  time.Time // when direct was last asked to renew, and templates were sent
	refused time.Time // when a datagram was refused last
	retell  int       // refreshes due since datagrams are no longer refused; -1: the last batch was refused
	retold  time.Time
	nextTry time.Time
	wait    time.Duration
	stopBy  atomic.Int64 // Unix nanoseconds; 0 until the end is near

	counters
	metering func() Metering
	changes  chan *change
	encodes  encoding // of the configuration that the goroutine of Run has applied
	session  Config   // likewise, its transport
}

// conf is the configuration by now; it is not changed, but replaced. Safe for concurrent use.
func (x *Exporter) conf() *Config { return x.cfg.Load() }

// ended is the error of a direct transport after which there must be another session. After any other, messages go on being sent.
type ended struct{ error }

func (e ended) Unwrap() error { return e.error }

const (
	maxStream     = 65535
	flushInterval = 50 * time.Millisecond
	dialTimeout   = 5 * time.Second
	writeTimeout  = 5 * time.Second
	drainTime     = 1500 * time.Millisecond
	toldAgain     = time.Second
)

// New checks cfg, and reads certificates. Nothing is connected yet: a collector that is down must not stop anything.
func New(cfg Config) (*Exporter, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	x := &Exporter{queue: make(chan *flowcache.Records, 4096), wait: cfg.ReconnectMin, limit: maxStream, changes: make(chan *change, 1), moved: make(chan bool, 1)}
	cfg.stopBy = &x.stopBy
	x.cfg.Store(&cfg)
	x.encodes, x.session = encoding{cfg.Options, cfg.Domain}, cfg.transport()
	var err error
	if x.filter, x.anonymizer, err = cfg.selection(); err != nil {
		return nil, err
	}
	switch cfg.Network {
	case "udp":
		x.limit = unknownPathMessage
		x.direct = &udp{x: x}
	case "dtls":
		x.limit = unknownPathMessage
		x.direct, err = newDTLS(x)
	case "file":
		x.direct = &file{x: x}
	default:
		x.stream, err = newStream(x)
	}
	if err != nil {
		return nil, err
	}
	if x.enc, err = NewEncoder(cfg.Protocol, cfg.Options, cfg.Domain, x.limit, cfg.Boot, x.send); err != nil {
		x.Close()
		return nil, err
	}
	if cfg.Network == "udp" || cfg.Network == "dtls" {
		x.enc.SendAhead(TemplateLead)
	}
	x.enc.Describe(Info{Version: cfg.Version, Kernel: cfg.Kernel, Facts: x.facts})
	return x, nil
}

// Close lets go of what New opened, of an Exporter that is not run.
func (x *Exporter) Close() {
	if x.stream != nil {
		x.stream.backlog.close()
	}
}

// Config returns the configuration by now. Safe for concurrent use.
func (x *Exporter) Config() Config { return *x.conf() }

// Name is the collector as users write it.
func (x *Exporter) Name() string { return x.conf().Name() }

// Healthy reports whether the collector takes messages, for all that is known. Safe for concurrent use.
func (x *Exporter) Healthy() bool { return !x.told.Load() }

// Offer gives records to the collector, which releases them. It never waits: when too many wait already they are dropped and counted.
func (x *Exporter) Offer(r *flowcache.Records) bool {
	n := int64(len(r.List))
	if x.waiting.Add(n) <= int64(x.conf().Queue) {
		select {
		case x.queue <- r:
			return true
		default:
		}
	}
	x.dropQueued(r)
	return false
}

// Run sends what is offered until ctx ends, then what waits, for at most 1.5 s, and returns.
func (x *Exporter) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { x.ending() }) // for what is under way, as a write
	defer stop()
	if x.stream != nil {
		x.runStream(ctx)
	} else {
		x.runDirect(ctx)
	}
	return nil
}

// runStream encodes into the backlog, which another goroutine sends from.
func (x *Exporter) runStream(ctx context.Context) {
	s := x.stream
	sent := make(chan struct{})
	go func() { // ends by finish
		defer close(sent)
		s.run()
	}()
	x.enc.Templates(time.Now())
	statistics := time.NewTicker(x.conf().TemplateRefresh)
	defer statistics.Stop()
	timer := time.NewTimer(flushInterval)
	defer timer.Stop()
	for ctx.Err() == nil {
		queue := x.queue
		if s.backlog.full() {
			queue = nil
		}
		select {
		case <-ctx.Done():
		case <-s.backlog.room:
		case r := <-queue:
			x.encode(r)
			if x.enc.Waiting() > 0 && len(x.queue) == 0 {
				timer.Reset(flushInterval)
			}
		case <-timer.C:
			x.enc.Flush(time.Now())
		case now := <-statistics.C:
			x.enc.announced.programs = nil // sent again with their next use
			x.enc.Statistics(now)
		case <-s.connected:
			x.enc.announced.programs = nil
		case c := <-x.changes:
			x.changeStream(c, statistics)
		}
	}
	x.ending()
	for more := true; more; {
		select {
		case r := <-x.queue:
			if x.late() {
				x.dropQueued(r)
			} else {
				x.encode(r)
			}
		default:
			more = false
		}
	}
	x.enc.Flush(time.Now())
	close(s.stop)
	<-sent
	s.backlog.close()
}

// ending says that ctx of Run has ended, and returns when the time for what waits is over. Whoever finds the end first says it: the
// others may not have had a processor yet.
func (x *Exporter) ending() (by time.Time) {
	x.stopBy.CompareAndSwap(0, time.Now().Add(drainTime).UnixNano())
	return time.Unix(0, x.stopBy.Load())
}

// late reports whether the time to end is over.
func (x *Exporter) late() bool {
	by := x.stopBy.Load()
	return by != 0 && time.Now().UnixNano() > by
}

// encode encodes records: the one place where a batch becomes messages.
func (x *Exporter) encode(r *flowcache.Records) {
	now := time.Now()
	for i := range r.List {
		rec := &r.List[i]
		if x.filter != nil && !x.filter.Match(rec) {
			x.filtered.Add(1)
			continue
		}
		if x.anonymizer != nil {
			x.scratch = *rec // others have it too
			rec = &x.scratch
			x.anonymizer.Record(rec)
		}
		err := x.enc.Record(rec, now)
		if errors.Is(err, errTooBig) {
			x.droppedBig.Add(1)
			continue
		}
		x.encoded.Add(1)
		if err != nil {
			x.failed(err)
		}
	}
	x.failed(x.enc.Interfaces(r.Interfaces, now))
	x.cut.Store(x.enc.cut)
	x.waiting.Add(-int64(len(r.List)))
	r.Release()
}

// send takes a message of the encoder, with its number of flow records.
func (x *Exporter) send(msg []byte, records int) error {
	if x.stream != nil {
		return x.stream.backlog.put(msg, records)
	}
	x.made.Add(uint64(records))
	if !x.open {
		x.droppedSend.Add(uint64(records))
		return nil
	}
	err := x.direct.send(msg, records)
	if err == nil && x.good && x.told.Load() && time.Since(x.refused) > 10*time.Second {
		x.up("takes messages again")
	}
	return err
}

// sent counts a message.
func (x *Exporter) sent(octets, records int) {
	x.messages.Add(1)
	x.octets.Add(uint64(octets))
	x.records.Add(uint64(records))
}

// up notes that the collector takes messages.
func (x *Exporter) up(how string) {
	if x.told.Swap(false) {
		x.conf().Notify(true, fmt.Sprintf("collector %s: %s", x.Name(), how))
	}
}

// down notes a failure and when to try again: after a wait that doubles, with jitter, so that a fleet does not come back at once.
func (x *Exporter) down(err error) {
	x.errs.Add(1)
	wait := x.wait/2 + rand.N(x.wait/2+1)
	x.nextTry = time.Now().Add(wait)
	x.wait = min(2*x.wait, x.conf().ReconnectMax)
	if !x.told.Swap(true) {
		x.conf().Notify(false, fmt.Sprintf("collector %s: %s; trying again", x.Name(), reason(err)))
	}
}

// reason is the innermost of an error of package net, which repeats the address.
func reason(err error) string {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return "cannot resolve " + dns.Name + ": " + dns.Err
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		if errno == syscall.EPROTONOSUPPORT {
			return "this kernel has no such transport protocol (" + errno.Error() + ")"
		}
		return errno.Error()
	}
	return err.Error()
}
