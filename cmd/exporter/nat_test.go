package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestTranslated: two ends in two namespaces, addresses translated both ways on the way between (as by a published port or a service
// address): one record with both, by eBPF, and by netlink where connections live long enough.
func TestTranslated(t *testing.T) {
	needRoot(t)
	const tcp, udp = 17000, 17001
	a, b := router(t, ipv4, tcp, udp)
	r := runExporter(t, "--metrics", "none")
	srv := start(t, "quebec-server", b, "server", "10.98.1.2", "77", strconv.Itoa(tcp), strconv.Itoa(udp))
	srv.next()
	cl := start(t, "romeo-client", a, "client", "10.98.0.1", strconv.Itoa(tcp+1), strconv.Itoa(udp+1), "4", "900")
	cr, sr := cl.end(), srv.end()
	time.Sleep(500 * time.Millisecond)
	r.stop()
	recs := r.json()
	seen := map[string]int{}
	for _, c := range cr.Flows {
		for _, j := range recs {
			if j.SourceEnd == nil || int(j.SourceEnd.PID) != c.PID || j.SourcePort != c.Local.Port() || j.Protocol != c.Proto {
				continue
			}
			seen[c.Proto]++
			if j.DestEnd == nil || int(j.DestEnd.PID) != sr.PID || j.DestEnd.Path != sr.Path || j.DestEnd.NetNS == j.SourceEnd.NetNS {
				t.Errorf("%s %v: the other end is %+v", c.Proto, c.Local, j.DestEnd)
			}
			if j.Forward.Payload != c.Sent || j.Reverse.Payload != c.Received || j.Dest != c.Remote.Addr() {
				t.Errorf("%s %v: %d and %d octets to %v, the program counted %d and %d to %v", c.Proto, c.Local, j.Forward.Payload, j.Reverse.Payload, j.Dest, c.Sent, c.Received, c.Remote)
			}
		}
	}
	if seen["tcp"] != 4 || seen["udp"] != 4 {
		t.Errorf("records by protocol: %v, want 4 and 4", seen)
	}
	// And no other record reports the same traffic.
	for _, j := range recs {
		if j.DestEnd != nil && int(j.DestEnd.PID) == sr.PID && j.SourceEnd == nil {
			t.Errorf("a record of the server's end alone: %+v", j)
		}
	}
}

// TestPostNAT: what the addresses become between two namespaces, by the two sockets where one record has both, and by conntrack in the third
// namespace where each socket has its own. What the server's socket saw is the truth.
func TestPostNAT(t *testing.T) {
	for _, c := range []struct {
		name, pairs string
		family      family
	}{{"IPv4", "merge", ipv4}, {"IPv4", "separate", ipv4}, {"IPv4", "netlink", ipv4}, {"IPv6", "separate", ipv6}} {
		t.Run(c.name+c.pairs, func(t *testing.T) { testPostNAT(t, c.family, c.pairs) })
	}
}

// testPostNAT talks through a router that has some rules more than those that translate, and looks at the records of both ends. The rules are those of
// namespaces, by the last letter of their names.
func testPostNAT(t *testing.T, f family, pairs string, rules ...string) {
	needRoot(t)
	const tcp, udp = 17010, 17011
	to, server, by := f.near+"1", f.far+"2", f.far+"1"
	args := []string{"--metrics", "none", "--local-pairs", pairs}
	if pairs == "netlink" { // where datagrams are not counted
		args = []string{"--metrics", "none", "--source", "netlink"}
	}
	a, b := router(t, f, tcp, udp)
	for _, rule := range rules {
		ns, rule, _ := strings.Cut(rule, " ")
		ip(t, "netns exec "+strings.TrimSuffix(a, "a")+ns+" "+f.iptables+" "+rule)
	}
	r := runExporter(t, args...)
	srv := start(t, "yankee-server", b, "server", server, "77", strconv.Itoa(tcp), strconv.Itoa(udp))
	srv.next()
	cl := start(t, "zulu-client", a, "client", to, strconv.Itoa(tcp+1), strconv.Itoa(udp+1), "4", "900")
	cr, sr := cl.end(), srv.end()
	time.Sleep(500 * time.Millisecond)
	r.stop()
	seen := map[netip.AddrPort]bool{} // the translated sources, as the server counted them
	for _, f := range sr.Flows {
		if f.Proto == "tcp" {
			seen[f.Remote] = true
		}
	}
	began := map[netip.AddrPort]bool{}
	for _, f := range cr.Flows {
		began[f.Local] = true
	}
	n := map[string]int{}
	for _, j := range r.json() {
		switch {
		case j.SourceEnd != nil && (int(j.SourceEnd.PID) == cr.PID || began[netip.AddrPortFrom(j.Source, j.SourcePort)]):
			n["client "+j.Protocol]++
			p := j.PostNAT
			if p == nil || j.PreNAT != nil {
				t.Errorf("%s %v:%d: no postNAT", j.Protocol, j.Source, j.SourcePort)
				continue
			}
			port := map[string]int{"tcp": tcp, "udp": udp}[j.Protocol]
			if p.Dest != netip.MustParseAddr(server) || int(p.DestPort) != port || p.Source != netip.MustParseAddr(by) {
				t.Errorf("%s: translated to %+v", j.Protocol, p)
			}
			if j.Protocol == "tcp" && !seen[netip.AddrPortFrom(p.Source, p.SourcePort)] {
				t.Errorf("the server saw no %v:%d, but %v", p.Source, p.SourcePort, seen)
			}
			if j.Dest != netip.MustParseAddr(to) || int(j.DestPort) != port+1 {
				t.Errorf("spoke to %v:%d", j.Dest, j.DestPort)
			}
		case j.DestEnd != nil && int(j.DestEnd.PID) == sr.PID:
			n["server "+j.Protocol]++
			p := j.PreNAT
			if p == nil || j.PostNAT != nil {
				t.Errorf("%s %v:%d: no preNAT", j.Protocol, j.Source, j.SourcePort)
				continue
			}
			if p.Dest != netip.MustParseAddr(to) || int(p.DestPort) != int(j.DestPort)+1 || j.Dest != netip.MustParseAddr(server) {
				t.Errorf("%s: translated from %+v", j.Protocol, p)
			}
		}
	}
	want := map[string]int{"client tcp": 4, "client udp": 4}
	switch pairs {
	case "netlink":
		want = map[string]int{"client tcp": 4}
		delete(n, "client udp")
		delete(n, "server udp")
	case "separate":
		want["server tcp"], want["server udp"] = 4, 4
	}
	if fmt.Sprint(n) != fmt.Sprint(want) {
		t.Errorf("records: %v, want %v", n, want)
	}
}
