package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var built string

// buildExporter builds the program under test once.
func buildExporter(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("SOCKFLOW_EXPORTER"); path != "" {
		return path // where there is no Go
	}
	if built != "" {
		return built
	}
	dir, err := os.MkdirTemp("", "sockflow-test-")
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir, 0o755)
	path := filepath.Join(dir, "exporter")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	built = path
	return path
}

// running is the program under test.
type running struct {
	t      *testing.T
	cmd    *exec.Cmd
	out    syncBuffer
	errs   syncBuffer
	exited chan error
}

// launch starts a command that is the program under test, or becomes it.
func launch(t *testing.T, cmd *exec.Cmd) *running {
	t.Helper()
	r := &running{t: t, cmd: cmd, exited: make(chan error, 1)}
	cmd.Stdout, cmd.Stderr = &r.out, &r.errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { r.exited <- cmd.Wait() }() // ends with the program
	t.Cleanup(func() { cmd.Process.Kill() })
	return r
}

// runExporter starts it and waits until it meters.
func runExporter(t *testing.T, args ...string) *running {
	t.Helper()
	r := launch(t, exec.Command(buildExporter(t), args...))
	eventually(t, "the exporter meters", func() bool { return strings.Contains(r.errs.String(), "metering by") })
	time.Sleep(300 * time.Millisecond) // the first pass
	return r
}

// stop ends it by SIGTERM: it must exit 0 within 2 s.
func (r *running) stop() {
	r.t.Helper()
	begin := time.Now()
	r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-r.exited:
		if err != nil {
			r.t.Errorf("exporter: %v\n%s", err, r.errs.String())
		}
	case <-time.After(patience()):
		r.cmd.Process.Signal(syscall.SIGQUIT)
		<-r.exited
		r.t.Fatalf("exporter does not end\n%s", r.errs.String())
	}
	if d := time.Since(begin); d > patience()/5 {
		r.t.Errorf("exporter took %s to end", d)
	}
}

// json returns the records that it printed.
func (r *running) json() []jsonRecord {
	r.t.Helper()
	var recs []jsonRecord
	d := json.NewDecoder(strings.NewReader(r.out.String()))
	for {
		var j jsonRecord
		if err := d.Decode(&j); err != nil {
			if err != io.EOF {
				r.t.Errorf("output is not JSON lines: %v", err)
			}
			return recs
		}
		if j.Start != "" { // else it is an interface
			recs = append(recs, j)
		}
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
