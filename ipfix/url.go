package ipfix

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sockflow/sockflow/selection"
	"github.com/sockflow/sockflow/templates"
)

// Config configures an Exporter. Its zero value, but for Network and Address, is the documented default.
type Config struct {
	Protocol Protocol
	Network  string // udp, dtls, tcp, tls, sctp or file
	Address  string // host:port; a path
	Number   int    // of several collectors at one address, which this is; 0 and 1: the first

	Options         templates.Options
	Domain          uint32        // Observation Domain Id; v9: Source ID
	MTU             int           // largest IP packet over UDP in octets; 0: the path MTU
	MaxRate         int           // UDP, DTLS: messages/s at most; 0: without bound
	TemplateRefresh time.Duration // UDP, DTLS: templates are sent this often; default 60 s
	StreamRefresh   bool          // over streams too, where once for each connection is enough
	ReconnectMin    time.Duration // first wait before a collector is tried again; default 1 s
	ReconnectMax    time.Duration // longest wait; default 60 s
	SendTimeout     time.Duration // streams: a collector that takes nothing for so long is given up; default 30 s
	SessionTime     time.Duration // DTLS: a new session at least this often; default 5 min
	Queue           int           // records that wait for the collector at most; default 65536
	Boot            time.Time     // start of the exporter, when sysUptime was 0 (v9); default: when it was made

	// The contents of options records (RFC 7011, section 4).
	Version string // of the exporter
	Kernel  string // its release

	// Files of TLS and DTLS, read for each connection.
	CA         string // PEM; default: the system's authorities
	Cert, Key  string // PEM; default: no client certificate
	ServerName string // that the collector's certificate must be for; default: the host of Address

	Source netip.Addr // that messages are sent from; the zero value: what the route says
	Device string     // network interface, or VRF, that messages leave by; empty: what the route says

	Spool     string // folder in which a stream collector has its spool; none if empty
	SpoolSize int64  // octets on disk at most, of each collector; default 256 MiB

	// Files (RFC 5655).
	RotateSize int64         // octets after which another file begins; 0: never
	RotateTime time.Duration // likewise
	Keep       int           // finished files that are kept; 0: all
	Sync       time.Duration // written through to the device this often; 0: when a file is finished; -1: never

	Filter    string // select records for this collector (package selection); empty: all
	Anonymize string // file of a key, by which addresses are replaced for this collector; empty: they are not

	// Notify, if set, is called with one line when the collector becomes unreachable and when it is back. It must not
	// wait.
	Notify func(ok bool, line string)

	resolver *net.Resolver
	stopBy   *atomic.Int64
}

// spoolDir is the folder of this collector's spool.
func (c *Config) spoolDir() string {
	return filepath.Join(c.Spool, strings.NewReplacer("/", "_", ":", "_").Replace(c.Name()))
}

// DefaultMaxRate is a number of messages a second that nfcapd stores without loss, with a receive buffer of 2 MB, on a busy host.
const DefaultMaxRate = 20000

// complete fills in defaults and checks.
func (c *Config) complete() error {
	switch c.Network {
	case "udp", "dtls", "tcp", "tls", "sctp":
		if _, _, err := net.SplitHostPort(c.Address); err != nil {
			return err
		}
	case "file":
		if c.Address == "" {
			return errors.New("no path")
		}
		c.TemplateRefresh = time.Second // how often it is looked whether another file is due
	default:
		return fmt.Errorf("network %q: must be udp, dtls, tcp, tls, sctp or file", c.Network)
	}
	if c.Protocol == NetFlowV9 && c.Network != "udp" {
		return errors.New("netflow v9 goes over udp only")
	}
	for _, d := range []struct {
		value    *time.Duration
		default_ time.Duration
	}{
		{&c.TemplateRefresh, time.Minute}, {&c.ReconnectMin, time.Second}, {&c.ReconnectMax, time.Minute},
		{&c.SendTimeout, 30 * time.Second}, {&c.SessionTime, 5 * time.Minute},
	} {
		if *d.value == 0 {
			*d.value = d.default_
		}
	}
	if c.Queue == 0 {
		c.Queue = 1 << 16
	}
	if c.SpoolSize == 0 {
		c.SpoolSize = 256 << 20
	}
	if c.SpoolSize < leastSpool {
		return fmt.Errorf("spool-size must be at least %d octets", leastSpool)
	}
	if c.Boot.IsZero() {
		c.Boot = time.Now()
	}
	if c.resolver == nil {
		c.resolver = net.DefaultResolver
	}
	if c.Notify == nil {
		c.Notify = func(bool, string) {}
	}
	return nil
}

// schemes are those of collector URLs, with the port of RFC 7011, section 10.1, or what is usual.
var schemes = map[string]string{
	"udp": "4739", "tcp": "4739", "sctp": "4739", "tls": "4740", "dtls": "4740", "netflow9+udp": "2055",
}

// ParseURL overrides base by a collector URL: scheme://host[:port][?option=value&...] or file:PATH[?option=value&...].
func ParseURL(s string, base Config) (Config, error) {
	cfg := base
	scheme, _, _ := strings.Cut(s, ":")
	if scheme == "file" {
		return parseFile(s, cfg)
	}
	u, err := url.Parse(s)
	if err != nil {
		return cfg, fmt.Errorf("collector %q: %w", s, errors.Unwrap(err))
	}
	port, ok := schemes[u.Scheme]
	if !ok {
		return cfg, fmt.Errorf("collector %q: the scheme must be udp, tcp, tls, dtls, sctp, netflow9+udp, zmq, file or json", s)
	}
	cfg.Protocol, cfg.Network = IPFIX, u.Scheme
	if u.Scheme == "netflow9+udp" {
		cfg.Protocol, cfg.Network = NetFlowV9, "udp"
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
	cfg.Options.Padding = cfg.Protocol == IPFIX && cfg.Network == "udp" // UDP_SEGMENT wants messages of one length
	cfg.Address = net.JoinHostPort(u.Hostname(), port)
	if _, _, err := net.SplitHostPort(cfg.Address); err != nil {
		return cfg, fmt.Errorf("collector %q: %q is no host", s, u.Hostname())
	}
	return cfg, cfg.options(s, u.RawQuery)
}

// parseFile takes everything up to the last question mark for the path.
func parseFile(s string, cfg Config) (Config, error) {
	path, query := strings.TrimPrefix(s, "file:"), ""
	if i := strings.LastIndexByte(path, '?'); i >= 0 {
		path, query = path[:i], path[i+1:]
	}
	if strings.HasPrefix(path, "//") { // file:///path
		path = path[2:]
		if !strings.HasPrefix(path, "/") {
			return cfg, fmt.Errorf("collector %q: a file is on this host; write file:PATH", s)
		}
	}
	if path == "" || strings.HasSuffix(path, "/") || strings.ContainsRune(path, 0) {
		return cfg, fmt.Errorf("collector %q: no path; write file:PATH", s)
	}
	cfg.Protocol, cfg.Network, cfg.Address = IPFIX, "file", path
	return cfg, cfg.options(s, query)
}

func (c *Config) options(s, rawQuery string) error {
	query, err := url.ParseQuery(rawQuery)
	if err != nil {
		return fmt.Errorf("collector %q: %w", s, err)
	}
	for name, values := range query {
		if len(values) != 1 && name != "rotate" {
			return fmt.Errorf("collector %q: option %s is given twice", s, name)
		}
		for _, v := range values {
			if err := c.option(name, v); err != nil {
				return fmt.Errorf("collector %q: option %s: %w", s, name, err)
			}
		}
	}
	return nil
}

// optionNames lists the options, and of which networks they are.
var optionNames = map[string][]string{
	"application": nil, "dialect": nil, "direction": nil, "domain": nil, "fields": nil, "filter": nil, "anonymize": nil, "pen": nil, "queue": nil, "string-length": nil,
	"source": {"udp", "dtls", "tcp", "tls", "sctp"}, "device": {"udp", "dtls", "tcp", "tls", "sctp"},
	"mtu": {"udp", "dtls"}, "max-rate": {"udp", "dtls"}, "v9-base": {"udp"},
	"template-refresh": {"udp", "dtls", "tcp", "tls", "sctp"}, "session-time": {"dtls"},
	"reconnect-min": {"udp", "dtls", "tcp", "tls", "sctp"}, "reconnect-max": {"udp", "dtls", "tcp", "tls", "sctp"},
	"send-timeout": {"tcp", "tls", "sctp"}, "spool": {"tcp", "tls", "sctp"}, "spool-size": {"tcp", "tls", "sctp"},
	"ca": {"tls", "dtls"}, "cert": {"tls", "dtls"}, "key": {"tls", "dtls"}, "server-name": {"tls", "dtls"},
	"rotate": {"file"}, "keep": {"file"}, "fsync": {"file"},
}

// ParseSize reads octets, as 1048576, 100k, 10M or 1GiB: units are powers of 1024.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "kKMGTiB")
	unit, ok := map[string]uint{"": 0, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40}[strings.ToUpper(strings.TrimSuffix(strings.TrimSuffix(s[len(digits):], "B"), "i"))]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !ok || n < 0 || n > (1<<62)>>unit {
		return 0, fmt.Errorf("%q is no size; write 100M or 1G", s)
	}
	return n << unit, nil
}

func (c *Config) option(name, value string) error {
	networks, ok := optionNames[name]
	if !ok || networks != nil && !slices.Contains(networks, c.Network) {
		var names []string
		for n, networks := range optionNames {
			if networks == nil || slices.Contains(networks, c.Network) {
				names = append(names, n)
			}
		}
		slices.Sort(names)
		return fmt.Errorf("unknown; there are %s", strings.Join(names, ", "))
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
	text := func(to *string) error {
		if value == "" {
			return errors.New("is empty")
		}
		*to = value
		return nil
	}
	var n uint64
	var err error
	switch name {
	case "application":
		if value != "port" && value != "process" {
			return fmt.Errorf("%q must be port or process", value)
		}
		c.Options.Programs = value == "process"
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
	case "filter":
		if _, err = selection.Parse(value); err == nil {
			c.Filter = value
		}
	case "anonymize":
		err = text(&c.Anonymize)
	case "mtu":
		n, err = number(576, 65535)
		c.MTU = int(n)
	case "max-rate":
		n, err = number(0, 1<<31-1)
		c.MaxRate = int(n)
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
	case "send-timeout":
		err = duration(&c.SendTimeout)
	case "session-time":
		err = duration(&c.SessionTime)
	case "string-length":
		n, err = number(1, 4096)
		c.Options.MaxString = int(n)
	case "template-refresh":
		err = duration(&c.TemplateRefresh)
		c.StreamRefresh = true
	case "v9-base":
		n, err = number(1, 32667)
		c.Options.V9Base = uint16(n)
	case "ca":
		err = text(&c.CA)
	case "cert":
		err = text(&c.Cert)
	case "key":
		err = text(&c.Key)
	case "server-name":
		err = text(&c.ServerName)
	case "source":
		c.Source, err = parseSource(value)
	case "device":
		c.Device, err = parseDevice(value)
	case "spool":
		c.Spool = value // empty: without, whatever --spool says
	case "spool-size":
		if c.SpoolSize, err = ParseSize(value); err == nil && c.SpoolSize < leastSpool {
			err = fmt.Errorf("%q must be at least 1M", value)
		}
	case "keep":
		n, err = number(1, 1<<20)
		c.Keep = int(n)
	case "fsync":
		switch value {
		case "never":
			c.Sync = -1
		case "close":
			c.Sync = 0
		case "message":
			c.Sync = 1
		default:
			if duration(&c.Sync) != nil {
				err = fmt.Errorf("%q must be never, close, message or a duration of at least 100ms", value)
			}
		}
	case "rotate":
		before := c.RotateTime
		if duration(&c.RotateTime) == nil {
			if before != 0 {
				err = errors.New("two durations")
			}
			break
		}
		if c.RotateSize != 0 {
			return errors.New("two sizes")
		}
		if c.RotateSize, err = ParseSize(value); err != nil || c.RotateSize < 1<<16 {
			err = fmt.Errorf("%q must be a size of at least 64k, as 100M, or a duration, as 1h", value)
		}
	}
	return err
}
