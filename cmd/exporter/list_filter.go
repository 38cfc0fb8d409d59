package main

import (
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/sockflow/sockflow/flowcache"
)

// listFilter says which sockets are shown. What is empty does not filter.
type listFilter struct {
	listening, all, tcp, udp, v4, v6                     bool
	states, processes, users, containers, pods, prefixes []string
	pids                                                 []uint
	ports                                                []uint

	networks []netip.Prefix
}

func (f *listFilter) addFlags(s *pflag.FlagSet) {
	s.BoolVarP(&f.listening, "listening", "l", false, "only listening sockets, and UDP sockets that are not connected")
	s.BoolVarP(&f.all, "all", "a", false, "both kinds")
	s.BoolVarP(&f.tcp, "tcp", "t", false, "only TCP")
	s.BoolVarP(&f.udp, "udp", "u", false, "only UDP and UDP-Lite")
	s.BoolVarP(&f.v4, "ipv4", "4", false, "only IPv4")
	s.BoolVarP(&f.v6, "ipv6", "6", false, "only IPv6")
	s.StringSliceVar(&f.states, "state", nil, "only in this `STATE`, as shown: ESTAB, SYN-SENT, LISTEN, ...")
	s.UintSliceVar(&f.ports, "port", nil, "only with this `PORT` at either end")
	s.StringSliceVar(&f.prefixes, "address", nil, "only with this `ADDRESS` or network (10.0.0.0/8) at either end")
	s.UintSliceVarP(&f.pids, "pid", "p", nil, "only of this process `ID`")
	s.StringSliceVar(&f.processes, "process", nil, "only of this program: its `NAME`, or its path if there is a slash; * and ? match any")
	s.StringSliceVar(&f.users, "user", nil, "only of this user, by `NAME` or id")
	s.StringSliceVar(&f.containers, "container", nil, "only of this container, by `NAME` or the begin of its id, or systemd unit; * and ? match any")
	s.StringSliceVar(&f.pods, "pod", nil, "only of this `POD`, with or without its namespace and a slash; * and ? match any")
}

// check says what is wrong with the filter, and prepares it.
func (f *listFilter) check() error {
	for _, p := range f.prefixes {
		n, err := netip.ParsePrefix(p)
		if a, addrErr := netip.ParseAddr(p); addrErr == nil {
			n, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return usagef("--address %q: must be an address or a network as 10.0.0.0/8", p)
		}
		f.networks = append(f.networks, n.Masked())
	}
	for _, list := range []struct {
		flag     string
		patterns []string
	}{{"process", f.processes}, {"container", f.containers}, {"pod", f.pods}} {
		for _, p := range list.patterns {
			if _, err := path.Match(p, ""); err != nil {
				return usagef("--%s %q: %w", list.flag, p, err)
			}
		}
	}
	for _, p := range f.ports {
		if p > 65535 {
			return usagef("--port %d: must be at most 65535", p)
		}
	}
	if f.v4 && f.v6 {
		return usagef("--ipv4 and --ipv6: not both")
	}
	for i, s := range f.states {
		f.states[i] = strings.ToUpper(s)
		if s := f.states[i]; s != "UNCONN" && (s == "" || !slices.Contains(stateNames[:], s)) {
			return usagef("--state %q: must be UNCONN, %s", s, strings.Join(stateNames[1:], ", "))
		}
	}
	return nil
}

func (f *listFilter) match(l *listed) bool {
	k := &l.o.Key
	datagram := k.Proto == flowcache.ProtoUDP || k.Proto == flowcache.ProtoUDPLite
	switch {
	case !f.all && len(f.states) == 0 && l.listens() != f.listening:
		return false
	case (f.tcp || f.udp) && !(f.tcp && k.Proto == flowcache.ProtoTCP || f.udp && datagram):
		return false
	case f.v4 && !k.Src.Is4() || f.v6 && k.Src.Is4():
		return false
	case len(f.states) > 0 && !slices.Contains(f.states, l.state()):
		return false
	case len(f.ports) > 0 && !slices.Contains(f.ports, uint(k.SrcPort)) && !(slices.Contains(f.ports, uint(k.DstPort)) && !l.listens()):
		return false
	case len(f.pids) > 0 && !slices.Contains(f.pids, uint(l.end.Process.PID)):
		return false
	case len(f.users) > 0 && !slices.Contains(f.users, userOf(l.end)) && !slices.Contains(f.users, strconv.FormatUint(uint64(l.end.UID), 10)):
		return false
	}
	return f.matchAddress(k) && f.matchProcess(l.end.Who) && f.matchContainer(l.end.Container) && f.matchPod(l.end.Container)
}

func (f *listFilter) matchAddress(k *flowcache.Key) bool {
	return len(f.networks) == 0 || slices.ContainsFunc(f.networks, func(n netip.Prefix) bool {
		return n.Contains(k.Src.Netip()) || n.Contains(k.Dst.Netip())
	})
}

// anyMatch reports whether one of the patterns matches, or there is none. check has validated the patterns.
func anyMatch(patterns []string, matches func(pattern string) bool) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, matches)
}

func glob(pattern, s string) bool {
	ok, err := path.Match(pattern, s)
	return err == nil && ok && s != ""
}

func (f *listFilter) matchProcess(p *flowcache.Process) bool {
	return anyMatch(f.processes, func(pattern string) bool {
		switch {
		case p == nil:
			return false
		case strings.Contains(pattern, "/"):
			return glob(pattern, p.Path)
		}
		return glob(pattern, p.Name) || glob(pattern, path.Base(p.Path))
	})
}

func (f *listFilter) matchContainer(w *flowcache.Workload) bool {
	return anyMatch(f.containers, func(pattern string) bool {
		return w != nil && (glob(pattern, w.ContainerName) || glob(pattern+"*", w.ContainerID) || glob(pattern, w.ServiceUnit))
	})
}

func (f *listFilter) matchPod(w *flowcache.Workload) bool {
	return anyMatch(f.pods, func(pattern string) bool {
		switch {
		case w == nil:
			return false
		case strings.Contains(pattern, "/"):
			return w.PodName != "" && glob(pattern, w.PodNamespace+"/"+w.PodName)
		}
		return glob(pattern, w.PodName)
	})
}
