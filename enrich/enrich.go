package enrich

import (
	"path/filepath"

	"github.com/sockflow/sockflow/flowcache"
)

// Enricher puts names to the ends of records, whose times are by flowcache.Now. It belongs to one goroutine.
type Enricher struct {
	Processes *Processes
	CGroups   *CGroups
	Nudge     func() // if set, called when a container is seen that no runtime has reported; must not wait
	// Crowded is set while so many records wait that none shall for the address of another end.
	Crowded bool
	stepped int64
}

// Enrich fills Who and Container of each end that is local, and Container of one that is not, or is the kernel itself, where its address
// is a container's or a pod's of this host. Nothing is allocated for what is known.
func (e *Enricher) Enrich(r *flowcache.Record) { e.enrich(r, false) }

// EnrichOrWait is Enrich, but returns false if r is the last record of its flow and a container of r is so new that its
// runtime may still report its names. The caller should then call it again later.
func (e *Enricher) EnrichOrWait(r *flowcache.Record) bool {
	return e.enrich(r, r.Final)
}

// Clock sets the time of the wall clock, which runtimes use, in Unix nanoseconds, and how far it is ahead of
// flowcache.Now. It is called once before each batch of records.
func (e *Enricher) Clock(now, stepped int64) {
	if e.CGroups.now = now; e.stepped != stepped {
		e.stepped = stepped
		e.Processes.reset()
	}
}

// NoMore notes that no more names will come: no record waits for names from here on.
func (e *Enricher) NoMore() {
	clear(e.CGroups.answering)
	clear(e.CGroups.asking)
}

// kernel stands for the owner of sockets that belong to no process.
var kernel = &flowcache.Process{Path: "[kernel]", Name: "kernel", UID: flowcache.NoID, GID: flowcache.NoID, ParentUID: flowcache.NoID}

func (e *Enricher) enrich(r *flowcache.Record, mayWait bool) bool {
	c := &e.CGroups.containers
	src, srcOpen, since := e.end(&r.Source)
	if srcOpen && mayWait && c.expected(src, since) {
		return false
	}
	dst, dstOpen, since := e.end(&r.Dest)
	if dstOpen && mayWait && c.expected(dst, since) {
		return false
	}
	// A connection is for good with whom it began; datagrams are with who has the address when they pass.
	at := r.Start + e.stepped
	r.Source.NamedLate, r.Dest.NamedLate = src.late(at), dst.late(at)
	if r.Key.Proto == flowcache.ProtoTCP && r.Began != 0 {
		at = r.Began + e.stepped
	}
	// An end without a process's socket is named by its own address, the one behind a translation if there is one.
	from, to := r.Key.Src, r.Key.Dst
	if r.Pre != (flowcache.Translation{}) {
		from = r.Pre.Src
	}
	if r.Post != (flowcache.Translation{}) {
		to = r.Post.Dst
	}
	wait := mayWait && !e.Crowded && c.awaited(at)
	if !e.published(r, at) && wait {
		return false
	}
	if !c.peer(&r.Source, from, at, wait) || !c.peer(&r.Dest, to, at, wait) {
		return false
	}
	c.count(src, srcOpen)
	c.count(dst, dstOpen)
	for _, end := range [...]*flowcache.End{&r.Source, &r.Dest} {
		if end.NamedBy == flowcache.NamedByAddress && end.Container != nil {
			c.stats.Peers++
		}
	}
	return true
}

// published names a process that forwards a published port by the container that it stands for: whoever talks to it talks to that. It reports whether there
// is no more to be known.
func (e *Enricher) published(r *flowcache.Record, at int64) bool {
	who := r.Dest.Who
	if who == nil || !r.Dest.Local || !isPortProxy(who) || r.Dest.Container != nil && r.Dest.Container.ContainerID != "" {
		return true
	}
	l := e.CGroups.leases.publisher(r.Key.Proto, r.Key.DstPort, at)
	if l == nil {
		return false
	}
	if l.owner == r.Dest.UID { // any user may give a program this name
		r.Dest.Container, r.Dest.NamedBy = l.work, flowcache.NamedByAddress
	}
	return true
}

// isPortProxy reports whether a process forwards published ports: Docker's and rootless podman's do. podman's runs by the name of exe.
func isPortProxy(p *flowcache.Process) bool {
	switch filepath.Base(p.Path) {
	case "docker-proxy", "rootlessport":
		return true
	}
	return p.Name == "docker-proxy" || p.Name == "rootlessport"
}

// end fills a local end. It returns what its control group stands for, whether a runtime may still name that, and since when it
// is there.
func (e *Enricher) end(end *flowcache.End) (r *resolved, open bool, first int64) {
	if !end.Local {
		return nil, false, 0
	}
	if end.Kernel {
		end.Who = kernel
		return nil, false, 0
	}
	path, since := "", int64(0)
	if p := e.Processes.Get(end.Process); p != nil {
		if end.UID == flowcache.NoID {
			end.UID, end.GID = p.UID, p.GID
		}
		end.Who = e.Processes.As(end.Process, end.UID, end.GID)
		path, since = p.CGroupPath, p.StartTime
		if p.CGroup != 0 {
			end.CGroup = p.CGroup
		}
	}
	// The socket's own control group is that of whoever made it, a service manager perhaps: it is for where the process is not known.
	if path == "" {
		path = e.CGroups.path(end.CGroup)
	}
	end.Container, r, open = e.CGroups.find(path, since)
	switch w := end.Container; {
	case w == nil || w.ContainerID == "" && w.PodUID == "":
		end.NamedBy = flowcache.NamedByNothing
	case r.of != nil:
		end.NamedBy = flowcache.NamedByRuntime
	default:
		end.NamedBy = flowcache.NamedByCGroup
	}
	if r == nil {
		return nil, false, 0
	}
	if open && !r.nudged && e.Nudge != nil {
		r.nudged = true
		e.Nudge()
	}
	if first = r.first; r.of != nil {
		first = since // of a container that took the place of one that ended
	}
	return r, open, first
}

// count notes what became of an end.
func (c *containers) count(r *resolved, open bool) {
	switch {
	case r == nil:
	case open:
		r.missed = true
		if !r.maybe() {
			c.stats.Unnamed++
		}
	case r.of != nil:
		c.stats.Named++
	}
}

// late reports whether names came after a record of the same control group had left without them, and after t.
func (r *resolved) late(t int64) bool { return r != nil && r.namedAt != 0 && t < r.namedAt }

// peer names an end of which no socket was seen by the container or pod of this host that had its address at a time. It reports false if wait says
// that more may be known soon, and it may be of this address.
func (c *containers) peer(end *flowcache.End, a flowcache.Addr, at int64, wait bool) bool {
	if end.Local && !end.Kernel {
		return true
	}
	end.Container, end.NamedBy = nil, flowcache.NamedByNothing
	list := c.leases.byAddr[a]
	if list == nil {
		return !wait || !c.leases.near(a)
	}
	l := list.at(at)
	if l == nil {
		return !wait
	}
	end.Container, end.NamedBy = l.work, flowcache.NamedByAddress
	return true
}
