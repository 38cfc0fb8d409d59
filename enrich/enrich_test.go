package enrich

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sockflow/sockflow/flowcache"
)

var (
	id64 = strings.Repeat("0123456789abcdef", 4)
	in64 = strings.Repeat("fedcba9876543210", 4)
)

const pod = "4f1c2d3e-1111-2222-3333-444455556666"

func TestParseCGroup(t *testing.T) {
	under := strings.ReplaceAll(pod, "-", "_")
	for _, tc := range []struct {
		name, path                      string
		container, runtime, podUID, svc string
	}{
		{"root", "/", "", "", "", ""},
		{"docker, cgroupfs", "/docker/" + id64, id64, "docker", "", ""},
		{"docker, systemd", "/system.slice/docker-" + id64 + ".scope", id64, "docker", "", ""},
		{"kubepods, cgroupfs", "/kubepods/burstable/pod" + pod + "/" + id64, id64, "", pod, ""},
		{"kubepods, systemd, containerd", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/cri-containerd-" + id64 + ".scope", id64, "containerd", pod, ""},
		{"kubepods, systemd, cri-o", "/kubepods.slice/kubepods-pod" + under + ".slice/crio-" + id64 + ".scope", id64, "cri-o", pod, ""},
		{"cri-o's monitor is no container", "/kubepods.slice/crio-conmon-" + id64 + ".scope", "", "", "", ""},
		{"static pod", "/kubepods/pod" + strings.Repeat("ab", 16) + "/" + id64, id64, "", strings.Repeat("ab", 16), ""},
		{"the pod alone", "/kubepods/besteffort/pod" + pod, "", "", pod, ""},
		{"containerd, CRI without pod cgroup", "/k8s.io/" + id64, id64, "containerd", "", ""},
		{"containerd's own ids are not guessed", "/default/web1", "", "", "", ""},
		{"podman, cgroupfs", "/libpod_parent/libpod-" + id64, id64, "podman", "", ""},
		{"podman, systemd", "/machine.slice/libpod-" + id64 + ".scope", id64, "podman", "", ""},
		{"podman, user", "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id64 + ".scope/container", id64, "podman", "", ""},
		{"lxc", "/lxc.payload.web/system.slice/nginx.service", "web", "lxc", "", ""},
		{"old lxc", "/lxc/web/init.scope", "web", "lxc", "", ""},
		{"docker in kubernetes", "/kubepods/pod" + pod + "/" + id64 + "/docker/" + in64, in64, "docker", pod, ""},
		{"service", "/system.slice/nginx.service", "", "", "", "nginx.service"},
		{"instance", "/system.slice/system-getty.slice/getty@tty1.service", "", "", "", "getty@tty1.service"},
		{"user service", "/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service", "", "", "", "foo.service"},
		{"session", "/user.slice/user-0.slice/session-3.scope", "", "", "", "session-3.scope"},
		{"outside our cgroup namespace", "/../../docker/" + id64, id64, "docker", "", ""},
		{"63 digits", "/docker/" + id64[:63], "", "", "", ""},
		// SLICE:PREFIX:ID, which drivers for systemd split, and cgroupfs drivers take for a name.
		{"kubelet for systemd, containerd for cgroupfs", "/kubepods-burstable-pod" + under + ".slice:cri-containerd:" + id64, id64, "containerd", pod, ""},
		{"the same, cri-o", "/kubepods-besteffort-pod" + under + ".slice:crio:" + id64, id64, "cri-o", pod, ""},
		{"the same, guaranteed, in a group of the runtime", "/system.slice/containerd.service/kubepods-pod" + under + ".slice:cri-containerd:" + id64, id64, "containerd", pod, ""},
		{"the same, static pod", "/kubepods-burstable-pod" + strings.Repeat("ab", 16) + ".slice:cri-containerd:" + id64, id64, "containerd", strings.Repeat("ab", 16), ""},
		{"the same, cri-o's monitor", "/kubepods-burstable-pod" + under + ".slice:crio-conmon:" + id64, "", "", pod, ""},
		{"docker", "/system.slice:docker:" + id64, id64, "docker", "", ""},
		{"docker, below", "/system.slice/docker.service/system.slice:docker:" + id64 + "/init", id64, "docker", "", ""},
		{"podman", "/machine.slice:libpod:" + id64, id64, "podman", "", ""},
		{"nerdctl", "/user.slice:nerdctl:" + id64, id64, "containerd", "", ""},
		{"no slice", "/:docker:" + id64, id64, "docker", "", ""},
		{"a pod's slice before another name", "/kubepods-pod" + under + ".slice:cri-containerd:web", "", "", pod, ""},
		// The kubelet's --cgroup-root: slices before kubepods.
		{"kind, systemd", "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + under + ".slice/cri-containerd-" + id64 + ".scope", id64, "containerd", pod, ""},
		{"kind, in docker", "/system.slice/docker-" + in64 + ".scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + under + ".slice/cri-containerd-" + id64 + ".scope", id64, "containerd", pod, ""},
		{"kind, cgroupfs", "/docker/" + in64 + "/kubelet/kubepods/besteffort/pod" + pod + "/" + id64, id64, "", pod, ""},
		{"two slices", "/a.slice/a-b.slice/a-b-kubepods.slice/a-b-kubepods-pod" + under + ".slice/crio-" + id64 + ".scope", id64, "cri-o", pod, ""},
		{"and a driver for cgroupfs", "/kubelet-kubepods-burstable-pod" + under + ".slice:cri-containerd:" + id64, id64, "containerd", pod, ""},
		{"the pod alone, of such a kubelet", "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + under + ".slice", "", "", pod, ""},
		{"k3s: pods below its service", "/system.slice/k3s.service/kubepods/pod" + pod, "", "", pod, ""},
	} {
		w, _ := parseCGroup(tc.path)
		got := []string{w.ContainerID, w.ContainerRuntime, w.PodUID, w.ServiceUnit}
		if d := cmp.Diff([]string{tc.container, tc.runtime, tc.podUID, tc.svc}, got); d != "" {
			t.Errorf("%s: %s", tc.name, d)
		}
	}
}

func TestParseProcCGroup(t *testing.T) {
	docker := "/docker/" + id64
	for _, tc := range []struct{ name, in, want, v2 string }{
		{"v2", "0::/system.slice/a.service\n", "/system.slice/a.service", "/system.slice/a.service"},
		{"hybrid, both know", "9:name=systemd:" + docker + "\n0::" + docker + "\n", docker, docker},
		{"hybrid, v1 knows", "4:memory:" + docker + "\n0::/\n", docker, "/"},
		{"hybrid, v1 knows, v2 has the runtime's unit", "4:memory:" + docker + "\n0::/system.slice/docker.service\n", docker, "/system.slice/docker.service"},
		{"hybrid, v2 knows, v1 has the runtime's unit", "1:name=systemd:/system.slice/docker.service\n0::" + docker + "\n", docker, docker},
		{"hybrid, one of v1 is elsewhere", "5:cpu:/\n4:memory:" + docker + "\n3:pids:/user.slice\n0::/\n", docker, "/"},
		{"hybrid, neither knows", "5:cpu:/batch\n1:name=systemd:/system.slice/a.service\n0::/system.slice/a.service\n", "/system.slice/a.service", "/system.slice/a.service"},
		{"hybrid, a group of v2 that only a runtime knows", "5:cpu:/\n0::/default/web1\n", "/default/web1", "/default/web1"},
		{"v1 only", "4:memory:" + docker + "\n1:cpu:/\n", docker, ""},
		{"v1 only, the unit is systemd's", "4:memory:/system.slice\n1:name=systemd:/system.slice/a.service\n", "/system.slice/a.service", ""},
		{"v1 only, in the pod beside its containers", "4:memory:/kubepods/pod" + pod + "\n1:name=systemd:/system.slice/kubelet.service\n", "/kubepods/pod" + pod, ""},
		{"deleted", "0::" + docker + " (deleted)\n", docker, docker},
		{"colon in the name", "0::/a:b\n", "/a:b", "/a:b"},
		{"empty", "", "", ""},
		{"nonsense", "x\n::\n", "", ""},
	} {
		if got, v2 := parseProcCGroup(tc.in); got != tc.want || v2 != tc.v2 {
			t.Errorf("%s: %q and %q, want %q and %q", tc.name, got, v2, tc.want, tc.v2)
		}
	}
}

func FuzzParseProcCGroup(f *testing.F) {
	f.Add("0::/docker/" + id64 + "\n")
	f.Add("4:memory:/kubepods/pod" + pod + "/" + id64 + "\n0::/\n")
	f.Add(":::\n0::\x00")
	f.Fuzz(func(t *testing.T, s string) {
		path, _ := parseProcCGroup(s)
		if path != "" && !strings.HasPrefix(path, "/") {
			t.Fatalf("path %q", path)
		}
		w, _ := parseCGroup(path)
		if w.ContainerID != "" && !strings.Contains(path, w.ContainerID) || w.ContainerID != "" && w.ServiceUnit != "" {
			t.Fatalf("%+v", w)
		}
	})
}

func TestParseStat(t *testing.T) {
	st, ok := parseStat([]byte("42 (a) b (c) S 7 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 1 1"))
	if !ok || st.comm != "a) b (c" || st.ppid != 7 || st.start != 98765 {
		t.Errorf("%+v, %t", st, ok)
	}
	for _, bad := range []string{"", "42", "42 (a", ") (", "42 (a) S 7"} {
		if _, ok := parseStat([]byte(bad)); ok {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func newTable(t *testing.T, cfg ProcConfig) *Processes {
	t.Helper()
	return NewProcesses(cfg, NewCGroups("/proc"))
}

func TestLivingProcess(t *testing.T) {
	p := newTable(t, ProcConfig{CommandLine: true})
	c := exec.Command("sleep", "60")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { c.Process.Kill(); c.Wait() }()
	pid := uint32(c.Process.Pid)
	var st procStat
	path, _ := exec.LookPath("sleep")
	path, _ = filepath.EvalSymlinks(path)
	for range 100 { // until it has run sleep
		st, _ = procFS("/proc").stat(pid)
		if commandLine(procFS("/proc").dir(pid)) == "sleep 60" { // the last thing exec does
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	id := flowcache.ProcessID{PID: pid, Start: st.start}
	f := p.Get(id)
	self, _ := os.Executable()
	if f.Path != path || f.Name != "sleep" || f.CommandLine != "sleep 60" || f.ParentPID != uint32(os.Getpid()) || f.ParentPath != self || f.UID != uint32(os.Geteuid()) {
		t.Errorf("%+v", f)
	}
	if d := time.Since(time.Unix(0, f.StartTime)); d < -time.Second || d > time.Minute {
		t.Errorf("started %s ago", d)
	}
	if p.Get(id) != f {
		t.Error("read twice")
	}
	other := p.Get(flowcache.ProcessID{PID: pid, Start: 1})
	if other.Path != "" || p.Stats().Missed != 1 {
		t.Errorf("another process of the same PID: %+v", other)
	}
}

// TestStartAfterStep: on a machine whose clock began in 1970, the start times of processes are by the clock as it was
// set since.
func TestStartAfterStep(t *testing.T) {
	e, p := newEnricher(t)
	id := flowcache.ProcessID{PID: 10, Start: 7}
	p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessExec, Process: flowcache.Process{ID: id}})
	before := p.Get(id)
	e.Clock(time.Now().UnixNano(), int64(time.Hour))
	after := p.Get(id)
	if want := bootTime() + int64(7*tick); before.StartTime != int64(7*tick) || time.Duration(after.StartTime-want).Abs() > time.Second {
		t.Errorf("before the step %d, after it %d, want %d", before.StartTime, after.StartTime, want)
	}
}

func TestEventsOutliveProcesses(t *testing.T) {
	p := newTable(t, ProcConfig{Proc: t.TempDir()})
	shell := flowcache.ProcessID{PID: 10, Start: 1}
	child := flowcache.ProcessID{PID: 11, Start: 2}
	p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessExec, Process: flowcache.Process{ID: shell, Path: "/bin/sh", Name: "sh", UID: 5, ParentUID: flowcache.NoID, CGroup: 9, CGroupPath: "/docker/" + id64}})
	p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessFork, Parent: shell, Process: flowcache.Process{ID: child, Name: "sh", UID: 5, ParentPID: 10, CGroup: 9}})
	forked := p.Get(child)
	if forked.Path != "/bin/sh" || forked.ParentPath != "/bin/sh" || forked.ParentUID != 5 || forked.CGroupPath != "/docker/"+id64 {
		t.Errorf("after fork: %+v", forked)
	}
	p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessExit, Process: flowcache.Process{ID: shell}, Time: 100})
	p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessExec, Parent: flowcache.ProcessID{PID: 1}, Process: flowcache.Process{ID: child, Path: "/usr/bin/curl", Name: "curl", UID: 6, ParentPID: 1, ParentUID: flowcache.NoID, CGroup: 9, CGroupPath: "/docker/" + id64}})
	f := p.Get(child)
	if f.Path != "/usr/bin/curl" || f.ParentPID != 10 || f.ParentPath != "/bin/sh" || f.ParentUID != 5 {
		t.Errorf("after exec: %+v", f)
	}
	if forked.Path != "/bin/sh" {
		t.Error("published facts changed")
	}
	e := Enricher{Processes: p, CGroups: p.cgroups}
	r := flowcache.Record{Source: flowcache.End{Local: true, Process: child, UID: flowcache.NoID, GID: flowcache.NoID}}
	e.Enrich(&r)
	if r.Source.Who != f || r.Source.UID != 6 || r.Source.Container == nil || r.Source.Container.ContainerID != id64 || r.Dest.Who != nil {
		t.Errorf("%+v", r.Source)
	}
	if n := testing.AllocsPerRun(100, func() { e.Enrich(&r) }); n != 0 {
		t.Errorf("%v allocations", n)
	}

	p.Hold(child)
	p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessExit, Process: flowcache.Process{ID: child}, Time: 200})
	far := int64(time.Hour)
	p.Sweep(far)
	if p.table[child] == nil || p.table[shell] != nil {
		t.Error("the process with a flow must stay, the other go")
	}
	p.Release(child)
	p.Sweep(far)
	if p.table[child] != nil {
		t.Error("remembered for ever")
	}
}

func TestTableIsBounded(t *testing.T) {
	p := newTable(t, ProcConfig{Proc: t.TempDir(), Max: 10})
	for i := range uint32(100) {
		p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessExec, Process: flowcache.Process{ID: flowcache.ProcessID{PID: i + 1, Start: 1}}})
	}
	if st := p.Stats(); st.Entries != 10 || st.Overflow != 90 {
		t.Errorf("%+v", st)
	}
}

func TestUsers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "passwd")
	os.WriteFile(file, []byte("root:x:0:0::/root:/bin/sh\nbroken\nalso:x:0:0\nalice:x:1000:1000::/:/bin/sh\n"), 0o600)
	u := newUsers(file)
	for uid, want := range map[uint32]string{0: "root", 1000: "alice", 7: "", flowcache.NoID: ""} {
		if got := u.name(uid); got != want {
			t.Errorf("%d: %q, want %q", uid, got, want)
		}
	}
}

// TestMove: a running process in another control group; and an executable deeper than the kernel side looks.
func TestMove(t *testing.T) {
	dir := t.TempDir()
	deep := "/a/b/c/d"
	os.MkdirAll(filepath.Join(dir, "7"), 0o755)
	if err := os.Symlink(deep, filepath.Join(dir, "7", "exe")); err != nil {
		t.Fatal(err)
	}
	groups := NewCGroups(dir)
	p := NewProcesses(ProcConfig{Proc: dir}, groups)
	id := flowcache.ProcessID{PID: 7, Start: 1}
	p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessExec, Process: flowcache.Process{ID: id, Path: "/.../c/d", CGroup: 4, CGroupPath: "/old"}})
	was := p.Get(id)
	p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessMove, Process: flowcache.Process{ID: id, CGroup: 5, CGroupPath: "/docker/" + id64}})
	r := flowcache.Record{Source: flowcache.End{Local: true, Process: id, CGroup: 3}}
	(&Enricher{Processes: p, CGroups: groups}).Enrich(&r)
	if r.Source.Who.Path != deep || r.Source.CGroup != 5 || r.Source.Container == nil || r.Source.Container.ContainerID != id64 {
		t.Errorf("%+v in %+v", r.Source.Who, r.Source)
	}
	if was.CGroup != 4 {
		t.Error("facts that records share were changed")
	}
}

// TestCGroupV1: a container that cgroup2 does not know of is found where cgroup v1 is in use, also for processes that are gone by then.
func TestCGroupV1(t *testing.T) {
	proc := t.TempDir()
	write := func(name, content string) {
		os.MkdirAll(filepath.Dir(proc+"/"+name), 0o755)
		if err := os.WriteFile(proc+"/"+name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("self/cgroup", "4:memory:/\n0::/\n")
	write("10/cgroup", "4:memory:/docker/"+id64+"\n0::/\n")
	write("12/cgroup", "4:memory:/\n0::/\n")
	p := newTable(t, ProcConfig{Proc: proc})
	run := func(pid, parent uint32) string {
		id := flowcache.ProcessID{PID: pid, Start: 1}
		p.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessExec, Parent: flowcache.ProcessID{PID: parent, Start: 1}, Process: flowcache.Process{ID: id, CGroup: 1, CGroupPath: "/"}})
		return p.Get(id).CGroupPath
	}
	for _, tc := range []struct {
		what        string
		pid, parent uint32
		want        string
	}{
		{"as proc says", 10, 1, "/docker/" + id64},
		{"gone: as its parent", 11, 10, "/docker/" + id64},
		{"on the host", 12, 10, "/"},
		{"gone, of an unknown parent", 13, 99, "/"},
	} {
		if got := run(tc.pid, tc.parent); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.what, got, tc.want)
		}
	}
}
