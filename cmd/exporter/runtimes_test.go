package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What the tests of containers run: real runtimes, each in a network namespace of its own, which is a node of its own: bridges, NAT
// and pods on the host's network stay in it.

const podImage = "docker.io/library/pod:1"

// image makes an OCI image of busybox and the program pod, and the tar of its root.
func image(t *testing.T) (oci, rootfs string) {
	t.Helper()
	needTool(t, "busybox")
	dir := t.TempDir()
	program := filepath.Join(dir, "pod")
	if path := os.Getenv("SOCKFLOW_POD"); path != "" {
		program = path // where there is no Go
	} else {
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./testdata/pod")
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	var root bytes.Buffer
	w := tar.NewWriter(&root)
	add := func(h *tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		w.Write(content)
	}
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		add(&tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	for name, from := range map[string]string{"bin/pod": program, "bin/busybox": busybox} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		add(&tar.Header{Name: name, Mode: 0o755}, b)
	}
	for _, applet := range []string{"sh", "sleep", "nc", "ping"} {
		add(&tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
	}
	add(&tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/:/bin/sh\n"))
	w.Close()
	rootfs = filepath.Join(dir, "rootfs.tar")
	if err := os.WriteFile(rootfs, root.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}

	var out bytes.Buffer
	w = tar.NewWriter(&out)
	digest := func(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }
	blob := func(mediaType string, b []byte) map[string]any {
		add(&tar.Header{Name: "blobs/sha256/" + digest(b), Mode: 0o644}, b)
		return map[string]any{"mediaType": "application/vnd.oci.image." + mediaType, "digest": "sha256:" + digest(b), "size": len(b)}
	}
	marshal := func(v any) []byte { b, _ := json.Marshal(v); return b }
	var packed bytes.Buffer
	z, _ := gzip.NewWriterLevel(&packed, 1)
	z.Write(root.Bytes())
	z.Close()
	layer := blob("layer.v1.tar+gzip", packed.Bytes())
	config := blob("config.v1+json", marshal(map[string]any{
		"architecture": "amd64", "os": "linux",
		"config": map[string]any{"Cmd": []string{"/bin/sleep", "3600"}, "Env": []string{"PATH=/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(root.Bytes())}},
	}))
	manifest := blob("manifest.v1+json", marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": []any{layer},
	}))
	manifest["annotations"] = map[string]string{"io.containerd.image.name": podImage, "org.opencontainers.image.ref.name": "1"}
	add(&tar.Header{Name: "oci-layout", Mode: 0o644}, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	add(&tar.Header{Name: "index.json", Mode: 0o644}, marshal(map[string]any{"schemaVersion": 2, "manifests": []any{manifest}}))
	w.Close()
	oci = filepath.Join(dir, "image.tar")
	if err := os.WriteFile(oci, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return oci, rootfs
}

// node is a network namespace that runtimes run in.
type node struct {
	t    *testing.T
	name string
	dir  string
	pool string // of the addresses of pods, as members of JSON for host-local; "": all
}

var nodes atomic.Int32

func newNode(t *testing.T) *node {
	t.Helper()
	needRoot(t)
	n := &node{t: t, name: fmt.Sprintf("sfnode%d-%d", os.Getpid(), nodes.Add(1))}
	// Sockets' names must be short.
	dir, err := os.MkdirTemp("", "sfn")
	if err != nil {
		t.Fatal(err)
	}
	n.dir = dir
	t.Cleanup(func() {
		mounts, _ := os.ReadFile("/proc/self/mountinfo")
		for line := range strings.Lines(string(mounts)) {
			if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
				syscall.Unmount(f[4], syscall.MNT_DETACH)
			}
		}
		os.RemoveAll(dir)
		removeCGroups()
	})
	newNamespace(t, n.name)
	return n
}

// removeCGroups removes the empty control groups that runtimes leave behind.
func removeCGroups() {
	for _, parent := range []string{"shop", "kubepods", "k8s.io", "docker", "libpod_parent"} {
		roots, _ := filepath.Glob("/sys/fs/cgroup/*/" + parent)
		for _, root := range append(roots, "/sys/fs/cgroup/"+parent) {
			var dirs []string
			filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for _, d := range slices.Backward(dirs) {
				os.Remove(d) // fails where it is in use
			}
		}
	}
}

// start runs a daemon in the node, and returns it when its socket is there. It ends with the test.
func (n *node) start(socket string, env []string, argv ...string) *exec.Cmd {
	n.t.Helper()
	needTool(n.t, argv[0])
	log, err := os.Create(filepath.Join(n.dir, filepath.Base(argv[0])+".log"))
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	c := exec.Command("nsenter", append([]string{"--net=/run/netns/" + n.name}, argv...)...)
	c.Stdout, c.Stderr = log, log
	c.Env = append(os.Environ(), env...)
	if err := c.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		c.Process.Signal(syscall.SIGCONT)
		c.Process.Signal(syscall.SIGTERM)
		done := make(chan struct{})
		go func() { c.Wait(); close(done) }() // ends with the daemon
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			c.Process.Kill()
			<-done
		}
		if n.t.Failed() {
			b, _ := os.ReadFile(log.Name())
			n.t.Logf("%s: %s", argv[0], b[max(0, len(b)-3000):])
		}
	})
	eventually(n.t, argv[0]+" is there", func() bool { _, err := os.Stat(socket); return err == nil })
	return c
}

// containerd is one that runs in a node.
type containerdNode struct {
	*node
	socket  string
	daemon  *exec.Cmd
	ctr     string
	runtime cri.RuntimeServiceClient
}

// startContainerd starts the containerd in a directory of binaries; "" is that of the system. Its pods have the addresses
// 10.x.0.0/16 and reach the node at 10.x.0.1.
func startContainerd(n *node, bin string, subnet int, oci string) *containerdNode {
	t := n.t
	t.Helper()
	c := &containerdNode{node: n, socket: n.dir + "/c.sock", ctr: "ctr"}
	program := "containerd"
	var env []string
	if bin != "" {
		program, c.ctr = filepath.Join(bin, "containerd"), filepath.Join(bin, "ctr")
		env = []string{"PATH=" + bin + ":" + os.Getenv("PATH")}
	}
	cni := n.dir + "/cni"
	os.MkdirAll(cni, 0o755)
	os.WriteFile(cni+"/10-pods.conflist", fmt.Appendf(nil, `{"cniVersion":"0.4.0","name":"pods","plugins":[{"type":"bridge","bridge":"sfpods","isGateway":true,"ipMasq":false,
"hairpinMode":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.%d.0.0/16"%s}]],"routes":[{"dst":"0.0.0.0/0"}],"dataDir":"%s/ipam"}}]}`, subnet, n.pool, n.dir), 0o644)
	version := must(t, program, "--version")
	config := fmt.Sprintf(`version = 2
root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
  address = "%[2]s"
[debug]
  address = "%[1]s/d.sock"
  level = "warn"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%[3]s"
  disable_tcp_service = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "%[4]s"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
`, n.dir, c.socket, podImage, cni)
	if strings.Contains(version, " 2.") {
		config = fmt.Sprintf(`version = 3
root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
  address = "%[2]s"
[debug]
  address = "%[1]s/d.sock"
  level = "warn"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "%[3]s"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = "%[4]s"
[plugins."io.containerd.grpc.v1.cri"]
  disable_tcp_service = true
`, n.dir, c.socket, podImage, cni)
	}
	if err := os.WriteFile(n.dir+"/config.toml", []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	c.daemon = n.start(c.socket, env, program, "-c", n.dir+"/config.toml")
	conn, err := grpc.NewClient("unix://"+c.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c.runtime = cri.NewRuntimeServiceClient(conn)
	eventually(t, "CRI is ready", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s, err := c.runtime.Status(ctx, &cri.StatusRequest{})
		for _, cond := range s.GetStatus().GetConditions() {
			if !cond.Status {
				return false
			}
		}
		return err == nil
	})
	for _, ns := range []string{"k8s.io", "shop"} {
		c.run(ns, "image", "import", oci)
	}
	t.Cleanup(c.clean)
	return c
}

func (c *containerdNode) run(ns string, args ...string) string {
	c.t.Helper()
	return must(c.t, c.ctr, append([]string{"-a", c.socket, "-n", ns}, args...)...)
}

// clean ends what still runs, while the daemon lives.
func (c *containerdNode) clean() {
	c.daemon.Process.Signal(syscall.SIGCONT)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list, _ := c.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	for _, p := range list.GetItems() {
		c.removePod(ctx, p.Id)
	}
	names, _ := exec.Command(c.ctr, "-a", c.socket, "-n", "shop", "task", "ls", "-q").Output()
	for _, id := range strings.Fields(string(names)) {
		exec.Command(c.ctr, "-a", c.socket, "-n", "shop", "task", "rm", "-f", id).Run()
		exec.Command(c.ctr, "-a", c.socket, "-n", "shop", "container", "rm", id).Run()
	}
}

func (c *containerdNode) removePod(ctx context.Context, id string) {
	c.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
	c.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
}

// pod is one that runs.
type pod struct {
	name, namespace, uid string
	ip                   string // "" on the host's network
	sandbox, container   string
	started              time.Time
}

// runPod starts a pod with one container.
func (c *containerdNode) runPod(ctx context.Context, name string, host bool, labels map[string]string, command ...string) (*pod, error) {
	uid := fmt.Sprintf("%08x-0000-4000-8000-%012x", os.Getpid(), time.Now().UnixNano()&0xffffffffffff)
	p := &pod{name: name, namespace: "tests", uid: uid, started: time.Now()}
	all := map[string]string{"io.kubernetes.pod.name": p.name, "io.kubernetes.pod.namespace": p.namespace, "io.kubernetes.pod.uid": uid}
	own := map[string]string{"io.kubernetes.container.name": "main"}
	for k, v := range all {
		own[k] = v
	}
	for k, v := range labels {
		all[k] = v
	}
	options := &cri.NamespaceOption{}
	if host {
		options.Network = cri.NamespaceMode_NODE
	}
	config := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: p.name, Namespace: p.namespace, Uid: uid}, Labels: all, LogDirectory: c.dir + "/logs",
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/kubepods/burstable/pod" + uid, SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: options}},
	}
	sandbox, err := c.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return nil, fmt.Errorf("RunPodSandbox: %w", err)
	}
	p.sandbox = sandbox.PodSandboxId
	st, err := c.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.sandbox})
	if err != nil {
		return nil, fmt.Errorf("PodSandboxStatus: %w", err)
	}
	p.ip = st.GetStatus().GetNetwork().GetIp()
	m, err := c.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.sandbox, SandboxConfig: config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "main"}, Image: &cri.ImageSpec{Image: podImage}, Command: command, Labels: own, LogPath: name + ".log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: options}},
	}})
	if err != nil {
		return nil, fmt.Errorf("CreateContainer: %w", err)
	}
	p.container = m.ContainerId
	if _, err := c.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.container}); err != nil {
		return nil, fmt.Errorf("StartContainer: %w", err)
	}
	return p, nil
}

// docker is a dockerd in a node.
type docker struct {
	*node
	socket string
	daemon *exec.Cmd
}

// startDocker starts a dockerd whose containers have addresses of 10.x.0.0/24, with some more arguments.
func startDocker(n *node, subnet int, rootfs string, args ...string) *docker {
	n.t.Helper()
	d := &docker{node: n, socket: n.dir + "/d.sock"}
	d.daemon = n.start(d.socket, nil, append([]string{"dockerd", "--data-root", n.dir + "/docker", "--exec-root", n.dir + "/dx", "--pidfile", n.dir + "/d.pid",
		"-H", "unix://" + d.socket, "--bip", fmt.Sprintf("10.%d.0.1/24", subnet)}, args...)...)
	eventually(n.t, "docker answers", func() bool { return exec.Command("docker", "-H", "unix://"+d.socket, "version").Run() == nil })
	d.run("import", rootfs, "shop/web:2")
	n.t.Cleanup(func() {
		d.daemon.Process.Signal(syscall.SIGCONT)
		ids, _ := exec.Command("docker", "-H", "unix://"+d.socket, "ps", "-aq").Output()
		if list := strings.Fields(string(ids)); len(list) > 0 {
			exec.Command("docker", append([]string{"-H", "unix://" + d.socket, "rm", "-f"}, list...)...).Run()
		}
	})
	return d
}

func (d *docker) run(args ...string) string {
	d.t.Helper()
	return strings.TrimSpace(must(d.t, "docker", append([]string{"-H", "unix://" + d.socket}, args...)...))
}

// inside runs a command in the node.
func (n *node) inside(argv ...string) string {
	n.t.Helper()
	return must(n.t, "nsenter", append([]string{"--net=/run/netns/" + n.name}, argv...)...)
}

// podman is a podman service in a node.
type podman struct {
	*node
	socket string
	env    []string
}

func startPodman(n *node, rootfs string) *podman {
	n.t.Helper()
	p := &podman{node: n, socket: n.dir + "/p.sock"}
	// No journal, no systemd, and no right to raise limits.
	files := map[string]string{
		"containers.conf": fmt.Sprintf(`[engine]
cgroup_manager="cgroupfs"
events_logger="file"
runtime="runc"
tmp_dir="%[1]s/pt"
[network]
network_backend="cni"
cni_plugin_dirs=["/usr/lib/cni"]
network_config_dir="%[1]s/net"
[containers]
default_ulimits=["nofile=1024:4096","nproc=1024:2048"]
`, n.dir),
		"storage.conf": fmt.Sprintf("[storage]\ndriver=\"overlay\"\nrunroot=\"%[1]s/pr\"\ngraphroot=\"%[1]s/pg\"\n", n.dir),
	}
	for name, content := range files {
		if err := os.WriteFile(n.dir+"/"+name, []byte(content), 0o644); err != nil {
			n.t.Fatal(err)
		}
	}
	p.env = append(os.Environ(), "CONTAINERS_CONF="+n.dir+"/containers.conf", "CONTAINERS_STORAGE_CONF="+n.dir+"/storage.conf")
	p.run("import", rootfs, "localhost/shop:1")
	n.start(p.socket, p.env, "podman", "system", "service", "--time", "0", "unix://"+p.socket)
	n.t.Cleanup(func() { p.try("rm", "-fa", "-t", "0"); p.try("pod", "rm", "-fa", "-t", "0") })
	return p
}

func (p *podman) try(args ...string) (string, error) {
	c := exec.Command("nsenter", append([]string{"--net=/run/netns/" + p.name, "podman"}, args...)...)
	c.Env = p.env
	out, err := c.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (p *podman) run(args ...string) string {
	p.t.Helper()
	out, err := p.try(args...)
	if err != nil {
		p.t.Fatalf("podman %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func stopRequest(id string) *cri.StopPodSandboxRequest {
	return &cri.StopPodSandboxRequest{PodSandboxId: id}
}
