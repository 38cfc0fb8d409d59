package sockdiag

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"

	"github.com/sockflow/sockflow/flowcache"
)

// InterfacesConfig configures Interfaces. Its zero value is the documented default.
type InterfacesConfig struct {
	Proc     string        // where proc is mounted; default /proc
	Interval time.Duration // between readings; default 30 s
	// CGroup, if set, returns the path of a process's control group; empty if it is gone.
	CGroup func(pid uint32) string
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
	// Behind is, for each of List, the namespace that it leads to: for a veth that of its other end, else its own. 0 if that is not known, or is the host's.
	Behind []uint32
	// CGroups are the control groups of some processes in each such namespace: of its oldest, but for a wrap of process ids.
	CGroups map[uint32][]string
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
	if cfg.CGroup == nil {
		cfg.CGroup = func(uint32) string { return "" }
	}
	return &Interfaces{cfg: cfg, buf: make([]byte, 64<<10)}, nil
}

// Stats returns the counts so far. Safe for concurrent use.
func (r *Interfaces) Stats() InterfacesStats {
	return InterfacesStats{r.readings.Load(), r.interfaces.Load(), r.errs.Load()}
}

// Run hands out a reading each interval, the first after one, until ctx ends.
func (r *Interfaces) Run(ctx context.Context, out chan<- *Reading) error {
	tick := time.NewTicker(r.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		select {
		case out <- r.Read():
		case <-ctx.Done():
			return nil
		}
	}
}

// netNamespace is a namespace while it is read.
type netNamespace struct {
	inode uint32
	path  string // empty: the caller's
	links []link
	nsids map[int32]uint32 // what it calls others; only where a link leads elsewhere
}

// Read takes one reading. Namespaces that cannot be entered are counted.
func (r *Interfaces) Read() *Reading {
	found := Namespaces(r.cfg.Proc)
	members := r.members()
	host := r.host()
	spaces := make([]*netNamespace, 0, len(found))
	for inode, path := range found {
		spaces = append(spaces, &netNamespace{inode: inode, path: path})
	}
	slices.SortFunc(spaces, func(a, b *netNamespace) int { return int(a.inode) - int(b.inode) })
	n := 0
	for _, ns := range spaces {
		// In a container's own namespace every interface is the container's: where they lead need not be known.
		if err := ns.read(r.buf, spaces, ns.inode == host || members[ns.inode] == nil); err != nil {
			r.errs.Add(1)
		}
		n += len(ns.links)
	}
	reading := &Reading{List: make([]flowcache.Interface, 0, n), Behind: make([]uint32, 0, n), CGroups: map[uint32][]string{}}
	for _, ns := range spaces {
		for i := range ns.links {
			l := &ns.links[i]
			l.NetNS = ns.inode
			behind := ns.inode
			if ns.nsids != nil {
				behind = 0
				if l.Kind == "veth" && l.elsewhere {
					behind = ns.nsids[l.nsid]
				}
			}
			if behind == host {
				behind = 0
			}
			reading.List = append(reading.List, l.Interface)
			reading.Behind = append(reading.Behind, behind)
			if _, have := reading.CGroups[behind]; !have && behind != 0 {
				reading.CGroups[behind] = r.cgroups(members[behind])
			}
		}
	}
	r.readings.Add(1)
	r.interfaces.Add(uint64(n))
	return reading
}

// host is the namespace of init, whose interfaces belong to no container; the caller's own if init's is hidden.
func (r *Interfaces) host() uint32 {
	var st syscall.Stat_t
	if syscall.Stat(r.cfg.Proc+"/1/ns/net", &st) != nil {
		syscall.Stat(r.cfg.Proc+"/self/ns/net", &st) // best effort
	}
	return uint32(st.Ino)
}

// maxMembers is how many processes of a namespace are told: the first may be one that entered it to configure it.
const maxMembers = 4

// members lists processes by namespace, those with the lowest ids.
func (r *Interfaces) members() map[uint32][]uint32 {
	members := map[uint32][]uint32{}
	d, err := os.Open(r.cfg.Proc)
	if err != nil {
		return members
	}
	names, _ := d.Readdirnames(-1)
	d.Close()
	pids := make([]uint32, 0, len(names))
	for _, n := range names {
		if pid, err := strconv.ParseUint(n, 10, 32); err == nil {
			pids = append(pids, uint32(pid))
		}
	}
	slices.Sort(pids)
	for _, pid := range pids {
		link, err := os.Readlink(r.cfg.Proc + "/" + strconv.FormatUint(uint64(pid), 10) + "/ns/net")
		if err != nil {
			continue // gone, or not ours to see
		}
		if inode, ok := namespaceInode(link); ok && len(members[inode]) < maxMembers {
			members[inode] = append(members[inode], pid)
		}
	}
	return members
}

// cgroups are the control groups of processes, each once.
func (r *Interfaces) cgroups(pids []uint32) []string {
	var paths []string
	for _, pid := range pids {
		if path := r.cfg.CGroup(pid); path != "" && !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	return paths
}

// read fills in links, and with leads also what the namespace calls the others.
func (ns *netNamespace) read(buf []byte, others []*netNamespace, leads bool) error {
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
	if err := ns.dump(conn, buf); err != nil || !leads {
		return err
	}
	ns.nsids = map[int32]uint32{}
	if !slices.ContainsFunc(ns.links, func(l link) bool { return l.elsewhere }) {
		return nil
	}
	for _, other := range others {
		if id, ok := nsid(conn, buf, other.path); ok && other != ns {
			ns.nsids[id] = other.inode
		}
	}
	return nil
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
