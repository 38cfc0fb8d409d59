package ipfix

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sctpConn is a one-to-one SCTP association (RFC 6458, section 4). All messages go over stream 0, reliable and in order
// (RFC 7011, section 10.2), and each write is one SCTP message.
type sctpConn struct {
	*os.File
	remote net.Addr
}

func (s sctpConn) LocalAddr() net.Addr  { return nil }
func (s sctpConn) RemoteAddr() net.Addr { return s.remote }

// dialSCTP connects to the first of the collector's addresses that answers.
func (c *Config) dialSCTP(ctx context.Context) (*link, error) {
	host, port, err := net.SplitHostPort(c.Address)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addrs, err := c.resolver.LookupIPAddr(ctx, host)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		var conn sctpConn
		if conn, err = c.connectSCTP(ctx, &net.TCPAddr{IP: a.IP, Port: int(n), Zone: a.Zone}); err == nil {
			return c.newLink(conn, unackedSCTP), nil
		}
	}
	return nil, err
}

func (c *Config) connectSCTP(ctx context.Context, to *net.TCPAddr) (sctpConn, error) {
	var addr, from unix.Sockaddr
	family := unix.AF_INET
	if ip := to.IP.To4(); ip != nil {
		addr = &unix.SockaddrInet4{Port: to.Port, Addr: [4]byte(ip)}
	} else {
		zone := 0
		if i, err := net.InterfaceByName(to.Zone); to.Zone != "" && err == nil {
			zone = i.Index
		}
		family, addr = unix.AF_INET6, &unix.SockaddrInet6{Port: to.Port, Addr: [16]byte(to.IP.To16()), ZoneId: uint32(zone)}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return sctpConn{}, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "sctp") // knows by O_NONBLOCK that it can be polled
	switch {
	case c.Source.Is4():
		from = &unix.SockaddrInet4{Addr: c.Source.As4()}
	case c.Source.Is6():
		from = &unix.SockaddrInet6{Addr: c.Source.As16()}
	}
	if c.Device != "" {
		err = unix.BindToDevice(fd, c.Device)
	}
	if err == nil && from != nil {
		err = unix.Bind(fd, from)
	}
	if err == nil {
		err = unix.Connect(fd, addr)
	}
	if errors.Is(err, unix.EINPROGRESS) {
		err = established(ctx, f)
	}
	if err != nil {
		f.Close()
		return sctpConn{}, fmt.Errorf("connect: %w", err)
	}
	return sctpConn{f, to}, nil
}

// established waits until a connect is done.
func established(ctx context.Context, f *os.File) error {
	deadline, _ := ctx.Deadline()
	f.SetWriteDeadline(deadline)
	defer f.SetWriteDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Now()) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	first := true
	err = raw.Write(func(fd uintptr) bool {
		if first { // not writable before the poller says so
			first = false
			return false
		}
		n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if result = err; err == nil && n != 0 {
			result = syscall.Errno(n)
		}
		return true
	})
	return errors.Join(result, err)
}

// unackedSCTP asks by SCTP_STATUS (RFC 6458, section 8.2.1), which counts chunks: only when there is none is it known what arrived.
func unackedSCTP(fd int) (int, uint32, error) {
	var status struct {
		assoc            int32
		state            int32
		window           uint32
		unacked, pending uint16
		_                [160]byte
	}
	const solSCTP, sctpStatus = 132, 14
	n := uint32(unsafe.Sizeof(status))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), solSCTP, sctpStatus, uintptr(unsafe.Pointer(&status)), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return 0, 0, errno
	}
	if status.unacked != 0 || status.pending != 0 {
		return 0, 0, errors.New("some chunks are not acknowledged")
	}
	return 0, status.window, nil
}
