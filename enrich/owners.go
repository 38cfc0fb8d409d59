package enrich

import (
	"os"
	"strconv"
	"strings"
	"time"

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
		d, err := os.Open(o.proc.file(pid, "fd"))
		if err != nil {
			continue // gone, or not ours to read
		}
		names, _ := d.Readdirnames(-1)
		d.Close()
		var id flowcache.ProcessID
		for _, n := range names {
			link, err := os.Readlink(o.proc.file(pid, "fd/"+n))
			if err != nil {
				continue
			}
			rest, ok := strings.CutPrefix(link, "socket:[")
			if !ok {
				continue
			}
			inode, err := strconv.ParseUint(strings.TrimSuffix(rest, "]"), 10, 32)
			if err != nil {
				continue
			}
			if id.PID == 0 {
				st, ok := o.proc.stat(pid)
				if !ok {
					break
				}
				id = flowcache.ProcessID{PID: pid, Start: st.start}
			}
			if other, held := o.byNode[uint32(inode)]; !held || id.PID < other.PID {
				o.byNode[uint32(inode)] = id
			}
		}
	}
}
