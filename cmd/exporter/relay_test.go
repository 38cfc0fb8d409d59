package main

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
)

// relay listens, and passes what one connection brings on to addr, as docker-proxy does: by splice(2), which is what io.Copy makes of it.
func relay(addr string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	r := newReport()
	r.TCP = l.Addr().(*net.TCPAddr).Port
	r.print()
	c, err := l.Accept()
	if err != nil {
		return err
	}
	o, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	io.Copy(o, c)
	o.(*net.TCPConn).CloseWrite()
	io.Copy(c, o)
	o.Close()
	c.Close()
	io.Copy(io.Discard, os.Stdin)
	r.print()
	return nil
}

// TestRelayed: the records of a connection that lives, and whose process only passes on what it brings, have that process.
func TestRelayed(t *testing.T) {
	needRoot(t)
	srv := start(t, "relay-server", "", "server", "127.0.0.1", "10")
	r := runExporter(t, "--metrics", "none", "--interface-interval", "0", "--active-timeout", "1s", "--snapshot-interval", "200ms")
	rel := start(t, "relay", "", "relay", "127.0.0.1:"+strconv.Itoa(srv.next().TCP))
	rr := rel.next()
	cl := start(t, "relay-client", "", "hold", "127.0.0.1", strconv.Itoa(rr.TCP))
	cl.next()
	eventually(t, "a record of the connection, with the process that relays it", func() bool {
		cl.advance()
		for line := range strings.Lines(r.out.String()) {
			var j jsonRecord
			if strings.HasSuffix(line, "\n") && json.Unmarshal([]byte(line), &j) == nil && j.Protocol == "tcp" && int(j.DestPort) == rr.TCP &&
				j.DestEnd != nil && int(j.DestEnd.PID) == rr.PID && j.DestEnd.Path == rr.Path {
				return true
			}
		}
		return false
	})
	c := cl.end().Flows[0]
	rel.end()
	srv.end()
	r.stop()
	var octets uint64
	for _, j := range r.json() {
		if j.Protocol == "tcp" && int(j.DestPort) == rr.TCP {
			octets += j.Forward.Payload
		}
	}
	if octets != c.Sent {
		t.Errorf("%d octets, the program sent %d", octets, c.Sent)
	}
}
