package flowcache

import "sync/atomic"

// Batch is what a source hands over at once: process events, which come before the observations that need them.
type Batch struct {
	Processes    []ProcessEvent
	Observations []Observation
	// SnapshotDone marks the end of a pass over all sockets: what comes later was read later.
	SnapshotDone bool
	// Swept is when a pass began that saw every TCP socket there is, and ends with this batch; else 0. Connections that it did not
	// show are gone.
	Swept int64
	Audit bool // Swept is that of an audit, which checks what another source reports
}

// Reset empties b and keeps its memory.
func (b *Batch) Reset() {
	clear(b.Processes) // let go of strings
	b.Processes, b.Observations, b.SnapshotDone, b.Swept, b.Audit = b.Processes[:0], b.Observations[:0], false, 0, false
}

// BatchLen is the number of observations after which a source should hand over a batch.
const BatchLen = 512

// RecordsAtOnce is how many records are handed over at once: memory is for these, however many flows end together.
const RecordsAtOnce = 512

// Batches is a free list of batches that sources fill and the cache loop returns, so that a steady flow of
// observations allocates nothing. Its zero value (nil) allocates every batch.
type Batches chan *Batch

// Get returns an empty batch.
func (p Batches) Get() *Batch {
	select {
	case b := <-p:
		return b
	default:
		return &Batch{Observations: make([]Observation, 0, BatchLen)}
	}
}

// Put takes a batch back.
func (p Batches) Put(b *Batch) {
	b.Reset()
	select {
	case p <- b:
	default:
	}
}

// Records is a batch of records on its way to one or more exporters, which read it and must not change it. The last Release
// returns its memory.
type Records struct {
	List       []Record
	Interfaces []Interface
	refs       atomic.Int32
	pool       chan *Records
}

// Retain adds n users.
func (r *Records) Retain(n int) { r.refs.Add(int32(n)) }

// Release ends one use.
func (r *Records) Release() {
	if r.refs.Add(-1) > 0 || r.pool == nil {
		return
	}
	clear(r.List) // let go of strings
	clear(r.Interfaces)
	r.List, r.Interfaces = r.List[:0], r.Interfaces[:0]
	select {
	case r.pool <- r:
	default:
	}
}

// RecordPool reuses batches of records. Its zero value (nil) allocates every batch.
type RecordPool chan *Records

// Get returns an empty batch with one user.
func (p RecordPool) Get() *Records {
	select {
	case r := <-p:
		r.refs.Store(1)
		return r
	default:
		r := &Records{List: make([]Record, 0, 256), pool: p}
		r.refs.Store(1)
		return r
	}
}
