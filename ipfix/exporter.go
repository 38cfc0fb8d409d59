package ipfix

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/templates"
)

// Stats counts what became of the records given to an Exporter: queued = sent + dropped + what still waits.
type Stats struct {
	Encoded      uint64 // flow records that went into messages
	Waiting      uint64 // flow records in the queue
	Records      uint64 // Data Records sent, type records and both directions of a uniflow included
	Messages     uint64
	Octets       uint64
	DroppedQueue uint64 // records: the collector was away or slow for longer than the queue
	DroppedSend  uint64 // Data Records in messages that could not be sent
	DroppedBig   uint64 // records that fit into no message
	Cut          uint64 // records whose strings were cut to fit
	Connects     uint64
	Errors       uint64 // failed connects and sends
}

// Exporter sends records to one collector. The metering never waits for it.
type Exporter struct {
	cfg     Config
	enc     *Encoder
	queue   chan *flowcache.Records
	waiting atomic.Int64 // records in queue

	conn      net.Conn
	dead      chan struct{} // closed when the collector closed the stream
	unsent    []byte        // a message that a broken stream did not take whole
	unsentLen int           // its Data Records
	told      bool          // that it is down
	refused   time.Time
	nextTry   time.Time
	wait      time.Duration
	stopBy    atomic.Int64 // Unix nanoseconds; 0 until the end is near

	encoded, records, messages, octets, droppedQueue, droppedSend, droppedBig, cut, connects, errs atomic.Uint64

	lostPackets, lostOctets atomic.Uint64 // of records in droppedQueue
	metering                func() Metering
}

const (
	// An unknown path MTU: RFC 7011, section 10.3.3.
	unknownPathMessage = 512
	// A larger datagram saves little, and some collectors read no more.
	maxDatagram = 8192
	maxStream   = 65535

	flushInterval = 50 * time.Millisecond
	dialTimeout   = 5 * time.Second
	writeTimeout  = 5 * time.Second
	drainTime     = 1500 * time.Millisecond
)

// New checks cfg. Nothing is connected yet: a collector that is down must not stop anything.
func New(cfg Config) (*Exporter, error) {
	if cfg.Network != "udp" && cfg.Network != "tcp" {
		return nil, fmt.Errorf("network %q: must be udp or tcp", cfg.Network)
	}
	if cfg.Protocol == NetFlowV9 && cfg.Network != "udp" {
		return nil, errors.New("netflow v9 goes over udp only")
	}
	if _, _, err := net.SplitHostPort(cfg.Address); err != nil {
		return nil, err
	}
	if cfg.TemplateRefresh == 0 {
		cfg.TemplateRefresh = time.Minute
	}
	if cfg.ReconnectMin == 0 {
		cfg.ReconnectMin = time.Second
	}
	if cfg.ReconnectMax == 0 {
		cfg.ReconnectMax = time.Minute
	}
	if cfg.Queue == 0 {
		cfg.Queue = 1 << 16
	}
	if cfg.Boot.IsZero() {
		cfg.Boot = time.Now()
	}
	if cfg.Notify == nil {
		cfg.Notify = func(bool, string) {}
	}
	x := &Exporter{cfg: cfg, queue: make(chan *flowcache.Records, 4096), wait: cfg.ReconnectMin}
	size := maxStream
	if cfg.Network == "udp" {
		size = unknownPathMessage
	}
	var err error
	if x.enc, err = NewEncoder(cfg.Protocol, cfg.Options, cfg.Domain, size, cfg.Boot, x.send); err != nil {
		return nil, err
	}
	x.enc.Describe(Info{Version: cfg.Version, Kernel: cfg.Kernel, Facts: x.facts})
	return x, nil
}

// Name is the collector as users write it.
func (x *Exporter) Name() string {
	if x.cfg.Protocol == NetFlowV9 {
		return "netflow9+udp://" + x.cfg.Address
	}
	return x.cfg.Network + "://" + x.cfg.Address
}

// Offer gives records to the collector, which releases them. It never waits: when too many wait already they are dropped and counted.
func (x *Exporter) Offer(r *flowcache.Records) bool {
	n := int64(len(r.List))
	if x.waiting.Add(n) <= int64(x.cfg.Queue) {
		select {
		case x.queue <- r:
			return true
		default:
		}
	}
	x.dropQueued(r)
	return false
}

// Stats returns the counts so far. Safe for concurrent use.
func (x *Exporter) Stats() Stats {
	return Stats{
		Encoded: x.encoded.Load(), Waiting: uint64(max(0, x.waiting.Load())),
		Records: x.records.Load(), Messages: x.messages.Load(), Octets: x.octets.Load(),
		DroppedQueue: x.droppedQueue.Load(), DroppedSend: x.droppedSend.Load(), DroppedBig: x.droppedBig.Load(),
		Cut: x.cut.Load(), Connects: x.connects.Load(), Errors: x.errs.Load(),
	}
}

// Run sends what is offered until ctx ends, then what waits, for at most 1.5 s, and returns.
func (x *Exporter) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { x.stopBy.Store(time.Now().Add(drainTime).UnixNano()) })
	defer stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var refresh, flush time.Time // of the templates; of the message under way, zero if there is none
	for ctx.Err() == nil {
		if x.conn == nil && !x.connect(ctx, &refresh) {
			select {
			case <-ctx.Done():
			case <-time.After(time.Until(x.nextTry)):
			}
			continue
		}
		now := time.Now()
		if now.Sub(refresh) >= x.cfg.TemplateRefresh {
			refresh = now
			x.failed(x.refresh(now))
			continue
		}
		wake := refresh.Add(x.cfg.TemplateRefresh)
		switch {
		case x.enc.Waiting() == 0:
			flush = time.Time{}
		case flush.IsZero():
			flush = now.Add(flushInterval)
		case !now.Before(flush):
			x.failed(x.enc.Flush(now))
			continue
		}
		if !flush.IsZero() && flush.Before(wake) {
			wake = flush
		}
		timer.Reset(time.Until(wake))
		select {
		case <-ctx.Done():
		case <-x.dead:
			x.disconnect(errors.New("the collector closed the connection"))
		case r := <-x.queue:
			x.encode(r)
		case <-timer.C:
		}
	}
	x.drain()
	return nil
}

// drain sends what waits, at the end.
func (x *Exporter) drain() {
	deadline := time.Now().Add(drainTime)
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	var refresh time.Time
	if x.conn == nil {
		x.connect(ctx, &refresh)
	}
	for {
		select {
		case r := <-x.queue:
			if x.conn == nil || time.Now().After(deadline) {
				x.dropQueued(r)
			} else {
				x.encode(r)
			}
			continue
		default:
		}
		break
	}
	if x.conn != nil {
		x.failed(x.enc.Flush(time.Now()))
	}
	x.droppedSend.Add(uint64(x.enc.Waiting() + x.unsentLen))
	if x.conn != nil {
		x.conn.Close()
		x.conn = nil
	}
}

func (x *Exporter) encode(r *flowcache.Records) {
	now := time.Now()
	for i := range r.List {
		err := x.enc.Record(&r.List[i], now)
		if errors.Is(err, errTooBig) {
			x.droppedBig.Add(1)
			continue
		}
		x.encoded.Add(1)
		if err != nil {
			x.failed(err)
		}
	}
	x.failed(x.enc.Interfaces(r.Interfaces, now))
	x.cut.Store(x.enc.cut)
	x.waiting.Add(-int64(len(r.List)))
	r.Release()
}

// connect tries the collector once its time has come, and begins a Transport Session.
func (x *Exporter) connect(ctx context.Context, refresh *time.Time) bool {
	if time.Now().Before(x.nextTry) && ctx.Err() == nil {
		if d, ok := ctx.Deadline(); !ok || x.nextTry.After(d) {
			return false
		}
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, x.cfg.Network, x.cfg.Address)
	if err != nil {
		x.down(err)
		return false
	}
	x.conn, x.dead = conn, nil
	// A collector that does not read must not hold up the end.
	context.AfterFunc(ctx, func() { conn.SetWriteDeadline(time.Now().Add(drainTime)) })
	x.connects.Add(1)
	size := maxStream
	if x.cfg.Network == "udp" {
		size = x.datagram()
	} else {
		x.dead = make(chan struct{})
		go watch(conn, x.dead) // ends when the connection is closed, by either side
	}
	if err := x.enc.SetMaxMessage(size); err != nil {
		x.down(err)
		return false
	}
	x.enc.Restart()
	*refresh = time.Now()
	x.failed(x.enc.Templates(*refresh))
	if x.conn != nil && x.unsentLen > 0 {
		// The old stream did not take this message whole, so the collector has not seen it.
		msg, n := x.unsent, x.unsentLen
		x.unsentLen = 0
		x.failed(x.enc.deliver(msg, n, n, *refresh))
	}
	if x.conn == nil {
		return false
	}
	x.wait, x.nextTry = x.cfg.ReconnectMin, time.Time{}
	if x.told {
		x.told = false
		x.cfg.Notify(true, fmt.Sprintf("collector %s: connected", x.Name()))
	}
	return true
}

// watch reads until the stream ends: a collector never sends anything (RFC 7011, section 10.4).
func watch(c io.Reader, dead chan<- struct{}) {
	io.Copy(io.Discard, c)
	close(dead)
}

// datagram is the size of messages over UDP.
func (x *Exporter) datagram() int {
	headers := 28
	if a, ok := x.conn.RemoteAddr().(*net.UDPAddr); ok && a.IP.To4() == nil {
		headers = 48
	}
	mtu := x.cfg.MTU
	if mtu == 0 {
		mtu = pathMTU(x.conn, headers == 48)
		if mtu == 0 {
			return unknownPathMessage
		}
		mtu = min(mtu, maxDatagram+headers)
	}
	return max(unknownPathMessage, min(mtu-headers, 65507))
}

// pathMTU is what the kernel knows of the route (ip(7), IP_MTU); 0 if nothing.
func pathMTU(c net.Conn, v6 bool) int {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := sc.SyscallConn()
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

// send writes a message.
func (x *Exporter) send(msg []byte, records int) error {
	if x.conn == nil {
		x.keep(msg, records)
		return nil
	}
	deadline := time.Now().Add(writeTimeout)
	if by := x.stopBy.Load(); by != 0 {
		deadline = time.Unix(0, by)
	}
	x.conn.SetWriteDeadline(deadline)
	_, err := x.conn.Write(msg)
	if x.cfg.Network == "udp" && errors.Is(err, syscall.ECONNREFUSED) {
		// The answer to an earlier datagram; this one was not sent yet.
		x.errs.Add(1)
		x.refuse(err)
		_, err = x.conn.Write(msg)
	}
	if err != nil {
		x.keep(msg, records)
		return err
	}
	x.messages.Add(1)
	x.octets.Add(uint64(len(msg)))
	x.records.Add(uint64(records))
	if x.told && x.cfg.Network == "udp" && time.Since(x.refused) > 10*time.Second {
		x.told = false
		x.cfg.Notify(true, fmt.Sprintf("collector %s: no longer refuses", x.Name()))
	}
	return nil
}

// keep saves the Data Records of a message that a broken stream did not take; over UDP, and of type records, which come again, there is
// nothing to save.
func (x *Exporter) keep(msg []byte, records int) {
	if x.cfg.Network == "tcp" && records > 0 && x.unsentLen == 0 && isFlowData(msg) {
		x.unsent, x.unsentLen = append(x.unsent[:0], msg...), records
		return
	}
	x.droppedSend.Add(uint64(records))
}

// isFlowData tells a message of flow records from one of templates and options records.
func isFlowData(msg []byte) bool {
	return len(msg) > headerIPFIX+2 && binary.BigEndian.Uint16(msg[headerIPFIX:]) >= templates.FirstID
}

// failed handles the error of a send.
func (x *Exporter) failed(err error) {
	switch {
	case err == nil || x.conn == nil:
	case errors.Is(err, syscall.EMSGSIZE):
		// The path MTU shrank: the kernel knows it now.
		x.errs.Add(1)
		if x.cfg.MTU == 0 {
			x.enc.SetMaxMessage(x.datagram())
		} else {
			x.enc.SetMaxMessage(unknownPathMessage)
		}
	case x.cfg.Network == "udp":
		x.errs.Add(1)
		x.refuse(err)
	default:
		x.disconnect(err)
	}
}

// refuse notes that datagrams do not arrive. They go on being sent: who listens later gets them.
func (x *Exporter) refuse(err error) {
	x.refused = time.Now()
	if !x.told {
		x.told = true
		x.cfg.Notify(false, fmt.Sprintf("collector %s: %s; records go on being sent", x.Name(), reason(err)))
	}
}

func (x *Exporter) disconnect(err error) {
	x.conn.Close()
	x.conn = nil
	x.down(err)
}

// down notes a failure and when to try again: after a wait that doubles, with jitter, so that a fleet does not come back at once.
func (x *Exporter) down(err error) {
	if x.conn != nil {
		x.conn.Close()
		x.conn = nil
	}
	x.errs.Add(1)
	wait := x.wait/2 + rand.N(x.wait/2+1)
	x.nextTry = time.Now().Add(wait)
	x.wait = min(2*x.wait, x.cfg.ReconnectMax)
	if !x.told {
		x.told = true
		x.cfg.Notify(false, fmt.Sprintf("collector %s: %s; trying again", x.Name(), reason(err)))
	}
}

// reason is the innermost of an error of package net, which repeats the address.
func reason(err error) string {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return "cannot resolve " + dns.Name + ": " + dns.Err
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}
