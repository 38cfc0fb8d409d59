package collector

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// receiveBuffer is asked for at each UDP socket: a burst of half a second.
const receiveBuffer = 8 << 20

func listenUDP(addr string) (end, error) {
	a, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return end{}, err
	}
	conn, err := net.ListenUDP("udp", a)
	if err != nil {
		return end{}, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		conn.Close()
		return end{}, err
	}
	raw.Control(func(fd uintptr) {
		// Beyond net.core.rmem_max only with CAP_NET_ADMIN. What is dropped for want of room is told with the next datagram.
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
		}
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1)
	})
	return end{udp: conn}, nil
}

// datagrams reads a UDP socket until it is closed.
func (c *Collector) datagrams(i int) {
	buf := make([]byte, 65536)
	oob := make([]byte, 64)
	drops := uint32(0)
	for {
		n, oobn, _, addr, err := c.ends[i].udp.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return // it is closed, or the time after the end is over: nothing else fails on a socket that is not connected
		}
		c.mu.Lock()
		if total, ok := overflow(oob[:oobn]); ok {
			c.counts.KernelDrops += uint64(total - drops)
			drops = total
		}
		s := c.sender(senderKey{i, netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())})
		err = c.decode(s, buf[:n], c.handle)
		c.mu.Unlock()
		if !passable(err) {
			return
		}
	}
}

// overflow reads the count of datagrams that the kernel dropped (SO_RXQ_OVFL, socket(7)).
func overflow(oob []byte) (uint32, bool) {
	const header = unix.SizeofCmsghdr
	if len(oob) < header+4 {
		return 0, false
	}
	level, typ := binary.NativeEndian.Uint32(oob[header-8:]), binary.NativeEndian.Uint32(oob[header-4:])
	if level != unix.SOL_SOCKET || typ != unix.SO_RXQ_OVFL {
		return 0, false
	}
	return binary.NativeEndian.Uint32(oob[header:]), true
}

// sender returns the session of an address; c.mu is held.
func (c *Collector) sender(k senderKey) *Session {
	now := time.Now()
	if at := c.bySender[k]; at != nil {
		x := at.Value.(*sender)
		x.heard = now
		c.senders.MoveToFront(at)
		return x.session
	}
	for oldest := c.senders.Back(); oldest != nil; oldest = c.senders.Back() {
		x := oldest.Value.(*sender)
		silent := now.Sub(x.heard) > c.opt.TemplateLifetime
		if !silent && c.senders.Len() < c.opt.Senders {
			break
		}
		if !silent {
			c.counts.Forgotten++
		}
		c.endSession(x.session)
	}
	s := c.newSession(fmt.Sprintf("udp://%s", k.addr), true)
	at := c.senders.PushFront(&sender{k, s, now})
	c.sessions[s], c.bySender[k] = at, at
	return s
}
