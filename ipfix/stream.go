package ipfix

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// stream sends the messages of a backlog over one connection after the other: TCP, TLS or SCTP. A collector never acknowledges
// (RFC 7011, section 10.4), but its kernel does, and what was not acknowledged when a connection ended is sent again over the next.
type stream struct {
	x       *Exporter
	dial    func(ctx context.Context) (*link, error)
	backlog *backlog
	stop    chan struct{} // closed when nothing will be put any more
	// Signalled when a connection begins and ends.
	connected chan struct{}
	proved    bool          // the collector takes messages, in the session under way or the last
	renew     chan struct{} // signalled when there is to be another connection, by another configuration
}

const (
	ackInterval = 20 * time.Millisecond // between two looks at what was acknowledged
	steady      = time.Second           // a session that lasts so long, and in which something was acknowledged, is a good one
)

func newStream(x *Exporter) (*stream, error) {
	s := &stream{x: x, stop: make(chan struct{}), connected: make(chan struct{}, 1), renew: make(chan struct{}, 1)}
	switch x.conf().Network {
	case "tcp":
		s.dial = func(ctx context.Context) (*link, error) { return x.conf().dialTCP(ctx) }
	case "tls":
		if _, err := newCredentials(x.conf()); err != nil {
			return nil, err
		}
		s.dial = func(ctx context.Context) (*link, error) { return x.conf().dialTLS(ctx) }
	case "sctp":
		s.dial = func(ctx context.Context) (*link, error) { return x.conf().dialSCTP(ctx) }
	}
	var disk *spool
	if x.conf().Spool != "" {
		var err error
		if disk, err = openSpool(x.conf().spoolDir(), x.conf().SpoolSize); err != nil {
			return nil, err
		}
		disk.report(x.conf())
	}
	s.backlog = newBacklog(disk, func(ok bool, err error) {
		if ok {
			x.conf().Notify(true, fmt.Sprintf("collector %s: the spool works again", x.Name()))
		} else {
			x.conf().Notify(false, fmt.Sprintf("collector %s: cannot write the spool: %s; records are kept in memory only", x.Name(), reason(err)))
		}
	})
	return s, nil
}

// run connects and sends until stop is closed and everything is sent, or the time is up.
func (s *stream) run() {
	life, end := context.WithCancel(context.Background())
	defer end()
	go func() { // ends with life
		select {
		case <-s.stop:
			timer := time.AfterFunc(time.Until(time.Unix(0, s.x.stopBy.Load())), end)
			<-life.Done()
			timer.Stop()
		case <-life.Done():
		}
	}()
	go s.sync(life) // ends with life
	x := s.x
	for last := false; !last; {
		select {
		case <-s.stop: // one more try if there is something to send
			if last = true; s.backlog.idle() {
				return
			}
		case <-s.renew:
		case <-time.After(time.Until(x.nextTry)):
		}
		l, err := s.dial(life)
		if err != nil {
			x.down(err)
			continue
		}
		x.connects.Add(1)
		signal(s.connected)
		begin := time.Now()
		s.proved = false
		err = s.session(life, l)
		signal(s.connected)                         // what is encoded from here on is for the next
		if s.proved && time.Since(begin) > x.wait { // or one that ends each session soon after it would be tried without a pause
			x.wait = x.conf().ReconnectMin
		}
		switch {
		case err == nil:
			return
		case errors.Is(err, errSettled), errors.Is(err, errRenewed): // not the collector's fault
			x.nextTry = time.Time{}
		default:
			x.down(err)
		}
	}
}

// sync makes the spool safe against a loss of power, but for the last second.
func (s *stream) sync(life context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-life.Done():
			return
		case <-t.C:
			s.backlog.sync()
		}
	}
}

// session sends over one connection. It returns nil when there is nothing more to do at all.
func (s *stream) session(life context.Context, l *link) (err error) {
	x, b := s.x, s.backlog
	dead := make(chan struct{})
	var readError error
	go func() { // ends when the connection is closed, by either side
		_, readError = io.Copy(io.Discard, l.conn) // a collector never sends anything
		close(dead)
	}()
	w := sessionWriter{x: x, l: l, session: newSession()}
	defer func() {
		b.confirm(l.progress())
		l.conn.Close()
		<-dead
		// A FIN says that the collector has read all that its kernel has acknowledged; a reset, that it has not.
		b.end(l.fin() || err == nil || errors.Is(err, errSettled))
	}()
	awake := context.AfterFunc(life, func() { l.socket.SetWriteDeadline(time.Now()) })
	defer awake()
	if err := w.turn(b.begin()); err != nil {
		return closed(l, dead, &readError, err)
	}
	// A connection that was accepted is no collector yet: it may be closed at once, as for a certificate that TLS 1.3 refuses after the handshake.
	proof := time.NewTimer(steady)
	defer proof.Stop()
	prove := func() {
		if b.confirm(l.progress()); l.acked == 0 {
			proof.Reset(steady)
			return
		}
		s.proved = true
		x.up("connected")
	}
	tick := time.NewTicker(ackInterval)
	defer tick.Stop()
	var refresh <-chan time.Time
	if x.conf().StreamRefresh {
		t := time.NewTicker(x.conf().TemplateRefresh)
		defer t.Stop()
		refresh = t.C
	}
	var buf []byte
	stop := s.stop
	for {
		m, control, fromDisk, ok, err := b.next(buf[:0])
		buf = m.msg
		if err != nil {
			b.spoil(false, fromDisk)
			continue
		}
		if ok {
			var err error
			if fromDisk {
				err = w.writeAll(control)
			} else {
				err = w.turn(m.epoch, control)
			}
			if err == nil {
				w.session.trust = !fromDisk
				err = w.write(m)
				w.session.trust = false
			}
			if errors.Is(err, errOtherLayout) {
				return s.settle(life, l, dead, err)
			}
			if errors.Is(err, errMalformed) {
				b.spoil(true, fromDisk)
				continue
			}
			if err != nil {
				return closed(l, dead, &readError, err)
			}
			b.wrote(fromDisk, w.session.flows, l.written)
			b.confirm(l.progress())
			select {
			case <-dead:
				return closed(l, dead, &readError, nil)
			case <-s.renew:
				return s.settle(life, l, dead, errRenewed)
			case <-proof.C:
				prove()
			default:
			}
			continue
		}
		acks := tick.C
		if b.idle() { // nothing to wait for
			if acks = nil; stop == nil {
				return nil
			}
		}
		if err := w.turn(b.news()); errors.Is(err, errOtherLayout) {
			return s.settle(life, l, dead, err)
		} else if err != nil {
			return closed(l, dead, &readError, err)
		}
		select {
		case <-b.more:
		case <-dead:
			return closed(l, dead, &readError, nil)
		case <-acks:
			b.confirm(l.progress())
		case <-s.renew:
			return s.settle(life, l, dead, errRenewed)
		case <-proof.C:
			prove()
		case <-refresh:
			if err := w.again(); err != nil {
				return closed(l, dead, &readError, err)
			}
		case <-stop:
			stop = nil
		case <-life.Done():
			return nil
		}
	}
}

var (
	errSettled = errors.New("all is acknowledged")
	errRenewed = errors.New("another configuration wants another connection")
)

// settle waits until all that was sent is acknowledged, so that it is not sent twice.
func (s *stream) settle(life context.Context, l *link, dead chan struct{}, err error) error {
	deadline := time.After(s.x.conf().SendTimeout)
	for {
		acked, read := l.progress()
		s.backlog.confirm(acked, read)
		if acked == l.written {
			return fmt.Errorf("%w (%w)", err, errSettled)
		}
		select {
		case <-time.After(ackInterval):
		case <-dead:
			return err
		case <-deadline:
			return err
		case <-life.Done():
			return err
		}
	}
}

// closed returns the reason why a connection ended. The error of Read is more specific than that of Write.
func closed(l *link, dead chan struct{}, read *error, writeError error) error {
	if writeError != nil {
		l.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		<-dead
	}
	readError := *read
	switch {
	case readError != nil && !errors.Is(readError, net.ErrClosed) && !errors.Is(readError, io.ErrUnexpectedEOF) && !errors.Is(readError, os.ErrDeadlineExceeded):
		return readError
	case writeError != nil && (!l.fin() || errors.Is(writeError, syscall.ETIMEDOUT)):
		return writeError // the kernel returns ETIMEDOUT once, here to Write: Read then returns EOF
	}
	return errClosed
}

var errClosed = errors.New("the collector closed the connection")

// sessionWriter writes messages of any session into this one.
type sessionWriter struct {
	x        *Exporter
	l        *link
	session  *session
	epoch    *epoch // of the latest message from memory
	control  [][]byte
	told     int    // of control
	domain   []byte // Observation Domain Id; nil before the first message
	sequence uint32
	buf      []byte
}

// turn announces what messages of an epoch need. Templates of the epoch before are withdrawn first. Without effect if e is nil.
func (w *sessionWriter) turn(e *epoch, control [][]byte) error {
	if e == nil {
		return nil
	}
	if e != w.epoch {
		if w.epoch != nil {
			if err := w.withdraw(); err != nil {
				return err
			}
		}
		w.epoch, w.told = e, 0
	}
	for w.control = control; w.told < len(control); w.told++ {
		if err := w.write(pending{msg: control[w.told]}); err != nil {
			return err
		}
	}
	return nil
}

// again announces a second time what the messages in use need.
func (w *sessionWriter) again() error {
	if w.epoch == nil {
		return nil // those from disk come with theirs
	}
	w.session, w.told = newSession(), 0
	return w.turn(w.epoch, w.control)
}

func (w *sessionWriter) withdraw() error {
	if len(w.control) == 0 {
		return nil
	}
	if w.buf = w.session.withdrawals(w.buf[:0], w.control[0]); len(w.buf) == 0 {
		return nil
	}
	return w.send(w.buf, 0)
}

// writeAll writes what announces templates and facts.
func (w *sessionWriter) writeAll(control [][]byte) error {
	for _, msg := range control {
		if err := w.write(pending{msg: msg}); err != nil {
			return err
		}
	}
	return nil
}

// write writes a message. If the session trusts it, its records are known.
func (w *sessionWriter) write(m pending) error {
	if w.domain != nil && !bytes.Equal(w.domain, m.msg[12:16]) {
		return errOtherLayout // ids and sequence are a domain's
	}
	out, records, err := w.session.admit(w.buf[:0], m.msg, everything)
	w.buf = out
	if err != nil || len(out) == 0 {
		return err
	}
	w.domain = append(w.domain[:0], out[12:16]...)
	if w.session.trust {
		records = m.records
	}
	return w.send(out, records)
}

// send fills in what depends on the session, and writes a message.
func (w *sessionWriter) send(out []byte, records int) error {
	if !w.x.keepTimes {
		binary.BigEndian.PutUint32(out[4:], uint32(time.Now().Unix())) // Export Time is when it leaves (RFC 7011, section 3.1)
	}
	binary.BigEndian.PutUint32(out[8:], w.sequence)
	w.sequence += uint32(records) // lost or not, it counts (RFC 7011, section 10.2.2)
	if _, err := w.l.conn.Write(out); err != nil {
		return err
	}
	w.x.messages.Add(1)
	w.x.octets.Add(uint64(len(out)))
	return nil
}
