package ipfix

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/sockflow/sockflow/templates"
)

const (
	setTemplate        = 2 // RFC 7011, section 3.3.2
	setOptionsTemplate = 3
	setTemplateV9      = 0 // RFC 3954, section 5.2
	setOptionsV9       = 1 // RFC 3954, section 6.1
)

// announced is what was announced in this Transport Session, or, of datagrams, since the templates were last sent again.
type announced struct {
	templates map[uint16]bool // by id
	options   [optionsKinds]bool
	described map[templates.Number]bool
	programs  map[uint32]bool // by applicationId
}

// maxPrograms bounds announced.programs. When it is exceeded, all are sent again.
const maxPrograms = 1 << 16

// announce sends the templates that the message under way uses and that were not sent in this session.
func (e *Encoder) announce(now time.Time) error {
	var c *control
	var fresh []*templates.Template
	for _, t := range e.using {
		if e.announced.templates[t.ID] {
			continue
		}
		if c == nil {
			c = e.control(now)
		}
		c.template(t)
		fresh = append(fresh, t)
	}
	for _, t := range fresh {
		c.flowKeys(t)
	}
	for _, a := range e.programs {
		if c == nil {
			c = e.control(now)
		}
		c.option(optionsApplications, number(uint64(a.ID)), text(a.Name), text(a.Description))
		if len(e.announced.programs) >= maxPrograms || e.announced.programs == nil {
			e.announced.programs = map[uint32]bool{}
		}
		e.announced.programs[a.ID] = true
	}
	e.programs = e.programs[:0]
	if c == nil {
		return nil
	}
	return c.end()
}

// Templates sends all that a collector must know: the templates in use and the names of their enterprise elements (RFC 5610), and
// the options data. Over UDP it is to be called from time to time, over streams once in a session. Templates come before options data.
func (e *Encoder) Templates(now time.Time) error {
	e.announced = announced{}
	c := e.control(now)
	for _, kind := range []int{optionsExporter, optionsSelection, optionsSampling, optionsStatistics, optionsMetering, optionsExporting, optionsKeys} {
		c.announceOptions(kind)
	}
	for _, t := range e.set.Templates() {
		c.template(t)
	}
	c.exporter()
	c.statistics()
	for _, t := range e.set.Templates() {
		c.flowKeys(t)
	}
	return c.end()
}

// Statistics sends the options data that changes: what was sent and what was lost (RFC 7011, sections 4.1 to 4.3).
func (e *Encoder) Statistics(now time.Time) error {
	c := e.control(now)
	c.statistics()
	return c.end()
}

// SetOptions changes what records carry from now on. To be called after Flush; Templates must follow. After an error nothing has changed. Template ids
// are others than those of the layout before, for what was sent under these may be on its way.
func (e *Encoder) SetOptions(opt templates.Options) error { return e.setOptions(opt) }

// control makes messages of templates and options records.
type control struct {
	e       *Encoder
	now     time.Time
	msg     []byte
	body    []byte
	set     uint16
	begin   int // of the open set, -1 none
	records int // of any kind
	data    int
	uses    []uint16 // templates of the Data Sets
	brings  []uint16 // templates that the message announces
	err     error
}

func (e *Encoder) control(now time.Time) *control {
	return &control{e: e, now: now, begin: -1, msg: append(e.buf[:0], make([]byte, e.header())...)}
}

// add appends a record to the set; data is 1 if it is a Data Record, else 0.
func (c *control) add(set uint16, body []byte, data int) {
	if len(c.msg)+setHeader+len(body)+c.e.padding() > c.e.max {
		c.finish()
	}
	if c.set != set {
		c.closeSet()
	}
	if c.begin < 0 {
		c.begin, c.set = len(c.msg), set
		c.msg = binary.BigEndian.AppendUint16(c.msg, set)
		c.msg = append(c.msg, 0, 0)
	}
	c.msg = append(c.msg, body...)
	c.records++
	c.data += data
	if data > 0 && c.e.lead > 0 && !slices.Contains(c.uses, set) {
		c.uses = append(c.uses, set)
	}
}

// bring says that the record that was just added is the template id.
func (c *control) bring(id uint16) {
	if c.e.lead > 0 {
		c.brings = append(c.brings, id)
	}
}

// closeSet ends the open set, if any.
func (c *control) closeSet() {
	if c.begin >= 0 {
		c.msg = c.e.closeSet(c.msg, c.begin)
		c.begin = -1
	}
}

// finish sends the message.
func (c *control) finish() {
	c.closeSet()
	if c.records > 0 {
		c.err = errors.Join(c.err, c.e.postControl(c))
	}
	c.msg, c.records, c.data, c.uses, c.brings = c.msg[:c.e.header()], 0, 0, c.uses[:0], c.brings[:0]
}

// end sends the last message. After an error it is unknown what the collector has received: templates and facts are
// sent again when they are needed.
func (c *control) end() error {
	c.finish()
	c.e.buf = c.msg
	if c.err != nil {
		c.e.announced = announced{}
	}
	return c.err
}

// template adds t, a template of flow records. Type records precede the template: libfixbuf treats elements that it has
// not seen described as unknown.
func (c *control) template(t *templates.Template) {
	for _, f := range t.Fields {
		c.describe(f.Number, f.Element)
	}
	set := uint16(setTemplate)
	if c.e.proto == NetFlowV9 {
		set = setTemplateV9
	}
	b := binary.BigEndian.AppendUint16(c.body[:0], t.ID)
	b = binary.BigEndian.AppendUint16(b, uint16(len(t.Fields)))
	for _, f := range t.Fields {
		b = appendField(b, f.Number, f.Length)
	}
	c.add(set, b, 0)
	c.bring(t.ID)
	c.body = b
	if c.e.announced.templates == nil {
		c.e.announced.templates = map[uint16]bool{}
	}
	c.e.announced.templates[t.ID] = true
}

// describe adds the type record of an enterprise element (RFC 5610), once in a session. NetFlow v9 has none.
func (c *control) describe(n templates.Number, el *templates.Element) {
	a := &c.e.announced
	if n.PEN == templates.PENIANA || n.PEN == templates.PENReverse || c.e.proto == NetFlowV9 || a.described[n] {
		return
	}
	if a.described == nil {
		a.described = map[templates.Number]bool{}
	}
	a.described[n] = true
	// No range narrower than the type's. libfixbuf wants a description.
	c.option(optionsTypes, number(uint64(n.PEN)), number(uint64(n.ID)), number(uint64(el.Type)), number(uint64(el.Semantics)), number(uint64(el.Units)),
		number(0), number(0), text(el.Name), text(el.Description))
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
