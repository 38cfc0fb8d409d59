package ipfix

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// sink is a stream collector.
type sink struct {
	l    net.Listener
	mu   sync.Mutex
	data [][]byte // of each connection
	done int      // connections that have ended
	conn net.Conn
}

func listen(t *testing.T, addr string) *sink {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, l)
}

func (s *sink) accept() {
	for {
		c, err := s.l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		i := len(s.data)
		s.data = append(s.data, nil)
		s.conn = c
		s.mu.Unlock()
		go s.read(c, i) // ends with c
	}
}

func (s *sink) read(c net.Conn, i int) {
	defer c.Close()
	buf := make([]byte, 65536)
	for {
		n, err := c.Read(buf)
		s.mu.Lock()
		s.data[i] = append(s.data[i], buf[:n]...)
		s.mu.Unlock()
		if err != nil {
			s.mu.Lock()
			s.done++
			s.mu.Unlock()
			return
		}
	}
}

// all returns what every connection brought, once they have ended.
func (s *sink) all(t *testing.T) [][]byte {
	t.Helper()
	eventually(t, "connections end", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.done == len(s.data)
	})
	return s.streams()
}

func (s *sink) streams() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var l [][]byte
	for _, d := range s.data {
		l = append(l, bytes.Clone(d))
	}
	return l
}

// miss skips a test that needs what is not there; where all is to be there it fails.
func miss(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("REQUIRE_ROOT") == "1" {
		t.Fatal(what)
	}
	t.Skip(what)
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not within 30 s: %s", what)
}

func ipfixDump(t *testing.T, stream []byte) {
	t.Helper()
	if _, err := exec.LookPath("ipfixDump"); err != nil {
		if os.Getenv("REQUIRE_ROOT") == "1" {
			t.Fatal("needs ipfixDump")
		}
		return
	}
	file := filepath.Join(t.TempDir(), "s.ipfix")
	os.WriteFile(file, stream, 0o600)
	if out, err := exec.Command("ipfixDump", "--rfc5610", "--in", file).CombinedOutput(); err != nil || bytes.Contains(out, []byte("_alien")) {
		t.Errorf("ipfixDump: %v\n%s", err, out[:min(len(out), 500)])
	}
}
