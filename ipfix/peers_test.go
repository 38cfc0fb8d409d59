package ipfix

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/netsampler/goflow2/v2/decoders/netflow"

	"github.com/sockflow/sockflow/flowcache"
)

// started is a running Exporter.
type started struct {
	*Exporter
	t     *testing.T
	stop  func() // ends it and waits
	mu    sync.Mutex
	lines []string // of Notify
	next  int      // number of the next record
}

// begin starts the exporter of a URL.
func begin(t *testing.T, url string, base Config) *started {
	t.Helper()
	s := &started{t: t}
	base.Notify = func(_ bool, line string) {
		s.mu.Lock()
		s.lines = append(s.lines, line)
		s.mu.Unlock()
	}
	if base.ReconnectMin == 0 {
		base.ReconnectMin, base.ReconnectMax = 100*time.Millisecond, 300*time.Millisecond
	}
	cfg, err := ParseURL(url, base)
	if err != nil {
		t.Fatal(err)
	}
	if s.Exporter, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }() // ends with ctx
	s.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(s.stop)
	return s
}

// freeAddress is one at which nobody listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return l.Addr().String()
}

// idle starts an exporter with a collector that has accepted its connection c and does not read. buffer is the collector's SO_RCVBUF; 0
// for one that the kernel sizes.
func idle(t *testing.T, query string, buffer int, base Config) (x *started, l net.Listener, c net.Conn) {
	t.Helper()
	cfg := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		raw.Control(func(fd uintptr) {
			if buffer > 0 {
				err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, buffer)
			}
		})
		return err
	}}
	l, err := cfg.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	x = begin(t, "tcp://"+l.Addr().String()+query, base)
	if c, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return x, l, c
}

// give offers n records in batches. Their payload octets number them from 0.
func (s *started) give(n int) {
	s.t.Helper()
	for n > 0 {
		r := flowcache.RecordPool(nil).Get()
		for range min(n, 100) {
			rec := *record(0)
			rec.Forward.Payload = uint64(s.next)
			r.List = append(r.List, rec)
			s.next++
		}
		n -= len(r.List)
		if !s.Offer(r) {
			s.t.Fatalf("record %d is not taken", s.next)
		}
	}
}

// text returns all lines that Notify was called with.
func (s *started) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

// said waits for a line of Notify.
func (s *started) said(text string) {
	s.t.Helper()
	eventually(s.t, "it says "+text, func() bool { return strings.Contains(s.text(), text) })
}

// balance checks the two sums of Stats.
func (s *started) balance() {
	s.t.Helper()
	st := s.Stats()
	if got := st.Encoded + st.Filtered + st.DroppedQueue + st.DroppedBig + st.Waiting; got != uint64(s.next) {
		s.t.Errorf("%d records are accounted for, of %d: %+v", got, s.next, st)
	}
	if st.Made+st.Recovered != st.Records+st.DroppedSend+st.DroppedSpool+st.Backlog {
		s.t.Errorf("Data Records do not add up: %+v", st)
	}
}

// numbers decodes the messages of one session by goflow2 and returns the numbers of its records. A last message that is not whole is
// passed over. It checks the sequence.
func numbers(t *testing.T, session []byte) []int {
	t.Helper()
	return decode(t, session, false)
}

// decode decodes messages, of which some may be missing if lossy.
func decode(t *testing.T, session []byte, lossy bool) []int {
	t.Helper()
	dec := netflow.CreateTemplateSystem()
	var l []int
	next := uint32(0)
	for len(session) >= headerIPFIX {
		n := int(binary.BigEndian.Uint16(session[2:]))
		if n < headerIPFIX {
			t.Fatalf("message of %d octets", n)
		}
		if n > len(session) {
			break
		}
		var x netflow.IPFIXPacket
		if err := netflow.DecodeMessageVersion(bytes.NewBuffer(withoutWithdrawals(session[:n])), dec, nil, &x); err != nil && !lossy {
			t.Fatal(err)
		}
		if x.SequenceNumber != next && !lossy {
			t.Fatalf("sequence %d, want %d", x.SequenceNumber, next)
		}
		for _, set := range x.FlowSets {
			switch set := set.(type) {
			case netflow.OptionsDataFlowSet:
				next += uint32(len(set.Records))
			case netflow.DataFlowSet:
				next += uint32(len(set.Records))
				for _, r := range set.Records {
					for _, f := range r.Values {
						if f.Type == 401 && !f.PenProvided {
							l = append(l, int(binary.BigEndian.Uint64(f.Value.([]byte))))
						}
					}
				}
			}
		}
		session = session[n:]
	}
	return l
}

// withoutWithdrawals returns msg less sets that withdraw options templates, which goflow2 cannot read.
func withoutWithdrawals(msg []byte) []byte {
	out := bytes.Clone(msg[:headerIPFIX])
	for b := msg[headerIPFIX:]; len(b) >= setHeader; {
		n := int(binary.BigEndian.Uint16(b[2:]))
		if n < setHeader || n > len(b) {
			return msg
		}
		if n < 8 || binary.BigEndian.Uint16(b) != setOptionsTemplate || binary.BigEndian.Uint16(b[6:]) != 0 {
			out = append(out, b[:n]...)
		}
		b = b[n:]
	}
	binary.BigEndian.PutUint16(out[2:], uint16(len(out)))
	return out
}

// inOrder checks that the sessions brought the records from first to last, in order, each once but for repeats: how often a later session
// may begin again with records that an earlier one brought.
func inOrder(t *testing.T, sessions [][]byte, first, last int) (repeated int) {
	t.Helper()
	want := first
	for _, s := range sessions {
		for _, n := range numbers(t, s) {
			switch {
			case n == want:
				want++
			case n < want:
				repeated++
				if n != want-1 { // the repeat goes on to the next
					want = n + 1
				}
			default:
				t.Fatalf("record %d follows on %d", n, want-1)
			}
		}
	}
	if want != last+1 {
		t.Errorf("records end with %d, want %d", want-1, last)
	}
	return repeated
}

// authority signs certificates for tests.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.sign("ca", &x509.Certificate{
		Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, time.Hour)
	return a
}

// path of a file of an authority.
func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// sign writes NAME.pem and NAME.key.
func (a *authority) sign(name string, c *x509.Certificate, life time.Duration) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	a.n++
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(a.n), time.Now().Add(-2*time.Hour), time.Now().Add(life)
	parent, by := a.cert, a.key
	if parent == nil {
		parent, by = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
	if err != nil {
		a.t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, b := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(a.path(file), pem.EncodeToMemory(b), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// issue signs a certificate for a collector of a name, or for an exporter.
func (a *authority) issue(file, name string, life time.Duration) {
	a.t.Helper()
	a.sign(file, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, life)
}

// server is the configuration of a TLS collector that wants client certificates. Its certificate is read for each connection.
func (a *authority) server(file string) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c, err := tls.LoadX509KeyPair(a.path(file+".pem"), a.path(file+".key"))
			return &c, err
		},
	}
}

// serve takes connections of l until it is closed, as listen does.
func serve(t *testing.T, l net.Listener) *sink {
	t.Helper()
	s := &sink{l: l}
	t.Cleanup(func() { l.Close() })
	go s.accept() // ends with l
	return s
}
