package ipfix

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
)

// dtlsSink is a DTLS collector that wants client certificates. It remembers the messages of each session.
type dtlsSink struct {
	l        net.Listener
	mu       sync.Mutex
	sessions [][]byte
	conns    []net.Conn
}

func listenDTLS(t *testing.T, a *authority, addr string) *dtlsSink {
	t.Helper()
	to, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(a.path("server.pem"), a.path("server.key"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	s := &dtlsSink{}
	if s.l, err = dtls.ListenWithOptions("udp", to, dtls.WithCertificates(cert), dtls.WithClientAuth(dtls.RequireAndVerifyClientCert), dtls.WithClientCAs(pool)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.l.Close() })
	go func() { // ends with l
		for {
			c, err := s.l.Accept()
			if err != nil {
				return
			}
			go s.read(c) // ends with c
		}
	}()
	return s
}

func (s *dtlsSink) read(c net.Conn) {
	s.mu.Lock()
	i := len(s.sessions)
	s.sessions, s.conns = append(s.sessions, nil), append(s.conns, c)
	s.mu.Unlock()
	buf := make([]byte, 65536)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.sessions[i] = append(s.sessions[i], buf[:n]...)
		s.mu.Unlock()
	}
}

func (s *dtlsSink) records(t *testing.T) (l []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.sessions {
		l = append(l, decode(t, b, true)...) // it is UDP
	}
	return l
}

// TestDTLS: messages arrive, each in a datagram of at most the path MTU; a session ends by time, and by the collector.
func TestDTLS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.issue("server", "collector.test", time.Hour)
	a.issue("client", "exporter.test", time.Hour)
	s := listenDTLS(t, a, "127.0.0.1:0")
	addr := s.l.Addr().String()
	url := fmt.Sprintf("dtls://%s?ca=%s&cert=%s&key=%s&server-name=collector.test", addr, a.path("ca.pem"), a.path("client.pem"), a.path("client.key"))
	x := begin(t, url+"&mtu=1500&template-refresh=200ms&session-time=3s", Config{})
	// Package dtls may lose messages that arrive while it accepts; templates are sent twice.
	eventually(t, "templates are told", func() bool { return x.Stats().Messages > 10 })
	for i := range 5 { // few at once: it is UDP
		x.give(40)
		eventually(t, "they arrive", func() bool { return len(s.records(t)) == 40*(i+1) })
	}
	eventually(t, "there is another session", func() bool { return x.Stats().Connects > 1 })
	time.Sleep(time.Second)
	x.give(10)
	eventually(t, "they arrive", func() bool { return len(s.records(t)) == 210 })
	// The collector goes and comes back.
	s.mu.Lock()
	for _, c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.l.Close()
	x.said("trying again")
	s = listenDTLS(t, a, addr)
	x.said("connected")
	eventually(t, "it is connected", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.sessions) > 0 })
	time.Sleep(time.Second)
	x.give(10)
	eventually(t, "they arrive", func() bool { return len(s.records(t)) >= 10 })
	x.stop()
	x.balance()
	for name, query := range map[string]string{
		"other name":     "&server-name=elsewhere.test",
		"no certificate": "",
	} {
		url := fmt.Sprintf("dtls://%s?ca=%s", addr, a.path("ca.pem"))
		if name == "other name" {
			url += fmt.Sprintf("&cert=%s&key=%s", a.path("client.pem"), a.path("client.key"))
		} else {
			query = "&server-name=collector.test"
		}
		y := begin(t, url+query, Config{})
		y.said("trying again")
		y.stop()
	}
}
