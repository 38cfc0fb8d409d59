package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// TestUsage: one clear line for each mistake.
func TestUsage(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	os.WriteFile(bad, []byte("no-such-key: 1\n"), 0o600)
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"--no-such-flag", 2, "unknown flag"},
		{"nonsense", 2, "unknown command"},
		{"-c http://x", 2, "scheme must be udp"},
		{"-c tls://x:1?ca=/no/such/file", 2, "no such file"},
		{"-c file:", 2, "no path"},
		{"-c udp://h -c udp://h", 2, "given twice"},
		{"--filter nonsense", 2, "want a property"},
		{"-c udp://h?filter=port+x", 2, "no port"},
		{"--aggregate-ports=1ms", 2, "at least 100ms"},
		{"-c udp://h --anonymize /no/such/file", 1, "no such file"},
		{"-c udp://h --policy some", 2, "must be all, failover or hash"},
		{"-c udp://h --spool-size 1k", 2, "at least 1M"},
		{"-c tcp://h --spool /dev/null/x", 2, "not a directory"},
		{"-c zmq://x", 2, "PORT"},
		{"-c udp://", 2, "no host"},
		{"-c udp://h:70000", 2, "port"},
		{"-c udp://h?dialect=french", 2, "must be known, native or iana"},
		{"-c udp://h?speed=1", 2, "unknown; there are"},
		{"--source wire", 2, "must be auto, ebpf, netlink"},
		{"--active-timeout 0s", 2, "at least"},
		{"--max-flows 0", 2, "at least 1"},
		{"--memory-limit much", 2, "auto, none or a size"},
		{"--local-pairs both", 2, "must be separate, merge"},
		{"--without-hook nonsense", 2, "must be one of"},

		{"--config /no/such/file", 2, "no such file"},
		{"--config " + bad, 2, "unknown key"},
		{"top --view nonsense", 2, "must be flows"},
		{"doctor extra", 2, "unknown command"},
		{"list extra", 2, "unknown command"},
		{"-c json:/no/such/dir/x", 1, "no such file"},
	} {
		var out, errs bytes.Buffer
		code := execute(append([]string{"exporter"}, strings.Fields(tc.args)...), &out, &errs)
		if code != tc.code || !strings.Contains(errs.String(), tc.want) || strings.Count(errs.String(), "\n") != 1 || out.Len() != 0 {
			t.Errorf("%s: exit %d, %q, %q; want %d, %q", tc.args, code, out.String(), errs.String(), tc.code, tc.want)
		}
	}
}

// TestSettingsOrder: the command line wins over the environment, and that over the file.
func TestSettingsOrder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	os.WriteFile(file, []byte("collector: [udp://a, udp://b]\ndomain: 3\nmax-flows: 5\nidle-timeout: 9s\n"), 0o600)
	t.Setenv("SOCKFLOW_DOMAIN", "4")
	t.Setenv("SOCKFLOW_MAX_FLOWS", "6")
	var s settings
	fs := pflag.NewFlagSet("exporter", pflag.ContinueOnError)
	s.addFlags(fs)
	if err := fs.Parse([]string{"--config", file, "--max-flows", "7"}); err != nil {
		t.Fatal(err)
	}
	if err := s.load(fs); err != nil {
		t.Fatal(err)
	}
	if s.maxFlows != 7 || s.domain != 4 || s.idleTimeout != 9*time.Second || len(s.collectors) != 2 {
		t.Errorf("%+v", s)
	}
}

// TestSettingsPage: every flag of run is in docs/settings.md.
func TestSettingsPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/settings.md")
	if err != nil {
		t.Fatal(err)
	}
	var s settings
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	s.addFlags(f)
	f.VisitAll(func(fl *pflag.Flag) {
		if !strings.Contains(strings.ReplaceAll(string(page), " ", "`"), "--"+fl.Name+"`") {
			t.Errorf("no --%s", fl.Name)
		}
	})
}
