package collector

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Options configure a Collector. Their zero value, but for Listen, is the documented default.
type Options struct {
	Listen           []Listener
	Registry         *Registry     // default: NewRegistry(0, 0)
	TemplateLifetime time.Duration // over UDP and DTLS, and of a connection that says nothing; default 30 minutes
	// An address has an eighth of each of the following bounds, but no less than 4 MiB and 16 sessions.
	Memory      int // of templates and names of all sessions, octets; default 64 MiB
	Senders     int // over UDP at a time; default 4096, and then the one that was silent for longest is forgotten
	Connections int // at a time; default 1024, and then one that is silent gives way, or the new one is refused
	// Notify, if set, gets one line when sessions fail, are refused or send what is malformed; of each kind one a
	// minute. It must not wait, nor call the Collector.
	Notify func(line string)
}

// Counts are those of a Collector.
type Counts struct {
	Stats              // of all sessions
	Sessions    int    // now
	Opened      uint64 // sessions so far
	Forgotten   uint64 // senders over UDP that were silent for longest when there were too many
	RefusedConn uint64 // connections that were too many
	Failed      uint64 // connections that failed in their handshake or broke
	Idle        uint64 // connections that were silent for too long, or when there were too many
	KernelDrops uint64 // datagrams that came faster than they were read
}

// Collector listens. One goroutine at a time decodes, so records come one message after the other.
type Collector struct {
	opt     Options
	ends    []end
	ctx     context.Context
	running sync.WaitGroup

	mu       sync.Mutex // guards what follows, and every session
	handle   func([]Record) error
	shared   shared
	sessions map[*Session]*sender // nil of connections and files
	senders  [2]*list.List        // as those of a peer
	bySender map[senderKey]*sender
	peers    map[netip.Addr]*peer
	conns    map[*connection]bool
	counts   Counts // of sessions that are over, and of messages without one

	handshakes *list.List // *connection, of TLS; the newest first
	hellos     *list.List // likewise, of DTLS
	notify     notifier
}

// end is an open socket.
type end struct {
	udp  *net.UDPConn
	conn net.Listener
	name string // of its scheme
}

type senderKey struct {
	end  int
	addr netip.AddrPort
}

// New opens the sockets.
func New(opt Options) (*Collector, error) {
	if opt.Registry == nil {
		r, err := NewRegistry(0, 0)
		if err != nil {
			return nil, err
		}
		opt.Registry = r
	}
	if opt.TemplateLifetime == 0 {
		opt.TemplateLifetime = 30 * time.Minute
	}
	if opt.Memory == 0 {
		opt.Memory = 64 << 20
	}
	if opt.Senders == 0 {
		opt.Senders = 4096
	}
	if opt.Connections == 0 {
		opt.Connections = 1024
	}
	if opt.Notify == nil {
		opt.Notify = func(string) {}
	}
	c := &Collector{
		opt: opt, shared: shared{memory: opt.Memory}, sessions: map[*Session]*sender{}, senders: [2]*list.List{list.New(), list.New()},
		bySender: map[senderKey]*sender{}, peers: map[netip.Addr]*peer{}, conns: map[*connection]bool{}, handshakes: list.New(), hellos: list.New(),
		notify: notifier{to: opt.Notify},
	}
	for i := range opt.Listen {
		if err := c.open(&opt.Listen[i]); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// open listens at one Listener's addresses.
func (c *Collector) open(l *Listener) error {
	listen, err := opener(l)
	if err != nil {
		return fmt.Errorf("listen at %s://%s: %w", l.Scheme, l.Host, err)
	}
	addrs, optional := l.addresses()
	for i, addr := range addrs {
		e, err := listen(addr)
		if err != nil && i > 0 && i <= optional {
			continue
		}
		if err != nil {
			var op *net.OpError
			if errors.As(err, &op) {
				err = op.Err
			}
			return fmt.Errorf("listen at %s://%s: %w", l.Scheme, addr, err)
		}
		e.name = l.Scheme
		c.ends = append(c.ends, e)
	}
	return nil
}

// opener returns what opens a socket of l at an address.
func opener(l *Listener) (func(addr string) (end, error), error) {
	switch l.Scheme {
	case "udp":
		return listenUDP, nil
	case "tcp":
		return func(addr string) (end, error) {
			conn, err := net.Listen("tcp", addr)
			return end{conn: conn}, err
		}, nil
	}
	cert, clients, err := l.credentials()
	if err != nil {
		return nil, err
	}
	if l.Scheme == "dtls" {
		return func(addr string) (end, error) { return listenDTLS(addr, cert, clients) }, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, ClientCAs: clients}
	if clients != nil {
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return func(addr string) (end, error) {
		conn, err := tls.Listen("tcp", addr, cfg)
		return end{conn: conn}, err
	}, nil
}

// Addrs returns the addresses of the open sockets, each with its scheme: udp://127.0.0.1:4739.
func (c *Collector) Addrs() []string {
	var l []string
	for _, e := range c.ends {
		a := net.Addr(nil)
		if e.udp != nil {
			a = e.udp.LocalAddr()
		} else {
			a = e.conn.Addr()
		}
		l = append(l, e.name+"://"+a.String())
	}
	return l
}

// Close closes the sockets, which ends Run. What Notify was not given yet it is given now.
func (c *Collector) Close() {
	for _, e := range c.ends {
		if e.udp != nil {
			e.udp.Close()
		} else {
			e.conn.Close()
		}
	}
	c.notify.end()
}

// drainTime is for how long datagrams are read after the end: those that came before it wait in the socket.
const drainTime = 100 * time.Millisecond

// Run collects until ctx ends, or until handle, which is given the records of each message, returns an error: that is returned. The
// records are valid during the call. While handle takes its time streams wait, and datagrams may be lost.
func (c *Collector) Run(ctx context.Context, handle func([]Record) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.ctx = ctx
	c.handle = func(r []Record) error {
		err := handle(r)
		if err != nil {
			cancel(err)
		}
		return err
	}
	stop := context.AfterFunc(ctx, func() {
		for _, e := range c.ends {
			if e.udp != nil {
				e.udp.SetReadDeadline(time.Now().Add(drainTime))
			} else {
				e.conn.Close()
			}
		}
	})
	defer stop()
	defer c.Close()
	for i := range c.ends {
		c.running.Add(1)
		go func() { // ends with its socket, which ctx closes, or after drainTime
			defer c.running.Done()
			if c.ends[i].udp != nil {
				c.datagrams(i)
			} else {
				c.accept(i)
			}
		}()
	}
	<-ctx.Done()
	c.running.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Counts returns the counts so far. Safe for concurrent use.
func (c *Collector) Counts() Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.counts
	n.Sessions = len(c.sessions)
	for s := range c.sessions {
		n.Stats.Add(&s.stats)
	}
	return n
}

// newSession begins a session; c.mu is held.
func (c *Collector) newSession(name string, datagrams bool, p *peer) *Session {
	s, err := NewSession(Config{
		Name: name, Registry: c.opt.Registry, Datagrams: datagrams, TemplateLifetime: c.opt.TemplateLifetime, Memory: min(c.opt.Memory, 4<<20), shared: &c.shared, peer: p,
	})
	if err != nil {
		return nil // the options were checked
	}
	c.sessions[s] = nil
	c.counts.Opened++
	return s
}

// endSession ends one; c.mu is held.
func (c *Collector) endSession(s *Session) {
	x := c.sessions[s]
	delete(c.sessions, s)
	c.counts.Stats.Add(&s.stats)
	s.close()
	if x != nil {
		c.remove(x)
		delete(c.bySender, x.key)
		c.leave(x.peer)
	}
}

// decode decodes a message of s and hands on its records; c.mu is held. What is wrong is noted once for each session.
func (c *Collector) decode(s *Session, msg []byte, handle func([]Record) error) error {
	err := s.decodeTo(msg, handle)
	var m *MalformedError
	if errors.As(err, &m) && !s.noted {
		s.noted = true
		c.notify.say(noticeMalformed, "%s: %v; more of its messages are but counted", s.cfg.Name, m)
	}
	return err
}

// passable reports whether an error is but that of a message, and the next may be read.
func passable(err error) bool {
	var m *MalformedError
	return err == nil || errors.As(err, &m)
}

// decodeTo decodes a message and hands on its records.
func (s *Session) decodeTo(msg []byte, handle func([]Record) error) error {
	records, err := s.Decode(msg, time.Now())
	if err != nil || len(records) == 0 {
		return err
	}
	return handle(records)
}

// ReadStream reads a stream or a file (RFC 5655) to its end, as Session.ReadStream does, as one more session. The records of other
// sessions do not come at the same time.
func (c *Collector) ReadStream(name string, r io.Reader, handle func([]Record) error) error {
	c.mu.Lock()
	s := c.newSession(name, false, nil)
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.endSession(s)
		c.mu.Unlock()
	}()
	return c.stream(s, r, func() {}, func(msg []byte) error { return c.decode(s, msg, handle) })
}

// stream reads a stream. wait is called before each message that is not there yet; each holds c.mu.
func (c *Collector) stream(s *Session, r io.Reader, wait func(), each func(msg []byte) error) error {
	return readMessages(r, wait, func(msg []byte) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		return each(msg)
	}, func(octets int, err *MalformedError) {
		c.mu.Lock()
		defer c.mu.Unlock()
		s.discard(octets, err)
	})
}
