package ipfix

import (
	"strings"
	"testing"
)

func TestParseURL(t *testing.T) {
	for _, tc := range []struct{ url, address, err string }{
		{"udp://collector", "collector:4739", ""},
		{"tcp://[::1]:99", "[::1]:99", ""},
		{"netflow9+udp://10.0.0.1", "10.0.0.1:2055", ""},
		{"udp://h?template-refresh=5s&application=process&mtu=1400&dialect=native&direction=uniflow&domain=9&pen=5&queue=10&v9-base=1000&string-length=20&reconnect-min=1s&reconnect-max=2s", "h:4739", ""},
		{"udp://h?application=name", "", "port or process"},
		{"udp://h?mtu=12", "", "576"},
		{"udp://h?mtu=1400&mtu=1500", "", "twice"},
		{"udp://h/path", "", "more than"},
		{"udp://u@h", "", "more than"},
		{"udp://:4739", "", "no host"},
		{"udp://h:0", "", "port"},
		{"gopher://h", "", "scheme"},
		{"h:4739", "", "scheme"},
		{"udp://h:4739:1", "", "collector"},
		{"udp://h?template-refresh=1", "", "duration"},
		{"tls://h?ca=/a&cert=/b&key=/c&server-name=x&spool=/s&spool-size=10M&send-timeout=3s", "h:4740", ""},
		{"dtls://h?session-time=1m&max-rate=100", "h:4740", ""},
		{"sctp://h", "h:4739", ""},
		{"file:/a/b.ipfix?rotate=10M&rotate=1h&fsync=1s&keep=3", "/a/b.ipfix", ""},
		{"file:what?.ipfix?keep=3", "what?.ipfix", ""},
		{"file:///a/b", "/a/b", ""},
		{"file:a?rotate=3", "", "rotate"},
		{"file:a?rotate=64k&rotate=1M", "", "two sizes"},
		{"file:a?rotate=1h&rotate=1M&rotate=2h", "", "two durations"},
		{"file:a?mtu=1400", "", "unknown"},
		{"file:", "", "no path"},
		{"file:a/", "", "no path"},
		{"file://host/a", "", "on this host"},
		{"udp://h?spool=/s", "", "unknown"},
		{"tcp://h?ca=/s", "", "unknown"},
		{"tcp://h?spool-size=10q", "", "no size"},
		{"tcp://h?spool-size=10k", "", "at least"},
		{"tls://h?ca=", "", "empty"},
	} {
		cfg, err := ParseURL(tc.url, Config{})
		if tc.err == "" && (err != nil || cfg.Address != tc.address) || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%s: %q, %v; want %q, %q", tc.url, cfg.Address, err, tc.address, tc.err)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	f.Add("udp://h:1?mtu=1400")
	f.Add("file:a?b?rotate=1h")
	f.Add("tls://h?spool=x&spool-size=1GiB")
	f.Add("netflow9+udp://]")
	f.Add("netflow9+udp://[fe80::1%25eth0]:2055")
	f.Fuzz(func(t *testing.T, s string) {
		cfg, err := ParseURL(s, Config{})
		if err != nil {
			return
		}
		if err := cfg.complete(); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
	})
}
