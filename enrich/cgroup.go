package enrich

import (
	"os"
	"regexp"
	"strings"
	"syscall"

	"github.com/sockflow/sockflow/flowcache"
)

// CGroups knows what stands behind control groups. It belongs to one goroutine.
type CGroups struct {
	root  string // where cgroup2 is mounted; empty if it is not
	paths map[uint64]string
	ids   map[string]uint64
	works map[string]*flowcache.Workload
}

// maxCGroups bounds the memory: beyond it everything is learned anew.
const maxCGroups = 1 << 16

// NewCGroups finds the cgroup2 mount in proc/self/mountinfo.
func NewCGroups(proc string) *CGroups {
	c := &CGroups{}
	c.forget()
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

func (c *CGroups) forget() {
	c.paths = make(map[uint64]string)
	c.ids = make(map[string]uint64)
	c.works = make(map[string]*flowcache.Workload)
}

// Learn remembers the path of a control group.
func (c *CGroups) Learn(id uint64, path string) {
	if id == 0 || path == "" || c.paths[id] == path {
		return
	}
	if len(c.paths) >= maxCGroups {
		c.forget()
	}
	c.paths[id] = path
	c.ids[path] = id
}

// Path returns the path of a control group below the root, or "".
func (c *CGroups) Path(id uint64) string { return c.paths[id] }

// ID returns the cgroup2 id of a path: the inode of its directory. 0 if it is gone.
func (c *CGroups) ID(path string) uint64 {
	if path == "" || c.root == "" {
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
	c.Learn(sys.Ino, path)
	return sys.Ino
}

// Workload returns what a path stands for, or nil if that is nothing of its own. The result is shared and immutable.
func (c *CGroups) Workload(path string) *flowcache.Workload {
	if path == "" || path == "/" {
		return nil
	}
	w, ok := c.works[path]
	if !ok {
		if len(c.works) >= maxCGroups {
			c.forget()
		}
		if parsed := ParseCGroup(path); parsed.ContainerID != "" || parsed.ServiceUnit != "" || parsed.PodUID != "" {
			w = &parsed
		}
		c.works[path] = w
	}
	return w
}

// ParseProcCGroup returns the path of a process from /proc/PID/cgroup (cgroups(7)): the line of cgroup2, unless only a line
// of cgroup v1 knows a container.
func ParseProcCGroup(lines string) string {
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
		case v1 == "" && ParseCGroup(path).ContainerID != "":
			v1 = path
		}
	}
	if v1 != "" && ParseCGroup(v2).ContainerID == "" {
		return v1
	}
	return v2
}

// 64 hexadecimal digits are the id that Docker, CRI runtimes and podman give.
var (
	scope  = regexp.MustCompile(`^(?:(docker|cri-containerd|crio|libpod|containerd)-)?([0-9a-f]{64})(?:\.scope)?$`)
	podUID = regexp.MustCompile(`^(?:kubepods.*-)?pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?$`)
)

var runtimes = map[string]string{"docker": "docker", "cri-containerd": "containerd", "containerd": "containerd", "crio": "cri-o", "libpod": "podman"}

// ParseCGroup tells a container, a pod or a systemd unit by the names that runtimes and their drivers (cgroupfs, systemd) give
// to control groups. Of nested containers the innermost counts. Ids of containerd's own making are known to the
// runtime only: they are not guessed here.
func ParseCGroup(path string) flowcache.Workload {
	w := flowcache.Workload{CGroupPath: path}
	parent := ""
	for name := range strings.SplitSeq(path, "/") {
		switch {
		case name == "" || name == "." || name == "..":
			continue
		case podUID.MatchString(name):
			w.PodUID = strings.ReplaceAll(podUID.FindStringSubmatch(name)[1], "_", "-")
			w.ContainerID, w.ContainerRuntime = "", ""
		case scope.MatchString(name):
			m := scope.FindStringSubmatch(name)
			w.ContainerID = m[2]
			switch {
			case m[1] != "":
				w.ContainerRuntime = runtimes[m[1]]
			case parent == "docker":
				w.ContainerRuntime = "docker"
			case parent == "libpod_parent" || strings.HasPrefix(parent, "machine.slice"):
				w.ContainerRuntime = "podman"
			case parent == "k8s.io":
				w.ContainerRuntime = "containerd"
			default:
				w.ContainerRuntime = ""
			}
			w.ServiceUnit = ""
		case strings.HasPrefix(name, "lxc.payload."):
			w.ContainerID, w.ContainerRuntime, w.ServiceUnit = strings.TrimPrefix(name, "lxc.payload."), "lxc", ""
		case parent == "lxc":
			w.ContainerID, w.ContainerRuntime, w.ServiceUnit = name, "lxc", ""
		case strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".scope") && !strings.HasPrefix(name, "crio-conmon-"):
			if w.ContainerID == "" {
				w.ServiceUnit = name
			}
		}
		parent = name
	}
	return w
}
