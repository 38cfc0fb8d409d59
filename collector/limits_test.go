package collector

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/dtls/v3"
)

// fed is a Collector that is given datagrams by hand.
func fed(t *testing.T, opt Options) (c *Collector, feed func(from string, msg []byte)) {
	t.Helper()
	c, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	c.handle = func([]Record) error { return nil }
	return c, func(from string, msg []byte) {
		t.Helper()
		c.mu.Lock()
		defer c.mu.Unlock()
		if err := c.datagram(senderKey{0, netip.MustParseAddrPort(from)}, msg); !passable(err) {
			t.Fatal(err)
		}
	}
}

// TestFloodsOfSenders: whatever others send, and from however many ports, an exporter keeps its templates, also behind
// the same address; many senders of one address take its share and no more.
func TestFloodsOfSenders(t *testing.T) {
	c, feed := fed(t, Options{})
	feed("192.0.2.1:1000", message10(0, named))
	feed("[2001:db8::1]:1000", message10(0, named))
	for i := range 9000 {
		for _, addr := range []string{"192.0.2.1", "198.51.100.7", "[2001:db8::1]", fmt.Sprintf("[2001:db8:1::%x]", i)} {
			from := fmt.Sprintf("%s:%d", addr, 2000+i)
			feed(from, []byte{1})
			feed(from, message10(0))
			feed(from, message5(0, 0, 1))
		}
		feed("198.51.100.7:"+fmt.Sprint(2000+i), message10(0, named)) // with templates
	}
	before := c.Counts().Records
	feed("192.0.2.1:1000", message10(0, text1("a")))
	feed("[2001:db8::1]:1000", message10(0, text1("a")))
	n := c.Counts()
	if n.Records != before+2 || n.UnknownSets != 0 {
		t.Errorf("%d records, %+v", n.Records-before, n)
	}
	if len(c.bySender) > 4096 || n.Malformed[CauseLength] != 4*9000 || n.Forgotten == 0 {
		t.Errorf("%d senders, %+v", len(c.bySender), n)
	}
	for a, p := range c.peers {
		if have := p.senders[0].Len() + p.senders[1].Len(); have > 512 || have == 0 {
			t.Errorf("%s has %d senders", a, have)
		}
	}
	if len(c.peers) != 4 {
		t.Errorf("%d peers", len(c.peers))
	}

	// Addresses without end, each with a message that needs a session, leave those alone that have templates.
	for i := range uint32(20_000) {
		feed(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1000).String(), message10(0))
	}
	feed("192.0.2.1:1000", message10(1, text1("a")))
	if m := c.Counts(); m.Records != n.Records+1 || len(c.bySender) > 4096 || len(c.peers) > 4096 {
		t.Errorf("%d records, %d senders, %d peers", m.Records-n.Records, len(c.bySender), len(c.peers))
	}
}

// TestMemoryOfAPeer: the templates of one address take its share of the memory, and others' are taken in.
func TestMemoryOfAPeer(t *testing.T) {
	c, feed := fed(t, Options{})
	big := []any{}
	for range 300 {
		big = append(big, uint16(1), uint16(8))
	}
	for i := range 100 {
		for id := range uint16(20) {
			feed(fmt.Sprintf("192.0.2.1:%d", 1000+i), message10(0, set(2, append([]any{256 + id, uint16(300)}, big...)...)))
		}
	}
	n := c.Counts()
	if n.Refused == 0 {
		t.Errorf("nothing was refused: %+v", n)
	}
	if used := 64<<20 - c.shared.memory; used > 8<<20 {
		t.Errorf("%d octets of one address", used)
	}
	feed("192.0.2.2:1000", message10(0, named, text1("a")))
	if m := c.Counts(); m.Records != 1 || m.Refused != n.Refused {
		t.Errorf("%+v", m)
	}
}

// TestIdleConnections: connections that say nothing take the share of their address, and give way to those that do.
func TestIdleConnections(t *testing.T) {
	c := collect(t, Options{Connections: 64}, "tcp://127.0.0.1:0")
	for range 200 {
		dial(t, "tcp", c.addr(0))
	}
	c.wait("a share", func(n Counts) bool { return n.RefusedConn+n.Idle == 200-16 && n.Sessions == 16 })
	from := func(ip string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		conn, err := d.Dial("tcp", c.addr(0))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	for i := range 3 {
		for range 16 {
			from(fmt.Sprintf("127.0.0.%d", 2+i))
		}
	}
	c.wait("every place to be taken", func(n Counts) bool { return n.Sessions == 64 })
	// An exporter of another address, and one of the same, which connect again as exporters do.
	for i, ip := range []string{"127.0.0.9", "127.0.0.1"} {
		deadline := time.Now().Add(30 * time.Second)
		for c.Counts().Records != uint64(i+1) && time.Now().Before(deadline) {
			conn := from(ip)
			conn.Write(message10(0, named, text1("a")))
			conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			conn.Read(make([]byte, 1)) // until it is closed, or was taken
		}
		if n := c.Counts(); n.Records != uint64(i+1) || n.Sessions != 64 || n.Idle == 0 {
			t.Fatalf("%s: %+v", ip, n)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.note) > 2 { // refused, and perhaps one that failed
		t.Errorf("%d lines: %q", len(c.note), c.note)
	}
}

// TestSlowStreams: a connection that begins a message and does not end it, or says nothing, is closed.
func TestSlowStreams(t *testing.T) {
	c := collect(t, Options{TemplateLifetime: 100 * time.Millisecond}, "tcp://127.0.0.1:0")
	mute, slow := dial(t, "tcp", c.addr(0)), dial(t, "tcp", c.addr(0))
	stop := make(chan struct{})
	defer close(stop)
	go func() { // ends with the test
		for _, o := range message10(0, named, text1("abcdefghijklmnopqrstuvwxyz")) {
			slow.Write([]byte{o})
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	for _, conn := range []net.Conn{mute, slow} {
		conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("not closed: %v", err)
		}
	}
	c.wait("both to be counted", func(n Counts) bool { return n.Idle == 2 && n.Failed == 0 && n.Sessions == 0 })
}

// hello returns the first datagram of a DTLS client.
func hello(t *testing.T) []byte {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client, err := dtls.DialWithOptions("udp", conn.LocalAddr().(*net.UDPAddr), dtls.WithInsecureSkipVerify(true))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go client.HandshakeContext(ctx) // ends with ctx
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 2048)
	n, _, err := conn.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// TestFloodOfHellos: clients of DTLS that begin a handshake and are not there hold up none that is, and take one line a
// minute.
func TestFloodOfHellos(t *testing.T) {
	ca := newAuthority(t)
	_, cert, key := ca.issue("collector")
	c := collect(t, Options{}, "dtls://127.0.0.1:0?cert="+cert+"&key="+key)
	first := hello(t)
	for range 1060 {
		conn, err := net.Dial("udp", c.addr(0))
		if err != nil {
			t.Fatal(err)
		}
		conn.Write(first)
		conn.Close()
	}
	begun := time.Now()
	a, err := net.ResolveUDPAddr("udp", c.addr(0))
	if err != nil {
		t.Fatal(err)
	}
	d, err := dtls.DialWithOptions("udp", a, dtls.WithRootCAs(ca.pool()), dtls.WithServerName("localhost"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	write(t, d, message10(0, named, text1("a")))
	c.wait("a record", c.records(1))
	took := time.Since(begun)
	t.Logf("a client that is there takes %s", took.Round(time.Millisecond))
	if took > handshakeTime/2 {
		t.Errorf("it had to wait for the handshakes of others")
	}
	c.Collector.mu.Lock()
	under := c.hellos.Len()
	c.Collector.mu.Unlock()
	if under > maxHellos {
		t.Errorf("%d handshakes under way", under)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.note) > 1 {
		t.Errorf("%d lines", len(c.note))
	}
}

// TestNotices: one line of a kind a minute; what was kept is said at the end of the minute, and at the end.
func TestNotices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		begin := time.Now()
		n := notifier{to: func(line string) { got = append(got, fmt.Sprintf("%ds %s", int(time.Since(begin).Seconds()), line)) }}
		for i := range 100 {
			n.say(noticeFailed, "failed %d", i)
			if i == 0 {
				time.Sleep(500 * time.Millisecond) // so that no line comes as a minute ends
				continue
			}
			time.Sleep(time.Second)
		}
		n.say(noticeRefused, "refused")
		time.Sleep(5 * time.Minute)
		n.say(noticeFailed, "failed again")
		n.say(noticeFailed, "and again")
		n.end()
		n.say(noticeFailed, "too late")
		want := []string{
			"0s failed 0", "60s failed 60 (and 59 more in a minute)", "99s refused", "120s failed 99 (and 38 more in a minute)", "399s failed again", "399s and again",
		}
		// What is said at a time is said in any order.
		slices.Sort(got)
		slices.Sort(want)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("(-want +got)\n%s", d)
		}
	})
}
