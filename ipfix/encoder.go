package ipfix

import (
	"encoding/binary"
	"errors"
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
	boot   int64 // Unix nanoseconds at which sysUptime was 0

	sequence uint32 // Data Records before the message (RFC 7011, section 3.1); v9: messages
	msg      []byte // under way; empty when nothing waits
	open     uint16 // id of the open set, 0 none
	openAt   int    // where it begins
	data     int    // Data Records in msg
	records  int    // v9: records of any kind in msg
	control  []byte // for messages of templates
	cut      uint64
	tooBig   uint64
	send     func(message []byte, records int) error
}

const (
	headerIPFIX = 16
	headerV9    = 20
	setHeader   = 4

	setTemplate        = 2 // RFC 7011, section 3.3.2
	setOptionsTemplate = 3
	setTemplateV9      = 0 // RFC 3954, section 5.2

	// Type records (RFC 5610, section 3.9); beyond the ids of package templates.
	typeTemplateID = 400
)

// NewEncoder returns an encoder that hands each message, with its number of Data Records, to send. The octets are valid during
// the call. boot is when sysUptime was 0, and only of use to NetFlow v9.
func NewEncoder(proto Protocol, opt templates.Options, domain uint32, maxMessage int, boot time.Time, send func(message []byte, records int) error) (*Encoder, error) {
	opt.V9 = proto == NetFlowV9
	set, err := templates.New(opt)
	if err != nil {
		return nil, err
	}
	e := &Encoder{proto: proto, domain: domain, set: set, boot: boot.UnixNano(), send: send}
	set.SetUptime(e.boot)
	return e, e.SetMaxMessage(maxMessage)
}

// SetMaxMessage changes the size of later messages.
func (e *Encoder) SetMaxMessage(octets int) error {
	if octets < 512 || octets > 65535 {
		return errors.New("message size must be from 512 to 65535 octets")
	}
	e.max = octets
	return nil
}

// Restart begins a new Transport Session: the sequence begins anew. Records that wait stay, and come after the templates.
func (e *Encoder) Restart() { e.sequence = 0 }

// Sequence is the number that the next message carries.
func (e *Encoder) Sequence() uint32 { return e.sequence }

func (e *Encoder) header() int {
	if e.proto == NetFlowV9 {
		return headerV9
	}
	return headerIPFIX
}

// putHeader fills the header of a finished message.
func (e *Encoder) putHeader(msg []byte, records int, now time.Time) {
	if e.proto == NetFlowV9 {
		binary.BigEndian.PutUint16(msg[0:], 9)
		binary.BigEndian.PutUint16(msg[2:], uint16(records))
		// Collectors take the time of boot for seconds less uptime. Both are of the same instant, the next whole second, or
		// every flow would be off by the fraction that the header has no room for.
		second := now.Unix() + 1
		binary.BigEndian.PutUint32(msg[4:], uint32((second*1e9-e.boot)/1e6))
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

// deliver sends a message. The sequence counts what was sent or lost alike, so that a loss shows (RFC 7011, section 10.2.2).
func (e *Encoder) deliver(msg []byte, records, data int, now time.Time) error {
	e.putHeader(msg, records, now)
	if e.proto == NetFlowV9 {
		e.sequence++
	} else {
		e.sequence += uint32(data)
	}
	return e.send(msg, data)
}

// Templates sends all templates, and the type records that describe enterprise elements (RFC 5610).
func (e *Encoder) Templates(now time.Time) error {
	var err error
	msg, records, data := append(e.control[:0], make([]byte, e.header())...), 0, 0
	begin := -1
	var id uint16
	finish := func() {
		if begin >= 0 {
			msg = e.closeSet(msg, begin)
			begin = -1
		}
		if len(msg) > e.header() {
			err = errors.Join(err, e.deliver(msg, records, data, now))
		}
		msg, records, data = msg[:e.header()], 0, 0
	}
	add := func(set uint16, body []byte, isData bool) {
		if len(msg)+setHeader+len(body)+3 > e.max {
			finish()
		}
		if begin >= 0 && id != set {
			msg = e.closeSet(msg, begin)
			begin = -1
		}
		if begin < 0 {
			begin, id = len(msg), set
			msg = binary.BigEndian.AppendUint16(msg, set)
			msg = append(msg, 0, 0)
		}
		msg = append(msg, body...)
		records++
		if isData {
			data++
		}
	}
	set := uint16(setTemplate)
	if e.proto == NetFlowV9 {
		set = setTemplateV9
	}
	var body []byte
	// The names first: libfixbuf, for one, takes an element that it meets in a template before for a stranger.
	if d := e.set.Descriptions(); len(d) > 0 {
		add(setOptionsTemplate, appendTypeTemplate(body[:0]), false)
		for i := range d {
			add(typeTemplateID, appendTypeRecord(body[:0], &d[i]), true)
		}
	}
	for _, t := range e.set.Templates() {
		body = binary.BigEndian.AppendUint16(body[:0], t.ID)
		body = binary.BigEndian.AppendUint16(body, uint16(len(t.Fields)))
		for _, f := range t.Fields {
			body = appendField(body, f.Number, f.Length)
		}
		add(set, body, false)
	}
	finish()
	e.control = msg
	return err
}

func appendField(b []byte, n templates.Number, length uint16) []byte {
	if n.PEN == templates.PENIANA {
		b = binary.BigEndian.AppendUint16(b, n.ID)
		return binary.BigEndian.AppendUint16(b, length)
	}
	b = binary.BigEndian.AppendUint16(b, n.ID|0x8000) // the enterprise bit (RFC 7011, section 3.2)
	b = binary.BigEndian.AppendUint16(b, length)
	return binary.BigEndian.AppendUint32(b, n.PEN)
}

// typeFields is the template of type records; the first two are its scope.
var typeFields = []templates.Field{
	{Number: templates.Number{ID: 346}, Length: 4},                  // privateEnterpriseNumber
	{Number: templates.Number{ID: 303}, Length: 2},                  // informationElementId
	{Number: templates.Number{ID: 339}, Length: 1},                  // informationElementDataType
	{Number: templates.Number{ID: 344}, Length: 1},                  // informationElementSemantics
	{Number: templates.Number{ID: 345}, Length: 2},                  // informationElementUnits
	{Number: templates.Number{ID: 342}, Length: 8},                  // informationElementRangeBegin
	{Number: templates.Number{ID: 343}, Length: 8},                  // informationElementRangeEnd
	{Number: templates.Number{ID: 341}, Length: templates.Variable}, // informationElementName
	{Number: templates.Number{ID: 340}, Length: templates.Variable}, // informationElementDescription; libfixbuf wants it
}

func appendTypeTemplate(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, typeTemplateID)
	b = binary.BigEndian.AppendUint16(b, uint16(len(typeFields)))
	b = binary.BigEndian.AppendUint16(b, 2)
	for _, f := range typeFields {
		b = appendField(b, f.Number, f.Length)
	}
	return b
}

func appendTypeRecord(b []byte, d *templates.Description) []byte {
	b = binary.BigEndian.AppendUint32(b, d.PEN)
	b = binary.BigEndian.AppendUint16(b, d.ID)
	b = append(b, byte(d.Type), byte(d.Semantics))
	b = binary.BigEndian.AppendUint16(b, uint16(d.Units))
	b = append(b, make([]byte, 16)...) // no narrower range than the type's
	b = templates.AppendString(b, d.Name, 255)
	return templates.AppendString(b, "", 255)
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

// Record adds a record, and the one of the opposite direction where records are uniflows. Full messages are sent.
func (e *Encoder) Record(r *flowcache.Record, now time.Time) error {
	err := e.add(r, now)
	if o := e.set.Opposite(r); o != nil {
		err = errors.Join(err, e.add(o, now))
	}
	return err
}

func (e *Encoder) add(r *flowcache.Record, now time.Time) error {
	var err error
	t := e.set.For(r)
	for limit := e.max; ; limit /= 2 {
		if len(e.msg) == 0 {
			e.msg = append(e.msg, make([]byte, e.header())...)
		}
		mark, open := len(e.msg), e.open
		if open != t.ID {
			if open != 0 {
				e.msg = e.closeSet(e.msg, e.openAt)
				mark, open = len(e.msg), 0
			}
			e.openAt = len(e.msg)
			e.msg = binary.BigEndian.AppendUint16(e.msg, t.ID)
			e.msg = append(e.msg, 0, 0)
		}
		if limit == e.max {
			e.msg = e.set.Append(e.msg, t, r)
		} else {
			e.msg = e.set.AppendCut(e.msg, t, r, limit)
		}
		if len(e.msg)+3 <= e.max {
			e.open = t.ID
			e.data++
			e.records++
			if limit != e.max {
				e.cut++
			}
			return err
		}
		// It does not fit: send what came before it. Alone and still too long, its strings are cut.
		e.msg, e.open = e.msg[:mark], open
		if e.data > 0 {
			err = errors.Join(err, e.Flush(now))
			limit = 2 * e.max // again, uncut
			continue
		}
		e.msg = e.msg[:0]
		e.open = 0
		if limit == 0 {
			e.tooBig++
			e.sequence++ // it shows as lost
			return errors.Join(err, errTooBig)
		}
	}
}

var errTooBig = errors.New("record does not fit into a message")

// Flush sends the message under way, if any.
func (e *Encoder) Flush(now time.Time) error {
	if e.data == 0 {
		e.msg, e.open = e.msg[:0], 0
		return nil
	}
	if e.open != 0 {
		e.msg = e.closeSet(e.msg, e.openAt)
	}
	err := e.deliver(e.msg, e.records, e.data, now)
	e.msg, e.open, e.data, e.records = e.msg[:0], 0, 0, 0
	return err
}

// Waiting is the number of Data Records in the message under way.
func (e *Encoder) Waiting() int { return e.data }
