package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// router puts a namespace with DNAT between the two of netns: what goes to 10.98.0.1 port+1 reaches the second one's port.
func router(t *testing.T, tcp, udp int) (a, b string) {
	t.Helper()
	needRoot(t)
	needTool(t, "iptables")
	pid := os.Getpid()
	a, b, r := fmt.Sprintf("sfn%da", pid), fmt.Sprintf("sfn%db", pid), fmt.Sprintf("sfn%dr", pid)
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
		run(fmt.Sprintf("ip link add sfd%d netns %s type veth peer name sfr%d netns %s", i, ns, i, r))
		run(fmt.Sprintf("ip -n %s addr add 10.98.%d.1/24 dev sfr%d", r, i, i))
		run(fmt.Sprintf("ip -n %s link set sfr%d up", r, i))
		run(fmt.Sprintf("ip -n %s addr add 10.98.%d.2/24 dev sfd%d", ns, i, i))
		run(fmt.Sprintf("ip -n %s link set sfd%d up", ns, i))
		run(fmt.Sprintf("ip -n %s route add default via 10.98.%d.1", ns, i))
	}
	run("ip netns exec " + r + " sysctl -qw net.ipv4.ip_forward=1")
	for proto, port := range map[string]int{"tcp": tcp, "udp": udp} {
		run(fmt.Sprintf("ip netns exec %s iptables -t nat -A PREROUTING -d 10.98.0.1 -p %s --dport %d -j DNAT --to-destination 10.98.1.2:%d", r, proto, port+1, port))
	}
	run("ip netns exec " + r + " iptables -t nat -A POSTROUTING -o sfr1 -j MASQUERADE")
	return a, b
}

// TestTranslated: two ends in two namespaces, addresses translated both ways on the way between (as by a published port or a service
// address): one record with both, by eBPF, and by netlink where connections live long enough.
func TestTranslated(t *testing.T) {
	needRoot(t)
	const tcp, udp = 17000, 17001
	a, b := router(t, tcp, udp)
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
	// And nobody tells of the same again.
	for _, j := range recs {
		if j.DestEnd != nil && int(j.DestEnd.PID) == sr.PID && j.SourceEnd == nil {
			t.Errorf("a record of the server's end alone: %+v", j)
		}
	}
}

// TestSeparate: a record for each socket.
func TestSeparate(t *testing.T) {
	needRoot(t)
	r := runExporter(t, "--metrics", "none", "--local-pairs", "separate")
	srv := start(t, "sierra-server", "", "server", "127.0.0.1", "10")
	ports := srv.next()
	start(t, "tango-client", "", "client", "127.0.0.1", strconv.Itoa(ports.TCP), strconv.Itoa(ports.UDP), "2", "100").end()
	srv.end()
	time.Sleep(200 * time.Millisecond)
	r.stop()
	n := 0
	for _, j := range r.json() {
		if int(j.DestPort) != ports.TCP && int(j.DestPort) != ports.UDP {
			continue
		}
		n++
		if (j.SourceEnd == nil) == (j.DestEnd == nil) {
			t.Errorf("%+v %+v", j.SourceEnd, j.DestEnd)
		}
	}
	if n != 8 {
		t.Errorf("%d records of 4 conversations", n)
	}
}

// TestFailedConnects: what became of a connection that did not come to be.
func TestFailedConnects(t *testing.T) {
	a, _ := netns(t)
	for _, line := range []string{
		// Somebody is there by the neighbour table, and nobody in truth: silence.
		"ip -n " + a + " neigh add 10.99.0.77 lladdr 02:00:00:00:00:77 dev sfv0 nud permanent",
	} {
		f := strings.Fields(line)
		if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	r := runExporter(t, "--metrics", "none")
	for _, c := range []struct {
		to      string
		err     uint16
		retries int
	}{{"10.99.0.77", 110, 1}, {"10.99.0.78", 113, 6}, {"10.99.0.2", 111, 6}} {
		exec.Command("ip", "netns", "exec", a, "sysctl", "-qw", fmt.Sprintf("net.ipv4.tcp_syn_retries=%d", c.retries)).Run()
		cmd := exec.Command("ip", "netns", "exec", a, "nc", "-w", "9", c.to, "9")
		cmd.Run() // it fails
		time.Sleep(200 * time.Millisecond)
		n := 0
		for _, j := range r.json() {
			if j.Dest == netip.MustParseAddr(c.to) && j.Protocol == "tcp" {
				n++
				if j.TCP.Error != c.err || j.Forward.Payload != 0 || j.Forward.Packets == 0 || j.SourceEnd == nil || int(j.SourceEnd.PID) != cmd.Process.Pid {
					t.Errorf("%s: error %d, want %d: %+v", c.to, j.TCP.Error, c.err, j)
				}
			}
		}
		if n != 1 {
			t.Errorf("%s: %d records", c.to, n)
		}
	}
	r.stop()
}

// TestManyConnections: every octet and every connection of a pre-forked server and its clients, once.
func TestManyConnections(t *testing.T) {
	needRoot(t)
	count := 20000
	if s := os.Getenv("SOCKFLOW_TEST_CONNECTIONS"); s != "" {
		count, _ = strconv.Atoi(s)
	}
	file := filepath.Join(t.TempDir(), "records.json")
	r := runExporter(t, "--metrics", "none", "-c", "json:"+file)
	srv := start(t, "uniform-prefork", "", "workers", "127.0.0.1", "30")
	master := srv.next()
	const clients = 4
	var programs []*program
	for i := range clients {
		programs = append(programs, start(t, fmt.Sprintf("victor-client%d", i), "", "client", "127.0.0.1", strconv.Itoa(master.TCP), "0", strconv.Itoa(count/clients), "1"))
	}
	type key struct {
		pid    int
		client netip.AddrPort
	}
	want := map[key][]counted{}
	total := 0
	var sent, received uint64
	for _, p := range programs {
		for _, c := range p.end().Flows {
			k := key{c.PID, c.Local}
			want[k] = append(want[k], c)
			total++
			sent, received = sent+c.Sent, received+c.Received
		}
	}
	srv.in.Close()
	workers := map[int]int{}
	var served uint64
	for range 2 {
		w := srv.next()
		for _, c := range w.Flows {
			workers[w.PID]++
			served += c.Received
		}
	}
	time.Sleep(500 * time.Millisecond)
	r.stop()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	records := 0
	var fwd, rev uint64
	byWorker := map[int]int{}
	for d := json.NewDecoder(f); ; {
		var j jsonRecord
		if d.Decode(&j) != nil {
			break
		}
		if int(j.DestPort) != master.TCP || j.SourceEnd == nil || j.DestEnd == nil {
			if int(j.DestPort) == master.TCP {
				t.Errorf("a record of one end: %+v %+v", j.SourceEnd, j.DestEnd)
			}
			continue
		}
		records++
		fwd, rev = fwd+j.Forward.Payload, rev+j.Reverse.Payload
		byWorker[int(j.DestEnd.PID)]++
		if len(want[key{int(j.SourceEnd.PID), netip.AddrPortFrom(j.Source, j.SourcePort)}]) == 0 {
			t.Errorf("a record of no connection: %+v", j)
		}
	}
	t.Logf("%d connections, %d records; %d octets there, %d back; served by %v", total, records, fwd, rev, byWorker)
	if records != total || fwd != sent || rev != received || fwd != served {
		t.Errorf("%d records, %d and %d octets; the programs counted %d connections, %d and %d octets, %d served", records, fwd, rev, total, sent, received, served)
	}
	for pid, n := range workers {
		if byWorker[pid] != n {
			t.Errorf("worker %d: %d records, it served %d", pid, byWorker[pid], n)
		}
	}
}

// TestManyProcesses: processes of a millisecond or two, each with one connection.
func TestManyProcesses(t *testing.T) {
	needRoot(t)
	needTool(t, "gcc")
	count := 2000
	if s := os.Getenv("SOCKFLOW_TEST_PROCESSES"); s != "" {
		count, _ = strconv.Atoi(s)
	}
	path := filepath.Join(t.TempDir(), "short")
	os.Chmod(filepath.Dir(path), 0o755)
	os.Chmod(filepath.Dir(filepath.Dir(path)), 0o755)
	if out, err := exec.Command("gcc", "-O2", "-static", "-o", path, "testdata/short.c").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	for _, rate := range []string{"500", "0"} {
		for _, program := range []string{path, "/bin/busybox"} {
			t.Run(filepath.Base(program)+rate, func(t *testing.T) {
				r := runExporter(t, "--metrics", "none")
				srv := start(t, "whiskey-server", "", "server", "127.0.0.1", "10")
				ports := srv.next()
				burst := start(t, "xray-burst", "", "burst", fmt.Sprintf("127.0.0.1:%d", ports.TCP), strconv.Itoa(count), rate, program)
				br := burst.end()
				srv.end()
				time.Sleep(300 * time.Millisecond)
				r.stop()
				pids := map[int]bool{}
				for _, c := range br.Flows {
					pids[c.PID] = true
				}
				b, _ := os.ReadFile("/proc/self/cgroup")
				flows, right := 0, 0
				want := program
				if p, err := filepath.EvalSymlinks(program); err == nil {
					want = p
				}
				for _, j := range r.json() {
					if int(j.DestPort) != ports.TCP {
						continue
					}
					flows++
					e := j.SourceEnd
					if e != nil && pids[int(e.PID)] && e.Path == want && e.UID != nil && *e.UID == 65534 && int(e.ParentPID) == br.PID && e.ParentPath == br.Path && e.CGroup != 0 && j.Forward.Payload == 1 {
						right++
					} else if flows-right < 4 {
						t.Logf("wrong: %+v", e)
					}
				}
				t.Logf("%d processes: %d flows, %d with the right pid, path, uid, parent and cgroup", count, flows, right)
				if flows != count || right*1000 < count*999 {
					t.Errorf("%d flows and %d right, of %d; own cgroup %s", flows, right, count, b)
				}
			})
		}
	}
}
