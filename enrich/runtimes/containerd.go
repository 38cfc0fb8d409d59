package runtimes

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/flowcache"
)

// containerd speaks to containerd: it follows the event stream, and asks for each container that is created, since events carry no
// labels. What CRI knows of pods is in the labels and annotations of containers. A pod's sandbox is asked for again when the first container is made in
// it, since by then it has its addresses. They are the pod's until the sandbox's task exits: a pod that is completed keeps its sandbox, without a task.
type containerd struct {
	e          *endpoint
	containers containersapi.ContainersClient
	namespaces namespacesapi.NamespacesClient
	sandboxes  sandboxapi.StoreClient
	tasks      tasksapi.TasksClient
	pods       map[string]*sandbox // by namespace/id
	list       uint64
}

type sandbox struct {
	work  *flowcache.Workload
	whole bool // it was read when it had its addresses
}

func newContainerd(e *endpoint) client { return &containerd{e: e} }

// Docker keeps its containers here, without names: they are asked for at its own socket.
const dockersNamespace = "moby"

// Between two lists, though containers are seen that are not known.
const leastBetween = 2 * time.Second

// How long after it was made a sandbox's task may be started, on a machine that has much to do.
const startPatience = time.Minute

const maxMessage = 16 << 20 // kubelet's limit

// dial returns a connection to a socket. It does not wait for it. connected, if set, is called with each connection that is made.
func dial(socket string, connected func(*net.UnixConn)) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+socket,
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "unix", socket)
			if u, ok := conn.(*net.UnixConn); ok && err == nil && connected != nil {
				connected(u)
			}
			return conn, err
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		// Fixed windows: a connection on this machine needs no measuring of its bandwidth by pings.
		grpc.WithInitialWindowSize(1<<20), grpc.WithInitialConnWindowSize(1<<20),
		grpc.WithDisableServiceConfig(), grpc.WithNoProxy())
}

func (c *containerd) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := dial(c.e.socket, c.e.found)
	if err != nil {
		return err
	}
	defer conn.Close()
	c.containers = containersapi.NewContainersClient(conn)
	c.namespaces = namespacesapi.NewNamespacesClient(conn)
	c.sandboxes = sandboxapi.NewStoreClient(conn)
	c.tasks = tasksapi.NewTasksClient(conn)
	c.pods = map[string]*sandbox{}
	if err := c.ping(ctx); err != nil {
		return err
	}
	stream, err := eventsapi.NewEventsClient(conn).Subscribe(ctx, &eventsapi.SubscribeRequest{
		Filters: []string{`topic=="/containers/create"`, `topic=="/containers/delete"`, `topic=="/tasks/start"`, `topic=="/tasks/exit"`},
	})
	if err != nil {
		return err
	}
	events, failed := pump(ctx, stream.Recv)
	if err := c.listAll(ctx); err != nil {
		return err
	}
	c.e.answers(ctx)
	ping := time.NewTicker(pingInterval)
	defer ping.Stop()
	// The subscription may have begun after the first list: list again soon.
	again := time.NewTimer(time.Second)
	defer again.Stop()
	listed := time.Now()
	for {
		select {
		case ev := <-events:
			c.e.events.Add(1)
			err = c.event(ctx, ev)
			c.e.flush(ctx)
		case err = <-failed:
		case <-c.e.nudged: // a shim sends no events, or an event was lost
			again.Reset(max(leastBetween/10, leastBetween-time.Since(listed)))
		case <-again.C:
			again.Reset(listInterval)
			listed = time.Now()
			err = c.listAll(ctx)
		case <-ping.C:
			if err = c.ping(ctx); err == nil && !c.e.up { // again
				if err = c.listAll(ctx); err == nil {
					c.e.answers(ctx)
				}
			}
		case <-ctx.Done():
			return nil
		}
		if err = c.e.tolerate(ctx, err); err != nil {
			return err
		}
	}
}

func (c *containerd) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := c.namespaces.List(ctx, &namespacesapi.ListNamespacesRequest{})
	return plain(err)
}

// plain makes an error that errors.Is understands of one of gRPC.
func plain(err error) error {
	switch status.Code(err) {
	case codes.OK:
		return nil
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	}
	return errors.New(status.Convert(err).Message())
}

func within(ctx context.Context, namespace string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", namespace)
}

// listAll reads every container of every namespace, one at a time.
func (c *containerd) listAll(ctx context.Context) error {
	began := time.Now()
	c.list++
	short, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	all, err := c.namespaces.List(short, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return plain(err)
	}
	for _, ns := range all.Namespaces {
		if ns.Name == dockersNamespace {
			continue
		}
		if err := c.listNamespace(ctx, ns.Name); err != nil {
			return plain(err)
		}
	}
	c.e.listed(c.list, began)
	c.e.flush(ctx)
	return nil
}

func (c *containerd) listNamespace(ctx context.Context, ns string) error {
	ctx, cancel := context.WithTimeout(within(ctx, ns), 10*patience)
	defer cancel()
	at := time.Now().UnixNano()
	running, err := c.running(ctx)
	if err != nil {
		return err
	}
	stream, err := c.containers.ListStream(ctx, &containersapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	var waiting []*containersapi.Container // for their sandboxes
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		s := parseSpec(m.Container.GetSpec().GetValue())
		if id := c.sandboxOf(m.Container, s); id != "" && id != m.Container.ID && c.pods[ns+"/"+id] == nil && len(waiting) < maxKnown {
			waiting = append(waiting, m.Container)
			continue
		}
		c.put(ctx, ns, m.Container, s, at, running)
	}
	for _, m := range waiting {
		c.put(ctx, ns, m, parseSpec(m.GetSpec().GetValue()), at, running)
	}
	return nil
}

// running returns the containers that have a task which has not exited.
func (c *containerd) running(ctx context.Context) (map[string]bool, error) {
	r, err := c.tasks.List(ctx, &tasksapi.ListTasksRequest{})
	if err != nil {
		return nil, err
	}
	list := make(map[string]bool, len(r.GetTasks()))
	for _, t := range r.GetTasks() {
		id := t.GetContainerID()
		if id == "" {
			id = t.GetID()
		}
		list[id] = t.GetStatus() != tasktypes.Status_STOPPED
	}
	return list, nil
}

func (c *containerd) event(ctx context.Context, ev *types.Envelope) error {
	ns := ev.GetNamespace()
	if ns == dockersNamespace {
		return nil
	}
	switch ev.GetTopic() {
	case "/containers/create":
		var m apievents.ContainerCreate
		if proto.Unmarshal(ev.GetEvent().GetValue(), &m) != nil {
			return nil
		}
		return c.created(ctx, ns, &m, ev.GetTimestamp().AsTime().UnixNano())
	case "/tasks/start":
		var m apievents.TaskStart
		if proto.Unmarshal(ev.GetEvent().GetValue(), &m) == nil {
			return c.started(ctx, ns, m.GetContainerID())
		}
	case "/tasks/exit":
		var m apievents.TaskExit
		if proto.Unmarshal(ev.GetEvent().GetValue(), &m) != nil || m.GetID() != m.GetContainerID() || !c.e.known[ns+"/"+m.GetContainerID()].has {
			return nil
		}
		at := m.GetExitedAt().AsTime().UnixNano()
		if at <= 0 {
			at = ev.GetTimestamp().AsTime().UnixNano()
		}
		c.e.release(ctx, ns+"/"+m.GetContainerID(), at)
	case "/containers/delete":
		var m apievents.ContainerDelete
		if proto.Unmarshal(ev.GetEvent().GetValue(), &m) == nil {
			key, at := ns+"/"+m.ID, ev.GetTimestamp().AsTime()
			if c.e.known[key].created > at.UnixNano() {
				return nil // of one before it, which ended when this one began
			}
			delete(c.pods, key)
			c.e.end(key, at)
		}
	}
	return nil
}

// created asks for a container that was created at a time. It may be gone by now, or another may have its id: then the event is all that is known.
func (c *containerd) created(ctx context.Context, ns string, ev *apievents.ContainerCreate, at int64) error {
	m, err := c.get(ctx, ns, ev.ID)
	if err != nil {
		return err
	}
	key := ns + "/" + ev.ID
	if _, known := c.e.known[key]; !known && (m == nil || m.GetCreatedAt().AsTime().UnixNano() > at) {
		w := flowcache.Workload{ContainerID: ev.ID, ContainerImage: ev.Image, ContainerRuntime: "containerd"}
		if !hexID(ev.ID) {
			w.ContainerName, w.CGroupPath = ev.ID, "/"+ns+"/"+ev.ID // where clients put it, but for those that ask for another place
		}
		c.e.put(ctx, key, enrich.Container{Workload: w, Created: at}, c.list)
	}
	if m != nil {
		c.put(ctx, ns, m, parseSpec(m.GetSpec().GetValue()), 0, nil)
	}
	return nil
}

// started asks again for a sandbox that a list showed without addresses, since its task was yet to be started.
func (c *containerd) started(ctx context.Context, ns, id string) error {
	key := ns + "/" + id
	if c.pods[key] == nil || c.e.known[key].has || c.e.known[key].died != 0 {
		return nil
	}
	m, err := c.get(ctx, ns, id)
	if m != nil {
		c.put(ctx, ns, m, parseSpec(m.GetSpec().GetValue()), 0, nil)
	}
	return err
}

// get returns a container, nil if it is gone.
func (c *containerd) get(ctx context.Context, ns, id string) (*containersapi.Container, error) {
	ctx, cancel := context.WithTimeout(within(ctx, ns), patience)
	defer cancel()
	r, err := c.containers.Get(ctx, &containersapi.GetContainerRequest{ID: id})
	switch status.Code(err) {
	case codes.OK:
		return r.GetContainer(), nil
	case codes.NotFound:
		return nil, nil
	}
	return nil, plain(err)
}

func (c *containerd) sandboxOf(m *containersapi.Container, s spec) string {
	if s.sandbox != "" {
		return s.sandbox
	}
	return m.GetSandbox()
}

// put reports a container. The pod's names are its sandbox's, which has the labels that the pod's author gave. For a
// container from a list, at is the time of the list and running the set of containers that run; for one that was just
// made or asked for, at is 0.
func (c *containerd) put(ctx context.Context, ns string, m *containersapi.Container, s spec, at int64, running map[string]bool) {
	labels := m.GetLabels()
	t := enrich.Container{
		Workload: flowcache.Workload{
			CGroupPath: c.e.below(s.cgroup()), ContainerID: m.GetID(), ContainerImage: m.GetImage(), ContainerRuntime: "containerd",
			PodLabels: choose(c.e.labels, labels),
		},
		Created: m.GetCreatedAt().AsTime().UnixNano(),
	}
	w := &t.Workload
	switch {
	case labels[containerName] != "":
		w.ContainerName = labels[containerName]
	case labels["nerdctl/name"] != "":
		w.ContainerName = labels["nerdctl/name"]
	case !hexID(w.ContainerID):
		w.ContainerName = w.ContainerID // its user chose it
	}
	if s.image != "" {
		w.ContainerImage = s.image
	}
	key, id := ns+"/"+m.GetID(), c.sandboxOf(m, s)
	if id == m.GetID() {
		t.Addresses = c.addresses(ctx, ns, m)
		switch {
		case at == 0 || !running[m.GetID()] && c.starts(key, t.Created, at):
			t.At = t.Created
		case running[m.GetID()]:
			t.At = at
		default:
			t.Addresses, t.At = nil, at
		}
		t.Behind = podOf(labels, w.PodLabels)
		if old := c.pods[key]; old != nil || len(c.pods) < maxKnown {
			c.pods[key] = &sandbox{t.Behind, t.Addresses != nil || old != nil && old.whole}
		}
	}
	if id != "" {
		pod := c.pod(ctx, ns, id, id == m.GetID(), at, running)
		if pod == nil {
			pod = podOf(labels, "") // the sandbox is gone
		}
		w.PodName, w.PodNamespace, w.PodUID = pod.PodName, pod.PodNamespace, pod.PodUID
		if pod.PodLabels != "" {
			w.PodLabels = pod.PodLabels
		}
	}
	c.e.put(ctx, key, t, c.list)
}

// starts reports whether a sandbox without a task at a time has been reported with its addresses and is yet to be
// started.
func (c *containerd) starts(key string, created, at int64) bool {
	k := c.e.known[key]
	return k.has && k.created == created && k.died == 0 && at-created < int64(startPatience)
}

// pod returns the names of a sandbox's pod, nil if there is none. If a container is made in a sandbox that was not yet
// reported in full, it reports the sandbox first.
func (c *containerd) pod(ctx context.Context, ns, id string, itself bool, at int64, running map[string]bool) *flowcache.Workload {
	key := ns + "/" + id
	p := c.pods[key]
	if !itself && (p == nil || !p.whole && at == 0) {
		if m, _ := c.get(ctx, ns, id); m != nil {
			if s := parseSpec(m.GetSpec().GetValue()); c.sandboxOf(m, s) == id {
				c.put(ctx, ns, m, s, at, running)
			}
		}
		if p = c.pods[key]; p != nil {
			p.whole = at == 0
		}
	}
	if p == nil {
		return nil
	}
	return p.work
}

func podOf(labels map[string]string, chosen string) *flowcache.Workload {
	return &flowcache.Workload{PodName: labels[podName], PodNamespace: labels[podNamespace], PodUID: labels[podUID], PodLabels: chosen}
}

// addresses returns those of a pod, none before it has any. containerd 2 keeps what it knows of sandboxes in a store of its own.
func (c *containerd) addresses(ctx context.Context, ns string, m *containersapi.Container) []flowcache.Addr {
	if x := m.GetExtensions()[sandboxMetadata]; x != nil {
		return parseSandbox(x.GetValue())
	}
	ctx, cancel := context.WithTimeout(within(ctx, ns), patience)
	defer cancel()
	r, err := c.sandboxes.Get(ctx, &sandboxapi.StoreGetRequest{SandboxID: m.GetID()})
	if err != nil {
		return nil
	}
	for _, x := range r.GetSandbox().GetExtensions() {
		if a := parseSandbox(x.GetValue()); a != nil {
			return a
		}
	}
	return nil
}
