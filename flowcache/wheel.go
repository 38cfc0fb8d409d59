package flowcache

import "math"

// wheel is a hashed timing wheel over the entries: setting, moving and cancelling a timer is O(1), and finding what is
// due costs nothing for what is not. A deadline more than one turn away stays in its slot for another turn.
type wheel struct {
	heads  []uint32
	cursor int64 // tick up to which every due entry has been taken; its slot may still hold some
}

const (
	tick       = 10e6 // nanoseconds
	wheelSlots = 1 << 13
)

func newWheel() wheel { return wheel{heads: make([]uint32, wheelSlots), cursor: math.MinInt64} }

// set arms the timer of entry i.
func (c *Cache) set(i uint32, deadline int64) {
	e := c.at(i)
	t := deadline / tick
	if t < c.wheel.cursor {
		t = c.wheel.cursor // due: the next look finds it
	}
	e.deadline, e.armed = deadline, true
	e.slot = uint32(t & (wheelSlots - 1))
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
	for ; ; c.wheel.cursor++ {
		for i := c.wheel.heads[c.wheel.cursor&(wheelSlots-1)]; i != 0; i = c.at(i).next {
			if c.at(i).deadline <= now {
				c.cancel(i)
				return i
			}
		}
		if c.wheel.cursor >= end {
			return 0
		}
	}
}

// Wait returns how long nothing is due after now, in nanoseconds, most at most.
func (c *Cache) Wait(now, most int64) int64 {
	if c.used == 0 || c.wheel.cursor < 0 {
		return most
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
	for t := c.wheel.cursor; t < c.wheel.cursor+wheelSlots; t++ {
		if i := c.wheel.heads[t&(wheelSlots-1)]; i != 0 {
			return i
		}
	}
	return 0
}
