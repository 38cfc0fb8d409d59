package sockdiag

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"

	"github.com/sockflow/sockflow/flowcache"
)

// InterfacesConfig configures Interfaces. Its zero value is the documented default.
type InterfacesConfig struct {
	Proc     string        // where proc is mounted; default /proc
	Interval time.Duration // between readings; default 30 s
}

// InterfacesStats counts what was read.
type InterfacesStats struct {
	Readings   uint64
	Interfaces uint64 // in all readings
	Errors     uint64 // namespaces that could not be read
}

// Reading is the interfaces of all namespaces at one time, with what leads to the container behind each.
type Reading struct {
	List []flowcache.Interface
	// Peers is, for each of List, the namespace of the other end of a veth; 0 if there is none, or it is not known.
	Peers []uint32
	// Members are the processes of each namespace but that of init, whose interfaces belong to no container.
	Members map[uint32][]uint32
}

// Interfaces reads the counters of every network interface of every namespace (rtnetlink).
type Interfaces struct {
	cfg InterfacesConfig
	buf []byte

	readings, interfaces, errs atomic.Uint64
}

// NewInterfaces checks cfg. Any user may read the own namespace.
func NewInterfaces(cfg InterfacesConfig) (*Interfaces, error) {
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	if cfg.Interval == 0 {
		cfg.Interval = 30 * time.Second
	}
	if cfg.Interval < 0 {
		return nil, errors.New("the interval must be positive")
	}
	return &Interfaces{cfg: cfg, buf: make([]byte, 64<<10)}, nil
}

// Stats returns the counts so far. Safe for concurrent use.
func (r *Interfaces) Stats() InterfacesStats {
	return InterfacesStats{r.readings.Load(), r.interfaces.Load(), r.errs.Load()}
}

// Run passes a reading to the given function each interval, the first after one interval, until ctx ends.
func (r *Interfaces) Run(ctx context.Context, tell func(*Reading)) error {
	tick := time.NewTicker(r.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			tell(r.Read())
		}
	}
}

// netNamespace is a namespace while it is read.
type netNamespace struct {
	inode uint32
	path  string // empty: the caller's
	links []link
	nsids map[int32]uint32 // what it calls others
	leads int              // links with the other end elsewhere
}

// Read takes one reading. Namespaces that cannot be entered are counted.
func (r *Interfaces) Read() *Reading {
	found := Namespaces(r.cfg.Proc)
	spaces := make([]*netNamespace, 0, len(found))
	n := 0
	for inode, path := range found {
		ns := &netNamespace{inode: inode, path: path}
		spaces = append(spaces, ns)
		if err := ns.open(func(conn *netlink.Conn) error { return ns.dump(conn, r.buf) }); err != nil {
			r.errs.Add(1)
		}
		n += len(ns.links)
	}
	// Most lead to where most lead from: a container to its host.
	slices.SortFunc(spaces, func(a, b *netNamespace) int { return cmp.Or(b.leads-a.leads, cmp.Compare(a.inode, b.inode)) })
	reading := &Reading{List: make([]flowcache.Interface, 0, n), Peers: make([]uint32, 0, n), Members: r.members()}
	for _, ns := range spaces {
		if ns.leads > 0 {
			ns.open(func(conn *netlink.Conn) error { ns.name(conn, r.buf, spaces); return nil }) // it could be opened a moment ago
		}
		for i := range ns.links {
			l := &ns.links[i]
			l.NetNS = ns.inode
			peer := uint32(0)
			if l.elsewhere {
				peer = ns.nsids[l.nsid]
			}
			reading.List = append(reading.List, l.Interface)
			reading.Peers = append(reading.Peers, peer)
		}
	}
	r.readings.Add(1)
	r.interfaces.Add(uint64(n))
	return reading
}

// members lists processes by namespace, but for that of init.
func (r *Interfaces) members() map[uint32][]uint32 {
	members := map[uint32][]uint32{}
	d, err := os.Open(r.cfg.Proc)
	if err != nil {
		return members
	}
	names, _ := d.Readdirnames(-1)
	d.Close()
	host, _ := os.Readlink(r.cfg.Proc + "/1/ns/net") // may be hidden
	for _, n := range names {
		pid, err := strconv.ParseUint(n, 10, 32)
		if err != nil {
			continue
		}
		link, err := os.Readlink(r.cfg.Proc + "/" + n + "/ns/net")
		if err != nil || link == host {
			continue // gone, or not ours to see
		}
		if inode, ok := namespaceInode(link); ok {
			members[inode] = append(members[inode], uint32(pid))
		}
	}
	return members
}

// open calls f with a connection to the namespace's rtnetlink.
func (ns *netNamespace) open(f func(*netlink.Conn) error) error {
	cfg := &netlink.Config{}
	if ns.path != "" {
		f, err := os.Open(ns.path)
		if err != nil {
			return err
		}
		defer f.Close()
		cfg.NetNS = int(f.Fd())
	}
	conn, err := netlink.Dial(netlinkRoute, cfg)
	if err != nil {
		return fmt.Errorf("dial rtnetlink: %w", err)
	}
	defer conn.Close()
	return f(conn)
}

// name finds out what the namespace calls those that its links lead to, and asks no further when all are known.
func (ns *netNamespace) name(conn *netlink.Conn, buf []byte, others []*netNamespace) {
	ns.nsids = map[int32]uint32{}
	for i := range ns.links {
		if l := &ns.links[i]; l.elsewhere {
			ns.nsids[l.nsid] = 0
		}
	}
	unknown := len(ns.nsids)
	for _, other := range others {
		if unknown == 0 {
			return
		}
		if other == ns {
			continue
		}
		id, ok := nsid(conn, buf, other.path)
		if inode, wanted := ns.nsids[id]; ok && wanted && inode == 0 {
			ns.nsids[id] = other.inode
			unknown--
		}
	}
}

// dump asks for all interfaces.
func (ns *netNamespace) dump(conn *netlink.Conn, buf []byte) error {
	if _, err := conn.Send(netlink.Message{
		Header: netlink.Header{Type: rtmGetLink, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, ifinfomsgLen),
	}); err != nil {
		return fmt.Errorf("request links: %w", err)
	}
	now := time.Now().UnixNano()
	for {
		n, err := receive(conn, buf)
		if err != nil {
			return fmt.Errorf("receive links: %w", err)
		}
		err = messages(buf[:n], func(kind uint16, body []byte) error {
			if kind != rtmNewLink {
				return nil
			}
			var l link
			if err := l.parse(body); err != nil {
				return err
			}
			l.Time = now
			l.elsewhere = l.elsewhere && l.Kind == "veth"
			if l.elsewhere {
				ns.leads++
			}
			ns.links = append(ns.links, l)
			return nil
		})
		if errors.Is(err, errDone) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read links: %w", err)
		}
	}
}

// nsid asks what the namespace of conn calls that at path; not ok if it has no name for it.
func nsid(conn *netlink.Conn, buf []byte, path string) (int32, bool) {
	if path == "" {
		path = "/proc/self/ns/net"
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	b := make([]byte, 4, 12) // struct rtgenmsg, padded
	b = ne.AppendUint16(b, 8)
	b = ne.AppendUint16(b, netnsaFD)
	b = ne.AppendUint32(b, uint32(f.Fd()))
	if _, err := conn.Send(netlink.Message{Header: netlink.Header{Type: rtmGetNSID, Flags: netlink.Request}, Data: b}); err != nil {
		return 0, false
	}
	n, err := receive(conn, buf)
	if err != nil {
		return 0, false
	}
	id := int32(-1) // NETNSA_NSID_NOT_ASSIGNED
	err = messages(buf[:n], func(kind uint16, body []byte) error {
		if kind != rtmNewNSID || len(body) < 4 {
			return nil
		}
		return attributes(body[4:], func(kind uint16, v []byte) error {
			if kind == netnsaNSID && len(v) >= 4 {
				id = int32(ne.Uint32(v))
			}
			return nil
		})
	})
	return id, err == nil && id >= 0
}
