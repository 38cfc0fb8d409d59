package enrich

import "github.com/sockflow/sockflow/flowcache"

// Enricher puts names to the ends of records, whose times are by flowcache.Now. It belongs to one goroutine.
type Enricher struct {
	Processes *Processes
	CGroups   *CGroups
	Nudge     func() // if set, told of a container that no runtime has told of; must not wait
	stepped   int64
}

// Enrich fills Who and Container of each end that is local, and Container of one that is not, or is the kernel itself, where its address
// is a container's or a pod's of this host. Nothing is allocated for what is known.
func (e *Enricher) Enrich(r *flowcache.Record) { e.enrich(r, false) }

// EnrichOrWait is Enrich, but reports false, and that the record should be brought again, if it is the last of its flow and is of a
// container so new that its runtime may still be telling its names.
func (e *Enricher) EnrichOrWait(r *flowcache.Record) bool {
	return e.enrich(r, r.Final)
}

// Clock tells the time of the wall clock, which is that of runtimes, in Unix nanoseconds, and how far it is ahead of flowcache.Now: once before
// some records.
func (e *Enricher) Clock(now, stepped int64) {
	if e.CGroups.now = now; e.stepped != stepped {
		e.stepped = stepped
		e.Processes.reset()
	}
}

// NoMore tells that no more names will come: nothing waits for them from here on.
func (e *Enricher) NoMore() { clear(e.CGroups.answering) }

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
	c.count(src, srcOpen)
	c.count(dst, dstOpen)
	if who := r.Dest.Who; who != nil && isPortProxy(who.Name) && r.Dest.Local && (r.Dest.Container == nil || r.Dest.Container.ContainerID == "") {
		// Whoever talks to it talks to a container.
		if w := holder(c.byPort[PublishedPort{r.Key.Proto, r.Key.DstPort}], r.Start+e.stepped); w != nil {
			r.Dest.Container = w
		}
	}
	// Of an end of which no process's socket was seen its own address tells, which is behind a translation if there is one.
	if r.Source.Container == nil && (!r.Source.Local || r.Source.Kernel) {
		addr := r.Key.Src
		if r.Pre != (flowcache.Translation{}) {
			addr = r.Pre.Src
		}
		r.Source.Container = c.peer(addr, r.Start+e.stepped)
	}
	if r.Dest.Container == nil && (!r.Dest.Local || r.Dest.Kernel) {
		addr := r.Key.Dst
		if r.Post != (flowcache.Translation{}) {
			addr = r.Post.Dst
		}
		r.Dest.Container = c.peer(addr, r.Start+e.stepped)
	}
	return true
}

// isPortProxy reports whether a process of this name forwards a published port: Docker's and rootless podman's do.
func isPortProxy(name string) bool { return name == "docker-proxy" || name == "rootlessport" }

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

// peer returns the container or pod of this host that has an address, of which no socket was seen.
func (c *containers) peer(a flowcache.Addr, at int64) *flowcache.Workload {
	list := c.byAddr[a]
	if list == nil {
		return nil
	}
	w := holder(list, at)
	if w != nil {
		c.stats.Peers++
	}
	return w
}
