package main

import (
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What istio-init gives to iptables-restore (tools/istio-iptables), of the table nat.
const istioIptables = `*nat
:ISTIO_INBOUND - [0:0]
:ISTIO_REDIRECT - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN
-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
COMMIT
`

// sidecar is a proxy as Istio's, until its standard input ends: what the rules lead to its port 15001 (of the pod's programs) or 15006 (of others to the
// pod) it brings to where it was to go. It counts what it accepts and, in turn, what it makes of it.
func sidecar() error {
	if err := syscall.Setgid(1337); err != nil {
		return err
	}
	if err := syscall.Setuid(1337); err != nil {
		return err
	}
	r := newReport()
	var mu sync.Mutex
	var wg sync.WaitGroup
	var listeners []net.Listener
	for _, from := range []struct{ port, source string }{{"15001", ""}, {"15006", "127.0.0.6"}} {
		l, err := net.Listen("tcp4", "0.0.0.0:"+from.port)
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
		go func() { // ends with l
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				wg.Add(1)
				go func() { // ends with the connection
					defer wg.Done()
					flows := forward(c.(*net.TCPConn), from.source)
					mu.Lock()
					r.Flows = append(r.Flows, flows...)
					mu.Unlock()
				}()
			}
		}()
	}
	r.print()
	io.Copy(io.Discard, os.Stdin)
	for _, l := range listeners {
		l.Close()
	}
	wg.Wait()
	r.print()
	return nil
}

// forward brings a connection to its original destination, from an address, and returns both as counted.
func forward(c *net.TCPConn, from string) []counted {
	defer c.Close()
	const originalDestination = 80 // SO_ORIGINAL_DST: a struct sockaddr_in
	var to netip.AddrPort
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	raw.Control(func(fd uintptr) {
		if m, err := unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, originalDestination); err == nil {
			a := m.Multiaddr
			to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(a[4:8])), uint16(a[2])<<8|uint16(a[3]))
		}
	})
	d := net.Dialer{}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	o, err := d.Dial("tcp", to.String())
	if err != nil {
		return nil
	}
	defer o.Close()
	pass := func(to, from net.Conn) int64 {
		// Not by splice(2): a proxy reads what it passes on.
		n, _ := io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{from})
		to.(*net.TCPConn).CloseWrite()
		return n
	}
	there := make(chan int64)
	go func() { there <- pass(o, c) }() // ends with the connection
	back := pass(c, o)
	sent := <-there
	return []counted{
		{Proto: "tcp", Local: addrOf(c.LocalAddr()), Remote: addrOf(c.RemoteAddr()), Received: uint64(sent), Sent: uint64(back), PID: os.Getpid()},
		{Proto: "tcp", Local: addrOf(o.LocalAddr()), Remote: addrOf(o.RemoteAddr()), Received: uint64(back), Sent: uint64(sent), PID: os.Getpid()},
	}
}

// TestIstio: a pod's program speaks to another pod's through the proxies of both, to which rules redirect it: three conversations, of which each is one
// record with both ends, the address that was asked, and what that became.
func TestIstio(t *testing.T) {
	a, b := netns(t)
	for _, ns := range []string{a, b} {
		restore(t, ns, istioIptables, "iptables-restore")
	}
	r := runWatching(t)
	near, far := start(t, "envoy", a, "sidecar"), start(t, "envoy", b, "sidecar")
	near.next()
	far.next()
	srv := start(t, "web", b, "server", "10.99.0.2", "77")
	port := srv.next().TCP
	cr := start(t, "shopper", a, "client", "10.99.0.2", strconv.Itoa(port), "0", "3", "900").end()
	nr, fr, sr := near.end(), far.end(), srv.end()
	time.Sleep(500 * time.Millisecond)
	r.stop()
	recs := r.json()
	began := func(r *report) *report { // what a proxy makes of a connection comes after it
		out := *r
		out.Flows = nil
		for i := 1; i < len(r.Flows); i += 2 {
			out.Flows = append(out.Flows, r.Flows[i])
		}
		return &out
	}
	if len(cr.Flows) != 3 || len(nr.Flows) != 6 || len(fr.Flows) != 6 || len(sr.Flows) != 3 {
		t.Fatalf("connections: %+v %+v %+v %+v", cr, nr, fr, sr)
	}
	oneRecordEach(t, recs, nr, cr)
	oneRecordEach(t, recs, fr, began(nr))
	oneRecordEach(t, recs, sr, began(fr))
	ours := map[uint32]bool{uint32(cr.PID): true, uint32(nr.PID): true, uint32(fr.PID): true, uint32(sr.PID): true}
	n := 0
	for _, j := range recs {
		if j.Protocol == "tcp" && (j.SourceEnd != nil && ours[j.SourceEnd.PID] || j.DestEnd != nil && ours[j.DestEnd.PID]) {
			n++
		}
	}
	if n != 9 {
		t.Errorf("%d records of 9 conversations", n)
	}
}
