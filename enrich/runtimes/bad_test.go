package runtimes

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/flowcache"
)

// What real runtimes do on bad days only.

// holder returns the name of the container or pod that had an address at a time, from a record without a socket at its
// destination.
func (g *watched) holder(ip string, at time.Time) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	e := &enrich.Enricher{Processes: enrich.NewProcesses(enrich.ProcConfig{}, g.cgroups), CGroups: g.cgroups}
	r := flowcache.Record{Start: at.UnixNano(), Key: flowcache.Key{Dst: parseAddresses(ip)[0], Proto: 17}, Source: flowcache.End{Local: false}}
	e.Enrich(&r)
	if w := r.Dest.Container; w != nil {
		return w.ContainerName + w.PodName
	}
	return ""
}

// say sends an event to everybody who listens to f.
type speaker struct {
	mu  sync.Mutex
	out []chan string
}

func (s *speaker) listen(w http.ResponseWriter, r *http.Request) {
	c := make(chan string, 100)
	s.mu.Lock()
	s.out = append(s.out, c)
	s.mu.Unlock()
	for {
		select {
		case line := <-c:
			fmt.Fprint(w, line)
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

func (s *speaker) say(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.out {
		c <- line
	}
}

func (s *speaker) listened() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.out) > 0
}

// networked is a container as Docker inspects it, with an address and a published port.
func networked(n int, name, ip string, started, finished time.Time) string {
	return fmt.Sprintf(`{"Id":"%s","Created":"%s","Name":"/%s","State":{"Pid":0,"StartedAt":"%s","FinishedAt":"%s"},"Config":{"Image":"i"},"HostConfig":{"NetworkMode":"default"},`+
		`"NetworkSettings":{"Networks":{"bridge":{"IPAddress":"%s"}},"Ports":{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"}],"81/tcp":null}}}`,
		id(n), started.Add(-time.Second).UTC().Format(time.RFC3339Nano), name, started.UTC().Format(time.RFC3339Nano), finished.UTC().Format(time.RFC3339Nano), ip)
}

func containerEvent(n int, action string, at time.Time) string {
	return fmt.Sprintf(`{"Type":"container","Action":"%s","Actor":{"ID":"%s","Attributes":{"name":"c%d","image":"i"}},"timeNano":%d}`, action, id(n), n, at.UnixNano())
}

// TestAddressByEvents: an address is a container's from the event by which it is connected, to that by which it ends.
func TestAddressByEvents(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	var s speaker
	began := time.Now()
	at := func(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }
	f.events = s.listen
	f.inspect = map[string]string{}
	g := watch(t, only(f.socket))
	soon(t, "it listens", s.listened)
	show := func(n int, text string) { f.set(func() { f.inspect[id(n)] = text }) }
	show(1, networked(1, "c1", "10.1.0.2", at(2), time.Time{}))
	s.say(containerEvent(1, "create", at(0)))
	s.say(fmt.Sprintf(`{"Type":"network","Action":"connect","Actor":{"ID":"n","Attributes":{"container":"%s"}},"timeNano":%d}`, id(1), at(1).UnixNano()))
	s.say(containerEvent(1, "start", at(2)))
	soon(t, "the address", func() bool { return g.holder("10.1.0.2", at(5)) == "c1" })
	s.say(containerEvent(1, "die", at(10)))
	s.say(fmt.Sprintf(`{"Type":"network","Action":"disconnect","Actor":{"ID":"n","Attributes":{"container":"%s"}},"timeNano":%d}`, id(1), at(11).UnixNano()))
	soon(t, "the end", func() bool { return g.holder("10.1.0.2", at(3600)) == "" })
	show(2, networked(2, "c2", "10.1.0.2", at(20), time.Time{}))
	s.say(containerEvent(2, "create", at(19)) + containerEvent(2, "start", at(20)))
	soon(t, "the successor", func() bool { return g.holder("10.1.0.2", at(30)) == "c2" })
	for when, want := range map[int]string{0: "", 1: "c1", 9: "c1", 10: "", 15: "", 19: "", 20: "c2", 86400: "c2"} {
		if got := g.holder("10.1.0.2", at(when)); got != want {
			t.Errorf("after %d s: %q, want %q", when, got, want)
		}
	}
	// What is asked late shows a later time of the container: its own event is yet to come.
	show(3, networked(3, "c3", "10.1.0.9", at(50), at(45)))
	s.say(containerEvent(3, "create", at(40)) + containerEvent(3, "start", at(41)) + containerEvent(3, "die", at(45)) + containerEvent(3, "start", at(50)))
	soon(t, "the second time", func() bool { return g.holder("10.1.0.9", at(55)) == "c3" })
	if got := g.holder("10.1.0.9", at(43)); got != "" {
		t.Errorf("it has the address before: %q", got)
	}
	// Destroyed, without a word before.
	s.say(containerEvent(2, "destroy", at(60)))
	soon(t, "the end", func() bool { return g.holder("10.1.0.2", at(61)) == "" && g.holder("10.1.0.2", at(59)) == "c2" })
}

// waits reports whether the last record of a flow to an address waits for whose it is.
func (g *watched) waits(ip string, at, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	e := &enrich.Enricher{Processes: enrich.NewProcesses(enrich.ProcConfig{}, g.cgroups), CGroups: g.cgroups}
	e.Clock(now.UnixNano(), 0)
	return !e.EnrichOrWait(&flowcache.Record{Final: true, Start: at.UnixNano(), Key: flowcache.Key{Dst: parseAddresses(ip)[0], Proto: 1}})
}

// TestStartingIsWaitedFor: from the event by which a container is connected, until it has started and was asked for or has died, who speaks to an address
// that nobody has yet waits, however long the container takes to start.
func TestStartingIsWaitedFor(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	var s speaker
	began := time.Now()
	f.events = s.listen
	f.inspect = map[string]string{id(1): networked(1, "c1", "10.1.0.2", began, time.Time{}), id(2): networked(2, "c2", "10.1.0.3", began, time.Time{})}
	g := watch(t, only(f.socket))
	soon(t, "it listens", s.listened)
	connect := func(n int) string {
		return fmt.Sprintf(`{"Type":"network","Action":"connect","Actor":{"ID":"n","Attributes":{"container":"%s"}},"timeNano":%d}`, id(n), began.UnixNano())
	}
	later := began.Add(time.Second)
	waits := func() bool { return g.waits("10.1.0.3", later, later.Add(9*time.Second)) }
	s.say(containerEvent(1, "create", began) + containerEvent(1, "start", began))
	soon(t, "the first", func() bool { return g.holder("10.1.0.2", later) == "c1" && !waits() })
	s.say(containerEvent(2, "create", began) + connect(2))
	soon(t, "a record waits", waits)
	if g.waits("10.1.0.3", began.Add(-time.Second), later) {
		t.Error("a record from before waits")
	}
	s.say(containerEvent(2, "start", began))
	soon(t, "the second", func() bool { return g.holder("10.1.0.3", later) == "c2" && !waits() })
	// In a network that had no container yet, too.
	f.set(func() {
		f.networks = `[{"Name":"new","IPAM":{"Config":[{"Subnet":"10.7.0.0/16","Gateway":"10.7.0.1"},{"Subnet":"fd07::/64"}]}},{"Name":"host","IPAM":{"Config":null}}]`
	})
	s.say(fmt.Sprintf(`{"Type":"network","Action":"create","Actor":{"ID":"m","Attributes":{"name":"new"}},"timeNano":%d}`, began.UnixNano()))
	waits = func() bool { return g.waits("10.7.9.4", later, later) && g.waits("fd07::4", later, later) }
	s.say(containerEvent(3, "create", began) + connect(3))
	soon(t, "a record waits", waits)
	s.say(containerEvent(3, "die", later))
	if g.waits("10.8.0.4", later, later) {
		t.Error("who speaks to an address elsewhere waits")
	}
	soon(t, "it waits no more", func() bool { return !waits() })
}

// TestListReconciles: what happened while nobody listened is found by the list.
func TestListReconciles(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	long := time.Now().Add(-time.Hour)
	f.inspect = map[string]string{id(1): networked(1, "c1", "10.1.0.2", long, time.Time{}), id(2): networked(2, "c2", "10.1.0.3", long, time.Time{})}
	entry := func(n int, ip string) string {
		return fmt.Sprintf(`{"Id":"%s","Names":["/c%d"],"Created":%d,"State":"running","NetworkSettings":{"Networks":{"b":{"IPAddress":"%s"}}}}`, id(n), n, long.Unix()-1, ip)
	}
	f.list = "[" + entry(1, "10.1.0.2") + "," + entry(2, "10.1.0.3") + "]"
	g := watch(t, only(f.socket))
	soon(t, "both", func() bool {
		return g.holder("10.1.0.2", time.Now()) == "c1" && g.holder("10.1.0.3", time.Now()) == "c2"
	})
	if g.holder("10.1.0.2", long.Add(time.Minute)) != "c1" || g.holder("10.1.0.2", long.Add(-time.Minute)) != "" {
		t.Error("not since it was started")
	}
	f.set(func() { f.list = "[" + entry(2, "") + "]" }) // one is gone, the other disconnected
	f.server.Close()
	f.listen()
	soon(t, "neither", func() bool { return g.holder("10.1.0.2", time.Now()) == "" && g.holder("10.1.0.3", time.Now()) == "" })
}

// TestOneTooLong: a container of ten thousand ports, one that is longer than anything is read, and an event that is, cost nobody else's names, and the
// first is named whole.
func TestOneTooLong(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	var s speaker
	f.events = s.listen
	var ports, endless strings.Builder
	for p := 10000; p <= 20000; p++ {
		fmt.Fprintf(&ports, `{"IP":"0.0.0.0","PrivatePort":%d,"PublicPort":%d,"Type":"udp"},{"IP":"::","PrivatePort":%d,"PublicPort":%d,"Type":"udp"},`, p, p, p, p)
	}
	for endless.Len() < maxValue {
		endless.WriteString(`{"IP":"0.0.0.0","PrivatePort":1,"PublicPort":1,"Type":"sctp"},`)
	}
	entry := func(n int, ports string) string {
		return fmt.Sprintf(`{"Id":"%s","Names":["/c%d"],"Image":"i%d","Created":7,"Ports":[%s],"Labels":{"app":"w"},"State":"running"}`, id(n), n, n, strings.TrimSuffix(ports, ","))
	}
	f.list = "[" + entry(1, ports.String()) + "," + entry(2, endless.String()) + "," + entry(3, "") + "]"
	g := watch(t, only(f.socket))
	soon(t, "all names", func() bool {
		return g.name(id(1)).PodLabels == "app=w" && g.name(id(2)).ContainerName == "c2" && g.name(id(2)).ContainerImage == "i2" && g.name(id(3)).ContainerName == "c3"
	})
	soon(t, "it listens", s.listened)
	s.say(`{"Type":"container","Action":"create","Actor":{"ID":"` + id(4) + `","Attributes":{"name":"c4","x":"` + strings.Repeat("x", maxValue) + `"}}}`)
	s.say(containerEvent(5, "create", time.Now()))
	soon(t, "the event after it", func() bool { return g.name(id(5)).ContainerName == "c5" })
	f.set(func() { f.list = "[" + entry(4, "") + "," + entry(5, "") + "]" })
	soon(t, "by the list", func() bool { return g.name(id(4)).ContainerName == "c4" })
	if st := g.w.Stats()[0]; st.TooLong < 2 || st.Malformed != 0 {
		t.Errorf("%+v", st)
	}
	said := 0
	g.mu.Lock()
	for _, l := range g.lines {
		if strings.Contains(l, "more than") {
			said++
		}
	}
	g.mu.Unlock()
	if said != 1 {
		t.Errorf("said %d times: %q", said, g.lines)
	}
}

func TestRanges(t *testing.T) {
	var s portSet
	for p := 20000; p >= 10000; p-- {
		s.add("udp", p, p)
		s.add("udp", p, p)
	}
	s.add("tcp", 80, 80)
	s.add("tcp", 82, 90)
	s.add("tcp", 81, 81)
	s.add("tcp", 65530, 70000)
	s.add("tcp", 0, 7)
	s.add("icmp", 7, 7)
	if got := fmt.Sprint(s.ranges()); got != "[{6 80 90} {6 65530 65535} {17 10000 20000}]" {
		t.Error(got)
	}
}

// TestHungInTheMiddle: an engine that stops in the middle of an answer, or of an event, costs new names only, and recovers.
func TestHungInTheMiddle(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	release := make(chan struct{})
	f.list = `[{"Id":"` + id(1) + `","Names":["/web"],"Created":7},`
	f.events = func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"Type":"container","Action":"create","Actor":{"ID":"`)
		w.(http.Flusher).Flush()
	}
	f.cut = release
	g := watch(t, only(f.socket))
	soon(t, "it is said", func() bool { return len(g.said()) > 0 && !g.said()[0] })
	close(release)
	f.set(func() {
		f.cut, f.list, f.events = nil, `[{"Id":"`+id(1)+`","Names":["/web"],"Created":7}]`, nil
	})
	soon(t, "names", func() bool { return g.name(id(1)).ContainerName == "web" })
}

// TestLinkAndFile: a link to a socket is that socket; a file at a usual place, and one without permission, are no more than not there.
func TestLinkAndFile(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.list = `[{"Id":"` + id(1) + `","Names":["/web"],"Created":7}]`
	link := filepath.Join(filepath.Dir(f.socket), "l.sock")
	os.Symlink(f.socket, link)
	g := watch(t, only(link))
	soon(t, "names", func() bool { return g.name(id(1)).ContainerName == "web" })
	later := filepath.Join(filepath.Dir(f.socket), "f.sock")
	g = watch(t, only(later))
	os.WriteFile(later, []byte("x"), 0o600)
	soon(t, "it is said", func() bool { return fmt.Sprint(g.said()) == "[false]" })
	os.Remove(later)
	os.Symlink(f.socket, later)
	soon(t, "names", func() bool { return g.name(id(1)).ContainerName == "web" })
}

// fakeCRI answers as slowly as its fields say.
type fakeCRI struct {
	cri.UnimplementedRuntimeServiceServer
	mu       sync.Mutex
	pods     int
	each     time.Duration
	failing  map[string]int // statuses that fail so often
	notReady map[string]bool
	statuses int
}

func (f *fakeCRI) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "cri-o"}, nil
}

func podID(n int) string { return fmt.Sprintf("f%063x", n) }

func (f *fakeCRI) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var r cri.ListPodSandboxResponse
	for n := range f.pods {
		p := &cri.PodSandbox{Id: podID(n), Metadata: &cri.PodSandboxMetadata{Name: fmt.Sprint("pod", n), Namespace: "shop", Uid: "u"}, CreatedAt: 7}
		if f.notReady[p.Id] {
			p.State = cri.PodSandboxState_SANDBOX_NOTREADY
		}
		r.Items = append(r.Items, p)
	}
	return &r, nil
}

func (f *fakeCRI) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var r cri.ListContainersResponse
	for n := range f.pods {
		r.Containers = append(r.Containers, &cri.Container{Id: id(n), PodSandboxId: podID(n), Metadata: &cri.ContainerMetadata{Name: "main"}, CreatedAt: 7})
	}
	return &r, nil
}

func (f *fakeCRI) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	time.Sleep(f.each)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.statuses++
	if f.failing[r.PodSandboxId] > 0 {
		f.failing[r.PodSandboxId]--
		return nil, status.Error(codes.Unknown, "CNI is not ready")
	}
	var n int
	fmt.Sscanf(r.PodSandboxId, "f%x", &n)
	return &cri.PodSandboxStatusResponse{Status: &cri.PodSandboxStatus{Network: &cri.PodSandboxNetworkStatus{Ip: fmt.Sprintf("10.2.%d.%d", n>>8, n&255)}}}, nil
}

func serveGRPC(t *testing.T, register func(*grpc.Server)) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sfr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", dir+"/s.sock")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	register(s)
	go s.Serve(l) // ends with the test
	t.Cleanup(s.Stop)
	return dir + "/s.sock"
}

// TestSlowCRI: 250 pods at 30 ms a status are named at once, and their addresses come; a status that fails is asked for again; a completed pod has no
// address.
func TestSlowCRI(t *testing.T) {
	t.Parallel()
	f := &fakeCRI{pods: 250, each: 30 * time.Millisecond, failing: map[string]int{podID(3): 2}, notReady: map[string]bool{podID(4): true}}
	socket := serveGRPC(t, func(s *grpc.Server) { cri.RegisterRuntimeServiceServer(s, f) })
	began := time.Now()
	g := watch(t, Config{CRI: socket, Docker: "none", Containerd: "none", Podman: "none"})
	soon(t, "all are named", func() bool {
		for n := range 250 {
			if w := g.name(id(n)); w.PodName != fmt.Sprint("pod", n) || w.ContainerRuntime != "cri-o" {
				return false
			}
		}
		return true
	})
	t.Logf("names after %v", time.Since(began))
	soon(t, "and by their addresses", func() bool {
		for n := range 250 {
			if want := fmt.Sprint("pod", n); n != 4 && g.holder(fmt.Sprintf("10.2.0.%d", n), time.Now()) != want {
				return false
			}
		}
		return true
	})
	f.mu.Lock()
	statuses := f.statuses
	f.notReady[podID(7)] = true
	f.mu.Unlock()
	t.Logf("addresses after %v and %d statuses", time.Since(began), statuses)
	if statuses > 249+2 {
		t.Errorf("%d statuses were asked for, want 249 and two again", statuses)
	}
	if got := g.holder("10.2.0.4", time.Now()); got != "" {
		t.Errorf("a completed pod has its address: %q", got)
	}
	soon(t, "a pod is completed", func() bool { return g.holder("10.2.0.7", time.Now()) == "" && g.holder("10.2.0.7", began) == "pod7" })
}

// fakeContainers is what containerd's own containers are to a client: at most one of each id.
type fakeContainers struct {
	containersapi.ContainersClient
	has map[string]*containersapi.Container
}

func (f *fakeContainers) Get(_ context.Context, r *containersapi.GetContainerRequest, _ ...grpc.CallOption) (*containersapi.GetContainerResponse, error) {
	if c := f.has[r.ID]; c != nil {
		return &containersapi.GetContainerResponse{Container: c}, nil
	}
	return nil, status.Error(codes.NotFound, "none")
}

// TestGenerationsOfContainerd: of two containers of one id the first is asked for when the second is there, and has its own image all the same; and one
// that is gone by then.
func TestGenerationsOfContainerd(t *testing.T) {
	e := &endpoint{known: map[string]known{}, out: make(chan *enrich.ContainerUpdate, 100), proc: "/proc"}
	second := &containersapi.Container{ID: "web", Image: "image2", Labels: map[string]string{}, CreatedAt: timestamppb.New(time.Unix(200, 0))}
	c := &containerd{e: e, pods: map[string]*sandbox{}, containers: &fakeContainers{has: map[string]*containersapi.Container{"web": second}}}
	ctx := context.Background()
	at := func(s int64) int64 { return time.Unix(s, 0).UnixNano() }
	c.created(ctx, "shop", &apievents.ContainerCreate{ID: "web", Image: "image1"}, at(100))
	c.created(ctx, "shop", &apievents.ContainerCreate{ID: "web", Image: "image2"}, at(201))
	c.created(ctx, "shop", &apievents.ContainerCreate{ID: "brief", Image: "image3"}, at(300))
	got := map[string]int64{}
	for _, p := range e.pending {
		got[p.Workload.ContainerImage] = p.Created
		if p.Workload.ContainerName == "" {
			t.Errorf("%+v", p)
		}
	}
	if want := map[string]int64{"image1": at(100), "image2": at(200), "image3": at(300)}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestStartingPod: a list may show a pod's sandbox before its task runs. Its addresses are the pod's all the same, whether the event of its making
// was read before that list or not; those of a sandbox whose task has exited are not.
func TestStartingPod(t *testing.T) {
	now := time.Now()
	pod := func(n int, created time.Time) *containersapi.Container {
		return &containersapi.Container{ID: podID(n), CreatedAt: timestamppb.New(created), Sandbox: podID(n), Labels: map[string]string{podName: fmt.Sprintf("pod%d", n)},
			Extensions: map[string]*anypb.Any{sandboxMetadata: {Value: fmt.Appendf(nil, `{"Version":"v1","Metadata":{"IP":"10.3.0.%d"}}`, n)}}}
	}
	made := now.Add(-time.Second)
	fake := &fakeContainers{has: map[string]*containersapi.Container{}}
	for n := range 6 {
		fake.has[podID(n)] = pod(n, made)
	}
	g := &watched{cgroups: enrich.NewCGroups("/proc")}
	out := make(chan *enrich.ContainerUpdate, 1)
	c := &containerd{e: &endpoint{known: map[string]known{}, out: out, proc: "/proc"}, pods: map[string]*sandbox{}, containers: fake}
	ctx := context.Background()
	create := func(n int) { c.created(ctx, "k8s.io", &apievents.ContainerCreate{ID: podID(n)}, made.UnixNano()) }
	list := func(n int, at time.Time, running map[string]bool) {
		c.put(ctx, "k8s.io", fake.has[podID(n)], spec{}, at.UnixNano(), running)
	}
	event := func(topic string, m proto.Message) {
		a, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		c.event(ctx, &types.Envelope{Namespace: "k8s.io", Topic: topic, Timestamp: timestamppb.New(now), Event: a})
	}
	exit := func(n int) {
		event("/tasks/exit", &apievents.TaskExit{ID: podID(n), ContainerID: podID(n), ExitedAt: timestamppb.New(now)})
	}
	none := map[string]bool{}
	// 0: made, listed, started. 1: listed, started; the event of its making is of no interest by then. 2: made, exited, listed.
	create(0)
	list(0, now, none)
	event("/tasks/start", &apievents.TaskStart{ContainerID: podID(0)})
	list(1, now, none)
	event("/tasks/start", &apievents.TaskStart{ContainerID: podID(1)})
	create(2)
	exit(2)
	list(2, now.Add(time.Millisecond), none)
	event("/tasks/start", &apievents.TaskStart{ContainerID: podID(2)})
	// 3: completed before the list was made. 4: no event reported its exit. 5: made, listed, started, exited.
	list(3, now, none)
	create(4)
	list(4, now, none)
	list(4, now.Add(2*startPatience), none)
	create(5)
	list(5, now.Add(-time.Millisecond), none)
	event("/tasks/start", &apievents.TaskStart{ContainerID: podID(5)})
	exit(5)
	c.e.flush(ctx)
	g.cgroups.Apply(<-out)
	soonAfter, later := now.Add(time.Second), now.Add(time.Hour)
	for _, c := range []struct {
		pod  int
		at   time.Time
		want string
	}{
		{0, soonAfter, "pod0"}, {0, later, "pod0"}, {1, soonAfter, "pod1"}, {1, later, "pod1"}, {2, made.Add(time.Millisecond), "pod2"}, {2, soonAfter, ""},
		{3, soonAfter, ""}, {4, soonAfter, "pod4"}, {4, later, ""}, {5, now.Add(-time.Millisecond), "pod5"}, {5, soonAfter, ""},
	} {
		if got := g.holder(fmt.Sprintf("10.3.0.%d", c.pod), c.at); got != c.want {
			t.Errorf("pod%d, %v after it was made: %q, want %q", c.pod, c.at.Sub(made), got, c.want)
		}
	}
}

// TestCutLabels: labels are cut between characters, and 256 kB of them are 1024 octets.
func TestCutLabels(t *testing.T) {
	for n := range 5 {
		v := strings.Repeat("x", n) + strings.Repeat("ü€𝄞", 40000)
		got := choose([]string{"a", "b"}, map[string]string{"a": v, "b": "\xff\xfe,ok"})
		if len(got) > maxLabels || strings.ToValidUTF8(got, "?") != got || !strings.HasSuffix(got, ",b=;ok") {
			t.Errorf("%d: %q", n, got)
		}
	}
}

// TestCGroupOf: where a container is, by its first process.
func TestCGroupOf(t *testing.T) {
	proc := t.TempDir()
	write := func(pid int, lines string) {
		os.MkdirAll(fmt.Sprintf("%s/%d", proc, pid), 0o755)
		os.WriteFile(fmt.Sprintf("%s/%d/cgroup", proc, pid), []byte(lines), 0o600)
	}
	write(1, "4:memory:/docker/"+id(1)+"\n0::/docker/"+id(1)+"\n")
	write(2, "0::/machine.slice/libpod-"+id(2)+".scope/container/deeper\n")
	write(3, "0::/../../docker/"+id(3)+"\n")
	write(4, "0::/system.slice/other.service\n") // the number is another's by now
	write(5, "4:memory:/a/"+id(5)+"\n0::/\n")
	for pid, want := range map[int]string{0: "", 1: "/docker/" + id(1), 2: "/machine.slice/libpod-" + id(2) + ".scope", 3: "/docker/" + id(3), 4: "", 5: "/a/" + id(5), 6: ""} {
		if got := cgroupOf(proc, pid, id(pid)); got != want {
			t.Errorf("%d: %q, want %q", pid, got, want)
		}
	}
	for lines, want := range map[string]string{
		"0::/docker/" + id(1) + "/init.scope\n":                                 "/docker/" + id(1),
		"0::/system.slice/docker-" + id(1) + ".scope/kubelet.slice/c.service\n": "/system.slice/docker-" + id(1) + ".scope",
		"9:x:/\n0::/system.slice/containerd.service\n":                          "",
		"": "",
	} {
		if got := rootOf(lines); got != want {
			t.Errorf("%q: %q, want %q", lines, got, want)
		}
	}
	e := &endpoint{}
	if got := e.below("/k8s.io/x"); got != "/k8s.io/x" {
		t.Error(got)
	}
	root := "/docker/" + id(1)
	e.root.Store(&root)
	if a, b, c := e.below("/k8s.io/x"), e.below(""), e.below(root+"/x"); a != root+"/k8s.io/x" || b != "" || c != root+"/x" {
		t.Error(a, b, c)
	}
}

// FuzzBeginning: whatever the beginning of a container that is too long, or the lines of a process, look like.
func FuzzBeginning(f *testing.F) {
	f.Add([]byte(`{"Id":"a","Names":["/x"],"Image":"i","Created":1,"Ports":[{"Type":"tcp","PublicPort":80},{`))
	f.Add([]byte("0::/docker/" + id(1) + "/x\n4:memory:/../../docker/" + id(1) + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m listed
		if m.beginning(b) && m.ID == "" {
			t.Error("no id")
		}
		if root := rootOf(string(b)); root != "" && !strings.HasPrefix(root, "/") {
			t.Errorf("%q", root)
		}
		if s := cut(string(b), 7); len(s) > 7 {
			t.Errorf("%q", s)
		}
	})
}

// TestQueue: what has an address is asked for before what a list shows, with its own pod before it, and never before what is under way.
func TestQueue(t *testing.T) {
	var asks []ask
	add := func(a ask, asking bool) {
		a.ahead = a.since != 0
		asks = queue(asks, a, asking)
	}
	add(ask{id: "listed1"}, false)
	add(ask{id: "listed2"}, true)
	add(ask{id: "a", pod: true}, true)
	add(ask{id: "b", pod: true}, true)
	add(ask{id: "b", at: 2, since: 2}, true)
	add(ask{id: "c", at: 3, since: 3}, true)
	add(ask{id: "a", at: 4, since: 4}, true)
	var got []string
	for _, a := range asks {
		s := a.id
		if a.pod {
			s += "'s pod"
		}
		got = append(got, s)
	}
	if want := "listed1, b's pod, b, c, a's pod, a, listed2"; strings.Join(got, ", ") != want {
		t.Errorf("%s, want %s", strings.Join(got, ", "), want)
	}
	add(ask{id: "d", since: 5}, false)
	if asks[0].id != "d" {
		t.Errorf("%+v is the first", asks[0])
	}
}
