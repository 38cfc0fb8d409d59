package ipfix

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/sockflow/sockflow/internal/smallfile"
)

// credentials are the files of a TLS or DTLS collector. They are read again for every connection, so that certificates can be
// exchanged while the exporter runs. Secrets come from files alone.
type credentials struct {
	ca, cert, key string
	name          string // that the collector's certificate must be for
}

// credentials are the files of a collector.
func (c *Config) credentials() *credentials {
	f := &credentials{ca: c.CA, cert: c.Cert, key: c.Key, name: c.ServerName}
	if f.name == "" {
		f.name, _, _ = net.SplitHostPort(c.Address) // it was checked
	}
	return f
}

// newCredentials checks that the files can be used.
func newCredentials(c *Config) (*credentials, error) {
	f := c.credentials()
	if (f.cert == "") != (f.key == "") {
		return nil, errors.New("options cert and key go together")
	}
	if _, err := f.roots(); err != nil {
		return nil, err
	}
	_, err := f.certificate()
	return f, err
}

// roots are the authorities that may sign the collector's certificate; nil for those of the system.
func (f *credentials) roots() (*x509.CertPool, error) {
	if f.ca == "" {
		return nil, nil
	}
	b, err := smallfile.Read(f.ca)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s: no PEM certificate in it", f.ca)
	}
	return pool, nil
}

// certificate is ours; an empty one if there is none.
func (f *credentials) certificate() (tls.Certificate, error) {
	if f.cert == "" {
		return tls.Certificate{}, nil
	}
	var c tls.Certificate
	cert, err := smallfile.Read(f.cert)
	if err != nil {
		return c, err
	}
	key, err := smallfile.Read(f.key)
	if err == nil {
		c, err = tls.X509KeyPair(cert, key)
	}
	if err != nil {
		return c, fmt.Errorf("certificate %s with key %s: %w", f.cert, f.key, err)
	}
	return c, nil
}

// dialTLS connects by TLS 1.2 or 1.3 (RFC 9325). The collector's certificate must be for its name (DNS-ID, RFC 7011, section 11.3).
func (c *Config) dialTLS(ctx context.Context) (*link, error) {
	f := c.credentials()
	roots, err := f.roots()
	if err != nil {
		return nil, err
	}
	ours, err := f.certificate()
	if err != nil {
		return nil, err
	}
	conn, err := c.connectTCP(ctx)
	if err != nil {
		return nil, err
	}
	l := c.newLink(conn, unackedTCP)
	secure := tls.Client(l.conn, &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: f.name,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &ours, nil },
	})
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = errors.New("no TLS handshake within " + dialTimeout.String())
		}
		return nil, err
	}
	conn.SetDeadline(time.Time{})
	l.conn = secure
	return l, nil
}
