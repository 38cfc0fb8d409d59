package ipfix

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// udp sends messages in batches: one system call (sendmmsg) for up to 64, and among them one pass through the network stack for each
// run of messages of one length (UDP_SEGMENT, Linux 4.18).
type udp struct {
	x      *Exporter
	socket *os.File
	raw    syscall.RawConn
	remote net.Addr
	v6     bool
	max    int
	pace   pace

	arena   []byte // the messages that wait, one after the other
	lengths []int
	records []int
	weight  int  // of the messages that wait, as pace counts them
	whole   bool // UDP_SEGMENT does not work here

	// Arguments of sendmmsg, made once.
	headers  [batchLen]mmsghdr
	vectors  [batchLen]unix.Iovec
	controls [batchLen][unix.SizeofCmsghdr + 8]byte
	groups   [batchLen]int // messages in each header
	from, to int           // headers to send now
	errno    syscall.Errno
	call     func(fd uintptr)
}

// mmsghdr is struct mmsghdr of sendmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	length uint32
	_      [4]byte
}

const (
	batchLen   = 64    // UDP_MAX_SEGMENTS of kernels before 6.9
	maxUDP     = 65507 // octets of a datagram, and of a run of them
	sendBuffer = 1 << 20

	// How long a full send buffer may hold up a datagram.
	sendTimeout = time.Second

	// An unknown path MTU: RFC 7011, section 10.3.3.
	unknownPathMessage = 512
	// A larger datagram saves little, and some collectors read no more.
	maxDatagram = 8192
)

// open resolves the name anew.
func (u *udp) open(ctx context.Context) error {
	d := u.x.conf().dialer("udp")
	conn, err := d.DialContext(ctx, "udp", u.x.conf().Address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if u.socket, err = blocking(conn.(*net.UDPConn)); err != nil {
		return err
	}
	if u.raw, err = u.socket.SyscallConn(); err != nil {
		u.socket.Close()
		return err
	}
	u.remote = conn.RemoteAddr()
	u.v6 = u.remote.(*net.UDPAddr).IP.To4() == nil
	u.raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
		timeout := unix.NsecToTimeval(int64(sendTimeout))
		unix.SetsockoptTimeval(int(fd), unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout)
	})
	if u.x.conf().MTU == 0 {
		u.fragment(false)
	}
	u.max = messageSize(u.socket, u.x.conf().MTU, u.v6)
	u.pace = newPace(u.x.conf().MaxRate)
	u.call = u.sendmmsg
	return nil
}

// blocking returns another descriptor of a socket, which the runtime's poller does not watch once c is closed. It would be woken whenever
// the kernel is done with a datagram, for there is room for another then: that costs as much as to send it.
func blocking(c *net.UDPConn) (*os.File, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	raw.Control(func(of uintptr) {
		if fd, err = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			err = unix.SetNonblock(fd, false)
		}
	})
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "udp"), nil
}

// fragment says whether a datagram larger than the path MTU may be sent in fragments, or is an error (RFC 7011, section 10.3.3: SHOULD
// NOT be fragmented).
func (u *udp) fragment(may bool) {
	mode := unix.IP_PMTUDISC_DO
	if may {
		mode = unix.IP_PMTUDISC_DONT
	}
	u.raw.Control(func(fd uintptr) {
		if u.v6 {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, mode)
		} else {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, mode)
		}
	})
}

// messageSize is the size of messages over UDP. mtu 0 stands for the path MTU.
func messageSize(c syscall.Conn, mtu int, v6 bool) int {
	headers := 28
	if v6 {
		headers = 48
	}
	if mtu == 0 {
		mtu = pathMTU(c, v6)
		if mtu == 0 {
			return unknownPathMessage
		}
		mtu = min(mtu, maxDatagram+headers)
	}
	return max(unknownPathMessage, min(mtu-headers, maxUDP))
}

// pathMTU is what the kernel knows of the route (ip(7), IP_MTU); 0 if nothing.
func pathMTU(c syscall.Conn, v6 bool) int {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	mtu := 0
	raw.Control(func(fd uintptr) {
		level, opt := unix.IPPROTO_IP, unix.IP_MTU
		if v6 {
			level, opt = unix.IPPROTO_IPV6, unix.IPV6_MTU
		}
		if n, err := unix.GetsockoptInt(int(fd), level, opt); err == nil {
			mtu = n
		}
	})
	return mtu
}

func (u *udp) limit() int            { return u.max }
func (u *udp) dead() <-chan struct{} { return nil }

func (u *udp) close() error { return u.socket.Close() }

// renew learns a path MTU that has grown.
func (u *udp) renew() bool {
	u.max = messageSize(u.socket, u.x.conf().MTU, u.v6)
	return false
}

func (u *udp) address() net.Addr { return u.remote }

// moved reports whether the collector's name no longer stands for the address. A name server that does not answer changes nothing.
func moved(ctx context.Context, c *Config, now net.Addr) bool {
	host, _, err := net.SplitHostPort(c.Address)
	if err != nil {
		return false
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addrs, err := c.resolver.LookupIPAddr(ctx, host)
	if err != nil || len(addrs) == 0 {
		return false
	}
	for _, a := range addrs {
		if a.IP.Equal(now.(*net.UDPAddr).IP) {
			return false
		}
	}
	return true
}

// send keeps a message for the batch.
func (u *udp) send(msg []byte, records int) error {
	u.arena = append(u.arena, msg...)
	u.lengths, u.records = append(u.lengths, len(msg)), append(u.records, records)
	u.weight += paced(len(msg))
	if len(u.lengths) == batchLen || u.weight >= u.pace.burst {
		return u.flush()
	}
	return nil
}

// flush sends the batch. Messages that the kernel does not take are lost, and counted.
func (u *udp) flush() error {
	if len(u.lengths) == 0 {
		return nil
	}
	u.pace.take(u.weight, &u.x.stopBy)
	u.weight = 0
	var errs error
	n := u.group()
	refused := false
	for done, first := 0, 0; done < n; {
		u.from, u.to, u.errno = done, n, 0
		err := u.raw.Control(u.call)
		if err == nil && u.errno != 0 {
			err = os.NewSyscallError("sendmmsg", u.errno)
		}
		for ; done < u.from; done++ { // sent
			for range u.groups[done] {
				u.x.sent(u.lengths[first], u.records[first])
				first++
			}
		}
		if err == nil {
			continue
		}
		msgs := u.groups[done]
		switch {
		case errors.Is(err, syscall.ECONNREFUSED) && !refused:
			// The answer to an earlier datagram; this one was not sent yet.
			refused = true
			u.x.errs.Add(1)
			u.x.refuse(err)
			continue
		case msgs > 1 && errors.Is(err, syscall.EIO):
			u.whole = true // this device cannot
			err = u.each(first, msgs, false)
		case errors.Is(err, syscall.EMSGSIZE), msgs > 1 && errors.Is(err, syscall.EINVAL):
			// The path MTU is smaller than it was, and the kernel knows it now.
			err = u.each(first, msgs, true)
			u.max = messageSize(u.socket, u.x.conf().MTU, u.v6)
		default:
			for i := first; i < first+msgs; i++ {
				u.x.droppedSend.Add(uint64(u.records[i]))
			}
		}
		errs = errors.Join(errs, err)
		first += msgs
		done++
	}
	u.arena, u.lengths, u.records = u.arena[:0], u.lengths[:0], u.records[:0]
	if !refused {
		u.x.accept()
	}
	return errs
}

// group fills the headers: messages of one length that follow each other, of which the last may be shorter, are one.
func (u *udp) group() int {
	n, at := 0, 0
	for i := 0; i < len(u.lengths); {
		size, total, j := u.lengths[i], u.lengths[i], i+1
		for !u.whole && j < len(u.lengths) && u.lengths[j-1] == size && u.lengths[j] <= size && total+u.lengths[j] <= maxUDP {
			total += u.lengths[j]
			j++
		}
		h := &u.headers[n]
		*h = mmsghdr{}
		u.vectors[n].Base = &u.arena[at]
		u.vectors[n].SetLen(total)
		h.Iov = &u.vectors[n]
		h.SetIovlen(1)
		if j > i+1 {
			c := &u.controls[n]
			cmsg := (*unix.Cmsghdr)(unsafe.Pointer(c))
			cmsg.Level, cmsg.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
			cmsg.SetLen(unix.CmsgLen(2))
			*(*uint16)(unsafe.Pointer(&c[unix.SizeofCmsghdr])) = uint16(size)
			h.Control = &c[0]
			h.SetControllen(unix.CmsgSpace(2))
		}
		u.groups[n] = j - i
		n++
		at += total
		i = j
	}
	return n
}

// sendmmsg sends headers from on, and moves from past what was sent.
func (u *udp) sendmmsg(fd uintptr) {
	for u.from < u.to {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&u.headers[u.from])), uintptr(u.to-u.from), 0, 0, 0)
		switch errno {
		case 0:
			u.from += int(n)
		case unix.EINTR:
		default:
			u.errno = errno
			return
		}
	}
}

// each sends messages one by one, in fragments if it must be.
func (u *udp) each(first, n int, fragments bool) error {
	if fragments {
		u.fragment(true)
		if u.x.conf().MTU == 0 {
			defer u.fragment(false)
		}
	}
	at := 0
	for _, l := range u.lengths[:first] {
		at += l
	}
	var errs error
	for i := first; i < first+n; i++ {
		msg := u.arena[at : at+u.lengths[i]]
		at += len(msg)
		if _, err := u.socket.Write(msg); err != nil {
			u.x.droppedSend.Add(uint64(u.records[i]))
			errs = errors.Join(errs, err)
			continue
		}
		u.x.sent(len(msg), u.records[i])
	}
	return errs
}
