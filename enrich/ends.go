package enrich

import "github.com/sockflow/sockflow/flowcache"

// Ends knows which socket was at an end of a conversation, and when: it names the ends of flows that were counted by packets. It belongs to
// one goroutine.
type Ends struct {
	at  map[flowcache.Key][]span
	max int
	n   int
}

// span is a socket's time at one end of a tuple. The End is shared.
type span struct {
	from, to int64
	end      *flowcache.End
}

// slack is how far the clocks of a socket's record and of its packets may differ: a record of a socket ends when that was read.
const slack = int64(2e9)

// NewEnds returns an empty table of at most most sockets; 0: no limit.
func NewEnds(most int) *Ends {
	return &Ends{at: make(map[flowcache.Key][]span), max: most}
}

// Len is the number of sockets known.
func (e *Ends) Len() int { return e.n }

// Add records that end was at k.Src, speaking to k.Dst, from one time to another (Unix nanoseconds). The network
// namespace of k does not count: packets have none.
func (e *Ends) Add(k flowcache.Key, from, to int64, end *flowcache.End) {
	k.NetNS = 0
	spans := e.at[k]
	for i := range spans {
		if s := &spans[i]; s.end.Cookie == end.Cookie && s.end.Process == end.Process && (end.Cookie != 0 || from-s.to <= slack) {
			s.from, s.to = min(s.from, from), max(s.to, to)
			if end.Who != nil || s.end.Who == nil {
				s.end = end
			}
			return
		}
	}
	if e.max > 0 && e.n >= e.max {
		return
	}
	e.n++
	e.at[k] = append(spans, span{from, to, end})
}

// Name fills the ends of r that are known, and reports whether there was one.
func (e *Ends) Name(r *flowcache.Record) bool {
	k := r.Key
	k.NetNS = 0
	src, dst := e.find(k, r), e.find(k.Reverse(), r)
	if src != nil {
		r.Source = *src
	}
	if dst != nil {
		r.Dest = *dst
	}
	return src != nil || dst != nil
}

// find returns who was at k.Src while r lasted: of several the one who was there for longest.
func (e *Ends) find(k flowcache.Key, r *flowcache.Record) *flowcache.End {
	var best *flowcache.End
	var most int64
	for _, s := range e.at[k] {
		overlap := min(s.to+slack, r.End+1) - max(s.from-slack, r.Start)
		if overlap > most {
			best, most = s.end, overlap
		}
	}
	return best
}

// Forget drops what ended before t.
func (e *Ends) Forget(t int64) {
	for k, spans := range e.at {
		kept := spans[:0]
		for _, s := range spans {
			if s.to >= t {
				kept = append(kept, s)
			}
		}
		e.n -= len(spans) - len(kept)
		if len(kept) == 0 {
			delete(e.at, k)
		} else {
			e.at[k] = kept
		}
	}
}
