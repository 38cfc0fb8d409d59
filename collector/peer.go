package collector

import (
	"container/list"
	"net"
	"net/netip"
	"time"
)

// peer is an address (of IPv6 the network, 64 bits) with which there are sessions. It has a share of each bound: where it
// is used up its own sessions give way, not those of others.
type peer struct {
	addr    netip.Addr
	memory  int           // octets left of its share
	senders [2]*list.List // *sender over UDP, those without a template apart; the last one heard first
	conns   int           // connections that have a session
}

// shares is into how many parts a bound is divided: a peer has one of them, but no less than the least.
const (
	shares          = 8
	leastSessions   = 16
	leastPeerMemory = 4 << 20
)

func share(bound, least int) int { return min(bound, max(bound/shares, least)) }

// peerOf returns the peer of an address; c.mu is held.
func (c *Collector) peerOf(a netip.Addr) *peer {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		a = netip.PrefixFrom(a, 64).Masked().Addr()
	}
	p := c.peers[a]
	if p == nil {
		p = &peer{addr: a, memory: share(c.opt.Memory, leastPeerMemory), senders: [2]*list.List{list.New(), list.New()}}
		c.peers[a] = p
	}
	return p
}

// leave forgets a peer that has no session; c.mu is held.
func (c *Collector) leave(p *peer) {
	if p.conns == 0 && p.senders[0].Len()+p.senders[1].Len() == 0 {
		delete(c.peers, p.addr)
	}
}

// sender is the session of an address and port over UDP.
type sender struct {
	key      senderKey
	session  *Session
	peer     *peer
	heard    time.Time
	known    int // 1: it has sent a template
	all, own *list.Element
}

// place puts a sender at the begin of the lists for its kind; c.mu is held.
func (c *Collector) place(x *sender) {
	x.all, x.own = c.senders[x.known].PushFront(x), x.peer.senders[x.known].PushFront(x)
}

// remove takes a sender out of its lists; c.mu is held.
func (c *Collector) remove(x *sender) {
	c.senders[x.known].Remove(x.all)
	x.peer.senders[x.known].Remove(x.own)
}

// newSender makes room, and returns a new sender; c.mu is held. Where there are too many of its peer, one of these
// gives way, else one of all: the one that was silent for longest, of those without a template if there are any. A
// sender of NetFlow v5 needs none, and loses nothing.
func (c *Collector) newSender(k senderKey, now time.Time) *sender {
	for _, l := range c.senders {
		for e := l.Back(); e != nil && now.Sub(e.Value.(*sender).heard) > c.opt.TemplateLifetime; e = l.Back() {
			c.endSession(e.Value.(*sender).session)
		}
	}
	p := c.peerOf(k.addr.Addr())
	lists := &c.senders
	if p.senders[0].Len()+p.senders[1].Len() >= share(c.opt.Senders, leastSessions) {
		lists = &p.senders
	}
	if lists == &p.senders || lists[0].Len()+lists[1].Len() >= c.opt.Senders {
		e := lists[0].Back()
		if e == nil {
			e = lists[1].Back()
		}
		c.counts.Forgotten++
		c.endSession(e.Value.(*sender).session)
		p = c.peerOf(k.addr.Addr()) // it may have been the last of its peer
	}
	x := &sender{key: k, peer: p, heard: now}
	x.session = c.newSession("udp://"+k.addr.String(), true, p)
	c.place(x)
	c.sessions[x.session], c.bySender[k] = x, x
	return x
}

// addrOf returns the address of a connection's other end.
func addrOf(conn net.Conn) netip.Addr {
	a, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	return a.Addr()
}
