package enrich

import (
	"strings"

	"github.com/sockflow/sockflow/flowcache"
)

// OldestCGroups returns the control group of the oldest process of each network namespace, by which it is a
// container's or not: others, of the host or of containers that share it, enter it later. members are process ids
// by namespace, proc is where proc is mounted. The paths are as /proc/PID/cgroup shows them here. Safe for
// concurrent use.
func OldestCGroups(proc string, members map[uint32][]uint32) map[uint32]string {
	paths := make(map[uint32]string, len(members))
	for inode, pids := range members {
		oldest, first := uint32(0), procStat{}
		for _, pid := range pids {
			if st, ok := procFS(proc).stat(pid); ok && (oldest == 0 || st.start < first.start || st.start == first.start && pid < oldest) {
				oldest, first = pid, st
			}
		}
		if path, _ := parseProcCGroup(cgroupLines(procFS(proc).dir(oldest))); oldest != 0 && path != "" {
			paths[inode] = path
		}
	}
	return paths
}

// Interface fills in the container of an interface: the one whose namespace it is in, or that at the other end of a
// veth. Of two, one inside the other, it is the inner one. own and peer are the control groups of the two
// namespaces, as OldestCGroups returns them, empty if unknown.
func (e *Enricher) Interface(i *flowcache.Interface, own, peer string) {
	own, peer = e.CGroups.absolute(own), e.CGroups.absolute(peer)
	i.Container = e.container(own)
	if i.Container == nil || strings.HasPrefix(peer, own+"/") {
		if w := e.container(peer); w != nil {
			i.Container = w
		}
	}
}

// container is what a control group stands for, if it is a container or a pod.
func (e *Enricher) container(cgroup string) *flowcache.Workload {
	w := e.CGroups.Workload(cgroup)
	if w == nil || w.ContainerID == "" && w.PodUID == "" {
		return nil
	}
	return w
}
