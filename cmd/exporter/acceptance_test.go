package main

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestAcceptance is what must hold on every kernel, by eBPF: sockets of every kind are reported with their owner and
// their payload, and a conversation with both ends here is one record. It needs no tool but itself: it runs in virtual
// machines too.
func TestAcceptance(t *testing.T) {
	needRoot(t)
	args := strings.Fields(os.Getenv("SOCKFLOW_ARGS"))
	netlink := slices.Contains(args, "netlink")
	r := runExporter(t, append(args, "--snapshot-interval", "1s", "--audit-interval", "2s")...)
	t.Log(r.errs.String())
	acceptance(t, r, netlink || strings.Contains(r.errs.String(), "metering by netlink"), func() {
		eventually(t, "metrics", func() bool { return strings.Contains(r.errs.String(), "metrics are served") })
		eventually(t, "MPTCP is noticed", func() bool { return sum(scrape(t, 9469), "sockflow_hook_attached", `"subflow_state"`) == 1 })
	})
}

// acceptance makes traffic of every kind, stops the exporter, and compares its records with what the programs counted.
func acceptance(t *testing.T, r *running, netlink bool, mptcpNoticed func()) {
	t.Helper()
	os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0)
	if old, err := os.ReadFile("/proc/sys/net/ipv4/tcp_fastopen"); err == nil {
		os.WriteFile("/proc/sys/net/ipv4/tcp_fastopen", []byte("3"), 0)
		t.Cleanup(func() { os.WriteFile("/proc/sys/net/ipv4/tcp_fastopen", old, 0) })
	}
	var names []string
	for name := range kinds {
		names = append(names, name)
	}
	sort.Strings(names)
	reports := map[string]*report{}
	// The program for MPTCP is attached when the first such connection is seen, which may be over by then.
	opener := start(t, "kind-opener", "", "kind", "mptcp")
	var opened report
	if err := opener.out.Decode(&opened); err == nil && !netlink {
		mptcpNoticed()
	}
	opener.in.Close()
	opener.cmd.Wait()
	for _, name := range names {
		p := start(t, "kind-"+name, "", "kind", name)
		var rep report
		if err := p.out.Decode(&rep); err == nil {
			reports[name] = &rep
		} else {
			reports[name] = nil
		}
		p.in.Close()
		p.cmd.Wait()
	}
	prefork := start(t, "kind-prefork", "", "workers", "127.0.0.1", "500")
	master := prefork.next()
	start(t, "kind-client", "", "client", "127.0.0.1", strconv.Itoa(master.TCP), "0", "10", "100").end()
	prefork.in.Close()
	reports["prefork"], reports["prefork2"] = prefork.next(), prefork.next()
	time.Sleep(time.Second)
	r.stop()
	recs := r.json()

	for name, rep := range reports {
		t.Run(name, func(t *testing.T) {
			if rep == nil {
				t.Log("this kernel does not have it")
				return
			}
			for _, c := range rep.Flows {
				if netlink {
					netlinkFlow(t, recs, c)
					continue
				}
				out, in, ends, _ := sumJSON(recs, c)
				switch {
				case len(ends) == 0:
					t.Errorf("no record of %+v", c)
					continue
				case out != c.Sent || in != c.Received:
					t.Errorf("%d octets out, %d in, the program counted %+v", out, in, c)
				}
				for _, e := range ends {
					if e.PID == uint32(rep.PID) && e.Path != rep.Path {
						t.Errorf("path %q, want %q", e.Path, rep.Path)
					}
				}
			}
			if netlink {
				return
			}
			merged := map[string]int{}
			for _, j := range recs {
				if j.SourceEnd != nil && j.DestEnd != nil && int(j.SourceEnd.PID) == rep.PID && j.Reason != "active" {
					merged[j.Protocol]++
				}
			}
			switch name {
			case "ping":
				if older(t, 6, 2) {
					break // a hook of a socket cannot see there that it is the kernel's
				}
				for _, j := range recs {
					if j.SourceEnd != nil && int(j.SourceEnd.PID) == rep.PID && (j.DestEnd == nil || !j.DestEnd.Kernel || j.DestEnd.Path != "[kernel]") {
						t.Errorf("who answers is not the kernel: %+v", j.DestEnd)
					}
				}
			case "connections", "ipv6", "mapped", "aborted", "fastopen", "mptcp", "unused":
				if got := merged["tcp"]; got != len(rep.Flows)/2 {
					t.Errorf("%d records with both ends of %d connections", got, len(rep.Flows)/2)
				}
			case "refused":
				for _, j := range recs {
					if j.SourceEnd != nil && int(j.SourceEnd.PID) == rep.PID && (j.TCP.Error != uint16(syscall.ECONNREFUSED) || strings.Contains(j.TCPFlags, "R") || !strings.Contains(j.TCPBack, "R")) {
						t.Errorf("error %d, flags %s and back %s", j.TCP.Error, j.TCPFlags, j.TCPBack)
					}
				}
			case "gso", "zero", "udplite", "broadcast":
				for _, j := range recs {
					if j.SourceEnd != nil && int(j.SourceEnd.PID) == rep.PID && (j.Forward.Packets != rep.Flows[0].Out || j.DestEnd == nil) {
						t.Errorf("%d packets, %d were sent; other end %+v", j.Forward.Packets, rep.Flows[0].Out, j.DestEnd)
					}
				}
			}
		})
	}
}

// netlinkFlow checks what the netlink mode can report: established connections, by their addresses. It cannot report
// the owner of a short one, nor, where this end closed first, whether the last octet received was the FIN.
func netlinkFlow(t *testing.T, recs []jsonRecord, c counted) {
	t.Helper()
	if c.Proto != "tcp" || c.Sent+c.Received == 0 {
		return
	}
	var out, in uint64
	n := 0
	for _, j := range recs {
		src, dst := netip.AddrPortFrom(j.Source, j.SourcePort), netip.AddrPortFrom(j.Dest, j.DestPort)
		switch {
		case src == c.Local && dst == c.Remote:
			n, out, in = n+1, out+j.Forward.Payload, in+j.Reverse.Payload
		case dst == c.Local && src == c.Remote:
			n, out, in = n+1, out+j.Reverse.Payload, in+j.Forward.Payload
		}
	}
	if n == 0 || c.Sent-out > 1 || c.Received-in > 1 {
		t.Errorf("%d records, %d octets out, %d in, the program counted %+v", n, out, in, c)
	}
}

// older reports whether the kernel is before a version.
func older(t *testing.T, major, minor int) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	var a, c int
	if _, err := fmt.Sscanf(string(b), "%d.%d", &a, &c); err != nil {
		t.Fatal(err)
	}
	return a < major || a == major && c < minor
}
