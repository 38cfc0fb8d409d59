package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kinds are programs that use sockets of every kind, with both ends in one process where nothing else is said, and count what they
// sent and received.
var kinds = map[string]func(r *report) error{
	"connections": func(r *report) error { return connections(r, "127.0.0.1:0", false) },
	"ipv6":        func(r *report) error { return connections(r, "[::1]:0", false) },
	"mptcp":       func(r *report) error { return connections(r, "127.0.0.1:0", true) },
	"mapped":      mapped,
	"fastopen":    fastOpen,
	"aborted":     aborted,
	"refused":     refused,
	"passed":      passed,
	"unused":      unused,
	"self":        self,
	"zero": func(r *report) error {
		return datagrams(r, unix.IPPROTO_UDP, []int{0, 0, 5, 0}, 0, [4]byte{127, 0, 0, 1})
	},
	"udplite": func(r *report) error {
		return datagrams(r, unix.IPPROTO_UDPLITE, []int{1, 100, 1000}, 0, [4]byte{127, 0, 0, 1})
	},
	"gso": func(r *report) error {
		return datagrams(r, unix.IPPROTO_UDP, []int{10000, 20500, 999}, 1000, [4]byte{127, 0, 0, 1})
	},
	"multicast": func(r *report) error {
		return datagrams(r, unix.IPPROTO_UDP, []int{10, 20, 30}, 0, [4]byte{239, 1, 2, 3})
	},
	"broadcast": func(r *report) error {
		return datagrams(r, unix.IPPROTO_UDP, []int{10, 20, 30}, 0, [4]byte{127, 255, 255, 255})
	},
	"ping": func(r *report) error { return ping(r, unix.SOCK_DGRAM) },
	"raw":  func(r *report) error { return ping(r, unix.SOCK_RAW) },
}

// connections makes 5 connections of one process with itself.
func connections(r *report, addr string, mptcp bool) error {
	var lc net.ListenConfig
	var d net.Dialer
	lc.SetMultipathTCP(mptcp)
	d.SetMultipathTCP(mptcp)
	l, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return err
	}
	defer l.Close()
	for i := range 5 {
		if err := connection(r, l, func() (net.Conn, error) { return d.Dial("tcp", l.Addr().String()) }, 1000*i+1, 300*i); err != nil {
			return err
		}
	}
	return nil
}

// connection makes one, sends there and back, and counts at both ends. Who closes first changes.
func connection(r *report, l net.Listener, dial func() (net.Conn, error), there, back int) error {
	c, err := dial()
	if err != nil {
		return err
	}
	s, err := l.Accept()
	if err != nil {
		return err
	}
	if _, err := c.Write(make([]byte, there)); err != nil {
		return err
	}
	if _, err := s.Write(make([]byte, back)); err != nil {
		return err
	}
	if _, err := io.ReadFull(s, make([]byte, there)); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, make([]byte, back)); err != nil {
		return err
	}
	first, second := c, s
	if there%2 == 0 {
		first, second = s, c
	}
	first.(interface{ CloseWrite() error }).CloseWrite()
	io.Copy(io.Discard, second)
	second.Close()
	io.Copy(io.Discard, first)
	first.Close()
	r.tcp(addrOf(c.LocalAddr()), addrOf(c.RemoteAddr()), there, back)
	return nil
}

// tcp counts both ends of a connection of this process with itself.
func (r *report) tcp(client, server netip.AddrPort, there, back int) {
	r.Flows = append(r.Flows,
		counted{Proto: "tcp", Local: client, Remote: server, Sent: uint64(there), Received: uint64(back), PID: r.PID},
		counted{Proto: "tcp", Local: server, Remote: client, Sent: uint64(back), Received: uint64(there), PID: r.PID})
}

// mapped talks IPv4 to an IPv6 socket.
func mapped(r *report) error {
	l, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		return err
	}
	defer l.Close()
	to := fmt.Sprintf("127.0.0.1:%d", l.Addr().(*net.TCPAddr).Port)
	return connection(r, l, func() (net.Conn, error) { return net.Dial("tcp", to) }, 700, 71)
}

// fastOpen sends data with the SYN: the second time with a cookie.
func fastOpen(r *report) error {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 16) })
	}}
	l, err := lc.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	for range 3 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Sendto(fd, make([]byte, 333), unix.MSG_FASTOPEN, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return err
		}
		s, err := l.Accept()
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(s, make([]byte, 333)); err != nil {
			return err
		}
		s.Write(make([]byte, 44))
		unix.Read(fd, make([]byte, 44))
		r.tcp(addrOf(s.RemoteAddr()), addrOf(s.LocalAddr()), 333, 44)
		unix.Close(fd)
		io.Copy(io.Discard, s)
		s.Close()
	}
	return nil
}

// aborted ends a connection by a reset.
func aborted(r *report) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	for i := range 4 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		s, err := l.Accept()
		if err != nil {
			return err
		}
		c.Write(make([]byte, 50))
		io.ReadFull(s, make([]byte, 50))
		r.tcp(addrOf(c.LocalAddr()), addrOf(c.RemoteAddr()), 50, 0)
		one, other := c, s
		if i%2 == 0 {
			one, other = s, c
		}
		one.(*net.TCPConn).SetLinger(0)
		one.Close()
		other.Read(make([]byte, 1))
		other.Close()
	}
	return nil
}

// refused connects to where nobody listens.
func refused(r *report) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	to := addrOf(l.Addr())
	l.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	from, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: [4]byte{127, 0, 0, 1}}); !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("connection to a closed port: %v", err)
	}
	r.Flows = append(r.Flows, counted{Proto: "tcp", Local: netip.AddrPortFrom(to.Addr(), uint16(from.(*unix.SockaddrInet4).Port)), Remote: to, PID: r.PID})
	return nil
}

// passed accepts a connection and leaves it to another process, over a Unix socket (SCM_RIGHTS).
func passed(r *report) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	heir := exec.Command(r.Path)
	heir.Env = append(os.Environ(), trafficEnv+"=heir")
	heir.ExtraFiles = []*os.File{os.NewFile(uintptr(pair[1]), "pair")}
	heir.Stderr = os.Stderr
	if err := heir.Start(); err != nil {
		return err
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	s, err := l.Accept()
	if err != nil {
		return err
	}
	f, err := s.(*net.TCPConn).File()
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(pair[0], []byte{1}, unix.UnixRights(int(f.Fd())), nil, 0); err != nil {
		return err
	}
	f.Close()
	s.Close()
	c.Write(make([]byte, 40))
	c.(*net.TCPConn).CloseWrite()
	n, _ := io.Copy(io.Discard, c)
	c.Close()
	if err := heir.Wait(); err != nil {
		return err
	}
	r.tcp(addrOf(c.LocalAddr()), addrOf(c.RemoteAddr()), 40, int(n))
	r.Flows[len(r.Flows)-1].PID = heir.Process.Pid
	return nil
}

// heir serves the connection that it is passed.
func heir() error {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(3, make([]byte, 1), oob, 0)
	if err != nil {
		return err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return err
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return err
	}
	c, err := net.FileConn(os.NewFile(uintptr(fds[0]), "passed"))
	if err != nil {
		return err
	}
	io.Copy(io.Discard, c)
	c.Write(make([]byte, 90))
	return c.Close()
}

// datagrams sends from one socket to another; with segment the kernel cuts them (UDP_SEGMENT).
func datagrams(r *report, proto int, sizes []int, segment int, to [4]byte) error {
	name := "udp"
	if proto == unix.IPPROTO_UDPLITE {
		name = "udplite"
	}
	bound := func(addr [4]byte) (int, netip.AddrPort, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto)
		if err != nil {
			return 0, netip.AddrPort{}, err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: addr}); err != nil {
			return 0, netip.AddrPort{}, err
		}
		sa, err := unix.Getsockname(fd)
		if err != nil {
			return 0, netip.AddrPort{}, err
		}
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
		return fd, netip.AddrPortFrom(netip.AddrFrom4(addr), uint16(sa.(*unix.SockaddrInet4).Port)), nil
	}
	lo := [4]byte{127, 0, 0, 1}
	a, from, err := bound(lo)
	if err != nil {
		return err
	}
	b, at, err := bound([4]byte{})
	if err != nil {
		return err
	}
	unix.SetsockoptInt(a, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	if to[0] == 239 {
		if err := unix.SetsockoptInet4Addr(a, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, lo); err != nil {
			return err
		}
		if err := unix.SetsockoptIPMreq(b, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreq{Multiaddr: to, Interface: lo}); err != nil {
			return err
		}
	}
	if segment != 0 {
		if err := unix.SetsockoptInt(a, unix.IPPROTO_UDP, unix.UDP_SEGMENT, segment); err != nil {
			return err
		}
	}
	there := netip.AddrPortFrom(netip.AddrFrom4(to), at.Port())
	out := counted{Proto: name, Local: from, Remote: there, PID: r.PID}
	in := counted{Proto: name, Local: there, Remote: from, PID: r.PID}
	for _, n := range sizes {
		if err := unix.Sendto(a, make([]byte, n), 0, &unix.SockaddrInet4{Port: int(at.Port()), Addr: to}); err != nil {
			return err
		}
		parts := 1
		if segment != 0 {
			parts = (n + segment - 1) / segment
		}
		out.Out += uint64(parts)
		out.Sent += uint64(n)
		for range parts {
			got, _, err := unix.Recvfrom(b, make([]byte, 65536), 0)
			if err != nil {
				return err
			}
			in.In++
			in.Received += uint64(got)
		}
	}
	unix.Close(a)
	unix.Close(b)
	r.Flows = append(r.Flows, out, in)
	return nil
}

// ping asks the loopback for three echoes.
func ping(r *report, kind int) error {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if errors.Is(err, unix.EACCES) {
		return fmt.Errorf("net.ipv4.ping_group_range: %w", err)
	} else if err != nil {
		return err
	}
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	to := [4]byte{127, 0, 0, byte(20 + kind)}
	lo := netip.AddrPortFrom(netip.AddrFrom4([4]byte{}), 0)
	f := counted{Proto: "icmp", Local: lo, Remote: netip.AddrPortFrom(netip.AddrFrom4(to), 8<<8), PID: r.PID}
	for i := range 3 {
		msg := append([]byte{8, 0, 0, 0, 1, 2, 0, byte(i)}, make([]byte, 56)...)
		var sum uint32
		for j := 0; j < len(msg); j += 2 {
			sum += uint32(msg[j])<<8 | uint32(msg[j+1])
		}
		sum = sum>>16 + sum&0xffff
		msg[2], msg[3] = byte(^sum>>8), byte(^sum)
		if err := unix.Sendto(fd, msg, 0, &unix.SockaddrInet4{Addr: to}); err != nil {
			return err
		}
		f.Out++
		f.Sent += 56
		for { // a raw socket hears the question too
			buf := make([]byte, 1500)
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return err
			}
			if kind == unix.SOCK_RAW {
				buf, n = buf[20:], n-20
			}
			if buf[0] == 0 {
				f.In++
				f.Received += uint64(n - 8)
				break
			}
		}
	}
	unix.Close(fd)
	r.Flows = append(r.Flows, f)
	return nil
}

// kind runs one of kinds when its standard input says so.
func kind(name string) error {
	f, ok := kinds[name]
	if !ok {
		return fmt.Errorf("no kind %q", name)
	}
	r := newReport()
	if err := f(r); err != nil {
		return err
	}
	r.print()
	return nil
}

// burst starts processes one after the other, each of which makes one connection and ends; at most rate a second if that is not 0.
// It prints their pids.
func burst(addr, count, rate, path string) error {
	n, _ := strconv.Atoi(count)
	perSecond, _ := strconv.Atoi(rate)
	r := newReport()
	host, port, _ := net.SplitHostPort(addr)
	begin := time.Now()
	slots := make(chan struct{}, 2)
	pids := make(chan int, n)
	errs := make(chan error, n)
	for i := range n {
		if perSecond != 0 {
			time.Sleep(time.Until(begin.Add(time.Duration(i) * time.Second / time.Duration(perSecond))))
		}
		slots <- struct{}{}
		go func() { // ends with the process
			defer func() { <-slots }()
			c := exec.Command(path, host, port)
			if filepath.Base(path) == "busybox" {
				c = exec.Command(path, "nc", host, port)
				c.Stdin = strings.NewReader("x")
			}
			c.Env = []string{}
			c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			err := c.Run()
			if err == nil {
				pids <- c.Process.Pid
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	fmt.Fprintf(os.Stderr, "%d processes in %s: %.0f/s\n", n, time.Since(begin).Round(time.Millisecond), float64(n)/time.Since(begin).Seconds())
	for range n {
		r.Flows = append(r.Flows, counted{PID: <-pids})
	}
	r.print()
	return nil
}
