package kube

import (
	"slices"
	"unique"

	"github.com/sockflow/sockflow/flowcache"
)

// Kind is a kind of object.
type Kind uint8

// Kinds.
const (
	Pod Kind = iota
	Service
	Node
	kinds
)

var kindNames = [kinds]string{"pods", "services", "nodes"}

// String is the resource's name in the API.
func (k Kind) String() string { return kindNames[k] }

// Kinds is how many there are: range over it.
func Kinds() Kind { return kinds }

// Port is a port of a service.
type Port struct {
	Proto uint8
	Port  uint16
	Node  uint16 // at every node; 0 none
}

// Object is what names need of an object of the cluster. Nobody changes it.
type Object struct {
	Kind            Kind
	UID             string
	Namespace, Name string
	Node            string           // of a pod: where it runs
	Addrs           []flowcache.Addr // of a pod, node; of a service: those that are its own (clusterIPs)
	External        []flowcache.Addr // of a service: those that others may share, by port
	Ports           []Port           // of a service
}

// Step is what a Change tells.
type Step uint8

// Steps.
const (
	Set     Step = iota // Object is there, as it is
	Delete              // it is gone: Kind and UID
	Listing             // all objects of Kind follow
	Listed              // and were told: any other is gone
)

// Change is a step in the life of the cluster.
type Change struct {
	Step   Step
	Object Object
}

// Index knows the objects of a cluster by their addresses. It belongs to one goroutine.
type Index struct {
	max      int
	notify   func(line string)
	said     bool
	known    [kinds]map[string]*entry // by UID
	count    int
	listing  [kinds]uint32 // the last list
	pods     map[flowcache.Addr]*entry
	nodes    map[flowcache.Addr]*entry
	services map[flowcache.Addr]*entry
	doors    map[door]*entry // of services
	// Pods of this host that were completed, by what was known of them.
	completed map[*flowcache.Workload]*flowcache.Workload
	stats     IndexStats
}

// maxCompleted bounds the memory: there are fewer containers on a host.
const maxCompleted = 4096

// door is where a service is spoken to. An address of zeros stands for every node.
type door struct {
	addr  flowcache.Addr
	port  uint16
	proto uint8
}

type entry struct {
	Object
	list uint32              // the last one that told of it
	work *flowcache.Workload // of a pod; made when it is asked for
	full string              // of a service: namespace/name
}

// IndexStats counts what the index did.
type IndexStats struct {
	Objects  [kinds]int
	Overflow uint64        // objects that there was no room for
	Named    [kinds]uint64 // ends of records
}

// DefaultMax is how many objects an Index remembers by default; a pod takes about 400 octets.
const DefaultMax = 200_000

// NewIndex returns an empty index of at most max objects (0: DefaultMax). notify, if set, is told in one line when there is no room for more.
func NewIndex(max int, notify func(line string)) *Index {
	if max <= 0 {
		max = DefaultMax
	}
	if notify == nil {
		notify = func(string) {}
	}
	x := &Index{
		max: max, notify: notify,
		pods: map[flowcache.Addr]*entry{}, nodes: map[flowcache.Addr]*entry{}, services: map[flowcache.Addr]*entry{}, doors: map[door]*entry{},
		completed: map[*flowcache.Workload]*flowcache.Workload{},
	}
	for k := range x.known {
		x.known[k] = map[string]*entry{}
	}
	return x
}

// Stats returns the counts.
func (x *Index) Stats() IndexStats {
	s := x.stats
	for k := range x.known {
		s.Objects[k] = len(x.known[k])
	}
	return s
}

// Apply takes over what a Source told.
func (x *Index) Apply(changes []Change) {
	for i := range changes {
		c := &changes[i]
		kind := c.Object.Kind
		switch c.Step {
		case Listing:
			x.listing[kind]++
		case Listed:
			for _, e := range x.known[kind] {
				if e.list != x.listing[kind] {
					x.remove(e)
				}
			}
		case Delete:
			if e := x.known[kind][c.Object.UID]; e != nil {
				x.remove(e)
			}
		case Set:
			x.set(&c.Object)
		}
	}
}

func (x *Index) set(o *Object) {
	old := x.known[o.Kind][o.UID]
	if old != nil {
		if old.list = x.listing[o.Kind]; old.equal(o) {
			return // most changes are of no concern here
		}
		x.remove(old)
	}
	if x.count >= x.max {
		x.stats.Overflow++
		if !x.said {
			x.said = true
			x.notify("there are more Kubernetes objects than --kube-max: some are not named")
		}
		return
	}
	e := &entry{Object: *o, list: x.listing[o.Kind]}
	e.Namespace, e.Node = unique.Make(o.Namespace).Value(), unique.Make(o.Node).Value() // thousands have the same
	x.known[o.Kind][o.UID] = e
	x.count++
	switch o.Kind {
	case Pod:
		enter(x.pods, e)
	case Node:
		enter(x.nodes, e)
	case Service:
		e.full = e.Namespace + "/" + e.Name
		enter(x.services, e)
		for d := range e.doors {
			x.doors[d] = e
		}
	}
}

func enter(to map[flowcache.Addr]*entry, e *entry) {
	for _, a := range e.Addrs {
		to[a] = e
	}
}

// leave forgets the addresses of e, but for those that another one has by now.
func leave(from map[flowcache.Addr]*entry, e *entry) {
	for _, a := range e.Addrs {
		if from[a] == e {
			delete(from, a)
		}
	}
}

func (x *Index) remove(e *entry) {
	delete(x.known[e.Kind], e.UID)
	x.count--
	switch e.Kind {
	case Pod:
		leave(x.pods, e)
	case Node:
		leave(x.nodes, e)
	case Service:
		leave(x.services, e)
		for d := range e.doors {
			if x.doors[d] == e {
				delete(x.doors, d)
			}
		}
	}
}

func (o *Object) equal(p *Object) bool {
	return o.Namespace == p.Namespace && o.Name == p.Name && o.Node == p.Node &&
		slices.Equal(o.Addrs, p.Addrs) && slices.Equal(o.External, p.External) && slices.Equal(o.Ports, p.Ports)
}

// doors yields where the service is spoken to.
func (o *Object) doors(yield func(door) bool) {
	for _, p := range o.Ports {
		for _, a := range o.Addrs {
			if !yield(door{a, p.Port, p.Proto}) {
				return
			}
		}
		for _, a := range o.External {
			if !yield(door{a, p.Port, p.Proto}) {
				return
			}
		}
		if p.Node != 0 && !yield(door{port: p.Node, proto: p.Proto}) {
			return
		}
	}
}

// Name puts names to the ends of r: the service that was spoken to; pod and node of an end that is not here; and of one that is here the pod's
// name, if only its UID is known. What an end that is here says of itself stays. Nothing is allocated for what was asked before.
func (x *Index) Name(r *flowcache.Record) {
	// Pods are at the far side of a translation, services at the near one.
	source, spoken, port, dest := r.Key.Src, r.Key.Dst, r.Key.DstPort, r.Key.Dst
	if r.Pre != (flowcache.Translation{}) {
		source, spoken, port = r.Pre.Src, r.Pre.Dst, r.Pre.DstPort
	}
	if r.Post != (flowcache.Translation{}) {
		dest = r.Post.Dst
	}
	if s := x.service(spoken, port, r.Key.Proto); s != nil {
		r.Dest.Service = s.full
		x.stats.Named[Service]++
	}
	x.end(&r.Source, source)
	x.end(&r.Dest, dest)
}

func (x *Index) end(end *flowcache.End, a flowcache.Addr) {
	if !end.Local {
		x.elsewhere(end, a)
		return
	}
	end.Container = x.Complete(end.Container)
}

// Complete returns w, which is on this host or nil, with the name of its pod where no runtime told it and the control group has no more than the UID.
func (x *Index) Complete(w *flowcache.Workload) *flowcache.Workload {
	if w == nil || w.PodUID == "" || w.PodName != "" {
		return w
	}
	if named := x.completed[w]; named != nil {
		return named
	}
	p := x.known[Pod][w.PodUID]
	if p == nil {
		return w
	}
	named := *w
	named.PodName, named.PodNamespace = p.Name, p.Namespace
	if len(x.completed) >= maxCompleted {
		clear(x.completed)
	}
	x.completed[w] = &named
	return &named
}

func (x *Index) service(a flowcache.Addr, port uint16, proto uint8) *entry {
	if s := x.doors[door{a, port, proto}]; s != nil {
		return s
	}
	if s := x.services[a]; s != nil {
		return s
	}
	if x.nodes[a] != nil {
		return x.doors[door{port: port, proto: proto}]
	}
	return nil
}

func (x *Index) elsewhere(end *flowcache.End, a flowcache.Addr) {
	if a.IsLoopback() {
		return
	}
	if p := x.pods[a]; p != nil {
		if p.work == nil {
			p.work = &flowcache.Workload{PodName: p.Name, PodNamespace: p.Namespace, PodUID: p.UID}
		}
		if end.Container == nil {
			end.Container = p.work
		}
		end.Node = p.Node
		x.stats.Named[Pod]++
		return
	}
	if n := x.nodes[a]; n != nil {
		end.Node = n.Name
		x.stats.Named[Node]++
	}
}
