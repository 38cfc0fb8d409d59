package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// fails runs a command that cannot work: it must end by itself with one line that says why, and no trace of Go. The
// line is returned.
func fails(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(patience(), func() { cmd.Process.Kill() })
	defer late.Stop()
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 1 && code != 2 {
		t.Errorf("%q: exit status %d\n%s", args, code, errs.String())
	}
	if s := errs.String(); strings.Contains(s, "goroutine ") || strings.Contains(s, "panic") || strings.Contains(s, "nil pointer") {
		t.Errorf("%q: a trace of Go\n%s", args, s)
	}
	var last string
	for line := range strings.Lines(errs.String()) {
		last = strings.TrimSpace(line)
	}
	if !strings.HasPrefix(last, "exporter: ") {
		t.Errorf("%q: %q says not what failed", args, last)
	}
	return last
}

// TestOpenFails: whatever cannot be opened at the start is one line, for every command that opens it.
func TestOpenFails(t *testing.T) {
	exporter := buildExporter(t)
	dir := t.TempDir()
	os.Chmod(filepath.Dir(dir), 0o755)
	os.Chmod(dir, 0o755)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("no\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	for _, tc := range []struct {
		args, says string
		nobody     bool // by a user without any privilege
	}{
		{args: "run --interface eth99", says: "eth99"},
		{args: "run --interface eth99 --source netlink", says: "eth99"},
		{args: "run --interface eth99 --source none", says: "eth99"},
		{args: "run --source ebpf", says: "CAP_", nobody: true},
		{args: "run --interface lo", says: "CAP_NET_RAW", nobody: true},
		{args: "run --interface lo --source none", says: "CAP_NET_RAW", nobody: true},
		{args: "top --batch --source ebpf", says: "CAP_", nobody: true},
		{args: "top --batch --interface eth99", says: "eth99"},
		{args: "run --source netlink --proc " + dir, says: "proc"},
		{args: "run --source netlink --metrics " + taken.Addr().String(), says: "address already in use"},
		{args: "run --anonymize " + dir + "/none", says: "none"},
		{args: "run --anonymize " + file, says: "key"},
		{args: "run --kube " + dir + "/none", says: "none"},
		{args: "run --kube " + file, says: "kube"},
		{args: "run --docker " + file, says: "socket"},
		{args: "run --config " + dir + "/none", says: "none"},
		{args: "run --config " + file, says: "--config"},
		{args: "run -c json:" + dir + "/none/x", says: "none/x"},
		{args: "run -c json:" + dir, says: "directory"},
		{args: "run -c tcp://127.0.0.1:1 --spool " + file + "/spool", says: "not a directory"},
		{args: "run -c tls://127.0.0.1:1?ca=" + dir + "/none", says: "none"},
		{args: "run -c tls://127.0.0.1:1?ca=" + file, says: "certificate"},
		{args: "run -c udp://127.0.0.1:1 -c udp://127.0.0.1:1", says: "twice"},
		{args: "run -c json:- -c json:-", says: "twice"},
		{args: "run -c zmq://nowhere", says: "nowhere"},
		{args: "replay " + dir + "/none", says: "none"},
		{args: "replay " + file, says: "file"},
		{args: "replay ../../testdata/captures/http.pcap --metadata " + dir + "/none", says: "none"},
		{args: "replay ../../testdata/captures/http.pcap -c json:" + dir, says: "directory"},
		{args: "collect " + dir + "/none", says: "none"},
		{args: "collect --listen tcp://" + taken.Addr().String(), says: "address already in use"},
		{args: "collect --listen tls://127.0.0.1:0?cert=" + dir + "/none&key=" + file, says: "none"},
		{args: "list --proc " + dir, says: "proc"},
		{args: "list --docker " + file, says: "socket"},
	} {
		t.Run(strings.ReplaceAll(tc.args, dir, "DIR"), func(t *testing.T) {
			t.Parallel()
			args := append([]string{exporter}, strings.Fields(tc.args)...)
			if tc.nobody {
				needRoot(t)
				needTool(t, "setpriv")
				args = append([]string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--bounding-set", "-all"}, args...)
			}
			if strings.HasPrefix(tc.args, "run ") && !strings.Contains(tc.args, "--metrics") {
				args = append(args, "--metrics", "none")
			}
			if line := fails(t, args...); !strings.Contains(strings.ToLower(line), strings.ToLower(tc.says)) {
				t.Errorf("%q does not say %q", line, tc.says)
			}
		})
	}
}

// TestOpenWithoutDescriptors: with so many file descriptors the start fails here, with one more there, until it does
// not.
func TestOpenWithoutDescriptors(t *testing.T) {
	needRoot(t)
	needTool(t, "prlimit")
	exporter := buildExporter(t)
	for _, command := range []string{
		"run --metrics none --source ebpf --interface lo", "run --metrics none --source netlink", "run --metrics none --source none --interface lo", "top --batch --rounds 1 --source ebpf",
		"replay ../../testdata/captures/http.pcap", "list",
	} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			ways := map[string]int{}
			for limit := 3; limit < 200; limit++ {
				var errs bytes.Buffer
				cmd := exec.Command("prlimit", append([]string{fmt.Sprintf("--nofile=%d", limit), exporter}, strings.Fields(command)...)...)
				cmd.Stderr = &errs
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				ended := make(chan struct{})
				go func() { cmd.Wait(); close(ended) }() // ends with the command
				works := false
				for deadline := time.Now().Add(patience()); !works; {
					select {
					case <-ended:
					case <-time.After(20 * time.Millisecond):
						works = confined(cmd.Process.Pid)
						if time.Now().After(deadline) {
							t.Errorf("limit %d: neither an end nor a start", limit)
							works = true
						}
						continue
					}
					break
				}
				cmd.Process.Kill()
				<-ended
				// Go's runtime itself cannot begin without a descriptor or two.
				if s := errs.String(); strings.Contains(s, "goroutine ") && !strings.Contains(s, "fatal error: runtime: ") {
					t.Fatalf("limit %d:\n%s", limit, s)
				}
				if works || cmd.ProcessState.ExitCode() == 0 {
					t.Logf("works with %d descriptors; ways to fail: %d", limit, len(ways))
					return
				}
				ways[errs.String()]++
			}
			t.Error("it never works")
		})
	}
}

// confined reports whether a process has got as far as giving up its privileges: all is open.
func confined(pid int) bool {
	b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	return strings.Contains(string(b), "Seccomp:\t2")
}
