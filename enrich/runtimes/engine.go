package runtimes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/enrich/values"
	"github.com/sockflow/sockflow/flowcache"
)

// engine speaks the Docker Engine API, which podman serves too, over HTTP on a socket. Its own module would bring more code than these
// few requests are. Of podman it reads the list of its own API, which knows pods.
//
// Addresses begin and end with the engine's own events, at their times: "network connect" and "start", "network disconnect" and "die". Lists, which are
// read once a minute, find what was missed.
type engine struct {
	e      *endpoint
	http   *http.Client
	podman bool
	list   uint64

	asks    []ask // to be inspected, first to last; the first is under way if asking
	asking  bool
	answers chan answer
	// starting are containers that were connected to a network and are yet to start, and since when: what they have is known when they have started.
	starting map[string]int64
	subnets  []netip.Prefix // of its networks, as they were said
}

// ask is a container to inspect, because of an event of some time; 0: of none, but of a list.
type ask struct {
	id    string
	at    int64 // of the event
	since int64 // when what it has now began
	pod   bool  // only what the list of podman has of it: its pod
	ahead bool  // it goes before those that are not: it has an address by now, or is needed to know whose that is
}

// answer is what came of an ask.
type answer struct {
	ask
	asked int64 // when
	m     inspected
	list  []listed
	err   error
}

// startingTime is how long a container may take to start after it was connected, before it is no longer waited for.
const startingTime = 10 * time.Second

// maxAsks bounds the containers that wait to be inspected: those beyond are found by a list.
const maxAsks = maxKnown

func newEngine(e *endpoint) client { return &engine{e: e} }

const (
	maxValue = 4 << 20 // octets of one container or event
	// The list of podman's own API, which has had this form since podman 4.
	podmanList = "/v4.0.0/libpod/containers/json"
	dockerList = "/containers/json"
)

var (
	ofInterest = url.Values{"filters": {`{"type":["container","network"]}`}}
	// Containers that can have sockets.
	existing = url.Values{"filters": {`{"status":["created","restarting","running","removing","paused"]}`}}
	all      = url.Values{"all": {"true"}}
)

func (g *engine) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", g.e.socket)
		},
		ResponseHeaderTimeout: patience,
		DisableCompression:    true,
	}
	defer transport.CloseIdleConnections()
	g.http = &http.Client{Transport: transport}

	var version struct {
		Components []struct{ Name string }
	}
	if err := g.get(ctx, "/version", nil, &version); err != nil {
		return err
	}
	g.podman = false
	for _, c := range version.Components {
		g.podman = g.podman || strings.HasPrefix(c.Name, "Podman")
	}
	stream, err := g.open(ctx, "/events", ofInterest)
	if err != nil {
		return err
	}
	defer stream.Close()
	d := values.NewReader(stream, maxValue)
	g.asks, g.asking, g.answers, g.starting = nil, false, make(chan answer, 1), map[string]int64{}
	events, failed := pump(ctx, func() (*event, error) {
		b, err := d.Next()
		if errors.Is(err, values.ErrTooLong) {
			return nil, nil
		}
		ev := new(event)
		if err == nil {
			err = json.Unmarshal(b, ev)
		}
		return ev, err
	})
	if err := g.listAll(ctx); err != nil {
		return err
	}
	g.e.answers(ctx)
	ping := time.NewTicker(pingInterval)
	defer ping.Stop()
	again := time.NewTimer(time.Second)
	defer again.Stop()
	listed := time.Now()
	for {
		select {
		case ev := <-events:
			g.e.events.Add(1)
			if ev == nil {
				g.e.skip("an event")
				again.Reset(leastBetween / 10) // a list has what it said
				continue
			}
			err = g.event(ctx, ev)
			g.e.flush(ctx)
		case a := <-g.answers:
			err = g.answer(ctx, &a)
			g.e.flush(ctx)
		case <-g.e.nudged: // an event was lost
			again.Reset(max(leastBetween/10, leastBetween-time.Since(listed)))
		case err = <-failed:
			if errors.Is(err, io.EOF) {
				err = errors.New("it ended the stream of events")
			}
		case <-again.C:
			again.Reset(listInterval)
			listed = time.Now()
			err = g.listAll(ctx)
		case <-ping.C:
			g.next(ctx)
			if err = g.get(ctx, "/_ping", nil, nil); err == nil && !g.e.up { // again
				if err = g.listAll(ctx); err == nil {
					g.e.answers(ctx)
				}
			}
		case <-ctx.Done():
			return nil
		}
		if err = g.e.tolerate(ctx, err); err != nil {
			return err
		}
	}
}

// statusError is an answer that is not one.
type statusError int

func (s statusError) Error() string { return fmt.Sprintf("HTTP status %d", int(s)) }

// open starts a request and returns the body of the answer.
func (g *engine) open(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	u := url.URL{Scheme: "http", Host: g.e.kind, Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := g.http.Do(req)
	if err != nil {
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			return nil, errSilent
		}
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, statusError(resp.StatusCode)
	}
	return resp.Body, nil
}

// moving is a reader that ends a request if nothing comes for patience.
type moving struct {
	io.ReadCloser
	idle *time.Timer
}

func (m *moving) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	m.idle.Reset(patience)
	return n, err
}

func (m *moving) Close() error {
	m.idle.Stop()
	return m.ReadCloser.Close()
}

// get reads an answer of one value; into nil, whether there is one.
func (g *engine) get(ctx context.Context, path string, query url.Values, into any) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	body, err := g.open(ctx, path, query)
	if err != nil {
		return err
	}
	defer body.Close()
	if into == nil {
		return nil
	}
	b, err := values.NewReader(body, maxValue).Next()
	if errors.Is(err, values.ErrTooLong) {
		return &tooLong{slices.Clone(b)}
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// tooLong is an answer of more than maxValue octets, with its beginning.
type tooLong struct{ begin []byte }

func (*tooLong) Error() string { return "an answer is too long" }

// listed is a container in the list of either API.
type listed struct {
	ID              string `json:"Id"`
	Names           []string
	Image           string
	Labels          map[string]string
	Created         json.RawMessage // seconds; podman: a time
	Ports           []port
	NetworkSettings struct {
		Networks map[string]network
	}
	State   string
	PodName string // podman
	Pod     string
	IsInfra bool
}

type port struct {
	Type       string
	PublicPort uint16
	HostPort   uint16 `json:"host_port"` // podman
	Protocol   string `json:"protocol"`
	Range      uint16 `json:"range"`
}

type network struct {
	IPAddress, GlobalIPv6Address string
}

// inspected is a container by its id, in Docker's API.
type inspected struct {
	ID      string `json:"Id"`
	Created time.Time
	Name    string
	State   struct {
		Pid                   int
		StartedAt, FinishedAt time.Time
	}
	Config struct {
		Image  string
		Labels map[string]string
	}
	HostConfig struct {
		NetworkMode string
	}
	NetworkSettings struct {
		Networks map[string]network
		Ports    map[string][]struct{ HostPort string }
	}
}

type event struct {
	Type, Action string
	Actor        struct {
		ID         string
		Attributes map[string]string
	}
	TimeNano int64 `json:"timeNano"`
}

func (g *engine) runtime() string {
	if g.podman {
		return "podman"
	}
	return "docker"
}

// listAll reads every container.
func (g *engine) listAll(ctx context.Context) error {
	began := time.Now()
	g.list++
	whole, cancel := context.WithTimeout(ctx, 10*patience)
	defer cancel()
	path, query := dockerList, existing
	if g.podman {
		path, query = podmanList, all
	}
	fresh, err := g.read(whole, path, query, began)
	if err != nil {
		return err
	}
	g.e.listed(g.list, began)
	g.e.flush(ctx)
	if err := g.networks(ctx); err != nil {
		return err
	}
	// What the list does not say: where the control group is, since when it runs, and of podman the addresses.
	for _, id := range fresh {
		g.ask(ctx, ask{id: id})
	}
	return nil
}

// networks reads which networks there are: who speaks to an address in one of them waits while it is asked whose it is.
func (g *engine) networks(ctx context.Context) error {
	var list []struct {
		IPAM struct {
			Config []struct{ Subnet string }
		}
	}
	err := g.get(ctx, "/networks", nil, &list)
	var timeout net.Error
	switch {
	case errors.Is(err, errSilent) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout):
		return err
	case err != nil:
		return nil // it may not be asked, or is not understood: nobody waits in networks that have had no container
	}
	networks := []netip.Prefix{}
	for _, n := range list {
		for _, c := range n.IPAM.Config {
			if p, err := netip.ParsePrefix(c.Subnet); err == nil && p.Bits() > 0 {
				networks = append(networks, p.Masked())
			}
		}
	}
	if !slices.Equal(networks, g.subnets) {
		g.subnets = networks
		g.e.tell(ctx, &enrich.ContainerUpdate{Runtime: g.e.socket, Answering: g.e.up || !g.e.said, Networks: networks})
	}
	return nil
}

// ask has a container inspected, one after the other and beside the events: an engine answers as late as a container takes to start, and meanwhile others
// end.
func (g *engine) ask(ctx context.Context, a ask) {
	if len(g.asks) >= maxAsks {
		g.e.overflow.Add(1)
		return
	}
	a.ahead = a.since != 0
	g.asks = queue(g.asks, a, g.asking)
	g.next(ctx)
}

// queue puts a among what is to be asked. What was just given an address goes ahead of what a list shows, and of whose pod it is, but for its own: it may not
// live for long, and when it is gone nobody says what it had. The first stays where it is if it is under way.
func queue(asks []ask, a ask, asking bool) []ask {
	if !a.ahead {
		return append(asks, a)
	}
	at := 0
	if asking {
		at = 1
	}
	for at < len(asks) && asks[at].ahead {
		at++
	}
	together := []ask{a}
	rest := asks[at:]
	if i := slices.IndexFunc(rest, func(b ask) bool { return b.id == a.id && b.pod }); i >= 0 {
		pod := rest[i]
		pod.ahead = true
		together = []ask{pod, a}
		asks = slices.Delete(asks, at+i, at+i+1)
	}
	return slices.Insert(asks, at, together...)
}

// next asks for the first container that waits, if none is asked for now, and says since when addresses may be known soon.
func (g *engine) next(ctx context.Context) {
	since := int64(0)
	for i := range g.asks {
		if s := g.asks[i].since; s != 0 && (since == 0 || s < since) {
			since = s
		}
	}
	for id, s := range g.starting {
		switch {
		case time.Now().UnixNano()-s > int64(startingTime) || g.e.known[id].started:
			delete(g.starting, id)
		case since == 0 || s < since:
			since = s
		}
	}
	g.e.ask(ctx, since)
	if g.e.busy = len(g.asks) > 0; !g.e.busy && g.e.up {
		g.e.settled.Store(true)
	}
	if g.asking || len(g.asks) == 0 {
		return
	}
	g.asking = true
	a, answers := g.asks[0], g.answers
	go func() { // ends with ctx, or the answer
		r := answer{ask: a, asked: time.Now().UnixNano()}
		if a.pod {
			one := url.Values{"all": {"true"}, "filters": {`{"id":["` + a.id + `"]}`}}
			r.err = g.get(ctx, podmanList, one, &r.list)
		} else {
			r.err = g.get(ctx, "/containers/"+url.PathEscape(a.id)+"/json", nil, &r.m)
		}
		select {
		case answers <- r:
		case <-ctx.Done():
		}
	}()
}

// read passes on the containers in a list, one at a time. It returns those of which more is to be asked.
func (g *engine) read(ctx context.Context, path string, query url.Values, began time.Time) (fresh []string, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	body, err := g.open(ctx, path, query)
	if err != nil {
		return nil, err
	}
	body = &moving{body, time.AfterFunc(patience, func() { cancel(errSilent) })}
	defer body.Close()
	err = values.NewReader(body, maxValue).Array(func(b []byte, err error) error {
		var m listed
		if err != nil {
			if g.e.skip("a container"); !m.beginning(b) {
				return nil
			}
		} else if err := json.Unmarshal(b, &m); err != nil {
			var shape *json.UnmarshalTypeError
			if !errors.As(err, &shape) || m.ID == "" {
				return err
			}
			g.e.malformed.Add(1)
		}
		t := g.ofList(&m)
		k, known := g.e.known[m.ID]
		switch has := len(t.Addresses)+len(t.Published) > 0; {
		case g.podman || err != nil: // the list of podman has no addresses
			t.Addresses, t.Published = nil, nil
			if !known || !k.started && m.State == "running" {
				fresh = append(fresh, m.ID)
			}
		case !known || has && !k.has:
			t.Addresses, t.Published = nil, nil // it is asked since when
			fresh = append(fresh, m.ID)
		default:
			t.At, t.Since = began.UnixNano(), began.UnixNano()
		}
		g.e.put(ctx, m.ID, t, g.list)
		if k, ok := g.e.known[m.ID]; ok && m.IsInfra {
			k.pod = m.PodName
			g.e.known[m.ID] = k
		}
		return nil
	})
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return nil, cause
	}
	if err != nil {
		return nil, fmt.Errorf("read list of containers: %w", err)
	}
	return fresh, nil
}

// beginning reads what is needed most of the beginning of a container that is too long.
func (m *listed) beginning(b []byte) bool {
	json.Unmarshal(member(b, "Names"), &m.Names)
	m.ID, m.Image, m.Created = text(member(b, "Id")), text(member(b, "Image")), member(b, "Created")
	return m.ID != ""
}

func (g *engine) ofList(m *listed) enrich.Container {
	t := enrich.Container{Workload: flowcache.Workload{
		ContainerID: m.ID, ContainerImage: m.Image, ContainerRuntime: g.runtime(), PodLabels: choose(g.e.labels, m.Labels), PodName: m.PodName,
	}}
	if len(m.Names) > 0 {
		t.Workload.ContainerName = strings.TrimPrefix(m.Names[0], "/")
	}
	var seconds int64
	var created time.Time
	switch {
	case json.Unmarshal(m.Created, &seconds) == nil:
		t.Created = seconds * int64(time.Second)
	case json.Unmarshal(m.Created, &created) == nil:
		t.Created = created.UnixNano()
	}
	for _, n := range m.NetworkSettings.Networks {
		t.Addresses = appendAddresses(t.Addresses, n.IPAddress, n.GlobalIPv6Address)
	}
	var ports portSet
	for _, p := range m.Ports {
		if first := int(p.PublicPort) + int(p.HostPort); first != 0 {
			ports.add(p.Type+p.Protocol, first, first+max(int(p.Range), 1)-1)
		}
	}
	t.Published = ports.ranges()
	return t
}

// event takes what the engine says. The event of a new container has its names, and may be all that is left of it; podman's has no pod.
func (g *engine) event(ctx context.Context, ev *event) error {
	id := ev.Actor.ID
	a := ev.Actor.Attributes
	now := ask{id: id, at: ev.TimeNano, since: ev.TimeNano}
	if ev.Type == "network" {
		now.id = a["container"]
		k, known := g.e.known[now.id]
		switch {
		case ev.Action == "create":
			return g.networks(ctx)
		case ev.Action == "connect" && !k.started && known:
			// It starts: until it has, it is not answered for. Its event comes.
			if k.connected == 0 {
				k.connected = ev.TimeNano
				g.e.known[now.id] = k
				if len(g.starting) < maxAsks {
					g.starting[now.id] = ev.TimeNano
				}
				g.next(ctx)
			}
			return nil
		case ev.Action == "connect", ev.Action == "disconnect" && k.has:
			if now.id != "" {
				g.ask(ctx, now)
			}
		}
		return nil
	}
	if id == "" {
		return nil
	}
	switch ev.Action {
	case "start", "die", "died", "destroy", "remove":
		delete(g.starting, id) // it is asked for now, or has nothing any more
	}
	switch ev.Action {
	case "create":
		if a["name"] != "" {
			g.e.put(ctx, id, enrich.Container{
				Workload: flowcache.Workload{
					ContainerID: id, ContainerName: a["name"], ContainerImage: a["image"], ContainerRuntime: g.runtime(), PodLabels: choose(g.e.labels, a),
				},
				Created: ev.TimeNano,
			}, g.list)
		}
		switch {
		case g.podman: // only its list knows the pod; it has no addresses before it starts
			g.ask(ctx, ask{id: id, pod: true})
		case a["name"] == "":
			g.ask(ctx, now)
		}
	case "start":
		if k, ok := g.e.known[id]; ok {
			if k.connected != 0 {
				now.since = k.connected
			}
			k.started, k.connected = true, 0
			g.e.known[id] = k
			if g.podman && k.has && k.died == 0 {
				return nil // since its "init" it has what it has
			}
		}
		g.ask(ctx, now)
	case "init", "rename":
		g.ask(ctx, now)
	case "die", "died":
		g.e.release(ctx, id, ev.TimeNano)
		g.next(ctx)
	case "destroy", "remove":
		g.e.end(id, time.Unix(0, ev.TimeNano))
		g.next(ctx)
	}
	return nil
}

// ofPod passes on what the list of podman has of a container that was just made: its pod. It has no addresses before it starts.
func (g *engine) ofPod(ctx context.Context, m *listed) {
	if _, known := g.e.known[m.ID]; !known {
		return // it is gone by now
	}
	t := g.ofList(m)
	t.Addresses, t.Published = nil, nil
	g.e.put(ctx, m.ID, t, g.list)
	if k := g.e.known[m.ID]; m.IsInfra {
		k.pod = m.PodName
		g.e.known[m.ID] = k
	}
}

// answer takes what is said of one container.
func (g *engine) answer(ctx context.Context, r *answer) error {
	g.asks, g.asking = g.asks[1:], false
	defer g.next(ctx)
	m, err := &r.m, r.err
	var status statusError
	var long *tooLong
	var shape *json.UnmarshalTypeError
	switch {
	case errors.As(err, &status): // it is gone
		return nil
	case errors.As(err, &long):
		g.e.skip("a container")
		return nil // its names are known without
	case errors.As(err, &shape) && m.ID != "":
		g.e.malformed.Add(1)
	case err != nil:
		g.asks = nil // it does not answer: a list finds them
		return err
	}
	if r.pod {
		for i := range r.list {
			g.ofPod(ctx, &r.list[i])
		}
		return nil
	}
	t := enrich.Container{
		Workload: flowcache.Workload{
			ContainerID: m.ID, ContainerName: strings.TrimPrefix(m.Name, "/"), ContainerImage: m.Config.Image, ContainerRuntime: g.runtime(),
			PodLabels: choose(g.e.labels, m.Config.Labels), CGroupPath: cgroupOf(g.e.proc, m.State.Pid, m.ID),
		},
		Created: m.Created.UnixNano(), At: r.at, Since: r.since,
	}
	if r.at == 0 {
		t.At, t.Since = r.asked, m.State.StartedAt.UnixNano()
	}
	k, known := g.e.known[m.ID]
	switch {
	case !known && r.at != 0 && r.at < g.e.gone: // it was removed while it was asked for
		return nil
	case k.died >= t.At || r.at != 0 && m.State.FinishedAt.UnixNano() > r.at: // it has ended since, and may run again: events say so
		t.At = 0
		g.e.put(ctx, m.ID, t, g.list)
		return nil
	}
	// One in the network of another reports that one's addresses (podman).
	if !strings.HasPrefix(m.HostConfig.NetworkMode, "container:") {
		for _, n := range m.NetworkSettings.Networks {
			t.Addresses = appendAddresses(t.Addresses, n.IPAddress, n.GlobalIPv6Address)
		}
		var ports portSet
		for private, hosts := range m.NetworkSettings.Ports {
			_, protocol, _ := strings.Cut(private, "/")
			for _, h := range hosts {
				if number, err := strconv.ParseUint(h.HostPort, 10, 16); err == nil && number != 0 {
					ports.add(protocol, int(number), int(number))
				}
			}
		}
		t.Published = ports.ranges()
	}
	if k.pod != "" { // the addresses of a pod are its infra container's
		t.Behind = &flowcache.Workload{PodName: k.pod, ContainerRuntime: g.runtime()}
	}
	g.e.put(ctx, m.ID, t, g.list)
	if k, ok := g.e.known[m.ID]; ok && m.State.Pid != 0 {
		k.started = true
		g.e.known[m.ID] = k
	}
	return nil
}
