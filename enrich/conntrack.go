package enrich

import (
	"cmp"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
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

	ctaTupleIP    = 1
	ctaTupleProto = 2

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

// Conntrack asks the kernel's connection tracking (ctnetlink) how it translates the addresses of flows (NAT), in every network
// namespace that has entries: the one that translates need not be that of either end. It belongs to one goroutine.
type Conntrack struct {
	namespaces func() map[uint32]string
	open       map[uint32]*tracker
	busy       []*tracker // those with entries, most first
	listed     time.Time  // when the namespaces were looked for
	listCost   time.Duration
	counted    time.Time // and when their entries
	countCost  time.Duration
	request    []byte
	sequence   uint32
	answer     [4096]byte
	stats      ConntrackStats
}

// tracker is the connection tracking of a namespace.
type tracker struct {
	inode   uint32
	path    string // where it was found last; empty for the own
	conn    *netlink.Conn
	fd      int // of conn, and valid as long
	entries uint32
}

// ConntrackStats counts what was asked.
type ConntrackStats struct {
	Lookups    uint64 // flows
	Translated uint64
	Errors     uint64
	Skipped    uint64 // flows that not every namespace was asked for, because too many track connections
}

const (
	listInterval  = 10 * time.Second
	countInterval = time.Second
	// Looking for namespaces, and for those with entries, earlier than that because a new flow may need it takes one part of the time.
	lookShare = 50
	// More namespaces than this are not asked for one flow.
	maxConntrackNamespaces = 16
	// A packet may be translated by several namespaces on its way, one after the other.
	maxTranslations = 4
)

// NewConntrack takes a function that lists network namespaces: the path of each by inode, empty for the own.
func NewConntrack(namespaces func() map[uint32]string) *Conntrack {
	return &Conntrack{namespaces: namespaces, open: map[uint32]*tracker{}}
}

// Stats returns the counts.
func (c *Conntrack) Stats() ConntrackStats { return c.stats }

// Close lets go of the namespaces.
func (c *Conntrack) Close() {
	for inode, t := range c.open {
		t.conn.Close()
		delete(c.open, inode)
	}
	c.busy = nil
}

// Translate returns the addresses of a flow at both its ends if they are translated on the way. k is as the end here sees it, begin
// when the flow began (Unix nanoseconds).
func (c *Conntrack) Translate(k flowcache.Key, begin int64) (flowcache.Path, bool) {
	switch k.Proto {
	case flowcache.ProtoTCP, flowcache.ProtoUDP, flowcache.ProtoUDPLite, protoSCTP:
	default:
		return flowcache.Path{}, false // nothing that our keys could be found by
	}
	c.look(k.NetNS, begin)
	if len(c.busy) == 0 {
		return flowcache.Path{}, false
	}
	c.stats.Lookups++
	own := k.NetNS
	k.NetNS = 0
	// beyond is what the other end sees, in k's direction. The namespace nearest to this end comes first, if it is known; the next one knows
	// the flow by what the first made of it.
	beyond, began := k, false
	var passed [maxTranslations]uint32
	n := 0
	for n < maxTranslations {
		inode, orig, reply, ok := c.find(beyond, own, passed[:n])
		if !ok {
			break
		}
		if n == 0 {
			began = orig == k
		}
		if began {
			beyond = reply.Reverse()
		} else {
			beyond = orig.Reverse()
		}
		passed[n] = inode
		n++
	}
	switch {
	case n == 0 || beyond == k:
		return flowcache.Path{}, false
	case began:
		c.stats.Translated++
		return flowcache.Path{Near: k, Far: beyond}, true
	}
	c.stats.Translated++
	return flowcache.Path{Near: beyond.Reverse(), Far: k.Reverse()}, true
}

// find looks for a namespace that translates k, other than those passed.
func (c *Conntrack) find(k flowcache.Key, own uint32, passed []uint32) (inode uint32, orig, reply flowcache.Key, ok bool) {
	ask := func(t *tracker) bool {
		if slices.Contains(passed, t.inode) {
			return false
		}
		orig, reply, ok = c.get(t, k)
		return ok && orig != reply.Reverse()
	}
	if t := c.open[own]; t != nil && t.entries > 0 && ask(t) {
		return own, orig, reply, true
	}
	for i, t := range c.busy {
		if i == maxConntrackNamespaces {
			c.stats.Skipped++
			break
		}
		if t.inode != own && ask(t) {
			return t.inode, orig, reply, true
		}
	}
	return 0, orig, reply, false
}

// look finds out which namespaces track connections: now and then, and sooner for a flow that began in a namespace not known, or after the last time.
func (c *Conntrack) look(own uint32, begin int64) {
	now := time.Now()
	age := now.Sub(c.listed)
	if age > listInterval || own != 0 && c.open[own] == nil && age > lookShare*c.listCost {
		c.follow()
		c.listed = time.Now()
		c.listCost = c.listed.Sub(now)
		c.counted = time.Time{}
	}
	if age := now.Sub(c.counted); age < countInterval && (begin < c.counted.UnixNano() || age < lookShare*c.countCost) {
		return
	}
	start := time.Now()
	c.busy = c.busy[:0]
	for _, t := range c.open {
		if t.entries = c.entries(t); t.entries > 0 {
			c.busy = append(c.busy, t)
		}
	}
	slices.SortFunc(c.busy, func(a, b *tracker) int { return cmp.Compare(b.entries, a.entries) })
	c.counted = start
	c.countCost = time.Since(start)
}

// follow opens namespaces that came and closes those that went.
func (c *Conntrack) follow() {
	found := c.namespaces()
	for inode, t := range c.open {
		if _, still := found[inode]; !still {
			t.conn.Close()
			delete(c.open, inode)
		}
	}
	for inode, path := range found {
		t := c.open[inode]
		if t == nil {
			var err error
			if t, err = dialNetfilter(path); err != nil {
				continue // gone, or not ours to enter
			}
			t.inode = inode
			c.open[inode] = t
		}
		t.path = path
	}
}

// LetGo closes the namespaces that everybody else has left: an open one lives on, and the devices in it. It is to be called about every
// second, and looks only whether each is where it was found.
func (c *Conntrack) LetGo() {
	for inode, t := range c.open {
		var st unix.Stat_t
		if t.path != "" && (unix.Stat(t.path, &st) != nil || uint32(st.Ino) != inode) {
			c.follow()
			c.listed, c.counted = time.Now(), time.Time{}
			return
		}
	}
}

func dialNetfilter(path string) (*tracker, error) {
	cfg := &netlink.Config{}
	if path != "" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		cfg.NetNS = int(f.Fd())
	}
	conn, err := netlink.Dial(netlinkNetfilter, cfg)
	if err != nil {
		return nil, err
	}
	t := &tracker{conn: conn}
	raw, err := conn.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { t.fd = int(fd) })
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return t, nil
}

const (
	nlmsgHeader = 16 // struct nlmsghdr
	nlmsgError  = 2
	nlmRequest  = 1
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

// get looks k up, as either direction of an entry.
func (c *Conntrack) get(t *tracker, k flowcache.Key) (orig, reply flowcache.Key, ok bool) {
	family := uint8(afInet6)
	if k.Is4() {
		family = afInet
	}
	c.begin(ctGet, family)
	c.request = appendTuple(c.request, ctaTupleOrig, k)
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
