package kube

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sockflow/sockflow/internal/smallfile"
)

// Config configures a Source. Its zero value, but for Server, is the documented default.
type Config struct {
	// Server is the URL of the API server, the path of a kubeconfig file, or "auto": the cluster that this pod runs in, else the files that
	// KUBECONFIG names.
	Server    string
	TokenFile string // holds a bearer token, read anew for each request: tokens are rotated
	CAFile    string // certificates, PEM, that the server's must be signed by, read anew for each request; default those of the system
	// Node, if set, limits pods to those of this node.
	Node string

	BackoffMin time.Duration // first wait after a failure; default 1 s
	BackoffMax time.Duration // longest wait; default 60 s
	WatchTime  time.Duration // how long the server is asked to let a watch run; default 5 min
	// Spread is in how much time the first lists are asked for, as all nodes of a cluster may start at one time; default 3 s, negative: at once.
	Spread time.Duration

	// Notify, if set, is called with one line when a resource cannot be read and when it is read again. It must not wait.
	Notify func(ok bool, line string)
}

// ErrNoCluster means that Server is "auto" and that neither a service account nor KUBECONFIG names a cluster.
var ErrNoCluster = errors.New("this is no pod with a service account, and KUBECONFIG is not set")

// Where a pod finds its service account.
const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

// access is how to reach a server.
type access struct {
	server     *url.URL
	serverName string // of its certificate, if not the host's
	token      func() (string, error)
	ca         func() ([]byte, error) // PEM; nil: the system's
	insecure   bool                   // do not check the server's certificate
	cert, key  func() ([]byte, error)
}

// resolve finds out what cfg means.
func (cfg *Config) resolve() (*access, error) {
	switch {
	case cfg.Server == "auto":
		host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
		if _, err := os.Stat(serviceAccount + "/token"); host != "" && port != "" && err == nil {
			in := *cfg
			in.Server = "https://" + net.JoinHostPort(host, port)
			if in.TokenFile == "" {
				in.TokenFile = serviceAccount + "/token"
			}
			if in.CAFile == "" {
				in.CAFile = serviceAccount + "/ca.crt"
			}
			return in.direct()
		}
		if path := os.Getenv("KUBECONFIG"); path != "" {
			return cfg.kubeconfigs(filepath.SplitList(path))
		}
		return nil, ErrNoCluster
	case strings.Contains(cfg.Server, "://"):
		return cfg.direct()
	}
	return cfg.kubeconfigs([]string{cfg.Server})
}

// direct is a server by its URL.
func (cfg *Config) direct() (*access, error) {
	a := &access{}
	if err := a.setServer(cfg.Server); err != nil {
		return nil, err
	}
	return a, cfg.files(a)
}

// files adds the token and the certificates of cfg's files, which win over a kubeconfig's.
func (cfg *Config) files(a *access) error {
	if cfg.TokenFile != "" {
		a.token = tokenFrom(cfg.TokenFile)
		if _, err := a.token(); err != nil {
			return err
		}
	}
	if cfg.CAFile != "" {
		path := cfg.CAFile
		a.ca = func() ([]byte, error) {
			b, err := smallfile.Read(path)
			if err != nil {
				return nil, fmt.Errorf("read certificates: %w", err)
			}
			return b, nil
		}
		if _, err := a.ca(); err != nil {
			return err
		}
	}
	if a.token != nil && a.server.Scheme == "http" {
		if ip, err := netip.ParseAddr(a.server.Hostname()); (err != nil || !ip.IsLoopback()) && a.server.Hostname() != "localhost" {
			return fmt.Errorf("%s: a token goes over https only", a.server)
		}
	}
	return nil
}

func (a *access) setServer(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		return fmt.Errorf("server %q: %w", s, errors.Unwrap(err))
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.User != nil {
		return fmt.Errorf("server %q: must be https://HOST[:PORT]", s)
	}
	a.server = u
	return nil
}

func tokenFrom(path string) func() (string, error) {
	return func() (string, error) {
		b, err := smallfile.Read(path)
		if err != nil {
			return "", fmt.Errorf("read token: %w", err)
		}
		token := strings.TrimSpace(string(b))
		if token == "" || strings.ContainsAny(token, "\r\n") {
			return "", fmt.Errorf("read token %s: no token in it", path)
		}
		return token, nil
	}
}
