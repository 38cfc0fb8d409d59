package runtimes

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/flowcache"
)

// criClient speaks the Container Runtime Interface (k8s.io/cri-api, runtime.v1). Few runtimes send events, so they are
// polled, and asked at once when a container is seen that is not known.
type criClient struct {
	e       *endpoint
	runtime string
	pods    map[string]*criPod // by sandbox
	list    uint64
}

type criPod struct {
	work    flowcache.Workload
	created int64
	ready   bool  // it runs, as far as the last list knew
	readyAt int64 // when a list last knew so
	asked   bool  // for its addresses, and they were answered
	list    uint64
}

func newCRI(e *endpoint) client { return &criClient{e: e, pods: map[string]*criPod{}} }

const (
	criInterval = 5 * time.Second
	// Between two lists, though containers are seen that are not known.
	criLeast = 50 * time.Millisecond
	// How long statuses of pods are asked for before the next list: there may be hundreds, and slow ones.
	criAsking = time.Second
)

func (c *criClient) watch(ctx context.Context) error {
	conn, err := dial(c.e.socket, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := cri.NewRuntimeServiceClient(conn)
	short, cancel := context.WithTimeout(ctx, patience)
	v, err := client.Version(short, &cri.VersionRequest{})
	cancel()
	if err != nil {
		return plain(err)
	}
	c.runtime = v.GetRuntimeName()
	tick := time.NewTicker(criInterval)
	defer tick.Stop()
	for {
		began := time.Now()
		if err := c.listAll(ctx, client); err != nil {
			return plain(err)
		}
		// Names and addresses together, so that who waits for the one has the other, unless these take long.
		more, asking := c.askAll(ctx, client)
		c.e.flush(ctx)
		if !c.e.up && asking == nil {
			c.e.answers(ctx)
		}
		if err := c.e.tolerate(ctx, asking); err != nil {
			return plain(err)
		}
		if more {
			continue
		}
		// Asking costs the runtime something: at most a twentieth of the time.
		wait(ctx, max(criLeast, min(19*time.Since(began), criInterval)))
		select {
		case <-tick.C:
		case <-c.e.nudged:
		case <-ctx.Done():
			return nil
		}
	}
}

// listAll reads the pods and containers there are: names need no more.
func (c *criClient) listAll(ctx context.Context, client cri.RuntimeServiceClient) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 10*patience)
	defer cancel()
	c.list++
	pods, err := client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, p := range pods.GetItems() {
		c.sandbox(ctx, p, began.UnixNano())
	}
	list, err := client.ListContainers(ctx, &cri.ListContainersRequest{}, grpc.WaitForReady(false))
	if err != nil {
		return err
	}
	for _, m := range list.GetContainers() {
		pod := c.pods[m.GetPodSandboxId()]
		if pod == nil {
			continue // its pod came since: next time
		}
		w := pod.work
		w.ContainerID, w.ContainerName, w.ContainerRuntime = m.GetId(), m.GetMetadata().GetName(), c.runtime
		if w.ContainerImage = m.GetImage().GetUserSpecifiedImage(); w.ContainerImage == "" {
			w.ContainerImage = m.GetImage().GetImage()
		}
		c.putNew(ctx, enrich.Container{Workload: w, Created: m.GetCreatedAt()})
	}
	for id, p := range c.pods {
		if p.list != c.list {
			delete(c.pods, id)
			if p.readyAt != 0 { // it had its address until some time between two lists
				c.e.end(id, time.Unix(0, p.readyAt))
			}
		}
	}
	c.e.listed(c.list, began)
	return nil
}

// sandbox passes on a pod. One that is completed has no address: since when the interface does not say, so since it was last known to run.
func (c *criClient) sandbox(ctx context.Context, p *cri.PodSandbox, at int64) {
	pod := c.pods[p.GetId()]
	if pod == nil {
		if len(c.pods) >= maxKnown {
			c.e.overflow.Add(1)
			return
		}
		m := p.GetMetadata()
		pod = &criPod{created: p.GetCreatedAt(), work: flowcache.Workload{
			PodName: m.GetName(), PodNamespace: m.GetNamespace(), PodUID: m.GetUid(), PodLabels: choose(c.e.labels, p.GetLabels()),
		}}
		c.pods[p.GetId()] = pod
	}
	pod.list = c.list
	c.putNew(ctx, c.container(p.GetId(), pod))
	if pod.ready = p.GetState() == cri.PodSandboxState_SANDBOX_READY; pod.ready {
		pod.readyAt = at
	} else if c.e.known[p.GetId()].has {
		c.e.release(ctx, p.GetId(), pod.readyAt)
	}
}

func (c *criClient) container(id string, pod *criPod) enrich.Container {
	w := pod.work
	w.ContainerID, w.ContainerRuntime = id, c.runtime
	return enrich.Container{Workload: w, Created: pod.created, Behind: &pod.work}
}

// askAll asks for the addresses of pods, each once, unless the answer was an error. It reports whether there are more to ask: what is answered by then
// is passed on, and the next list comes first.
func (c *criClient) askAll(ctx context.Context, client cri.RuntimeServiceClient) (more bool, err error) {
	began := time.Now()
	for id, pod := range c.pods {
		if pod.asked || !pod.ready {
			continue
		}
		if time.Since(began) > criAsking {
			return true, nil
		}
		short, cancel := context.WithTimeout(ctx, patience)
		st, err := client.PodSandboxStatus(short, &cri.PodSandboxStatusRequest{PodSandboxId: id})
		cancel()
		switch {
		case ctx.Err() != nil:
			return false, nil
		case status.Code(err) == codes.NotFound:
			continue // it is gone
		case status.Code(err) == codes.DeadlineExceeded:
			return false, context.DeadlineExceeded
		case err != nil: // of this pod alone, perhaps: again with the next list
			c.e.fails.Add(1)
			continue
		}
		pod.asked = true
		if st.GetStatus().GetLinux().GetNamespaces().GetOptions().GetNetwork() == cri.NamespaceMode_NODE || st.GetStatus().GetState() != cri.PodSandboxState_SANDBOX_READY {
			continue
		}
		n := st.GetStatus().GetNetwork()
		t := c.container(id, pod)
		t.At, t.Addresses = began.UnixNano(), parseAddresses(n.GetIp())
		for _, more := range n.GetAdditionalIps() {
			t.Addresses = appendAddresses(t.Addresses, more.GetIp())
		}
		c.e.put(ctx, id, t, c.list)
	}
	return false, nil
}

// putNew reports a container once: its facts do not change.
func (c *criClient) putNew(ctx context.Context, t enrich.Container) {
	id := t.Workload.ContainerID
	if k, ok := c.e.known[id]; ok {
		k.seen = c.list
		c.e.known[id] = k
		return
	}
	c.e.put(ctx, id, t, c.list)
}
