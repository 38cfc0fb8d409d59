package replay

// gap is a range of sequence numbers that a direction has passed over, and when.
type gap struct {
	from, to uint32
	time     uint32 // microseconds, wrapping
	next     uint32 // number of the next gap of this direction, which is lower; 0 none
}

// gapPool holds the gaps of a table's flows, so that a flow without one pays for none. Gap 0 is none.
type gapPool struct {
	all       []gap
	unused    uint32 // linked by next
	max       int
	forgotten uint64 // gaps for which there was no room: what fills one later counts as a retransmission
}

const (
	// maxGaps is how many gaps one direction of a flow has at most; the lowest is forgotten for a new one.
	maxGaps = 256
	// A table has room for so many gaps, and for one more for each flow.
	leastGaps = 1 << 16
)

// get returns an unused gap, or 0 where there is no room.
func (g *gapPool) get() uint32 {
	if i := g.unused; i != 0 {
		g.unused = g.all[i].next
		return i
	}
	if len(g.all) == 0 {
		g.all = append(g.all, gap{})
	}
	if len(g.all) > g.max {
		return 0
	}
	g.all = append(g.all, gap{})
	return uint32(len(g.all) - 1)
}

func (g *gapPool) put(i uint32) {
	g.all[i].next = g.unused
	g.unused = i
}

// clear frees a list.
func (g *gapPool) clear(head *uint32) {
	for i := *head; i != 0; {
		next := g.all[i].next
		g.put(i)
		i = next
	}
	*head = 0
}

// open puts a gap at the head of a list, where the highest is. Of a full list the lowest is forgotten.
func (g *gapPool) open(head *uint32, from, to, now uint32) {
	n, last, prev := 0, uint32(0), uint32(0)
	for i := *head; i != 0; i = g.all[i].next {
		prev, last = last, i
		n++
	}
	if n >= maxGaps {
		g.all[prev].next = 0
		g.put(last)
		g.forgotten++
	}
	i := g.get()
	if i == 0 {
		g.forgotten++
		return
	}
	g.all[i] = gap{from, to, now, *head}
	*head = i
}

// deepen puts a gap at the end of a list, where the lowest is.
func (g *gapPool) deepen(head *uint32, from, to, now uint32) {
	n, last := 0, uint32(0)
	for i := *head; i != 0; i = g.all[i].next {
		last = i
		n++
	}
	i := uint32(0)
	if n < maxGaps {
		i = g.get()
	}
	if i == 0 {
		g.forgotten++
		return
	}
	g.all[i] = gap{from: from, to: to, time: now}
	if last == 0 {
		*head = i
	} else {
		g.all[last].next = i
	}
}

// fill takes [from, to) out of the gaps of a list. It returns how many numbers of it they had, and when the highest of
// those gaps was opened.
func (g *gapPool) fill(head *uint32, from, to uint32) (filled, opened uint32) {
	for at, i := uint32(0), *head; i != 0; {
		x := &g.all[i]
		next := x.next
		if int32(x.to-from) <= 0 { // this gap and all further ones are below
			break
		}
		if int32(to-x.from) <= 0 { // it is above
			at, i = i, next
			continue
		}
		low, high := x.from, x.to
		if int32(from-low) > 0 {
			low = from
		}
		if int32(high-to) > 0 {
			high = to
		}
		if filled == 0 {
			opened = x.time
		}
		filled += high - low
		switch {
		case low == x.from && high == x.to:
			if at == 0 {
				*head = next
			} else {
				g.all[at].next = next
			}
			g.put(i)
			i = next
			continue
		case low == x.from:
			x.from = high
		case high == x.to:
			x.to = low
		default: // in its middle: the upper part is a gap of its own
			if n := g.get(); n != 0 {
				x = &g.all[i] // the pool may have moved
				g.all[n] = gap{high, x.to, x.time, i}
				if at == 0 {
					*head = n
				} else {
					g.all[at].next = n
				}
			} else {
				g.forgotten++
			}
			x.to = low
		}
		at, i = i, next
	}
	return filled, opened
}

// cut forgets what is below floor.
func (g *gapPool) cut(head *uint32, floor uint32) {
	for at, i := uint32(0), *head; i != 0; at, i = i, g.all[i].next {
		x := &g.all[i]
		if int32(x.to-floor) > 0 {
			if int32(floor-x.from) > 0 {
				x.from = floor
			}
			continue
		}
		if at == 0 {
			g.clear(head)
		} else {
			g.clear(&g.all[at].next)
		}
		return
	}
}
