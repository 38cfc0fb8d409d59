package selection

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/sockflow/sockflow/flowcache"
)

// side is which end of a flow a property is of.
type side uint8

const (
	either side = iota
	source
	destination
)

// of makes a predicate of one about an end.
func (s side) of(end func(r *flowcache.Record, dest bool) bool) predicate {
	switch s {
	case source:
		return func(r *flowcache.Record) bool { return end(r, false) }
	case destination:
		return func(r *flowcache.Record) bool { return end(r, true) }
	}
	return func(r *flowcache.Record) bool { return end(r, false) || end(r, true) }
}

func endOf(r *flowcache.Record, dest bool) *flowcache.End {
	if dest {
		return &r.Dest
	}
	return &r.Source
}

// texts are the properties of an end that are text.
var texts = map[string]func(e *flowcache.End, match func(string) bool) bool{
	"process": func(e *flowcache.End, match func(string) bool) bool {
		w := e.Who
		return w != nil && (match(w.Path) || match(w.Name) || match(w.Path[strings.LastIndexByte(w.Path, '/')+1:]))
	},
	"command": func(e *flowcache.End, match func(string) bool) bool { return e.Who != nil && match(e.Who.CommandLine) },
	"parent": func(e *flowcache.End, match func(string) bool) bool {
		w := e.Who
		return w != nil && (match(w.ParentPath) || match(w.ParentPath[strings.LastIndexByte(w.ParentPath, '/')+1:]))
	},
	"container": func(e *flowcache.End, match func(string) bool) bool {
		c := e.Container
		return c != nil && c.ContainerID != "" && (match(c.ContainerName) || match(c.ContainerID) || len(c.ContainerID) > shortID && match(c.ContainerID[:shortID]))
	},
	"image": func(e *flowcache.End, match func(string) bool) bool {
		return e.Container != nil && match(e.Container.ContainerImage)
	},
	"runtime": func(e *flowcache.End, match func(string) bool) bool {
		return e.Container != nil && match(e.Container.ContainerRuntime)
	},
	"pod": func(e *flowcache.End, match func(string) bool) bool {
		return e.Container != nil && match(e.Container.PodName)
	},
	"namespace": func(e *flowcache.End, match func(string) bool) bool {
		return e.Container != nil && match(e.Container.PodNamespace)
	},
	"label": func(e *flowcache.End, match func(string) bool) bool {
		if e.Container == nil {
			return false
		}
		for labels := e.Container.PodLabels; labels != ""; {
			var label string
			label, labels, _ = strings.Cut(labels, ",")
			if match(label) {
				return true
			}
		}
		return false
	},
	"unit": func(e *flowcache.End, match func(string) bool) bool {
		return e.Container != nil && match(e.Container.ServiceUnit)
	},
	"service": func(e *flowcache.End, match func(string) bool) bool { return match(e.Service) },
	"node":    func(e *flowcache.End, match func(string) bool) bool { return match(e.Node) },
}

// shortID is how much of a container's id programs show.
const shortID = 12

var protocols = map[string]uint8{
	"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ah": 51, "icmp6": 58, "icmpv6": 58, "ospf": 89, "sctp": 132, "udplite": 136,
}

var reasons = map[string]flowcache.EndReason{
	"idle": flowcache.EndIdle, "active": flowcache.EndActive, "end": flowcache.EndDetected, "forced": flowcache.EndForced, "lack": flowcache.EndLack,
}

// property reads one: [src|dst] NAME VALUE[,VALUE]...
func (p *parser) property() predicate {
	s := either
	switch {
	case p.is("src"), p.is("source"):
		s = source
		p.advance()
	case p.is("dst"), p.is("destination"):
		s = destination
		p.advance()
	}
	name := p.word
	if p.kind != word || !p.bare {
		p.fail("want a property: %s", names)
		return nil
	}
	switch name {
	case "ip4", "ip6":
		p.advance()
		return func(r *flowcache.Record) bool { return r.Key.Is4() == (name == "ip4") }
	case "local": // this end is on this host
		p.advance()
		return s.of(func(r *flowcache.Record, dest bool) bool { return endOf(r, dest).Local })
	case "proto", "end":
		if s != either {
			p.fail("%s is of the whole flow", name)
			return nil
		}
	}
	if !slices.Contains(propertyNames, name) {
		p.fail("want a property: %s", names)
		return nil
	}
	p.advance()
	if p.kind != word || p.word == "" {
		p.fail("want a value of %s", name)
		return nil
	}
	values := []string{p.word}
	if p.bare {
		values = strings.Split(p.word, ",")
	}
	var m predicate
	for _, v := range values {
		one := p.value(name, s, v)
		if p.err != nil {
			return nil
		}
		if m == nil {
			m = one
		} else {
			m = or(m, one)
		}
	}
	p.advance()
	return m
}

var propertyNames = []string{
	"host", "net", "port", "proto", "user", "pid", "netns", "end",
	"process", "command", "parent", "container", "image", "runtime", "pod", "namespace", "label", "unit", "service", "node",
}

var names = strings.Join(propertyNames, ", ") + ", local, ip4, ip6"

// value makes the predicate of a property with one value.
func (p *parser) value(name string, s side, v string) predicate {
	number := func(bits int) uint64 {
		n, err := strconv.ParseUint(v, 10, bits)
		if err != nil {
			p.fail("%q is no %s", v, name)
		}
		return n
	}
	switch name {
	case "host", "net":
		prefix, err := netip.ParsePrefix(v)
		if a, err2 := netip.ParseAddr(v); err2 == nil && a.Zone() == "" {
			prefix, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			p.fail("%q is no address and no network, as 10.0.0.0/8", v)
			return nil
		}
		return s.of(inNet(prefix))
	case "port":
		low, high, isRange := strings.Cut(v, "-")
		if !isRange {
			high = low
		}
		from, err := strconv.ParseUint(low, 10, 16)
		to, err2 := strconv.ParseUint(high, 10, 16)
		if err != nil || err2 != nil || from > to {
			p.fail("%q is no port and no range, as 8000-8100", v)
			return nil
		}
		return s.of(func(r *flowcache.Record, dest bool) bool {
			port := uint64(r.Key.SrcPort)
			if dest {
				port = uint64(r.Key.DstPort)
			}
			return port >= from && port <= to
		})
	case "proto":
		n, ok := protocols[v]
		if !ok {
			n = uint8(number(8))
		}
		return func(r *flowcache.Record) bool { return r.Key.Proto == n }
	case "end":
		reason, ok := reasons[v]
		if !ok {
			p.fail("%q is no reason: idle, active, end, forced, lack", v)
		}
		return func(r *flowcache.Record) bool { return r.EndReason == reason }
	case "pid":
		n := uint32(number(32))
		return s.of(func(r *flowcache.Record, dest bool) bool { e := endOf(r, dest); return e.Local && e.Process.PID == n })
	case "netns":
		n := uint32(number(32))
		return s.of(func(r *flowcache.Record, dest bool) bool { e := endOf(r, dest); return e.Local && e.NetNS == n })
	case "user":
		if n, err := strconv.ParseUint(v, 10, 32); err == nil {
			return s.of(func(r *flowcache.Record, dest bool) bool {
				e := endOf(r, dest)
				return e.Local && e.UID == uint32(n) && e.UID != flowcache.NoID
			})
		}
		match := wildcard(v)
		return s.of(func(r *flowcache.Record, dest bool) bool {
			w := endOf(r, dest).Who
			return w != nil && match(w.UserName)
		})
	}
	text, match := texts[name], wildcard(v)
	return s.of(func(r *flowcache.Record, dest bool) bool { return text(endOf(r, dest), match) })
}

// inNet compares by octets: no netip.Addr is made for a record.
func inNet(prefix netip.Prefix) func(r *flowcache.Record, dest bool) bool {
	net, bits := flowcache.Addr(prefix.Addr().As16()), prefix.Bits()
	if prefix.Addr().Is4() {
		bits += 96
	}
	whole, mask := bits/8, ^byte(0xff>>(bits%8))
	return func(r *flowcache.Record, dest bool) bool {
		a := &r.Key.Src
		if dest {
			a = &r.Key.Dst
		}
		for i := range whole {
			if a[i] != net[i] {
				return false
			}
		}
		return whole == len(a) || (a[whole]^net[whole])&mask == 0
	}
}

// wildcard makes a match of text: * stands for any octets, ? for one. An empty text never matches.
func wildcard(pattern string) func(string) bool {
	if !strings.ContainsAny(pattern, "*?") {
		return func(s string) bool { return s == pattern && s != "" }
	}
	return func(s string) bool { return s != "" && like(pattern, s) }
}

// like takes time in proportion to the product of the lengths at worst.
func like(pattern, s string) bool {
	i, j, star, mark := 0, 0, -1, 0
	for j < len(s) {
		switch {
		case i < len(pattern) && pattern[i] == '*':
			star, mark = i, j
			i++
		case i < len(pattern) && (pattern[i] == '?' || pattern[i] == s[j]):
			i++
			j++
		case star >= 0: // let the last star stand for one more
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(pattern) && pattern[i] == '*' {
		i++
	}
	return i == len(pattern)
}
