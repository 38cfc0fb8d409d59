package collector

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
)

var named = set(2, uint16(256), uint16(1), uint16(82), uint16(65535))

func text1(s string) []byte { return set(256, uint8(len(s)), s) }

// collecting is a running Collector.
type collecting struct {
	*Collector
	t    *testing.T
	stop func() error
	mu   sync.Mutex
	got  []string // session and interfaceName
	note []string
}

func collect(t *testing.T, opt Options, urls ...string) *collecting {
	t.Helper()
	r := &collecting{t: t}
	for _, url := range urls {
		l, err := ParseListener(url)
		if err != nil {
			t.Fatal(err)
		}
		opt.Listen = append(opt.Listen, l)
	}
	opt.Notify = func(line string) { r.mu.Lock(); r.note = append(r.note, line); r.mu.Unlock() }
	c, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	r.Collector = c
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { // ends with ctx
		done <- c.Run(ctx, func(recs []Record) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			for i := range recs {
				scheme, _, _ := strings.Cut(recs[i].From, ":")
				r.got = append(r.got, scheme+" "+recs[i].Text("interfaceName"))
			}
			return nil
		})
	}()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { r.stop() })
	return r
}

// addr is where the i-th socket listens.
func (c *collecting) addr(i int) string {
	_, addr, _ := strings.Cut(c.Addrs()[i], "://")
	return addr
}

func (c *collecting) wait(what string, f func(Counts) bool) {
	c.t.Helper()
	for range 500 {
		if f(c.Counts()) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t.Fatalf("%s: %+v, %q, %q", what, c.Counts(), c.got, c.note)
}

func (c *collecting) records(n uint64) func(Counts) bool {
	return func(k Counts) bool { return k.Records == n }
}

func dial(t *testing.T, network, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func write(t *testing.T, w net.Conn, msg []byte) {
	t.Helper()
	if _, err := w.Write(msg); err != nil {
		t.Fatal(err)
	}
}

// authority makes certificates.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.issue("ca")
	return a
}

// issue returns a certificate and the files NAME.pem and NAME.key.
func (a *authority) issue(name string) (tls.Certificate, string, string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.n++
	c := &x509.Certificate{
		SerialNumber: big.NewInt(a.n), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		parent, signer, a.key = c, key, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	if a.cert == nil {
		a.cert, _ = x509.ParseCertificate(der)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	files := [2]string{filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key")}
	for i, b := range [][]byte{certPEM, keyPEM} {
		if err := os.WriteFile(files[i], b, 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		a.t.Fatal(err)
	}
	return pair, files[0], files[1]
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// TestTransports sends one record over each transport.
func TestTransports(t *testing.T) {
	ca := newAuthority(t)
	_, cert, key := ca.issue("collector")
	client, _, _ := ca.issue("exporter")
	files := fmt.Sprintf("?cert=%s&key=%s", cert, key)
	withCA := files + "&ca=" + filepath.Join(ca.dir, "ca.pem")
	c := collect(t, Options{}, "udp://127.0.0.1:0", "tcp://127.0.0.1:0", "tls://127.0.0.1:0"+files, "tls://127.0.0.1:0"+withCA, "dtls://127.0.0.1:0"+files, "dtls://127.0.0.1:0"+withCA)
	write(t, dial(t, "udp", c.addr(0)), message10(0, named, text1("a")))

	tcp := dial(t, "tcp", c.addr(1))
	stream := append(message10(0, named, text1("b")), message10(1, text1("c"))...)
	for _, o := range stream { // octet by octet
		write(t, tcp, []byte{o})
	}
	cfg := &tls.Config{RootCAs: ca.pool()}
	plain, err := tls.Dial("tcp", c.addr(2), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	write(t, plain, message10(0, named, text1("d")))
	mutual, err := tls.Dial("tcp", c.addr(3), &tls.Config{RootCAs: ca.pool(), Certificates: []tls.Certificate{client}})
	if err != nil {
		t.Fatal(err)
	}
	defer mutual.Close()
	write(t, mutual, message10(0, named, text1("e")))

	for i, opts := range [][]dtls.ClientOption{
		{dtls.WithRootCAs(ca.pool()), dtls.WithServerName("localhost")},
		{dtls.WithRootCAs(ca.pool()), dtls.WithServerName("localhost"), dtls.WithCertificates(client)},
	} {
		a, err := net.ResolveUDPAddr("udp", c.addr(4+i))
		if err != nil {
			t.Fatal(err)
		}
		d, err := dtls.DialWithOptions("udp", a, opts...)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		write(t, d, message10(0, named, text1("f")))
	}
	c.wait("seven records", c.records(7))
	c.mu.Lock()
	got := strings.Join(c.got, ",")
	c.mu.Unlock()
	for _, want := range []string{"udp a", "tcp b", "tcp c", "tls d", "tls e", "dtls f"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in %s", want, got)
		}
	}
	if n := c.Counts(); n.Sessions != 6 || n.Discarded()+n.Failed+n.Gaps != 0 {
		t.Errorf("%+v", n)
	}

	// A client without a certificate is refused, and counted.
	if bad, err := tls.Dial("tcp", c.addr(3), cfg); err == nil {
		bad.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err = bad.Read(make([]byte, 1)); err == nil {
			t.Error("a client without a certificate was let in")
		}
		bad.Close()
	}
	c.wait("a failed handshake", func(n Counts) bool { return n.Failed == 1 })
	if err := c.stop(); err != nil {
		t.Error(err)
	}
	if n := c.Counts(); n.Sessions != 1 || n.Records != 7 { // of UDP: nothing ends it
		t.Errorf("%+v", n)
	}
}

func TestBrokenStreams(t *testing.T) {
	c := collect(t, Options{Connections: 2}, "tcp://127.0.0.1:0")
	// A malformed message in its place is passed over; what is none ends the connection, and not the collector.
	conn := dial(t, "tcp", c.addr(0))
	write(t, conn, append(append(message10(0, named, text1("a")), message10(1, set(2, uint32(0x01010001)))...), message10(1, text1("b"))...))
	c.wait("two records", c.records(2))
	write(t, conn, []byte("GET / HTTP/1.1\r\n\r\n"))
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("not closed: %v", err)
	}
	c.wait("it to be counted", func(n Counts) bool { return n.Failed == 1 }) // after it is closed
	if n := c.Counts(); n.Malformed[CauseTemplate] != 1 || n.Malformed[CauseVersion] != 1 {
		t.Errorf("%+v", n)
	}
	// One that sends but malformed messages is ended too.
	conn = dial(t, "tcp", c.addr(0))
	for range maxMalformed {
		conn.Write(message10(0, set(2, uint32(0x01010001))))
	}
	c.wait("the end of it", func(n Counts) bool { return n.Failed == 2 && n.Sessions == 0 })
	// One that ends in a message.
	conn = dial(t, "tcp", c.addr(0))
	write(t, conn, message10(0, named, text1("c"))[:20])
	conn.Close()
	c.wait("the end in a message", func(n Counts) bool { return n.Malformed[CauseLength] == 1 })

	before := c.Counts().Templates
	for range 2 {
		write(t, dial(t, "tcp", c.addr(0)), message10(0, named))
	}
	c.wait("two connections", func(n Counts) bool { return n.Sessions == 2 && n.Templates == before+2 })
	dial(t, "tcp", c.addr(0))
	c.wait("a third one refused", func(n Counts) bool { return n.RefusedConn == 1 })
}

// TestSenders bounds the sessions over UDP: the one that was silent for longest is forgotten, and its memory comes back.
func TestSenders(t *testing.T) {
	c := collect(t, Options{Senders: 3}, "udp://127.0.0.1:0")
	var conns []net.Conn
	for i := range 5 {
		conn := dial(t, "udp", c.addr(0))
		conns = append(conns, conn)
		write(t, conn, message10(0, named, text1("x")))
		c.wait("a record", c.records(uint64(i+1)))
	}
	n := c.Counts()
	if n.Sessions != 3 || n.Forgotten != 2 || n.Opened != 5 || n.Messages != 5 {
		t.Errorf("%+v", n)
	}
	write(t, conns[4], message10(1, text1("y")))
	c.wait("a known sender", c.records(6))
	write(t, conns[0], message10(1, text1("y"))) // its template is forgotten
	c.wait("a stranger", func(n Counts) bool { return n.UnknownSets == 1 })
	c.stop()
	c.Collector.mu.Lock()
	defer c.Collector.mu.Unlock()
	for s := range c.sessions {
		c.endSession(s)
	}
	if c.shared.memory != 64<<20 || c.senders[0].Len()+c.senders[1].Len() != 0 || len(c.bySender)+len(c.peers) != 0 {
		t.Errorf("%d octets, %d senders, %d peers left", c.shared.memory, len(c.bySender), len(c.peers))
	}
}

// TestHandleFails ends Run with the error of the one who takes the records.
func TestHandleFails(t *testing.T) {
	l, err := ParseListener("udp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(Options{Listen: []Listener{l}})
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, "udp", strings.TrimPrefix(c.Addrs()[0], "udp://"))
	write(t, conn, message10(0, named, text1("a")))
	full := errors.New("disk full")
	if err := c.Run(context.Background(), func([]Record) error { return full }); err != full {
		t.Error(err)
	}
}

func TestListenErrors(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	l := Listener{Scheme: "tcp", Host: "127.0.0.1", Port: uint16(busy.Addr().(*net.TCPAddr).Port)}
	if _, err := New(Options{Listen: []Listener{l}}); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Error(err)
	}
	for _, files := range [][3]string{{"/nonexistent", "/nonexistent", ""}, {"/etc/passwd", "/etc/passwd", ""}} {
		l := Listener{Scheme: "tls", Host: "127.0.0.1", Cert: files[0], Key: files[1], CA: files[2]}
		if _, err := New(Options{Listen: []Listener{l}}); err == nil || strings.Contains(err.Error(), "\n") {
			t.Error(err)
		}
	}
	ca := newAuthority(t)
	_, cert, key := ca.issue("collector")
	if _, err := New(Options{Listen: []Listener{{Scheme: "tls", Host: "127.0.0.1", Cert: cert, Key: key, CA: key}}}); err == nil {
		t.Error("a key for an authority")
	}
}

func TestParseListener(t *testing.T) {
	for url, want := range map[string]Listener{
		"udp://":                       {Scheme: "udp", Port: 4739},
		"udp://:9995":                  {Scheme: "udp", Port: 9995},
		"tcp://*:4739":                 {Scheme: "tcp", Host: "*", Port: 4739},
		"udp://*":                      {Scheme: "udp", Host: "*", Port: 4739},
		"udp://[::1]:1":                {Scheme: "udp", Host: "::1", Port: 1},
		"netflow9+udp://10.0.0.1":      {Scheme: "udp", Host: "10.0.0.1", Port: 2055},
		"tls://*?cert=a&key=b":         {Scheme: "tls", Host: "*", Port: 4740, Cert: "a", Key: "b"},
		"dtls://x:1?cert=a&key=b&ca=c": {Scheme: "dtls", Host: "x", Port: 1, Cert: "a", Key: "b", CA: "c"},
	} {
		if got, err := ParseListener(url); err != nil || got != want {
			t.Errorf("%s: %+v, %v", url, got, err)
		}
	}
	for _, url := range []string{
		"", "127.0.0.1:4739", "http://x", "udp://x:99999", "udp://x/path", "udp://u@x", "udp://x?cert=a", "tls://x", "tls://x?cert=a", "dtls://x?cert=a&key=b&x=1",
		"tls://x?cert=a&cert=b&key=c", "tls://x?cert=&key=c", "udp://x#y", "udp:4739", "tls://x?cert=%zz", "udp://[::1",
	} {
		if l, err := ParseListener(url); err == nil || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "%!") {
			t.Errorf("%s: %+v, %v", url, l, err)
		}
	}
	addrs, optional := (&Listener{Scheme: "udp", Port: 1}).addresses()
	if len(addrs) != 2 || addrs[0] != "127.0.0.1:1" || addrs[1] != "[::1]:1" || optional != 1 {
		t.Errorf("without an address it is loopback: %v", addrs)
	}
}

// TestEndOfDTLS takes the message before the end of a session, however close they are.
func TestEndOfDTLS(t *testing.T) {
	ca := newAuthority(t)
	_, cert, key := ca.issue("collector")
	c := collect(t, Options{}, fmt.Sprintf("dtls://127.0.0.1:0?cert=%s&key=%s", cert, key))
	a, err := net.ResolveUDPAddr("udp", c.addr(0))
	if err != nil {
		t.Fatal(err)
	}
	const sessions = 20
	for range sessions {
		d, err := dtls.DialWithOptions("udp", a, dtls.WithRootCAs(ca.pool()), dtls.WithServerName("localhost"))
		if err != nil {
			t.Fatal(err)
		}
		for i := range uint32(3) {
			write(t, d, message10(i, named, text1("x")))
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	c.wait("all records", func(n Counts) bool { return n.Records == 3*sessions && n.Sessions == 0 })
}

// TestEnd takes the datagrams that came before the end.
func TestEnd(t *testing.T) {
	c := collect(t, Options{}, "udp://127.0.0.1:0")
	conn := dial(t, "udp", c.addr(0))
	const n = 500
	c.Collector.mu.Lock() // nothing is read meanwhile, but for one
	for i := range uint32(n) {
		write(t, conn, message10(i, named, text1("x")))
	}
	c.Collector.mu.Unlock()
	if err := c.stop(); err != nil {
		t.Error(err)
	}
	if k := c.Counts(); k.Records != n || k.Gaps != 0 {
		t.Errorf("%+v", k)
	}
}
