package enrich

import (
	"slices"
	"strings"
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

// Container is what a runtime tells of a container, or of a pod's sandbox. It is told whole each time.
type Container struct {
	// Workload names it. Its CGroupPath is where the runtime put it, below the root, if the runtime says so; it must where the
	// id is not of 64 hexadecimal digits, which control groups' names carry.
	Workload  flowcache.Workload
	Created   int64 // Unix nanoseconds
	Ended     int64 // when it was removed; 0: it exists
	Addresses []flowcache.Addr
	Published []PublishedPort
	// Behind is what Addresses and Published stand for, where that is not the container but its pod.
	Behind *flowcache.Workload
}

// PublishedPort is a port of the host that stands for one of a container.
type PublishedPort struct {
	Proto uint8
	Port  uint16
}

// ContainerUpdate is what a runtime has to say.
type ContainerUpdate struct {
	Runtime    string // its socket
	Answering  bool   // it answers, so that names of new containers may be waited for
	Containers []Container
}

// ContainerStats counts what became of ends of records that are, or may be, in a container, and the containers.
type ContainerStats struct {
	Named    uint64 // with names
	Unnamed  uint64 // without: no runtime had told (yet)
	Late     uint64 // control groups whose names came after a record without them
	Peers    uint64 // ends that no socket shows, named by their address
	Known    int    // containers
	Overflow uint64 // containers that there was no room for
}

// containers is the part of CGroups that runtimes fill.
type containers struct {
	now       int64
	byID      map[string]*container // of 64 hexadecimal digits
	byPath    map[string]*container // where the runtime says it put them
	byAddr    map[flowcache.Addr][]lease
	byPort    map[PublishedPort][]lease
	works     map[string]*resolved
	open      map[string]*resolved // those that a runtime may still name
	answering map[string]bool
	stats     ContainerStats
}

// container is an entry, replaced whole by what is told later.
type container struct {
	Container
	before *container  // that had the same path
	bound  []*resolved // what stands for it
}

// lease is the time in which a container had an address, or a port of the host.
type lease struct {
	id          string
	work        *flowcache.Workload
	since, till int64 // till 0: still
}

// resolved is what a path stands for.
type resolved struct {
	path   string
	parsed flowcache.Workload // by its name alone
	end    int                // of the container's name in path

	work   *flowcache.Workload // nil: nothing of its own
	of     *container
	open   bool  // a container, or perhaps one, that no runtime has named
	missed bool  // a record has left without names
	nudged bool  // runtimes were asked for it
	first  int64 // when it was seen first
	used   int64
}

// maybe reports whether nothing but a runtime's word would make it a container.
func (r *resolved) maybe() bool { return r.end == 0 }

const (
	maxContainers = 1 << 15
	// How long names of a control group that was not there before are waited for: of a container; and of what may be none.
	namePatience  = 3 * time.Second
	maybePatience = time.Second
	// How long a container is remembered after its end, and a control group that no record was of.
	containerMemory = 5 * time.Minute
	// Leases of one address or port that are remembered.
	maxLeases = 4
)

func (c *containers) init() {
	c.byID = make(map[string]*container)
	c.byPath = make(map[string]*container)
	c.byAddr = make(map[flowcache.Addr][]lease)
	c.byPort = make(map[PublishedPort][]lease)
	c.works = make(map[string]*resolved)
	c.open = make(map[string]*resolved)
	c.answering = make(map[string]bool)
}

// Apply takes over what a runtime says.
func (c *containers) Apply(u *ContainerUpdate) {
	if u.Answering {
		c.answering[u.Runtime] = true
	} else {
		delete(c.answering, u.Runtime)
	}
	for i := range u.Containers {
		c.put(&u.Containers[i])
	}
	if len(u.Containers) == 0 {
		return
	}
	for path, r := range c.open {
		if c.resolve(r); !r.open {
			delete(c.open, path)
			if r.missed {
				c.stats.Late++
			}
		}
	}
}

// Stats returns the counts.
func (c *containers) Stats() ContainerStats {
	s := c.stats
	s.Known = len(c.byID)
	for _, e := range c.byPath {
		if !isHexID(e.Workload.ContainerID) {
			s.Known++
		}
	}
	return s
}

func (c *containers) put(t *Container) {
	path, id := t.Workload.CGroupPath, t.Workload.ContainerID
	old := c.byPath[path]
	if path == "" {
		old = nil
	}
	if isHexID(id) && c.byID[id] != nil {
		old = c.byID[id]
	}
	if old == nil && len(c.byID)+len(c.byPath) >= 2*maxContainers {
		c.stats.Overflow++
		return
	}
	e := &container{Container: *t}
	switch {
	case old == nil:
	case old.Workload.ContainerID == id && (old.Created == t.Created || isHexID(id)):
		e.complete(old)
		e.before = old.before
	case old.Created <= t.Created:
		if e.before = old; old.Ended == 0 {
			old.Ended = t.Created
		}
		old.before = nil
	default:
		return // of one that had the path before
	}
	if isHexID(id) {
		c.byID[id] = e
	}
	if path = e.Workload.CGroupPath; path != "" {
		c.byPath[path] = e
	}
	c.lease(e)
	if old != nil {
		for _, r := range old.bound {
			c.resolve(r)
		}
		old.bound = nil
	}
}

// complete keeps what was known and is not told again: of two runtimes that know a container one may know more.
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
	if e.Ended != 0 && len(e.Addresses)+len(e.Published) == 0 {
		e.Addresses, e.Published = old.Addresses, old.Published
	}
	if e.Behind == nil {
		e.Behind = old.Behind
	}
}

// lease notes which addresses and ports of the host stand for e.
func (c *containers) lease(e *container) {
	work := e.Behind
	if work == nil {
		work = &e.Workload
	}
	l := lease{e.Workload.ContainerID, work, e.Created, e.Ended}
	for _, a := range e.Addresses {
		c.byAddr[a] = renew(c.byAddr[a], l)
	}
	for _, p := range e.Published {
		c.byPort[p] = renew(c.byPort[p], l)
	}
}

func renew(list []lease, l lease) []lease {
	for i := range list {
		if list[i].id == l.id && (list[i].since == l.since || isHexID(l.id)) {
			list[i] = l
			return list
		}
	}
	if len(list) == maxLeases {
		list = append(list[:0], list[1:]...)
	}
	return append(list, l)
}

// holder returns who had an address or port at a time, nil if nobody did, or more than one that cannot be told apart.
func holder(list []lease, at int64) *flowcache.Workload {
	var found *flowcache.Workload
	for i := range list {
		if l := &list[i]; l.since <= at && (l.till == 0 || at < l.till) {
			if found != nil {
				return nil
			}
			found = l.work
		}
	}
	return found
}

// find returns what path stands for, for a process that began at the time since (0: not known), and whether it may be a container that no
// runtime has named yet.
func (c *containers) find(path string, since int64) (w *flowcache.Workload, r *resolved, open bool) {
	if path == "" || path == "/" {
		return nil, nil, false
	}
	r = c.works[path]
	if r == nil {
		r = &resolved{path: path, first: c.now}
		r.parsed, r.end = parseCGroup(path)
		c.resolve(r)
		if len(c.works) >= 2*maxCGroups {
			clear(c.works)
			clear(c.open)
		}
		c.works[path] = r
		if r.open {
			c.open[path] = r
		}
	}
	r.used = c.now
	// A path that a runtime gives to one container after another: by the time of the process.
	if of := r.of; of != nil && since != 0 && !isHexID(of.Workload.ContainerID) {
		switch before := of.before; {
		case of.Ended != 0 && since > of.Ended:
			return nil, r, true // of one that is not told yet
		case before != nil && since < of.Created:
			w := before.Workload
			w.CGroupPath = path
			return &w, r, false
		}
	}
	return r.work, r, r.open
}

// resolve makes r say what is known of its path now: the innermost container, whether its name is enough to know one or a runtime
// says that it put one there.
func (c *containers) resolve(r *resolved) {
	var inner, outer *container
	at := r.end
	if r.end > 0 {
		inner = c.byID[r.parsed.ContainerID]
	}
	absolute := r.path
	for strings.HasPrefix(absolute, "/../") {
		absolute = absolute[3:] // as seen from within another control group namespace
	}
	for i := len(absolute); i > 0; i = strings.LastIndexByte(absolute[:i], '/') {
		if e := c.byPath[absolute[:i]]; e != nil {
			if i += len(r.path) - len(absolute); i >= at {
				inner, at = e, i
			} else {
				outer = e
			}
			break
		}
	}
	r.of, r.open = inner, false
	w := r.parsed
	switch {
	case inner != nil:
		inner.bound = append(inner.bound, r)
		w = inner.Workload
		w.CGroupPath = r.path
		if w.PodUID == "" {
			w.PodUID = r.parsed.PodUID
		}
	case r.end > 0:
		r.open = r.parsed.ContainerRuntime != "lxc"
		if outer != nil {
			w.PodName, w.PodNamespace, w.PodUID, w.PodLabels = outer.Workload.PodName, outer.Workload.PodNamespace, outer.Workload.PodUID, outer.Workload.PodLabels
		}
	case r.parsed.ServiceUnit == "" && r.parsed.PodUID == "":
		r.work, r.open = nil, !strings.HasSuffix(r.path, ".slice")
		return
	}
	r.work = &w
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

// Sweep forgets containers that ended long before now, and control groups that nothing was asked about for as long.
func (c *containers) Sweep(now int64) {
	c.now = max(c.now, now)
	gone := func(t int64) bool { return t != 0 && now-t > int64(containerMemory) }
	for id, e := range c.byID {
		if gone(e.Ended) {
			delete(c.byID, id)
		}
	}
	for path, e := range c.byPath {
		if gone(e.Ended) {
			delete(c.byPath, path)
		}
	}
	sweepLeases(c.byAddr, gone)
	sweepLeases(c.byPort, gone)
	for path, r := range c.works {
		if gone(max(r.used, 1)) || r.of != nil && gone(r.of.Ended) {
			delete(c.works, path)
			delete(c.open, path)
		}
	}
	for _, m := range [...]map[string]*container{c.byID, c.byPath} {
		for _, e := range m {
			e.bound = slices.DeleteFunc(e.bound, func(r *resolved) bool { return c.works[r.path] != r })
		}
	}
}

func sweepLeases[K comparable](m map[K][]lease, gone func(int64) bool) {
	for k, list := range m {
		kept := list[:0]
		for _, l := range list {
			if !gone(l.till) {
				kept = append(kept, l)
			}
		}
		if m[k] = kept; len(kept) == 0 {
			delete(m, k)
		}
	}
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
