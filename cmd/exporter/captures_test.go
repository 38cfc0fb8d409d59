package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// captureOf writes a pcap file of packets of one link type, a millisecond apart.
func captureOf(t *testing.T, link uint32, packets ...[]byte) string {
	t.Helper()
	b := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	b = append(b, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, 65535)
	b = binary.LittleEndian.AppendUint32(b, link)
	for i, p := range packets {
		b = binary.LittleEndian.AppendUint32(b, 1_700_000_000)
		b = binary.LittleEndian.AppendUint32(b, uint32(i)*1000)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(p)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	file := filepath.Join(t.TempDir(), "capture.pcap")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// ipPacket puts an IP header before what it carries; of IPv6 where addresses are, IPv4-mapped ones included.
func ipPacket(src, dst string, proto uint8, in []byte) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	var h []byte
	if s.Is4() {
		h = []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto, 0, 0}
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(in)))
		h = append(append(h, s.AsSlice()...), d.AsSlice()...)
	} else {
		h = []byte{0x60, 0, 0, 0, 0, 0, proto, 64}
		binary.BigEndian.PutUint16(h[4:], uint16(len(in)))
		s16, d16 := s.As16(), d.As16()
		h = append(append(h, s16[:]...), d16[:]...)
	}
	return append(h, in...)
}

func udpDatagram(src, dst uint16, payload int) []byte {
	b := binary.BigEndian.AppendUint16(nil, src)
	b = binary.BigEndian.AppendUint16(b, dst)
	b = binary.BigEndian.AppendUint16(b, uint16(8+payload))
	return append(b, make([]byte, 2+payload)...)
}

// TestCapturesOfOtherLinks compares packets and octets of every 5-tuple with tshark's: links whose header names another
// link, and IPv6 between IPv4-mapped addresses, which is not IPv4.
func TestCapturesOfOtherLinks(t *testing.T) {
	needTool(t, "tshark")
	v4 := ipPacket("192.0.2.1", "198.51.100.7", 17, udpDatagram(1000, 9999, 20))
	back := ipPacket("198.51.100.7", "192.0.2.1", 17, udpDatagram(9999, 1000, 200))
	v6 := ipPacket("2001:db8::1", "2001:db8::2", 17, udpDatagram(1000, 9999, 30))
	mapped := ipPacket("::ffff:192.0.2.1", "::ffff:198.51.100.7", 17, udpDatagram(1000, 9999, 40))
	eth := func(ether uint16, p []byte) []byte {
		return append(binary.BigEndian.AppendUint16([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}, ether), p...)
	}
	ppi := func(link byte, p []byte) []byte { return append([]byte{0, 0, 8, 0, link, 0, 0, 0}, p...) }
	pktap := func(link byte, p []byte) []byte {
		h := make([]byte, 108)
		h[0], h[4], h[8] = 108, 1, link
		return append(h, p...)
	}
	for name, c := range map[string]struct {
		link    uint32
		packets [][]byte
	}{
		"ipv4-mapped": {101, [][]byte{v4, mapped, back, mapped}},
		"ppi":         {192, [][]byte{ppi(1, eth(0x0800, v4)), ppi(1, eth(0x86dd, v6)), ppi(101, v4)}},
		"pktap":       {258, [][]byte{pktap(1, eth(0x0800, v4)), pktap(1, eth(0x86dd, v6)), pktap(101, back)}},
	} {
		file := captureOf(t, c.link, c.packets...)
		if diff := cmp.Diff(tsharkTuples(t, file), tuples(t, jsonLines(t, replayed(t, "-c", "json:-", file)))); diff != "" {
			t.Errorf("%s (-tshark +ours):\n%s", name, diff)
		}
	}
}

// TestCapturesOfCiscoTunnels: what GRE carries after Cisco's metadata, and WCCP with its redirect header, is what
// tshark finds innermost.
func TestCapturesOfCiscoTunnels(t *testing.T) {
	needTool(t, "tshark")
	gre := func(proto uint16, header, in []byte) []byte {
		return ipPacket("192.0.2.1", "198.51.100.7", 47, append(append(binary.BigEndian.AppendUint16([]byte{0, 0}, proto), header...), in...))
	}
	inner := func(i int) []byte {
		return ipPacket(fmt.Sprintf("10.0.0.%d", i), "10.0.1.1", 17, udpDatagram(1000, 9999, 10*i))
	}
	file := captureOf(t, 101, gre(0x8909, []byte{8, 0, 1, 1, 0, 1, 0, 7}, inner(1)), gre(0x883e, nil, inner(2)), gre(0x883e, []byte{0, 0, 0, 0}, inner(3)))
	out, err := exec.Command("tshark", "-n", "-r", file, "-T", "fields", "-E", "occurrence=l", "-e", "ip.src", "-e", "udp.srcport", "-e", "ip.len").Output()
	if err != nil {
		t.Fatal(err)
	}
	var ours []string
	for _, r := range jsonLines(t, replayed(t, "--decap", "-c", "json:-", file)) {
		ours = append(ours, fmt.Sprintf("%s\t%d\t%d", r.Source, r.SourcePort, r.Forward.Octets))
	}
	slices.Sort(ours)
	if diff := cmp.Diff(strings.Fields(string(out)), strings.Fields(strings.Join(ours, " "))); diff != "" {
		t.Errorf("(-tshark +ours)\n%s", diff)
	}
}

// TestUnreadLinkTypes: the summary names them.
func TestUnreadLinkTypes(t *testing.T) {
	var out, errs bytes.Buffer
	if code := execute([]string{"exporter", "replay", captureOf(t, 189, make([]byte, 80), make([]byte, 80))}, &out, &errs); code != 0 {
		t.Fatal(code, errs.String())
	}
	if !strings.Contains(errs.String(), `unknown_link=2 link_types="189 USB_LINUX: 2"`) {
		t.Error(errs.String())
	}
}

// TestReplayOfSilentPipe: replay of a pipe that says nothing ends at SIGTERM and SIGINT, before the first packet and
// after one, and so does that of a named pipe that has no writer; what was read is reported.
func TestReplayOfSilentPipe(t *testing.T) {
	file, err := os.ReadFile(captureOf(t, 101, ipPacket("192.0.2.1", "198.51.100.7", 17, udpDatagram(1000, 9999, 20))))
	if err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		say     []byte
		from    string
		signal  os.Signal
		records int
	}{
		{"nothing yet", nil, "-", syscall.SIGTERM, 0}, {"after the file's header", file[:24], "-", syscall.SIGINT, 0},
		{"after a packet", file, "-", syscall.SIGTERM, 1}, {"within a packet", file[:50], "-", syscall.SIGINT, 0}, {"no writer", nil, fifo, syscall.SIGTERM, 0},
	} {
		cmd := exec.Command(buildExporter(t), "replay", "-c", "json:-", c.from)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		r := launch(t, cmd)
		if _, err := in.Write(c.say); err != nil {
			t.Fatal(err)
		}
		// It has read what there is, and waits.
		eventually(t, c.name+": it polls", func() bool {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", cmd.Process.Pid))
			fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/wchan", cmd.Process.Pid))
			for _, f := range fds {
				if w, _ := os.ReadFile(f); strings.Contains(string(w), "poll_schedule") {
					return true
				}
			}
			return err == nil && strings.Contains(string(b), "poll_schedule")
		})
		cmd.Process.Signal(c.signal)
		select {
		case err := <-r.exited:
			if err != nil {
				t.Errorf("%s: %v\n%s", c.name, err, r.errs.String())
			}
		case <-time.After(patience()):
			t.Fatalf("%s: it does not end", c.name)
		}
		if n := strings.Count(r.out.String(), "\n"); n != c.records || strings.Contains(r.errs.String(), "cut short") {
			t.Errorf("%s: %d records, want %d\n%s", c.name, n, c.records, r.errs.String())
		}
		in.Close()
	}
}

// TestReplaySlowly: a speed at which the next packet is due in thousands of years waits for it, and does not take it at once.
func TestReplaySlowly(t *testing.T) {
	one := ipPacket("192.0.2.1", "198.51.100.7", 17, udpDatagram(1000, 9999, 20))
	other := ipPacket("192.0.2.2", "198.51.100.7", 17, udpDatagram(1000, 9999, 20))
	r := launch(t, exec.Command(buildExporter(t), "replay", "--speed", "1e-15", "--idle-timeout", "1s", "-c", "json:-", captureOf(t, 101, one, other)))
	begun := time.Now()
	for time.Since(begun) < time.Second { // it would have taken it in the first millisecond
		select {
		case err := <-r.exited:
			t.Fatalf("it ended: %v\n%s", err, r.out.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
	r.cmd.Process.Signal(syscall.SIGTERM)
	if err := <-r.exited; err != nil || strings.Count(r.out.String(), "\n") != 1 {
		t.Errorf("%v\n%s", err, r.out.String())
	}
}

// TestReplayFlags: what is no number is no speed, and the value of a flag that may stand alone is not taken for a file.
func TestReplayFlags(t *testing.T) {
	file := captureOf(t, 101)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"replay", "--speed", "nan", file}, "--speed NaN: must be a number that is not negative"},
		{[]string{"replay", "--speed", "+inf", file}, "--speed +Inf: must be a number"},
		{[]string{"replay", "--speed", "-1", file}, "--speed -1: must be a number"},
		{[]string{"replay", "--aggregate-ports", "1m", file}, "--aggregate-ports 1m: write --aggregate-ports=1m"},
		{[]string{"replay", file, "--aggregate-ports", "30s"}, "--aggregate-ports 30s: write --aggregate-ports=30s"},
		{[]string{"run", "--aggregate-ports", "5m"}, "--aggregate-ports 5m: write --aggregate-ports=5m"},
		{[]string{"--aggregate-ports", "5m"}, "--aggregate-ports 5m: write --aggregate-ports=5m"},
	} {
		var out, errs bytes.Buffer
		if code := execute(append([]string{"exporter"}, c.args...), &out, &errs); code != 2 || !strings.Contains(errs.String(), c.want) {
			t.Errorf("%v: exit status %d: %s", c.args, code, errs.String())
		}
	}
}
