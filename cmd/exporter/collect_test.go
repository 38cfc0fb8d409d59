package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
	"github.com/sockflow/sockflow/templates"
)

// exported returns the messages of two flows, one of this host's curl and one between two other hosts.
func exported(t *testing.T, proto ipfix.Protocol) [][]byte {
	t.Helper()
	at := time.Date(2026, 3, 1, 10, 0, 0, 123e6, time.UTC)
	r := flowcache.Record{
		Key:   flowcache.Key{Src: flowcache.AddrFrom4([4]byte{192, 0, 2, 1}), Dst: flowcache.AddrFrom4([4]byte{198, 51, 100, 1}), SrcPort: 40000, DstPort: 443, Proto: 6},
		Start: at.UnixNano(), End: at.Add(time.Second).UnixNano(), EndReason: flowcache.EndDetected, HasTCP: true, Control: 0x1b,
		Forward: flowcache.Counters{Payload: 1000, Octets: 1500, Packets: 10}, Reverse: flowcache.Counters{Payload: 2000, Octets: 2600, Packets: 12},
		Source: flowcache.End{
			Local: true, Process: flowcache.ProcessID{PID: 4242}, UID: 33, GID: 33,
			Who: &flowcache.Process{Path: "/usr/bin/curl", Name: "curl", UserName: "www-data", ParentUID: flowcache.NoID},
		},
		Dest: flowcache.End{UID: flowcache.NoID, GID: flowcache.NoID},
	}
	v6 := r
	v6.Key.Src, v6.Key.Dst, v6.Key.Proto, v6.HasTCP = flowcache.Addr{0x20, 1, 15: 1}, flowcache.Addr{0x20, 1, 15: 2}, 17, false
	v6.Source = flowcache.End{UID: flowcache.NoID, GID: flowcache.NoID}
	var msgs [][]byte
	e, err := ipfix.NewEncoder(proto, templates.Options{}, 7, 1400, at.Add(-time.Hour), func(m []byte, _ int) error {
		msgs = append(msgs, bytes.Clone(m))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Templates(at); err != nil {
		t.Fatal(err)
	}
	for _, r := range []flowcache.Record{r, v6} {
		if err := e.Record(&r, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Flush(at); err != nil {
		t.Fatal(err)
	}
	return msgs
}

// runCollect starts collect and returns it with where it listens.
func runCollect(t *testing.T, args ...string) (*running, []string) {
	t.Helper()
	r := launch(t, exec.Command(buildExporter(t), append([]string{"collect"}, args...)...))
	n := 0
	for _, a := range args {
		if a == "--listen" {
			n++
		}
	}
	at := regexp.MustCompile(`msg=listening at="?[a-z]+://([^" \n]+)`)
	var addrs []string
	eventually(t, "collect listens", func() bool {
		addrs = nil
		for _, m := range at.FindAllStringSubmatch(r.errs.String(), -1) {
			addrs = append(addrs, m[1])
		}
		return len(addrs) == n
	})
	return r, addrs
}

func TestCollect(t *testing.T) {
	r, addrs := runCollect(t, "--listen", "udp://127.0.0.1:0", "--listen", "tcp://127.0.0.1:0")
	udp, err := net.Dial("udp", addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for _, m := range exported(t, ipfix.NetFlowV9) {
		udp.Write(m)
	}
	udp.Write([]byte("not a message"))
	tcp, err := net.Dial("tcp", addrs[1])
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	for _, m := range exported(t, ipfix.IPFIX) {
		tcp.Write(m)
	}
	eventually(t, "four records", func() bool { return strings.Count(r.out.String(), "\n") == 4 })
	r.cmd.Process.Signal(syscall.SIGUSR1)
	eventually(t, "a status line", func() bool { return strings.Contains(r.errs.String(), "msg=status") })
	status := r.errs.String()
	for _, want := range []string{"malformed.version=1", "malformed message: version 28271 is none of 1, 5, 7, 9 and 10", "sequence_gaps=0", "unknown_template_sets=0", "sessions.now=2", "short_sets=0"} {
		if !strings.Contains(status, want) {
			t.Errorf("%q is not in %s", want, status)
		}
	}
	r.stop()
	if !strings.Contains(r.errs.String(), "msg=collected") {
		t.Error(r.errs.String())
	}
	seen := map[string]int{}
	for line := range strings.Lines(r.out.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		seen[m["@protocol"].(string)]++
		if m["flowStartMilliseconds"] != "2026-03-01T10:00:00.123Z" || m["flowEndMilliseconds"] != "2026-03-01T10:00:01.123Z" || m["octetDeltaCount"] != 1500.0 || m["@domain"] != 7.0 {
			t.Error(line)
		}
		if m["sourceIPv4Address"] == "192.0.2.1" {
			if m["sourceProcessPath"] != "/usr/bin/curl" || m["sourceProcessId"] != 4242.0 || m["sourceUserName"] != "www-data" {
				t.Error(line)
			}
		} else if m["sourceIPv6Address"] != "2001::1" {
			t.Error(line)
		}
	}
	if seen["ipfix"] != 2 || seen["netflow9"] != 2 {
		t.Errorf("%v", seen)
	}
}

// collectFiles runs collect on files in this process.
func collectFiles(args ...string) (int, string, string) {
	var out, errs bytes.Buffer
	code := execute(append([]string{"exporter", "collect"}, args...), &out, &errs)
	return code, out.String(), errs.String()
}

func TestCollectFiles(t *testing.T) {
	dir := t.TempDir()
	whole := bytes.Join(exported(t, ipfix.IPFIX), nil)
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("good.ipfix", whole)
	code, out, errs := collectFiles("-o", "table", good, good)
	if code != 0 || strings.Count(out, "\n") != 5 || !strings.Contains(out, "curl[4242] www-data →") || !strings.Contains(out, "[2001::1]:40000") {
		t.Errorf("%d\n%s\n%s", code, out, errs)
	}
	code, out, _ = collectFiles("--options", good)
	if code != 0 || !strings.Contains(out, `"@scope":["privateEnterpriseNumber","informationElementId"],"privateEnterpriseNumber":35632`) || !strings.Contains(out, `"informationElementName":"sourceProcessId"`) {
		t.Errorf("%d\n%s", code, out)
	}
	// What is before the fault is shown.
	code, out, errs = collectFiles("-o", "json", file("cut.ipfix", whole[:len(whole)-1]), filepath.Join(dir, "none"), file("text", []byte("hello, world\n")))
	last := errs[strings.LastIndex(strings.TrimSuffix(errs, "\n"), "\n")+1:]
	if code != 1 || !strings.HasPrefix(last, "exporter: read ") || !strings.Contains(last, "cut.ipfix: at octet") || !strings.Contains(last, "none: no such file") || !strings.Contains(last, "text: at octet 0: malformed message: version 26725 is not IPFIX") {
		t.Errorf("%d\n%s\n%s", code, out, errs)
	}
	for _, args := range [][]string{
		{"--listen", "udp://127.0.0.1:0", good}, {"-o", "xml"}, {"--listen", "nowhere"}, {"--template-lifetime", "0s"}, {"--v9-base", "40000"}, {"--log-level", "loud"}, {"--port", "1"},
		{"--listen", "tls://127.0.0.1"},
	} {
		if code, _, errs := collectFiles(args...); code != 2 || strings.Count(errs, "\n") != 1 {
			t.Errorf("%v: %d %s", args, code, errs)
		}
	}
	// One that is taken.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if code, _, errs := collectFiles("--listen", "tcp://"+l.Addr().String()); code != 1 || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, "address already in use") {
		t.Errorf("%d %s", code, errs)
	}
}

// TestCollectPipe reads the standard input until it ends, or a signal comes.
func TestCollectPipe(t *testing.T) {
	cmd := exec.Command(buildExporter(t), "collect", "-")
	cmd.Stdin = bytes.NewReader(bytes.Join(exported(t, ipfix.IPFIX), nil))
	out, err := cmd.Output()
	if err != nil || bytes.Count(out, []byte("\n")) != 2 {
		t.Errorf("%v\n%s", err, out)
	}
	cmd = exec.Command(buildExporter(t), "collect", "-")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var errs syncBuffer
	var lines syncBuffer
	cmd.Stderr, cmd.Stdout = &errs, &lines
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	in.Write(bytes.Join(exported(t, ipfix.IPFIX), nil))
	eventually(t, "two records", func() bool { return strings.Count(lines.String(), "\n") == 2 })
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil || !strings.Contains(errs.String(), "records=") {
		t.Errorf("%v\n%s", err, errs.String())
	}
}
