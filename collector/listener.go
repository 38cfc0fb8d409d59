package collector

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
)

// Listener says where to listen.
type Listener struct {
	Scheme string // udp, tcp, tls or dtls
	Host   string // empty: loopback, IPv4 and IPv6; "*": every address
	Port   uint16
	Cert   string // tls, dtls: files in PEM form, of the certificate (chain) and the key
	Key    string
	CA     string // of the authorities that clients must have a certificate of; empty: clients need none
}

const schemes = "udp://, tcp://, tls://, dtls://, netflow9+udp://"

// ParseListener reads a URL: scheme://[address][:port][?cert=FILE&key=FILE&ca=FILE]. The ports of RFC 7011, section
// 10.1, are the default, and 2055 of netflow9+udp, which is but another name of udp: both take IPFIX and every NetFlow.
// Without an address it is loopback.
func ParseListener(s string) (Listener, error) {
	bad := func(format string, args ...any) (Listener, error) {
		return Listener{}, fmt.Errorf("listen %q: %w", s, fmt.Errorf(format, args...))
	}
	rest, host := s, ""
	if scheme, after, ok := strings.Cut(s, "://*"); ok { // no host of package url
		rest, host = scheme+"://"+after, "*"
	}
	u, err := url.Parse(rest)
	if err != nil {
		return bad("%w", errors.Unwrap(err))
	}
	l := Listener{Scheme: u.Scheme, Host: host, Port: 4739}
	switch u.Scheme {
	case "udp", "tcp":
	case "tls", "dtls":
		l.Port = 4740
	case "netflow9+udp":
		l.Scheme, l.Port = "udp", 2055
	default:
		return bad("must begin with one of %s", schemes)
	}
	if u.Opaque != "" || u.User != nil || u.Fragment != "" || u.Path != "" && u.Path != "/" {
		return bad("more than scheme, address, port and options")
	}
	if u.Port() != "" {
		n, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil {
			return bad("port %s must be from 0 to 65535", u.Port())
		}
		l.Port = uint16(n)
	}
	if u.Hostname() != "" {
		l.Host = u.Hostname()
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return bad("%w", err)
	}
	for name, values := range q {
		to := map[string]*string{"cert": &l.Cert, "key": &l.Key, "ca": &l.CA}[name]
		switch {
		case to == nil || l.Scheme != "tls" && l.Scheme != "dtls":
			return bad("option %s is unknown; tls and dtls have cert, key and ca", name)
		case len(values) != 1 || values[0] == "":
			return bad("option %s needs one file", name)
		}
		*to = values[0]
	}
	if (l.Scheme == "tls" || l.Scheme == "dtls") && (l.Cert == "" || l.Key == "") {
		return bad("%s needs ?cert=FILE&key=FILE", l.Scheme)
	}
	return l, nil
}

// addresses are those to listen at. Without a host a missing IPv6 is no reason to fail.
func (l *Listener) addresses() (addrs []string, optional int) {
	port := strconv.Itoa(int(l.Port))
	switch l.Host {
	case "":
		return []string{net.JoinHostPort("127.0.0.1", port), net.JoinHostPort("::1", port)}, 1
	case "*":
		return []string{net.JoinHostPort("", port)}, 0
	}
	return []string{net.JoinHostPort(l.Host, port)}, 0
}

// credentials reads the files of tls and dtls. clients is nil where clients need no certificate.
func (l *Listener) credentials() (cert tls.Certificate, clients *x509.CertPool, err error) {
	cert, err = tls.LoadX509KeyPair(l.Cert, l.Key)
	if err != nil {
		return cert, nil, fmt.Errorf("read certificate: %w", err)
	}
	if l.CA == "" {
		return cert, nil, nil
	}
	pem, err := os.ReadFile(l.CA)
	if err != nil {
		return cert, nil, fmt.Errorf("read authorities: %w", err)
	}
	clients = x509.NewCertPool()
	if !clients.AppendCertsFromPEM(pem) {
		return cert, nil, fmt.Errorf("read authorities: no certificate in %s", l.CA)
	}
	return cert, clients, nil
}
