package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/sockflow/sockflow/enrich/values"
	"github.com/sockflow/sockflow/flowcache"
)

// item is the fields of core/v1 Pod, Service and Node that names need; everything else is skipped as it is read.
type item struct {
	Metadata metadata
	Spec     struct {
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
		Phase     string
		StartTime *time.Time

		PodIP  string
		PodIPs []struct{ IP string }

		LoadBalancer struct{ Ingress []struct{ IP string } }

		Addresses []struct{ Address string }
	}
}

type metadata struct {
	Name, Namespace, UID, ResourceVersion string

	CreationTimestamp, DeletionTimestamp *time.Time

	Annotations struct {
		Mirror string `json:"kubernetes.io/config.mirror"`
	}
	OwnerReferences []struct{ Kind string }
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

// maxObject bounds what one object may take while it is read, in octets. etcd takes 1.5 MB by default.
const maxObject = 4 << 20

// How many addresses and ports of one object are kept: one that has more is left out.
const (
	maxAddrs = 2048
	maxPorts = 2048
)

// errLarge says that an object has more addresses or ports than are kept.
var errLarge = errors.New("an object has too many addresses or ports")

// decodeList reads a list, one object at a time, and returns its resource version and what continues it. each gets an object, or why it cannot be
// read: values.ErrTooLong, or another error of an object that is not as it should be; the list goes on after it.
func decodeList(r io.Reader, each func(*item, error) error) (version, next string, err error) {
	v := values.NewReader(r, maxObject)
	err = v.Object(func(name string) error {
		if name == "items" {
			return v.Array(func(b []byte, err error) error {
				it := new(item)
				if err == nil {
					err = json.Unmarshal(b, it)
				}
				var syntax *json.SyntaxError
				if errors.As(err, &syntax) {
					return err
				}
				return each(it, err)
			})
		}
		b, err := v.Next()
		if err != nil || name != "metadata" {
			return err
		}
		var m struct{ ResourceVersion, Continue string }
		if err := json.Unmarshal(b, &m); err != nil {
			return err
		}
		version, next = m.ResourceVersion, m.Continue
		return nil
	})
	if errors.Is(err, values.ErrTooLong) {
		err = errShape // a member that is no object of the list
	}
	if err == nil && version == "" {
		err = errShape
	}
	if err != nil {
		return "", "", err
	}
	return version, next, nil
}

var errShape = errors.New("not the JSON of a Kubernetes list")

// beginning returns the type of an event, and the UID of its object, by the beginning of one that is too long.
func beginning(b []byte) (kind, uid string) {
	v := values.NewReader(bytes.NewReader(b), maxObject)
	str := func(to *string) error {
		b, err := v.Next()
		if err != nil {
			return err
		}
		return json.Unmarshal(b, to)
	}
	v.Object(func(name string) error {
		switch name {
		case "type":
			return str(&kind)
		case "object":
			return v.Object(func(name string) error {
				if name != "metadata" {
					_, err := v.Next()
					return err
				}
				return v.Object(func(name string) error {
					if name == "uid" {
						if err := str(&uid); err != nil {
							return err
						}
						return errFound
					}
					_, err := v.Next()
					return err
				})
			})
		}
		_, err := v.Next()
		return err
	})
	return kind, uid
}

var errFound = errors.New("found")

var protocols = map[string]uint8{"": flowcache.ProtoTCP, "TCP": flowcache.ProtoTCP, "UDP": flowcache.ProtoUDP, "SCTP": 132}

// object is what is kept of an item. A pod without an address of its own, and one that has ended, has no addresses.
func (it *item) object(kind Kind) (Object, error) {
	m := &it.Metadata
	o := Object{Kind: kind, UID: m.UID, Namespace: m.Namespace, Name: m.Name, Terminating: m.DeletionTimestamp != nil}
	if o.UID == "" || o.Name == "" {
		return o, fmt.Errorf("%s: an object without name or uid", kind)
	}
	add := func(to *[]flowcache.Addr, s string) {
		if len(*to) > maxAddrs {
			return
		}
		// "None" is the clusterIP of a headless service, and an address of a node may be a name.
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			*to = append(*to, a.As16())
		}
	}
	since := m.CreationTimestamp
	switch kind {
	case Pod:
		o.Node = it.Spec.NodeName
		since = it.Status.StartTime // kubelet has it
		// A pod that kubelet has of a file has a UID of its own making there, and an object of another.
		for _, r := range m.OwnerReferences {
			if r.Kind == "Node" {
				o.Alias = m.Annotations.Mirror
			}
		}
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
			if proto, ok := protocols[p.Protocol]; ok && len(o.Ports) <= maxPorts {
				o.Ports = append(o.Ports, Port{proto, p.Port, p.NodePort})
			}
		}
		slices.SortFunc(o.Ports, comparePorts)
	case Node:
		for _, a := range it.Status.Addresses {
			add(&o.Addrs, a.Address)
		}
	}
	if len(o.Addrs) > maxAddrs || len(o.External) > maxAddrs || len(o.Ports) > maxPorts {
		return Object{Kind: kind, UID: m.UID}, errLarge
	}
	if now := flowcache.Now(); since != nil {
		o.Since = now - max(0, int64(time.Since(*since)))
	}
	return o, nil
}
