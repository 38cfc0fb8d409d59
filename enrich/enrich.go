package enrich

import "github.com/sockflow/sockflow/flowcache"

// Namer completes what a control group's name tells of a container by what its runtime knows: names, image, pod. It must not
// wait. The result is shared and immutable; nil if nothing is known (yet).
type Namer interface {
	Name(w *flowcache.Workload) *flowcache.Workload
}

// Enricher puts names to the ends of records. It belongs to one goroutine.
type Enricher struct {
	Processes *Processes
	CGroups   *CGroups
	Namer     Namer // nil: ids only
}

// Enrich fills Who and Container of each end that is local. Nothing is allocated for what is known.
func (e *Enricher) Enrich(r *flowcache.Record) {
	e.end(&r.Source)
	e.end(&r.Dest)
}

// kernel stands for the owner of sockets that belong to no process.
var kernel = &flowcache.Process{Path: "[kernel]", Name: "kernel", UID: flowcache.NoID, GID: flowcache.NoID, ParentUID: flowcache.NoID}

func (e *Enricher) end(end *flowcache.End) {
	if !end.Local {
		return
	}
	if end.Kernel {
		end.Who = kernel
		return
	}
	path := ""
	if p := e.Processes.Get(end.Process); p != nil {
		end.Who = p
		if end.UID == flowcache.NoID {
			end.UID, end.GID = p.UID, p.GID
		}
		path = p.CGroupPath
	}
	// The socket's control group is that of whoever made it; it is what remains where the process is not known.
	if path == "" {
		path = e.CGroups.Path(end.CGroup)
	}
	w := e.CGroups.Workload(path)
	if w != nil && e.Namer != nil {
		if named := e.Namer.Name(w); named != nil {
			w = named
		}
	}
	end.Container = w
}
