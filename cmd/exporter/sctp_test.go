package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// sctpSink takes one association after the other, and remembers the messages of each.
type sctpSink struct {
	port int
	received
}

// listenSCTP returns nil where the kernel has no SCTP.
func listenSCTP(t *testing.T) *sctpSink {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Shutdown(fd, unix.SHUT_RDWR); unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 4); err != nil {
		t.Fatal(err)
	}
	a, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	s := &sctpSink{port: a.(*unix.SockaddrInet4).Port}
	go func() { // ends with fd
		for {
			c, _, err := unix.Accept(fd)
			if err != nil {
				return
			}
			s.read(c)
			unix.Close(c)
		}
	}()
	return s
}

func (s *sctpSink) read(c int) {
	buf := make([]byte, 1<<17)
	var stream []byte
	for {
		n, err := unix.Read(c, buf)
		if err != nil || n <= 0 {
			return
		}
		for stream = append(stream, buf[:n]...); len(stream) >= 16; {
			n := int(binary.BigEndian.Uint16(stream[2:]))
			if n > len(stream) || n < 16 {
				break
			}
			s.add(stream[:n])
			stream = stream[n:]
		}
	}
}

// TestSCTP: where the kernel has SCTP, records arrive in order, also those that waited for the collector; where it has not, that is said in one
// line.
func TestSCTP(t *testing.T) {
	needRoot(t)
	s := listenSCTP(t)
	if s == nil {
		r := runExporter(t, "-c", "sctp://127.0.0.1:4739", "--metrics", "none")
		eventually(t, "it is said", func() bool {
			return strings.Count(r.errs.String(), "sctp://127.0.0.1:4739: this kernel has no such transport protocol") == 1
		})
		r.stop()
		return
	}
	r := runExporter(t, "-c", fmt.Sprintf("sctp://127.0.0.1:%d", s.port), "--metrics", "none")
	srv := start(t, "sctp-server", "", "server", "127.0.0.1", "10")
	ports := srv.next()
	c := start(t, "sctp-client", "", "client", "127.0.0.1", strconv.Itoa(ports.TCP), "0", "3", "100").end()
	srv.end()
	eventually(t, "records arrive", func() bool { return bytes.Count(bytes.Join(s.messages(), nil), []byte("sctp-client")) >= 3 })
	r.stop()
	msgs := s.messages()
	sequence(t, msgs)
	found := 0
	for _, f := range goflow2(t, msgs) {
		if f["0:11"] == strconv.Itoa(ports.TCP) && filepath.Base(f["35632:169"]) == "sctp-client" && f["35632:168"] == strconv.Itoa(c.PID) {
			found++
		}
	}
	if found != 3 {
		t.Errorf("%d records, want 3", found)
	}
}
