package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// router6 is router for IPv6: what goes to fd98:0::1 port+1 reaches the second namespace's port, and its answers come from there.
func router6(t *testing.T, tcp, udp int) (a, b string) {
	t.Helper()
	needRoot(t)
	needTool(t, "ip6tables")
	pid := os.Getpid()
	a, b, r := fmt.Sprintf("sf6n%da", pid), fmt.Sprintf("sf6n%db", pid), fmt.Sprintf("sf6n%dr", pid)
	run := func(line string) {
		t.Helper()
		f := strings.Fields(line)
		if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	for _, ns := range []string{a, b, r} {
		exec.Command("ip", "netns", "del", ns).Run()
		run("ip netns add " + ns)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
		run("ip -n " + ns + " link set lo up")
	}
	for i, ns := range []string{a, b} {
		run(fmt.Sprintf("ip link add sfx%d netns %s type veth peer name sfy%d netns %s", i, ns, i, r))
		run(fmt.Sprintf("ip -n %s addr add fd98:%d::1/64 dev sfy%d nodad", r, i, i))
		run(fmt.Sprintf("ip -n %s link set sfy%d up", r, i))
		run(fmt.Sprintf("ip -n %s addr add fd98:%d::2/64 dev sfx%d nodad", ns, i, i))
		run(fmt.Sprintf("ip -n %s link set sfx%d up", ns, i))
		run(fmt.Sprintf("ip -n %s route add default via fd98:%d::1", ns, i))
	}
	run("ip netns exec " + r + " sysctl -qw net.ipv6.conf.all.forwarding=1")
	for proto, port := range map[string]int{"tcp": tcp, "udp": udp} {
		run(fmt.Sprintf("ip netns exec %s ip6tables -t nat -A PREROUTING -d fd98:0::1 -p %s --dport %d -j DNAT --to-destination [fd98:1::2]:%d", r, proto, port+1, port))
	}
	run("ip netns exec " + r + " ip6tables -t nat -A POSTROUTING -o sfy1 -j MASQUERADE")
	return a, b
}

// TestPostNAT: what the addresses become between two namespaces, by the two sockets where one record has both, and by conntrack in the third
// namespace where each socket has its own. What the server's socket saw is the truth.
func TestPostNAT(t *testing.T) {
	needRoot(t)
	const tcp, udp = 17010, 17011
	for _, c := range []struct {
		family, pairs string
		router        func(*testing.T, int, int) (string, string)
	}{{"IPv4", "merge", router}, {"IPv4", "separate", router}, {"IPv4", "netlink", router}, {"IPv6", "separate", router6}} {
		to, server, by := "10.98.0.1", "10.98.1.2", "10.98.1.1"
		if c.family == "IPv6" {
			to, server, by = "fd98::1", "fd98:1::2", "fd98:1::1"
		}
		t.Run(c.family+c.pairs, func(t *testing.T) {
			args := []string{"--metrics", "none", "--local-pairs", c.pairs}
			if c.pairs == "netlink" { // where datagrams are not counted
				args = []string{"--metrics", "none", "--source", "netlink"}
			}
			a, b := c.router(t, tcp, udp)
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
			switch c.pairs {
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
		})
	}
}
