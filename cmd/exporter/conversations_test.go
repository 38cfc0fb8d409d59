package main

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
)

// runWatching runs the exporter and returns when its first pass over all sockets is over: a second one has begun.
func runWatching(t *testing.T, args ...string) *running {
	t.Helper()
	r := runExporter(t, append([]string{"--metrics", "none", "--interface-interval", "0", "--snapshot-interval", "200ms"}, args...)...)
	eventually(t, "a second pass", func() bool {
		r.cmd.Process.Signal(syscall.SIGUSR1)
		_, after, _ := strings.Cut(r.errs.String(), " Snapshots:")
		for after != "" {
			var n int
			fmt.Sscan(after[:strings.IndexAny(after+" ", " }")], &n)
			if n > 1 {
				return true
			}
			_, after, _ = strings.Cut(after, " Snapshots:")
		}
		return false
	})
	return r
}

// oneRecordEach wants one record of each conversation that the clients counted, as they and the server counted it, and none besides.
func oneRecordEach(t *testing.T, recs []jsonRecord, server *report, clients ...*report) {
	t.Helper()
	type conversation struct {
		pid   int
		proto string
		port  uint16
	}
	found := map[conversation]int{}
	for _, j := range recs {
		if j.DestEnd != nil && int(j.DestEnd.PID) == server.PID && j.SourceEnd == nil {
			t.Errorf("of the server's end alone: %s", wayOf(&j))
		}
		if j.SourceEnd != nil {
			found[conversation{int(j.SourceEnd.PID), j.Protocol, j.SourcePort}]++
		}
	}
	type peer struct {
		proto string
		addr  netip.AddrPort
	}
	served := map[peer]counted{} // by the client, as the server saw it
	for _, f := range server.Flows {
		served[peer{f.Proto, f.Remote}] = f
	}
	for _, c := range clients {
		for _, f := range c.Flows {
			if n := found[conversation{c.PID, f.Proto, f.Local.Port()}]; n != 1 {
				t.Errorf("%d records of %s %v to %v", n, f.Proto, f.Local, f.Remote)
			}
		}
	}
	for _, j := range recs {
		for _, c := range clients {
			for _, f := range c.Flows {
				if j.SourceEnd == nil || int(j.SourceEnd.PID) != c.PID || j.Protocol != f.Proto || j.SourcePort != f.Local.Port() {
					continue
				}
				if j.Dest != f.Remote.Addr() || j.DestPort != f.Remote.Port() || !f.Local.Addr().IsUnspecified() && j.Source != f.Local.Addr() ||
					j.Forward.Payload != f.Sent || j.Reverse.Payload != f.Received {
					t.Errorf("%s; the client counted %+v", wayOf(&j), f)
				}
				if j.DestEnd == nil || int(j.DestEnd.PID) != server.PID || j.DestEnd.Path != server.Path || j.SourceEnd.Path != c.Path {
					t.Errorf("%s: ends are %+v and %+v, not %s and %s", wayOf(&j), j.SourceEnd, j.DestEnd, c.Path, server.Path)
				}
				from, to := netip.AddrPortFrom(j.Source, j.SourcePort), f.Remote
				if p := j.PostNAT; p != nil {
					from, to = netip.AddrPortFrom(p.Source, p.SourcePort), netip.AddrPortFrom(p.Dest, p.DestPort)
				}
				if s, ok := served[peer{f.Proto, from}]; !ok || to != s.Local || s.Received != f.Sent || s.Sent != f.Received {
					t.Errorf("%s: the server saw %+v", wayOf(&j), s)
				}
			}
		}
	}
}

// wayOf returns the addresses of a record, with its octets, to be read.
func wayOf(j *jsonRecord) string {
	s := fmt.Sprintf("%s %s to %s: %s %v:%d > %v:%d %d/%d", j.Start, j.Reason, j.End, j.Protocol, j.Source, j.SourcePort, j.Dest, j.DestPort, j.Forward.Payload, j.Reverse.Payload)
	if p := j.PostNAT; p != nil {
		s += fmt.Sprintf(" (%v:%d > %v:%d)", p.Source, p.SourcePort, p.Dest, p.DestPort)
	}
	return s
}
