package main

import (
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// tuple names a 5-tuple without direction. ICMP has no ports.
func tuple(proto int, a netip.Addr, ap uint16, b netip.Addr, bp uint16) string {
	if proto == 1 || proto == 58 {
		ap, bp = 0, 0
	}
	x, y := netip.AddrPortFrom(a, ap).String(), netip.AddrPortFrom(b, bp).String()
	if y < x {
		x, y = y, x
	}
	return fmt.Sprintf("%d %s %s", proto, x, y)
}

func tuples(t *testing.T, records []jsonRecord) map[string]string {
	t.Helper()
	type sum struct{ packets, octets uint64 }
	sums := map[string]sum{}
	for i := range records {
		r := &records[i]
		proto, err := protocolNumber(r.Protocol)
		if err != nil {
			t.Fatal(err)
		}
		k := tuple(int(proto), r.Source, r.SourcePort, r.Dest, r.DestPort)
		s := sums[k]
		sums[k] = sum{s.packets + r.Forward.Packets + r.Reverse.Packets, s.octets + r.Forward.Octets + r.Reverse.Octets}
	}
	all := map[string]string{}
	for k, s := range sums {
		all[k] = fmt.Sprintf("%d/%d", s.packets, s.octets)
	}
	return all
}

// tsharkTuples counts packets and IP octets of each 5-tuple by tshark's dissection of each packet, outermost IP header first. Ports of
// later fragments are those of the first.
func tsharkTuples(t *testing.T, file string) map[string]string {
	t.Helper()
	args := []string{"-n", "-r", file, "-T", "fields", "-E", "occurrence=f", "-E", "separator=;", "-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE"}
	names := []string{"frame.protocols", "ip.src", "ip.dst", "ip.len", "ip.id", "ip.frag_offset", "ipv6.src", "ipv6.dst", "ipv6.plen", "ipv6.fraghdr.ident",
		"ipv6.fraghdr.offset", "tcp.srcport", "tcp.dstport", "udp.srcport", "udp.dstport"}
	for _, n := range names {
		args = append(args, "-e", n)
	}
	out, err := exec.Command("tshark", args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		src, dst     netip.Addr
		sport, dport uint16
		proto        int
		octets       int
		fragment     string // which datagram; empty if it is whole
		later        bool
	}
	var rows []row
	first := map[string]row{}
	number := func(s string) int { n, _ := strconv.ParseInt(s, 0, 64); return int(n) }
	for line := range strings.Lines(string(out)) {
		f := map[string]string{}
		for i, v := range strings.Split(strings.TrimRight(line, "\n"), ";") {
			f[names[i]] = v
		}
		layers := strings.Split(f["frame.protocols"], ":")
		at := slices.IndexFunc(layers, func(s string) bool { return s == "ip" || s == "ipv6" })
		if at < 0 {
			continue
		}
		r := row{}
		if layers[at] == "ip" {
			r.src, r.dst, r.octets = netip.MustParseAddr(f["ip.src"]), netip.MustParseAddr(f["ip.dst"]), number(f["ip.len"])
			r.fragment, r.later = f["ip.id"], number(f["ip.frag_offset"]) != 0
		} else {
			r.src, r.dst, r.octets = netip.MustParseAddr(f["ipv6.src"]), netip.MustParseAddr(f["ipv6.dst"]), 40+number(f["ipv6.plen"])
			r.fragment, r.later = f["ipv6.fraghdr.ident"], number(f["ipv6.fraghdr.offset"]) != 0
		}
		r.fragment += r.src.String() + r.dst.String()
		for at++; at < len(layers) && strings.HasPrefix(layers[at], "ipv6."); at++ { // extension headers
		}
		if at < len(layers) {
			switch l := layers[at]; l {
			case "tcp", "udp":
				r.proto = map[string]int{"tcp": 6, "udp": 17}[l]
				r.sport, r.dport = uint16(number(f[l+".srcport"])), uint16(number(f[l+".dstport"]))
			case "icmp":
				r.proto = 1
			case "icmpv6":
				r.proto = 58
			}
		}
		if !r.later {
			first[r.fragment] = r
		} else if f, ok := first[r.fragment]; ok {
			r.proto, r.sport, r.dport = f.proto, f.sport, f.dport
		}
		rows = append(rows, r)
	}
	type sum struct{ packets, octets int }
	sums := map[string]sum{}
	for _, r := range rows {
		k := tuple(r.proto, r.src, r.sport, r.dst, r.dport)
		sums[k] = sum{sums[k].packets + 1, sums[k].octets + r.octets}
	}
	all := map[string]string{}
	for k, s := range sums {
		all[k] = fmt.Sprintf("%d/%d", s.packets, s.octets)
	}
	return all
}

var convLine = regexp.MustCompile(`^(\S+):(\d+) +<-> +(\S+):(\d+) +(\d+) \d.*? +(\d+) \d`)

// tsharkConversations lists the TCP conversations of packets that pass a display filter, with the packets of both directions.
func tsharkConversations(t *testing.T, file, filter string) []string {
	t.Helper()
	out, err := exec.Command("tshark", "-n", "-r", file, "-q", "-z", "conv,tcp,"+filter).Output()
	if err != nil {
		t.Fatal(err)
	}
	all := []string{}
	for line := range strings.Lines(string(out)) {
		m := convLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		x, y := m[1]+" "+m[2]+" "+m[6], m[3]+" "+m[4]+" "+m[5] // the arrow to the left comes first
		all = append(all, min(x, y)+" "+max(x, y))
	}
	slices.Sort(all)
	return all
}

func streams(records []jsonRecord) []string {
	all := []string{}
	for i := range records {
		r := &records[i]
		if r.Protocol != "tcp" {
			continue
		}
		x := fmt.Sprintf("%s %d %d", r.Source, r.SourcePort, r.Forward.Packets)
		y := fmt.Sprintf("%s %d %d", r.Dest, r.DestPort, r.Reverse.Packets)
		all = append(all, min(x, y)+" "+max(x, y))
	}
	slices.Sort(all)
	return all
}
