package flowcache

// Counters of one direction of a flow.
type Counters struct {
	Payload        uint64 // octets of the application: transportOctetDeltaCount
	Octets         uint64 // octets of the IP layer: octetDeltaCount
	Packets        uint64 // IP packets: packetDeltaCount
	RetransPackets uint64 // retransmitted segments
	RetransOctets  uint64 // retransmitted payload octets
}

// Add adds each counter of d.
func (c *Counters) Add(d *Counters) {
	c.Payload += d.Payload
	c.Octets += d.Octets
	c.Packets += d.Packets
	c.RetransPackets += d.RetransPackets
	c.RetransOctets += d.RetransOctets
}

// raise lifts each counter to that of d where d is higher, and reports whether one moved.
func (c *Counters) raise(d *Counters) bool {
	before := *c
	c.Payload = max(c.Payload, d.Payload)
	c.Octets = max(c.Octets, d.Octets)
	c.Packets = max(c.Packets, d.Packets)
	c.RetransPackets = max(c.RetransPackets, d.RetransPackets)
	c.RetransOctets = max(c.RetransOctets, d.RetransOctets)
	return *c != before
}

// reach lifts each counter to that of d, the count of the other end of a connection, but not above that of most, the own: of the packets one end
// may have counted one that the other cannot see. Where the own count is behind in payload it is only late, and nothing is held back.
func (c *Counters) reach(d, most *Counters) {
	if most.Payload < d.Payload {
		c.raise(d)
		return
	}
	lift := func(to *uint64, d, most uint64) { *to = max(*to, min(d, most)) }
	lift(&c.Payload, d.Payload, most.Payload)
	lift(&c.Octets, d.Octets, most.Octets)
	lift(&c.Packets, d.Packets, most.Packets)
	lift(&c.RetransPackets, d.RetransPackets, most.RetransPackets)
	lift(&c.RetransOctets, d.RetransOctets, most.RetransOctets)
}

// unwrap adds to c, whose packets have 32 bits, what was carried over, if it is later than before.
func (c *Counters) unwrap(before *Counters, header uint16) {
	for c.Packets+1<<31 < before.Packets {
		c.Packets += 1 << 32
		c.Octets += uint64(header) << 32
	}
}

// since returns c minus the counters that records have carried already, and 0 where that would be negative.
func (c *Counters) since(told *Counters) Counters {
	return Counters{
		Payload:        c.Payload - min(told.Payload, c.Payload),
		Octets:         c.Octets - min(told.Octets, c.Octets),
		Packets:        c.Packets - min(told.Packets, c.Packets),
		RetransPackets: c.RetransPackets - min(told.RetransPackets, c.RetransPackets),
		RetransOctets:  c.RetransOctets - min(told.RetransOctets, c.RetransOctets),
	}
}
