package main

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

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
