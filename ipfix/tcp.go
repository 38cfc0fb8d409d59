package ipfix

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// link is the connection of a stream. It counts what is written to the socket, which of TLS are other octets than those of messages.
type link struct {
	conn    net.Conn // what messages are written to: TLS, or socket
	socket  socket
	written uint64
	eof     atomic.Bool // the other side has closed its end, or the connection broke and Write returned the error
	broken  bool        // Write returned an error of the connection
	timeout time.Duration
	stopBy  *atomic.Int64

	// state returns how much the other side's kernel has not acknowledged, and the window that it last offered, in octets.
	state  func(fd int) (unacked int, window uint32, err error)
	acked  uint64
	read   uint64
	window uint32 // largest seen
}

// socket is what link wants of a connection.
type socket interface {
	net.Conn
	syscall.Conn
}

// Write writes all of b unless the other side takes nothing for the timeout.
func (l *link) Write(b []byte) (int, error) {
	done := 0
	for {
		deadline := time.Now().Add(l.timeout)
		if by := l.stopBy.Load(); by != 0 && by < deadline.UnixNano() {
			deadline = time.Unix(0, by)
		}
		l.socket.SetWriteDeadline(deadline)
		n, err := l.socket.Write(b[done:])
		done += n
		l.written += uint64(n)
		var timeout net.Error
		if n > 0 && done < len(b) && errors.As(err, &timeout) && timeout.Timeout() && (l.stopBy.Load() == 0 || time.Now().UnixNano() < l.stopBy.Load()) {
			continue // slow, not dead
		}
		// The kernel returns an error once: Read then returns EOF. After a FIN the error is EPIPE.
		var errno syscall.Errno
		l.broken = l.broken || errors.As(err, &errno) && errno != syscall.EPIPE
		return done, err
	}
}

// Read notes the other side's end.
func (l *link) Read(b []byte) (int, error) {
	n, err := l.socket.Read(b)
	if errors.Is(err, io.EOF) {
		l.eof.Store(true)
	}
	return n, err
}

// fin reports whether the other side has ended the connection in order.
func (l *link) fin() bool { return l.eof.Load() && !l.broken }

// progress returns how many of the octets written the other side's kernel has acknowledged, and of these how many its program must have
// read, since its receive buffer has no room for more than the rest. Elapsed time is no evidence: a program that hangs,
// or that gets no processor, reads nothing for any length of time, and is killed for it. The window shows the unread
// octets only in part: Linux offers no more than it finds useful, which is half of a buffer whose size the program has
// set (SO_RCVBUF).
func (l *link) progress() (acked, read uint64) {
	raw, err := l.socket.SyscallConn()
	if err != nil {
		return l.acked, l.read
	}
	raw.Control(func(fd uintptr) {
		unacked, window, err := l.state(int(fd))
		if err != nil {
			return
		}
		l.acked = max(l.acked, l.written-min(l.written, uint64(unacked)))
		l.window = max(l.window, window)
		if unread := 2*uint64(l.window) - uint64(window); l.window > 0 && l.acked > unread {
			l.read = max(l.read, l.acked-unread)
		}
	})
	return l.acked, l.read
}

// unackedTCP asks by SIOCOUTQ (tcp(7)), which holds after the end of the connection too.
func unackedTCP(fd int) (int, uint32, error) {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return 0, 0, err
	}
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, 0, err
	}
	return n, info.Snd_wnd, nil // of Linux 5.4; 0 before
}

const (
	// What the kernel holds unsent is little, so that little is in doubt when the connection ends.
	notSent       = 128 << 10
	keepAliveIdle = 15 * time.Second
)

// connectTCP resolves the name anew and connects.
func (c *Config) connectTCP(ctx context.Context) (*net.TCPConn, error) {
	d := c.dialer("tcp")
	d.KeepAliveConfig = net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: 5 * time.Second, Count: 3}
	d.Control = func(_, _ string, raw syscall.RawConn) error {
		err := raw.Control(func(fd uintptr) {
			// Of both, what an old kernel does not know is no reason not to connect.
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSent)
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(c.SendTimeout.Milliseconds()))
		})
		return errors.Join(err, bindToDevice(raw, c.Device))
	}
	conn, err := d.DialContext(ctx, "tcp", c.Address)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

func (c *Config) newLink(s socket, state func(int) (int, uint32, error)) *link {
	l := &link{socket: s, timeout: c.SendTimeout, stopBy: c.stopBy, state: state}
	l.conn = plain{s, l}
	return l
}

// plain is a connection that reads and writes by way of its link.
type plain struct {
	net.Conn
	l *link
}

func (p plain) Read(b []byte) (int, error)  { return p.l.Read(b) }
func (p plain) Write(b []byte) (int, error) { return p.l.Write(b) }

func (c *Config) dialTCP(ctx context.Context) (*link, error) {
	conn, err := c.connectTCP(ctx)
	if err != nil {
		return nil, err
	}
	return c.newLink(conn, unackedTCP), nil
}
