package runtimes

import (
	"context"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/flowcache"
)

// criClient speaks the Container Runtime Interface (k8s.io/cri-api, runtime.v1). Few runtimes tell by themselves what changes, so
// they are asked every so often, and at once when a container is seen that is not known.
type criClient struct {
	e       *endpoint
	runtime string
	pods    map[string]*criPod // by sandbox
	list    uint64
}

type criPod struct {
	work      flowcache.Workload
	addresses []flowcache.Addr
	asked     bool // for its addresses
	list      uint64
}

func newCRI(e *endpoint) client { return &criClient{e: e} }

const (
	criInterval = 5 * time.Second
	// Between two lists, though containers are seen that are not known.
	criLeast = 50 * time.Millisecond
)

func (c *criClient) watch(ctx context.Context) error {
	conn, err := dial(c.e.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := cri.NewRuntimeServiceClient(conn)
	c.pods = map[string]*criPod{}
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
		c.e.answers(ctx)
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

func (c *criClient) listAll(ctx context.Context, client cri.RuntimeServiceClient) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	c.list++
	pods, err := client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, p := range pods.GetItems() {
		if err := c.sandbox(ctx, client, p); err != nil {
			return err
		}
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
		}
	}
	c.e.listed(c.list, began)
	return nil
}

// sandbox tells of a pod, and asks once for its addresses.
func (c *criClient) sandbox(ctx context.Context, client cri.RuntimeServiceClient, p *cri.PodSandbox) error {
	pod := c.pods[p.GetId()]
	if pod == nil {
		if len(c.pods) >= maxKnown {
			c.e.overflow.Add(1)
			return nil
		}
		m := p.GetMetadata()
		pod = &criPod{work: flowcache.Workload{
			PodName: m.GetName(), PodNamespace: m.GetNamespace(), PodUID: m.GetUid(), PodLabels: choose(c.e.labels, p.GetLabels()),
		}}
		c.pods[p.GetId()] = pod
	}
	pod.list = c.list
	fresh := false
	if !pod.asked && p.GetState() == cri.PodSandboxState_SANDBOX_READY {
		pod.asked, fresh = true, true
		st, err := client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.GetId()})
		if err == nil && st.GetStatus().GetLinux().GetNamespaces().GetOptions().GetNetwork() != cri.NamespaceMode_NODE {
			n := st.GetStatus().GetNetwork()
			texts := []string{n.GetIp()}
			for _, more := range n.GetAdditionalIps() {
				texts = append(texts, more.GetIp())
			}
			pod.addresses = parseAddresses(texts...)
		}
	}
	w := pod.work
	w.ContainerID, w.ContainerRuntime = p.GetId(), c.runtime
	t := enrich.Container{Workload: w, Created: p.GetCreatedAt(), Addresses: pod.addresses, Behind: &pod.work}
	if fresh {
		c.e.put(ctx, p.GetId(), t, c.list)
	} else {
		c.putNew(ctx, t)
	}
	return nil
}

// putNew tells of a container unless it was told already: nothing of it changes.
func (c *criClient) putNew(ctx context.Context, t enrich.Container) {
	id := t.Workload.ContainerID
	if k, ok := c.e.known[id]; ok {
		k.seen = c.list
		c.e.known[id] = k
		return
	}
	c.e.put(ctx, id, t, c.list)
}
