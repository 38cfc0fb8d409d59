package enrich

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sockflow/sockflow/flowcache"
)

// CGroups knows what stands behind control groups: what their names say, and what runtimes say of the containers in them. It belongs
// to one goroutine.
type CGroups struct {
	root  string // where the root of the cgroup2 hierarchy is mounted; empty if it is not
	own   string // root of this process's control group namespace, as a path from the hierarchy's root; empty if it is not known
	paths map[uint64]string
	ids   map[string]uint64
	older *CGroups // what was learned before, when there was too much of it

	containers
}

// maxCGroups bounds the memory: beyond twice as many what was learned first is forgotten.
const maxCGroups = 1 << 15

// NewCGroups finds the root of the cgroup2 hierarchy in proc/self/mountinfo.
func NewCGroups(proc string) *CGroups {
	c := &CGroups{paths: make(map[uint64]string), ids: make(map[string]uint64)}
	c.containers.init()
	c.mounts = cgroupMounts(proc)
	var depth int
	if c.root, depth = cgroupMount(proc); c.root != "" {
		c.own = ownNamespace(proc, c.root, depth)
	}
	return c
}

// cgroupMount returns where the root of the cgroup2 hierarchy is mounted, and how many levels this process's
// control group namespace is below it, for that is how mountinfo shows the root: as "/", or "/..", or "/../.." and
// so on. The root's directory has inode 1.
func cgroupMount(proc string) (root string, depth int) {
	b, _ := os.ReadFile(proc + "/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		mount, fs, ok := strings.Cut(line, " - ")
		f := strings.Fields(mount)
		if !ok || !strings.HasPrefix(fs, "cgroup2 ") || len(f) < 5 {
			continue
		}
		at := mountEscapes.Replace(f[4])
		var st unix.Statfs_t
		if unix.Statfs(at, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC || inode(at) != 1 {
			continue
		}
		root = at
		// One mount may be on top of another, and then both lines are of one place: no group but the root is the
		// most levels up.
		if strings.Trim(f[3], "/.") == "" {
			depth = max(depth, strings.Count(f[3], ".."))
		}
	}
	return root, depth
}

// mountEscapes undoes how mountinfo writes blanks and backslashes in paths (proc_pid_mountinfo(5)).
var mountEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// ownNamespace returns the path, from the hierarchy's root, of the root of this process's control group namespace
// (cgroup_namespaces(7)), which is depth levels down. The kernel does not say it in the namespace, so the hierarchy
// is searched for the group of this process. Empty if it is not found.
func ownNamespace(proc, root string, depth int) string {
	if depth == 0 {
		return "/"
	}
	b, _ := os.ReadFile(proc + "/self/cgroup")
	_, below := parseProcCGroup(string(b))
	if below == "" || strings.HasPrefix(below, "/..") {
		return "" // moved out of it
	}
	pid, own := strconv.Itoa(os.Getpid()), ""
	filepath.WalkDir(root, func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // gone meanwhile
		}
		group := strings.TrimPrefix(dir, root)
		if strings.Count(group, "/") < depth {
			return nil
		}
		procs, _ := os.ReadFile(dir + "/cgroup.procs")
		for line := range strings.Lines(string(procs)) {
			if strings.TrimSpace(line) == pid {
				if up, ok := strings.CutSuffix(group, strings.TrimSuffix(below, "/")); ok {
					own = up
				}
				return fs.SkipAll
			}
		}
		return nil
	})
	return own
}

// absolute returns a path of /proc/PID/cgroup as one from the hierarchy's root: in a control group namespace it is
// relative to that of the namespace, and begins with "/.." outside of it.
func (c *CGroups) absolute(group string) string {
	switch {
	case group == "" || c.own == "/":
		return group
	case c.own == "":
		for strings.HasPrefix(group, "/../") {
			group = group[3:] // what is left names a container all the same
		}
		return group
	}
	return path.Join(c.own, group)
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
	c.find(path, 0) // it may be a container's, which has addresses before any record is of it
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

// id returns the cgroup2 id of a path: the inode of its directory. 0 if it is gone, or the hierarchy is not mounted
// here.
func (c *CGroups) id(path string) uint64 {
	if path == "" || c.root == "" || strings.HasPrefix(path, "/..") {
		return 0
	}
	if id, ok := c.ids[path]; ok {
		return id
	}
	id := inode(c.root + path)
	c.learn(id, path)
	return id
}

// inode returns the inode number of a file, 0 if it is not there.
func inode(path string) uint64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Ino
}

// parseProcCGroup returns the path of a process from /proc/PID/cgroup (cgroups(7)), and that of cgroup2, empty
// where it has none: the first is that of cgroup2 too, unless a hierarchy of cgroup v1 says more: of a container,
// of a pod, of a unit, and of any group but the root, in this order. Of two of cgroup v1 the one that systemd keeps
// is the first.
func parseProcCGroup(lines string) (best, v2 string) {
	most := -1
	for line := range strings.Lines(lines) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 || !strings.HasPrefix(f[2], "/") {
			continue
		}
		group := strings.TrimSuffix(f[2], " (deleted)")
		says := 0
		switch w, _ := parseCGroup(group); {
		case w.ContainerID != "":
			says = 12
		case w.PodUID != "":
			says = 9
		case w.ServiceUnit != "":
			says = 6
		case group != "/":
			says = 3 // an id that only a runtime knows, perhaps
		}
		switch {
		case f[0] == "0" && f[1] == "":
			v2 = group
			says += 2
		case f[1] == "name=systemd":
			says++
		}
		if says > most {
			best, most = group, says
		}
	}
	return best, v2
}

// 64 hexadecimal digits are the id that Docker, CRI runtimes and podman give. Before it there may be a word of the
// runtime: "docker-ID.scope" of a driver for systemd. "SLICE:docker:ID" is what was asked of such a driver and
// given to one that makes directories of that name (cgroupfs, in containerd, CRI-O, Docker and podman, where the
// kubelet is set up for systemd): it names the pod's slice too. A pod's slice begins with the slices that it is in:
// of the kubelet's --cgroup-root, and kubepods.
var (
	scope  = regexp.MustCompile(`^(?:(?:[^:]*:)?([a-z][a-z0-9_.-]*)[-:])?([0-9a-f]{64})(?:\.scope)?$`)
	podUID = regexp.MustCompile(`^(?:[^:]*-)?pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?(?:$|:)`)
)

var runtimes = map[string]string{
	"docker": "docker", "cri-containerd": "containerd", "containerd": "containerd", "nerdctl": "containerd", "crio": "cri-o", "libpod": "podman",
}

// parseCGroup finds a container, a pod or a systemd unit by the names that runtimes and their drivers (cgroupfs,
// systemd) give to control groups. Of nested containers the innermost counts. Ids in containerd's own form are known to
// the runtime only: they are not guessed here. end is the offset in path of the end of the container's name, 0 if there
// is none.
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
		if pod := podUID.FindStringSubmatch(name); pod != nil {
			w.PodUID = strings.ReplaceAll(pod[1], "_", "-")
			w.ContainerID, w.ContainerRuntime, w.ServiceUnit, end = "", "", "", 0
		}
		m := scope.FindStringSubmatch(name)
		switch {
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
