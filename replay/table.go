package replay

import (
	"math/bits"

	"github.com/sockflow/sockflow/flowcache"
)

// table keeps the flows of one shard. It belongs to one goroutine. Its index is open addressing: each slot is the hash of a key << 32
// and the number of its flow, so that a probe that fails, a removal and a larger index touch no flow.
type table struct {
	idle, active, linger int64
	max                  int
	seed                 *seed

	index  []uint64
	shift  uint // of a hash, for its place
	chunks []*[chunkLen]flow
	unused uint32 // linked by next; 0 none
	// What earlier records of a flow have carried, of those that have had one; a chunk of flows that all are short has none.
	told  []*[chunkLen][2]flowcache.Counters
	used  int
	wheel wheel
	gaps  gapPool
	touch uint64

	created uint64
	records [6]uint64
	out     *flowcache.Records
	give    func(*flowcache.Records) *flowcache.Records // takes a full batch for an empty one
}

const (
	chunkLen   = 2048
	firstIndex = 1 << 10
	ahead      = 32 // packets whose flows are fetched together
)

func newTable(cfg *Config, most int, s *seed, give func(*flowcache.Records) *flowcache.Records) *table {
	t := &table{
		idle: int64(cfg.IdleTimeout), active: int64(cfg.ActiveTimeout), linger: int64(cfg.Linger),
		max: most, seed: s, index: make([]uint64, firstIndex), shift: 32 - uint(bits.TrailingZeros(firstIndex)),
		give: give, gaps: gapPool{max: leastGaps + most},
	}
	t.wheel.now = -1
	t.out = give(nil)
	return t
}

func (t *table) at(i uint32) *flow { return &t.chunks[i/chunkLen][i%chunkLen] }

// addAll counts packets. The memory that they need is fetched for several of them at once: the loads do not depend on each other, so
// the processor waits for all of them together.
func (t *table) addAll(packets []packet) {
	if len(packets) > 0 && len(t.chunks) == 0 {
		t.grow()
	}
	for len(packets) > 0 {
		some := packets[:min(ahead, len(packets))]
		packets = packets[len(some):]
		if t.used > cacheable {
			for i := range some {
				some[i].guess = uint32(t.index[some[i].hash>>t.shift])
			}
			touch := t.touch
			for i := range some {
				f := t.at(some[i].guess)
				touch += f.src0 + f.payload[0] + uint64(f.tcp.next[0])
			}
			t.touch = touch
		}
		for i := range some {
			t.add(&some[i])
		}
	}
}

// cacheable is a number of flows below which fetching ahead does not pay.
const cacheable = 4096

func (t *table) add(p *packet) {
	i := t.find(p)
	if i == 0 {
		i = t.take(p)
	}
	f := t.at(i)
	if f.state != 0 { // not new
		switch {
		case p.time-f.last >= t.patience(f):
			t.end(i, f)
			t.created++
			t.release(f)
			f.begin(p)
		case f.reopened(p):
			t.emit(i, f, flowcache.EndDetected, true)
			t.created++
			t.release(f)
			f.begin(p)
		case f.state&stateMoved != 0 && p.time >= f.active:
			t.emit(i, f, flowcache.EndActive, false)
		}
	} else {
		f.begin(p)
	}
	if f.count(p, t.active, &t.gaps) {
		t.cancel(i)
		t.arm(i, t.deadline(f))
	}
}

// release frees what a flow has beside its three cache lines.
func (t *table) release(f *flow) {
	if f.proto() == protoTCP && f.tcp.gaps != [2]uint32{} {
		t.gaps.clear(&f.tcp.gaps[0])
		t.gaps.clear(&f.tcp.gaps[1])
	}
}

// patience is how long a flow may be silent.
func (t *table) patience(f *flow) int64 {
	if f.state&stateClosed != 0 {
		return t.linger
	}
	return t.idle
}

// end makes the last record of a flow that has expired.
func (t *table) end(i uint32, f *flow) {
	reason := flowcache.EndIdle
	if f.state&stateClosed != 0 {
		reason = flowcache.EndDetected
	}
	t.emit(i, f, reason, true)
}

// deadline is when a flow must be looked at.
func (t *table) deadline(f *flow) int64 {
	d := f.last + t.patience(f)
	if f.state&stateMoved != 0 && f.state&stateClosed == 0 {
		d = min(d, f.active)
	}
	return d
}

// emit makes a record of what is not yet reported.
func (t *table) emit(i uint32, f *flow, reason flowcache.EndReason, final bool) {
	if f.state&stateMoved == 0 {
		return
	}
	t.records[reason]++
	l := t.out.List
	if len(l) == cap(l) {
		t.out = t.give(t.out)
		l = t.out.List
	}
	l = l[:len(l)+1]
	r := &l[len(l)-1]
	f.record(r, reason, final)
	t.out.List = l
	if f.state&stateTold != 0 || !final {
		t.total(i, f, r)
	}
	f.state |= stateTold
}

// total adds what earlier records of flow i have carried to the totals in r, and remembers them.
func (t *table) total(i uint32, f *flow, r *flowcache.Record) {
	for len(t.told) < len(t.chunks) {
		t.told = append(t.told, nil)
	}
	c := t.told[i/chunkLen]
	if c == nil {
		c = new([chunkLen][2]flowcache.Counters)
		t.told[i/chunkLen] = c
	}
	told := &c[i%chunkLen]
	if f.state&stateTold == 0 {
		*told = [2]flowcache.Counters{}
	}
	for n, total := range []*flowcache.Counters{&r.ForwardTotal, &r.ReverseTotal} {
		total.Add(&told[n])
		told[n] = *total
	}
}

// find returns the flow of a packet, or 0.
func (t *table) find(p *packet) uint32 {
	mask := uint32(len(t.index) - 1)
	for at := p.hash >> t.shift; ; at++ {
		s := t.index[at&mask]
		if s == 0 {
			return 0
		}
		if uint32(s>>32) == p.hash {
			if f := t.at(uint32(s)); f.tuple == p.tuple {
				return uint32(s)
			}
		}
	}
}

// take makes a flow for p, whose state is 0.
func (t *table) take(p *packet) uint32 {
	if t.used >= t.max {
		if t.expire(p.time); t.used >= t.max {
			t.evict()
		}
	}
	if t.unused == 0 {
		t.grow()
	}
	if uint64(t.used)*5 >= uint64(len(t.index))*4 {
		t.reindex()
	}
	i := t.unused
	f := t.at(i)
	t.unused = f.next
	t.used++
	t.created++
	*f = flow{tuple: p.tuple}
	t.insert(uint64(p.hash)<<32 | uint64(i))
	if t.wheel.now < 0 {
		t.wheel.now = p.time >> tickShift
	}
	t.arm(i, p.time+min(t.idle, t.active))
	return i
}

func (t *table) insert(s uint64) {
	mask := uint32(len(t.index) - 1)
	at := uint32(s>>32) >> t.shift
	for t.index[at&mask] != 0 {
		at++
	}
	t.index[at&mask] = s
}

// reindex doubles the index.
func (t *table) reindex() {
	old := t.index
	t.index = make([]uint64, 2*len(old))
	t.shift--
	for _, s := range old {
		if s != 0 {
			t.insert(s)
		}
	}
}

// grow adds a chunk of unused flows. Flow 0 is none.
func (t *table) grow() {
	base := uint32(len(t.chunks)) * chunkLen
	c := new([chunkLen]flow)
	t.chunks = append(t.chunks, c)
	for i := uint32(chunkLen); i > 0; i-- {
		if n := base + i - 1; n != 0 {
			c[i-1].next = t.unused
			t.unused = n
		}
	}
}

// remove forgets flow i, whose timer is not armed.
func (t *table) remove(i uint32) {
	f := t.at(i)
	mask := uint32(len(t.index) - 1)
	at := t.seed.hash(&f.tuple) >> t.shift & mask
	for uint32(t.index[at]) != i {
		at = (at + 1) & mask
	}
	// Close the gap: what was pushed away from its place moves back (Knuth, The Art of Computer Programming, 6.4, algorithm R).
	for hole := at; ; {
		at = (at + 1) & mask
		s := t.index[at]
		if s == 0 {
			t.index[hole] = 0
			break
		}
		home := uint32(s>>32) >> t.shift & mask
		if (at-home)&mask >= (at-hole)&mask {
			t.index[hole] = s
			hole = at
		}
	}
	t.release(f)
	f.state = 0
	f.next = t.unused
	t.unused = i
	t.used--
}

// evict makes room: of the flows whose timers come next, the first that is not merely late to be looked at.
func (t *table) evict() {
	const tries = 8
	for n := 1; ; n++ {
		i := t.soonest()
		if i == 0 {
			return
		}
		f := t.at(i)
		t.cancel(i)
		if d := t.deadline(f); n < tries && d>>tickShift > int64(f.slotTick(t.wheel.now)) {
			t.arm(i, d)
			continue
		}
		if f.state&stateClosed != 0 {
			t.emit(i, f, flowcache.EndDetected, true)
		} else {
			t.emit(i, f, flowcache.EndLack, true)
		}
		t.remove(i)
		return
	}
}

// expire ends the flows that have expired at now, and makes a record of those that are due and live on.
func (t *table) expire(now int64) {
	for i := t.due(now); i != 0; i = t.due(now) {
		f := t.at(i)
		d := t.deadline(f)
		switch {
		case d>>tickShift >= now>>tickShift: // it moved since
		case f.last+t.patience(f) <= d:
			t.end(i, f)
			t.remove(i)
			continue
		default:
			t.emit(i, f, flowcache.EndActive, false)
			d = t.deadline(f)
		}
		t.arm(i, d)
	}
}

// flush ends every flow.
func (t *table) flush() {
	for i := t.soonest(); i != 0; i = t.soonest() {
		t.cancel(i)
		f := t.at(i)
		if f.state&stateClosed != 0 {
			t.emit(i, f, flowcache.EndDetected, true)
		} else {
			t.emit(i, f, flowcache.EndForced, true)
		}
		t.remove(i)
	}
	t.wheel.now = -1
}
