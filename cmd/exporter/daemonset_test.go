package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	yaml "go.yaml.in/yaml/v3"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// manifest is what the test reads of the DaemonSet: all that a kubelet would hand to a runtime.
type manifest struct {
	Kind string
	Data map[string]string // of the ConfigMap
	Spec struct {
		Template struct {
			Spec struct {
				HostPID     bool `yaml:"hostPID"`
				HostNetwork bool `yaml:"hostNetwork"`
				Containers  []struct {
					Args []string
					Env  []struct {
						Name, Value string
						ValueFrom   struct {
							FieldRef struct {
								FieldPath string `yaml:"fieldPath"`
							} `yaml:"fieldRef"`
							ResourceFieldRef struct{ Resource string } `yaml:"resourceFieldRef"`
						} `yaml:"valueFrom"`
					}
					SecurityContext struct {
						Privileged               bool
						AllowPrivilegeEscalation bool  `yaml:"allowPrivilegeEscalation"`
						ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
						RunAsUser                int64 `yaml:"runAsUser"`
						Capabilities             struct{ Add, Drop []string }
					} `yaml:"securityContext"`
					Resources    struct{ Limits map[string]string }
					VolumeMounts []struct {
						Name             string
						MountPath        string `yaml:"mountPath"`
						ReadOnly         bool   `yaml:"readOnly"`
						MountPropagation string `yaml:"mountPropagation"`
					} `yaml:"volumeMounts"`
				}
				Volumes []struct {
					Name      string
					ConfigMap struct{ Name string }       `yaml:"configMap"`
					HostPath  struct{ Path, Type string } `yaml:"hostPath"`
				}
			}
		}
	}
}

// daemonSet runs the pod of deploy/kubernetes as a kubelet has it run, with the collector of config, and returns
// its exporter.
func (c *containerdNode) daemonSet(ctx context.Context, config string) *running {
	t := c.t
	t.Helper()
	file := os.Getenv("SOCKFLOW_MANIFESTS")
	if file == "" {
		file = "../../deploy/kubernetes/sockflow.yaml"
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var m manifest
	for d := yaml.NewDecoder(f); m.Kind != "DaemonSet"; {
		m = manifest{}
		if err := d.Decode(&m); err != nil {
			t.Fatalf("no DaemonSet in %s: %v", file, err)
		}
	}
	spec := m.Spec.Template.Spec
	box := spec.Containers[0]
	memory, err := strconv.ParseInt(strings.TrimSuffix(box.Resources.Limits["memory"], "Mi"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	memory <<= 20

	namespaces := &cri.NamespaceOption{}
	if spec.HostNetwork {
		namespaces.Network = cri.NamespaceMode_NODE
	}
	if spec.HostPID {
		namespaces.Pid = cri.NamespaceMode_NODE
	}
	security := box.SecurityContext
	container := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "sockflow"}, Image: &cri.ImageSpec{Image: podImage}, LogPath: "sockflow.log",
		Command: []string{"/sockflow"}, // the entry point of the image
		// The image.
		Mounts: []*cri.Mount{{ContainerPath: "/sockflow", HostPath: buildExporter(t), Readonly: true}},
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: memory, CpuShares: 51},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: namespaces, Privileged: security.Privileged, NoNewPrivs: !security.AllowPrivilegeEscalation,
				ReadonlyRootfs: security.ReadOnlyRootFilesystem, RunAsUser: &cri.Int64Value{Value: security.RunAsUser},
				Capabilities: &cri.Capability{AddCapabilities: security.Capabilities.Add, DropCapabilities: security.Capabilities.Drop},
			},
		},
	}
	for _, arg := range box.Args {
		container.Args = append(container.Args, strings.ReplaceAll(arg, "$(NODE_NAME)", "node1"))
	}
	for _, e := range box.Env {
		switch {
		case e.ValueFrom.FieldRef.FieldPath == "spec.nodeName":
			e.Value = "node1"
		case e.ValueFrom.ResourceFieldRef.Resource == "limits.memory":
			e.Value = strconv.FormatInt(memory, 10)
		case e.Value == "":
			t.Fatalf("%s: what is its value? %+v", e.Name, e.ValueFrom)
		}
		container.Envs = append(container.Envs, &cri.KeyValue{Key: e.Name, Value: []byte(e.Value)})
	}
	sources := map[string]string{}
	for _, v := range spec.Volumes {
		if v.ConfigMap.Name != "" {
			dir := filepath.Join(c.dir, v.Name)
			os.MkdirAll(dir, 0o755)
			if err := os.WriteFile(filepath.Join(dir, "sockflow.yaml"), []byte(config), 0o644); err != nil {
				t.Fatal(err)
			}
			sources[v.Name] = dir
			continue
		}
		sources[v.Name] = v.HostPath.Path
		if strings.HasPrefix(v.HostPath.Type, "Directory") { // a node has that of its runtime
			os.MkdirAll(v.HostPath.Path, 0o755)
		}
	}
	for _, v := range box.VolumeMounts {
		mount := &cri.Mount{ContainerPath: v.MountPath, HostPath: sources[v.Name], Readonly: v.ReadOnly}
		if v.MountPropagation == "HostToContainer" {
			mount.Propagation = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		}
		container.Mounts = append(container.Mounts, mount)
	}

	uid := fmt.Sprintf("%08x-0000-4000-8000-%012x", os.Getpid(), time.Now().UnixNano()&0xffffffffffff)
	logs := filepath.Join(c.dir, "logs")
	sandboxConfig := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "sockflow-x", Namespace: "sockflow", Uid: uid}, LogDirectory: logs,
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/kubepods/burstable/pod" + uid, SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: namespaces}},
	}
	sandbox, err := c.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandboxConfig})
	if err != nil {
		t.Fatalf("RunPodSandbox: %v", err)
	}
	made, err := c.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: sandbox.PodSandboxId, Config: container, SandboxConfig: sandboxConfig})
	if err != nil {
		t.Fatalf("CreateContainer: %v", err)
	}
	if _, err := c.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		t.Fatalf("StartContainer: %v", err)
	}
	return c.follow(ctx, made.ContainerId, filepath.Join(logs, "sockflow.log"))
}

// follow returns the program of a container as one that this test runs: its output comes by way of the log of the
// runtime.
func (c *containerdNode) follow(ctx context.Context, id, log string) *running {
	t := c.t
	t.Helper()
	pid := 0
	for line := range strings.Lines(c.run("k8s.io", "task", "ls")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == id {
			pid, _ = strconv.Atoi(f[1])
		}
	}
	if pid == 0 {
		t.Fatalf("container %s does not run: %s", id, c.run("k8s.io", "task", "ls"))
	}
	process, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{t: t, cmd: &exec.Cmd{Process: process}, exited: make(chan error, 1)}
	file, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the container, or ctx
		defer file.Close()
		var rest []byte
		copyLog := func() {
			b, _ := io.ReadAll(file)
			rest = append(rest, b...)
			for {
				line, after, ok := strings.Cut(string(rest), "\n")
				if !ok {
					return
				}
				rest = []byte(after)
				// TIME STREAM P|F TEXT: P is a part of a line.
				f := strings.SplitN(line, " ", 4)
				if len(f) < 4 {
					continue
				}
				if f[2] == "F" {
					f[3] += "\n"
				}
				if f[1] == "stdout" {
					r.out.Write([]byte(f[3]))
				} else {
					r.errs.Write([]byte(f[3]))
				}
			}
		}
		for {
			st, err := c.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
			copyLog()
			switch {
			case err != nil:
				r.exited <- err
				return
			case st.Status.State == cri.ContainerState_CONTAINER_EXITED:
				if copyLog(); st.Status.ExitCode != 0 {
					err = fmt.Errorf("exit status %d: %s", st.Status.ExitCode, st.Status.Message)
				}
				r.exited <- err
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	return r
}

// TestDaemonSet: what deploy/kubernetes has a node run, by containerd and with nothing but what the manifest gives
// it, sees the sockets of the whole host with their processes, datagrams too, and names the containers of pods.
// Where cgroup v2 is all there is (testdata/kernels/run.sh with CONTAINERS=1) containerd gives it a control group
// namespace of its own.
func TestDaemonSet(t *testing.T) {
	n := newNode(t)
	oci, _ := image(t)
	c := startContainerd(n, "", 217, oci)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	older, err := c.runPod(ctx, "older", false, nil, "/bin/pod", "-serve", "7000", "-for", "1h")
	if err != nil {
		t.Fatal(err)
	}
	r := c.daemonSet(ctx, "collector: ['json:-']\nsnapshot-interval: 1s\naudit-interval: 2s\ncontainerd: none\ndocker: none\npodman: none\ncri: none\n")
	eventually(t, "the exporter meters", func() bool {
		select {
		case err := <-r.exited:
			t.Fatalf("the exporter ended: %v\n%s", err, r.errs.String())
		default:
		}
		return strings.Contains(r.errs.String(), "metering by")
	})
	inside, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/cgroup", r.cmd.Process.Pid))
	outside, _ := os.Readlink("/proc/self/ns/cgroup")
	t.Logf("its control group namespace is %s, the host's %s\n%s", inside, outside, r.errs.String())
	if v2, v1 := hierarchies(t); v2 != "" && len(v1) == 0 && inside == outside {
		t.Error("containerd did not give it a control group namespace of its own")
	}
	for _, line := range []string{"metering by eBPF"} {
		if !strings.Contains(r.errs.String(), line) {
			t.Errorf("it does not say %q", line)
		}
	}
	if strings.Contains(r.errs.String(), "not attached") {
		t.Error("a hook is not attached")
	}
	checks := c.run("k8s.io", "task", "exec", "--exec-id", "doctor", c.containerOf(ctx, "sockflow"), "/sockflow", "doctor", "--config", "/etc/sockflow/sockflow.yaml")
	t.Log(checks)
	if strings.Contains(checks, "✗") {
		t.Error("doctor finds something missing")
	}
	younger, err := c.runPod(ctx, "younger", false, nil, "/bin/pod", "-for", "1h", older.ip+":7000")
	if err != nil {
		t.Fatal(err)
	}
	acceptance(t, r, false, func() { time.Sleep(3 * time.Second) }) // its metrics are the node's
	recs := r.json()
	names(t, recs, 2, jsonContainer{ID: older.container, PodUID: older.uid})
	names(t, recs, 2, jsonContainer{ID: younger.container, PodUID: younger.uid})
	show(t, r, recs)
}

// containerOf returns the id of the container of a name.
func (c *containerdNode) containerOf(ctx context.Context, name string) string {
	c.t.Helper()
	list, err := c.runtime.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, box := range list.Containers {
		if box.Metadata.Name == name {
			return box.Id
		}
	}
	c.t.Fatalf("no container %s", name)
	return ""
}
