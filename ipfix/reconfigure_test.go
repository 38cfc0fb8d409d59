package ipfix

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sockflow/sockflow/templates"
)

// option gives a running exporter the options of another URL.
func (s *started) option(url string, base Config) error {
	s.t.Helper()
	cfg, err := ParseURL(url, base)
	if err != nil {
		s.t.Fatal(err)
	}
	err = s.Reconfigure(cfg)
	eventually(s.t, "the change is taken", func() bool { return len(s.changes) == 0 })
	return err
}

// TestReconfigure: every option of a stream collector changes while records come and wait, and none is lost or sent twice.
func TestReconfigure(t *testing.T) {
	for _, spooled := range []bool{false, true} {
		t.Run(fmt.Sprint("spool ", spooled), func(t *testing.T) {
			t.Parallel()
			var base Config
			if spooled {
				base.Spool = t.TempDir()
			}
			base.ReconnectMin, base.ReconnectMax = 100*time.Millisecond, 200*time.Millisecond
			addr := freeAddress(t)
			url := "tcp://" + addr
			x := begin(t, url, base)
			change := func(query string) {
				t.Helper()
				x.give(500)
				if err := x.option(url+query, base); err != nil {
					t.Errorf("%s: %v", query, err)
				}
				x.give(500)
			}
			change("?domain=7")
			change("?fields=-sourceProcessName")
			s := listen(t, addr)
			for _, query := range []string{
				"?domain=8", "?dialect=native", "?dialect=native&string-length=20", "?send-timeout=5s", "?reconnect-min=150ms", "?reconnect-max=1s", "?queue=100000",
				"?template-refresh=300ms", "?pen=4711", "?source=127.0.0.1", "?filter=proto%20tcp%20or%20proto%20udp", "?spool-size=5M", "",
			} {
				change(query)
			}
			eventually(t, "all is taken", func() bool { st := x.Stats(); return st.Backlog == 0 && st.Encoded == uint64(x.next) })
			x.stop()
			if n := inOrder(t, s.all(t), 0, x.next-1); n != 0 {
				t.Errorf("%d records came twice", n)
			}
			for _, b := range s.streams() {
				checkStream(t, b)
			}
			x.balance()
			if s := x.text(); strings.Contains(s, "another configuration") {
				t.Errorf("said %q", s)
			}
		})
	}
}

// TestReconfigureSpool: a spool comes and goes; one with records in it is refused alone, and the rest of the change holds.
func TestReconfigureSpool(t *testing.T) {
	addr := freeAddress(t)
	first, second := t.TempDir(), t.TempDir()
	base := Config{ReconnectMin: 100 * time.Millisecond, ReconnectMax: 200 * time.Millisecond}
	x := begin(t, "tcp://"+addr, base)
	x.give(100)
	if err := x.option("tcp://"+addr+"?spool="+first, base); err != nil {
		t.Fatal(err)
	}
	x.give(100)
	eventually(t, "they are on disk", func() bool { return x.Stats().Spooled == 200 })
	err := x.option("tcp://"+addr+"?domain=9&spool="+second, base)
	if err == nil || !strings.Contains(err.Error(), "option spool") || x.conf().Domain != 9 {
		t.Errorf("%v, domain %d", err, x.conf().Domain)
	}
	if s, err := openSpool(x.conf().spoolDir(), 1<<20); err == nil {
		s.close()
		t.Error("the spool in use is not locked")
	}
	other := *x.conf()
	other.Spool = second
	if s, err := openSpool(other.spoolDir(), 1<<20); err != nil {
		t.Errorf("the refused one is locked: %v", err)
	} else {
		s.close()
	}
	s := listen(t, addr)
	eventually(t, "all is taken", func() bool { return x.Stats().Backlog == 0 && x.Stats().Spooled == 0 })
	eventually(t, "the spool is empty", func() bool { return x.option("tcp://"+addr+"?spool="+second, base) == nil })
	x.give(100)
	eventually(t, "all is taken", func() bool { st := x.Stats(); return st.Backlog == 0 && st.Encoded == 300 })
	x.stop()
	inOrder(t, s.all(t), 0, 299)
	x.balance()
	if _, err := os.Stat(filepath.Join(second, "tcp___"+strings.ReplaceAll(addr, ":", "_"), "lock")); err != nil {
		t.Error(err)
	}
}

// TestReconfigureUDP: records of a change arrive over UDP too, those before it by the fields before it.
func TestReconfigureUDP(t *testing.T) {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadBuffer(8 << 20)
	url := "udp://" + c.LocalAddr().String()
	x := begin(t, url, Config{})
	changes := []string{"?fields=-sourceProcessName", "?domain=7", "?mtu=1500", "?dialect=native", "?max-rate=1000", "?source=127.0.0.1", "?template-refresh=1s", ""}
	for _, query := range changes {
		x.give(50)
		if err := x.option(url+query, Config{}); err != nil {
			t.Errorf("%s: %v", query, err)
		}
	}
	x.give(50)
	x.stop()
	got := map[string]map[uint16]*layout{}
	flows, buf := 0, make([]byte, 65536)
	for {
		c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			break
		}
		session := fmt.Sprint(from, buf[12:16])
		if got[session] == nil {
			got[session] = map[uint16]*layout{}
		}
		if err := eachSet(buf[:n], func(id uint16, set []byte) error {
			if id == setTemplate || id == setOptionsTemplate {
				for b := set[setHeader:]; len(b) >= 4; {
					tid, l, rest, err := templateRecord(id, b)
					if err != nil {
						return err
					}
					if old := got[session][tid]; old != nil && string(old.record) != string(l.record) {
						t.Errorf("template %d is another one in one session", tid)
					}
					l.record = []byte(string(l.record))
					got[session][tid], b = &l, rest
				}
				return nil
			}
			l := got[session][id]
			if l == nil {
				return fmt.Errorf("data of %d without a template", id)
			}
			n, err := l.records(set[setHeader:])
			if l.set == setTemplate {
				flows += n
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if want := 50 * (len(changes) + 1); flows != want {
		t.Errorf("%d flow records, want %d: %+v", flows, want, x.Stats())
	}
	x.balance()
}

// TestReconfigureRefuses: what is wrong changes nothing.
func TestReconfigureRefuses(t *testing.T) {
	x := begin(t, "tls://127.0.0.1:1", Config{})
	before := *x.conf()
	for _, change := range []func(*Config){
		func(c *Config) { c.CA = "/no/such/file" },
		func(c *Config) { c.Options.Fields = "-nonsense" },
		func(c *Config) { c.Filter = "nonsense" },
		func(c *Config) { c.Anonymize = "/no/such/file" },
		func(c *Config) { c.Address = "127.0.0.1:2" },
		func(c *Config) { c.Spool = "/dev/null/x" },
	} {
		cfg := before
		change(&cfg)
		if err := x.Reconfigure(cfg); err == nil || !x.conf().same(&before) {
			t.Errorf("%v: %+v", err, x.conf())
		}
	}
	x.stop()
}

// TestAcceptsAndCloses: a collector that accepts a connection and closes it is not connected, and not healthy: it is said once, and tried less often.
func TestAcceptsAndCloses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan time.Time, 1000)
	go func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- time.Now()
			c.Close()
		}
	}()
	x := begin(t, "tcp://"+l.Addr().String(), Config{ReconnectMin: 100 * time.Millisecond, ReconnectMax: time.Hour})
	x.give(10)
	x.said("trying again")
	for range 30 {
		time.Sleep(100 * time.Millisecond)
		if x.Healthy() {
			t.Fatal("it is healthy")
		}
	}
	if n := len(accepted); n > 8 {
		t.Errorf("tried %d times in 3 s", n)
	}
	x.stop()
	if len(x.lines) != 1 {
		t.Errorf("said %q", x.lines)
	}
}

// TestTLSRefusesLate: with TLS 1.3 a client certificate is refused after the handshake.
func TestTLSRefusesLate(t *testing.T) {
	a := newAuthority(t)
	a.issue("server", "collector.test", time.Hour)
	cfg := a.server("server")
	cfg.MinVersion = tls.VersionTLS13
	l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l)
	x := begin(t, fmt.Sprintf("tls://%s?ca=%s&server-name=collector.test", l.Addr(), a.path("ca.pem")), Config{ReconnectMin: 100 * time.Millisecond, ReconnectMax: time.Hour})
	x.give(10)
	x.said("certificate required")
	time.Sleep(2 * time.Second)
	if x.Healthy() || x.Stats().Connects > 8 {
		t.Errorf("healthy %t, %+v", x.Healthy(), x.Stats())
	}
	x.stop()
	if len(x.lines) != 1 {
		t.Errorf("said %q", x.lines)
	}
}

// TestNames: collectors of one address have names of their own.
func TestNames(t *testing.T) {
	c := Config{Network: "tcp", Address: "h:1", Spool: "/s", Options: templates.Options{}}
	for n, want := range map[int]string{0: "tcp://h:1 /s/tcp___h_1", 1: "tcp://h:1 /s/tcp___h_1", 2: "tcp://h:1#2 /s/tcp___h_1#2"} {
		c.Number = n
		if got := c.Name() + " " + c.spoolDir(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
