package enrich

import (
	"os"
	"regexp"
	"strings"
	"syscall"

	"github.com/sockflow/sockflow/flowcache"
)

// CGroups knows what stands behind control groups: what their names say, and what runtimes say of the containers in them. It belongs
// to one goroutine.
type CGroups struct {
	root  string // where cgroup2 is mounted; empty if it is not
	paths map[uint64]string
	ids   map[string]uint64
	older *CGroups // what was learned before, when there was too much of it

	containers
}

// maxCGroups bounds the memory: beyond twice as many what was learned first is forgotten.
const maxCGroups = 1 << 15

// NewCGroups finds the cgroup2 mount in proc/self/mountinfo.
func NewCGroups(proc string) *CGroups {
	c := &CGroups{paths: make(map[uint64]string), ids: make(map[string]uint64)}
	c.containers.init()
	c.mounts = cgroupMounts(proc)
	b, _ := os.ReadFile(proc + "/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		mount, fs, ok := strings.Cut(line, " - ")
		if f := strings.Fields(mount); ok && strings.HasPrefix(fs, "cgroup2 ") && len(f) > 4 && f[3] == "/" {
			c.root = f[4]
			break
		}
	}
	return c
}

// learn remembers the path of a control group.
func (c *CGroups) learn(id uint64, path string) {
	if id == 0 || path == "" || c.paths[id] == path {
		return
	}
	if len(c.paths) >= maxCGroups {
		c.older = &CGroups{paths: c.paths, ids: c.ids}
		c.paths, c.ids = make(map[uint64]string), make(map[string]uint64)
	}
	c.paths[id] = path
	c.ids[path] = id
}

// path returns the path of a control group below the root, or "".
func (c *CGroups) path(id uint64) string {
	path, ok := c.paths[id]
	if !ok && c.older != nil {
		if path = c.older.paths[id]; path != "" {
			c.learn(id, path)
		}
	}
	return path
}

// id returns the cgroup2 id of a path: the inode of its directory. 0 if it is gone, or not below the root that is mounted here (a path
// seen from within another control group namespace begins with "/..").
func (c *CGroups) id(path string) uint64 {
	if path == "" || c.root == "" || strings.HasPrefix(path, "/..") {
		return 0
	}
	if id, ok := c.ids[path]; ok {
		return id
	}
	st, err := os.Stat(c.root + path)
	if err != nil {
		return 0
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	c.learn(sys.Ino, path)
	return sys.Ino
}

// parseProcCGroup returns the path of a process from /proc/PID/cgroup (cgroups(7)): the line of cgroup2, unless only a line
// of cgroup v1 knows a container.
func parseProcCGroup(lines string) string {
	contained := func(path string) bool {
		w, _ := parseCGroup(path)
		return w.ContainerID != ""
	}
	var v2, v1 string
	for line := range strings.Lines(lines) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 || !strings.HasPrefix(f[2], "/") {
			continue
		}
		path := strings.TrimSuffix(f[2], " (deleted)")
		switch {
		case f[0] == "0" && f[1] == "":
			v2 = path
		case contained(path):
			v1 = path
		case v1 == "" || v1 == "/":
			v1 = path // an id that only a runtime knows, perhaps
		}
	}
	if !contained(v2) && (contained(v1) || v2 == "" || v2 == "/") {
		return v1
	}
	return v2
}

// 64 hexadecimal digits are the id that Docker, CRI runtimes and podman give. Before it there may be a word of the runtime.
var (
	scope  = regexp.MustCompile(`^(?:([a-z][a-z0-9_.-]*)-)?([0-9a-f]{64})(?:\.scope)?$`)
	podUID = regexp.MustCompile(`^(?:kubepods.*-)?pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?$`)
)

var runtimes = map[string]string{
	"docker": "docker", "cri-containerd": "containerd", "containerd": "containerd", "nerdctl": "containerd", "crio": "cri-o", "libpod": "podman",
}

// parseCGroup tells a container, a pod or a systemd unit by the names that runtimes and their drivers (cgroupfs, systemd) give
// to control groups. Of nested containers the innermost counts. Ids of containerd's own making are known to the
// runtime only: they are not guessed here. end is where in path the name of the container ends, 0 if there is none.
func parseCGroup(path string) (w flowcache.Workload, end int) {
	w.CGroupPath = path
	container := func(id, runtime string, at int) {
		w.ContainerID, w.ContainerRuntime, w.ServiceUnit, end = id, runtime, "", at
	}
	parent := ""
	for at := 0; at < len(path); {
		begin := at + 1 // after the slash
		at = begin
		for at < len(path) && path[at] != '/' {
			at++
		}
		name := path[min(begin, len(path)):at]
		if name == "" || name == "." || name == ".." {
			continue
		}
		m := scope.FindStringSubmatch(name)
		switch {
		case podUID.MatchString(name):
			w.PodUID = strings.ReplaceAll(podUID.FindStringSubmatch(name)[1], "_", "-")
			w.ContainerID, w.ContainerRuntime, end = "", "", 0
		case m != nil && strings.HasSuffix(m[1], "conmon"): // the monitor, outside of the container
		case m != nil:
			runtime := runtimes[m[1]]
			switch {
			case m[1] != "":
			case parent == "docker":
				runtime = "docker"
			case parent == "libpod_parent" || strings.HasPrefix(parent, "machine.slice"):
				runtime = "podman"
			case parent == "k8s.io":
				runtime = "containerd"
			}
			container(m[2], runtime, at)
		case strings.HasPrefix(name, "lxc.payload."):
			container(strings.TrimPrefix(name, "lxc.payload."), "lxc", at)
		case parent == "lxc":
			container(name, "lxc", at)
		case strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".scope"):
			if w.ContainerID == "" {
				w.ServiceUnit = name
			}
		}
		parent = name
	}
	return w, end
}
