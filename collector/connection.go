package collector

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const handshakeTime = 10 * time.Second

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
		c.mu.Lock()
		full := len(c.sessions)-c.senders.Len() >= c.opt.Connections
		var s *Session
		if full {
			c.counts.RefusedConn++
		} else {
			s = c.newSession(fmt.Sprintf("%s://%s", e.name, conn.RemoteAddr()), e.name == "dtls")
		}
		c.mu.Unlock()
		if full {
			conn.Close()
			continue
		}
		c.running.Add(1)
		go func() { // ends with the connection, which ctx closes
			defer c.running.Done()
			stop := context.AfterFunc(c.ctx, func() { conn.Close() })
			err := c.serve(conn, s)
			stop()
			conn.Close()
			c.mu.Lock()
			c.endSession(s)
			c.mu.Unlock()
			if err != nil && c.ctx.Err() == nil {
				c.fail("%s: %v", s.cfg.Name, err)
			}
		}()
	}
}

func (c *Collector) fail(format string, args ...any) {
	c.mu.Lock()
	c.counts.Failed++
	c.mu.Unlock()
	c.opt.Notify(fmt.Sprintf(format, args...))
}

// serve reads a connection to its end.
func (c *Collector) serve(conn net.Conn, s *Session) error {
	if h, ok := conn.(interface{ HandshakeContext(context.Context) error }); ok {
		ctx, cancel := context.WithTimeout(c.ctx, handshakeTime)
		err := h.HandshakeContext(ctx)
		cancel()
		if err != nil {
			return fmt.Errorf("handshake: %w", err)
		}
	}
	if s.cfg.Datagrams {
		return c.messages(conn, s)
	}
	return c.stream(s, conn, c.handle)
}

// messages reads datagrams: each is one message. A peer that says nothing for the lifetime of its templates is gone.
func (c *Collector) messages(conn net.Conn, s *Session) error {
	buf := make([]byte, maxDatagramDTLS)
	for {
		conn.SetReadDeadline(time.Now().Add(c.opt.TemplateLifetime))
		n, err := conn.Read(buf)
		var late net.Error
		if errors.Is(err, io.EOF) || errors.As(err, &late) && late.Timeout() {
			return nil
		}
		if err != nil {
			return err
		}
		c.mu.Lock()
		err = c.decode(s, buf[:n], c.handle)
		c.mu.Unlock()
		if !passable(err) {
			return err
		}
	}
}
