package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// client asks a server. Safe for concurrent use.
type client struct {
	access *access
	mu     sync.Mutex
	http   *http.Client
	ca     []byte // that http trusts
}

// answerTime is how long a server may take to begin an answer. A list is answered from memory; a watch begins at once.
const answerTime = 30 * time.Second

func newClient(a *access) (*client, error) {
	c := &client{access: a}
	_, err := c.renew()
	return c, err
}

// renew returns what to ask with, made anew if the certificates of the authority are others by now: they are rotated.
func (c *client) renew() (*http.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ca []byte
	if c.access.ca != nil {
		b, err := c.access.ca()
		if err != nil && c.http == nil {
			return nil, err
		}
		if ca = b; err != nil {
			ca = c.ca // it is being replaced
		}
	}
	if c.http != nil && bytes.Equal(ca, c.ca) {
		return c.http, nil
	}
	h, err := c.access.transport(ca)
	switch {
	case err != nil && c.http == nil:
		return nil, err
	case err != nil:
		return c.http, nil // half of a file, perhaps
	case c.http != nil:
		c.http.CloseIdleConnections()
	}
	c.http, c.ca = h, ca
	return h, nil
}

func (c *client) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.http.CloseIdleConnections()
}

// transport makes a client of HTTP that trusts ca; empty: what the system does.
func (a *access) transport(ca []byte) (*http.Client, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: a.serverName, InsecureSkipVerify: a.insecure}
	if len(ca) > 0 {
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("no certificates (PEM) of an authority")
		}
	} else if a.ca != nil {
		return nil, errors.New("no certificates (PEM) of an authority")
	}
	if a.cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := a.cert()
			if err != nil {
				return nil, err
			}
			key, err := a.key()
			if err != nil {
				return nil, err
			}
			pair, err := tls.X509KeyPair(cert, key)
			return &pair, err
		}
	}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:       cfg,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: answerTime,
			ForceAttemptHTTP2:     true,
			// A connection that died in silence would be waited for until the watch's time is over.
			HTTP2: &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
		},
		// An API server does not redirect, and the token is for it alone.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// statusError is an answer that is not 200.
type statusError struct {
	code    int
	message string
	after   time.Duration // when to come back; 0 unknown
}

func (e *statusError) Error() string {
	if e.message == "" {
		return fmt.Sprintf("%d %s", e.code, http.StatusText(e.code))
	}
	return e.message
}

// errGone says that a resource version, or what continues a list, is too old: everything is to be listed anew.
var errGone = errors.New("the resource version is too old")

// fail returns the error that a Status describes.
func (s *status) fail(code int) error {
	if code == 0 {
		code = s.Code
	}
	if code == http.StatusGone || s.Reason == "Expired" || s.Reason == "Gone" {
		return errGone
	}
	return &statusError{code, oneLine(s.Message), time.Duration(s.Details.RetryAfterSeconds) * time.Second}
}

// oneLine returns at most 200 octets of text from an untrusted source, as one line.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	return strings.ToValidUTF8(s[:min(len(s), 200)], "")
}

// get asks for a resource. The caller closes the body.
func (c *client) get(ctx context.Context, resource string, query url.Values) (io.ReadCloser, error) {
	u := c.access.server.JoinPath("api/v1", resource)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "sockflow")
	if c.access.token != nil {
		token, err := c.access.token()
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	h, err := c.renew()
	if err != nil {
		return nil, err
	}
	resp, err := h.Do(req)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err // the URL is long, and said elsewhere
		}
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var s status
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	json.Unmarshal(b, &s) // best effort: a proxy on the way may have answered
	if s.Details.RetryAfterSeconds == 0 {
		s.Details.RetryAfterSeconds = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	}
	return nil, s.fail(resp.StatusCode)
}

// retryAfter returns the seconds that a Retry-After header says (RFC 9110, section 10.2.3): a number or a date.
func retryAfter(header string, now time.Time) int {
	if n, err := strconv.Atoi(header); err == nil {
		return max(n, 0)
	}
	if t, err := http.ParseTime(header); err == nil {
		return max(int((t.Sub(now)+time.Second-1)/time.Second), 0)
	}
	return 0
}
