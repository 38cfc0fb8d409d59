package replay

// fragment is what an IP header says of a fragment.
type fragment struct {
	is     bool
	offset uint16 // of 8 octets
	id     uint32
}

// datagramID names a fragmented datagram; that of IPv6 has no protocol.
type datagramID struct {
	src0, src1, dst0, dst1 uint64
	id                     uint32
	proto                  uint8
	mapped                 bool // IPv6 between IPv4-mapped addresses
}

// fragments finds the ports of fragments: the first of a datagram has them. Fragments that come before it wait for it.
type fragments struct {
	known   map[datagramID]*datagram
	fifo    []*datagram // in the order in which they were met; those before head are gone
	head    int
	free    []*datagram
	waiting int
	ready   []packet // have their ports, or will never have them
	orphans uint64
	met     uint64
}

type datagram struct {
	id    datagramID
	begun int64
	ports uint64
	first bool // it was seen
	wait  []packet
}

const (
	// A datagram is given up after the time of RFC 8200, section 4.5 (RFC 1122, section 3.3.2).
	fragmentTime = 60e9
	// What an attacker can take: 64 k datagrams and as many fragments that wait.
	maxDatagrams = 1 << 16
	maxWaiting   = 1 << 16
)

func (f *fragments) get(p *packet, fr fragment) *datagram {
	id := datagramID{p.src0, p.src1, p.dst0, p.dst1, fr.id, p.proto(), p.kind&kindMapped != 0}
	if id.src1&0xffffffff != 0xffff0000 || id.src0 != 0 || id.mapped {
		id.proto = 0
	}
	if g := f.known[id]; g != nil && p.time-g.begun < fragmentTime {
		return g
	} else if g != nil {
		f.giveUp(g)
	}
	f.expire(p.time)
	if len(f.fifo)-f.head >= maxDatagrams {
		f.drop(maxDatagrams / 16)
	}
	if f.known == nil {
		f.known = make(map[datagramID]*datagram)
	}
	var g *datagram
	if n := len(f.free); n > 0 {
		g, f.free = f.free[n-1], f.free[:n-1]
	} else {
		g = new(datagram)
	}
	*g = datagram{id: id, begun: p.time, wait: g.wait[:0]}
	f.known[id] = g
	f.fifo = append(f.fifo, g)
	f.met++
	return g
}

// first remembers the ports that p, the first fragment, has. Those that waited are ready.
func (f *fragments) first(p *packet, fr fragment) {
	g := f.get(p, fr)
	g.first, g.ports = true, p.ports
	f.release(g)
}

// later gives p, not the first fragment, its ports. It reports whether p has to wait for them; then it is kept.
func (f *fragments) later(p *packet, fr fragment) bool {
	g := f.get(p, fr)
	if g.first {
		p.ports = g.ports
		return false
	}
	if f.waiting >= maxWaiting {
		f.drop((len(f.fifo) - f.head + 15) / 16)
		if f.known[g.id] != g {
			f.orphans++
			return false
		}
	}
	g.wait = append(g.wait, *p)
	f.waiting++
	return true
}

// release makes ready what waits for g.
func (f *fragments) release(g *datagram) {
	for i := range g.wait {
		if g.first {
			g.wait[i].ports = g.ports
		} else {
			f.orphans++
		}
		f.ready = append(f.ready, g.wait[i])
	}
	f.waiting -= len(g.wait)
	g.wait = g.wait[:0]
}

// giveUp forgets a datagram, but leaves it in the fifo.
func (f *fragments) giveUp(g *datagram) {
	f.release(g)
	delete(f.known, g.id)
}

// drop forgets the n oldest datagrams.
func (f *fragments) drop(n int) {
	for _, g := range f.fifo[f.head : f.head+n] {
		if f.known[g.id] == g {
			f.giveUp(g)
		}
		if cap(g.wait) > 64 {
			g.wait = nil
		}
		f.free = append(f.free, g)
	}
	if f.head += n; f.head > len(f.fifo)/2 {
		f.fifo = f.fifo[:copy(f.fifo, f.fifo[f.head:])]
		f.head = 0
	}
}

// expire forgets datagrams whose time is over.
func (f *fragments) expire(now int64) {
	n := 0
	for f.head+n < len(f.fifo) && now-f.fifo[f.head+n].begun >= fragmentTime {
		n++
	}
	if n > 0 {
		f.drop(n)
	}
}
