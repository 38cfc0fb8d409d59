package collector

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	dtlsnet "github.com/pion/dtls/v3/pkg/net"
	"github.com/pion/transport/v5/udp"
)

// maxDatagramDTLS: the library reads no longer datagram.
const maxDatagramDTLS = 8192

// Content types of DTLS records (RFC 6347, section 4.1).
const (
	contentHandshake       = 22
	contentApplicationData = 23

	headerRecord = 13 // octets before a handshake message
	serverHello  = 2  // its type (RFC 5246, section 7.4)
)

func listenDTLS(addr string, cert tls.Certificate, clients *x509.CertPool) (end, error) {
	a, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return end{}, err
	}
	opts := []dtls.ServerOption{dtls.WithCertificates(cert), dtls.WithExtendedMasterSecret(dtls.RequireExtendedMasterSecret)}
	if clients != nil {
		opts = append(opts, dtls.WithClientAuth(dtls.RequireAndVerifyClientCert), dtls.WithClientCAs(clients))
	}
	lc := udp.ListenConfig{Backlog: 2 * maxHellos, ReadBufferSize: receiveBuffer, AcceptFilter: func(b []byte) bool { return len(b) > 0 && b[0] == contentHandshake }}
	l, err := lc.Listen("udp", a)
	return end{conn: &dtlsListener{l, opts}}, err
}

type dtlsListener struct {
	net.Listener // of datagrams by sender
	opts         []dtls.ServerOption
}

func (l *dtlsListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	g := &gate{Conn: c, open: make(chan struct{})}
	d, err := dtls.ServerWithOptions(dtlsnet.PacketConnFromConn(g), c.RemoteAddr(), l.opts...)
	if err != nil {
		c.Close()
		return nil, err
	}
	return &dtlsConn{Conn: d, gate: g, ready: sync.OnceFunc(func() { close(g.open) })}, nil
}

// gate holds back the messages of a client until the handshake is over at this end too: what comes a moment earlier, the templates that is,
// the library throws away.
type gate struct {
	net.Conn
	open     chan struct{}
	verified atomic.Bool // the client has returned its cookie: it is where it says
}

// Write sees the server's first answer to a client that has shown that.
func (g *gate) Write(b []byte) (int, error) {
	if len(b) > headerRecord && b[0] == contentHandshake && b[headerRecord] == serverHello {
		g.verified.Store(true)
	}
	return g.Conn.Write(b)
}

func (g *gate) Read(b []byte) (int, error) {
	n, err := g.Conn.Read(b)
	if n > 0 && b[0] == contentApplicationData {
		select {
		case <-g.open:
		case <-time.After(time.Second): // a stray one, and the handshake needs others
		}
	}
	return n, err
}

// dtlsConn is a session.
type dtlsConn struct {
	*dtls.Conn
	gate  *gate
	ready func()
}

func (c *dtlsConn) HandshakeContext(ctx context.Context) error {
	defer c.ready()
	return c.Conn.HandshakeContext(ctx)
}

// Read reads a message. Where the end of the session waits behind its last message, the library's Read takes one of the two at random: so
// the end counts when it was read so often that there can be no message.
func (c *dtlsConn) Read(b []byte) (n int, err error) {
	for range 32 {
		if n, err = c.Conn.Read(b); !errors.Is(err, io.EOF) {
			break
		}
	}
	return n, err
}
