package ipfix

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/pion/dtls/v3"
)

// secureUDP sends messages by DTLS 1.2 (RFC 7011, section 11.1), each in one record and datagram. A collector that was restarted does not
// know the session, and cannot say so; so there is a new one every Config.SessionTime.
type secureUDP struct {
	x     *Exporter
	udp   *net.UDPConn
	conn  *dtls.Conn
	gone  chan struct{}
	begin time.Time
	max   int
	pace  pace
}

// dtlsOverhead is what a record adds to a message: header 13, and of the cipher suites of pion at most explicit IV 16, MAC 48, padding 16.
const dtlsOverhead = 13 + 16 + 48 + 16

func newDTLS(x *Exporter) (*secureUDP, error) {
	if _, err := newCredentials(x.conf()); err != nil {
		return nil, err
	}
	return &secureUDP{x: x}, nil
}

func (d *secureUDP) open(ctx context.Context) error {
	files := d.x.conf().credentials()
	roots, err := files.roots()
	if err != nil {
		return err
	}
	ours, err := files.certificate()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	dialer := d.x.conf().dialer("udp")
	c, err := dialer.DialContext(ctx, "udp", d.x.conf().Address)
	if err != nil {
		return err
	}
	d.udp = c.(*net.UDPConn)
	v6 := c.RemoteAddr().(*net.UDPAddr).IP.To4() == nil
	d.max = messageSize(d.udp, d.x.conf().MTU, v6) - dtlsOverhead
	options := []dtls.ClientOption{dtls.WithServerName(files.name), dtls.WithMTU(d.max + dtlsOverhead)}
	if roots != nil {
		options = append(options, dtls.WithRootCAs(roots))
	}
	if len(ours.Certificate) > 0 {
		options = append(options, dtls.WithCertificates(ours))
	}
	if d.conn, err = dtls.ClientWithOptions(connected{d.udp}, c.RemoteAddr(), options...); err == nil {
		if err = d.conn.HandshakeContext(ctx); err != nil {
			d.conn.Close()
		}
	}
	if err != nil {
		c.Close()
		if ctx.Err() != nil {
			err = errors.New("no DTLS handshake within " + dialTimeout.String())
		}
		return err
	}
	d.begin, d.pace, d.gone = time.Now(), newPace(d.x.conf().MaxRate), make(chan struct{})
	go func(conn *dtls.Conn, gone chan struct{}) { // ends with conn
		io.Copy(io.Discard, conn) // a collector never sends anything, but for its end
		close(gone)
	}(d.conn, d.gone)
	return nil
}

// connected is a connected socket in the form that package dtls wants.
type connected struct{ *net.UDPConn }

func (c connected) WriteTo(b []byte, _ net.Addr) (int, error) { return c.Write(b) }

func (d *secureUDP) limit() int            { return max(d.max, unknownPathMessage) }
func (d *secureUDP) dead() <-chan struct{} { return d.gone }

func (d *secureUDP) renew() bool {
	return time.Since(d.begin) >= d.x.conf().SessionTime
}

func (d *secureUDP) address() net.Addr { return d.udp.RemoteAddr() }

func (d *secureUDP) send(msg []byte, records int) error {
	d.pace.take(paced(len(msg)), &d.x.stopBy)
	if _, err := d.conn.Write(msg); err != nil {
		d.x.droppedSend.Add(uint64(records))
		if errors.Is(err, syscall.EMSGSIZE) {
			d.max = messageSize(d.udp, d.x.conf().MTU, d.udp.RemoteAddr().(*net.UDPAddr).IP.To4() == nil) - dtlsOverhead
			return err
		}
		// A collector that refuses has lost the session.
		return ended{err}
	}
	d.x.sent(len(msg), records)
	return nil
}

func (d *secureUDP) flush() error { return nil }

func (d *secureUDP) close() error {
	err := d.conn.Close() // sends close_notify
	d.udp.Close()
	<-d.gone
	return err
}
