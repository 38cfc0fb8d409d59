package enrich

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sockflow/sockflow/flowcache"
)

// Who may make a control group may give it any name, a container's too: every user to whom one is delegated, and root inside of a container. So a
// name counts where root alone can have made it: below directories that are root's, outside of every container, service and scope.

// cgroupMounts returns where hierarchies of control groups are mounted whole, of either version, by proc/self/mountinfo.
func cgroupMounts(proc string) []string {
	b, _ := os.ReadFile(proc + "/self/mountinfo")
	var list []string
	for line := range strings.Lines(string(b)) {
		mount, fs, ok := strings.Cut(line, " - ")
		f := strings.Fields(mount)
		if !ok || !strings.HasPrefix(fs, "cgroup") || len(f) < 5 {
			continue
		}
		// In a control group namespace a lesser group shows as "/", and the root as "/..": the root's directory has inode 1.
		if at := mountEscapes.Replace(f[4]); inode(at) == 1 {
			list = append(list, at)
		}
	}
	return list
}

// parsePlace is parseCGroup of as much of a path as root made: what is below a container, or where others may make control groups, does not
// count. end is where in path the name of the container ends, 0 if there is none.
func (c *containers) parsePlace(path string) (w flowcache.Workload, end int) {
	for at, before := 0, 0; at < len(path); before = at {
		at++
		for at < len(path) && path[at] != '/' {
			at++
		}
		inner, e := parseCGroup(path[:at])
		switch {
		case e == 0 && inner.PodUID == w.PodUID:
		case isPodOfPodman(path, at):
			continue
		case !c.ofRoot(path[:before]):
			w.CGroupPath = path
			return w, 0
		}
		if w = inner; e != 0 {
			w.CGroupPath = path
			return w, e
		}
	}
	w.CGroupPath = path
	return w, 0
}

// isPodOfPodman reports whether path[:at] is the control group that podman's cgroupfs driver makes for a pod: libpod_parent/POD/libpod-CONTAINER.
func isPodOfPodman(path string, at int) bool {
	dir, name := filepath.Split(path[:at])
	return strings.HasSuffix(dir, "/libpod_parent/") && isHexID(name) && strings.HasPrefix(path[at:], "/libpod-")
}

// ofRoot reports whether root alone may make control groups in dir: it and all above it are root's, and none is a service or scope, which may be
// delegated. Of what is not there (any more, or not in sight) the names decide: they must be those that drivers give.
func (c *containers) ofRoot(dir string) bool {
	for at := 0; at < len(dir); {
		at++
		begin := at
		for at < len(dir) && dir[at] != '/' {
			at++
		}
		name := dir[begin:at]
		if name == "" || name == ".." {
			continue
		}
		if strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".scope") {
			return false
		}
		seen := false
		for _, mount := range c.mounts {
			if strings.HasPrefix(dir, "/..") {
				break // not below what is mounted here
			}
			st, err := os.Lstat(mount + dir[:at])
			if err != nil {
				continue
			}
			if sys, ok := st.Sys().(*syscall.Stat_t); !ok || sys.Uid != 0 {
				return false
			}
			seen = true
		}
		if !seen && !madeByDriver(name) {
			return false
		}
	}
	return true
}

// madeByDriver reports whether drivers of runtimes put containers into control groups of this name. Slices are never delegated
// (systemd.resource-control(5), Delegate=).
func madeByDriver(name string) bool {
	switch name {
	case "docker", "kubepods", "burstable", "besteffort", "guaranteed", "libpod_parent", "k8s.io", "lxc", "kubelet":
		return true
	}
	return strings.HasSuffix(name, ".slice") || podUID.MatchString(name) || isHexID(name)
}
