package runtimes

import (
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupOf returns the control group of a container by that of its first process, "" if that is gone or not in sight. Control groups of Docker and
// podman have the id in their names: with another name the number of the process may be another's by now, or of another namespace of processes.
func cgroupOf(proc string, pid int, id string) string {
	if pid <= 0 || id == "" {
		return ""
	}
	b, err := os.ReadFile(proc + "/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return ""
	}
	found := ""
	for line := range strings.Lines(string(b)) { // cgroups(7)
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 || !strings.HasPrefix(f[2], "/") {
			continue
		}
		at := strings.Index(f[2], id)
		if at < 0 {
			continue
		}
		path := f[2]
		if end := strings.IndexByte(path[at:], '/'); end >= 0 {
			path = path[:at+end]
		}
		for strings.HasPrefix(path, "/../") {
			path = path[3:]
		}
		if found == "" || f[0] == "0" {
			found = path
		}
	}
	return found
}

// hexID reports whether an id is one that runtimes draw at random.
func hexID(id string) bool {
	return len(id) == 64 && strings.Trim(id, "0123456789abcdef") == ""
}

// inContainer matches the path of a control group in a container, up to the container's.
var inContainer = regexp.MustCompile(`^.*?/(?:[a-z][a-z0-9_.-]*-)?[0-9a-f]{64}(?:\.scope)?(?:/|$)`)

// found learns from a connection where the runtime itself runs: one that runs in a container says paths below that container's control group.
func (e *endpoint) found(conn *net.UnixConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	pid := 0
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid) // 0: of another namespace of processes
		}
	})
	root := ""
	if b, err := os.ReadFile(e.proc + "/" + strconv.Itoa(pid) + "/cgroup"); pid > 0 && err == nil {
		root = rootOf(string(b))
	}
	e.root.Store(&root)
}

// rootOf returns the control group of the container that a process is in, by its lines in /proc/PID/cgroup, "" if it is in none.
func rootOf(lines string) string {
	for line := range strings.Lines(lines) {
		if f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3); len(f) == 3 {
			path := f[2]
			for strings.HasPrefix(path, "/../") {
				path = path[3:]
			}
			if m := inContainer.FindString(path); strings.HasPrefix(m, "/") {
				return strings.TrimSuffix(m, "/")
			}
		}
	}
	return ""
}

// below returns where a control group is that the runtime says is at path.
func (e *endpoint) below(path string) string {
	if root := e.root.Load(); root != nil && path != "" && !strings.HasPrefix(path, *root+"/") {
		return *root + path
	}
	return path
}
