package kube

import (
	"cmp"
	"math"
	"slices"
	"time"
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

// Object is what names need of an object of the cluster. It is immutable.
type Object struct {
	Kind            Kind
	UID             string
	Alias           string // of the pod that stands for one that kubelet has by itself: the UID that control groups have
	Namespace, Name string
	Node            string           // of a pod: where it runs
	Addrs           []flowcache.Addr // of a pod, node; of a service: those that are its own (clusterIPs)
	External        []flowcache.Addr // of a service: those that others may share, by port
	Ports           []Port           // of a service, in order
	Since           int64            // by flowcache.Now, when it may have had addresses at the soonest; 0: it is not known
	Terminating     bool             // it is being deleted: who else has its address has it
}

// weight is what of the limit of an Index an object takes: 1, and more if it has many addresses and ports.
func (o *Object) weight() int {
	return 1 + max(0, len(o.Addrs)+len(o.External)+len(o.Ports)-5)/4
}

// Step is what a Change says.
type Step uint8

// Steps.
const (
	Set     Step = iota // Object is there, as it is
	Delete              // it is gone: Kind and UID
	Listing             // all objects of Kind follow
	Listed              // and were said: any other is gone. Said once for each Sweep of weight that there may be
)

// Sweep is the weight of the objects that one step Listed looks at.
const Sweep = 256

// Change is a step in the life of the cluster.
type Change struct {
	Step   Step
	At     int64 // when it became known, by flowcache.Now
	Object Object
}

// Index knows the objects of a cluster by their addresses, and whose an address was when. It belongs to one goroutine.
type Index struct {
	max      int
	notify   func(line string)
	said     bool
	known    [kinds]map[string]*entry // by UID
	all      [kinds][]*entry          // the same
	aliases  map[string]*entry        // pods
	former   map[string]*entry        // pods that are gone and still remembered
	count    int                      // the weight of what is known, and of what is remembered
	others   int                      // of it what services and nodes have
	listing  [kinds]uint32            // the last list
	swept    [kinds]int               // where the look for what it did not show goes on
	missing  [kinds]bool              // some had no room
	pods     claims
	nodes    claims
	services claims
	external claims
	doors    map[door]*claim // node ports
	oldest   *ended          // what ended first; a list, as a slice of all would be copied when it grows
	newest   *ended
	endings  int   // how many there are
	now      int64 // of the last change
	// Pods of this host that were completed, by what was known of them.
	completed map[*flowcache.Workload]*flowcache.Workload
	stats     IndexStats
}

const (
	// maxCompleted bounds the memory: there are fewer containers on a host.
	maxCompleted = 4096
	// memory is how long it is remembered whose an address was: TCP sends again for 15 minutes (tcp_retries2 of tcp(7)) before it ends.
	memory = int64(16 * time.Minute)
	// maxClaims bounds those who have, or had, one address.
	maxClaims = 256
	// maxCrowd bounds with how many others an object shares all its addresses and ports together: they are looked through when it comes, changes and goes.
	maxCrowd = 1 << 14
	// forgetAtOnce is the weight of what is forgotten in one step because its time is over.
	forgetAtOnce = 512
)

// door is a port of every node.
type door struct {
	port  uint16
	proto uint8
}

type entry struct {
	Object
	list  uint32              // the last one that showed it
	place int                 // in all
	work  *flowcache.Workload // of a pod; made when it is asked for
	full  string              // of a service: namespace/name
}

// claim is the time in which an object had an address.
type claim struct {
	e     *entry
	next  *claim
	since int64 // it may have had it from here on
	from  int64 // it had it from here on
	till  int64 // and until then; forever: still
	n     int32 // claims from this one on, at most
}

type claims map[flowcache.Addr]*claim

const forever = math.MaxInt64

// ended are addresses that an object has no more.
type ended struct {
	e        *entry
	till     int64
	addrs    []flowcache.Addr
	external []flowcache.Addr
	doors    []door
	weight   int
	next     *ended // that ended after it
}

// IndexStats counts what the index did.
type IndexStats struct {
	Objects  [kinds]int
	Former   int           // objects, or addresses that they had, that are gone and remembered
	Overflow uint64        // objects that there was no room for
	Named    [kinds]uint64 // ends of records
}

// DefaultMax is how many objects an Index remembers by default; a pod takes about 450 octets.
const DefaultMax = 200_000

// NewIndex returns an empty index of objects of at most the weight max (0: DefaultMax): an ordinary one weighs 1, one of many addresses and ports more.
// notify, if set, is called with one line when there is no room for more.
func NewIndex(max int, notify func(line string)) *Index {
	if max <= 0 {
		max = DefaultMax
	}
	if notify == nil {
		notify = func(string) {}
	}
	x := &Index{
		max: max, notify: notify, aliases: map[string]*entry{}, former: map[string]*entry{},
		pods: claims{}, nodes: claims{}, services: claims{}, external: claims{}, doors: map[door]*claim{},
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
	s.Former = x.endings
	return s
}

// Wants reports, once, that objects of a kind were left out and that there is room for them now: a list would show them.
func (x *Index) Wants(k Kind) bool {
	if !x.missing[k] || x.count > x.max-x.max/10 {
		return false
	}
	x.missing[k] = false
	return true
}

// Apply takes over what a Source said.
func (x *Index) Apply(changes []Change) {
	for i := range changes {
		c := &changes[i]
		kind := c.Object.Kind
		x.now = max(x.now, c.At)
		switch c.Step {
		case Listing:
			x.listing[kind]++
			x.swept[kind] = -1
		case Listed:
			x.sweep(kind, c.At)
		case Delete:
			if e := x.known[kind][c.Object.UID]; e != nil {
				x.remove(e, c.At)
			}
		case Set:
			x.set(&c.Object, c.At)
		}
	}
	for x.oldest != nil && x.count > x.max {
		x.forget()
	}
	for done := 0; x.oldest != nil && x.now-x.oldest.till > memory && done < forgetAtOnce; {
		done += x.oldest.weight
		x.forget()
	}
}

// Pending reports whether something is yet to be forgotten whose time is over. Apply of nothing goes on with it.
func (x *Index) Pending() bool { return x.oldest != nil && x.now-x.oldest.till > memory }

// sweep removes, of the next objects of the weight Sweep, those that the last list did not show.
func (x *Index) sweep(k Kind, at int64) {
	if x.swept[k] < 0 {
		x.swept[k] = len(x.all[k])
	}
	for done := 0; done < Sweep; done++ {
		x.swept[k] = min(x.swept[k], len(x.all[k])) - 1
		if x.swept[k] < 0 {
			x.swept[k] = 0
			return
		}
		if e := x.all[k][x.swept[k]]; e.list != x.listing[k] {
			done += e.weight() - 1
			x.remove(e, at)
		}
	}
}

func (x *Index) set(o *Object, at int64) {
	old := x.known[o.Kind][o.UID]
	if old != nil {
		if old.list = x.listing[o.Kind]; old.equal(o) {
			return // most changes are of no concern here
		}
		x.drop(old)
	}
	if !x.room(o) {
		if old != nil {
			x.end(old, nil, at)
		}
		x.missing[o.Kind] = true
		x.overflow()
		return
	}
	crowd := maxCrowd
	if old != nil {
		crowd *= 2 // what is named is not left out because others came
	}
	if x.crowded(o, crowd) {
		if old != nil {
			x.end(old, nil, at)
		}
		x.overflow()
		return
	}
	e := &entry{Object: *o, list: x.listing[o.Kind], place: len(x.all[o.Kind])}
	e.Namespace, e.Node = unique.Make(o.Namespace).Value(), unique.Make(o.Node).Value() // thousands have the same
	if o.Kind == Service {
		e.full = e.Namespace + "/" + e.Name
	}
	x.known[o.Kind][o.UID] = e
	x.all[o.Kind] = append(x.all[o.Kind], e)
	x.add(o.Kind, o.weight())
	if o.Alias != "" && x.aliases[o.Alias] == nil {
		x.aliases[o.Alias] = e
	}
	if old != nil {
		x.end(old, e, at)
	}
	since := at
	if o.Since != 0 && (old == nil || o.Kind == Pod) {
		since = min(at, o.Since)
	}
	first, second := x.maps(o.Kind)
	for _, a := range e.Addrs {
		first[a] = x.begin(first[a], e, since, at)
	}
	for _, a := range e.External {
		second[a] = x.begin(second[a], e, since, at)
	}
	for _, d := range e.doors() {
		x.doors[d] = x.begin(x.doors[d], e, since, at)
	}
}

// crowded reports whether so many others have, or had, the addresses and ports of o that to look through them would hold up the loop. Only an object of
// many addresses can be.
func (x *Index) crowded(o *Object, most int) bool {
	n := 0
	count := func(c *claim) {
		if c != nil {
			n += int(c.n)
		}
	}
	first, second := x.maps(o.Kind)
	for _, a := range o.Addrs {
		count(first[a])
	}
	for _, a := range o.External {
		count(second[a])
	}
	for _, p := range o.Ports {
		if p.Node != 0 {
			count(x.doors[door{p.Node, p.Proto}])
		}
	}
	return n > most
}

func (x *Index) overflow() {
	x.stats.Overflow++
	if !x.said {
		x.said = true
		x.notify("there are more Kubernetes objects than --kube-max, or too many of one address: some are not named")
	}
}

func (x *Index) add(k Kind, weight int) {
	x.count += weight
	if k != Pod {
		x.others += weight
	}
}

// room reports whether there is room for o, and makes some: what is gone is forgotten first, and pods, which are many, give way to services and nodes
// while those have no more than a quarter.
func (x *Index) room(o *Object) bool {
	w := o.weight()
	for x.count+w > x.max && x.oldest != nil {
		x.forget()
	}
	for x.count+w > x.max && o.Kind != Pod && x.others+w <= x.max/4 && len(x.all[Pod]) > 0 {
		e := x.all[Pod][len(x.all[Pod])-1]
		x.drop(e)
		x.end(e, nil, x.now)
		x.missing[Pod] = true
		x.overflow()
		for x.oldest != nil && x.count+w > x.max {
			x.forget()
		}
	}
	return x.count+w <= x.max
}

func (x *Index) maps(k Kind) (own, shared claims) {
	switch k {
	case Pod:
		return x.pods, nil
	case Node:
		return x.nodes, nil
	}
	return x.services, x.external
}

// drop takes e out of what is known. Its claims stay.
func (x *Index) drop(e *entry) {
	list := x.all[e.Kind]
	last := list[len(list)-1]
	list[e.place], last.place = last, e.place
	list[len(list)-1] = nil
	x.all[e.Kind] = list[:len(list)-1]
	delete(x.known[e.Kind], e.UID)
	if x.aliases[e.Alias] == e {
		delete(x.aliases, e.Alias)
	}
	x.add(e.Kind, -e.weight())
}

func (x *Index) remove(e *entry, at int64) {
	x.drop(e)
	x.end(e, nil, at)
	if e.Kind == Pod {
		x.former[e.UID] = e
		if e.Alias != "" {
			x.former[e.Alias] = e
		}
	}
}

// end ends what old has, but for what now has of it, which is the same object as it is now; nil: it is gone.
func (x *Index) end(old, now *entry, at int64) {
	z := &ended{e: old, till: at}
	first, second := x.maps(old.Kind)
	pass := func(from claims, addrs []flowcache.Addr, keep func(*entry) []flowcache.Addr) (gone []flowcache.Addr) {
		var kept []flowcache.Addr
		if now != nil {
			kept = keep(now)
		}
		has := func(a flowcache.Addr) bool { return slices.Contains(kept, a) }
		if len(kept) > 16 {
			set := make(map[flowcache.Addr]bool, len(kept))
			for _, a := range kept {
				set[a] = true
			}
			has = func(a flowcache.Addr) bool { return set[a] }
		}
		for _, a := range addrs {
			c := from[a].of(old)
			switch {
			case c == nil:
			case has(a):
				c.e = now
			default:
				c.till = max(at, c.since)
				gone = append(gone, a)
			}
		}
		return gone
	}
	z.addrs = pass(first, old.Addrs, func(e *entry) []flowcache.Addr { return e.Addrs })
	z.external = pass(second, old.External, func(e *entry) []flowcache.Addr { return e.External })
	var kept []door
	if now != nil {
		kept = now.doors()
	}
	for _, d := range old.doors() {
		c := x.doors[d].of(old)
		switch _, found := slices.BinarySearchFunc(kept, d, door.compare); {
		case c == nil:
		case found:
			c.e = now
		default:
			c.till = max(at, c.since)
			z.doors = append(z.doors, d)
		}
	}
	n := len(z.addrs) + len(z.external) + len(z.doors)
	if now != nil && n == 0 {
		return
	}
	z.weight = 1 + n/4
	x.count += z.weight
	x.endings++
	if x.newest == nil {
		x.oldest = z
	} else {
		x.newest.next = z
	}
	x.newest = z
}

// forget lets go of what ended first.
func (x *Index) forget() {
	z := x.oldest
	first, second := x.maps(z.e.Kind)
	for _, a := range z.addrs {
		first.forget(a, z)
	}
	for _, a := range z.external {
		second.forget(a, z)
	}
	for _, d := range z.doors {
		if c := x.doors[d].without(z); c == nil {
			delete(x.doors, d)
		} else {
			x.doors[d] = c
		}
	}
	for _, uid := range [...]string{z.e.UID, z.e.Alias} {
		if x.former[uid] == z.e {
			delete(x.former, uid)
		}
	}
	x.count -= z.weight
	x.endings--
	if x.oldest = z.next; x.oldest == nil {
		x.newest = nil
	}
}

func (m claims) forget(a flowcache.Addr, z *ended) {
	if c := m[a].without(z); c == nil {
		delete(m, a)
	} else {
		m[a] = c
	}
}

// begin adds a claim of e to c, unless e has one. Who had the address before is who may have had it until now. Of too many claims the oldest that has
// ended is forgotten; if none has, this one is left out.
func (x *Index) begin(c *claim, e *entry, since, from int64) *claim {
	n := 0
	var old **claim
	for at := &c; *at != nil; at = &(*at).next {
		o := *at
		if o.e == e && o.till == forever {
			return c
		}
		if o.till != forever {
			if old = at; o.till <= from {
				since = max(since, o.till)
			}
		}
		n++
	}
	if n >= maxClaims {
		if old == nil {
			x.overflow()
			return c
		}
		*old = (*old).next
	}
	return &claim{e: e, next: c, since: since, from: from, till: forever, n: int32(min(n, maxClaims-1) + 1)}
}

// of returns the claim that e has.
func (c *claim) of(e *entry) *claim {
	for ; c != nil; c = c.next {
		if c.e == e && c.till == forever {
			return c
		}
	}
	return nil
}

// without returns c without what ended with z.
func (c *claim) without(z *ended) *claim {
	var list *claim
	at, n := &list, int32(0)
	for ; c != nil; c = c.next {
		if c.e == z.e && c.till != forever && c.till <= max(z.till, c.since) {
			continue
		}
		*at = c
		at = &c.next
		n++
	}
	*at = nil
	for c := list; c != nil; c = c.next {
		c.n = n
		n--
	}
	return list
}

// at returns whose it was at a time: of several who is not about to go, and of those the last. Before it is known that an object has an address that
// others had before, it is only taken to be that one's if something was sent from there.
func (c *claim) at(t int64, sent bool) *entry {
	var best, early *claim
	for o := c; o != nil; o = o.next {
		switch {
		case t >= o.till:
		case t >= o.from:
			if best == nil || best.leaving() && !o.leaving() || best.leaving() == o.leaving() && (o.from > best.from || o.from == best.from && o.since > best.since) {
				best = o
			}
		case t >= o.since:
			if sent || o.next == nil && c == o {
				early = o
			}
		}
	}
	switch {
	case best != nil:
		return best.e
	case early != nil:
		return early.e
	}
	return nil
}

// leaving reports whether the object that has the address is being deleted.
func (c *claim) leaving() bool { return c.till == forever && c.e.Terminating }

// sharing returns the first of the services that share an address, or a port of every node, which has that port: nobody takes it from it.
func (c *claim) sharing(t int64, proto uint8, port uint16) *entry {
	var best *claim
	for o := c; o != nil; o = o.next {
		if t >= o.till || t < o.since || !o.e.has(proto, port) {
			continue
		}
		if best == nil || o.since <= best.since {
			best = o
		}
	}
	if best == nil {
		return nil
	}
	return best.e
}

// has reports whether a service has a port.
func (o *Object) has(proto uint8, port uint16) bool {
	_, ok := slices.BinarySearchFunc(o.Ports, Port{Proto: proto, Port: port}, comparePorts)
	return ok
}

func comparePorts(a, b Port) int {
	return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
}

func (d door) compare(e door) int {
	return cmp.Or(cmp.Compare(d.proto, e.proto), cmp.Compare(d.port, e.port))
}

// equal reports whether all that names come from is the same.
func (o *Object) equal(p *Object) bool {
	return o.Namespace == p.Namespace && o.Name == p.Name && o.Node == p.Node && o.Alias == p.Alias && o.Terminating == p.Terminating &&
		slices.Equal(o.Addrs, p.Addrs) && slices.Equal(o.External, p.External) && slices.Equal(o.Ports, p.Ports)
}

// doors returns the ports that the service has at every node, in order.
func (o *Object) doors() []door {
	var list []door
	for _, p := range o.Ports {
		if p.Node != 0 {
			list = append(list, door{p.Node, p.Proto})
		}
	}
	slices.SortFunc(list, door.compare)
	return slices.Compact(list)
}

// Name puts names to the ends of r: the service that was spoken to; pod and node of an end that is not here; and of one that is here the pod's
// name, if only its UID is known. What an end that is here says of itself stays. Names are of the time at which a connection began, or at which
// datagrams passed; r has its times by flowcache.Now. Nothing is allocated for what was asked before.
func (x *Index) Name(r *flowcache.Record) {
	// Pods are at the far side of a translation, services at the near one.
	source, spoken, port, dest := r.Key.Src, r.Key.Dst, r.Key.DstPort, r.Key.Dst
	if r.Pre != (flowcache.Translation{}) {
		source, spoken, port = r.Pre.Src, r.Pre.Dst, r.Pre.DstPort
	}
	if r.Post != (flowcache.Translation{}) {
		dest = r.Post.Dst
	}
	at := r.Start
	if r.Key.Proto == flowcache.ProtoTCP && r.Began != 0 {
		at = r.Began
	}
	if s := x.service(spoken, port, r.Key.Proto, at); s != nil {
		r.Dest.Service = s.full
		x.stats.Named[Service]++
	}
	x.name(&r.Source, source, at, r.Forward.Packets+r.Forward.Payload > 0)
	x.name(&r.Dest, dest, at, r.Reverse.Packets+r.Reverse.Payload > 0)
}

func (x *Index) name(end *flowcache.End, a flowcache.Addr, at int64, sent bool) {
	if !end.Local {
		x.elsewhere(end, a, at, sent)
		return
	}
	if w := x.Complete(end.Container); w != end.Container {
		end.Container = w
		if end.NamedBy == flowcache.NamedByCGroup {
			end.NamedBy = flowcache.NamedByUID
		}
	}
}

// Complete returns w, which is on this host or nil, with the name of its pod where no runtime said it and the control group has no more than the UID.
func (x *Index) Complete(w *flowcache.Workload) *flowcache.Workload {
	if w == nil || w.PodUID == "" || w.PodName != "" {
		return w
	}
	if named := x.completed[w]; named != nil {
		return named
	}
	p := x.known[Pod][w.PodUID]
	if p == nil {
		p = x.aliases[w.PodUID]
	}
	if p == nil {
		p = x.former[w.PodUID]
	}
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

func (x *Index) service(a flowcache.Addr, port uint16, proto uint8, at int64) *entry {
	if s := x.services[a].at(at, true); s != nil {
		return s
	}
	if s := x.external[a].sharing(at, proto, port); s != nil {
		return s
	}
	if x.nodes[a] != nil && x.nodes[a].at(at, true) != nil {
		return x.doors[door{port, proto}].first(at)
	}
	return nil
}

// first returns who had a port of every node first.
func (c *claim) first(t int64) *entry {
	var best *claim
	for ; c != nil; c = c.next {
		if t < c.till && t >= c.since && (best == nil || c.since <= best.since) {
			best = c
		}
	}
	if best == nil {
		return nil
	}
	return best.e
}

func (x *Index) elsewhere(end *flowcache.End, a flowcache.Addr, at int64, sent bool) {
	if a.IsLoopback() {
		return
	}
	if p := x.pods[a].at(at, sent); p != nil {
		if p.work == nil {
			p.work = &flowcache.Workload{PodName: p.Name, PodNamespace: p.Namespace, PodUID: p.UID}
		}
		if end.Container == nil {
			end.Container, end.NamedBy = p.work, flowcache.NamedByKubeAddress
		}
		end.Node = p.Node
		x.stats.Named[Pod]++
		return
	}
	if n := x.nodes[a].at(at, true); n != nil {
		end.Node = n.Name
		if end.Container == nil {
			end.NamedBy = flowcache.NamedByKubeAddress
		}
		x.stats.Named[Node]++
	}
}
