package bpf

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

// Alive is what an audit saw: the slots, by number, that a socket which exists may hold. Its zero value is a slot table without sockets.
type Alive [slots / 64]uint64

const slots = 1 << 17 // SLOTS of the programs

// Add notes that the socket with a cookie exists.
func (a *Alive) Add(cookie uint64) {
	i := cookie % slots
	a[i/64] |= 1 << (i % 64)
}

func (a *Alive) has(slot uint32) bool { return a[slot/64]&(1<<(slot%64)) != 0 }

// audit is one that is over.
type audit struct {
	alive Alive
	began int64
}

// bornLate is how much older than an audit's begin a socket must be for its absence to count: the clocks of both are read one after the other.
const bornLate = time.Second

// heldPasses is how many passes ago a process must have let go of a socket, in CLOSE, for that to be gone.
const heldPasses = 4

// Reap frees the slots of sockets that an audit, begun at the time began, did not see: their ends were missed. alive is copied. A second audit
// that comes before the first is worked through is left out. Safe for concurrent use with Run.
func (s *Source) Reap(alive *Alive, began int64) {
	select {
	case s.audits <- &audit{*alive, began}:
	default:
	}
}

// reap works through an audit. An end that was reported is not missed; its socket may be held by a process on, in CLOSE, which audits do not
// see and passes do.
func (s *Source) reap(a *audit) error {
	table := s.maps.Maps["slots"]
	var cursor ebpf.MapBatchCursor
	keys, values := make([]uint32, 4096), make([]programSlot, 4096)
	var free []uint32
	for {
		n, err := table.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			v := &values[i]
			if v.Cookie == 0 || a.alive.has(keys[i]) || s.clk.time(v.State.Start)+int64(bornLate) > a.began {
				continue
			}
			if v.State.Flags&flagEnded == 0 {
				s.unseen.Add(1)
			} else if v.State.Pass+heldPasses > s.pass {
				continue // its process holds the socket, as a pass has seen
			}
			free = append(free, keys[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			break
		}
		if err != nil {
			return fmt.Errorf("read slots: %w", err)
		}
	}
	for _, i := range free { // nobody writes to the slot of a socket that is gone
		if err := table.Put(i, programSlot{}); err != nil {
			return fmt.Errorf("free slot %d: %w", i, err)
		}
	}
	s.freed.Add(uint64(len(free)))
	return nil
}
