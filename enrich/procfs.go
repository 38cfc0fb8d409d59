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

func (p procFS) file(pid uint32, name string) string {
	return string(p) + "/" + strconv.FormatUint(uint64(pid), 10) + "/" + name
}

func (p procFS) pids() []uint32 {
	d, err := os.Open(string(p))
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	var pids []uint32
	for _, n := range names {
		if pid, err := strconv.ParseUint(n, 10, 32); err == nil {
			pids = append(pids, uint32(pid))
		}
	}
	return pids
}

type procStat struct {
	comm  string
	ppid  uint32
	start uint64
}

func (p procFS) stat(pid uint32) (procStat, bool) {
	b, err := os.ReadFile(p.file(pid, "stat"))
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
	return procStat{string(b[open+1 : end]), uint32(ppid), start}, err1 == nil && err2 == nil
}

// alive reports whether the process still exists.
func (p procFS) alive(id flowcache.ProcessID) bool {
	st, ok := p.stat(id.PID)
	return ok && st.start == id.Start
}

// exe returns the path of the executable, without the mark of a deleted file.
func (p procFS) exe(pid uint32) string {
	path, err := os.Readlink(p.file(pid, "exe"))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(path, " (deleted)")
}

// ids returns the effective user and group.
func (p procFS) ids(pid uint32) (uid, gid uint32) {
	b, err := os.ReadFile(p.file(pid, "status"))
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

func (p procFS) commandLine(pid uint32) string {
	b, _ := os.ReadFile(p.file(pid, "cmdline"))
	return strings.TrimRight(strings.ReplaceAll(string(b), "\x00", " "), " ")
}

// cgroup returns the lines of /proc/PID/cgroup, for parseProcCGroup.
func (p procFS) cgroup(pid uint32) string {
	b, _ := os.ReadFile(p.file(pid, "cgroup"))
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
