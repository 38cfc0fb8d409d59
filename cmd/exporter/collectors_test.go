package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// place is where programs talk: on the loopback, or across a veth pair.
type place struct {
	name, ip         string
	clientNS, server string // network namespaces
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

// TestCollectors runs programs that talk, and checks that every collector names them.
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
