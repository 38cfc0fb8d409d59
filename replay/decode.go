package replay

import (
	"encoding/binary"

	"github.com/sockflow/sockflow/flowcache"
)

// packet is what a flow wants to know of a packet. Addresses are two words each, as flowcache.Addr holds them, read little endian.
type packet struct {
	tuple
	time    int64
	octets  uint32 // of the IP layer, as its header says
	payload uint32 // octets above the transport header
	packets uint32
	seq     uint32 // TCP
	flags   uint8  // tcpControlBits but for NS
	kind    kind
	hash    uint32
	guess   uint32 // a flow that may be its own
}

// tuple is the 5-tuple as the packet has it, or, once ordered, with the lower end first.
type tuple struct {
	src0, src1, dst0, dst1 uint64
	// ports is source port << 32 | destination port << 16 | mappedBit | protocol: the fifth word of a key.
	ports uint64
}

type kind uint8

const (
	kindTCP     kind = 1 << iota // its TCP header was captured
	kindSwapped                  // the tuple is in order, and the packet went from its second end to its first
	kindAnswer                   // it shows that its sender was spoken to
	kindMapped                   // IPv6 between IPv4-mapped addresses: not IPv4
	kindNS                       // the ninth flag
)

// mappedBit is in the ports of IPv6 packets between IPv4-mapped addresses, whose addresses are as those of IPv4 are
// held.
const mappedBit = 1 << 8

func (t *tuple) proto() uint8 { return uint8(t.ports) }

func (t *tuple) setPorts(src, dst uint16, proto uint8) {
	t.ports = uint64(src)<<32 | uint64(dst)<<16 | uint64(proto)
}

// swap exchanges the ends.
func (t *tuple) swap() {
	t.src0, t.src1, t.dst0, t.dst1 = t.dst0, t.dst1, t.src0, t.src1
	t.ports = t.ports&0xffff0000<<16 | t.ports>>16&0xffff0000 | t.ports&0xffff
}

// order puts the lower end first, and reports whether it was second.
func (t *tuple) order() bool {
	if t.src1 != t.dst1 {
		if t.src1 < t.dst1 {
			return false
		}
	} else if t.src0 != t.dst0 {
		if t.src0 < t.dst0 {
			return false
		}
	} else if t.ports>>32 <= t.ports>>16&0xffff {
		return false
	}
	t.swap()
	return true
}

// key returns the Flow Key.
func (t *tuple) key() (k flowcache.Key) {
	binary.LittleEndian.PutUint64(k.Src[:], t.src0)
	binary.LittleEndian.PutUint64(k.Src[8:], t.src1)
	binary.LittleEndian.PutUint64(k.Dst[:], t.dst0)
	binary.LittleEndian.PutUint64(k.Dst[8:], t.dst1)
	k.SrcPort, k.DstPort, k.Proto = uint16(t.ports>>32), uint16(t.ports>>16), t.proto()
	k.Mapped = t.ports&mappedBit != 0
	return k
}

// Protocol numbers (IANA).
const (
	protoHopByHop = 0
	protoICMP     = 1
	protoIPIP     = 4
	protoTCP      = flowcache.ProtoTCP
	protoUDP      = flowcache.ProtoUDP
	protoDCCP     = 33
	protoIPv6     = 41
	protoRouting  = 43
	protoFragment = 44
	protoGRE      = 47
	protoAH       = 51
	protoICMPv6   = 58
	protoDestOpts = 60
	protoSCTP     = 132
	protoUDPLite  = flowcache.ProtoUDPLite
)

// decoder turns captured octets into packets. It keeps the ports of fragmented datagrams, and nothing else.
type decoder struct {
	decap bool
	frags fragments
}

// ip decodes an IP packet with its length on the wire, which stands in for the length that segmentation offload leaves out. A fragment
// that came before the first of its datagram waits, and comes out of d.frags later.
func (d *decoder) ip(b []byte, ether uint16, wire int, p *packet) (fate Fate, waits bool) {
	return d.ipAt(b, ether, wire, p, 0)
}

// ipAt is ip within as many tunnels as depth says.
func (d *decoder) ipAt(b []byte, ether uint16, wire int, p *packet, depth int) (fate Fate, waits bool) {
	var (
		rest  []byte
		proto uint8
		f     fragment
	)
	if ether == etherIPv4 {
		rest, proto, f, fate = ipv4(b, wire, p)
	} else {
		rest, proto, f, fate = ipv6(b, wire, p)
	}
	if fate != Counted {
		return fate, false
	}
	p.setPorts(0, 0, proto)
	length := int(p.payload) // above IP
	if f.offset != 0 {
		return Counted, d.frags.later(p, f)
	}
	d.transport(rest, proto, length, p)
	if f.is {
		d.frags.first(p, f)
		return Counted, false
	}
	if d.decap && depth < maxTags {
		if in, kind, headers := tunnel(rest, proto, p); in != nil {
			inner := packet{time: p.time, packets: p.packets}
			if fate, waits = d.nested(in, kind, length-headers, &inner, depth+1); fate == Counted {
				*p = inner
				return Counted, waits
			}
		}
	}
	return Counted, false // or what the tunnel carries is not IP: it is the tunnel's
}

// ipv4 decodes the header (RFC 791). It returns what was captured after it.
func ipv4(b []byte, wire int, p *packet) (rest []byte, proto uint8, f fragment, fate Fate) {
	if len(b) < 20 {
		return nil, 0, f, Truncated
	}
	b0 := b[0]
	header, total := int(b0&15)*4, int(be16(b[2:]))
	if total == 0 {
		total = wire // segmentation offload
	}
	if b0>>4 != 4 || header < 20 || total < header {
		return nil, 0, f, Malformed
	}
	p.octets, p.payload = uint32(total), uint32(total-header)
	const mapped = 0xffff0000
	p.src0, p.src1 = 0, uint64(binary.LittleEndian.Uint32(b[12:]))<<32|mapped
	p.dst0, p.dst1 = 0, uint64(binary.LittleEndian.Uint32(b[16:]))<<32|mapped
	proto = b[9]
	if o := be16(b[6:]); o&0x3fff != 0 { // more fragments, or not the first
		f = fragment{is: true, offset: o & 0x1fff, id: uint32(be16(b[4:]))}
	}
	rest = b[min(header, len(b)):min(total, len(b))]
	if proto == protoAH && !f.is {
		rest, proto = pastAH(rest, p)
	}
	return rest, proto, f, Counted
}

// pastAH skips an Authentication Header (RFC 4302): what it protects is in the clear.
func pastAH(b []byte, p *packet) ([]byte, uint8) {
	if len(b) < 8 {
		return b, protoAH
	}
	n := (int(b[1]) + 2) * 4
	if n > int(p.payload) {
		return b, protoAH
	}
	p.payload -= uint32(n)
	return b[min(n, len(b)):], b[0]
}

// ipv6 decodes the header and the extension headers (RFC 8200).
func ipv6(b []byte, wire int, p *packet) (rest []byte, proto uint8, f fragment, fate Fate) {
	if len(b) < 40 {
		return nil, 0, f, Truncated
	}
	if b[0]>>4 != 6 {
		return nil, 0, f, Malformed
	}
	proto = b[6]
	payload := int(be16(b[4:]))
	if payload == 0 {
		switch proto {
		case protoHopByHop: // a jumbogram (RFC 2675)?
			payload = jumbo(b[40:])
		case protoTCP, protoUDP: // segmentation offload
			payload = max(0, wire-40)
		}
	}
	p.src0, p.src1 = binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
	p.dst0, p.dst1 = binary.LittleEndian.Uint64(b[24:]), binary.LittleEndian.Uint64(b[32:])
	const mapped = 0xffff0000
	if p.src0|p.dst0 == 0 && p.src1&0xffffffff == mapped && p.dst1&0xffffffff == mapped {
		p.kind |= kindMapped
	}
	p.octets, p.payload = uint32(40+payload), uint32(payload)
	rest = b[40:min(40+payload, len(b))]
	for range maxTags {
		switch proto {
		case protoHopByHop, protoRouting, protoDestOpts:
			if len(rest) < 8 {
				return nil, proto, f, Counted
			}
			n := (int(rest[1]) + 1) * 8
			if n > int(p.payload) {
				return nil, proto, f, Counted
			}
			proto = rest[0]
			p.payload -= uint32(n)
			rest = rest[min(n, len(rest)):]
		case protoAH:
			var next uint8
			if rest, next = pastAH(rest, p); next == protoAH {
				return rest, proto, f, Counted
			}
			proto = next
		case protoFragment:
			if len(rest) < 8 || p.payload < 8 {
				return nil, proto, f, Counted
			}
			o := be16(rest[2:])
			if o&0xfff9 != 0 { // else it is whole (RFC 6946)
				f = fragment{is: true, offset: o >> 3, id: be32(rest[4:])}
			}
			proto = rest[0]
			p.payload -= 8
			rest = rest[8:]
			if f.offset != 0 {
				return nil, proto, f, Counted
			}
		default:
			return rest, proto, f, Counted
		}
	}
	return nil, proto, f, Counted
}

// jumbo returns the length in a jumbo payload option, or 0.
func jumbo(b []byte) int {
	if len(b) < 8 {
		return 0
	}
	end := min(len(b), (int(b[1])+1)*8)
	for i := 2; i+1 < end; {
		switch b[i] {
		case 0: // Pad1
			i++
			continue
		case 0xc2:
			if b[i+1] == 4 && i+6 <= end {
				if n := be32(b[i+2:]); n > 0xffff && n < 1<<31 {
					return int(n)
				}
			}
			return 0
		}
		i += 2 + int(b[i+1])
	}
	return 0
}

// transport decodes ports and what stands for them, and takes the transport header off the payload.
func (d *decoder) transport(b []byte, proto uint8, length int, p *packet) {
	header := 0
	switch proto {
	case protoTCP:
		header = 20
		if len(b) >= 14 {
			p.kind |= kindTCP
			p.seq = be32(b[4:])
			p.flags = b[13]
			if b[12]&1 != 0 {
				p.kind |= kindNS
			}
			header = max(20, int(b[12]>>4)*4)
			if b[13]&(flowcache.FlagSYN|flowcache.FlagACK) == flowcache.FlagSYN|flowcache.FlagACK {
				p.kind |= kindAnswer
			}
		}
	case protoUDP, protoUDPLite:
		header = 8
	case protoSCTP, protoDCCP:
		header = 12
	case protoICMP, protoICMPv6:
		p.payload = uint32(max(0, length-8))
		if len(b) >= 2 {
			icmp(b[0], b[1], proto, p)
		}
		return
	default:
		return
	}
	if len(b) >= 4 {
		p.setPorts(be16(b), be16(b[2:]), proto)
	}
	p.payload = uint32(max(0, length-header))
}

// icmp puts type * 256 + code in the place of the port of the end that is spoken to; an answer belongs to its question.
func icmp(typ, code, proto uint8, p *packet) {
	question := typ
	if proto == protoICMP {
		switch typ {
		case 0:
			question = 8 // echo
		case 14, 16, 18:
			question = typ - 1 // timestamp, information, address mask
		}
	} else if typ == 129 {
		question = 128
	}
	v := uint16(question)<<8 | uint16(code)
	if question != typ {
		p.kind |= kindAnswer
		p.setPorts(v, 0, proto)
	} else {
		p.setPorts(0, v, proto)
	}
}
