package ipfix

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// space is a network namespace of its own, with a loopback interface.
type space struct {
	t  *testing.T
	fd int
}

func newSpace(t *testing.T) *space {
	t.Helper()
	if os.Geteuid() != 0 {
		miss(t, "needs root")
	}
	s := &space{t: t}
	done := make(chan error, 1)
	go func() { // ends at once; its thread too, because it is never unlocked
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(s.fd) })
	s.run("ip", "link", "set", "lo", "up")
	return s
}

// in calls f in the namespace. Sockets that f makes stay in it.
func (s *space) in(f func()) {
	done := make(chan error, 1)
	go func() { // ends with f
		runtime.LockOSThread()
		err := unix.Setns(s.fd, unix.CLONE_NEWNET)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		s.t.Fatal(err)
	}
}

func (s *space) run(args ...string) {
	s.t.Helper()
	s.in(func() {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			s.t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	})
}

// TestPathMTU: where the path MTU shrinks no message is lost: what was made is sent in fragments, what follows is smaller. Where it grows
// again messages do.
func TestPathMTU(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		s := newSpace(t)
		s.run("ip", "link", "set", "lo", "mtu", "2000")
		var c *net.UDPConn
		x := &Exporter{}
		s.in(func() {
			var err error
			if c, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(host)}); err != nil {
				t.Error(err)
				return
			}
			c.SetReadBuffer(4 << 20)
			cfg, err := ParseURL("udp://"+c.LocalAddr().String()+"?max-rate=0", Config{})
			if err != nil {
				t.Error(err)
				return
			}
			if x, err = New(cfg); err != nil {
				t.Error(err)
				return
			}
			if err := x.direct.open(context.Background()); err != nil {
				t.Error(err)
			}
		})
		if t.Failed() {
			return
		}
		defer c.Close()
		u := x.direct.(*udp)
		headers := 28
		if host == "::1" {
			headers = 48
		}
		if u.max != 2000-headers {
			t.Errorf("messages of %d octets", u.max)
		}
		x.open = true
		sent := uint32(0)
		send := func(n int) {
			msg := make([]byte, u.max)
			for range n {
				binary.BigEndian.PutUint32(msg, sent)
				sent++
				x.failed(u.send(msg, 1))
			}
			x.failed(u.flush())
		}
		send(100)
		s.run("ip", "link", "set", "lo", "mtu", "1400")
		send(100)
		if u.max != 1400-headers || x.limit != u.max {
			t.Errorf("messages of %d octets after the path MTU has shrunk", u.max)
		}
		send(100)
		s.run("ip", "link", "set", "lo", "mtu", "1800")
		u.renew()
		if u.max != 1800-headers {
			t.Errorf("messages of %d octets after the path MTU has grown", u.max)
		}
		send(100)
		u.close()
		// Templates come in between, when the size changes.
		buf, next, largest := make([]byte, 65536), uint32(0), 0
		c.SetReadDeadline(time.Now().Add(2 * time.Second))
		for next < sent {
			n, err := c.Read(buf)
			if err != nil {
				t.Fatalf("%s: %d messages of %d arrive: %v", host, next, sent, err)
			}
			largest = max(largest, n)
			if got := binary.BigEndian.Uint32(buf); got == next {
				next++
			} else if binary.BigEndian.Uint16(buf) != 10 {
				t.Fatalf("%s: message %d, want %d", host, got, next)
			}
		}
		if st := x.Stats(); st.DroppedSend != 0 || largest != 2000-headers {
			t.Errorf("%s: %+v, largest %d", host, st, largest)
		}
	}
}

// TestBlackHole: a collector whose answers stop is given up after the send timeout; nothing is lost.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("iptables"); err != nil {
		miss(t, "needs iptables")
	}
	s := newSpace(t)
	var l net.Listener
	s.in(func() {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		return
	}
	c := serve(t, l)
	x := begin(t, "tcp://"+l.Addr().String()+"?send-timeout=1s", Config{Queue: 1 << 20, ReconnectMin: time.Hour, ReconnectMax: time.Hour})
	x.stop()
	cfg, err := ParseURL("tcp://"+l.Addr().String()+"?send-timeout=1s", Config{Queue: 1 << 20, ReconnectMin: 100 * time.Millisecond, ReconnectMax: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if x.Exporter, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	dial := x.stream.dial
	x.stream.dial = func(ctx context.Context) (l *link, err error) {
		s.in(func() { l, err = dial(ctx) })
		return l, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { x.Run(ctx); close(done) }() // ends with ctx
	defer func() { cancel(); <-done }()
	x.give(1000)
	eventually(t, "the first arrive", func() bool { return x.Stats().Backlog == 0 && x.Stats().Encoded == 1000 })
	s.run("iptables", "-A", "INPUT", "-p", "tcp", "-j", "DROP")
	x.give(1000)
	eventually(t, "it is given up", func() bool { return x.Stats().Errors > 0 })
	s.run("iptables", "-F")
	eventually(t, "the rest arrives", func() bool { return x.Stats().Backlog == 0 })
	cancel()
	<-done
	eventually(t, "all is read", func() bool {
		n := 0
		for _, b := range c.streams() {
			n += len(numbers(t, b))
		}
		return n >= 2000
	})
	inOrder(t, c.streams(), 0, 1999)
	x.balance()
}

// names is a name server that answers with one address.
func names(t *testing.T, addr *atomic.Pointer[netip.Addr]) *net.Resolver {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() { // ends with c
		buf := make([]byte, 512)
		for {
			n, from, err := c.ReadFromUDP(buf)
			if err != nil {
				return
			}
			q := buf[:n]
			end := 12
			for end < n && q[end] != 0 {
				end += int(q[end]) + 1
			}
			end += 5
			if end > n {
				continue
			}
			answer := append([]byte{q[0], q[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, q[12:end]...)
			if q[end-3] == 1 { // A
				a := addr.Load().As4()
				answer[7] = 1
				answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
				answer = append(answer, a[:]...)
			}
			c.WriteToUDP(answer, from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", c.LocalAddr().String())
	}}
}

// TestNameMoves: over UDP the name is asked again with each template refresh; over TCP with each connection.
func TestNameMoves(t *testing.T) {
	t.Parallel()
	var addr atomic.Pointer[netip.Addr]
	first, second := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	addr.Store(&first)
	resolver := names(t, &addr)
	a, err := net.ListenUDP("udp", &net.UDPAddr{IP: first.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	port := a.LocalAddr().(*net.UDPAddr).Port
	b, err := net.ListenUDP("udp", &net.UDPAddr{IP: second.AsSlice(), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	_, p, _ := net.SplitHostPort(a.LocalAddr().String())
	begin(t, "udp://collector.test:"+p+"?template-refresh=200ms", Config{resolver: resolver})
	buf := make([]byte, 65536)
	arrives := func(c *net.UDPConn) uint32 {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(buf); err != nil {
			t.Fatal(err)
		}
		return binary.BigEndian.Uint32(buf[8:])
	}
	arrives(a)
	addr.Store(&second)
	if seq := arrives(b); seq != 0 {
		t.Errorf("the new session begins with sequence %d", seq)
	}

	addr.Store(&first)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, p, _ = net.SplitHostPort(l.Addr().String())
	one := serve(t, l)
	l, err = net.Listen("tcp", "127.0.0.2:"+p)
	if err != nil {
		t.Fatal(err)
	}
	two := serve(t, l)
	x := begin(t, "tcp://collector.test:"+p, Config{resolver: resolver})
	x.give(10)
	eventually(t, "they arrive", func() bool { s := one.streams(); return len(s) == 1 && len(numbers(t, s[0])) == 10 })
	addr.Store(&second)
	one.l.Close()
	one.conn.Close()
	x.give(10)
	eventually(t, "they arrive at the new address", func() bool { s := two.streams(); return len(s) == 1 && len(numbers(t, s[0])) == 10 })
}
