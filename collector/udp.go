package collector

import (
	"encoding/binary"
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
		// Beyond net.core.rmem_max only with CAP_NET_ADMIN. The kernel reports the number of dropped datagrams with the next
		// one.
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
		err = c.datagram(senderKey{i, netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())}, buf[:n])
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

// datagram decodes a datagram; c.mu is held. Octets that are no message make no session.
func (c *Collector) datagram(k senderKey, msg []byte) error {
	now := time.Now()
	x := c.bySender[k]
	if x == nil {
		if err := checkMessage(msg); err != nil {
			c.counts.Messages++
			c.counts.Octets += uint64(len(msg))
			c.counts.Malformed[err.Cause]++
			c.notify.say(noticeMalformed, "udp://%s: %v", k.addr, err)
			return nil
		}
		x = c.newSender(k, now)
	} else {
		x.heard = now
		c.senders[x.known].MoveToFront(x.all)
		x.peer.senders[x.known].MoveToFront(x.own)
	}
	err := c.decode(x.session, msg, c.handle)
	if x.known == 0 && x.session.stats.Templates > 0 && c.bySender[k] == x {
		c.remove(x)
		x.known = 1
		c.place(x)
	}
	return err
}
