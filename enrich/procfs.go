package enrich

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockflow/sockflow/flowcache"
)

// tick is the unit of field 22 of /proc/PID/stat: USER_HZ is 100 on every Linux.
const tick = 10 * time.Millisecond

// procFS reads proc(5) below its root. What cannot be read is empty: processes vanish, and hidepid and LSMs hide them.
type procFS string

// dir is the folder of a process.
func (p procFS) dir(pid uint32) string {
	return string(p) + "/" + strconv.FormatUint(uint64(pid), 10)
}

// pids returns the processes.
func (p procFS) pids() []uint32 { return numbers(string(p)) }

// numbers returns the names in a folder that are numbers.
func numbers(dir string) []uint32 {
	d, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	var list []uint32
	for _, name := range names {
		if n, err := strconv.ParseUint(name, 10, 32); err == nil {
			list = append(list, uint32(n))
		}
	}
	return list
}

// task is the folder of a thread of a process.
func (p procFS) task(pid, tid uint32) string {
	return p.dir(pid) + "/task/" + strconv.FormatUint(uint64(tid), 10)
}

// thread returns the folder that describes a process: its own or, where its first thread has ended while others go
// on (pthread_exit(3) in main), that of another. Of a thread that has ended proc shows no executable, no
// descriptors and, in cgroup v1, no group; its user is that of its end.
func (p procFS) thread(pid uint32, st *procStat) string {
	if st.state == 'Z' {
		for _, tid := range numbers(p.dir(pid) + "/task") {
			if tid == pid {
				continue
			}
			b, _ := os.ReadFile(p.task(pid, tid) + "/stat")
			if other, ok := parseStat(b); ok && other.state != 'Z' && other.state != 'X' {
				return p.task(pid, tid)
			}
		}
	}
	return p.dir(pid)
}

type procStat struct {
	comm  string
	state byte // of its first thread: Z has ended
	ppid  uint32
	start uint64
}

func (p procFS) stat(pid uint32) (procStat, bool) {
	b, err := os.ReadFile(p.dir(pid) + "/stat")
	if err != nil {
		return procStat{}, false
	}
	return parseStat(b)
}

// parseStat reads /proc/PID/stat. The name, in parentheses, may hold blanks and parentheses itself.
func parseStat(b []byte) (procStat, bool) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return procStat{}, false
	}
	f := strings.Fields(string(b[end+1:])) // from field 3, state
	if len(f) < 20 {
		return procStat{}, false
	}
	ppid, err1 := strconv.ParseUint(f[1], 10, 32)
	start, err2 := strconv.ParseUint(f[19], 10, 64)
	return procStat{string(b[open+1 : end]), f[0][0], uint32(ppid), start}, err1 == nil && err2 == nil
}

// alive reports whether the process still exists.
func (p procFS) alive(id flowcache.ProcessID) bool {
	st, ok := p.stat(id.PID)
	return ok && st.start == id.Start
}

// The following take the folder of a process, or of one of its threads.

// exe returns the path of the executable as the process sees it, without the mark of a deleted file. proc shows it
// as this program would see it: of a process that has changed its root (chroot(2)) the way to that comes first.
func exe(dir string) string {
	path, err := os.Readlink(dir + "/exe")
	if err != nil {
		return ""
	}
	path = strings.TrimSuffix(path, " (deleted)")
	if root, err := os.Readlink(dir + "/root"); err == nil && root != "/" {
		if below, ok := strings.CutPrefix(path, root); ok && strings.HasPrefix(below, "/") {
			return below
		}
	}
	return path
}

// ids returns the effective user and group.
func ids(dir string) (uid, gid uint32) {
	b, err := os.ReadFile(dir + "/status")
	if err != nil {
		return flowcache.NoID, flowcache.NoID
	}
	return effective(b, "\nUid:"), effective(b, "\nGid:")
}

// effective returns the second number of a line of /proc/PID/status: real, effective, saved, file system.
func effective(b []byte, field string) uint32 {
	_, rest, ok := bytes.Cut(b, []byte(field))
	if !ok {
		return flowcache.NoID
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	f := strings.Fields(string(line))
	if len(f) < 2 {
		return flowcache.NoID
	}
	n, err := strconv.ParseUint(f[1], 10, 32)
	if err != nil {
		return flowcache.NoID
	}
	return uint32(n)
}

func commandLine(dir string) string {
	b, _ := os.ReadFile(dir + "/cmdline")
	return strings.TrimRight(strings.ReplaceAll(string(b), "\x00", " "), " ")
}

// cgroupLines returns the lines of /proc/PID/cgroup, for parseProcCGroup.
func cgroupLines(dir string) string {
	b, _ := os.ReadFile(dir + "/cgroup")
	return string(b)
}

// hasCGroupV1 reports whether this process is in a hierarchy of cgroup v1.
func (p procFS) hasCGroupV1() bool {
	b, _ := os.ReadFile(string(p) + "/self/cgroup")
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "0:") {
			return true
		}
	}
	return false
}

// bootTime is when the machine was started, in Unix nanoseconds, by today's wall clock.
func bootTime() int64 {
	var boot unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) // cannot fail with a valid clock
	return time.Now().UnixNano() - boot.Nano()
}
