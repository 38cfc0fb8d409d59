package replay

import "math/bits"

// wheel is a hashed timing wheel over the flows of a table. A packet does not touch it: a flow whose time has come and that moved since
// is armed again. What records hold does not depend on it, only when they leave.
type wheel struct {
	heads  [wheelSlots]uint32
	filled [wheelSlots / 64]uint64 // slots that are not empty
	now    int64                   // tick that is not over yet; all before it are. -1 before the first packet
}

const (
	tickShift  = 26 // a tick is 67 ms
	wheelSlots = 1 << 10
)

// slotTick is the tick that the slot of a flow stands for.
func (f *flow) slotTick(now int64) int64 {
	return now + (int64(f.slot)-now)&(wheelSlots-1)
}

// arm sets the timer of flow i. One further away than a turn comes after a turn, and is armed again.
func (t *table) arm(i uint32, deadline int64) {
	tick := min(max(deadline>>tickShift, t.wheel.now), t.wheel.now+wheelSlots-1)
	s := uint16(tick & (wheelSlots - 1))
	f := t.at(i)
	f.slot = s
	f.prev, f.next = 0, t.wheel.heads[s]
	if f.next != 0 {
		t.at(f.next).prev = i
	}
	t.wheel.heads[s] = i
	t.wheel.filled[s/64] |= 1 << (s % 64)
}

// cancel disarms the timer of flow i.
func (t *table) cancel(i uint32) {
	f := t.at(i)
	if f.prev != 0 {
		t.at(f.prev).next = f.next
	} else if t.wheel.heads[f.slot] = f.next; f.next == 0 {
		t.wheel.filled[f.slot/64] &^= 1 << (f.slot % 64)
	}
	if f.next != 0 {
		t.at(f.next).prev = f.prev
	}
}

// due returns a flow of a tick that is over, disarmed, or 0.
func (t *table) due(now int64) uint32 {
	end := now >> tickShift
	w := &t.wheel
	if w.now < 0 || end <= w.now {
		return 0
	}
	if w.now < end-wheelSlots {
		w.now = end - wheelSlots // one turn shows every slot
	}
	for ; w.now < end; w.now++ {
		if i := w.heads[w.now&(wheelSlots-1)]; i != 0 {
			t.cancel(i)
			return i
		}
	}
	return 0
}

// soonest returns the flow whose timer comes next, or 0.
func (t *table) soonest() uint32 {
	w := &t.wheel
	first := uint(w.now) & (wheelSlots - 1)
	for n := uint(0); n <= wheelSlots/64; n++ {
		word := (first/64 + n) % (wheelSlots / 64)
		slots := w.filled[word]
		if n == 0 {
			slots &= ^uint64(0) << (first % 64)
		}
		if slots != 0 {
			return w.heads[word*64+uint(bits.TrailingZeros64(slots))]
		}
	}
	return 0
}
