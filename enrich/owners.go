package enrich

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockflow/sockflow/flowcache"
)

// Owners finds the process that holds a socket, by the inode that /proc/PID/fd shows: the way of netlink mode, which sees no
// process. It belongs to one goroutine. A scan walks every descriptor that may be read, so scans are rare.
type Owners struct {
	proc   procFS
	byNode map[uint32]flowcache.ProcessID
	last   time.Time
	cost   time.Duration // of the last scan
}

// Name fills in the processes of a batch's sockets that have none.
func (o *Owners) Name(b *flowcache.Batch) {
	for i := range b.Observations {
		if s := &b.Observations[i]; s.Process.PID == 0 && s.Inode != 0 {
			s.Process = o.Lookup(s.Inode)
		}
	}
}

// NewOwners returns an index that is filled by the first Lookup.
func NewOwners(proc string) *Owners { return &Owners{proc: procFS(proc)} }

// scanInterval is the least time between two scans; it grows with their cost, to a twentieth of the time at most.
const scanInterval = 200 * time.Millisecond

// Lookup returns the process that holds a socket, with PID 0 if none is known. Of several the one with the least PID.
func (o *Owners) Lookup(inode uint32) flowcache.ProcessID {
	if id, ok := o.byNode[inode]; ok {
		return id
	}
	if now := time.Now(); now.Sub(o.last) >= max(scanInterval, 20*o.cost) {
		o.scan()
		o.last = time.Now()
		o.cost = o.last.Sub(now)
	}
	return o.byNode[inode]
}

func (o *Owners) scan() {
	o.byNode = make(map[uint32]flowcache.ProcessID, len(o.byNode))
	for _, pid := range o.proc.pids() {
		var id flowcache.ProcessID
		sockets(func(inode uint32) bool {
			if id.PID == 0 {
				st, ok := o.proc.stat(pid)
				if !ok {
					return false
				}
				id = flowcache.ProcessID{PID: pid, Start: st.start}
			}
			if other, held := o.byNode[inode]; !held || id.PID < other.PID {
				o.byNode[inode] = id
			}
			return true
		}, o.proc.tables(pid)...)
	}
}

// sockets calls f with the inode of each socket among the descriptors of some threads, until it returns false.
func sockets(f func(inode uint32) bool, tasks ...string) {
	for _, task := range tasks {
		d, err := os.Open(task + "/fd")
		if err != nil {
			continue // gone, or not ours to read
		}
		names, _ := d.Readdirnames(-1)
		d.Close()
		for _, n := range names {
			link, err := os.Readlink(task + "/fd/" + n)
			if err != nil {
				continue
			}
			rest, ok := strings.CutPrefix(link, "socket:[")
			if !ok {
				continue
			}
			inode, err := strconv.ParseUint(strings.TrimSuffix(rest, "]"), 10, 32)
			if err == nil && !f(uint32(inode)) {
				return
			}
		}
	}
}

// tables returns the folders of threads of a process that have descriptor tables: one of each table. Threads share
// the first's, unless one left it (unshare(2) with CLONE_FILES), or the first has ended. kcmp(2) compares tables; where
// the kernel has no kcmp, or refuses it, the tables of such threads are not seen.
func (p procFS) tables(pid uint32) []string {
	tasks := []string{p.dir(pid)}
	var st unix.Stat_t
	if unix.Stat(tasks[0]+"/task", &st) != nil || st.Nlink <= 3 { // 2 and the threads
		return tasks
	}
	seen := []uint32{pid}
	for _, tid := range numbers(tasks[0] + "/task") {
		if !slices.ContainsFunc(seen, func(other uint32) bool { return tid == other || sameFiles(other, tid) }) {
			seen, tasks = append(seen, tid), append(tasks, p.task(pid, tid))
		}
	}
	return tasks
}

const kcmpFiles = 2 // include/uapi/linux/kcmp.h

// sameFiles reports whether two threads have one descriptor table, or it cannot be known.
func sameFiles(a, b uint32) bool {
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), kcmpFiles, 0, 0, 0)
	return errno != 0 || order == 0
}
