package collector

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	handshakeTime = 10 * time.Second
	// maxHellos are the handshakes of DTLS under way at a time; those of TLS are as many as there may be connections.
	// For a further one the oldest gives way whose client has not shown that it is where it says (DTLS: by a cookie).
	maxHellos = 256
	// A connection that has sent messages may give way to a new one when it has sent none for so long.
	silentPatience = time.Minute
)

// connection is one that has a session, or is about to have one.
type connection struct {
	net.Conn
	from    string // scheme and address
	peer    *peer  // nil while there is no session
	session *Session
	heard   time.Time // of its latest message, or when it began
	mute    bool      // it has sent none
	evicted bool      // it gave way to another

	cancel context.CancelFunc // ends its handshake
	list   *list.List         // handshakes of its kind
	at     *list.Element      // in list
}

// handshaker is a connection of TLS or DTLS.
type handshaker interface {
	HandshakeContext(context.Context) error
}

// accept takes connections until the socket is closed.
func (c *Collector) accept(i int) {
	e := &c.ends[i]
	for {
		conn, err := e.conn.Accept()
		if c.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			if err == nil {
				conn.Close()
			}
			return
		}
		if err != nil { // no descriptors left, or a peer that was gone before
			c.fail("%s: %v", e.name, err)
			select {
			case <-c.ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		x := &connection{Conn: conn, from: fmt.Sprintf("%s://%s", e.name, conn.RemoteAddr())}
		h, secure := conn.(handshaker)
		ctx, cancel := context.WithTimeout(c.ctx, handshakeTime)
		x.cancel = cancel
		if secure {
			c.beginHandshake(x)
		}
		c.running.Add(1)
		go func() { // ends with the connection, which ctx closes
			defer c.running.Done()
			defer cancel()
			stop := context.AfterFunc(c.ctx, func() { conn.Close() })
			defer stop()
			defer conn.Close()
			if secure {
				err := h.HandshakeContext(ctx)
				if evicted := c.endHandshake(x); err != nil {
					if evicted {
						err = errors.New("it gave way to a newer one")
					}
					if c.ctx.Err() == nil {
						c.fail("%s: handshake: %v", x.from, err)
					}
					return
				}
			}
			if c.admit(x, e.name == "dtls") {
				c.finish(x, c.serve(x))
			}
		}()
	}
}

// beginHandshake notes a handshake. Where there are too many the oldest that is not verified gives way: one of the same
// address if that has half of them.
func (c *Collector) beginHandshake(x *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	most := c.opt.Connections
	x.list = c.handshakes
	if _, ok := x.Conn.(*dtlsConn); ok {
		x.list, most = c.hellos, maxHellos
	}
	x.at = x.list.PushFront(x)
	if x.list.Len() <= most {
		return
	}
	addr, own := addrOf(x), 0
	var oldest, oldestOwn *connection
	for e := x.list.Front(); e != nil; e = e.Next() {
		y := e.Value.(*connection)
		same := addrOf(y) == addr
		if same {
			own++
		}
		if d, ok := y.Conn.(*dtlsConn); y == x || ok && d.gate.verified.Load() {
			continue
		}
		oldest = y
		if same {
			oldestOwn = y
		}
	}
	if own > most/2 && oldestOwn != nil {
		oldest = oldestOwn
	}
	if oldest == nil {
		oldest = x.list.Back().Value.(*connection)
	}
	oldest.evicted = true
	x.list.Remove(oldest.at)
	oldest.at = nil
	oldest.cancel()
}

func (c *Collector) endHandshake(x *connection) (evicted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if x.at != nil {
		x.list.Remove(x.at)
		x.at = nil
	}
	return x.evicted
}

// admit gives a connection a session, if there may be one more, or one of its peer's or of all that is silent gives
// way.
func (c *Collector) admit(x *connection, datagrams bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.peerOf(addrOf(x))
	ofPeer := p.conns >= share(c.opt.Connections, leastSessions)
	if ofPeer || len(c.conns) >= c.opt.Connections {
		victim := c.silent(p, ofPeer)
		if victim == nil {
			c.leave(p)
			c.counts.RefusedConn++
			c.notify.say(noticeRefused, "%s: refused: there are %d connections, %d of its address", x.from, len(c.conns), p.conns)
			return false
		}
		victim.evicted = true
		c.release(victim)
		victim.SetReadDeadline(time.Unix(1, 0)) // its goroutine closes it: a farewell may take its time
		p = c.peerOf(addrOf(x))                 // it may have been the last of its peer
	}
	x.peer, x.heard, x.mute = p, time.Now(), true
	x.session = c.newSession(x.from, datagrams, p)
	p.conns++
	c.conns[x] = true
	return true
}

// silent returns the connection that is to give way, nil if none is: that which was silent for longest, of those that
// have sent no message if there are any; c.mu is held.
func (c *Collector) silent(p *peer, ofPeer bool) (victim *connection) {
	now := time.Now()
	for x := range c.conns {
		if (!ofPeer || x.peer == p) && (x.mute || now.Sub(x.heard) > silentPatience) &&
			(victim == nil || x.mute && !victim.mute || x.mute == victim.mute && x.heard.Before(victim.heard)) {
			victim = x
		}
	}
	return victim
}

// release ends the session of a connection; c.mu is held.
func (c *Collector) release(x *connection) {
	if !c.conns[x] {
		return
	}
	delete(c.conns, x)
	c.endSession(x.session)
	x.peer.conns--
	c.leave(x.peer)
}

// finish ends a connection that could be read until err.
func (c *Collector) finish(x *connection, err error) {
	c.mu.Lock()
	evicted := x.evicted
	var late net.Error
	idle := !evicted && errors.As(err, &late) && late.Timeout()
	if evicted || idle {
		c.counts.Idle++
	}
	c.release(x)
	c.mu.Unlock()
	if err != nil && !evicted && !idle && c.ctx.Err() == nil {
		c.fail("%s: %v", x.from, err)
	}
}

func (c *Collector) fail(format string, args ...any) {
	c.mu.Lock()
	c.counts.Failed++
	c.mu.Unlock()
	c.notify.say(noticeFailed, format, args...)
}

// serve reads a connection to its end. One that sends nothing for the lifetime of its templates, or does not end a
// message that it began, is at its end.
func (c *Collector) serve(x *connection) error {
	wait := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !x.evicted {
			x.SetReadDeadline(time.Now().Add(c.opt.TemplateLifetime))
		}
	}
	if !x.session.cfg.Datagrams {
		return c.stream(x.session, x, wait, func(msg []byte) error {
			if x.evicted {
				return net.ErrClosed
			}
			x.heard, x.mute = time.Now(), false
			return c.decode(x.session, msg, c.handle)
		})
	}
	buf := make([]byte, maxDatagramDTLS)
	for {
		wait()
		n, err := x.Read(buf)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		c.mu.Lock()
		if x.evicted {
			err = net.ErrClosed
		} else {
			x.heard, x.mute = time.Now(), false
			err = c.decode(x.session, buf[:n], c.handle)
		}
		c.mu.Unlock()
		if !passable(err) {
			return err
		}
	}
}
