package runtimes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/flowcache"
)

// engine speaks the Docker Engine API, which podman serves too, over HTTP on a socket. Its own module would bring more code than these
// few requests are. Of podman it reads the list of its own API, which knows pods.
type engine struct {
	e      *endpoint
	http   *http.Client
	podman bool
	list   uint64
}

func newEngine(e *endpoint) client { return &engine{e: e} }

const (
	maxValue = 1 << 20 // octets of one container or event
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
	if err := g.get(ctx, "/version", &version); err != nil {
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
	d := decode(stream)
	events, failed := pump(ctx, func() (*event, error) {
		ev := new(event)
		return ev, d.next(ev)
	})
	if err := g.listAll(ctx); err != nil {
		return err
	}
	g.e.answers(ctx)
	ping := time.NewTicker(pingInterval)
	defer ping.Stop()
	again := time.NewTimer(time.Second)
	defer again.Stop()
	for {
		select {
		case ev := <-events:
			g.e.events.Add(1)
			err = g.event(ctx, ev)
			g.e.flush(ctx)
		case err = <-failed:
			if errors.Is(err, io.EOF) {
				err = errors.New("it ended the stream of events")
			}
		case <-again.C:
			again.Reset(listInterval)
			err = g.listAll(ctx)
		case <-ping.C:
			if err = g.get(ctx, "/_ping", nil); err == nil && !g.e.up { // again
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

// get reads an answer of one value; into nil, whether there is one.
func (g *engine) get(ctx context.Context, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	body, err := g.open(ctx, path, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	if into == nil {
		return nil
	}
	return decode(body).next(into)
}

// values decodes JSON values one after the other, none longer than maxValue octets.
type values struct {
	*json.Decoder
	left *io.LimitedReader
}

func decode(r io.Reader) *values {
	left := &io.LimitedReader{R: r, N: maxValue}
	return &values{json.NewDecoder(left), left}
}

func (v *values) next(into any) error {
	v.left.N = maxValue
	err := v.Decode(into)
	if v.left.N == 0 && errors.Is(err, io.ErrUnexpectedEOF) {
		return errTooLong
	}
	return err
}

var errTooLong = errors.New("an answer is too long")

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
	PodName string // podman
	Pod     string
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
	Config  struct {
		Image  string
		Labels map[string]string
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
	ctx, cancel := context.WithTimeout(ctx, 10*patience)
	defer cancel()
	path, query := dockerList, existing
	if g.podman {
		path, query = podmanList, all
	}
	fresh, err := g.read(ctx, path, query)
	if err != nil {
		return err
	}
	if g.podman { // whose list has no addresses
		for _, id := range fresh {
			if err := g.inspect(ctx, id); err != nil {
				return err
			}
		}
	}
	g.e.listed(g.list, began)
	g.e.flush(ctx)
	return nil
}

// read tells of the containers in a list, one at a time. It returns those that were not known.
func (g *engine) read(ctx context.Context, path string, query url.Values) (fresh []string, err error) {
	body, err := g.open(ctx, path, query)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	d := decode(body)
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return nil, fmt.Errorf("read list of containers: it begins with %v: %w", t, err)
	}
	for d.More() {
		var m listed
		if err := d.next(&m); err != nil {
			return nil, fmt.Errorf("read list of containers: %w", err)
		}
		if _, ok := g.e.known[m.ID]; !ok {
			fresh = append(fresh, m.ID)
		}
		g.e.put(ctx, m.ID, g.ofList(&m), g.list)
	}
	return fresh, nil
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
		t.Addresses = append(t.Addresses, parseAddresses(n.IPAddress, n.GlobalIPv6Address)...)
	}
	for _, p := range m.Ports {
		for i := range max(p.Range, 1) {
			t.Published = publish(t.Published, p.Type+p.Protocol, p.PublicPort+p.HostPort+i)
		}
	}
	return t
}

// publish adds a published port, which is listed for each address of the host.
func publish(list []enrich.PublishedPort, protocol string, number uint16) []enrich.PublishedPort {
	p := enrich.PublishedPort{Port: number}
	switch protocol {
	case "tcp":
		p.Proto = flowcache.ProtoTCP
	case "udp":
		p.Proto = flowcache.ProtoUDP
	case "sctp":
		p.Proto = 132
	}
	if number == 0 || p.Proto == 0 {
		return list
	}
	for _, have := range list {
		if have == p {
			return list
		}
	}
	return append(list, p)
}

// event takes what the engine says. The event of a new container has its names, and may be all that is left of it; podman's has no pod.
func (g *engine) event(ctx context.Context, ev *event) error {
	id := ev.Actor.ID
	a := ev.Actor.Attributes
	created := false
	if ev.Type == "network" {
		if ev.Action != "connect" && ev.Action != "disconnect" {
			return nil
		}
		id = a["container"]
	} else {
		switch ev.Action {
		case "create":
			created = true
			if a["name"] == "" {
				break
			}
			g.e.put(ctx, id, enrich.Container{
				Workload: flowcache.Workload{
					ContainerID: id, ContainerName: a["name"], ContainerImage: a["image"], ContainerRuntime: g.runtime(), PodLabels: choose(g.e.labels, a),
				},
				Created: ev.TimeNano,
			}, g.list)
			if !g.podman {
				return nil
			}
			g.e.flush(ctx)
		case "start", "init", "rename":
		case "destroy", "remove":
			g.e.end(id, time.Unix(0, ev.TimeNano))
			return nil
		default:
			return nil
		}
	}
	if id == "" {
		return nil
	}
	if g.podman && created { // only its list tells the pod
		one := url.Values{"all": {"true"}, "filters": {`{"id":["` + id + `"]}`}}
		if _, err := g.read(ctx, podmanList, one); err != nil {
			return err
		}
	}
	return g.inspect(ctx, id)
}

// inspect asks for one container.
func (g *engine) inspect(ctx context.Context, id string) error {
	var m inspected
	err := g.get(ctx, "/containers/"+url.PathEscape(id)+"/json", &m)
	var status statusError
	switch {
	case errors.As(err, &status): // it is gone
		return nil
	case err != nil:
		return err
	}
	t := enrich.Container{
		Workload: flowcache.Workload{
			ContainerID: m.ID, ContainerName: strings.TrimPrefix(m.Name, "/"), ContainerImage: m.Config.Image, ContainerRuntime: g.runtime(),
			PodLabels: choose(g.e.labels, m.Config.Labels),
		},
		Created: m.Created.UnixNano(),
	}
	for _, n := range m.NetworkSettings.Networks {
		t.Addresses = append(t.Addresses, parseAddresses(n.IPAddress, n.GlobalIPv6Address)...)
	}
	for private, hosts := range m.NetworkSettings.Ports {
		_, protocol, _ := strings.Cut(private, "/")
		for _, h := range hosts {
			var number uint16
			if fmt.Sscan(h.HostPort, &number); number != 0 {
				t.Published = publish(t.Published, protocol, number)
			}
		}
	}
	g.e.put(ctx, m.ID, t, g.list)
	return nil
}
