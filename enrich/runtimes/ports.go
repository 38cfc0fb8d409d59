package runtimes

import (
	"cmp"
	"slices"

	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/flowcache"
)

// portSet collects published ports, which engines list one by one and for each address of the host.
type portSet []enrich.PublishedPorts

// maxRanges is how many ranges of ports of a container are followed.
const maxRanges = 256

func (s *portSet) add(protocol string, from, to int) {
	p := enrich.PublishedPorts{From: uint16(from), To: uint16(min(to, 65535))}
	switch protocol {
	case "tcp":
		p.Proto = flowcache.ProtoTCP
	case "udp":
		p.Proto = flowcache.ProtoUDP
	case "sctp":
		p.Proto = 132
	}
	if from <= 0 || from > 65535 || to < from || p.Proto == 0 {
		return
	}
	*s = append(*s, p)
}

// ranges returns the ports as ranges that do not touch, in order: ten thousand ports in a row are one.
func (s portSet) ranges() []enrich.PublishedPorts {
	slices.SortFunc(s, func(a, b enrich.PublishedPorts) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	var list []enrich.PublishedPorts
	for _, p := range s {
		if n := len(list) - 1; n >= 0 && list[n].Proto == p.Proto && int(p.From) <= int(list[n].To)+1 {
			list[n].To = max(list[n].To, p.To)
		} else if len(list) < maxRanges {
			list = append(list, p)
		}
	}
	return list
}
