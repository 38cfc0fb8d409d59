package main

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/sockflow/sockflow/bpf"
	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/enrich/kube"
	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
)

// pipeline is the cache loop: it alone owns the cache and the tables of enrich, and takes the batches of sources until
// they are done.
type pipeline struct {
	cache     *flowcache.Cache
	processes *enrich.Processes
	enricher  *enrich.Enricher
	conntrack *enrich.Conntrack
	cluster   *cluster         // nil without Kubernetes
	selector  *selector        // nil: every record is exported as it is
	exporters *ipfix.Group     // nil: none
	printers  []taker          // get every record, whatever the policy of exporters
	flows     *flowMetrics     // nil if none are wanted
	clock     func() time.Time // time.Now, but in tests
	stepped   int64            // how far the wall clock is ahead of flowcache.Now
	batches   flowcache.Batches
	pool      flowcache.RecordPool
	scratch   []flowcache.Record
	readings  chan interfaceReading
	status    chan func(pipelineStatus)
	names     <-chan *enrich.ContainerUpdate // what runtimes report
	held      []flowcache.Record             // that wait for names
	heldTotal uint64
	heldNext  int           // where the next look at them begins
	late      late          // how long the loop took for each thing that it did
	wire      *wire         // the packets of an interface; nil: sockets are metered
	ends      *enrich.Ends  // with wire: whose sockets its flows are
	endsFor   time.Duration // how long they are remembered

	alive bpf.Alive                           // what the audit under way has seen
	reap  func(alive *bpf.Alive, began int64) // takes it when the audit is over; nil without eBPF

	roomTime time.Duration // 0: the constant

	// room waits until exporters have room for more, or ctx ends; nil: they are not waited for. For the end, when nothing is metered any more.
	room func(ctx context.Context)
}

// taker takes batches, and releases them. It never waits.
type taker interface {
	Offer(r *flowcache.Records) bool
}

type pipelineStatus struct {
	cache      flowcache.Stats
	processes  enrich.ProcStats
	conntrack  enrich.ConntrackStats
	containers enrich.ContainerStats
	held       uint64
	kube       kube.IndexStats
	selection  selectorStats
	late       lateness
}

// lateness says how late the loop was for what came in the last one to two minutes.
type lateness struct{ Q99, Q999, Longest time.Duration }

func (p *pipeline) lateness(now time.Time) lateness {
	return lateness{p.late.quantile(0.99, now), p.late.quantile(0.999, now), p.late.longest()}
}

const (
	expireInterval = 40 * time.Millisecond // least time between two looks at what is due
	restInterval   = time.Second           // longest
	letGoInterval  = time.Second
	endsTicks      = 30          // of it between two looks for what may be forgotten of ends
	maxHeld        = 4096        // records that may wait for names
	retryAtOnce    = 512         // of them that are looked at in one step
	roomTime       = time.Second // in which exporters may make room for the last records; then they have 1.5 s for the rest
)

// run merges and expires until in is closed, and then flushes.
func (p *pipeline) run(in <-chan *flowcache.Batch) {
	expire := time.NewTimer(expireInterval)
	defer expire.Stop()
	var wake time.Time // when expire fires
	arm := func() {
		now := time.Now()
		wait := expireInterval
		if len(p.held) == 0 {
			wait = max(wait, time.Duration(p.cache.Wait(flowcache.At(now), int64(restInterval))))
		}
		if at := now.Add(wait); wake.IsZero() || at.Before(wake) {
			wake = at
			expire.Reset(wait)
		}
	}
	letGo := time.NewTicker(letGoInterval)
	defer letGo.Stop()
	var began time.Time // of the step
	for ticks := 0; ; p.late.add(began, time.Now()) {
		select {
		case b, ok := <-in:
			began = time.Now()
			if !ok {
				p.flush()
				return
			}
			p.take(b)
			arm()
		case r := <-p.wire.ready():
			began = time.Now()
			p.name(r)
		case changes := <-p.cluster.ready():
			began = time.Now()
			p.cluster.apply(changes)
		case u := <-p.names:
			began = time.Now()
			p.enricher.CGroups.Apply(u)
			p.retry()
		case <-expire.C:
			began = time.Now()
			p.retry()
			for more := true; more; {
				var recs []flowcache.Record
				recs, more = p.cache.Expire(p.scratch[:0], flowcache.Now(), flowcache.RecordsAtOnce)
				p.give(recs)
			}
			wake = time.Time{}
			arm()
		case r := <-p.readings:
			began = time.Now()
			p.giveInterfaces(r)
		case <-p.selector.due():
			began = time.Now()
			p.tellRecords(p.selector.flush())
		case now := <-letGo.C:
			began = time.Now()
			p.conntrack.LetGo()
			p.processes.Sweep(flowcache.At(now))
			p.enricher.CGroups.Sweep(now.UnixNano())
			p.cluster.forget()
			if ticks++; p.ends != nil && ticks%endsTicks == 0 {
				p.ends.Forget(flowcache.At(now.Add(-p.endsFor)))
			}
		case f := <-p.status:
			began = time.Now()
			f(pipelineStatus{p.cache.Stats(), p.processes.Stats(), p.conntrack.Stats(), p.enricher.CGroups.Stats(), p.heldTotal, p.cluster.stats(), p.selector.stats(), p.lateness(began)})
		}
	}
}

// take merges a batch: first the processes, which its sockets may belong to.
func (p *pipeline) take(b *flowcache.Batch) {
	if len(b.Processes) > 0 {
		p.readClock() // it is noted when a container appeared
	}
	for i := range b.Processes {
		p.processes.Apply(&b.Processes[i])
	}
	recs := p.scratch[:0]
	for i := range b.Observations {
		o := &b.Observations[i]
		if o.Audit {
			p.alive.Add(o.Cookie)
		}
		recs = p.cache.Observe(recs, o)
	}
	switch {
	case b.Swept != 0 && b.Audit:
		p.cache.AuditDone(b.Swept)
		if p.reap != nil {
			p.reap(&p.alive, b.Swept)
		}
		p.alive = bpf.Alive{}
	case b.Swept != 0:
		recs = p.cache.Sweep(recs, b.Swept)
	}
	if b.SnapshotDone {
		recs = p.cache.SnapshotDone(recs)
	}
	p.batches.Put(b)
	p.give(recs)
}

// full is give as flowcache.Config.Full, which the cache calls in the middle of a call that makes many records.
func (p *pipeline) full(recs []flowcache.Record) []flowcache.Record {
	p.give(recs)
	return recs[:0]
}

// leastStep is how far the wall clock must be from where it would be without a step: its two readings are never quite at the same time.
const leastStep = 100 * time.Millisecond

// readClock finds out whether the wall clock was stepped: the times of records then follow its new time.
func (p *pipeline) readClock() {
	now := p.clock()
	if ahead := now.UnixNano() - flowcache.At(now); time.Duration(ahead-p.stepped).Abs() > leastStep {
		p.stepped = ahead
	}
	p.enricher.Clock(now.UnixNano(), p.stepped)
}

// give enriches records and hands them over. Those whose names a runtime may still report are held back for a moment.
func (p *pipeline) give(recs []flowcache.Record) {
	p.scratch = recs
	if len(recs) == 0 {
		return
	}
	p.readClock()
	ready := recs[:0]
	for i := range recs {
		p.enricher.Crowded = len(p.held) >= maxHeld/2
		if len(p.held) < maxHeld && !p.enricher.EnrichOrWait(&recs[i]) {
			p.held = append(p.held, recs[i])
			p.heldTotal++
			continue
		} else if len(p.held) >= maxHeld {
			p.enricher.Enrich(&recs[i])
		}
		if len(ready) < i {
			ready = append(ready, recs[i])
		} else {
			ready = recs[:i+1]
		}
	}
	p.hand(ready)
}

// retry hands over the records whose names have come since, or will not come any more: of the next retryAtOnce that wait.
func (p *pipeline) retry() {
	if len(p.held) == 0 {
		return
	}
	p.readClock()
	p.enricher.Crowded = false
	recs := p.scratch[:0]
	for range min(len(p.held), retryAtOnce) {
		if p.heldNext >= len(p.held) {
			p.heldNext = 0
		}
		r, last := &p.held[p.heldNext], len(p.held)-1
		if !p.enricher.EnrichOrWait(r) {
			p.heldNext++
			continue
		}
		recs = append(recs, *r)
		*r = p.held[last]
		p.held[last] = flowcache.Record{}
		p.held = p.held[:last]
	}
	p.scratch = recs
	p.hand(recs)
}

// hand delivers records. Where the packets of an interface are metered, the records of sockets only name its flows.
func (p *pipeline) hand(recs []flowcache.Record) {
	if p.ends != nil {
		p.learn(recs)
		return
	}
	p.deliver(recs)
}

// deliver completes records by what Kubernetes knows, selects, and exports them.
func (p *pipeline) deliver(recs []flowcache.Record) {
	if len(recs) == 0 {
		return
	}
	if p.cluster != nil {
		for i := range recs {
			p.cluster.index.Name(&recs[i])
		}
	}
	p.tellRecords(p.selector.apply(recs))
}

// tellRecords gives records to printers and exporters.
func (p *pipeline) tellRecords(recs []flowcache.Record) {
	p.flows.add(recs)
	for i := range recs {
		recs[i].Start += p.stepped
		recs[i].End += p.stepped
	}
	for part := range slices.Chunk(recs, flowcache.RecordsAtOnce) { // an exporter has room for them all, or none
		r := p.pool.Get()
		r.List = append(r.List, part...)
		p.offer(r)
	}
}

// offer hands over a batch, which who takes it releases.
func (p *pipeline) offer(r *flowcache.Records) {
	r.Retain(len(p.printers))
	for _, t := range p.printers {
		t.Offer(r)
	}
	if p.exporters == nil {
		r.Release()
		return
	}
	p.exporters.Offer(r)
}

// flush ends all flows by force.
func (p *pipeline) flush() {
	p.enricher.NoMore()
	for len(p.held) > 0 {
		p.retry()
	}
	ctx, cancel := context.WithTimeout(context.Background(), cmp.Or(p.roomTime, roomTime))
	defer cancel()
	for more := true; more; {
		if p.room != nil {
			p.room(ctx)
		}
		var recs []flowcache.Record
		recs, more = p.cache.Flush(p.scratch[:0], flowcache.RecordsAtOnce)
		p.give(recs)
	}
	p.tellRecords(p.selector.flush())
}

// ask gets the state of the loop; false if the loop is gone.
func (p *pipeline) ask(ctx context.Context) (pipelineStatus, bool) {
	got := make(chan pipelineStatus, 1)
	select {
	case p.status <- func(s pipelineStatus) { got <- s }:
		return <-got, true
	case <-ctx.Done():
		return pipelineStatus{}, false
	}
}
