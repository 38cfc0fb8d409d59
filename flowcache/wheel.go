package flowcache

import "math"

// wheel is a hashed timing wheel over the entries: setting, moving and cancelling a timer is O(1), and finding what is
// due costs nothing for what is not. A deadline more than one turn away stays in its slot for another turn.
type wheel struct {
	heads  []uint32 // of the slots, and of those that are due
	cursor int64    // tick up to which every due entry has been found; its slot may still hold some
}

const (
	tick       = 10e6 // nanoseconds
	wheelSlots = 1 << 13
	dueSlot    = wheelSlots // not of the wheel: of what was found to be due
)

func newWheel() wheel { return wheel{heads: make([]uint32, wheelSlots+1), cursor: math.MinInt64} }

// set arms the timer of entry i.
func (c *Cache) set(i uint32, deadline int64) {
	e := c.at(i)
	t := deadline / tick
	if t < c.wheel.cursor {
		t = c.wheel.cursor // due: the next look finds it
	}
	e.deadline, e.armed = deadline, true
	c.put(i, uint32(t&(wheelSlots-1)))
}

// put puts entry i into a slot.
func (c *Cache) put(i, slot uint32) {
	e := c.at(i)
	e.slot = slot
	e.prev, e.next = 0, c.wheel.heads[e.slot]
	if e.next != 0 {
		c.at(e.next).prev = i
	}
	c.wheel.heads[e.slot] = i
}

// cancel disarms it, if it is armed.
func (c *Cache) cancel(i uint32) {
	e := c.at(i)
	if !e.armed {
		return
	}
	e.armed = false
	c.unchain(e)
}

// unchain takes e out of its slot.
func (c *Cache) unchain(e *entry) {
	if e.prev != 0 {
		c.at(e.prev).next = e.next
	} else {
		c.wheel.heads[e.slot] = e.next
	}
	if e.next != 0 {
		c.at(e.next).prev = e.prev
	}
}

// due returns an entry whose deadline is at or before now, disarmed, or 0.
func (c *Cache) due(now int64) uint32 {
	end := now / tick
	if c.wheel.cursor < end-wheelSlots {
		c.wheel.cursor = end - wheelSlots // one turn shows every slot
	}
	// A slot is walked once for all that is due in it: most of it may be due in a moment, or in another turn.
	for ; c.wheel.heads[dueSlot] == 0; c.wheel.cursor++ {
		for i := c.wheel.heads[c.wheel.cursor&(wheelSlots-1)]; i != 0; {
			e, this := c.at(i), i
			if i = e.next; e.deadline <= now {
				c.unchain(e)
				c.put(this, dueSlot)
			}
		}
		if c.wheel.cursor >= end {
			break
		}
	}
	i := c.wheel.heads[dueSlot]
	if i != 0 {
		c.cancel(i)
	}
	return i
}

// Wait returns how long nothing is due after now, in nanoseconds, most at most.
func (c *Cache) Wait(now, most int64) int64 {
	if c.used == 0 || c.wheel.cursor < 0 {
		return most
	}
	if c.wheel.heads[dueSlot] != 0 {
		return 0
	}
	for t := c.wheel.cursor; t*tick < now+most; t++ {
		if c.wheel.heads[t&(wheelSlots-1)] != 0 { // perhaps of another turn
			return max(0, (t+1)*tick-now)
		}
	}
	return most
}

// soonest returns the entry whose timer comes next, or 0: what a full cache gives up first.
func (c *Cache) soonest() uint32 {
	if i := c.wheel.heads[dueSlot]; i != 0 {
		return i
	}
	for t := c.wheel.cursor; t < c.wheel.cursor+wheelSlots; t++ {
		if i := c.wheel.heads[t&(wheelSlots-1)]; i != 0 {
			return i
		}
	}
	return 0
}
