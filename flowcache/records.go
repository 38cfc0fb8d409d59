package flowcache

import "sync/atomic"

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
