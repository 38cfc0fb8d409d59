package enrich

import (
	"encoding/binary"
	"errors"
	"os"
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
)

// Conntrack asks the kernel's connection tracking (ctnetlink) how it translates the addresses of flows (NAT), in every network
// namespace that has entries: the one that translates need not be that of either end. It belongs to one goroutine.
type Conntrack struct {
	namespaces func() map[uint32]string
	open       map[uint32]*netlink.Conn
	busy       []uint32  // namespaces with entries
	listed     time.Time // when the namespaces were looked for
	counted    time.Time // and when their entries
	stats      ConntrackStats
}

// ConntrackStats counts what was asked.
type ConntrackStats struct {
	Lookups    uint64 // flows
	Translated uint64
	Errors     uint64
}

const (
	listInterval  = 10 * time.Second
	countInterval = time.Second
	// More namespaces than this are not asked for one flow.
	maxConntrackNamespaces = 16
	// The kernel answers at once. Should it not, nobody may wait for it.
	conntrackPatience = 50 * time.Millisecond
)

// NewConntrack takes a function that lists network namespaces: the path of each by inode, empty for the own.
func NewConntrack(namespaces func() map[uint32]string) *Conntrack {
	return &Conntrack{namespaces: namespaces, open: map[uint32]*netlink.Conn{}}
}

// Stats returns the counts.
func (c *Conntrack) Stats() ConntrackStats { return c.stats }

// Close lets go of the namespaces.
func (c *Conntrack) Close() {
	for inode, conn := range c.open {
		conn.Close()
		delete(c.open, inode)
	}
}

// Translate returns k as the end beyond the translation sees it, and whether there is one.
func (c *Conntrack) Translate(k flowcache.Key) (flowcache.Key, bool) {
	now := time.Now()
	if now.Sub(c.listed) > listInterval {
		c.listed = now
		c.follow()
	}
	if now.Sub(c.counted) > countInterval {
		c.counted = now
		c.busy = c.busy[:0]
		for inode, conn := range c.open {
			if c.entries(conn) > 0 {
				c.busy = append(c.busy, inode)
			}
		}
	}
	if len(c.busy) == 0 {
		return k, false
	}
	c.stats.Lookups++
	for n, inode := range c.busy {
		if n == maxConntrackNamespaces {
			break
		}
		orig, reply, ok := c.get(c.open[inode], k)
		if !ok {
			continue
		}
		// What the far end sees is what answers it: the reply, turned round. It is k itself if k is of the far end.
		far := reply.Reverse()
		if far == orig {
			continue // tracked here, and not translated
		}
		c.stats.Translated++
		far.NetNS = 0
		return far, true
	}
	return k, false
}

// follow opens namespaces that came and closes those that went.
func (c *Conntrack) follow() {
	found := c.namespaces()
	for inode, conn := range c.open {
		if _, still := found[inode]; !still {
			conn.Close()
			delete(c.open, inode)
		}
	}
	for inode, path := range found {
		if c.open[inode] != nil {
			continue
		}
		conn, err := dialNetfilter(path)
		if err != nil {
			continue // gone, or not ours to enter
		}
		c.open[inode] = conn
	}
	c.counted = time.Time{}
}

func dialNetfilter(path string) (*netlink.Conn, error) {
	cfg := &netlink.Config{}
	if path != "" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		cfg.NetNS = int(f.Fd())
	}
	return netlink.Dial(netlinkNetfilter, cfg)
}

const (
	nlmsgHeader = 16 // struct nlmsghdr
	nlmsgError  = 2
)

var errNoAnswer = errors.New("the kernel does not answer")

// call sends a request and returns the body of its one answer, after struct nfgenmsg. The library's Execute is of no use here: the
// kernel marks the answer as one of several, of which the others never come.
func call(conn *netlink.Conn, kind netlink.HeaderType, data []byte) ([]byte, error) {
	conn.SetReadDeadline(time.Now().Add(conntrackPatience))
	req, err := conn.Send(netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request}, Data: data})
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 4096)
	for {
		var n int
		var received error
		err := raw.Read(func(fd uintptr) bool {
			for {
				n, _, received = unix.Recvfrom(int(fd), buf, 0)
				if received != unix.EINTR {
					return received != unix.EAGAIN
				}
			}
		})
		switch {
		case err != nil:
			return nil, err
		case received != nil:
			return nil, received
		case n < nlmsgHeader+4:
			return nil, errNoAnswer
		case binary.NativeEndian.Uint32(buf[8:]) != req.Header.Sequence:
			continue // of an earlier request that was not waited for
		case binary.NativeEndian.Uint16(buf[4:]) == nlmsgError:
			if errno := -int32(binary.NativeEndian.Uint32(buf[nlmsgHeader:])); errno != 0 {
				return nil, unix.Errno(errno)
			}
			return nil, errNoAnswer
		}
		const header = nlmsgHeader + nfgenmsgLen
		return buf[header:max(header, min(n, int(binary.NativeEndian.Uint32(buf))))], nil
	}
}

// entries is how many connections a namespace tracks; 0 also where it tracks none at all.
func (c *Conntrack) entries(conn *netlink.Conn) uint32 {
	b, err := call(conn, ctGetStats, []byte{0, 0, 0, 0})
	if err != nil {
		return 0
	}
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return 0
	}
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		if d.Type() == ctaStatsEntries {
			return d.Uint32()
		}
	}
	return 0
}

// get looks k up, as either direction of an entry.
func (c *Conntrack) get(conn *netlink.Conn, k flowcache.Key) (orig, reply flowcache.Key, ok bool) {
	data, err := appendTuple(k)
	if err == nil {
		if data, err = call(conn, ctGet, data); err == nil {
			orig, reply, err = parseConntrack(data)
		}
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		c.stats.Errors++
	}
	return orig, reply, err == nil
}

// appendTuple makes the body of a request: struct nfgenmsg and CTA_TUPLE_ORIG.
func appendTuple(k flowcache.Key) ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	family := uint8(afInet6)
	if k.Is4() {
		family = afInet
	}
	e.Nested(ctaTupleOrig, func(e *netlink.AttributeEncoder) error {
		e.ByteOrder = binary.BigEndian
		e.Nested(ctaTupleIP, func(e *netlink.AttributeEncoder) error {
			if family == afInet {
				e.Bytes(ctaIPv4Src, k.Src[12:])
				e.Bytes(ctaIPv4Dst, k.Dst[12:])
			} else {
				e.Bytes(ctaIPv6Src, k.Src[:])
				e.Bytes(ctaIPv6Dst, k.Dst[:])
			}
			return nil
		})
		e.Nested(ctaTupleProto, func(e *netlink.AttributeEncoder) error {
			e.ByteOrder = binary.BigEndian
			e.Uint8(ctaProtoNum, k.Proto)
			e.Uint16(ctaProtoSrcPort, k.SrcPort)
			e.Uint16(ctaProtoDstPort, k.DstPort)
			return nil
		})
		return nil
	})
	attrs, err := e.Encode()
	if err != nil {
		return nil, err
	}
	return append([]byte{family, 0, 0, 0}, attrs...), nil
}

var errNoTuple = errors.New("conntrack message without tuples")

// parseConntrack returns both directions of an entry, from its attributes.
func parseConntrack(b []byte) (orig, reply flowcache.Key, err error) {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return orig, reply, err
	}
	for d.Next() {
		switch d.Type() {
		case ctaTupleOrig:
			d.Nested(func(d *netlink.AttributeDecoder) error { return parseTuple(d, &orig) })
		case ctaTupleReply:
			d.Nested(func(d *netlink.AttributeDecoder) error { return parseTuple(d, &reply) })
		}
	}
	if err := d.Err(); err != nil {
		return orig, reply, err
	}
	if orig.Proto == 0 || reply.Proto == 0 {
		return orig, reply, errNoTuple
	}
	return orig, reply, nil
}

func parseTuple(d *netlink.AttributeDecoder, k *flowcache.Key) error {
	addr := func(b []byte) (flowcache.Addr, error) {
		switch len(b) {
		case 4:
			return flowcache.AddrFrom4([4]byte(b)), nil
		case 16:
			return flowcache.Addr(b), nil
		}
		return flowcache.Addr{}, errNoTuple
	}
	for d.Next() {
		switch d.Type() {
		case ctaTupleIP:
			d.Nested(func(d *netlink.AttributeDecoder) error {
				var err error
				for d.Next() {
					switch d.Type() {
					case ctaIPv4Src, ctaIPv6Src:
						k.Src, err = addr(d.Bytes())
					case ctaIPv4Dst, ctaIPv6Dst:
						k.Dst, err = addr(d.Bytes())
					}
					if err != nil {
						return err
					}
				}
				return nil
			})
		case ctaTupleProto:
			d.Nested(func(d *netlink.AttributeDecoder) error {
				d.ByteOrder = binary.BigEndian
				for d.Next() {
					switch d.Type() {
					case ctaProtoNum:
						k.Proto = d.Uint8()
					case ctaProtoSrcPort:
						k.SrcPort = d.Uint16()
					case ctaProtoDstPort:
						k.DstPort = d.Uint16()
					}
				}
				return nil
			})
		}
	}
	return nil
}
