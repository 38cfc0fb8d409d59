package enrich

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

// Container is what a runtime says of a container, or of a pod's sandbox. Each time it is said whole, but for addresses.
type Container struct {
	// Workload names it. Its CGroupPath is where the runtime put it, below the root, if the runtime says so; it must where the
	// id is not of 64 hexadecimal digits, which control groups' names carry.
	Workload flowcache.Workload
	Created  int64 // Unix nanoseconds
	Ended    int64 // when it was removed; 0: it exists
	// At is when Addresses and Published were all it had: what it had before ends then. 0: nothing is said of them.
	At int64
	// Since is when those of them that it did not have before began to be its own; 0: Created.
	Since     int64
	Addresses []flowcache.Addr
	Published []PublishedPorts
	// Behind is what Addresses and Published stand for, where that is not the container but its pod.
	Behind *flowcache.Workload
}

// PublishedPorts are ports of the host, From to To, that stand for some of a container.
type PublishedPorts struct {
	Proto    uint8
	From, To uint16
}

// ContainerUpdate is what a runtime has to say.
type ContainerUpdate struct {
	Runtime   string // its socket
	Owner     uint32 // the user to whom the socket belongs
	Answering bool   // it answers, so that names of new containers may be waited for
	// Asking is since when a container may have addresses that the runtime is being asked for; 0: none. Who speaks to them waits for the answer.
	Asking     int64
	Containers []Container
	// Networks are those that containers of the runtime have addresses in; nil: nothing is said of them.
	Networks []netip.Prefix
}

// ContainerStats counts what became of ends of records that are, or may be, in a container, and the containers.
type ContainerStats struct {
	Named    uint64 // with names
	Unnamed  uint64 // without: no runtime had reported the container (yet)
	Late     uint64 // control groups whose names came after a record without them
	Peers    uint64 // ends that no socket shows, named by their address
	Known    int    // containers
	Overflow uint64 // containers that there was no room for
}

// containers is the part of CGroups that runtimes fill.
type containers struct {
	now       int64
	mounts    []string              // of hierarchies of control groups
	byID      map[string]*container // of 64 hexadecimal digits
	byPath    map[string]*container // where the runtime says it put them
	leases    leaseTable
	works     map[string]*resolved
	former    map[string]*resolved // what was in works before, and has not been asked for since
	rotated   int64                // when works became former
	ended     []departure          // containers that ended, first to last
	plain     int                  // containers in byPath alone
	said      uint64               // how often names have changed: what was resolved before may not hold
	answering map[string]bool
	asking    map[string]int64
	appeared  int64 // when a container was seen last that no runtime had reported
	stats     ContainerStats
}

// container is an entry, replaced whole by what is said later.
type container struct {
	Container
	runtime string
	owner   uint32
	holder  string     // of its leases
	said    int64      // when
	before  *container // that had the same path
}

// departure is the end of a container, which is to be forgotten.
type departure struct {
	at       int64
	id, path string
}

// stands is what the addresses of a container stand for.
func (e *container) stands() *flowcache.Workload {
	if e.Behind != nil {
		return e.Behind
	}
	return &e.Workload
}

// resolved is what a path stands for.
type resolved struct {
	path   string
	parsed flowcache.Workload // by its name alone
	end    int                // of the container's name in path

	said    uint64              // containers.said when it was resolved
	work    *flowcache.Workload // nil: nothing of its own
	of      *container
	open    bool  // a container, or perhaps one, that no runtime has named
	missed  bool  // a record has left without names
	nudged  bool  // runtimes were asked for it
	first   int64 // when it was seen first
	namedAt int64 // when names came, after it was missed
}

// maybe reports whether nothing but a runtime's word would make it a container.
func (r *resolved) maybe() bool { return r.end == 0 }

const (
	maxContainers = 1 << 15
	// How long names of a control group that was not there before are waited for: of a container; and of what may be none.
	namePatience  = 3 * time.Second
	maybePatience = time.Second
	// How long an address is waited for that a runtime is being asked for: it answers, but a busy one answers late.
	askPatience = 10 * time.Second
	// How long a container is remembered after its end, and a control group that no record was of.
	containerMemory = 5 * time.Minute
	// How long an address is remembered after it was given up: TCP sends again for 15 minutes (tcp_retries2 of tcp(7)) before it ends.
	leaseMemory   = 16 * time.Minute
	maxDepartures = 2 * maxContainers
	// Containers that are forgotten in one step.
	departAtOnce = 1024
	// Containers that had one path after the other and are remembered.
	maxGenerations = 8
)

func (c *containers) init() {
	c.byID = make(map[string]*container)
	c.byPath = make(map[string]*container)
	c.leases.init()
	c.works = make(map[string]*resolved)
	c.answering = make(map[string]bool)
	c.asking = make(map[string]int64)
}

// Apply takes over what a runtime says. It costs no more than the containers in u do: what is resolved otherwise by them is so when it is asked for.
func (c *containers) Apply(u *ContainerUpdate) {
	if u.Answering {
		c.answering[u.Runtime] = true
	} else {
		delete(c.answering, u.Runtime)
	}
	if u.Asking != 0 {
		c.asking[u.Runtime] = u.Asking
	} else {
		delete(c.asking, u.Runtime)
	}
	if u.Networks != nil {
		c.leases.subnets[u.Runtime] = u.Networks[:min(len(u.Networks), maxSubnets)]
	}
	for i := range u.Containers {
		c.put(&u.Containers[i], u.Runtime, u.Owner)
	}
	if len(u.Containers) > 0 {
		c.said++
	}
}

// Stats returns the counts.
func (c *containers) Stats() ContainerStats {
	s := c.stats
	s.Known = len(c.byID) + c.plain
	return s
}

// setPath enters e, or nil, where a path leads.
func (c *containers) setPath(path string, e *container) {
	if old := c.byPath[path]; old != nil && !isHexID(old.Workload.ContainerID) {
		c.plain--
	}
	if e == nil {
		delete(c.byPath, path)
		return
	}
	if c.byPath[path] = e; !isHexID(e.Workload.ContainerID) {
		c.plain++
	}
}

func (c *containers) put(t *Container, runtime string, owner uint32) {
	path, id := t.Workload.CGroupPath, t.Workload.ContainerID
	var old *container
	if path != "" {
		old = c.byPath[path]
	}
	if isHexID(id) && c.byID[id] != nil {
		old = c.byID[id]
	}
	if old == nil && len(c.byID)+len(c.byPath) >= 2*maxContainers {
		c.stats.Overflow++
		return
	}
	e := &container{Container: *t, runtime: runtime, owner: owner, holder: id, said: c.now}
	if !isHexID(id) {
		e.holder = runtime + " " + path + " " + strconv.FormatInt(t.Created, 36)
	}
	same := old != nil && old.Workload.ContainerID == id && (old.Created == t.Created || isHexID(id))
	switch {
	case old == nil:
	case same:
		e.complete(old)
		e.before = old.before
	case old.Created <= t.Created:
		if e.before = old; old.Ended == 0 {
			old.Ended = t.Created
			c.give(old, nil, t.Created)
		}
		old.limit(maxGenerations)
	default: // of one that had the path before
		old.insert(e)
		return
	}
	if isHexID(id) {
		c.byID[id] = e
	}
	if path = e.Workload.CGroupPath; path != "" {
		if same && old.Workload.CGroupPath != path && c.byPath[old.Workload.CGroupPath] == old {
			c.setPath(old.Workload.CGroupPath, nil)
		}
		c.setPath(path, e)
	}
	if e.Ended != 0 {
		if len(c.ended) >= maxDepartures {
			c.depart()
		}
		c.ended = append(c.ended, departure{min(e.Ended, max(c.now, 1)), id, path})
	}
	if !same {
		old = nil
	}
	c.give(e, old, t.Since)
}

// give notes which addresses and ports of the host e has since then, and that it has no more those of old, which was said of the same container.
// What ended has none.
func (c *containers) give(e, old *container, since int64) {
	at := e.At
	if e.Ended != 0 {
		at = e.Ended
	}
	if old == nil {
		old = &container{holder: e.holder}
	}
	if e.Ended != 0 { // all that it had
		c.stats.Overflow += uint64(c.leases.move(old, e, max(since, e.Created), at))
		c.leases.move(e, &container{holder: e.holder}, at, at)
		return
	}
	if e.At == 0 {
		e.Addresses, e.Published, e.At = old.Addresses, old.Published, old.At
		at = old.At
	}
	c.stats.Overflow += uint64(c.leases.move(old, e, max(since, e.Created), at))
}

// insert puts g, which is older than e, among the containers that had the path before.
func (e *container) insert(g *container) {
	for ; e.before != nil && e.before.Created > g.Created; e = e.before {
	}
	if b := e.before; b != nil && b.Created == g.Created && b.Workload.ContainerID == g.Workload.ContainerID {
		g.complete(b)
		g.before = b.before
	} else {
		g.before = b
	}
	if g.Ended == 0 {
		g.Ended = e.Created
	}
	e.before = g
	e.limit(maxGenerations)
}

// limit forgets all but the n containers before e.
func (e *container) limit(n int) {
	for ; e != nil; e = e.before {
		if n--; n < 0 {
			e.before = nil
			return
		}
	}
}

// at returns the container that had the path of e when a process began: e, or one before it; nil of one that is not known yet.
func (e *container) at(since int64) *container {
	if e.Ended != 0 && since > e.Ended {
		return nil
	}
	for e.before != nil && since < e.Created {
		e = e.before
	}
	return e
}

// complete keeps what was known and is not said again: of two runtimes that know a container one may know more.
func (e *container) complete(old *container) {
	w, o := &e.Workload, &old.Workload
	for _, f := range [...]struct{ to, from *string }{
		{&w.CGroupPath, &o.CGroupPath}, {&w.ContainerName, &o.ContainerName}, {&w.ContainerImage, &o.ContainerImage},
		{&w.ContainerRuntime, &o.ContainerRuntime}, {&w.PodName, &o.PodName}, {&w.PodNamespace, &o.PodNamespace},
		{&w.PodUID, &o.PodUID}, {&w.PodLabels, &o.PodLabels},
	} {
		if *f.to == "" {
			*f.to = *f.from
		}
	}
	if e.Behind == nil {
		e.Behind = old.Behind
	}
}

// find returns what path stands for, for a process that began at the time since (0: not known), and whether it may be a container that no
// runtime has named yet.
func (c *containers) find(path string, since int64) (w *flowcache.Workload, r *resolved, open bool) {
	if path == "" || path == "/" {
		return nil, nil, false
	}
	if r = c.works[path]; r == nil {
		if r = c.former[path]; r != nil {
			c.works[path] = r
		}
	}
	switch {
	case r == nil:
		r = &resolved{path: path, first: c.now}
		r.parsed, r.end = c.parsePlace(path)
		if c.resolve(r); r.open && !r.maybe() {
			c.appeared = c.now
		}
		if len(c.works) >= maxCGroups {
			c.rotate()
		}
		c.works[path] = r
	case r.said != c.said:
		was := r.open
		if c.resolve(r); was && !r.open && r.missed {
			c.stats.Late++
			r.namedAt = c.now
		}
	}
	// A path that a runtime gives to one container after another: by the time of the process.
	if of := r.of; of != nil && since != 0 && !isHexID(of.Workload.ContainerID) {
		switch g := of.at(since); g {
		case of:
		case nil:
			return nil, r, true // of one that is not known yet
		default:
			if g.Workload.CGroupPath == path {
				return &g.Workload, r, false
			}
			w := g.Workload
			w.CGroupPath = path
			return &w, r, false
		}
	}
	return r.work, r, r.open
}

// resolve makes r say what is known of its path now: the innermost container that a runtime says it put there, else the one that its name says, if
// the runtime does not say that this is elsewhere.
func (c *containers) resolve(r *resolved) {
	r.said, r.of, r.open = c.said, nil, false
	absolute := r.path
	for strings.HasPrefix(absolute, "/../") {
		absolute = absolute[3:] // as seen from within another control group namespace
	}
	for i := len(absolute); i > 0 && r.of == nil; i = strings.LastIndexByte(absolute[:i], '/') {
		r.of = c.byPath[absolute[:i]]
	}
	w := r.parsed
	elsewhere := false
	if r.of == nil && r.end > 0 {
		if e := c.byID[r.parsed.ContainerID]; e != nil {
			if elsewhere = e.Workload.CGroupPath != ""; !elsewhere {
				r.of = e
			}
		}
	}
	switch {
	case r.of != nil:
		w = r.of.Workload
		w.CGroupPath = r.path
		if w.PodUID == "" {
			w.PodUID = r.parsed.PodUID
		}
	case elsewhere: // another control group has its name
		w.ContainerID, w.ContainerRuntime = "", ""
	case r.end > 0:
		r.open = r.parsed.ContainerRuntime != "lxc"
	case r.parsed.ServiceUnit == "" && r.parsed.PodUID == "":
		r.work, r.open = nil, !strings.HasSuffix(r.path, ".slice")
		return
	}
	if r.work == nil || *r.work != w {
		r.work = &w
	}
}

// Workload returns what a path stands for, or nil if that is nothing of its own. The result is shared and immutable.
func (c *containers) Workload(path string) *flowcache.Workload {
	w, _, _ := c.find(path, 0)
	return w
}

// expected reports whether names for a control group that has been there since then may come soon.
func (c *containers) expected(r *resolved, since int64) bool {
	patience := namePatience
	if r.maybe() {
		patience = maybePatience
	}
	return len(c.answering) > 0 && c.now-since < int64(patience)
}

// awaited reports whether a runtime may still report the owner of an address at a time: a query is under way, or a
// container appeared a moment ago that no runtime has reported.
func (c *containers) awaited(at int64) bool {
	if len(c.answering) > 0 && c.now-at <= int64(namePatience) && c.now-c.appeared < int64(namePatience) {
		return true
	}
	if c.now-at > int64(askPatience) {
		return false
	}
	for _, since := range c.asking {
		if at >= since {
			return true
		}
	}
	return false
}

// Sweep forgets containers that ended long before now, and control groups that nothing was asked about for as long. It is to be called once a second: it
// costs no more than a step, and goes on with the next.
func (c *containers) Sweep(now int64) {
	c.now = max(c.now, now)
	for n := 0; n < departAtOnce && len(c.ended) > 0 && now-c.ended[0].at > int64(containerMemory); n++ {
		c.depart()
	}
	c.leases.sweep(now)
	if now-c.rotated > int64(containerMemory) {
		c.rotate()
	}
}

// depart forgets the container that ended first, unless it is there again.
func (c *containers) depart() {
	d := &c.ended[0]
	if e := c.byID[d.id]; e != nil && e.Ended != 0 {
		delete(c.byID, d.id)
	}
	if e := c.byPath[d.path]; e != nil && e.Ended != 0 && e.Workload.ContainerID == d.id {
		c.setPath(d.path, nil)
	}
	*d = departure{}
	if c.ended = c.ended[1:]; len(c.ended) == 0 {
		c.ended = nil
	}
	c.said++
}

// rotate forgets the paths that were not asked for since the last time.
func (c *containers) rotate() {
	c.former, c.works = c.works, make(map[string]*resolved)
	c.rotated = c.now
}

// isHexID reports whether an id is one that runtimes draw at random: of 64 hexadecimal digits.
func isHexID(id string) bool {
	if len(id) != 64 {
		return false
	}
	for _, b := range []byte(id) {
		if (b < '0' || b > '9') && (b < 'a' || b > 'f') {
			return false
		}
	}
	return true
}
