package ipfix

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

// TestDeafSubscriber: a ZeroMQ subscriber that never reads, and comes back each time it is let go, holds up no other one.
func TestDeafSubscriber(t *testing.T) {
	x := startNtopng(t, "zmq://127.0.0.1:"+freePort(t)+"?bind=true&queue=1000000")
	dial := func() subscriber {
		var c net.Conn
		eventually(t, "it is bound", func() bool {
			var err error
			c, err = net.Dial("tcp", x.cfg.Address)
			return err == nil
		})
		t.Cleanup(func() { c.Close() })
		return subscriber{t, c}
	}
	dial().hello("flow")
	reads := dial()
	reads.hello("flow")
	eventually(t, "both have subscribed", func() bool { return x.publisher().count("flow") == 2 })
	const n = 2000 // of 50 records, 40 MB: many times what sockets hold
	go func() {    // ends with n
		for range n {
			r := flowcache.RecordPool(nil).Get()
			for range 50 {
				r.List = append(r.List, *ntopngRecord())
			}
			x.Offer(r)
		}
	}()
	got, ids := 0, uint32(0)
	for begun := time.Now(); got < n*50; {
		h, payload := reads.message()
		if id := uint32(h[28])<<24 | uint32(h[29])<<16 | uint32(h[30])<<8 | uint32(h[31]); ids != 0 && id != ids+1 {
			t.Fatalf("message %d after %d", id, ids)
		} else {
			ids = id
		}
		got += strings.Count(string(payload), "/usr/bin/curl")
		if time.Since(begun) > 30*time.Second {
			t.Fatalf("%d records after 30 s", got)
		}
		if st := x.Stats(); st.Encoded == n*50 && st.Records == n*50 {
			break
		}
	}
	if st := x.Stats(); st.DroppedQueue+st.DroppedSend > 0 {
		t.Errorf("%+v", st)
	}
}

// TestHangingName: while the collector's name is looked up, for however long, records go on to its address.
func TestHangingName(t *testing.T) {
	var addr atomic.Pointer[netip.Addr]
	here := netip.MustParseAddr("127.0.0.1")
	addr.Store(&here)
	answering := names(t, &addr)
	var hang atomic.Bool
	asked := make(chan struct{}, 100)
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if hang.Load() {
			signal(asked)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return answering.Dial(ctx, network, address)
	}}
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, p, _ := net.SplitHostPort(c.LocalAddr().String())
	x := begin(t, "udp://collector.test:"+p+"?template-refresh=100ms", Config{resolver: resolver})
	x.give(100)
	eventually(t, "records are sent", func() bool { return x.Stats().Records == 100 })
	hang.Store(true)
	select {
	case <-asked:
	case <-time.After(10 * time.Second):
		t.Fatal("the name is not asked for")
	}
	begun := time.Now()
	x.give(100)
	eventually(t, "records are sent", func() bool { return x.Stats().Records == 200 })
	if d := time.Since(begun); d > dialTimeout/2 {
		t.Errorf("after %s", d)
	}
	if n := x.Stats().Connects; n != 1 {
		t.Errorf("%d sessions", n)
	}
}

// TestProgramsAreNotKept: of the names of applications nothing is kept for later connections: they come with their next use.
func TestProgramsAreNotKept(t *testing.T) {
	s := listen(t, "127.0.0.1:0")
	x := begin(t, "tcp://"+s.l.Addr().String()+"?application=process", Config{})
	const programs = 20000
	give := func(from, n int) {
		t.Helper()
		for i := from; i < from+n; {
			r := flowcache.RecordPool(nil).Get()
			for range min(100, from+n-i) {
				rec := *record(0)
				rec.Source.Who = &flowcache.Process{Name: fmt.Sprint("program-", i), UserName: "root"}
				r.List = append(r.List, rec)
				i++
			}
			if !x.Offer(r) {
				t.Fatal("not taken")
			}
			x.next += 100
		}
	}
	give(0, programs)
	eventually(t, "all is taken", func() bool { st := x.Stats(); return st.Backlog == 0 && st.Encoded == programs })
	eventually(t, "all is read", func() bool { return strings.Contains(string(s.streams()[0]), fmt.Sprint("program-", programs-1)) })
	s.mu.Lock()
	s.conn.Close()
	s.mu.Unlock()
	eventually(t, "there is another connection", func() bool { return x.Stats().Connects > 1 && len(x.stream.connected) == 0 })
	give(7, 100)
	eventually(t, "the next connection", func() bool { l := s.streams(); return len(l) > 1 && strings.Contains(string(l[1]), "program-106") })
	x.stop()
	second := string(s.all(t)[1])
	if len(second) > 100_000 || strings.Count(second, "program-") < 200 || strings.Contains(second, "program-19000") {
		t.Errorf("%d octets, %d names", len(second), strings.Count(second, "program-"))
	}
	ipfixDump(t, []byte(second))
}

// TestSource: messages leave from the address, and by the interface, that the URL names, over every transport.
func TestSource(t *testing.T) {
	const source = "127.0.0.23"
	a := newAuthority(t)
	a.issue("server", "collector.test", time.Hour)
	a.issue("client", "exporter.test", time.Hour)
	tls := fmt.Sprintf("&ca=%s&cert=%s&key=%s&server-name=collector.test", a.path("ca.pem"), a.path("client.pem"), a.path("client.key"))
	came := make(chan net.Addr, 100)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			came <- c.RemoteAddr()
			go io.Copy(io.Discard, c) // ends with c
		}
	}()
	u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	go func() { // ends with u
		for buf := make([]byte, 65536); ; {
			_, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			came <- from
		}
	}()
	for _, url := range []string{"tcp://" + l.Addr().String() + "?", "tls://" + l.Addr().String() + "?" + tls[1:] + "&", "udp://" + u.LocalAddr().String() + "?", "dtls://" + u.LocalAddr().String() + "?" + tls[1:] + "&"} {
		for len(came) > 0 {
			<-came
		}
		x := begin(t, url+"source="+source+"&device=lo", Config{})
		select {
		case from := <-came:
			if host, _, _ := net.SplitHostPort(from.String()); host != source {
				t.Errorf("%s: from %s", url, from)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: nothing comes: %q", url, x.text())
		}
		x.stop()
		y := begin(t, url+"device=no-such-device", Config{})
		y.said("no such device")
		y.stop()
		z := begin(t, url+"source=203.0.113.7", Config{})
		z.said("cannot assign requested address")
		z.stop()
	}
	x := startNtopng(t, "zmq://"+l.Addr().String()+"?source="+source+"&device=lo")
	if from := <-came; !strings.HasPrefix(from.String(), source) && !strings.HasPrefix((<-came).String(), source) {
		t.Errorf("zmq: from %s", from)
	}
	_ = x
	for _, bad := range []string{"source=nonsense", "source=", "device=", "device=a-name-that-is-too-long"} {
		if _, err := ParseURL("udp://h?"+bad, Config{}); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}
