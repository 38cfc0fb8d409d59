package ipfix

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/templates"
)

// Protocol is the format of messages.
type Protocol uint8

// Protocols.
const (
	IPFIX     Protocol = iota // RFC 7011
	NetFlowV9                 // RFC 3954
)

// Encoder turns records into messages of one Transport Session. It knows no socket and no clock: the times are the caller's. It
// belongs to one goroutine.
type Encoder struct {
	proto  Protocol
	domain uint32
	max    int // octets of a message
	set    *templates.Set
	boot   time.Time // when sysUptime was 0
	zero   int64     // the same, in Unix nanoseconds, by the wall clock as it is now, and later by shift
	shift  int64     // nanoseconds; see keepUptime
	info   Info

	recordTimes bool  // messages carry the time of the latest record, not the caller's
	latest      int64 // Unix nanoseconds

	sequence uint32 // Data Records before the message (RFC 7011, section 3.1); v9: messages
	msg      []byte // under way; empty when nothing waits
	open     dataSet
	before   dataSet // the one before the open set
	data     int     // Data Records in msg
	spare    []byte  // a record on its way to the next message

	announced                         // what was sent to the collector in this session
	using     []*templates.Template   // by msg
	programs  []templates.Application // of msg, and not yet sent in this session
	ahead                             // of datagrams: what waits until the collector has read the templates
	options   [optionsKinds]optionsTemplate
	ignored   lossTimes
	notSent   lossTimes

	buf  []byte // for messages of templates and options records
	cut  uint64
	send func(message []byte, flows int) error
}

// dataSet is a Data Set of the message under way.
type dataSet struct {
	template *templates.Template // nil: there is none
	at       int                 // where it begins
}

const (
	headerIPFIX = 16
	headerV9    = 20
	setHeader   = 4
)

// NewEncoder returns an encoder that hands each message, with its number of flow records, to send. A message of flow records has nothing else. The octets are valid during
// the call. boot is when the exporter started, which is when sysUptime was 0 (NetFlow v9). sysUptime does not follow a wall clock that is stepped
// where this and later times have a monotonic reading: then boot itself moves.
func NewEncoder(proto Protocol, opt templates.Options, domain uint32, maxMessage int, boot time.Time, send func(message []byte, flows int) error) (*Encoder, error) {
	e := &Encoder{proto: proto, domain: domain, boot: boot, zero: boot.UnixNano(), max: maxMessage, send: send}
	if err := e.setOptions(opt); err != nil {
		return nil, err
	}
	return e, e.SetMaxMessage(maxMessage)
}

func (e *Encoder) setOptions(opt templates.Options) error {
	opt.V9 = e.proto == NetFlowV9
	if opt.V9 {
		opt.MaxRecord = min(maxRecordV9, e.max-headerV9-setHeader-3)
	}
	set, err := templates.New(opt)
	if err != nil {
		return err
	}
	if e.set != nil {
		set.Follow(e.set)
	}
	set.SetUptime(e.zero)
	options, err := newOptions(set.Options())
	if err != nil {
		return err
	}
	e.set, e.options = set, options
	e.announced = announced{}
	if e.lead > 0 {
		set.Common()
	}
	return nil
}

// maxRecordV9 lets the longest record of NetFlow v9 into a packet of 1400 octets.
const maxRecordV9 = 1400 - 28 - headerV9 - setHeader - 3

// SetMaxMessage changes the size of later messages. Into small ones long records of NetFlow v9 do not fit: their templates change.
func (e *Encoder) SetMaxMessage(octets int) error {
	if octets < 512 || octets > 65535 {
		return errors.New("message size must be from 512 to 65535 octets")
	}
	before := e.max
	e.max = octets
	if e.proto == NetFlowV9 && min(before, octets) < maxRecordV9+headerV9+setHeader+3 && before != octets {
		opt := e.set.Options()
		return e.setOptions(opt)
	}
	return nil
}

// Restart begins a new Transport Session: the sequence begins anew, and the collector knows no template. Records that wait stay,
// and come after the templates.
func (e *Encoder) Restart() {
	e.sequence = 0
	e.announced = announced{}
	e.Forget()
}

func (e *Encoder) header() int {
	if e.proto == NetFlowV9 {
		return headerV9
	}
	return headerIPFIX
}

// padding is what closeSet may add.
func (e *Encoder) padding() int {
	if e.proto == NetFlowV9 {
		return 3
	}
	return 0
}

// putHeader fills the header of a finished message.
func (e *Encoder) putHeader(msg []byte, records int, now time.Time) {
	if e.recordTimes {
		now = time.Unix(0, e.latest)
	}
	if e.proto == NetFlowV9 {
		binary.BigEndian.PutUint16(msg[0:], 9)
		binary.BigEndian.PutUint16(msg[2:], uint16(records))
		// Collectors take the time of boot for seconds less uptime. Both are of the same instant, the next whole second, or
		// every flow would be off by the fraction that the header has no room for.
		e.followClock(now)
		second := now.Unix() + 1
		binary.BigEndian.PutUint32(msg[4:], uint32((second*1e9-e.zero)/1e6))
		binary.BigEndian.PutUint32(msg[8:], uint32(second))
		binary.BigEndian.PutUint32(msg[12:], e.sequence)
		binary.BigEndian.PutUint32(msg[16:], e.domain)
		return
	}
	binary.BigEndian.PutUint16(msg[0:], 10)
	binary.BigEndian.PutUint16(msg[2:], uint16(len(msg)))
	binary.BigEndian.PutUint32(msg[4:], uint32(now.Unix()))
	binary.BigEndian.PutUint32(msg[8:], e.sequence)
	binary.BigEndian.PutUint32(msg[12:], e.domain)
}

// leastStep is how far a clock must be from where it was: its two readings are never quite at the same time.
const leastStep = 100 * time.Millisecond

// followClock moves the time of boot along with the wall clock, where that was stepped.
func (e *Encoder) followClock(now time.Time) {
	if zero := now.Add(-now.Sub(e.boot)).UnixNano() + e.shift; time.Duration(zero-e.zero).Abs() > leastStep {
		e.zero = zero
		e.set.SetUptime(zero)
	}
}

// deliver sends a message of so many records, Data Records and, of these, flow records. The sequence counts what was sent or lost alike, so that a loss shows (RFC 7011, section 10.2.2).
func (e *Encoder) deliver(msg []byte, records, data, flows int, now time.Time) error {
	e.putHeader(msg, records, now)
	if e.proto == NetFlowV9 {
		e.sequence++
	} else {
		e.sequence += uint32(data)
	}
	return e.send(msg, flows)
}

// closeSet fills in the length of the set at begin. NetFlow v9 pads to 32 bits (RFC 3954, section 5.3); here nothing is padded:
// with strings of variable length a record may be shorter than the padding.
func (e *Encoder) closeSet(msg []byte, begin int) []byte {
	if e.proto == NetFlowV9 {
		for (len(msg)-begin)%4 != 0 {
			msg = append(msg, 0)
		}
	}
	binary.BigEndian.PutUint16(msg[begin+2:], uint16(len(msg)-begin))
	return msg
}

// Record adds a record. Where records are uniflows it adds one for each direction in which something passed. Full messages are sent,
// templates that they need before them.
func (e *Encoder) Record(r *flowcache.Record, now time.Time) error {
	var err error
	if e.proto == NetFlowV9 {
		e.followClock(now)
		err = e.keepUptime(r, now)
	}
	o := e.set.Opposite(r)
	if o == nil || r.Forward.Packets > 0 || r.Forward.Octets > 0 {
		err = errors.Join(err, e.add(r, now))
	}
	if o != nil {
		err = errors.Join(err, e.add(o, now))
	}
	return err
}

func (e *Encoder) add(r *flowcache.Record, now time.Time) error {
	e.latest = max(e.latest, r.End)
	t := e.set.For(r)
	mark := len(e.msg)
	if e.open.template != t || mark == 0 {
		mark = e.openSet(t)
	}
	begin := len(e.msg)
	e.msg = e.set.Append(e.msg, t, r)
	e.program(r)
	if len(e.msg)+e.padding() <= e.max {
		e.data++
		return nil
	}
	return e.overflow(t, r, mark, begin, now)
}

// program notes the application of a record, if its name was not yet sent to the collector.
func (e *Encoder) program(r *flowcache.Record) {
	id, ok := e.set.Application(r)
	if !ok || e.announced.programs[id] || slices.ContainsFunc(e.programs, func(a templates.Application) bool { return a.ID == id }) {
		return
	}
	e.programs = append(e.programs, templates.NameApplication(id, r))
}

// openSet begins the set of t in the message, and returns where the message ended before.
func (e *Encoder) openSet(t *templates.Template) int {
	if len(e.msg) == 0 {
		e.msg = append(e.msg, make([]byte, e.header())...)
	}
	if e.open.template != nil {
		e.msg = e.closeSet(e.msg, e.open.at)
	}
	mark := len(e.msg)
	e.before, e.open = e.open, dataSet{t, mark}
	e.msg = binary.BigEndian.AppendUint16(e.msg, t.ID)
	e.msg = append(e.msg, 0, 0)
	if !slices.Contains(e.using, t) {
		e.using = append(e.using, t)
	}
	return mark
}

// overflow handles the record at begin that does not fit into the message: what came before is sent. Alone and still too long, its
// strings are cut.
func (e *Encoder) overflow(t *templates.Template, r *flowcache.Record, mark, begin int, now time.Time) error {
	var err error
	if e.data > 0 {
		e.spare = append(e.spare[:0], e.msg[begin:]...)
		e.msg = e.msg[:mark]
		if mark == e.open.at { // its set was opened for it
			e.open = e.before
		}
		if e.open.template.Padding {
			e.fill()
		}
		err = e.Flush(now)
		e.openSet(t)
		begin = len(e.msg)
		e.msg = append(e.msg, e.spare...)
	}
	for limit := e.max / 2; len(e.msg)+e.padding() > e.max; limit /= 2 {
		if limit == 0 {
			e.msg, e.open = e.msg[:0], dataSet{}
			e.sequence++ // it shows as lost
			return errors.Join(err, errTooBig)
		}
		if limit == e.max/2 {
			e.cut++
		}
		e.msg = e.set.AppendCut(e.msg[:begin], t, r, limit)
	}
	e.data++
	return err
}

// fill lengthens paddingOctets, which is the last field of the last record and empty, so that the message has e.max octets. The length of
// a field takes one octet up to 254 and three beyond (RFC 7011, section 7): two sizes cannot be had.
func (e *Encoder) fill() {
	last := len(e.msg) - 1
	switch room := e.max - len(e.msg); {
	case room <= 0:
		return
	case room < 257:
		e.msg[last] = byte(min(room, 254))
		e.zeros(min(room, 254))
	default:
		e.msg[last] = 255
		e.msg = binary.BigEndian.AppendUint16(e.msg, uint16(room-2))
		e.zeros(room - 2)
	}
}

func (e *Encoder) zeros(n int) {
	at := len(e.msg)
	e.msg = slices.Grow(e.msg, n)[:at+n]
	clear(e.msg[at:])
}

var errTooBig = errors.New("record does not fit into a message")

// Flush sends the message under way, if any.
func (e *Encoder) Flush(now time.Time) error {
	if e.data == 0 {
		e.msg, e.open, e.using = e.msg[:0], dataSet{}, e.using[:0]
		return nil
	}
	if e.open.template != nil {
		e.msg = e.closeSet(e.msg, e.open.at)
	}
	err := e.announce(now)
	err = errors.Join(err, e.postData(now))
	e.msg, e.open, e.data, e.using = e.msg[:0], dataSet{}, 0, e.using[:0]
	return err
}

// Waiting is the number of Data Records in the message under way.
func (e *Encoder) Waiting() int { return e.data }
