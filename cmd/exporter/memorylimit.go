package main

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/sockflow/sockflow/ipfix"
)

// memoryLimit is how much memory this process may take.
type memoryLimit struct {
	octets int64  // 0: as much as there is
	from   string // who says so
}

// What is resident at rest, and for each flow of sockets and of packets, garbage included: docs/sizing.md.
const (
	memoryAtRest  = 40 << 20
	memoryPerFlow = 1400
	memoryPerWire = 220
	leastFlows    = 1000 // kept under any limit
)

// memory is what --memory-limit says.
func (s *settings) memory() memoryLimit {
	switch s.memoryLimit {
	case "none":
		return memoryLimit{}
	case "auto":
		return cgroupMemory(s.proc)
	}
	n, _ := ipfix.ParseSize(s.memoryLimit) // checked by settings
	return memoryLimit{n, "--memory-limit"}
}

// flows is how many flows fit, with a third of the limit left to passes, queues, names and the kernel's part. One table at least is in use.
func (l memoryLimit) flows(s *settings) int {
	each := int64(0)
	if s.source != "none" {
		each += memoryPerFlow
	}
	if s.wire.iface != "" {
		each += memoryPerWire
	}
	return max(leastFlows, int((l.octets/3*2-memoryAtRest)/each))
}

// flowBound is --max-flows, or, if nobody has set that, no more flows than fit into the memory limit. Without fit what was set is more.
func (s *settings) flowBound(limit memoryLimit) (bound int, fit bool) {
	if limit.octets == 0 {
		return s.maxFlows, true
	}
	room := limit.flows(s)
	if s.flags.Changed("max-flows") {
		return s.maxFlows, s.maxFlows <= room
	}
	return min(s.maxFlows, room), true
}

// boundMemory keeps the probe within the memory limit: a process that is killed for it loses all its flows.
func (x *probe) boundMemory() {
	limit := x.s.memory()
	if limit.octets != 0 && os.Getenv("GOMEMLIMIT") == "" {
		// The heap may grow to twice what is in use before garbage is looked for. Near the limit it is better looked for sooner: that takes
		// processor time, of which the runtime takes half at most. The last third is for what the runtime does not count: the program's pages,
		// 300 octets that the kernel keeps for each socket and, in cgroup v2, the maps of eBPF.
		debug.SetMemoryLimit(limit.octets / 3 * 2)
	}
	var fit bool
	x.maxFlows, fit = x.s.flowBound(limit)
	switch {
	case !fit:
		x.log.Warn("so many flows may take more memory than the limit", "max-flows", x.maxFlows, "fit", limit.flows(x.s), "limit", limit.octets, "from", limit.from)
	case x.maxFlows < x.s.maxFlows:
		x.log.Info("the memory limit bounds the flows", "max-flows", x.maxFlows, "limit", limit.octets, "from", limit.from)
	}
}

// cgroupMemory is the lowest memory limit of the control groups that this process is in, as far as it sees them.
func cgroupMemory(proc string) (lowest memoryLimit) {
	groups, _ := os.ReadFile(proc + "/self/cgroup")
	mounts, _ := os.ReadFile(proc + "/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		// id parent device root place options [more] - type source options
		before, after, _ := strings.Cut(strings.TrimSpace(line), " - ")
		f, fs := strings.Fields(before), strings.Fields(after)
		if len(f) < 5 || len(fs) < 3 {
			continue
		}
		controller, files := "", []string{"memory.max", "memory.high"}
		switch {
		case fs[0] == "cgroup2":
		case fs[0] == "cgroup" && strings.Contains(","+fs[2]+",", ",memory,"):
			controller, files = "memory", []string{"memory.limit_in_bytes"}
		default:
			continue
		}
		below, ok := strings.CutPrefix(ownGroup(string(groups), controller), strings.TrimSuffix(f[3], "/"))
		if !ok || below != "" && below[0] != '/' {
			continue // not in this part of the tree, or seen from within another namespace ("/..")
		}
		for dir := filepath.Clean("/" + below); ; dir = filepath.Dir(dir) {
			for _, name := range files {
				file := filepath.Join(f[4], dir, name)
				b, _ := os.ReadFile(file)
				n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64) // "max" is none, and in cgroup v1 the most pages there can be
				if err == nil && n > 0 && n < 1<<62 && (lowest.octets == 0 || n < lowest.octets) {
					lowest = memoryLimit{n, file}
				}
			}
			if dir == "/" {
				break
			}
		}
	}
	return lowest
}

// ownGroup is the path in the hierarchy of a controller, "" for that of cgroup2, as /proc/self/cgroup has it (cgroups(7)).
func ownGroup(lines, controller string) string {
	for line := range strings.Lines(lines) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && strings.Contains(","+f[1]+",", ","+controller+",") {
			return f[2]
		}
	}
	return ""
}
