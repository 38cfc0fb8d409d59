package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// sumJSON sums the printed records of a flow that a program counted.
func sumJSON(recs []jsonRecord, c counted) (out, in uint64, ends []*jsonEnd, reasons []string) {
	for i := range recs {
		r := &recs[i]
		src, dst := netip.AddrPortFrom(r.Source, r.SourcePort), netip.AddrPortFrom(r.Dest, r.DestPort)
		switch {
		case r.SourceEnd != nil && int(r.SourceEnd.PID) == c.PID && sameEnd(c.Local, src) && sameEnd(c.Remote, dst):
			out, in, ends = out+r.Forward.Payload, in+r.Reverse.Payload, append(ends, r.SourceEnd)
		case r.DestEnd != nil && int(r.DestEnd.PID) == c.PID && sameEnd(c.Local, dst) && sameEnd(c.Remote, src):
			out, in, ends = out+r.Reverse.Payload, in+r.Forward.Payload, append(ends, r.DestEnd)
		default:
			continue
		}
		reasons = append(reasons, r.Reason)
	}
	return
}

// TestLongFlow: a connection that is older than the exporter appears with its owner and counts from the start; its records
// add up, and the last one is a forced end.
func TestLongFlow(t *testing.T) {
	needRoot(t)
	srv := start(t, "echo-server", "", "server", "127.0.0.1", "0")
	ports := srv.next()
	old := start(t, "foxtrot-old", "", "hold", "127.0.0.1", strconv.Itoa(ports.TCP))
	old.next()
	old.advance() // 1000 octets before the start
	sink := newUDPSink(t)
	r := runExporter(t, "-c", "json:-", "-c", fmt.Sprintf("udp://127.0.0.1:%d", sink.port()), "--active-timeout", "1s", "--snapshot-interval", "500ms")
	young := start(t, "golf-young", "", "hold", "127.0.0.1", strconv.Itoa(ports.TCP))
	young.next()
	for range 8 {
		old.advance()
		young.advance()
		time.Sleep(400 * time.Millisecond)
	}
	r.stop()
	recs := r.json()
	oldReport, youngReport := old.end(), young.end()
	srv.end()
	for _, tc := range []struct {
		r    *report
		want uint64
	}{{oldReport, 8000}, {youngReport, 8000}} {
		out, _, ends, reasons := sumJSON(recs, tc.r.Flows[0])
		if out != tc.want || len(ends) < 3 || reasons[len(reasons)-1] != "forced" || reasons[0] != "active" {
			t.Errorf("%s: %d octets in %d records %v, want %d", tc.r.Path, out, len(ends), reasons, tc.want)
		}
		for _, e := range ends {
			if e.Path != tc.r.Path {
				t.Errorf("owner %q, want %q", e.Path, tc.r.Path)
			}
		}
	}
	sequence(t, sink.messages())
}

// TestSameTuple: the same 5-tuple in two namespaces is two flows, and used again by a new socket it is a new flow.
func TestSameTuple(t *testing.T) {
	needRoot(t)
	needTool(t, "busybox")
	a, b := netns(t)
	r := runExporter(t)
	talk := func(ns string) {
		t.Helper()
		l := exec.Command("ip", "netns", "exec", ns, "nc", "-l", "-p", "7001", "-s", "127.0.0.1")
		if err := l.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { l.Process.Kill(); l.Wait() }()
		eventually(t, "nc listens", func() bool {
			out, _ := exec.Command("ip", "netns", "exec", ns, "ss", "-Hltn", "sport = :7001").Output()
			return len(out) > 0
		})
		c := exec.Command("ip", "netns", "exec", ns, "nc", "-N", "-p", "7002", "127.0.0.1", "7001")
		c.Stdin = strings.NewReader("hello")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("nc: %v\n%s", err, out)
		}
	}
	needTool(t, "nc")
	talk(a)
	talk(b)
	// TIME_WAIT keeps the tuple; the listener's side closed second, so only the client's is in it. tcp_tw_reuse does not allow a
	// fixed port, so forget it.
	exec.Command("ip", "netns", "exec", a, "sysctl", "-qw", "net.ipv4.tcp_max_tw_buckets=0").Run()
	talkAgain := func() bool {
		l := exec.Command("ip", "netns", "exec", a, "ss", "-Hatn", "state", "time-wait")
		out, _ := l.Output()
		return len(bytes.TrimSpace(out)) == 0
	}
	reuse := talkAgain()
	if reuse {
		talk(a)
	}
	time.Sleep(200 * time.Millisecond)
	r.stop()
	spaces, cookies := map[uint32]bool{}, map[uint64]bool{}
	for _, j := range r.json() {
		if j.SourcePort == 7002 && j.DestPort == 7001 && j.SourceEnd != nil {
			spaces[j.SourceEnd.NetNS], cookies[j.SourceEnd.Cookie] = true, true
			if j.Forward.Payload != 5 {
				t.Errorf("%d octets, want 5", j.Forward.Payload)
			}
		}
	}
	want := 2
	if reuse {
		want = 3
	}
	if len(spaces) != 2 || len(cookies) != want {
		t.Errorf("%d namespaces, %d flows; want 2 and %d", len(spaces), len(cookies), want)
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
	// The neighbour table has an entry for an address that no host has: nothing answers.
	ip(t, "-n "+a+" neigh add 10.99.0.77 lladdr 02:00:00:00:00:77 dev sfv0 nud permanent")
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

// TestNetlinkSource: the complete mode without eBPF, and the same for a user without privileges.
func TestNetlinkSource(t *testing.T) {
	needRoot(t)
	for _, user := range []uint32{0, 65534} {
		t.Run(strconv.Itoa(int(user)), func(t *testing.T) {
			srv := start(t, "lima-server", "", "server", "127.0.0.1", "10")
			ports := srv.next()
			cmd := exec.Command(buildExporter(t), "--source", "auto", "--snapshot-interval", "300ms")
			if user == 0 {
				cmd.Args[2] = "netlink"
			} else {
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
			}
			r := launch(t, cmd)
			time.Sleep(time.Second)
			h := start(t, "mike-hold", "", "hold", "127.0.0.1", strconv.Itoa(ports.TCP))
			h.next()
			h.advance()
			time.Sleep(700 * time.Millisecond)
			h.advance()
			hr := h.end()
			srv.end()
			time.Sleep(700 * time.Millisecond)
			r.stop()
			recs := r.json()
			var got uint64
			path := ""
			for _, j := range recs {
				if j.SourcePort == hr.Flows[0].Local.Port() && j.SourceEnd != nil {
					got += j.Forward.Payload
					path = j.SourceEnd.Path
				}
			}
			if user == 0 && (got != 2000 || path != hr.Path) {
				t.Errorf("%d octets by %q, want 2000 by %q\n%s", got, path, hr.Path, r.errs.String())
			}
			if user != 0 && (got != 1000 && got != 2000 || !strings.Contains(r.errs.String(), "permission denied (needs root")) {
				t.Errorf("%d octets\n%s", got, r.errs.String())
			}
		})
	}
}
