package enrich

import (
	"cmp"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/sockflow/sockflow/flowcache"
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
	met        bool // an entry was found for the flow that is looked up now, translated or not
	request    []byte
	sequence   uint32
	answer     [4096]byte
	dump       []byte        // buffer of walks
	credit     time.Duration // that walks may take, as of credited
	credited   time.Time
	stats      ConntrackStats
}

// tracker is the connection tracking of a namespace.
type tracker struct {
	inode   uint32
	path    string // where it was found last; empty for the own
	conn    *netlink.Conn
	fd      int // of conn, and valid as long
	entries uint32
	zones   []uint16 // that entries are in, other than 0
	walk    *walk    // under way, to learn the zones
	walked  time.Time
}

// place is where an entry is: a zone of a namespace.
type place struct {
	inode uint32
	zone  uint16
}

// ConntrackStats counts what was asked.
type ConntrackStats struct {
	Lookups    uint64 // flows
	Translated uint64
	Errors     uint64
	Skipped    uint64 // flows that not every namespace or zone was asked for, because there are too many
}

const (
	listInterval  = 10 * time.Second
	countInterval = time.Second
	// Looking for namespaces, and for those with entries, earlier than that because a new flow may need it takes one part of the time.
	lookShare = 50
	// More namespaces than this are not asked for one flow.
	maxConntrackNamespaces = 16
	// A packet may be translated by several namespaces and zones on its way, one after the other.
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
		t.close()
		delete(c.open, inode)
	}
	c.busy = nil
}

// Translate returns the addresses of a flow at both its ends if they are translated on the way. k is as the end here sees it, begin
// when the flow began (as flowcache.Now).
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
	c.met = false
	p, ok := c.follows(k, own)
	if !ok && c.learn(own, begin) {
		p, ok = c.follows(k, own)
	}
	if ok {
		c.stats.Translated++
	}
	return p, ok
}

// follows returns the path of k, from one translation to the next.
func (c *Conntrack) follows(k flowcache.Key, own uint32) (flowcache.Path, bool) {
	// beyond is what the other end sees, in k's direction. The namespace nearest to this end comes first, if it is known; the next one knows
	// the flow by what the first made of it.
	beyond, began := k, false
	var passed [maxTranslations]place
	n := 0
	for n < maxTranslations {
		at, orig, reply, ok := c.find(beyond, own, passed[:n])
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
		passed[n] = at
		n++
	}
	switch {
	case n == 0 || beyond == k:
		return flowcache.Path{}, false
	case began:
		return flowcache.Path{Near: k, Far: beyond}, true
	}
	return flowcache.Path{Near: beyond.Reverse(), Far: k.Reverse()}, true
}

// find looks for an entry that translates k, in other places than those passed.
func (c *Conntrack) find(k flowcache.Key, own uint32, passed []place) (at place, orig, reply flowcache.Key, ok bool) {
	skipped := false
	ask := func(t *tracker) bool {
		for i := -1; i < len(t.zones); i++ {
			at = place{inode: t.inode}
			if i == maxZones {
				skipped = true
				break
			}
			if i >= 0 {
				at.zone = t.zones[i]
			}
			if slices.Contains(passed, at) {
				continue
			}
			orig, reply, ok = c.get(t, k, at.zone)
			c.met = c.met || ok
			if ok = ok && orig != reply.Reverse(); ok {
				if i > 0 { // the next flow is asked for here first
					copy(t.zones[1:i+1], t.zones[:i])
					t.zones[0] = at.zone
				}
				return true
			}
		}
		return false
	}
	if t := c.open[own]; t != nil && t.entries > 0 && ask(t) {
		return at, orig, reply, true
	}
	for i, t := range c.busy {
		if i == maxConntrackNamespaces {
			skipped = true
			break
		}
		if t.inode != own && ask(t) {
			return at, orig, reply, true
		}
	}
	if skipped {
		c.stats.Skipped++
	}
	return place{}, orig, reply, false
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
	if age := now.Sub(c.counted); age < countInterval && (begin < flowcache.At(c.counted) || age < lookShare*c.countCost) {
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
			t.close()
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

// close lets go of the namespace.
func (t *tracker) close() {
	t.conn.Close()
	if t.walk != nil {
		t.walk.conn.Close()
		t.walk = nil
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
