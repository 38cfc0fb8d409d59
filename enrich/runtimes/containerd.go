package runtimes

import (
	"context"
	"errors"
	"io"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/api/types"
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
// labels. What CRI knows of pods is in the labels and annotations of containers. A pod's sandbox is asked for when the first container is made in
// it, since by then it has its addresses; sooner only if its image may be another's: each question and answer costs, and it has no traffic.
type containerd struct {
	e          *endpoint
	containers containersapi.ContainersClient
	namespaces namespacesapi.NamespacesClient
	sandboxes  sandboxapi.StoreClient
	pods       map[string]*sandbox // by namespace/id
	images     map[string]bool     // whether all containers of an image are sandboxes
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

const maxMessage = 16 << 20 // kubelet's limit

// dial returns a connection to a socket. It does not wait for it.
func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		// Fixed windows: a connection on this machine needs no measuring of its bandwidth by pings.
		grpc.WithInitialWindowSize(1<<20), grpc.WithInitialConnWindowSize(1<<20),
		grpc.WithDisableServiceConfig(), grpc.WithNoProxy())
}

func (c *containerd) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := dial(c.e.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	c.containers = containersapi.NewContainersClient(conn)
	c.namespaces = namespacesapi.NewNamespacesClient(conn)
	c.sandboxes = sandboxapi.NewStoreClient(conn)
	c.pods, c.images = map[string]*sandbox{}, map[string]bool{}
	if err := c.ping(ctx); err != nil {
		return err
	}
	stream, err := eventsapi.NewEventsClient(conn).Subscribe(ctx, &eventsapi.SubscribeRequest{
		Filters: []string{`topic=="/containers/create"`, `topic=="/containers/delete"`},
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
	// The subscription may have begun after the first list: once more soon.
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
		case <-c.e.nudged: // of a shim that tells nothing, or an event that was lost
			if time.Since(listed) > leastBetween {
				again.Reset(leastBetween / 10)
			}
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
		c.put(ctx, ns, m.Container, s)
	}
	for _, m := range waiting {
		c.put(ctx, ns, m, parseSpec(m.GetSpec().GetValue()))
	}
	return nil
}

func (c *containerd) event(ctx context.Context, ev *types.Envelope) error {
	ns := ev.GetNamespace()
	if ns == dockersNamespace {
		return nil
	}
	switch ev.GetTopic() {
	case "/containers/create":
		var m apievents.ContainerCreate
		if proto.Unmarshal(ev.GetEvent().GetValue(), &m) != nil || c.images[m.Image] {
			return nil
		}
		return c.ask(ctx, ns, m.ID)
	case "/containers/delete":
		var m apievents.ContainerDelete
		if proto.Unmarshal(ev.GetEvent().GetValue(), &m) == nil {
			delete(c.pods, ns+"/"+m.ID)
			c.e.end(ns+"/"+m.ID, ev.GetTimestamp().AsTime())
		}
	}
	return nil
}

// ask tells of a container what containerd has.
func (c *containerd) ask(ctx context.Context, ns, id string) error {
	m, err := c.get(ctx, ns, id)
	if m == nil {
		return err
	}
	c.put(ctx, ns, m, parseSpec(m.GetSpec().GetValue()))
	return nil
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

// put tells of a container. The pod's names are its sandbox's, which has the labels that the pod's author gave.
func (c *containerd) put(ctx context.Context, ns string, m *containersapi.Container, s spec) {
	labels := m.GetLabels()
	t := enrich.Container{
		Workload: flowcache.Workload{
			CGroupPath: s.cgroup(), ContainerID: m.GetID(), ContainerImage: m.GetImage(), ContainerRuntime: "containerd",
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
	case len(w.ContainerID) < 64:
		w.ContainerName = w.ContainerID // somebody chose it
	}
	if s.image != "" {
		w.ContainerImage = s.image
	}
	key, id := ns+"/"+m.GetID(), c.sandboxOf(m, s)
	if id == m.GetID() {
		t.Addresses = c.addresses(ctx, ns, m)
		t.Behind = podOf(labels, w.PodLabels)
		if old := c.pods[key]; old != nil || len(c.pods) < maxKnown {
			c.pods[key] = &sandbox{t.Behind, t.Addresses != nil || old != nil && old.whole}
		}
	}
	c.learn(m.GetImage(), id == m.GetID())
	if id != "" {
		pod := c.pod(ctx, ns, id, id == m.GetID())
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

// learn notes of an image whether sandboxes alone are made of it.
func (c *containerd) learn(image string, sandbox bool) {
	only, known := c.images[image]
	if image != "" && (len(c.images) < maxKnown || known) {
		c.images[image] = sandbox && (only || !known)
	}
}

// pod returns the names of a sandbox's pod, nil if there is none. Of one in which a container is made it tells first, if it has not told all.
func (c *containerd) pod(ctx context.Context, ns, id string, itself bool) *flowcache.Workload {
	key := ns + "/" + id
	p := c.pods[key]
	if !itself && (p == nil || !p.whole) {
		if m, _ := c.get(ctx, ns, id); m != nil {
			if s := parseSpec(m.GetSpec().GetValue()); c.sandboxOf(m, s) == id {
				c.put(ctx, ns, m, s)
			}
		}
		if p = c.pods[key]; p != nil {
			p.whole = true
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
