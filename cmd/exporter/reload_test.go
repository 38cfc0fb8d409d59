package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestReload: collectors, filters and timeouts change while a connection goes on, and no octet of it is lost or
// reported twice.
func TestReload(t *testing.T) {
	needRoot(t)
	first, second := newUDPSink(t), newUDPSink(t)
	stays := newTCPSink(t, "127.0.0.1:0")
	file := filepath.Join(t.TempDir(), "sockflow.yaml")
	write := func(format string, args ...any) {
		t.Helper()
		if err := os.WriteFile(file, fmt.Appendf(nil, format, args...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kept := "tcp://" + stays.l.Addr().String()
	write("collector: ['udp://127.0.0.1:%d', '%s']\nactive-timeout: 1h\n", first.port(), kept)
	page := fmt.Sprintf("http://127.0.0.1:%d", freePort(t))
	r := runExporter(t, "--config", file, "--snapshot-interval", "200ms", "--metrics", strings.TrimPrefix(page, "http://"))
	reload := func(want string) {
		t.Helper()
		n := strings.Count(r.errs.String(), want)
		r.cmd.Process.Signal(syscall.SIGHUP)
		eventually(t, want+" in "+r.errs.String(), func() bool { return strings.Count(r.errs.String(), want) > n })
	}
	srv := start(t, "tango-server", "", "server", "127.0.0.1", "0")
	ports := srv.next()
	h := start(t, "uniform-hold", "", "hold", "127.0.0.1", strconv.Itoa(ports.TCP))
	h.next()
	step := func() {
		fmt.Fprintln(h.in)
		h.next()
	}
	for range 5 {
		step()
	}
	write("collector: ['udp://127.0.0.1:%d', '%s']\nactive-timeout: 300ms\n", second.port(), kept)
	reload("settings are read again")
	sum := func(s *udpSink) (octets uint64) {
		for _, f := range goflow2(t, s.messages()) {
			if f["0:11"] == strconv.Itoa(ports.TCP) {
				octets += f.number(t, "0:401")
			}
		}
		return octets
	}
	// By the new timeout, at the new collector.
	eventually(t, "a record within the new timeout", func() bool { return sum(second) == 5000 })
	if n := sum(first); n != 0 {
		t.Errorf("%d octets at the old collector, whose timeout was an hour", n)
	}
	// A file that cannot be read changes nothing.
	for bad, why := range map[string]string{
		"collector: ['udp://127.0.0.1:0']": "port must be", "active-timeout: never": "invalid argument", "nonsense: 1": "unknown key",
	} {
		write("%s\n", bad)
		reload("settings are as they were")
		if !strings.Contains(r.errs.String(), why) {
			t.Errorf("%s: no %q in %s", bad, why, r.errs.String())
		}
	}
	step()
	eventually(t, "a record after what was wrong", func() bool { return sum(second) == 6000 })
	// What cannot change is refused alone, by its name; the filter beside it holds.
	collectors := fmt.Sprintf("'udp://127.0.0.1:%d', '%s'", second.port(), kept)
	for bad, why := range map[string]string{
		"max-flows: 7\ncollector: [" + collectors + "]": "max-flows cannot change", "collector: ['json:-', " + collectors + "]": "what is printed",
		"collector: [" + collectors + ", 'tls://127.0.0.1:1?ca=/no/such/file']": "no such file", "collector: ['udp://127.0.0.1:" + strconv.Itoa(second.port()) + "', '" + kept + "?fields=-nonsense']": "no flow record has it",
	} {
		write("%s\nactive-timeout: 300ms\nfilter: ['not port %d']\n", bad, ports.TCP)
		reload("a setting stays as it was")
		if !strings.Contains(r.errs.String(), why) {
			t.Errorf("%s: no %q in %s", bad, why, r.errs.String())
		}
	}
	step()
	time.Sleep(time.Second)
	if n := sum(second); n != 6000 {
		t.Errorf("%d octets, though they are excluded", n)
	}
	if _, body := get(t, page+"/metrics"); !strings.Contains(body, fmt.Sprintf("sockflow_collector_connects_total{collector=%q} 1\n", kept)) {
		t.Errorf("the collector that stays has lost its connection:\n%s", body)
	}
	h.end()
	srv.end()
	r.stop()
}

// TestNotify: a service manager is notified that the program is ready, lives, reads its settings again and ends.
func TestNotify(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file := filepath.Join(dir, "sockflow.yaml")
	os.WriteFile(file, []byte("idle-timeout: 10s\n"), 0o600)
	cmd := exec.Command(buildExporter(t), "--config", file, "-c", "udp://127.0.0.1:9", "--metrics", "none")
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path, "WATCHDOG_USEC=400000")
	var stderr syncBuffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	next := func(want string) {
		t.Helper()
		l.SetReadDeadline(time.Now().Add(patience()))
		buf := make([]byte, 4096)
		for {
			n, err := l.Read(buf)
			if err != nil {
				t.Fatalf("no %s: %v\n%s", want, err, stderr.String())
			}
			if strings.HasPrefix(string(buf[:n]), want) {
				return
			}
		}
	}
	next("READY=1")
	next("WATCHDOG=1")
	next("WATCHDOG=1")
	cmd.Process.Signal(syscall.SIGHUP)
	next("RELOADING=1\nMONOTONIC_USEC=")
	next("READY=1")
	cmd.Process.Signal(syscall.SIGTERM)
	next("STOPPING=1")
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, stderr.String())
	}
}

// TestOneCollectorTwice: one collector has two Observation Domains, each with its dialect and its filter, and each a name in /metrics, which a duplicate
// would end with an error as a whole.
func TestOneCollectorTwice(t *testing.T) {
	needRoot(t)
	sink := newUDPSink(t)
	url := fmt.Sprintf("udp://127.0.0.1:%d", sink.port())
	page := fmt.Sprintf("http://127.0.0.1:%d", freePort(t))
	r := runExporter(t, "-c", url+"?domain=5&filter=proto+udp", "-c", url+"?domain=6&dialect=native", "--metrics", strings.TrimPrefix(page, "http://"))
	eventually(t, "both domains", func() bool {
		domains := map[uint32]bool{}
		for _, m := range sink.messages() {
			domains[binary.BigEndian.Uint32(m[12:])] = true
		}
		return domains[5] && domains[6]
	})
	status, body := get(t, page+"/metrics")
	for _, name := range []string{url, url + "#2"} {
		if !strings.Contains(body, fmt.Sprintf("sockflow_collector_connects_total{collector=%q} 1\n", name)) {
			t.Errorf("status %d: no %s in\n%.1000s", status, name, body)
		}
	}
	r.stop()
}
