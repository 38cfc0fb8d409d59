package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// bothFlags are the TCP flags of each direction, by "source destination", as JSON has them.
type bothFlags map[string]uint16

func (b bothFlags) add(src netip.Addr, sport uint16, dst netip.Addr, dport uint16, bits uint16) {
	b[netip.AddrPortFrom(src, sport).String()+" "+netip.AddrPortFrom(dst, dport).String()] |= bits
}

func (b bothFlags) text() map[string]string {
	all := map[string]string{}
	for k, bits := range b {
		all[k] = flags(bits)
	}
	return all
}

// flagBits is what flags made a text of.
func flagBits(text string) (bits uint16) {
	for _, c := range text {
		bits <<= 1
		if c != '.' {
			bits |= 1
		}
	}
	return bits
}

// addRecord adds a record; of a direction that sent nothing there are no flags.
func (b bothFlags) addRecord(r *jsonRecord) {
	if r.Protocol != "tcp" {
		return
	}
	for _, d := range []struct {
		from, to         netip.Addr
		fromPort, toPort uint16
		text             string
	}{{r.Source, r.Dest, r.SourcePort, r.DestPort, r.TCPFlags}, {r.Dest, r.Source, r.DestPort, r.SourcePort, r.TCPBack}} {
		if bits := flagBits(d.text); bits != 0 {
			b.add(d.from, d.fromPort, d.to, d.toPort, bits)
		}
	}
}

// tsharkFlags are those of the TCP packets of a capture; of tunnels and ICMP messages that have others in them, none.
func tsharkFlags(t *testing.T, file string) bothFlags {
	t.Helper()
	needTool(t, "tshark")
	out, err := exec.Command("tshark", "-n", "-r", file, "-T", "fields", "-E", "separator=;", "-E", "occurrence=f", "-e", "frame.protocols", "-e", "ip.src",
		"-e", "ip.dst", "-e", "ipv6.src", "-e", "ipv6.dst", "-e", "tcp.srcport", "-e", "tcp.dstport", "-e", "tcp.flags", "-e", "ip.flags.mf", "-e", "ip.frag_offset").Output()
	if err != nil {
		t.Fatal(err)
	}
	all := bothFlags{}
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimRight(line, "\n"), ";")
		ip := slices.IndexFunc(strings.Split(f[0], ":"), func(l string) bool { return l == "ip" || l == "ipv6" })
		layers := strings.Split(f[0], ":")
		if ip < 0 || ip+1 >= len(layers) || layers[ip+1] != "tcp" || f[7] == "" {
			continue
		}
		src, err1 := netip.ParseAddr(f[1] + f[3])
		dst, err2 := netip.ParseAddr(f[2] + f[4])
		sport, err3 := strconv.ParseUint(f[5], 10, 16)
		dport, err4 := strconv.ParseUint(f[6], 10, 16)
		bits, err5 := strconv.ParseUint(f[7], 0, 16)
		if err1 != nil || err2 != nil || err3 != nil || err4 != nil || err5 != nil {
			continue
		}
		all.add(src, uint16(sport), dst, uint16(dport), uint16(bits&0x1ff))
	}
	return all
}

// TestFlagsOfCaptures: each direction's flags are those of its packets, as tshark has them.
func TestFlagsOfCaptures(t *testing.T) {
	connections := 0
	for _, file := range append(captureFiles(t), allFlags(t)) {
		want, got := tsharkFlags(t, file), bothFlags{}
		for _, r := range jsonLines(t, replayed(t, "-c", "json:-", file)) {
			got.addRecord(&r)
		}
		w, g := want.text(), got.text()
		for k := range g {
			if _, ok := w[k]; !ok {
				delete(g, k) // in a tunnel or in fragments
			}
		}
		for k, v := range w {
			if v == "........." {
				delete(w, k)
			}
		}
		connections += len(w)
		if d := cmp.Diff(w, g); d != "" {
			t.Errorf("%s (-tshark +ours):\n%s", filepath.Base(file), d)
		}
	}
	t.Logf("%d directions", connections)
	if connections < 20 {
		t.Error("too few of them to show anything")
	}
}

func flaggedSegment(src, dst uint16, seq uint32, bits uint16, payload int) []byte {
	b := make([]byte, 20+payload)
	b[0], b[1], b[2], b[3] = byte(src>>8), byte(src), byte(dst>>8), byte(dst)
	b[4], b[5], b[6], b[7] = byte(seq>>24), byte(seq>>16), byte(seq>>8), byte(seq)
	b[12], b[13] = 5<<4|byte(bits>>8), byte(bits)
	return b
}

// allFlags is a capture of two connections, of which each direction has flags that the other has not: of ECN, URG and NS too.
func allFlags(t *testing.T) string {
	var packets [][]byte
	for _, a := range [][2]string{{"192.0.2.1", "198.51.100.7"}, {"2001:db8::1", "2001:db8::2"}} {
		there := func(seq uint32, bits uint16, n int) {
			packets = append(packets, ipPacket(a[0], a[1], 6, flaggedSegment(40000, 443, seq, bits, n)))
		}
		back := func(seq uint32, bits uint16, n int) {
			packets = append(packets, ipPacket(a[1], a[0], 6, flaggedSegment(443, 40000, seq, bits, n)))
		}
		there(100, 0x0c2, 0) // SYN ECE CWR
		back(900, 0x052, 0)  // SYN ACK ECE
		there(101, 0x110, 0) // ACK NS
		back(901, 0x030, 9)  // ACK URG
		there(101, 0x018, 5) // PSH ACK
		there(106, 0x011, 0) // FIN ACK
		back(910, 0x014, 0)  // RST ACK
	}
	return captureOf(t, 101, packets...)
}

// TestUniflowRecords: where records are uniflows there is one for each direction in which a packet passed, and none for another.
func TestUniflowRecords(t *testing.T) {
	reset := flaggedSegment(443, 40000, 900, 0x014, 0)
	silent := captureOf(t, 101, ipPacket("192.0.2.1", "198.51.100.7", 6, reset)) // from a server, as its port says
	for _, file := range append(captureFiles(t), allFlags(t), silent) {
		sink := newUDPSink(t)
		want := map[string]int{}
		for _, r := range jsonLines(t, replayed(t, "-c", "json:-", "-c", fmt.Sprintf("udp://127.0.0.1:%d?direction=uniflow", sink.port()), file)) {
			for _, n := range []uint64{r.Forward.Packets, r.Reverse.Packets} {
				if n > 0 {
					want[strconv.FormatUint(n, 10)]++
				}
			}
		}
		got := map[string]int{}
		eventually(t, "every record is there", func() bool {
			clear(got)
			n := 0
			for _, f := range goflow2(t, sink.messages()) {
				if f["0:2"] != "" {
					got[f["0:2"]]++
					n++
				}
			}
			m := 0
			for _, k := range want {
				m += k
			}
			return n >= m
		})
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: records by their packets (-json +uniflows):\n%s", filepath.Base(file), d)
		}
	}
}

// TestFlagsInCollectors: the flags of each direction as nfdump, goflow2, ipfixDump and collect show them, in biflows and in uniflows.
func TestFlagsInCollectors(t *testing.T) {
	needTool(t, "nfcapd")
	needTool(t, "ipfixDump")
	const there, back = 0x1db, 0x076 // all that allFlags sends
	file := allFlags(t)
	type directions map[string]string
	want := func(uniflow, reverse bool) directions {
		d := directions{}
		for _, v := range []string{"4", "6"} {
			d[v+" 40000"] = strconv.Itoa(there & 0xff)
			if uniflow {
				d[v+" 443"] = strconv.Itoa(back)
			} else if reverse {
				d[v+" 40000 reverse"] = strconv.Itoa(back)
			}
		}
		return d
	}
	check := func(name string, want, got directions) {
		t.Helper()
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	for _, uniflow := range []bool{false, true} {
		option, name := "", "biflow"
		if uniflow {
			option, name = "direction=uniflow", "uniflow"
		}
		for _, v9 := range []string{"", "netflow9+"} {
			n := newNfcapd(t)
			replayed(t, "-c", fmt.Sprintf("%sudp://127.0.0.1:%d?%s", v9, n.port, option), file)
			got := directions{}
			for _, f := range n.stop() {
				v := "4"
				if f.Src6 != "" {
					v = "6"
				}
				bits := 0
				for i, c := range f.Flags { // "CEUAPRSF", or numbers of what has no name
					if c != '.' {
						bits |= 1 << (len(f.Flags) - 1 - i)
					}
				}
				got[fmt.Sprint(v, " ", f.SrcPort)] = strconv.Itoa(bits)
			}
			check("nfdump "+v9+name, want(uniflow, false), got)
		}

		stream := filepath.Join(t.TempDir(), "flows.ipfix")
		replayed(t, "-c", "file:"+stream+"?"+option, file)
		b, err := os.ReadFile(stream)
		if err != nil {
			t.Fatal(err)
		}
		got := directions{}
		for _, f := range ipfixDump(t, b) {
			if f["tcpControlBits"] == "" {
				continue
			}
			v := "4 "
			if f["sourceIPv6Address"] != "" {
				v = "6 "
			}
			number := func(s string) string {
				n, _ := strconv.ParseUint(strings.Fields(s)[0], 0, 16)
				return strconv.FormatUint(n, 10)
			}
			got[v+f["sourceTransportPort"]] = number(f["tcpControlBits"])
			if r := f["reverseTcpControlBits"]; r != "" {
				got[v+f["sourceTransportPort"]+" reverse"] = number(r)
			}
		}
		check("ipfixDump "+name, want(uniflow, true), got)

		var out, errs syncBuffer
		if code := execute([]string{"exporter", "collect", "-o", "json", stream}, &out, &errs); code != 0 {
			t.Fatal(code, errs.String())
		}
		check("collect "+name, want(uniflow, true), jsonDirections(t, out.String(), "sourceTransportPort", "tcpControlBits", "reverseTcpControlBits"))
	}
	t.Run("goflow2", func(t *testing.T) {
		for _, uniflow := range []bool{false, true} {
			c := burstGoflow2(t)
			url := c.url
			if uniflow {
				url += "?direction=uniflow"
			}
			replayed(t, "-c", url, file)
			var got directions
			for end := time.Now().Add(patience()); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				b, _ := os.ReadFile(c.output)
				if got = jsonDirections(t, string(b), "src_port", "tcp_flags", "reverse_tcp_control_bits"); len(got) == 4 {
					break
				}
			}
			check(fmt.Sprint("goflow2, uniflow ", uniflow), want(uniflow, true), got)
		}
	})
}

// jsonDirections reads lines of JSON: the flags of each record, and those of the other direction that are in it.
func jsonDirections(t *testing.T, lines, port, bits, reverse string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for line := range strings.Lines(lines) {
		f := map[string]any{}
		if json.Unmarshal([]byte(line), &f) != nil || f[port] == nil || f[bits] == nil {
			continue
		}
		v := "4"
		if strings.Contains(line, "2001:db8::1") {
			v = "6"
		}
		key := fmt.Sprint(v, " ", f[port])
		all[key] = fmt.Sprint(f[bits])
		if r := f[reverse]; r != nil && fmt.Sprint(r) != "0" {
			all[key+" reverse"] = fmt.Sprint(r)
		}
	}
	return all
}

// TestFlagsOfSockets: the flags of each direction of connections that end in many ways are those that tcpdump saw: of both sockets together, and of
// each alone.
func TestFlagsOfSockets(t *testing.T) {
	needRoot(t)
	needTool(t, "tcpdump")
	for _, pairs := range []string{"merge", "separate"} {
		t.Run(pairs, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			port := l.Addr().(*net.TCPAddr).Port
			closed := freePort(t)
			r := runExporter(t, "--metrics", "none", "--local-pairs", pairs)
			file := filepath.Join(t.TempDir(), "lo.pcap")
			dump := exec.Command("tcpdump", "--immediate-mode", "-i", "lo", "-s", "128", "-U", "-Z", "root", "-w", file, fmt.Sprintf("tcp port %d or tcp port %d", port, closed))
			var errs syncBuffer
			dump.Stderr = &errs
			if err := dump.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { dump.Process.Kill(); dump.Wait() }()
			eventually(t, "tcpdump listens", func() bool { return strings.Contains(errs.String(), "listening on") })

			names := map[string]string{} // of the clients' ports
			for _, c := range flagConnections() {
				if pairs == "separate" && c.both {
					continue
				}
				client, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				server, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				names[strconv.Itoa(client.LocalAddr().(*net.TCPAddr).Port)] = c.name
				c.do(client.(*net.TCPConn), server.(*net.TCPConn))
				client.Close()
				server.Close()
			}
			if _, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", closed)); err == nil {
				t.Fatal("nobody listens there")
			}
			ours := func() bothFlags {
				got := bothFlags{}
				for _, j := range r.json() {
					if p := int(j.DestPort); p == port || p == closed {
						got.addRecord(&j)
					}
				}
				return got
			}
			eventually(t, "every connection has a record", func() bool { return len(ours()) >= 2*(len(names)+1) })
			time.Sleep(2 * time.Second) // of a socket alone, after a while
			dump.Process.Signal(syscall.SIGINT)
			dump.Wait()
			r.stop()
			want := tsharkFlags(t, file)
			if pairs == "merge" {
				if d := cmp.Diff(want.text(), ours().text()); d != "" {
					t.Errorf("%v (-tcpdump +ours):\n%s", names, d)
				}
				return
			}
			for _, j := range r.json() { // each end by itself
				if p := int(j.DestPort); p != port && p != closed {
					continue
				}
				got, part := bothFlags{}, bothFlags{}
				got.addRecord(&j)
				for k := range got {
					part[k] = want[k]
				}
				if d := cmp.Diff(part.text(), got.text()); d != "" && j.Reason == "end" {
					t.Errorf("%s, source is here %t (-tcpdump +ours):\n%s", names[strconv.Itoa(int(j.SourcePort))], j.SourceEnd != nil, d)
				}
			}
		})
	}
}

type flagConnection struct {
	name string
	both bool // one end alone cannot know all
	do   func(client, server *net.TCPConn)
}

// flagConnections end in many ways.
func flagConnections() []flagConnection {
	say := func(from, to *net.TCPConn, n int) {
		from.Write(make([]byte, n))
		io.ReadFull(to, make([]byte, n))
	}
	ended := func(c *net.TCPConn) { c.Read(make([]byte, 1)) } // the other end's FIN or reset is here
	return []flagConnection{
		{"client closes", false, func(c, s *net.TCPConn) { say(c, s, 10); say(s, c, 20); c.Close(); ended(s) }},
		{"server closes", false, func(c, s *net.TCPConn) { say(c, s, 10); say(s, c, 20); s.Close(); ended(c) }},
		{"client speaks", false, func(c, s *net.TCPConn) { say(c, s, 10); c.Close(); ended(s) }},
		{"server speaks", false, func(c, s *net.TCPConn) { say(s, c, 10); s.Close(); ended(c) }},
		{"nobody speaks", false, func(c, s *net.TCPConn) { c.Close(); ended(s) }},
		{"half closed", false, func(c, s *net.TCPConn) { c.CloseWrite(); ended(s); say(s, c, 30); s.Close(); ended(c) }},
		{"client resets", false, func(c, s *net.TCPConn) { say(c, s, 10); c.SetLinger(0); c.Close(); ended(s) }},
		{"server resets", false, func(c, s *net.TCPConn) { say(s, c, 10); s.SetLinger(0); s.Close(); ended(c) }},
		{"server does not read", false, func(c, s *net.TCPConn) {
			c.Write(make([]byte, 10))
			time.Sleep(100 * time.Millisecond)
			s.Close()
			ended(c)
		}},
		// The kernel answers by a reset, of which the client's socket, gone by then, knows nothing.
		{"client is gone", true, func(c, s *net.TCPConn) {
			say(c, s, 10)
			c.Close()
			ended(s)
			s.Write(make([]byte, 10))
			time.Sleep(100 * time.Millisecond)
		}},
	}
}
