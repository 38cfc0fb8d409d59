package ipfix

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// publisher is a ZeroMQ PUB socket: ZMTP 3.0 (rfc.zeromq.org/spec/23), security mechanism NULL. It connects to one subscriber or is
// bound and takes several. It has no queue: a message is written at once to who subscribed to it, or to nobody. What a peer sends is
// bounded, and a peer that does not read is let go.
type publisher struct {
	address      string
	bind         bool
	source       netip.Addr    // as in Config
	device       string        // likewise
	min, max     time.Duration // between attempts
	notify       func(ok bool, line string)
	changed      chan struct{} // something about peers has changed
	mu           sync.Mutex
	peers        []*peer
	connects     func() // counts
	failed       func()
	localAddress net.IP // of the latest connection
	msg          []byte // of publish, which one goroutine calls
}

// peer is a connected subscriber.
type peer struct {
	conn   net.Conn
	write  sync.Mutex // a message is not torn by the answer to a ping
	rest   []byte     // of the message before, which the peer has not taken yet; guarded by write
	since  time.Time  // of rest: when the peer took some last
	topics [][]byte   // prefixes; guarded by publisher.mu
}

const (
	zmtpGreeting  = 64
	zmtpMore      = 1 // flags of a frame
	zmtpLong      = 2
	zmtpCommand   = 4
	zmtpMaxFrame  = 1024 // a subscriber has no reason to send more
	zmtpMaxTopics = 64
	zmtpMaxPeers  = 16
)

// appendFrame appends a ZMTP frame.
func appendFrame(dst []byte, flags byte, body []byte) []byte {
	if len(body) > 255 {
		dst = append(dst, flags|zmtpLong)
		dst = binary.BigEndian.AppendUint64(dst, uint64(len(body)))
	} else {
		dst = append(dst, flags, byte(len(body)))
	}
	return append(dst, body...)
}

// readFrame reads a frame into buf, which has room for zmtpMaxFrame octets.
func readFrame(r io.Reader, buf []byte) (flags byte, body []byte, err error) {
	var h [9]byte
	if _, err := io.ReadFull(r, h[:2]); err != nil {
		return 0, nil, err
	}
	n := uint64(h[1])
	if h[0]&zmtpLong != 0 {
		if _, err := io.ReadFull(r, h[2:]); err != nil {
			return 0, nil, err
		}
		n = binary.BigEndian.Uint64(h[1:])
	}
	if n > zmtpMaxFrame {
		return 0, nil, fmt.Errorf("the peer sent a frame of %d octets", n)
	}
	_, err = io.ReadFull(r, buf[:n])
	return h[0], buf[:n], err
}

// handshake exchanges greetings and READY commands.
func handshake(c io.ReadWriter) error {
	greeting := [zmtpGreeting]byte{0: 0xff, 9: 0x7f, 10: 3, 11: 0}
	copy(greeting[12:32], "NULL")
	ready := appendFrame(greeting[:], zmtpCommand, []byte("\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB"))
	if _, err := c.Write(ready); err != nil {
		return err
	}
	var theirs [zmtpGreeting]byte
	if _, err := io.ReadFull(c, theirs[:11]); err != nil {
		return fmt.Errorf("no ZMTP greeting: %w", err)
	}
	if theirs[0] != 0xff || theirs[9] != 0x7f || theirs[10] < 3 {
		return errors.New("the peer does not speak ZMTP 3")
	}
	if _, err := io.ReadFull(c, theirs[11:]); err != nil {
		return err
	}
	if mechanism := bytes.TrimRight(theirs[12:32], "\x00"); string(mechanism) != "NULL" {
		return fmt.Errorf("the peer wants security mechanism %q, and only NULL is spoken", mechanism)
	}
	buf := make([]byte, zmtpMaxFrame)
	flags, body, err := readFrame(c, buf)
	if err != nil {
		return err
	}
	name, rest, ok := command(flags, body)
	if !ok || name != "READY" {
		return fmt.Errorf("the peer answered %.40q", body)
	}
	if t := property(rest, "socket-type"); t != "SUB" && t != "XSUB" {
		return fmt.Errorf("the peer is a %.20q socket, not SUB", t)
	}
	return nil
}

// command splits the body of a command frame into its name and its data.
func command(flags byte, body []byte) (name string, data []byte, ok bool) {
	if flags&zmtpCommand == 0 || len(body) == 0 || len(body) < 1+int(body[0]) {
		return "", nil, false
	}
	n := 1 + int(body[0])
	return string(body[1:n]), body[n:], true
}

// property finds a value in the metadata of a READY command; names are not case-sensitive.
func property(b []byte, name string) string {
	for len(b) > 0 && len(b) >= 5+int(b[0]) {
		n := 1 + int(b[0])
		key, size := b[1:n], uint64(binary.BigEndian.Uint32(b[n:]))
		b = b[n+4:]
		if uint64(len(b)) < size {
			break
		}
		if bytes.EqualFold(key, []byte(name)) {
			return string(b[:size])
		}
		b = b[size:]
	}
	return ""
}

// run connects or accepts until ctx ends.
func (p *publisher) run(ctx context.Context) {
	var peers sync.WaitGroup
	defer peers.Wait()
	var told atomic.Bool
	wait := p.min
	again := func(err error) {
		p.failed()
		if !told.Swap(true) {
			p.notify(false, fmt.Sprintf("collector zmq://%s: %s; trying again", p.address, reason(err)))
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait/2 + rand.N(wait/2+1)):
		}
		wait = min(2*wait, p.max)
	}
	up := func() {
		if told.Swap(false) {
			p.notify(true, fmt.Sprintf("collector zmq://%s: connected", p.address))
		}
	}
	for ctx.Err() == nil {
		if !p.bind {
			dialer := newDialer("tcp", p.source, p.device, nil)
			conn, err := dialer.DialContext(ctx, "tcp", p.address)
			if err == nil {
				begin := time.Now()
				err = p.serve(ctx, conn, up)
				if time.Since(begin) > max(steady, wait) { // see stream.run
					wait = p.min
				}
			}
			if ctx.Err() == nil {
				again(err)
			}
			continue
		}
		config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error { return bindToDevice(raw, p.device) }}
		l, err := config.Listen(ctx, "tcp", p.address)
		if err != nil {
			again(err)
			continue
		}
		stop := context.AfterFunc(ctx, func() { l.Close() })
		for {
			var conn net.Conn
			if conn, err = l.Accept(); err != nil {
				break
			}
			peers.Add(1)
			go func() { // ends with ctx or the connection
				defer peers.Done()
				if err := p.serve(ctx, conn, func() {}); err != nil && ctx.Err() == nil {
					p.failed()
				}
			}()
		}
		stop()
		l.Close()
		if ctx.Err() == nil {
			again(err)
		}
	}
}

// serve makes conn a peer and reads its subscriptions until it is gone.
func (p *publisher) serve(ctx context.Context, conn net.Conn, up func()) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()
	conn.SetDeadline(time.Now().Add(dialTimeout))
	if err := handshake(conn); err != nil {
		return err
	}
	conn.SetDeadline(time.Time{})
	if ctx.Err() != nil {
		return nil
	}
	self := &peer{conn: conn}
	p.mu.Lock()
	full := len(p.peers) >= zmtpMaxPeers
	if !full {
		p.peers = append(p.peers, self)
	}
	if a, ok := conn.LocalAddr().(*net.TCPAddr); ok {
		p.localAddress = a.IP
	}
	p.mu.Unlock()
	if full {
		return fmt.Errorf("more than %d subscribers", zmtpMaxPeers)
	}
	p.connects()
	good := time.AfterFunc(steady, up) // it may end the connection at once
	defer good.Stop()
	err := p.listen(self)
	p.remove(self)
	return err
}

func (p *publisher) remove(gone *peer) {
	p.mu.Lock()
	for i, q := range p.peers {
		if q == gone {
			p.peers = append(p.peers[:i:i], p.peers[i+1:]...)
			break
		}
	}
	p.mu.Unlock()
	p.wake()
}

func (p *publisher) wake() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// listen handles what a subscriber sends: subscriptions (as messages in ZMTP 3.0, as commands in 3.1) and pings.
func (p *publisher) listen(self *peer) error {
	buf := make([]byte, zmtpMaxFrame)
	for {
		flags, body, err := readFrame(self.conn, buf)
		if errors.Is(err, io.EOF) {
			return errors.New("the subscriber closed the connection")
		}
		if err != nil {
			return err
		}
		name, data, isCommand := command(flags, body)
		switch {
		case name == "PING" && len(data) >= 2:
			// The context after the two octets of time to live goes back.
			pong := appendFrame(nil, zmtpCommand, append([]byte("\x04PONG"), data[2:]...))
			if _, err := self.send(pong, writeTimeout); err != nil {
				return err
			}
		case name == "SUBSCRIBE" || !isCommand && len(body) > 0 && body[0] == 1:
			if !isCommand {
				data = body[1:]
			}
			p.mu.Lock()
			full := len(self.topics) >= zmtpMaxTopics
			if !full {
				self.topics = append(self.topics, bytes.Clone(data))
			}
			p.mu.Unlock()
			if full {
				return fmt.Errorf("more than %d subscriptions", zmtpMaxTopics)
			}
			p.wake()
		case name == "CANCEL" || !isCommand && len(body) > 0 && body[0] == 0:
			if !isCommand {
				data = body[1:]
			}
			p.mu.Lock()
			for i, t := range self.topics {
				if bytes.Equal(t, data) {
					self.topics = append(self.topics[:i:i], self.topics[i+1:]...)
					break
				}
			}
			p.mu.Unlock()
		case name == "ERROR":
			return fmt.Errorf("the peer says %.80q", data)
		}
	}
}

// send writes b, after what is left of the message before. It returns false if the peer took nothing of it within the time, for that is in the way.
// An error ends the peer. Of a message that was begun the rest is kept, and counts as sent.
func (s *peer) send(b []byte, within time.Duration) (bool, error) {
	s.write.Lock()
	defer s.write.Unlock()
	s.conn.SetWriteDeadline(time.Now().Add(within))
	for _, part := range [2]*[]byte{&s.rest, &b} {
		if len(*part) == 0 {
			continue
		}
		n, err := s.conn.Write(*part)
		if n > 0 || s.since.IsZero() {
			s.since = time.Now()
		}
		*part = (*part)[n:]
		var timeout net.Error
		switch {
		case err == nil:
		case !errors.As(err, &timeout) || !timeout.Timeout() || time.Since(s.since) > writeTimeout:
			return false, err
		case part == &s.rest || n == 0:
			return false, nil
		default:
			s.rest = bytes.Clone(b)
			return true, nil
		}
	}
	s.rest, s.since = nil, time.Time{}
	return true, nil
}

// subscribers returns who takes messages that begin with topic.
func (p *publisher) subscribers(topic []byte) []*peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	var who []*peer
	for _, q := range p.peers {
		for _, t := range q.topics {
			if bytes.HasPrefix(topic, t) {
				who = append(who, q)
				break
			}
		}
	}
	return who
}

// count returns how many take a topic.
func (p *publisher) count(topic string) int { return len(p.subscribers([]byte(topic))) }

// publish writes a message of two frames to its subscribers and returns how many took it. One that does not read holds up no other: it misses
// messages, as of every PUB socket, until it has taken the one before, and is let go after writeTimeout. If none takes it there is time to wait.
func (p *publisher) publish(header, payload []byte, within time.Duration) int {
	p.msg = appendFrame(p.msg[:0], zmtpMore, header)
	p.msg = appendFrame(p.msg, 0, payload)
	deadline := time.Now().Add(within)
	for {
		who := p.subscribers(header)
		took := 0
		for _, q := range who {
			patience := slowPeer
			if len(who) > 1 && q.behind() {
				patience = time.Millisecond
			}
			ok, err := q.send(p.msg, min(patience, max(0, time.Until(deadline))))
			if err != nil {
				q.conn.Close() // part of a message went out: nothing can follow it
				p.remove(q)
				continue
			}
			if ok {
				took++
			}
		}
		if took > 0 || len(who) == 0 || time.Now().After(deadline) {
			return took
		}
	}
}

// slowPeer is how long a message waits for a subscriber, beside others.
const slowPeer = 20 * time.Millisecond

// behind reports whether the peer has not taken the message before.
func (s *peer) behind() bool {
	s.write.Lock()
	defer s.write.Unlock()
	return len(s.rest) > 0
}

// local is this end's address as the subscriber sees it; empty before the first connection.
func (p *publisher) local() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.localAddress == nil {
		return ""
	}
	return p.localAddress.String()
}
