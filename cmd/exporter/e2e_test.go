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

	"github.com/spf13/pflag"

	"github.com/sockflow/sockflow/flowcache"
)

// place is where programs talk: on the loopback, or across a veth pair.
type place struct {
	name, ip         string
	clientNS, server string // network namespaces
}

// netns makes two namespaces with a veth pair and returns their names; the first has .1, the second .2.
func netns(t *testing.T) (a, b string) {
	t.Helper()
	needRoot(t)
	needTool(t, "ip")
	a, b = fmt.Sprintf("sf%da", os.Getpid()), fmt.Sprintf("sf%db", os.Getpid())
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	for _, ns := range []string{a, b} {
		exec.Command("ip", "netns", "del", ns).Run()
		ip("netns", "add", ns)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
		ip("-n", ns, "link", "set", "lo", "up")
		// The kernel does not count SACK options, which come and go with reordering between two CPUs: up to 0.3 % here.
		ip("netns", "exec", ns, "sysctl", "-qw", "net.ipv4.tcp_sack=0")
	}
	ip("link", "add", "sfv0", "netns", a, "type", "veth", "peer", "name", "sfv1", "netns", b)
	for i, ns := range []string{a, b} {
		dev := "sfv" + strconv.Itoa(i)
		ip("-n", ns, "addr", "add", fmt.Sprintf("10.99.0.%d/24", i+1), "dev", dev)
		ip("-n", ns, "addr", "add", fmt.Sprintf("fd99::%d/64", i+1), "dev", dev, "nodad")
		// A capture sees what the kernel hands to the device: with segmentation offload that is not what a wire carries.
		ip("-n", ns, "link", "set", dev, "gso_max_segs", "1", "up")
	}
	return a, b
}

// elements are the numbers of a layout.
type elements struct {
	src4, dst4, src6, dst6, sport, dport string
	payload, reversePayload              string
	octets, packets, revOctets, revPkts  string
	src, dst                             who5
	longest                              int // of paths, 0 without limit
}

// text is a path as the layout carries it.
func (e *elements) text(s string) string {
	if e.longest != 0 && len(s) > e.longest {
		return s[:e.longest]
	}
	return s
}

type who5 struct{ pid, path, uid, parent, parentPath string }

var (
	known = elements{
		"0:8", "0:12", "0:27", "0:28", "0:7", "0:11", "0:401", "29305:401", "0:1", "0:2", "29305:1", "29305:2",
		who5{"35632:168", "35632:169", "35632:425", "35632:373", "35632:374"}, who5{"35632:375", "35632:376", "35632:426", "35632:378", "35632:379"}, 0,
	}
	native = func() elements {
		e := known
		e.src = who5{"32473:1", "32473:3", "32473:11", "32473:17", "32473:19"}
		e.dst = who5{"32473:2", "32473:4", "32473:12", "32473:18", "32473:20"}
		return e
	}()
	v9 = func() elements {
		e := known
		e.longest = 64
		e.reversePayload, e.revOctets, e.revPkts = "", "0:23", "0:24"
		e.src = who5{"0:57640", "0:57641", "0:57897", "0:57845", "0:57846"}
		e.dst = who5{"0:57847", "0:57848", "0:57898", "0:57850", "0:57851"}
		return e
	}()
)

func (e *elements) endpoints(f fields) (src, dst netip.AddrPort) {
	at := func(v4, v6, port string) netip.AddrPort {
		s := f[v4]
		if s == "" {
			s = f[v6]
		}
		a, _ := netip.ParseAddr(s)
		p, _ := strconv.ParseUint(f[port], 10, 16)
		return netip.AddrPortFrom(a, uint16(p))
	}
	return at(e.src4, e.src6, e.sport), at(e.dst4, e.dst6, e.dport)
}

func sameEnd(want, got netip.AddrPort) bool {
	return want.Port() == got.Port() && (want.Addr() == got.Addr() || want.Addr().IsUnspecified())
}

// verify compares the records with what a program counted: payload to the octet, and who it was.
func verify(t *testing.T, what string, e *elements, recs []fields, r *report, initiator bool, parent string) {
	t.Helper()
	if len(r.Flows) == 0 {
		t.Errorf("%s: the program counted nothing", what)
	}
	for _, c := range r.Flows {
		var out, in, outPkts uint64
		n := 0
		for _, f := range recs {
			src, dst := e.endpoints(f)
			id := e.src
			if !initiator {
				src, dst, id = dst, src, e.dst
			}
			if !sameEnd(c.Local, src) || !sameEnd(c.Remote, dst) || f[id.pid] != strconv.Itoa(c.PID) || (f["0:4"] == "6") != (c.Proto == "tcp") {
				continue
			}
			n++
			fwd, pkts := f.number(t, e.payload), f.number(t, e.packets)
			rev := fwd
			if e.reversePayload != "" {
				rev = f.number(t, e.reversePayload)
			}
			if !initiator {
				fwd, rev = rev, fwd
				pkts = f.number(t, e.revPkts)
			}
			out, in, outPkts = out+fwd, in+rev, outPkts+pkts
			if f[id.path] != e.text(r.Path) || f[id.uid] != strconv.Itoa(r.UID) || parent != "" && (f[id.parent] != strconv.Itoa(r.PPID) || f[id.parentPath] != e.text(parent)) {
				t.Errorf("%s %s %v: who is %q uid %s parent %s %q, want %q uid %d parent %d %q", what, c.Proto, c.Local, f[id.path], f[id.uid], f[id.parent], f[id.parentPath], r.Path, r.UID, r.PPID, parent)
			}
		}
		switch {
		case n == 0:
			t.Errorf("%s: no record of %s %v to %v of %s[%d]", what, c.Proto, c.Local, c.Remote, r.Path, c.PID)
		case e.reversePayload != "" && (out != c.Sent || in != c.Received):
			t.Errorf("%s %s %v: %d octets out, %d in; the program counted %d and %d", what, c.Proto, c.Local, out, in, c.Sent, c.Received)
		case c.Proto == "udp" && outPkts < c.Out:
			t.Errorf("%s udp %v: %d packets out, the program counted %d datagrams", what, c.Local, outPkts, c.Out)
		}
	}
}

// TestCollectors lets programs talk, and every collector tell who it was.
func TestCollectors(t *testing.T) {
	needRoot(t)
	needTool(t, "ipfixDump")
	a, b := netns(t)
	self, _ := os.Executable()
	for _, p := range []place{
		{"loopback4", "127.0.0.1", "", ""},
		{"loopback6", "::1", "", ""},
		{"veth4", "10.99.0.2", a, b},
		{"veth6", "fd99::2", a, b},
	} {
		t.Run(p.name, func(t *testing.T) {
			stream := newTCPSink(t, "127.0.0.1:0")
			biflow, uniflow, ninth, nativeSink, iana := newUDPSink(t), newUDPSink(t), newUDPSink(t), newUDPSink(t), newUDPSink(t)
			nf, nf9 := newNfcapd(t), newNfcapd(t)
			r := runExporter(t,
				"-c", "tcp://"+stream.l.Addr().String(),
				"-c", fmt.Sprintf("udp://127.0.0.1:%d?template-refresh=1s&domain=7", biflow.port()),
				"-c", fmt.Sprintf("udp://127.0.0.1:%d?direction=uniflow&mtu=1400", uniflow.port()),
				"-c", fmt.Sprintf("netflow9+udp://127.0.0.1:%d", ninth.port()),
				"-c", fmt.Sprintf("udp://127.0.0.1:%d?dialect=native", nativeSink.port()),
				"-c", fmt.Sprintf("udp://127.0.0.1:%d?dialect=iana", iana.port()),
				"-c", fmt.Sprintf("udp://127.0.0.1:%d", nf.port),
				"-c", fmt.Sprintf("netflow9+udp://127.0.0.1:%d", nf9.port),
			)
			var capture *capture
			if p.server != "" {
				capture = startCapture(t, p.server, "sfv1")
			}
			srv := start(t, "bravo-server", p.server, "server", p.ip, "2500")
			ports := srv.next()
			cl := start(t, "alpha-client", p.clientNS, "client", p.ip, strconv.Itoa(ports.TCP), strconv.Itoa(ports.UDP), "6", "40000")
			counts := []*report{cl.end(), srv.end()}
			time.Sleep(300 * time.Millisecond)
			if capture != nil {
				capture.stop()
			}
			r.stop()

			check := func(what string, e *elements, recs []fields) {
				verify(t, what, e, recs, counts[0], true, self)
				verify(t, what, e, recs, counts[1], false, self)
			}
			check("ipfixDump", &known, ipfixDump(t, stream.bytes()))
			flows := goflow2(t, biflow.messages())
			check("goflow2", &known, flows)
			check("goflow2 native", &native, goflow2(t, nativeSink.messages()))
			check("goflow2 v9", &v9, goflow2(t, ninth.messages()))
			sequence(t, biflow.messages())
			sequence(t, uniflow.messages())
			verifyUniflow(t, goflow2(t, uniflow.messages()), counts[0])
			verifyIANA(t, goflow2(t, iana.messages()), counts[0])
			text := tshark(t, biflow.messages())
			for _, want := range []string{"Src process PID: " + strconv.Itoa(counts[0].PID), counts[0].Path, "[Reverse]"} {
				if !strings.Contains(text, want) {
					t.Errorf("tshark does not show %q", want)
				}
			}
			if text := tshark(t, ninth.messages()); !strings.Contains(text, v9.text(counts[0].Path)) {
				t.Errorf("tshark does not show %q in v9", counts[0].Path)
			}
			verifyNfdump(t, "nfdump", nf.stop(), flows)
			verifyNfdump(t, "nfdump v9", nf9.stop(), flows)
			if capture != nil {
				capture.compare(&known, flows, counts, p.ip)
			}
		})
	}
}

// verifyUniflow finds each direction in a record of its own.
func verifyUniflow(t *testing.T, recs []fields, r *report) {
	t.Helper()
	for _, c := range r.Flows {
		var out, in uint64
		for _, f := range recs {
			src, dst := known.endpoints(f)
			switch {
			case sameEnd(c.Local, src) && sameEnd(c.Remote, dst) && f[known.src.pid] == strconv.Itoa(c.PID):
				out += f.number(t, "0:401")
			case sameEnd(c.Local, dst) && sameEnd(c.Remote, src) && f[known.dst.pid] == strconv.Itoa(c.PID):
				in += f.number(t, "0:401")
			}
		}
		if out != c.Sent || in != c.Received {
			t.Errorf("uniflow %s %v: %d octets out, %d in; the program counted %d and %d", c.Proto, c.Local, out, in, c.Sent, c.Received)
		}
	}
}

func verifyIANA(t *testing.T, recs []fields, r *report) {
	t.Helper()
	host, _ := os.Hostname()
	for _, c := range r.Flows {
		found := false
		for _, f := range recs {
			src, dst := known.endpoints(f)
			found = found || sameEnd(c.Local, src) && sameEnd(c.Remote, dst) && f["0:300"] == host && f["0:371"] != ""
		}
		if !found {
			t.Errorf("iana: no record of %v with a user and the host's name", c.Local)
		}
	}
}

// verifyNfdump compares octets and packets of every flow that nfdump read with those that goflow2 read: counters by value, and both
// directions in the right place.
func verifyNfdump(t *testing.T, what string, got []nfFlow, want []fields) {
	t.Helper()
	type key struct{ src, dst netip.AddrPort }
	sum := func(m map[key][4]uint64, k key, v [4]uint64) {
		s := m[k]
		for i := range s {
			s[i] += v[i]
		}
		m[k] = s
	}
	wants, gots := map[key][4]uint64{}, map[key][4]uint64{}
	for _, f := range want {
		src, dst := known.endpoints(f)
		sum(wants, key{src, dst}, [4]uint64{f.number(t, "0:1"), f.number(t, "0:2"), f.number(t, "29305:1"), f.number(t, "29305:2")})
	}
	for _, f := range got {
		s, d := f.Src4, f.Dst4
		if s == "" {
			s, d = f.Src6, f.Dst6
		}
		sa, _ := netip.ParseAddr(s)
		da, _ := netip.ParseAddr(d)
		sum(gots, key{netip.AddrPortFrom(sa, f.SrcPort), netip.AddrPortFrom(da, f.DstPort)}, [4]uint64{f.InBytes, f.InPackets, f.OutBytes, f.OutPackets})
		if first, err := time.ParseInLocation("2006-01-02T15:04:05.000", f.First, time.Local); err != nil || time.Since(first).Abs() > 2*time.Minute {
			t.Errorf("%s: a flow that began %s", what, f.First)
		}
	}
	for k, w := range wants {
		if k.src.Port() == 0 || k.dst.Port() == 0 {
			continue
		}
		if gots[k] != w {
			t.Errorf("%s: %v to %v: %v, want %v", what, k.src, k.dst, gots[k], w)
		}
	}
}

// capture is a tcpdump.
type capture struct {
	t    *testing.T
	file string
	cmd  *exec.Cmd
}

func startCapture(t *testing.T, ns, dev string) *capture {
	t.Helper()
	needTool(t, "tcpdump")
	c := &capture{t: t, file: filepath.Join(t.TempDir(), "capture.pcap")}
	c.cmd = exec.Command("ip", "netns", "exec", ns, "tcpdump", "--immediate-mode", "-i", dev, "-s", "128", "-B", "16384", "-U", "-Z", "root", "-w", c.file)
	var errs syncBuffer
	c.cmd.Stderr = &errs
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.cmd.Process.Kill(); c.cmd.Wait() })
	eventually(t, "tcpdump listens", func() bool { return strings.Contains(errs.String(), "listening on") })
	return c
}

func (c *capture) stop() {
	c.cmd.Process.Signal(syscall.SIGINT)
	c.cmd.Wait()
}

// compare sums octets and packets of the wire and of the records of each end. UDP must agree exactly, TCP within 0.5 %.
func (c *capture) compare(e *elements, recs []fields, counts []*report, server string) {
	c.t.Helper()
	out, err := exec.Command("tshark", "-r", c.file, "-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE", "-T", "fields",
		"-e", "ip.len", "-e", "ipv6.plen", "-e", "ip.proto", "-e", "ipv6.nxt", "-e", "ipv6.fraghdr.nxt", "-e", "ip.src", "-e", "ipv6.src").Output()
	if err != nil {
		c.t.Fatal(err)
	}
	type sums struct{ octets, packets [2]uint64 } // to the server, and back
	wire := map[bool]*sums{true: {}, false: {}}   // TCP, UDP
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimRight(line, "\n"), "\t")
		n, err := strconv.ParseUint(f[0], 10, 64)
		if err != nil {
			if n, err = strconv.ParseUint(f[1], 10, 64); err != nil {
				continue
			}
			n += 40
		}
		proto := f[2] + f[4] // of IPv6 in fragments it is in the fragment header
		if proto == "" {
			proto = f[3]
		}
		if proto != "6" && proto != "17" {
			continue
		}
		back := 0
		if f[5]+f[6] == server {
			back = 1
		}
		wire[proto == "6"].octets[back] += n
		wire[proto == "6"].packets[back]++
	}
	for _, end := range []struct {
		name string
		pid  string
		r    *report
	}{{"connecting", e.src.pid, counts[0]}, {"accepting", e.dst.pid, counts[1]}} {
		got := map[bool]*sums{true: {}, false: {}}
		for _, f := range recs {
			if f[end.pid] != strconv.Itoa(end.r.PID) {
				continue
			}
			s := got[f["0:4"] == "6"]
			s.octets[0] += f.number(c.t, e.octets)
			s.packets[0] += f.number(c.t, e.packets)
			s.octets[1] += f.number(c.t, e.revOctets)
			s.packets[1] += f.number(c.t, e.revPkts)
		}
		if *got[false] != *wire[false] || wire[false].packets[0] == 0 {
			c.t.Errorf("UDP, %s end: %+v, on the wire %+v", end.name, *got[false], *wire[false])
		}
		have, want := got[true].octets[0]+got[true].octets[1], wire[true].octets[0]+wire[true].octets[1]
		off := 100 * (float64(have)/float64(want) - 1)
		c.t.Logf("TCP, %s end: %d octets, on the wire %d: %+.3f %%; packets %v, %v", end.name, have, want, off, got[true].packets, wire[true].packets)
		if off > 0.5 || off < -0.5 {
			c.t.Errorf("TCP octets are off by %+.3f %%", off)
		}
	}
}

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

// TestWorkers: a pre-forked server's flows carry the worker that served them.
func TestWorkers(t *testing.T) {
	needRoot(t)
	r := runExporter(t)
	srv := start(t, "charlie-prefork", "", "workers", "127.0.0.1", "500")
	master := srv.next()
	cl := start(t, "delta-client", "", "client", "127.0.0.1", strconv.Itoa(master.TCP), "0", "20", "100")
	cl.end()
	srv.in.Close()
	var reports []*report
	for range 2 {
		reports = append(reports, srv.next())
	}
	srv.cmd.Wait()
	time.Sleep(200 * time.Millisecond)
	r.stop()
	recs := r.json()
	total := 0
	for _, w := range reports {
		for _, c := range w.Flows {
			total++
			out, in, ends, _ := sumJSON(recs, c)
			if len(ends) != 1 || out != c.Sent || in != c.Received || ends[0].Path != w.Path || int(ends[0].ParentPID) != master.PID {
				t.Errorf("worker %d, %v: %d records, %d and %d octets, want %d and %d", w.PID, c.Remote, len(ends), out, in, c.Sent, c.Received)
			}
		}
	}
	if total != 20 {
		t.Errorf("the workers served %d connections", total)
	}
}

// TestLongFlow: a connection that is older than the exporter appears with its owner and counts from the start; its records
// add up, and the last one is a forced end.
func TestLongFlow(t *testing.T) {
	needRoot(t)
	srv := start(t, "echo-server", "", "server", "127.0.0.1", "0")
	ports := srv.next()
	old := start(t, "foxtrot-old", "", "hold", "127.0.0.1", strconv.Itoa(ports.TCP))
	old.next()
	old.tell() // 1000 octets before the start
	sink := newUDPSink(t)
	r := runExporter(t, "-c", "json:-", "-c", fmt.Sprintf("udp://127.0.0.1:%d", sink.port()), "--active-timeout", "1s", "--snapshot-interval", "500ms")
	young := start(t, "golf-young", "", "hold", "127.0.0.1", strconv.Itoa(ports.TCP))
	young.next()
	for range 8 {
		old.tell()
		young.tell()
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

// TestShortProcesses: processes that live a few milliseconds are named in their flows.
func TestShortProcesses(t *testing.T) {
	needRoot(t)
	r := runExporter(t)
	srv := start(t, "hotel-server", "", "server", "127.0.0.1", "10")
	ports := srv.next()
	const n = 300
	pids := map[uint32]bool{}
	for range n {
		c := exec.Command("nc", "-N", "127.0.0.1", strconv.Itoa(ports.TCP))
		c.Stdin = strings.NewReader("x")
		c.Env = []string{}
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if err := c.Run(); err != nil {
			t.Fatal(err)
		}
		pids[uint32(c.Process.Pid)] = true
	}
	srv.end()
	time.Sleep(200 * time.Millisecond)
	r.stop()
	path, err := exec.LookPath("nc")
	if err != nil {
		t.Fatal(err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		t.Fatal(err)
	}
	self, _ := os.Executable()
	right := 0
	for _, j := range r.json() {
		e := j.SourceEnd
		if e == nil || int(j.DestPort) != ports.TCP || !pids[e.PID] {
			continue
		}
		if e.Path == path && e.Name == "nc" && e.UID != nil && *e.UID == 65534 && int(e.ParentPID) == os.Getpid() && e.ParentPath == self && j.Forward.Payload == 1 && j.Reverse.Payload == 10 {
			right++
		} else {
			t.Errorf("%+v", e)
		}
	}
	t.Logf("%d of %d flows of short processes carry the right pid, path, uid and parent", right, n)
	if right != n {
		t.Errorf("%d of %d", right, n)
	}
}

// TestContainer: the container is known by the control group.
func TestContainer(t *testing.T) {
	needRoot(t)
	root := ""
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.Contains(line, " - cgroup2 ") && f[3] == "/" {
			root = f[4]
			break
		}
	}
	if root == "" {
		t.Fatal("no cgroup2 is mounted")
	}
	id := strings.Repeat("0123456789abcdef", 4)
	dir := filepath.Join(root, "docker", id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		eventually(t, "the control group is empty", func() bool { return os.Remove(dir) == nil })
		os.Remove(filepath.Dir(dir))
	})
	r := runExporter(t)
	srv := start(t, "india-server", "", "server", "127.0.0.1", "10")
	ports := srv.next()
	c := exec.Command("sh", "-c", fmt.Sprintf("echo $$ > %s/cgroup.procs && echo x | exec nc -N 127.0.0.1 %d", dir, ports.TCP))
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	srv.end()
	time.Sleep(200 * time.Millisecond)
	r.stop()
	for _, j := range r.json() {
		if e := j.SourceEnd; e != nil && int(j.DestPort) == ports.TCP {
			if e.Container == nil || e.Container.ID != id || e.Container.Runtime != "docker" {
				t.Errorf("container %+v, want %s", e.Container, id)
			}
			return
		}
	}
	t.Error("no record")
}

// TestCollectorComesBack: a collector that is down stops nothing, and gets records when it is there.
func TestCollectorComesBack(t *testing.T) {
	needRoot(t)
	needTool(t, "ipfixDump")
	addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	r := runExporter(t, "-c", "tcp://"+addr, "-c", "udp://sockflow.invalid:4739", "-c", "json:-", "--reconnect-max", "1s")
	srv := start(t, "juliet-server", "", "server", "127.0.0.1", "10")
	ports := srv.next()
	first := start(t, "kilo-client", "", "client", "127.0.0.1", strconv.Itoa(ports.TCP), "0", "3", "100").end()
	eventually(t, "records are printed", func() bool { return strings.Contains(r.out.String(), "kilo-client") })
	sink := newTCPSink(t, addr)
	eventually(t, "records arrive", func() bool { return bytes.Contains(sink.bytes(), []byte("kilo-client")) })
	srv.end()
	r.stop()
	verify(t, "after reconnect", &known, ipfixDump(t, sink.bytes()), first, true, "")
	for _, want := range []string{"connection refused", "cannot resolve sockflow.invalid"} {
		if n := strings.Count(r.errs.String(), want); n != 1 {
			t.Errorf("%q is said %d times:\n%s", want, n, r.errs.String())
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
			r := &running{t: t, cmd: exec.Command(buildExporter(t), "--source", "auto", "--snapshot-interval", "300ms"), exited: make(chan error, 1)}
			if user == 0 {
				r.cmd.Args[2] = "netlink"
			} else {
				r.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
			}
			r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.errs
			if err := r.cmd.Start(); err != nil {
				t.Fatal(err)
			}
			go func() { r.exited <- r.cmd.Wait() }() // ends with the program
			t.Cleanup(func() { r.cmd.Process.Kill() })
			time.Sleep(time.Second)
			h := start(t, "mike-hold", "", "hold", "127.0.0.1", strconv.Itoa(ports.TCP))
			h.next()
			h.tell()
			time.Sleep(700 * time.Millisecond)
			h.tell()
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
			if user != 0 && (got != 1000 && got != 2000 || !strings.Contains(r.errs.String(), "no permission")) {
				t.Errorf("%d octets\n%s", got, r.errs.String())
			}
		})
	}
}

// TestUsage: one clear line for each mistake.
func TestUsage(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	os.WriteFile(bad, []byte("no-such-key: 1\n"), 0o600)
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"--no-such-flag", 2, "unknown flag"},
		{"nonsense", 2, "unknown command"},
		{"-c http://x", 2, "scheme must be udp"},
		{"-c tls://x:1?ca=/no/such/file", 2, "no such file"},
		{"-c file:", 2, "no path"},
		{"-c udp://h -c udp://h", 2, "given twice"},
		{"--filter nonsense", 2, "want a property"},
		{"-c udp://h?filter=port+x", 2, "no port"},
		{"--aggregate-ports=1ms", 2, "at least 100ms"},
		{"-c udp://h --anonymize /no/such/file", 1, "no such file"},
		{"-c udp://h --policy some", 2, "must be all, failover or hash"},
		{"-c udp://h --spool-size 1k", 2, "at least 1M"},
		{"-c tcp://h --spool /dev/null/x", 2, "not a directory"},
		{"-c zmq://x", 2, "PORT"},
		{"-c udp://", 2, "no host"},
		{"-c udp://h:70000", 2, "port"},
		{"-c udp://h?dialect=french", 2, "must be known, native or iana"},
		{"-c udp://h?speed=1", 2, "unknown; there are"},
		{"--source wire", 2, "must be auto, ebpf, netlink"},
		{"--active-timeout 0s", 2, "at least"},
		{"--max-flows 0", 2, "at least 1"},
		{"--local-pairs both", 2, "must be separate, merge"},
		{"--without-hook nonsense", 2, "must be one of"},

		{"--config /no/such/file", 2, "no such file"},
		{"--config " + bad, 2, "unknown key"},
		{"top --view nonsense", 2, "must be flows"},
		{"doctor extra", 2, "unknown command"},
		{"list extra", 2, "unknown command"},
		{"-c json:/no/such/dir/x", 1, "no such file"},
	} {
		var out, errs bytes.Buffer
		code := execute(append([]string{"exporter"}, strings.Fields(tc.args)...), &out, &errs)
		if code != tc.code || !strings.Contains(errs.String(), tc.want) || strings.Count(errs.String(), "\n") != 1 || out.Len() != 0 {
			t.Errorf("%s: exit %d, %q, %q; want %d, %q", tc.args, code, out.String(), errs.String(), tc.code, tc.want)
		}
	}
}

// TestSettingsOrder: the command line wins over the environment, and that over the file.
func TestSettingsOrder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	os.WriteFile(file, []byte("collector: [udp://a, udp://b]\ndomain: 3\nmax-flows: 5\nidle-timeout: 9s\n"), 0o600)
	t.Setenv("SOCKFLOW_DOMAIN", "4")
	t.Setenv("SOCKFLOW_MAX_FLOWS", "6")
	var s settings
	fs := pflag.NewFlagSet("exporter", pflag.ContinueOnError)
	s.addFlags(fs)
	if err := fs.Parse([]string{"--config", file, "--max-flows", "7"}); err != nil {
		t.Fatal(err)
	}
	if err := s.load(fs); err != nil {
		t.Fatal(err)
	}
	if s.maxFlows != 7 || s.domain != 4 || s.idleTimeout != 9*time.Second || len(s.collectors) != 2 {
		t.Errorf("%+v", s)
	}
}

// TestJSONLines: what is printed is what the documentation says it is.
func TestJSONLines(t *testing.T) {
	var j map[string]any
	b, _ := json.Marshal(toJSON(sampleRecord()))
	if err := json.Unmarshal(b, &j); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"flowStart", "flowEnd", "flowEndReason", "protocol", "sourceAddress", "forward", "reverse", "source", "tcp", "tcpControlBits"} {
		if _, ok := j[key]; !ok {
			t.Errorf("no %s in %s", key, b)
		}
	}
	var table bytes.Buffer
	if err := newTablePrinter(&table).print([]flowcache.Record{*sampleRecord()}); err != nil || !strings.Contains(table.String(), "curl[42] www-data →") {
		t.Errorf("table: %v\n%s", err, table.String())
	}
}

func sampleRecord() *flowcache.Record {
	return &flowcache.Record{
		Key:   flowcache.Key{Src: flowcache.AddrFrom4([4]byte{192, 0, 2, 1}), Dst: flowcache.AddrFrom4([4]byte{192, 0, 2, 2}), SrcPort: 40000, DstPort: 443, Proto: 6},
		Start: 1_700_000_000e9, End: 1_700_000_001e9, EndReason: flowcache.EndDetected, HasTCP: true, Control: 0x1b,
		Source: flowcache.End{Local: true, Process: flowcache.ProcessID{PID: 42}, UID: 33, GID: 33,
			Who: &flowcache.Process{Path: "/usr/bin/curl", UserName: "www-data"}},
	}
}
