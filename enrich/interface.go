package enrich

import "github.com/sockflow/sockflow/flowcache"

// ProcCGroup returns the path of a process's control group, as /proc/PID/cgroup below proc has it; empty if the process is gone. Safe for
// concurrent use.
func ProcCGroup(proc string, pid uint32) string { return procFS(proc).cgroup(pid) }

// Interface fills in the container of an interface: the first among the control groups of processes in the namespace that it leads to. A
// process of the host that is in it, to configure it say, is none.
func (e *Enricher) Interface(i *flowcache.Interface, cgroups []string) {
	for _, path := range cgroups {
		if w := e.CGroups.Workload(path); w != nil && (w.ContainerID != "" || w.PodUID != "") {
			i.Container = w
			return
		}
	}
}
