package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/sockflow/sockflow/flowcache"
)

// item is the fields of core/v1 Pod, Service and Node that names need; everything else is skipped as it is read.
type item struct {
	Metadata struct {
		Name, Namespace, UID, ResourceVersion string
	}
	Spec struct {
		NodeName    string
		HostNetwork bool

		ClusterIP   string
		ClusterIPs  []string
		ExternalIPs []string
		Ports       []struct {
			Port, NodePort uint16
			Protocol       string
		}
	}
	Status struct {
		Phase  string
		PodIP  string
		PodIPs []struct{ IP string }

		LoadBalancer struct{ Ingress []struct{ IP string } }

		Addresses []struct{ Address string }
	}
}

// event is one of a watch. Its object is an item, or a Status with Type ERROR.
type event struct {
	Type   string
	Object json.RawMessage
}

// status is metav1.Status.
type status struct {
	Message string
	Reason  string
	Code    int
	Details struct{ RetryAfterSeconds int }
}

// maxObject bounds what one object may take while it is read. etcd takes 1.5 MB by default.
const maxObject = 4 << 20

var (
	errTooBig = errors.New("an object is larger than 4 MB")
	errShape  = errors.New("not the JSON of a Kubernetes list")
)

// budget is a reader that gives no more than maxObject octets until it is renewed.
type budget struct {
	r    io.Reader
	left int
}

func (b *budget) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooBig
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

func (b *budget) renew() { b.left = maxObject }

// decodeList reads a list, one object at a time, and returns its resource version and what continues it. Objects that are not as they should be
// are told to bad, and skipped.
func decodeList(r io.Reader, each func(*item) error, bad func(error)) (version, next string, err error) {
	b := &budget{r: r, left: maxObject}
	d := json.NewDecoder(b)
	if t, err := d.Token(); err != nil {
		return "", "", err
	} else if t != json.Delim('{') {
		return "", "", errShape
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return "", "", err
		}
		switch key {
		case "metadata":
			var m struct{ ResourceVersion, Continue string }
			if err := d.Decode(&m); err != nil {
				return "", "", err
			}
			version, next = m.ResourceVersion, m.Continue
		case "items":
			if err := decodeItems(d, b, each, bad); err != nil {
				return "", "", err
			}
		default:
			var skip json.RawMessage
			if err := d.Decode(&skip); err != nil {
				return "", "", err
			}
		}
	}
	if _, err := d.Token(); err != nil {
		return "", "", err
	}
	if version == "" {
		return "", "", errShape
	}
	return version, next, nil
}

func decodeItems(d *json.Decoder, b *budget, each func(*item) error, bad func(error)) error {
	switch t, err := d.Token(); {
	case err != nil:
		return err
	case t == nil: // null: none
		return nil
	case t != json.Delim('['):
		return errShape
	}
	for d.More() {
		b.renew()
		var it item
		var wrong *json.UnmarshalTypeError
		switch err := d.Decode(&it); {
		case errors.As(err, &wrong):
			bad(err)
		case err != nil:
			return err
		default:
			if err := each(&it); err != nil {
				return err
			}
		}
	}
	b.renew()
	_, err := d.Token()
	return err
}

var protocols = map[string]uint8{"": flowcache.ProtoTCP, "TCP": flowcache.ProtoTCP, "UDP": flowcache.ProtoUDP, "SCTP": 132}

// object is what is kept of an item. A pod without an address of its own, and one that has ended, has no addresses.
func (it *item) object(kind Kind) (Object, error) {
	o := Object{Kind: kind, UID: it.Metadata.UID, Namespace: it.Metadata.Namespace, Name: it.Metadata.Name}
	if o.UID == "" || o.Name == "" {
		return o, fmt.Errorf("%s: an object without name or uid", kind)
	}
	add := func(to *[]flowcache.Addr, s string) {
		// "None" is the clusterIP of a headless service, and an address of a node may be a name.
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			*to = append(*to, a.As16())
		}
	}
	switch kind {
	case Pod:
		o.Node = it.Spec.NodeName
		if it.Spec.HostNetwork || it.Status.Phase == "Succeeded" || it.Status.Phase == "Failed" {
			break // it has the node's address, or its own is free for the next
		}
		for _, ip := range it.Status.PodIPs {
			add(&o.Addrs, ip.IP)
		}
		if len(o.Addrs) == 0 {
			add(&o.Addrs, it.Status.PodIP)
		}
	case Service:
		for _, ip := range it.Spec.ClusterIPs {
			add(&o.Addrs, ip)
		}
		if len(o.Addrs) == 0 {
			add(&o.Addrs, it.Spec.ClusterIP)
		}
		for _, ip := range it.Spec.ExternalIPs {
			add(&o.External, ip)
		}
		for _, in := range it.Status.LoadBalancer.Ingress {
			add(&o.External, in.IP)
		}
		for _, p := range it.Spec.Ports {
			if proto, ok := protocols[p.Protocol]; ok {
				o.Ports = append(o.Ports, Port{proto, p.Port, p.NodePort})
			}
		}
	case Node:
		for _, a := range it.Status.Addresses {
			add(&o.Addrs, a.Address)
		}
	}
	return o, nil
}
