package sockdiag

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockflow/sockflow/flowcache"
)

// counted is what a capture counts from one port to another.
type counted struct{ packets, octets uint64 }

// capture counts the IPv4 TCP packets of the loopback as they arrive, by their two ports.
type capture struct {
	mu     sync.Mutex
	counts map[[2]uint16]counted
}

func startCapture(t *testing.T) *capture {
	t.Helper()
	needRoot(t)
	const all = 3 // ETH_P_ALL
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all<<8)
	if err != nil {
		t.Fatal(err)
	}
	lo, err := net.InterfaceByName("lo")
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all << 8, Ifindex: lo.Index})
	}
	if err != nil {
		t.Fatal(err)
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})
	c := &capture{counts: map[[2]uint16]counted{}}
	stop, done := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(stop); <-done; unix.Close(fd) })
	go func() { // ends with the test
		defer close(done)
		b := make([]byte, 128<<10)
		for {
			select {
			case <-stop:
				return
			default:
			}
			n, from, err := unix.Recvfrom(fd, b, 0)
			if l, ok := from.(*unix.SockaddrLinklayer); err != nil || !ok || l.Pkttype != unix.PACKET_HOST || n < 40 || b[0]>>4 != 4 || b[9] != unix.IPPROTO_TCP {
				continue
			}
			header := int(b[0]&15) * 4
			k := [2]uint16{binary.BigEndian.Uint16(b[header:]), binary.BigEndian.Uint16(b[header+2:])}
			c.mu.Lock()
			was := c.counts[k]
			c.counts[k] = counted{was.packets + 1, was.octets + uint64(binary.BigEndian.Uint16(b[2:]))}
			c.mu.Unlock()
		}
	}()
	return c
}

func (c *capture) from(src, dst uint16) counted {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[[2]uint16{src, dst}]
}

// watching is a source that runs, and the last observation of each socket.
type watching struct {
	mu   sync.Mutex
	last map[[2]uint16]flowcache.Observation // by local and remote port
	seen map[[2]uint16]int
	back map[uint16]string // totals that went back, by local port
}

func watchSockets(t *testing.T) *watching {
	t.Helper()
	src, err := New(Config{Interval: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	out := make(chan *flowcache.Batch)
	done := make(chan error, 1)
	go func() { done <- src.Run(ctx, out); close(out) }() // ends with ctx
	w := &watching{last: map[[2]uint16]flowcache.Observation{}, seen: map[[2]uint16]int{}, back: map[uint16]string{}}
	collected := make(chan struct{})
	go func() { // ends with the source
		defer close(collected)
		for b := range out {
			w.mu.Lock()
			for _, o := range b.Observations {
				if o.Event == flowcache.EventListen || o.Key.Proto != flowcache.ProtoTCP {
					continue
				}
				k := [2]uint16{o.Key.SrcPort, o.Key.DstPort}
				was, again := w.last[k]
				if w.seen[k]++; was.Event == flowcache.EventEnd && was.Cookie == o.Cookie {
					continue // a pass that began before it
				}
				if again && was.Cookie == o.Cookie && (o.Out.Packets < was.Out.Packets || o.Out.Octets < was.Out.Octets) && o.Time >= was.Time {
					w.back[o.Key.SrcPort] = fmt.Sprintf("%v went back from %+v to %+v", k, was.Out, o.Out)
				}
				w.last[k] = o
			}
			w.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		<-collected
	})
	eventually(t, "a first pass", func() bool { return src.Stats().Passes > 0 }) // then it hears of ends too
	return w
}

// of returns the last observation of a socket, and how many there were.
func (w *watching) of(local, remote uint16) (flowcache.Observation, int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := [2]uint16{local, remote}
	return w.last[k], w.seen[k]
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not in 20 s: %s", what)
}

// caughtUp waits until the capture has read what the kernel has counted.
func (c *capture) caughtUp(t *testing.T, o *flowcache.Observation) (out, in counted) {
	t.Helper()
	eventually(t, "the capture has as many packets", func() bool {
		out, in = c.from(o.Key.SrcPort, o.Key.DstPort), c.from(o.Key.DstPort, o.Key.SrcPort)
		return out.packets >= o.Out.Packets && in.packets >= o.In.Packets
	})
	return out, in
}

func portOf(a net.Addr) uint16 { return uint16(a.(*net.TCPAddr).Port) }

// TestPackets: packets and octets of both ends are what a capture counts: of connections older and younger than the
// source, pass after pass, when they end, and where the listener that accepted them ended before.
func TestPackets(t *testing.T) {
	wire := startCapture(t)
	type connection struct {
		name           string
		client, server *net.TCPConn
		l              net.Listener
	}
	talk := func(name string) connection {
		c, s, l := pair(t, "127.0.0.1:0")
		c.Write(make([]byte, 500))
		s.Write(make([]byte, 77))
		buf := make([]byte, 1000)
		for n := 0; n < 500; {
			m, err := s.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			n += m
		}
		c.Read(buf)
		return connection{name, c, s, l}
	}
	older := talk("older")
	older.l.Close()
	listening := talk("older, and still listening")
	w := watchSockets(t)
	eventually(t, "a first pass", func() bool {
		_, n := w.of(portOf(listening.server.LocalAddr()), portOf(listening.client.LocalAddr()))
		return n > 0
	})
	all := []connection{listening, talk("younger"), talk("younger, whose listener ends")}
	check := func(what string) {
		t.Helper()
		for _, c := range all {
			client, server := portOf(c.client.LocalAddr()), portOf(c.server.LocalAddr())
			for _, end := range []struct {
				name       string
				local, far uint16
			}{{"client", client, server}, {"server", server, client}} {
				o, _ := w.of(end.local, end.far)
				out, in := wire.caughtUp(t, &o)
				if o.Out.Packets != out.packets || o.Out.Octets != out.octets || o.In.Packets != in.packets || o.In.Octets != in.octets {
					t.Errorf("%s, %s, %s: out %d packets, %d octets, in %d, %d; the capture has %+v and %+v", c.name, end.name, what,
						o.Out.Packets, o.Out.Octets, o.In.Packets, o.In.Octets, out, in)
				}
			}
		}
	}
	passes := func(n int) {
		t.Helper()
		for _, c := range all {
			client, server := portOf(c.client.LocalAddr()), portOf(c.server.LocalAddr())
			_, before := w.of(client, server)
			_, before2 := w.of(server, client)
			eventually(t, "more passes", func() bool {
				_, now := w.of(client, server)
				_, now2 := w.of(server, client)
				return now >= before+n && now2 >= before2+n
			})
		}
	}
	passes(3)
	check("after some passes")
	all[2].l.Close()
	passes(3)
	check("and some more")
	// The client closes first, then the server, whose counters are then all its own.
	for _, c := range all {
		client, server := portOf(c.client.LocalAddr()), portOf(c.server.LocalAddr())
		c.client.CloseWrite()
		buf := make([]byte, 10)
		for {
			if _, err := c.server.Read(buf); err != nil {
				break
			}
		}
		c.server.Close()
		c.client.Close()
		eventually(t, "its end", func() bool { o, _ := w.of(server, client); return o.Event == flowcache.EventEnd })
		o, _ := w.of(server, client)
		out, in := wire.caughtUp(t, &o)
		if o.Out.Packets != out.packets || o.Out.Octets != out.octets || o.In.Packets != in.packets || o.In.Octets != in.octets || o.Role != flowcache.RoleResponder {
			t.Errorf("%s, server, at its end: role %d, out %d packets, %d octets, in %d, %d; the capture has %+v and %+v", c.name, o.Role,
				o.Out.Packets, o.Out.Octets, o.In.Packets, o.In.Octets, out, in)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range all {
		for _, end := range []net.Addr{c.client.LocalAddr(), c.server.LocalAddr()} {
			if line := w.back[portOf(end)]; line != "" {
				t.Errorf("%s: %s", c.name, line)
			}
		}
	}
}

// TestUnknownUser: a connection that no process has any more, which closed it and still waits for its peer, is not
// root's: its user is not known, unless the kernel says who it was.
func TestUnknownUser(t *testing.T) {
	needRoot(t)
	w := watchSockets(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := portOf(l.Addr())
	const nobody = 65534
	local := make(chan uint16, 1)
	go func() { // a thread of another user, which ends with the goroutine
		runtime.LockOSThread()
		for _, call := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
			if _, _, errno := unix.RawSyscall(call, nobody, nobody, nobody); errno != 0 {
				t.Error(errno)
			}
		}
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(s, &unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}})
		}
		if err != nil {
			t.Error(err)
		}
		name, _ := unix.Getsockname(s)
		unix.Close(s)
		local <- uint16(name.(*unix.SockaddrInet4).Port)
	}()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	client := <-local
	check := func(what string) {
		t.Helper()
		if o, _ := w.of(client, port); o.UID != nobody && o.UID != flowcache.NoID || o.Inode != 0 {
			t.Errorf("%s: user %d, inode %d", what, int32(o.UID), o.Inode)
		} else {
			t.Logf("%s: user %d", what, int32(o.UID))
		}
	}
	if _, n := w.of(client, port); n > 0 {
		check("waiting for its peer")
	}
	eventually(t, "the server's end has its user, now that it is accepted", func() bool {
		o, _ := w.of(port, client)
		return o.UID == uint32(os.Geteuid()) && o.Inode != 0
	})
	s.Close()
	eventually(t, "its end", func() bool { o, _ := w.of(client, port); return o.Event == flowcache.EventEnd })
	check("at its end")
}
