package enrich

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/sockflow/sockflow/flowcache"
)

// Numbers of include/uapi/linux/netfilter/{nfnetlink,nfnetlink_conntrack}.h.
const (
	netlinkNetfilter = 12

	ctGet      = 1<<8 | 1 // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
	ctGetStats = 1<<8 | 5

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaZone       = 18

	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaTupleZone  = 3 // of one direction alone

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3

	ctaStatsEntries = 1

	nfgenmsgLen = 4
	afInet      = 2
	afInet6     = 10
	protoSCTP   = 132
)

const (
	nlmsgHeader = 16 // struct nlmsghdr
	nlmsgError  = 2
	nlmsgDone   = 3
	nlmRequest  = 1
	nlmDump     = 0x300
)

var (
	errNoAnswer = errors.New("the kernel does not answer")
	ne          = binary.NativeEndian
)

// begin starts a request: struct nlmsghdr, whose length comes last, and struct nfgenmsg.
func (c *Conntrack) begin(kind uint16, family uint8) {
	b := append(c.request[:0], 0, 0, 0, 0)
	b = ne.AppendUint16(b, kind)
	b = ne.AppendUint16(b, nlmRequest)
	c.sequence++
	b = ne.AppendUint32(b, c.sequence)
	c.request = append(b, 0, 0, 0, 0, family, 0, 0, 0)
}

// call sends the request and returns the attributes of its one answer, valid until the next call. The kernel answers within the system
// call that asks, so nobody waits. The library's Execute and Receive are of no use here: they allocate, and the kernel marks the answer as one of
// several, of which the others never come.
func (c *Conntrack) call(t *tracker) ([]byte, error) {
	ne.PutUint32(c.request, uint32(len(c.request)))
	if _, err := unix.Write(t.fd, c.request); err != nil {
		return nil, err
	}
	const header = nlmsgHeader + nfgenmsgLen
	for {
		n, err := unix.Read(t.fd, c.answer[:])
		if err != nil {
			return nil, err
		}
		b := c.answer[:n]
		switch {
		case n < header:
			return nil, errNoAnswer
		case ne.Uint32(b[8:]) != c.sequence:
			continue // of an earlier request
		case ne.Uint16(b[4:]) == nlmsgError:
			if errno := -int32(ne.Uint32(b[nlmsgHeader:])); errno != 0 {
				return nil, unix.Errno(errno)
			}
			return nil, errNoAnswer
		}
		return b[header:max(header, min(n, int(ne.Uint32(b))))], nil
	}
}

// entries is how many connections a namespace tracks; 0 also where it tracks none at all.
func (c *Conntrack) entries(t *tracker) (n uint32) {
	c.begin(ctGetStats, 0)
	b, err := c.call(t)
	if err != nil {
		return 0
	}
	eachAttribute(b, func(kind uint16, v []byte) {
		if kind == ctaStatsEntries && len(v) == 4 {
			n = binary.BigEndian.Uint32(v)
		}
	})
	return n
}

// get looks k up in a zone, as either direction of an entry.
func (c *Conntrack) get(t *tracker, k flowcache.Key, zone uint16) (orig, reply flowcache.Key, ok bool) {
	family := uint8(afInet6)
	if k.Is4() {
		family = afInet
	}
	c.begin(ctGet, family)
	c.request = appendTuple(c.request, ctaTupleOrig, k)
	if zone != 0 {
		c.request = appendAttribute(c.request, ctaZone, byte(zone>>8), byte(zone))
	}
	b, err := c.call(t)
	if err == nil {
		orig, reply, err = parseConntrack(b)
	}
	if err != nil && err != unix.ENOENT {
		c.stats.Errors++
	}
	return orig, reply, err == nil
}

const nested = 1 << 15 // NLA_F_NESTED

// appendAttribute appends a struct nlattr with its value, whose length is a multiple of 4 or which is padded.
func appendAttribute(b []byte, kind uint16, v ...byte) []byte {
	b = ne.AppendUint16(b, uint16(4+len(v)))
	b = ne.AppendUint16(b, kind)
	b = append(b, v...)
	return append(b, make([]byte, -len(v)&3)...)
}

// appendTuple appends CTA_TUPLE_ORIG or CTA_TUPLE_REPLY.
func appendTuple(b []byte, kind uint16, k flowcache.Key) []byte {
	start := len(b)
	open := func(kind uint16) int {
		b = append(b, 0, 0)
		b = ne.AppendUint16(b, kind|nested)
		return len(b) - 4
	}
	shut := func(at int) { ne.PutUint16(b[at:], uint16(len(b)-at)) }
	open(kind)
	ip := open(ctaTupleIP)
	if k.Is4() {
		b = appendAttribute(b, ctaIPv4Src, k.Src[12:]...)
		b = appendAttribute(b, ctaIPv4Dst, k.Dst[12:]...)
	} else {
		b = appendAttribute(b, ctaIPv6Src, k.Src[:]...)
		b = appendAttribute(b, ctaIPv6Dst, k.Dst[:]...)
	}
	shut(ip)
	proto := open(ctaTupleProto)
	b = appendAttribute(b, ctaProtoNum, k.Proto)
	b = appendAttribute(b, ctaProtoSrcPort, byte(k.SrcPort>>8), byte(k.SrcPort))
	b = appendAttribute(b, ctaProtoDstPort, byte(k.DstPort>>8), byte(k.DstPort))
	shut(proto)
	shut(start)
	return b
}

var errNoTuple = errors.New("conntrack message without tuples")

// eachAttribute calls f for each struct nlattr of b, without its flags, and reports whether b is well formed.
func eachAttribute(b []byte, f func(kind uint16, v []byte)) bool {
	for len(b) >= 4 {
		n := int(ne.Uint16(b))
		if n < 4 || n > len(b) {
			return false
		}
		f(ne.Uint16(b[2:])&0x3fff, b[4:n])
		b = b[min((n+3)&^3, len(b)):]
	}
	return len(b) == 0
}

// parseConntrack returns both directions of an entry, from its attributes.
func parseConntrack(b []byte) (orig, reply flowcache.Key, err error) {
	good := true
	whole := eachAttribute(b, func(kind uint16, v []byte) {
		switch kind {
		case ctaTupleOrig:
			good = parseTuple(v, &orig) && good
		case ctaTupleReply:
			good = parseTuple(v, &reply) && good
		}
	})
	if !whole || !good || orig.Proto == 0 || reply.Proto == 0 {
		return orig, reply, errNoTuple
	}
	return orig, reply, nil
}

func parseTuple(b []byte, k *flowcache.Key) bool {
	ok := true
	addr := func(to *flowcache.Addr, v []byte) {
		switch len(v) {
		case 4:
			*to = flowcache.AddrFrom4([4]byte(v))
		case 16:
			*to = flowcache.Addr(v)
		default:
			ok = false
		}
	}
	port := func(to *uint16, v []byte) {
		if ok = ok && len(v) == 2; ok {
			*to = binary.BigEndian.Uint16(v)
		}
	}
	each := func(b []byte, f func(uint16, []byte)) {
		if !eachAttribute(b, f) {
			ok = false
		}
	}
	each(b, func(kind uint16, v []byte) {
		switch kind {
		case ctaTupleIP:
			each(v, func(kind uint16, v []byte) {
				switch kind {
				case ctaIPv4Src, ctaIPv6Src:
					addr(&k.Src, v)
				case ctaIPv4Dst, ctaIPv6Dst:
					addr(&k.Dst, v)
				}
			})
		case ctaTupleProto:
			each(v, func(kind uint16, v []byte) {
				switch kind {
				case ctaProtoNum:
					if ok = ok && len(v) == 1; ok {
						k.Proto = v[0]
					}
				case ctaProtoSrcPort:
					port(&k.SrcPort, v)
				case ctaProtoDstPort:
					port(&k.DstPort, v)
				}
			})
		}
	})
	return ok
}
