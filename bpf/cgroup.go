package bpf

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrLesserCGroup is wrapped by the error of CGroupRoot where only a part of the cgroup2 hierarchy is mounted.
var ErrLesserCGroup = errors.New("only a part of the cgroup2 hierarchy is mounted")

// CGroupRoot returns where the root of the cgroup2 hierarchy is mounted: programs that are attached there see the
// packets of all sockets. The root of a mount in /proc/self/mountinfo does not show it: in a control group
// namespace (cgroup_namespaces(7)) the host's root is "/.." or "/../..", and "/" is the group that the namespace
// was made in. They differ in the inode number of the directory, which is 1 in the root only (kernfs
// numbers its nodes from 1 on). proc is where proc is mounted. The error says what to do, and wraps ErrLesserCGroup
// where another group is mounted.
func CGroupRoot(proc string) (string, error) {
	b, err := os.ReadFile(proc + "/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find the cgroup2 mount: %w", err)
	}
	lesser := ""
	for line := range strings.Lines(string(b)) {
		before, after, ok := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if !ok || !strings.HasPrefix(after, "cgroup2 ") || len(f) < 5 {
			continue
		}
		path := mountEscapes.Replace(f[4])
		// By the path, for another mount may be on top of this one.
		var fs unix.Statfs_t
		var st unix.Stat_t
		if unix.Statfs(path, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC || unix.Stat(path, &st) != nil {
			continue
		}
		if st.Ino == 1 {
			return path, nil
		}
		lesser = path
	}
	if lesser != "" {
		return "", fmt.Errorf("%w: %s is one control group, and sockets outside of it would not be seen: mount the host's /sys/fs/cgroup", ErrLesserCGroup, lesser)
	}
	return "", errors.New("no cgroup2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

// mountEscapes undoes how mountinfo writes blanks and backslashes in paths (proc_pid_mountinfo(5)).
var mountEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
