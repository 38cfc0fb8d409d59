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
	busy       []uint32 // namespaces with entries
	refreshed  time.Time
	stats      ConntrackStats
}

// ConntrackStats counts what was asked.
type ConntrackStats struct {
	Lookups    uint64 // flows
	Translated uint64
	Errors     uint64
}

const (
	conntrackRefresh = 10 * time.Second
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
	if now := time.Now(); now.Sub(c.refreshed) > conntrackRefresh {
		c.refreshed = now
		c.refresh()
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

// refresh follows the namespaces and finds those with entries.
func (c *Conntrack) refresh() {
	found := c.namespaces()
	for inode, conn := range c.open {
		if _, still := found[inode]; !still {
			conn.Close()
			delete(c.open, inode)
		}
	}
	c.busy = c.busy[:0]
	for inode, path := range found {
		conn := c.open[inode]
		if conn == nil {
			var err error
			if conn, err = dialNetfilter(path); err != nil {
				continue // gone, or not ours to enter
			}
			c.open[inode] = conn
		}
		if c.entries(conn) > 0 {
			c.busy = append(c.busy, inode)
		}
	}
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

// entries is how many connections a namespace tracks; 0 also where it tracks none at all. The kernel marks its one answer as
// part of several that never come: it is read directly.
func (c *Conntrack) entries(conn *netlink.Conn) uint32 {
	conn.SetReadDeadline(time.Now().Add(conntrackPatience))
	if _, err := conn.Send(netlink.Message{Header: netlink.Header{Type: ctGetStats, Flags: netlink.Request}, Data: []byte{0, 0, 0, 0}}); err != nil {
		return 0
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	const header = 16 // struct nlmsghdr
	buf := make([]byte, 1024)
	n := 0
	waited := raw.Read(func(fd uintptr) bool {
		for {
			n, _, err = unix.Recvfrom(int(fd), buf, 0)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	if waited != nil || err != nil || n < header+nfgenmsgLen || binary.NativeEndian.Uint16(buf[4:]) != ctGetStats {
		return 0
	}
	d, err := netlink.NewAttributeDecoder(buf[header+nfgenmsgLen : n])
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
	if err != nil {
		c.stats.Errors++
		return orig, reply, false
	}
	conn.SetReadDeadline(time.Now().Add(conntrackPatience))
	msgs, err := conn.Execute(netlink.Message{Header: netlink.Header{Type: ctGet, Flags: netlink.Request}, Data: data})
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			c.stats.Errors++
		}
		return orig, reply, false
	}
	if len(msgs) == 0 {
		return orig, reply, false
	}
	orig, reply, err = parseConntrack(msgs[0].Data)
	if err != nil {
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

// parseConntrack returns both directions of an entry.
func parseConntrack(b []byte) (orig, reply flowcache.Key, err error) {
	if len(b) < nfgenmsgLen {
		return orig, reply, errNoTuple
	}
	d, err := netlink.NewAttributeDecoder(b[nfgenmsgLen:])
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
