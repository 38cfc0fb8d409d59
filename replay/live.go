package replay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sockflow/sockflow/flowcache"
)

// Live reads the packets of a network interface: AF_PACKET with a ring of blocks that the kernel fills (TPACKET_V3, packet(7)). The
// kernel copies headers only. It needs CAP_NET_RAW.
type Live struct {
	fd    int
	ring  []byte
	any   bool
	block int    // that is being read or waited for
	left  uint32 // packets in it
	at    int    // of the next packet, from the begin of the ring
	taken bool   // block is ours
	now   int64  // when it was taken
	ahead int64  // how far the wall clock was ahead of that
	drops atomic.Uint64
}

// LiveConfig configures a Live. Its zero value, but for Interface, is the default.
type LiveConfig struct {
	Interface   string // its name in this network namespace; any: all
	Promiscuous bool   // also packets that are not for this host, as at a mirror port
}

const (
	liveBlock  = 512 << 10
	liveBlocks = 16
	// liveSnap holds the headers, those of a tunnel and its inner packet included.
	liveSnap = 256
	// liveWait is how long a packet may wait in a block that is not full, and how often an idle Live says so.
	liveWait = 50 * time.Millisecond
	// longestStay is how long a packet may have been in the ring.
	longestStay = time.Minute

	vnetHeader = 10 // struct virtio_net_hdr
	// Hardware types, linux/if_arp.h.
	arphrdEther    = 1
	arphrdPPP      = 512
	arphrdTunnel   = 768
	arphrdTunnel6  = 769
	arphrdLoopback = 772
	arphrdSIT      = 776
	arphrdIPGRE    = 778
	arphrdIP6GRE   = 823
	arphrdRawIP    = 519
	arphrdNone     = 0xfffe
)

// OpenLive begins to capture.
func OpenLive(cfg LiveConfig) (*Live, error) {
	l := &Live{fd: -1, any: cfg.Interface == "any"}
	if err := l.open(cfg); err != nil {
		l.Close()
		return nil, fmt.Errorf("capture on interface %s: %w", cfg.Interface, err)
	}
	return l, nil
}

func (l *Live) open(cfg LiveConfig) error {
	var err error
	// Protocol 0: nothing comes before it is bound.
	if l.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		if errors.Is(err, unix.EPERM) {
			return errors.New("it takes CAP_NET_RAW")
		}
		return os.NewSyscallError("socket", err)
	}
	index := 0
	if !l.any {
		r, err := unix.NewIfreq(cfg.Interface)
		if err != nil {
			return errors.New("that is no name of an interface")
		}
		if err := unix.IoctlIfreq(l.fd, unix.SIOCGIFINDEX, r); err != nil {
			if errors.Is(err, unix.ENODEV) {
				return errors.New("there is no such interface")
			}
			return os.NewSyscallError("SIOCGIFINDEX", err)
		}
		index = int(r.Uint32())
	}
	if err := unix.SetsockoptInt(l.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return os.NewSyscallError("PACKET_VERSION", err)
	}
	// For a packet that is several on the wire (segmentation offload), the kernel then reports their size.
	if err := unix.SetsockoptInt(l.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return os.NewSyscallError("PACKET_VNET_HDR", err)
	}
	snap := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: liveSnap}}
	if err := unix.SetsockoptSockFprog(l.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &snap[0]}); err != nil {
		return os.NewSyscallError("SO_ATTACH_FILTER", err)
	}
	req := unix.TpacketReq3{
		Block_size: liveBlock, Block_nr: liveBlocks, Frame_size: 512, Frame_nr: liveBlock / 512 * liveBlocks,
		Retire_blk_tov: uint32(liveWait / time.Millisecond),
	}
	if err := unix.SetsockoptTpacketReq3(l.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return os.NewSyscallError("PACKET_RX_RING", err)
	}
	if l.ring, err = unix.Mmap(l.fd, 0, liveBlock*liveBlocks, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return os.NewSyscallError("mmap", err)
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
	if err := unix.Bind(l.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if cfg.Promiscuous && !l.any {
		m := unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_PROMISC}
		if err := unix.SetsockoptPacketMreq(l.fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &m); err != nil {
			return os.NewSyscallError("PACKET_ADD_MEMBERSHIP", err)
		}
	}
	return nil
}

// Close ends the capture. No Next may be under way.
func (l *Live) Close() error {
	if l.ring != nil {
		unix.Munmap(l.ring)
		l.ring = nil
	}
	if l.fd >= 0 {
		unix.Close(l.fd)
		l.fd = -1
	}
	return nil
}

// Drops is the number of packets that the kernel had no room for. Safe for concurrent use with Next.
func (l *Live) Drops() uint64 { return l.drops.Load() }

// status is the word of a block by which it passes between the kernel and us.
func (l *Live) status() *uint32 { return (*uint32)(unsafe.Pointer(&l.ring[l.block*liveBlock+8])) }

// Next reads a packet. It returns ErrIdle, with the time, when there is none for a while. Times are by flowcache.Now.
func (l *Live) Next(p *Packet) error {
	for {
		for l.left == 0 {
			if err := l.nextBlock(p); err != nil {
				return err
			}
		}
		if l.packet(p) {
			return nil
		}
	}
}

// nextBlock gives the block that was read back, and waits for the next.
func (l *Live) nextBlock(p *Packet) error {
	if l.taken {
		atomic.StoreUint32(l.status(), unix.TP_STATUS_KERNEL)
		l.block = (l.block + 1) % liveBlocks
		l.taken = false
	}
	if atomic.LoadUint32(l.status())&unix.TP_STATUS_USER == 0 {
		fds := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN | unix.POLLERR}}
		_, err := unix.Poll(fds, int(liveWait/time.Millisecond))
		l.count()
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return os.NewSyscallError("poll", err)
		case fds[0].Revents&unix.POLLERR != 0:
			// The interface went down, or is gone.
			if errno, _ := unix.GetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_ERROR); errno != 0 && unix.Errno(errno) != unix.ENETDOWN {
				return fmt.Errorf("capture: %w", unix.Errno(errno))
			}
		}
		if atomic.LoadUint32(l.status())&unix.TP_STATUS_USER == 0 {
			p.Time = flowcache.Now()
			return ErrIdle
		}
	}
	b := l.ring[l.block*liveBlock:]
	l.left = binary.NativeEndian.Uint32(b[12:])
	l.at = l.block*liveBlock + int(binary.NativeEndian.Uint32(b[16:]))
	l.taken = true
	now := time.Now()
	l.now = flowcache.At(now)
	l.ahead = now.UnixNano() - l.now
	return nil
}

// count asks for the drops, which the kernel then counts anew.
func (l *Live) count() {
	if st, err := unix.GetsockoptTpacketStatsV3(l.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		l.drops.Add(uint64(st.Drops))
	}
}

// packet reads the packet at l.at (struct tpacket3_hdr, and a struct sockaddr_ll after it). It reports false for one that does not count.
func (l *Live) packet(p *Packet) bool {
	const header, address = 48, 48
	l.left--
	at := l.at
	end := (l.block + 1) * liveBlock
	if at < 0 || at+header+20 > end {
		l.left = 0
		return false
	}
	h := l.ring[at:end]
	next := int(binary.NativeEndian.Uint32(h))
	l.at += next
	captured, mac := int(binary.NativeEndian.Uint32(h[12:])), int(binary.NativeEndian.Uint16(h[24:]))
	if mac < vnetHeader || mac+captured > len(h) || next == 0 && l.left > 0 {
		l.left = 0
		return false
	}
	hardware, kind := binary.NativeEndian.Uint16(h[address+8:]), h[address+10]
	if hardware == arphrdLoopback && kind == unix.PACKET_OUTGOING {
		return false // it comes in again
	}
	p.Time = int64(binary.NativeEndian.Uint32(h[4:]))*1e9 + int64(binary.NativeEndian.Uint32(h[8:])) - l.ahead
	if p.Time > l.now || p.Time < l.now-int64(longestStay) {
		p.Time = l.now // the wall clock was stepped since it came
	}
	p.Length = int(binary.NativeEndian.Uint32(h[16:]))
	p.Data = h[mac : mac+captured]
	p.Link = linkOf(hardware)
	p.Segment = 0
	if v := h[mac-vnetHeader:]; v[1] != 0 { // gso_type
		p.Segment = int(binary.NativeEndian.Uint16(v[4:]))
	}
	return true
}

// linkOf returns the link type of a hardware type.
func linkOf(hardware uint16) uint16 {
	switch hardware {
	case arphrdEther, arphrdLoopback:
		return LinkEthernet
	case arphrdPPP:
		return LinkPPP
	case arphrdNone, arphrdRawIP, arphrdTunnel, arphrdTunnel6, arphrdSIT, arphrdIPGRE, arphrdIP6GRE:
		return LinkRaw
	}
	return linkUnknown
}

const linkUnknown = 0xffff
