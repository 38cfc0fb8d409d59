package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestSpoolKilled: records of flows that ended while the collector was away, and while the exporter was killed, arrive when both are back.
func TestSpoolKilled(t *testing.T) {
	needRoot(t)
	needTool(t, "ipfixDump")
	dir := t.TempDir()
	port := freePort(t)
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	args := []string{"-c", "tcp://" + addr, "--metrics", "none", "--spool", dir, "--reconnect-max", "1s", "--filter", "src process spool-*"}
	for i, name := range []string{"spool-one", "spool-two", "spool-three"} {
		r := runExporter(t, args...)
		srv := start(t, "a-server", "", "server", "127.0.0.1", "10")
		ports := srv.next()
		start(t, name, "", "client", "127.0.0.1", strconv.Itoa(ports.TCP), "0", "5", "100").end()
		srv.end()
		segments := filepath.Join(dir, "tcp___127.0.0.1_"+strconv.Itoa(port), "*.ipfix")
		eventually(t, "records are on disk", func() bool {
			for _, b := range readAll(t, segments) {
				if bytes.Contains(b, []byte(name)) {
					return true
				}
			}
			return false
		})
		time.Sleep(200 * time.Millisecond)
		for _, b := range readAll(t, segments) {
			ipfixDump(t, b) // a file like any other
		}
		if i == 1 {
			r.stop()
			continue
		}
		r.cmd.Process.Kill()
		<-r.exited
	}
	sink := newTCPSink(t, addr)
	r := runExporter(t, args...)
	eventually(t, "all arrive", func() bool { return bytes.Contains(sink.bytes(), []byte("spool-three")) })
	time.Sleep(300 * time.Millisecond)
	r.stop()
	count := map[string]int{}
	for _, f := range ipfixDump(t, sink.bytes()) {
		if path := f["35632:169"]; path != "" {
			count[filepath.Base(strings.Trim(path, `"`))]++
		}
	}
	for _, name := range []string{"spool-one", "spool-two", "spool-three"} {
		if count[name] != 5 {
			t.Errorf("%d records of %s, want 5: %v", count[name], name, count)
		}
	}
}

// readAll reads the files of a pattern.
func readAll(t *testing.T, pattern string) (l [][]byte) {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		l = append(l, b)
	}
	return l
}
