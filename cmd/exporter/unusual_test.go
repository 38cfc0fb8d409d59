package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Programs whose sockets live unlike the usual. Each waits for a line of standard input where its exporter is to start, or to have looked.

// lines reads lines of standard input. After each it prints an empty report, for which the test's type program waits.
type lines struct{ in *bufio.Reader }

func (l lines) wait() error {
	if _, err := l.in.ReadString('\n'); err != nil {
		return err
	}
	newReport().print()
	return nil
}

func unusual(name string) error {
	l := lines{bufio.NewReader(os.Stdin)}
	r := newReport()
	var err error
	switch name {
	case "early":
		err = early(l, r)
	case "refused-first":
		err = refusedFirst(l, r)
	case "accepted-late":
		err = acceptedLate(l, r)
	case "held-on":
		err = heldOn(l, r)
	case "older-pair":
		err = olderPair(l, r)
	case "would-block":
		err = wouldBlock(l, r)
	case "reader":
		return reader()
	case "before-exec":
		return beforeExec(r)
	case "after-exec":
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	default:
		err = errors.New("no such program")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	r.print()
	return nil
}

// early makes its sockets, and touches one, long before they connect.
func early(l lines, r *report) error {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var fds []int
	for range 3 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	unix.Write(fds[1], []byte("x")) // not connected: refused
	if err := unix.Bind(fds[2], &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	if err := l.wait(); err != nil { // the exporter has seen them
		return err
	}
	for _, fd := range fds {
		if err := exchange(ln, r, func() (int, error) { return fd, connectTo(fd, ln.Addr()) }, 51_000, 500); err != nil {
			return err
		}
	}
	return nil
}

func connectTo(fd int, to net.Addr) error {
	a := addrOf(to)
	return unix.Connect(fd, &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())})
}

// exchange sends there octets by a socket that dial connects, back octets come back, and both ends close.
func exchange(ln net.Listener, r *report, dial func() (int, error), there, back int) error {
	served := make(chan error, 1)
	go func() { // ends with the connection
		c, err := ln.Accept()
		if err != nil {
			served <- err
			return
		}
		io.CopyN(io.Discard, c, int64(there))
		c.Write(make([]byte, back))
		served <- c.Close()
	}()
	fd, err := dial()
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	local, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	if _, err := f.Write(make([]byte, there)); err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, f)
	if err != nil {
		return err
	}
	at := local.(*unix.SockaddrInet4)
	r.Flows = append(r.Flows, counted{
		Proto: "tcp", Local: netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port)), Remote: addrOf(ln.Addr()), Sent: uint64(there), Received: uint64(n), PID: r.PID,
	})
	return <-served
}

// refusedFirst has sockets that are refused once, and then connect.
func refusedFirst(l lines, r *report) error {
	if err := l.wait(); err != nil {
		return err
	}
	for range 20 {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		closed, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		closed.Close()
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := connectTo(fd, closed.Addr()); !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("connect to a closed port: %w", err)
		}
		if err := exchange(ln, r, func() (int, error) { return fd, connectTo(fd, ln.Addr()) }, 1000, 500); err != nil {
			return err
		}
		ln.Close()
	}
	return nil
}

// acceptedLate has a client that is gone long before its connection is accepted.
func acceptedLate(l lines, r *report) error {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := l.wait(); err != nil {
		return err
	}
	c, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		return err
	}
	c.Write(make([]byte, 5000))
	local := addrOf(c.LocalAddr())
	c.Close()
	if err := l.wait(); err != nil { // much later
		return err
	}
	s, err := ln.Accept()
	if err != nil {
		return err
	}
	n, _ := io.Copy(io.Discard, s)
	s.Close()
	r.Flows = append(r.Flows, counted{Proto: "tcp", Local: local, Remote: addrOf(ln.Addr()), Sent: uint64(n), PID: r.PID})
	return nil
}

// heldOn has connections that end, in order and by a reset, and holds their sockets on.
func heldOn(l lines, r *report) error {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := l.wait(); err != nil {
		return err
	}
	var held []net.Conn
	for _, reset := range []bool{false, true} {
		c, err := net.Dial("tcp4", ln.Addr().String())
		if err != nil {
			return err
		}
		s, err := ln.Accept()
		if err != nil {
			return err
		}
		buf := make([]byte, 1000)
		c.Write(buf)
		io.ReadFull(s, buf)
		s.Write(buf[:300])
		io.ReadFull(c, buf[:300])
		held = append(held, c)
		if reset {
			s.(*net.TCPConn).SetLinger(0)
			s.Close()
			c.Read(buf) // the reset
		} else {
			c.(*net.TCPConn).CloseWrite()
			s.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, s)
			io.Copy(io.Discard, c)
			held = append(held, s)
		}
		r.Flows = append(r.Flows, counted{Proto: "tcp", Local: addrOf(c.LocalAddr()), Remote: addrOf(c.RemoteAddr()), Sent: 1000, Received: 300, PID: r.PID})
	}
	if err := l.wait(); err != nil { // passes and audits have come by
		return err
	}
	for _, c := range held {
		c.Close()
	}
	return nil
}

// olderPair has a connection that is older than the exporter, and counts what it sends afterwards as the kernel does (tcp_info).
func olderPair(l lines, r *report) error {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		return err
	}
	s, err := ln.Accept()
	if err != nil {
		return err
	}
	turn := func() error {
		buf := make([]byte, 2000)
		if _, err := c.Write(buf[:100]); err != nil {
			return err
		}
		if _, err := io.ReadFull(s, buf[:100]); err != nil {
			return err
		}
		if _, err := s.Write(buf[:1000]); err != nil {
			return err
		}
		_, err := io.ReadFull(c, buf[:1000])
		return err
	}
	info := func() (*unix.TCPInfo, error) {
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			return nil, err
		}
		var t *unix.TCPInfo
		var failed error
		err = raw.Control(func(fd uintptr) { t, failed = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
		return t, errors.Join(err, failed)
	}
	if err := turn(); err != nil {
		return err
	}
	if err := l.wait(); err != nil {
		return err
	}
	before, err := info()
	if err != nil {
		return err
	}
	for range 10 {
		if err := turn(); err != nil {
			return err
		}
	}
	time.Sleep(100 * time.Millisecond) // for an acknowledgement that is held back
	after, err := info()
	if err != nil {
		return err
	}
	r.Flows = append(r.Flows, counted{
		Proto: "tcp", Local: addrOf(c.LocalAddr()), Remote: addrOf(c.RemoteAddr()), Sent: 1000, Received: 10_000, PID: r.PID,
		Out: uint64(after.Segs_out - before.Segs_out), In: uint64(after.Segs_in - before.Segs_in),
	})
	return l.wait() // the exporter ends before the connection does
}

// wouldBlock accepts a connection and finds nothing to read; a worker that it starts reads.
func wouldBlock(l lines, r *report) error {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := l.wait(); err != nil {
		return err
	}
	c, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		return err
	}
	s, err := ln.Accept()
	if err != nil {
		return err
	}
	f, err := s.(*net.TCPConn).File()
	if err != nil {
		return err
	}
	s.Close()
	if _, _, err := unix.Recvfrom(int(f.Fd()), make([]byte, 10), unix.MSG_DONTWAIT); !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("read: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	p, err := os.StartProcess(self, []string{self, "reader"}, &os.ProcAttr{Env: append(os.Environ(), trafficEnv+"=unusual"), Files: []*os.File{f, nil, os.Stderr}})
	if err != nil {
		return err
	}
	f.Close()
	c.Write(make([]byte, 700))
	c.(*net.TCPConn).CloseWrite()
	n, _ := io.Copy(io.Discard, c)
	c.Close()
	if _, err := p.Wait(); err != nil {
		return err
	}
	// The worker's side of it.
	r.Flows = append(r.Flows, counted{Proto: "tcp", Local: addrOf(c.RemoteAddr()), Remote: addrOf(c.LocalAddr()), Sent: uint64(n), Received: 700, PID: p.Pid})
	return nil
}

// beforeExec has a connection that exec closes, and goes on as another program.
func beforeExec(r *report) error {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { // ends with the connection, or with exec
		s, err := ln.Accept()
		if err == nil {
			_, err = io.ReadFull(s, make([]byte, 800))
		}
		served <- err
	}()
	c, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		return err
	}
	if _, err := c.Write(make([]byte, 800)); err != nil {
		return err
	}
	if err := <-served; err != nil {
		return err
	}
	r.Flows = append(r.Flows, counted{Proto: "tcp", Local: addrOf(c.LocalAddr()), Remote: addrOf(c.RemoteAddr()), Sent: 800, PID: r.PID})
	r.print()
	return syscall.Exec("/proc/self/exe", []string{"another-program", "after-exec"}, os.Environ())
}

// reader reads all of its standard input, which is a connection, and answers with as many octets.
func reader() error {
	syscall.SetNonblock(0, false)
	n, err := io.Copy(io.Discard, os.Stdin)
	if err != nil {
		return err
	}
	_, err = os.Stdin.Write(make([]byte, n))
	return err
}

// TestUnusualSockets: every octet and owner of sockets that live unlike the usual, as the programs counted.
func TestUnusualSockets(t *testing.T) {
	needRoot(t)
	for _, tc := range []struct {
		name  string
		later time.Duration // between the program's lines
		last  bool          // the exporter ends before the program
		both  bool          // one record has both ends, which are the program's
	}{
		{name: "early", both: true},
		{name: "refused-first", both: true},
		{name: "accepted-late", later: 20 * time.Second},
		{name: "held-on", later: 8 * time.Second},
		{name: "older-pair", last: true, both: true},
		{name: "would-block"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := start(t, "unusual-"+tc.name, "", "unusual", tc.name)
			if tc.last {
				time.Sleep(300 * time.Millisecond) // the connection is made
			}
			r := runExporter(t, "--metrics", "none", "--interface-interval", "0", "--snapshot-interval", "1s", "--audit-interval", "1s")
			time.Sleep(1500 * time.Millisecond) // a pass sees what is there
			p.advance()
			time.Sleep(tc.later)
			var rep *report
			if tc.last {
				time.Sleep(time.Second)
				r.stop()
				p.advance()
				rep = p.end()
			} else {
				if tc.later > 0 {
					p.advance()
				}
				rep = p.end()
				time.Sleep(time.Second)
				r.stop()
			}
			recs := r.json()
			for _, c := range rep.Flows {
				out, in, ends, _ := sumJSON(recs, c)
				if out != c.Sent || in != c.Received {
					t.Errorf("%d octets out, %d in; the program counted %+v", out, in, c)
				}
				if len(ends) == 0 {
					t.Errorf("no record of %+v", c)
				}
				for _, e := range ends {
					if int(e.PID) != c.PID {
						t.Errorf("the end is process %d's, not %d's", e.PID, c.PID)
					}
				}
				if c.Out == 0 {
					continue
				}
				var there, back uint64
				for _, j := range recs {
					if j.SourcePort == c.Local.Port() && j.DestPort == c.Remote.Port() {
						there, back = there+j.Forward.Packets, back+j.Reverse.Packets
					} else if j.SourcePort == c.Remote.Port() && j.DestPort == c.Local.Port() {
						there, back = there+j.Reverse.Packets, back+j.Forward.Packets
					}
				}
				if there != c.Out || back != c.In {
					t.Errorf("%d packets out, %d in; the kernel counted %d and %d", there, back, c.Out, c.In)
				}
			}
		})
	}
}

// TestClosedByExec: a connection that exec closes is the program's that had it, not of the one that runs then.
func TestClosedByExec(t *testing.T) {
	needRoot(t)
	r := runExporter(t, "--metrics", "none", "--interface-interval", "0", "--snapshot-interval", "1s")
	for range 2 {
		p := start(t, "before-exec", "", "unusual", "before-exec")
		p.next()
		time.Sleep(1500 * time.Millisecond) // it runs on as another program
		p.in.Close()
		p.cmd.Wait()
	}
	r.stop()
	n := 0
	for _, j := range r.json() {
		for _, e := range []*jsonEnd{j.SourceEnd, j.DestEnd} {
			if e == nil || !strings.HasPrefix(e.Name, "before-") && e.Name != "exe" {
				continue
			}
			n++
			if e.Name == "exe" {
				t.Errorf("the program after exec: %+v", e)
			}
		}
	}
	if n != 4 {
		t.Errorf("%d ends of 2 connections, want 4 by the programs before", n)
	}
}

// TestListenerOfAnotherAddress: a connection that no process accepts is the listener's of its own address, not of another with that port.
func TestListenerOfAnotherAddress(t *testing.T) {
	needRoot(t)
	r := runExporter(t, "--metrics", "none", "--interface-interval", "0", "--snapshot-interval", "1s")
	one, err := net.Listen("tcp4", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	port := one.Addr().(*net.TCPAddr).Port
	other := start(t, "other-listener", "", "server", "127.0.0.3", "10", strconv.Itoa(port), "0")
	other.next()
	time.Sleep(1200 * time.Millisecond) // a pass sees both
	c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.2:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("x"))
	local := uint16(c.LocalAddr().(*net.TCPAddr).Port)
	one.Close() // never accepted
	c.Close()
	other.end()
	time.Sleep(500 * time.Millisecond)
	r.stop()
	found := false
	for _, j := range r.json() {
		if j.SourcePort == local && j.DestEnd != nil {
			found = true
			if int(j.DestEnd.PID) != os.Getpid() {
				t.Errorf("the listener is process %d, not %d", j.DestEnd.PID, os.Getpid())
			}
		}
	}
	if !found {
		t.Error("no record with the listener's end")
	}
}
