package ipfix

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sockflow/sockflow/templates"
)

// Config configures an Exporter. Its zero value, but for Network and Address, is the documented default.
type Config struct {
	Protocol Protocol
	Network  string // udp or tcp
	Address  string // host:port

	Options         templates.Options
	Domain          uint32        // Observation Domain Id; v9: Source ID
	MTU             int           // largest IP packet over UDP in octets; 0: the path MTU
	TemplateRefresh time.Duration // UDP: templates are sent this often; default 60 s
	ReconnectMin    time.Duration // first wait before a collector is tried again; default 1 s
	ReconnectMax    time.Duration // longest wait; default 60 s
	Queue           int           // records that wait for the collector at most; default 65536
	Boot            time.Time     // start of the exporter, when sysUptime was 0 (v9); default: when it was made

	// What options records tell (RFC 7011, section 4).
	Version string // of the exporter
	Kernel  string // its release

	// Notify, if set, is told in one line when the collector becomes unreachable and when it is back. It must not wait.
	Notify func(ok bool, line string)
}

// ErrNotBuilt is wrapped by the error for a transport that is planned and not there yet.
var ErrNotBuilt = errors.New("not built yet")

var schemes = "udp://, tcp://, netflow9+udp://, zmq://, json:"

// ParseURL overrides base by a collector URL: scheme://host[:port][?option=value&...]. The ports of RFC 7011, section 10.1, are
// the default; of NetFlow v9 it is 2055.
func ParseURL(s string, base Config) (Config, error) {
	cfg := base
	u, err := url.Parse(s)
	if err != nil {
		return cfg, fmt.Errorf("collector %q: %w", s, errors.Unwrap(err))
	}
	port := "4739"
	switch u.Scheme {
	case "udp", "tcp":
		cfg.Protocol, cfg.Network = IPFIX, u.Scheme
	case "netflow9+udp":
		cfg.Protocol, cfg.Network, port = NetFlowV9, "udp", "2055"
	case "tls", "dtls", "sctp", "file":
		return cfg, fmt.Errorf("collector %q: %s: %w", s, u.Scheme, ErrNotBuilt)
	default:
		return cfg, fmt.Errorf("collector %q: scheme must be one of %s", s, schemes)
	}
	if u.Port() != "" {
		port = u.Port()
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return cfg, fmt.Errorf("collector %q: port must be from 1 to 65535", s)
	}
	if u.Hostname() == "" || u.Opaque != "" {
		return cfg, fmt.Errorf("collector %q: no host; write %s://host:%s", s, u.Scheme, port)
	}
	if _, err := netip.ParseAddr(u.Hostname()); strings.Contains(u.Hostname(), ":") && err != nil {
		return cfg, fmt.Errorf("collector %q: %q is no host", s, u.Hostname())
	}
	if u.Path != "" && u.Path != "/" || u.User != nil || u.Fragment != "" {
		return cfg, fmt.Errorf("collector %q: more than scheme, host, port and options", s)
	}
	cfg.Address = net.JoinHostPort(u.Hostname(), port)
	if _, _, err := net.SplitHostPort(cfg.Address); err != nil {
		return cfg, fmt.Errorf("collector %q: %q is no host", s, u.Hostname())
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return cfg, fmt.Errorf("collector %q: %w", s, err)
	}
	for name, values := range query {
		if len(values) != 1 {
			return cfg, fmt.Errorf("collector %q: option %s is given twice", s, name)
		}
		if err := cfg.option(name, values[0]); err != nil {
			return cfg, fmt.Errorf("collector %q: option %s: %w", s, name, err)
		}
	}
	return cfg, nil
}

var optionNames = []string{"dialect", "direction", "domain", "fields", "mtu", "pen", "queue", "reconnect-max", "reconnect-min", "string-length", "template-refresh", "v9-base"}

func (c *Config) option(name, value string) error {
	if !slices.Contains(optionNames, name) {
		return fmt.Errorf("unknown; there are %s", strings.Join(optionNames, ", "))
	}
	number := func(min, max uint64) (uint64, error) {
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil || n < min || n > max {
			return 0, fmt.Errorf("%q must be a number from %d to %d", value, min, max)
		}
		return n, nil
	}
	duration := func(to *time.Duration) error {
		d, err := time.ParseDuration(value)
		if err != nil || d < 100*time.Millisecond {
			return fmt.Errorf("%q must be a duration of at least 100ms, as 30s", value)
		}
		*to = d
		return nil
	}
	var n uint64
	var err error
	switch name {
	case "dialect":
		c.Options.Dialect, err = templates.ParseDialect(value)
	case "direction":
		if value != "biflow" && value != "uniflow" {
			return fmt.Errorf("%q must be biflow or uniflow", value)
		}
		c.Options.Uniflow = value == "uniflow"
	case "domain":
		n, err = number(0, 1<<32-1)
		c.Domain = uint32(n)
	case "fields":
		c.Options.Fields = strings.ReplaceAll(value, " ", "+") // a plus in a query is a blank
	case "mtu":
		n, err = number(576, 65535)
		c.MTU = int(n)
	case "pen":
		n, err = number(1, 1<<32-1)
		c.Options.PEN = uint32(n)
	case "queue":
		n, err = number(1, 1<<24)
		c.Queue = int(n)
	case "reconnect-max":
		err = duration(&c.ReconnectMax)
	case "reconnect-min":
		err = duration(&c.ReconnectMin)
	case "string-length":
		n, err = number(1, 4096)
		c.Options.MaxString = int(n)
	case "template-refresh":
		err = duration(&c.TemplateRefresh)
	case "v9-base":
		n, err = number(1, 32667)
		c.Options.V9Base = uint16(n)
	}
	return err
}
