package ipfix

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"reflect"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

// NtopngConfig configures a Ntopng. Its zero value, but for Address, is the documented default.
type NtopngConfig struct {
	Address                    string        // host:port
	Bind                       bool          // wait for subscribers there, instead of connecting to one
	AgentJSON                  bool          // flows as JSON of ntop's agents, for builds that take it; else TLV
	SourceID                   uint32        // of this probe; ntopng counts missing messages by it
	Node                       string        // name of this host
	Version                    string        // of the program
	ReconnectMin               time.Duration // default 1 s
	ReconnectMax               time.Duration // default 60 s
	Queue                      int           // records that wait for a subscriber at most; default 65536
	ActiveTimeout, IdleTimeout time.Duration // sent to ntopng
	Number                     int           // as in Config
	Source                     netip.Addr    // likewise
	Device                     string        // likewise

	// Notify is as in Config.
	Notify func(ok bool, line string)
}

// ParseNtopngURL overrides base by zmq://HOST:PORT (connect) or zmq://*:PORT (bind), with the options format, domain, queue,
// reconnect-min, reconnect-max, source and device.
func ParseNtopngURL(s string, base NtopngConfig) (NtopngConfig, error) {
	cfg := base
	bad := func(format string, args ...any) (NtopngConfig, error) {
		return cfg, fmt.Errorf("collector %q: "+format, append([]any{s}, args...)...)
	}
	u, err := url.Parse(s)
	if err != nil {
		return bad("%w", errors.Unwrap(err))
	}
	if u.Scheme != "zmq" {
		return bad("scheme must be zmq")
	}
	if n, err := strconv.ParseUint(u.Port(), 10, 16); err != nil || n == 0 || u.Hostname() == "" {
		return bad("write zmq://HOST:PORT to connect to ntopng, or zmq://*:PORT to let it connect")
	}
	if u.Path != "" && u.Path != "/" || u.User != nil || u.Fragment != "" {
		return bad("more than scheme, host, port and options")
	}
	cfg.Address = u.Host
	if cfg.Bind = u.Hostname() == "*"; cfg.Bind {
		cfg.Address = ":" + u.Port()
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return bad("%w", err)
	}
	for name, values := range query {
		value := values[0]
		if len(values) != 1 {
			return bad("option %s is given twice", name)
		}
		var n uint64
		switch name {
		case "format":
			if value != "tlv" && value != "json" {
				return bad("option format: %q must be tlv or json", value)
			}
			cfg.AgentJSON = value == "json"
		case "bind":
			// A bound socket need not be open to every host.
			if value != "true" {
				return bad("option bind: %q must be true", value)
			}
			cfg.Bind = true
		case "source":
			cfg.Source, err = parseSource(value)
		case "device":
			cfg.Device, err = parseDevice(value)
		case "domain":
			n, err = strconv.ParseUint(value, 10, 32)
			cfg.SourceID = uint32(n)
		case "queue":
			n, err = strconv.ParseUint(value, 10, 24)
			if cfg.Queue = int(n); n == 0 {
				err = errors.New("must not be 0")
			}
		case "reconnect-min":
			cfg.ReconnectMin, err = time.ParseDuration(value)
		case "reconnect-max":
			cfg.ReconnectMax, err = time.ParseDuration(value)
		default:
			return bad("option %s: unknown; there are bind, device, domain, format, queue, reconnect-max, reconnect-min, source", name)
		}
		if err != nil {
			return bad("option %s: %q: %w", name, value, err)
		}
	}
	return cfg, nil
}

// Ntopng sends flows to ntopng over ZeroMQ, as a probe of ntop does: topics flow, event, template and counter. Each
// message has a header of 36 octets (version 4 of ntop's) and a payload.
type Ntopng struct {
	cfg     NtopngConfig // the goroutine of Run's
	name    string
	most    atomic.Int64 // NtopngConfig.Queue
	changes chan NtopngConfig
	pub     atomic.Pointer[publisher] // see publisher
	queue   chan *flowcache.Records
	waiting atomic.Int64

	header   []byte
	payload  []byte // the flow message under way
	in       int    // records in payload
	since    time.Time
	pending  bool               // payload is complete, and nobody took it yet
	rest     *flowcache.Records // the batch under way, from at on; else nil
	at       int
	id       uint32
	agent    AgentJSON
	last     time.Time // event
	began    time.Time
	octets0  uint64 // at the last event
	packets0 uint64
	volume   [2]uint64 // octets and packets of all flows sent

	encoded, records, messages, octets, droppedQueue, droppedSend, connects, errs atomic.Uint64
}

const (
	ntopngVersion   = 4
	ntopngTLV       = 2     // flags of the header
	ntopngMessage   = 32768 // ntopng takes 131072 octets
	ntopngEvery     = 10 * time.Second
	ntopngOneRecord = 8192 // most octets of a record
)

// complete fills in defaults and checks.
func (c *NtopngConfig) complete() error {
	if c.Address == "" {
		return errors.New("no address")
	}
	if c.ReconnectMin == 0 {
		c.ReconnectMin = time.Second
	}
	if c.ReconnectMax == 0 {
		c.ReconnectMax = time.Minute
	}
	if c.ReconnectMin < 100*time.Millisecond || c.ReconnectMax < c.ReconnectMin {
		return fmt.Errorf("reconnect-min %s must be at least 100ms, and not more than reconnect-max %s", c.ReconnectMin, c.ReconnectMax)
	}
	if c.Queue == 0 {
		c.Queue = 1 << 16
	}
	if c.Notify == nil {
		c.Notify = func(bool, string) {}
	}
	return nil
}

// Name is the collector as users write it.
func (c *NtopngConfig) Name() string {
	if c.Bind && c.Address[0] == ':' {
		return "zmq://*" + c.Address + ordinal(c.Number)
	}
	return "zmq://" + c.Address + ordinal(c.Number)
}

// NewNtopng checks cfg. Nothing is connected or bound yet.
func NewNtopng(cfg NtopngConfig) (*Ntopng, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	x := &Ntopng{cfg: cfg, name: cfg.Name(), queue: make(chan *flowcache.Records, 4096), changes: make(chan NtopngConfig, 1), began: time.Now()}
	x.most.Store(int64(cfg.Queue))
	x.publish()
	return x, nil
}

// publish makes the publisher of the configuration.
func (x *Ntopng) publish() {
	x.pub.Store(&publisher{
		address: x.cfg.Address, bind: x.cfg.Bind, source: x.cfg.Source, device: x.cfg.Device, min: x.cfg.ReconnectMin, max: x.cfg.ReconnectMax, notify: x.cfg.Notify,
		changed: make(chan struct{}, 1), connects: func() { x.connects.Add(1) }, failed: func() { x.errs.Add(1) },
	})
}

func (x *Ntopng) publisher() *publisher { return x.pub.Load() }

// Reconfigure is as Exporter's: subscribers are connected anew, and what waits goes to them.
func (x *Ntopng) Reconfigure(cfg NtopngConfig) error {
	if err := cfg.complete(); err != nil {
		return err
	}
	if cfg.Name() != x.name {
		return fmt.Errorf("%s is another collector", cfg.Name())
	}
	select {
	case <-x.changes: // one that was not taken yet
	default:
	}
	x.changes <- cfg
	return nil
}

// Name is the collector as users write it.
func (x *Ntopng) Name() string { return x.name }

// Offer is as Exporter's.
func (x *Ntopng) Offer(r *flowcache.Records) bool {
	n := int64(len(r.List))
	if x.waiting.Add(n) <= x.most.Load() {
		select {
		case x.queue <- r:
			return true
		default:
		}
	}
	x.waiting.Add(-n)
	x.droppedQueue.Add(uint64(n))
	r.Release()
	return false
}

// Stats returns the counts so far. Safe for concurrent use.
func (x *Ntopng) Stats() Stats {
	return Stats{
		Encoded: x.encoded.Load(), Waiting: uint64(max(0, x.waiting.Load())), Records: x.records.Load(), Messages: x.messages.Load(),
		Octets: x.octets.Load(), DroppedQueue: x.droppedQueue.Load(), DroppedSend: x.droppedSend.Load(), Connects: x.connects.Load(),
		Errors: x.errs.Load(),
	}
}

// Healthy reports whether flows have a subscriber. Safe for concurrent use.
func (x *Ntopng) Healthy() bool { return x.publisher().count("flow") > 0 }

// Run sends what is offered until ctx ends, then what waits, for at most 1.5 s, and returns. While nobody subscribes to flows, records
// wait in the queue.
func (x *Ntopng) Run(ctx context.Context) error {
	serve := func() (end func()) {
		pubCtx, stop := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func(p *publisher) { // ends with pubCtx
			p.run(pubCtx)
			close(done)
		}(x.publisher())
		return func() { stop(); <-done }
	}
	end := serve()
	defer func() { end() }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	pupils := 0 // who wants to know our names
	for ctx.Err() == nil {
		now := time.Now()
		n := x.publisher().count("template")
		if n > pupils || n > 0 && now.Sub(x.last) >= ntopngEvery {
			x.announce(writeTimeout)
		}
		pupils = n
		queue, wake := x.queue, now.Add(time.Second)
		changes := x.changes
		if x.in > 0 { // the message under way is of the configuration before
			changes = nil
		}
		switch {
		case x.publisher().count("flow") == 0:
			queue = nil
		case x.rest != nil: // a message had no subscriber, and now there is one
			if x.flush(writeTimeout) {
				x.fill(writeTimeout)
			}
			continue
		case x.in > 0 && (x.pending || now.Sub(x.since) >= flushInterval):
			x.flush(writeTimeout)
			continue
		case x.in > 0:
			wake = x.since.Add(flushInterval)
		}
		timer.Reset(time.Until(wake))
		select {
		case <-ctx.Done():
		case <-x.publisher().changed:
		case x.rest = <-queue:
			x.fill(writeTimeout)
		case cfg := <-changes:
			cfg.Notify, cfg.Version = x.cfg.Notify, x.cfg.Version
			x.most.Store(int64(cfg.Queue))
			same := x.cfg
			same.Notify, same.Queue = nil, cfg.Queue
			other := cfg
			other.Notify = nil
			if x.cfg = cfg; !reflect.DeepEqual(same, other) {
				end()
				x.publish()
				end = serve()
				pupils = 0
			}
		case <-timer.C:
		}
	}
	x.drain()
	return nil
}

// drain sends what waits, at the end.
func (x *Ntopng) drain() {
	deadline := time.Now().Add(drainTime)
	for {
		if x.rest == nil {
			select {
			case x.rest = <-x.queue:
			default:
			}
		}
		left := time.Until(deadline)
		if left <= 0 || x.publisher().count("flow") == 0 || x.rest == nil && x.in == 0 {
			break
		}
		if x.rest != nil && !x.pending {
			x.fill(left)
		} else {
			x.flush(left)
		}
	}
	x.droppedSend.Add(uint64(x.in))
	for x.rest != nil {
		n := len(x.rest.List) - x.at
		x.waiting.Add(-int64(n))
		x.droppedQueue.Add(uint64(n))
		x.rest.Release()
		x.rest, x.at = nil, 0
		select {
		case x.rest = <-x.queue:
		default:
		}
	}
}

// fill encodes x.rest and sends each message that is full. If one finds nobody, x.rest[x.at:] waits.
func (x *Ntopng) fill(within time.Duration) {
	exporter := x.publisher().local()
	x.agent.Exporter, _ = netip.ParseAddr(exporter)
	r := x.rest
	for ; x.at < len(r.List); x.at++ {
		rec := &r.List[x.at]
		if x.in > 0 && len(x.payload) > ntopngMessage-ntopngOneRecord && !x.flush(within) {
			return
		}
		if x.in == 0 {
			x.since = time.Now()
			x.payload = x.payload[:0]
			if x.cfg.AgentJSON {
				x.payload = append(x.payload, '[')
			} else {
				x.payload = appendTLVStart(x.payload)
			}
		}
		if x.cfg.AgentJSON {
			x.payload = x.agent.Append(x.payload, rec, ',')
		} else {
			x.payload = appendTLV(x.payload, rec, exporter)
		}
		x.in++
		x.waiting.Add(-1)
		x.encoded.Add(1)
		x.volume[0] += rec.Forward.Octets + rec.Reverse.Octets
		x.volume[1] += rec.Forward.Packets + rec.Reverse.Packets
	}
	for i := range r.Interfaces { // totals: the next ones make up for any that find nobody
		x.send("counter", 0, x.agent.AppendCounter(nil, &r.Interfaces[i]), within)
	}
	x.rest, x.at = nil, 0
	r.Release()
}

// flush sends the flow message; false if nobody took it, and it is kept.
func (x *Ntopng) flush(within time.Duration) bool {
	flags, empty := byte(ntopngTLV), false
	if x.cfg.AgentJSON {
		// None of the records had an end here.
		flags, empty = 0, len(x.payload) == 1
		x.payload[len(x.payload)-1] = ']' // in place of the last comma
	}
	x.pending = true
	if !empty && x.in > 0 && !x.send("flow", flags, x.payload, within) {
		return false
	}
	x.records.Add(uint64(x.in))
	x.in, x.pending = 0, false
	return true
}

// send publishes one message. It uses up a message number only if a subscriber took the message, so that gaps are
// losses.
func (x *Ntopng) send(topic string, flags byte, payload []byte, within time.Duration) bool {
	h := append(x.header[:0], make([]byte, 16)...)
	copy(h, topic)
	h = append(h, ntopngVersion, flags, 0, 0)
	h = binary.LittleEndian.AppendUint32(h, uint32(len(payload)))
	h = binary.LittleEndian.AppendUint32(h, uint32(len(payload))) // "compressed", which it is not
	h = binary.BigEndian.AppendUint32(h, x.id+1)
	h = binary.LittleEndian.AppendUint32(h, x.cfg.SourceID)
	x.header = h
	if x.publisher().publish(h, payload, within) == 0 {
		return false
	}
	x.id++
	x.messages.Add(1)
	x.octets.Add(uint64(len(h) + len(payload)))
	return true
}
