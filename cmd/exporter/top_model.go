package main

import (
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

// topModel is what is known of live flows. It takes records in the cache loop, and gives copies to the screen.
type topModel struct {
	interval time.Duration
	proc     string
	started  chan struct{} // closed when sources are open
	mu       sync.Mutex
	flows    map[topKey]*topFlow
	records  uint64
}

// topKey names a flow for as long as it lives.
type topKey struct {
	key          flowcache.Key
	source, dest uint64 // cookies
}

// topFlow is a flow: rates of its last record, totals since the program began.
type topFlow struct {
	topKey
	src, dst          flowcache.End
	out, in           float64 // payload octets/s of the last record, from source to destination and back
	totalOut, totalIn uint64
	retrans           uint64 // segments of the last record, both directions
	rtt               uint32 // µs; 0 unknown
	last              int64  // when the last record was true
	ended             bool
}

func newTopModel(interval time.Duration, proc string) *topModel {
	return &topModel{interval: interval, proc: proc, started: make(chan struct{}), flows: map[topKey]*topFlow{}}
}

// Offer takes records. Interfaces are not shown.
func (m *topModel) Offer(batch *flowcache.Records) bool {
	defer batch.Release()
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range batch.List {
		r := &batch.List[i]
		k := topKey{r.Key, r.Source.Cookie, r.Dest.Cookie}
		f := m.flows[k]
		if f == nil {
			f = &topFlow{topKey: k}
			m.flows[k] = f
		}
		f.src, f.dst = r.Source, r.Dest
		// A flow shorter than the interval did what it did in one.
		seconds := max(time.Duration(r.End-r.Start), m.interval).Seconds()
		f.out, f.in = float64(r.Forward.Payload)/seconds, float64(r.Reverse.Payload)/seconds
		f.totalOut += r.Forward.Payload
		f.totalIn += r.Reverse.Payload
		f.retrans = r.Forward.RetransPackets + r.Reverse.RetransPackets
		if r.HasTCP {
			f.rtt = r.TCP.SRTT
		}
		f.last, f.ended = r.End, r.Final
		m.records++
	}
	return true
}

// snapshot returns copies of the flows at a time, and forgets those that ended. A flow that ended is shown for one
// interval more; one that is no longer reported has no rate.
func (m *topModel) snapshot(now int64) []topFlow {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]topFlow, 0, len(m.flows))
	for k, f := range m.flows {
		age := time.Duration(now - f.last)
		if f.ended && age > m.interval {
			delete(m.flows, k)
			continue
		}
		if age > 5*m.interval/2 {
			f.out, f.in, f.retrans = 0, 0, 0
		}
		list = append(list, *f)
	}
	return list
}

// topScope is what was chosen on the way down; its zero value is everything.
type topScope struct {
	pod, container string
	pid            uint32
}

func (s topScope) matches(e *flowcache.End) bool {
	switch {
	case s == topScope{}:
		return true
	case !e.Local:
		return false
	case s.pid != 0 && e.Process.PID != s.pid:
		return false
	case s.container != "" && containerName(e) != s.container:
		return false
	}
	return s.pod == "" || podName(e.Container) == s.pod
}

// topRow is a line: a flow, or the sum of the flows of a process, container or pod.
type topRow struct {
	id    string // stays while the row does
	scope topScope
	flow  *topFlow // of a flow's line
	end   *flowcache.End
	depth int // in the tree of processes

	flows, rtts int
	out, in     float64
	rtt         float64 // ms, the mean of what is known
	retrans     uint64
}

func (r *topRow) add(out, in float64, f *topFlow) {
	r.flows++
	r.out += out
	r.in += in
	r.retrans += f.retrans
	if f.rtt != 0 {
		r.rtts++
		r.rtt += (float64(f.rtt)/1000 - r.rtt) / float64(r.rtts)
	}
}

func podName(w *flowcache.Workload) string {
	if w == nil || w.PodName == "" {
		return ""
	}
	return w.PodNamespace + "/" + w.PodName
}

// containerName is what a process runs in: a container, else a systemd unit, else the host.
func containerName(e *flowcache.End) string {
	if s := containerOf(e.Container); s != "" {
		return s
	}
	return "(host)"
}

func programName(e *flowcache.End) string {
	switch {
	case e.Kernel:
		return "kernel"
	case e.Who == nil:
		return "?"
	case e.Who.Path == "":
		return e.Who.Name
	}
	return path.Base(e.Who.Path)
}

// flowRows returns a line for each flow of the scope.
func flowRows(flows []topFlow, scope topScope) []topRow {
	var rows []topRow
	for i := range flows {
		f := &flows[i]
		if !scope.matches(&f.src) && !scope.matches(&f.dst) {
			continue
		}
		r := topRow{id: strconv.FormatUint(f.source, 36) + "-" + strconv.FormatUint(f.dest, 36) + "-" + endpoint(f.key.Src, f.key.SrcPort) + endpoint(f.key.Dst, f.key.DstPort), flow: f}
		r.add(f.out, f.in, f)
		rows = append(rows, r)
	}
	return rows
}

// sumRows returns a line for each process, container or pod that has flows in the scope. id and scope name it; an empty id leaves
// an end out.
func sumRows(flows []topFlow, scope topScope, name func(e *flowcache.End) (string, topScope)) []topRow {
	byID := map[string]int{}
	var rows []topRow
	one := func(e *flowcache.End, out, in float64, f *topFlow) {
		if !e.Local || !scope.matches(e) {
			return
		}
		id, inner := name(e)
		if id == "" {
			return
		}
		i, ok := byID[id]
		if !ok {
			i = len(rows)
			byID[id] = i
			rows = append(rows, topRow{id: id, scope: inner, end: e})
		}
		rows[i].add(out, in, f)
	}
	for i := range flows {
		f := &flows[i]
		one(&f.src, f.out, f.in, f)
		one(&f.dst, f.in, f.out, f)
	}
	return rows
}

func processRows(flows []topFlow, scope topScope) []topRow {
	return sumRows(flows, scope, func(e *flowcache.End) (string, topScope) {
		if e.Process.PID == 0 {
			return "", scope
		}
		inner := scope
		inner.pid = e.Process.PID
		return strconv.FormatUint(uint64(e.Process.PID), 10), inner
	})
}

func containerRows(flows []topFlow, scope topScope) []topRow {
	return sumRows(flows, scope, func(e *flowcache.End) (string, topScope) {
		inner := scope
		inner.container, inner.pod = containerName(e), podName(e.Container)
		return inner.pod + " " + inner.container, inner
	})
}

func podRows(flows []topFlow, scope topScope) []topRow {
	return sumRows(flows, scope, func(e *flowcache.End) (string, topScope) {
		inner := scope
		inner.pod = podName(e.Container)
		return inner.pod, inner
	})
}

// tree puts processes below their parents, with the ancestors that have no flows, in the order of rows among siblings.
func tree(rows []topRow, proc string) []topRow {
	parents := map[uint32]uint32{}
	names := map[uint32]string{}
	children := map[uint32][]uint32{}
	own := map[uint32]*topRow{}
	known := map[uint32]bool{}
	for i := range rows {
		pid := rows[i].end.Process.PID
		own[pid] = &rows[i]
		if p := rows[i].end.Who; p != nil {
			parents[pid] = p.ParentPID
			if p.ParentPID != 0 && names[p.ParentPID] == "" {
				names[p.ParentPID] = path.Base(p.ParentPath)
			}
		}
	}
	for i := range rows {
		for pid := rows[i].end.Process.PID; pid != 0 && !known[pid]; {
			known[pid] = true
			parent, ok := parents[pid]
			if !ok {
				var name string
				if name, parent = readParent(proc, pid); names[pid] == "" {
					names[pid] = name
				}
			}
			children[parent] = append(children[parent], pid)
			pid = parent
		}
	}
	var list []topRow
	var walk func(pid uint32, depth int)
	walk = func(pid uint32, depth int) {
		for _, child := range children[pid] {
			r := topRow{id: strconv.FormatUint(uint64(child), 10)}
			if own[child] != nil {
				r = *own[child]
			} else {
				r.end = &flowcache.End{Local: true, Process: flowcache.ProcessID{PID: child}, UID: flowcache.NoID, Who: &flowcache.Process{Name: names[child]}}
			}
			r.depth = depth
			list = append(list, r)
			if depth < 64 {
				walk(child, depth+1)
			}
		}
	}
	walk(0, 0)
	return list
}

// readParent reads a process's name and parent; an empty name if it is gone.
func readParent(proc string, pid uint32) (name string, parent uint32) {
	b, err := os.ReadFile(proc + "/" + strconv.FormatUint(uint64(pid), 10) + "/stat")
	if err != nil {
		return "", 0
	}
	s := string(b)
	begin, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	if begin < 0 || end < begin {
		return "", 0
	}
	if f := strings.Fields(s[end+1:]); len(f) > 1 {
		n, _ := strconv.ParseUint(f[1], 10, 32)
		parent = uint32(n)
	}
	return s[begin+1 : end], parent
}
