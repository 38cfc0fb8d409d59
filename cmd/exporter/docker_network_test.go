package main

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

// TestDockerNetwork: a network as docker compose makes one. A container looks another up by Docker's embedded DNS, by UDP and by TCP, and speaks to it by
// name and by its published port; so does that one itself, and the node. With docker-proxy, and by rules alone: one record of each
// conversation, with both ends, in the right containers.
func TestDockerNetwork(t *testing.T) {
	needRoot(t)
	oci, rootfs := image(t)
	program := filepath.Join(filepath.Dir(oci), "pod")
	for i, proxy := range []bool{true, false} {
		t.Run(fmt.Sprint("proxy ", proxy), func(t *testing.T) {
			n := newNode(t)
			subnet := 213 + 2*i
			d := startDocker(n, subnet, rootfs, fmt.Sprint("--userland-proxy=", proxy))
			gateway := fmt.Sprintf("10.%d.0.1", subnet+1)
			published := gateway + ":18080"
			d.run("network", "create", "--subnet", fmt.Sprintf("10.%d.0.0/24", subnet+1), "shop")
			r := runNaming(t, 1, "--interface-interval", "0", "--docker", d.socket, "--containerd", "none", "--podman", "none", "--cri", "none")
			web := d.run("run", "-d", "--network", "shop", "--name", "web", "-p", "18080:7000", "-p", "18080:7000/udp", "shop/web:2", "/bin/pod", "-serve", "7000", "-for", "1h")
			d.run("run", "-d", "--network", "shop", "--name", "client", "shop/web:2", "/bin/pod", "-for", "1h")
			d.run("run", "-d", "--network", "shop", "--name", "bytcp", "--dns-opt", "use-vc", "shop/web:2", "/bin/pod", "-for", "1h")
			for _, from := range []string{"client", "bytcp"} {
				d.run("exec", from, "/bin/pod", "web:7000", published)
			}
			d.run("exec", "web", "/bin/pod", published)
			n.inside(program, published, "127.0.0.1:18080")
			time.Sleep(500 * time.Millisecond)
			r.stop()
			recs := r.json()

			type socket struct {
				pid   uint32
				proto string
				port  uint16
				dest  string
			}
			seen, kinds := map[socket]int{}, map[string]int{}
			name := func(e *jsonEnd) string {
				switch {
				case e == nil:
					return "elsewhere"
				case e.Name == "docker-proxy":
					return "proxy"
				case e.Name == "dockerd":
					return "dockerd"
				case e.Container != nil:
					return e.Container.Name
				}
				return "node"
			}
			for _, j := range recs {
				ours := false // not of another test's node: its addresses are its own
				for _, e := range []*jsonEnd{j.SourceEnd, j.DestEnd} {
					ours = ours || e != nil && (e.Name == "docker-proxy" || e.Name == "pod" || e.Name == "dockerd" && j.DestPort == 53)
				}
				if !ours || j.Protocol != "tcp" && j.Protocol != "udp" {
					continue
				}
				if j.SourceEnd == nil || j.DestEnd == nil {
					t.Errorf("one end alone: %s: %+v, %+v", wayOf(&j), j.SourceEnd, j.DestEnd)
					continue
				}
				seen[socket{j.SourceEnd.PID, j.Protocol, j.SourcePort, j.Dest.String()}]++
				kinds[fmt.Sprintf("%s %s > %s:%d", j.Protocol, name(j.SourceEnd), name(j.DestEnd), j.DestPort)]++
				if j.DestEnd.PID == 0 || j.SourceEnd.PID == 0 {
					t.Errorf("no process: %s: %+v, %+v", wayOf(&j), j.SourceEnd, j.DestEnd)
				}
				if j.DestPort == 53 {
					if p := j.PostNAT; j.Dest.String() != "127.0.0.11" || p == nil || p.Dest != j.Dest || p.DestPort == 53 || j.Forward.Payload == 0 || j.Reverse.Payload == 0 {
						t.Errorf("a question: %s", wayOf(&j))
					}
					continue
				}
				if want := map[string][2]uint64{"tcp": {5, 12}, "udp": {200, 200}}[j.Protocol]; j.Forward.Payload != want[0] || j.Reverse.Payload != want[1] {
					t.Errorf("%s, want %v octets", wayOf(&j), want)
				}
				if name(j.DestEnd) == "proxy" && (j.DestEnd.Container == nil || j.DestEnd.Container.ID != web) {
					t.Errorf("docker-proxy stands for %+v", j.DestEnd.Container)
				}
				if direct := j.DestPort == 7000; direct == (j.PostNAT != nil) && name(j.DestEnd) != "proxy" {
					t.Errorf("translated: %s", wayOf(&j))
				}
			}
			for s, n := range seen {
				if n != 1 {
					t.Errorf("%d records of %+v", n, s)
				}
			}
			want := map[string]int{}
			add := func(n int, format string, args ...any) {
				for _, proto := range []string{"tcp", "udp"} {
					want[fmt.Sprintf(proto+" "+format, args...)] += n
				}
			}
			for _, from := range []string{"client", "bytcp"} {
				add(1, "%s > web:7000", from)
			}
			for from, n := range map[string]int{"client": 1, "bytcp": 1, "web": 1, "node": 2} {
				switch {
				case proxy && (from != "node"):
					add(n, "%s > proxy:18080", from)
					add(n, "proxy > web:7000")
				case proxy: // by the gateway's address, and by the loopback address that rules leave to the proxy
					add(1, "node > web:18080")
					add(1, "node > proxy:18080")
					add(1, "proxy > web:7000")
				default:
					add(n, "%s > web:18080", from)
				}
			}
			for proto, from := range map[string]string{"udp": "client", "tcp": "bytcp"} { // two for each name: IPv4 and IPv6
				want[fmt.Sprintf("%s %s > dockerd:53", proto, from)] = 4
			}
			if fmt.Sprint(kinds) != fmt.Sprint(want) {
				t.Errorf("records %v\nwant    %v", kinds, want)
			}
			show(t, r, recs)
		})
	}
}
