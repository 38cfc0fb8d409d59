package sockdiag

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ROOT") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// pair is a connection on the loopback.
func pair(t testing.TB, addr string) (client, server *net.TCPConn, l net.Listener) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn), l
}

func TestEachCountsAsTheProgram(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		c, s, l := pair(t, addr)
		c.Write(make([]byte, 12345))
		buf := make([]byte, 12345)
		for n := 0; n < len(buf); {
			m, err := s.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			n += m
		}
		s.Write(make([]byte, 77))
		c.Read(buf)
		u, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		src, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]flowcache.Observation{}
		port := func(a net.Addr) uint16 {
			switch a := a.(type) {
			case *net.TCPAddr:
				return uint16(a.Port)
			case *net.UDPAddr:
				return uint16(a.Port)
			}
			return 0
		}
		if err := src.Each(func(o *flowcache.Observation) {
			switch {
			case o.Key.Proto == flowcache.ProtoTCP && o.Key.SrcPort == port(c.LocalAddr()) && o.Key.DstPort == port(l.Addr()):
				found["client"] = *o
			case o.Key.Proto == flowcache.ProtoTCP && o.Key.DstPort == port(c.LocalAddr()):
				found["server"] = *o
			case o.TCP.State == flowcache.TCPListen && o.Key.SrcPort == port(l.Addr()):
				found["listener"] = *o
			case o.Key.Proto == flowcache.ProtoUDP && o.Key.SrcPort == port(u.LocalAddr()):
				found["udp"] = *o
			}
		}); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"client", "server", "listener", "udp"} {
			if o, ok := found[want]; !ok || o.Cookie == 0 || o.UID != uint32(os.Geteuid()) || o.Inode == 0 || o.Key.NetNS == 0 {
				t.Errorf("%s %s: %+v", addr, want, o)
			}
		}
		if o := found["client"]; o.Out.Payload != 12345 || o.In.Payload != 77 || o.TCP.State != flowcache.TCPEstablished || o.Out.Packets == 0 || o.Out.Octets <= 12345 {
			t.Errorf("%s client: %+v", addr, o)
		}
		if o := found["server"]; o.In.Payload != 12345 || o.Out.Payload != 77 {
			t.Errorf("%s server: %+v", addr, o)
		}
	}
}

func TestRunTellsEndsAndNamespaces(t *testing.T) {
	needRoot(t)
	ns := fmt.Sprintf("sd%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
	c, s, _ := pair(t, "127.0.0.1:0") // older than the source
	c.Write(make([]byte, 500))
	src, err := New(Config{Interval: 100 * time.Millisecond, Notify: func(l string) { t.Error(l) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	out := make(chan *flowcache.Batch)
	done := make(chan error, 1)
	go func() { done <- src.Run(ctx, out); close(out) }()
	var all []flowcache.Observation
	collected := make(chan struct{})
	go func() {
		for b := range out {
			all = append(all, b.Observations...)
		}
		close(collected)
	}()
	time.Sleep(250 * time.Millisecond)
	young, peer, _ := pair(t, "127.0.0.1:0")
	port := uint16(young.LocalAddr().(*net.TCPAddr).Port)
	young.Write(make([]byte, 1000))
	young.CloseWrite()
	buf := make([]byte, 2000)
	for {
		if _, err := peer.Read(buf); err != nil {
			break
		}
	}
	peer.Close()
	young.Close()
	c.Close()
	s.Close()
	time.Sleep(250 * time.Millisecond)
	if n := src.Stats().Namespaces; n < 2 {
		t.Errorf("%d namespaces", n)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	<-collected
	old, ends, listens := false, 0, 0
	for _, o := range all {
		switch {
		case o.Preexisting && o.Key.SrcPort == uint16(c.LocalAddr().(*net.TCPAddr).Port):
			old = old || o.Out.Payload == 500
		case o.Event == flowcache.EventEnd && o.Key.SrcPort == port:
			ends++
			if o.Out.Payload != 1000 || o.In.Payload != 0 || o.Preexisting {
				t.Errorf("end: %+v", o)
			}
		case o.Event == flowcache.EventListen:
			listens++
		}
	}
	if !old || ends != 1 || listens == 0 {
		t.Errorf("older socket seen %t, %d ends, %d listeners", old, ends, listens)
	}
}

func FuzzWalk(f *testing.F) {
	msg := make([]byte, nlmsgHeader+messageLen)
	ne.PutUint32(msg, uint32(len(msg)))
	ne.PutUint16(msg[4:], sockDiagByFamily)
	msg[nlmsgHeader] = afInet
	f.Add(msg)
	attr := append([]byte{}, msg...)
	attr = append(attr, 8, 0, attrInfo, 0, 1, 2, 3, 4, 3, 0, 0, 0)
	ne.PutUint32(attr, uint32(len(attr)))
	f.Add(attr)
	done := make([]byte, nlmsgHeader)
	ne.PutUint32(done, nlmsgHeader)
	ne.PutUint16(done[4:], nlmsgDone)
	f.Add(append(append([]byte{}, msg...), done...))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		var s socket
		var o flowcache.Observation
		n := 0
		err := walk(b, &s, func(s *socket) {
			n++
			s.proto = flowcache.ProtoTCP
			s.observe(&o, 1, 2)
			s.tcp(&o, &flowcache.TCPTotals{State: s.state})
		})
		if n > len(b)/(nlmsgHeader+messageLen) {
			t.Fatalf("%d sockets in %d octets", n, len(b))
		}
		if err == nil && len(b) > 0 && n == 0 && len(b) < nlmsgHeader {
			t.Fatal("a cut message is accepted")
		}
		if errors.Is(err, errDone) && len(b) < nlmsgHeader {
			t.Fatal("done of nothing")
		}
	})
}

// BenchmarkDump reads 2000 connections; ns/socket is the figure.
func BenchmarkDump(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	for range 1000 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		s, err := l.Accept()
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
	}
	var st syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/net", &st); err != nil {
		b.Fatal(err)
	}
	ns, err := openNamespace(uint32(st.Ino), "")
	if err != nil {
		b.Fatal(err)
	}
	defer ns.close()
	var sock socket
	var o flowcache.Observation
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		if err := ns.each(make([]byte, 256<<10), afInet, flowcache.ProtoTCP, statesLive, &sock, func(s *socket) {
			n++
			s.observe(&o, 1, 2)
			s.tcp(&o, &flowcache.TCPTotals{State: s.state})
		}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/socket")
}
