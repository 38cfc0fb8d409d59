package collector

import (
	"encoding/binary"
	"time"

	"github.com/sockflow/sockflow/templates"
)

const (
	versionV1    = 1
	versionV5    = 5
	versionV7    = 7
	versionV9    = 9
	versionIPFIX = 10
	headerIPFIX  = 16
	headerV9     = 20
	setHeader    = 4

	setTemplate          = 2 // RFC 7011, section 3.3.2
	setOptionsTemplate   = 3
	setTemplateV9        = 0 // RFC 3954, sections 5.2 and 6.1
	setOptionsTemplateV9 = 1
	firstDataSet         = 256
)

// header is that of a message.
type header struct {
	version    uint16
	exportTime time.Time
	boot       time.Time // NetFlow: when sysUptime was 0
	sequence   uint32
	domain     uint32 // NetFlow v5: engine type * 256 + engine id
	octets     int
	count      int    // NetFlow v1, v5, v7: records
	sampling   uint16 // NetFlow v5: two bits of how, and the interval
}

func (h *header) v9() bool { return h.version == versionV9 }

func parseHeader(msg []byte) (h header, err error) {
	if len(msg) < 2 {
		return h, malformed(CauseLength, "%d octets", len(msg))
	}
	h.version = binary.BigEndian.Uint16(msg)
	switch h.version {
	case versionIPFIX:
		if len(msg) < headerIPFIX {
			return h, malformed(CauseLength, "%d octets, less than an IPFIX header", len(msg))
		}
		if n := int(binary.BigEndian.Uint16(msg[2:])); n != len(msg) {
			return h, malformed(CauseLength, "%d octets, and its header says %d", len(msg), n)
		}
		h.exportTime = time.Unix(int64(binary.BigEndian.Uint32(msg[4:])), 0)
		h.sequence, h.domain = binary.BigEndian.Uint32(msg[8:]), binary.BigEndian.Uint32(msg[12:])
		h.octets = headerIPFIX
	case versionV9:
		if len(msg) < headerV9 {
			return h, malformed(CauseLength, "%d octets, less than a NetFlow v9 header", len(msg))
		}
		h.exportTime = time.Unix(int64(binary.BigEndian.Uint32(msg[8:])), 0)
		h.boot = h.exportTime.Add(-time.Duration(binary.BigEndian.Uint32(msg[4:])) * time.Millisecond)
		h.sequence, h.domain = binary.BigEndian.Uint32(msg[12:]), binary.BigEndian.Uint32(msg[16:])
		h.octets = headerV9
	case versionV1, versionV5, versionV7:
		return h.fixed(msg)
	default:
		return h, malformed(CauseVersion, "version %d is none of 1, 5, 7, 9 and 10", h.version)
	}
	return h, nil
}

// checkMessage checks what can be without a session.
func checkMessage(msg []byte) *MalformedError {
	h, err := parseHeader(msg)
	if err != nil {
		return err.(*MalformedError)
	}
	return h.check(msg)
}

// Decode decodes a message that came at the time now, and returns its Data Records in order, options data included. They are valid
// until the next call, of any session of a Collector. A message that is malformed is discarded whole: the error is a *MalformedError, and counted.
func (s *Session) Decode(msg []byte, now time.Time) ([]Record, error) {
	s.stats.Messages++
	s.stats.Octets += uint64(len(msg))
	records, err := s.decode(msg, now)
	if err != nil {
		s.stats.Malformed[err.Cause]++
		return nil, err
	}
	s.stats.Records += uint64(len(records))
	for i := range records {
		if records[i].Template.Options {
			s.stats.Options++
		}
	}
	return records, nil
}

func (s *Session) decode(msg []byte, now time.Time) ([]Record, *MalformedError) {
	h, err := parseHeader(msg)
	if err != nil {
		return nil, err.(*MalformedError)
	}
	key := domainKey{h.version, h.domain}
	if err := h.check(msg); err != nil {
		if d := s.domains[key]; d != nil {
			d.synced = false // who knows how many records it had
		}
		return nil, err
	}
	d := s.domain(key)
	if d == nil {
		return nil, nil
	}
	a := &s.shared.arena
	if cap(a.values) > keepValues {
		*a = arena{}
	}
	clear(a.records) // let go of templates
	a.records, a.values, a.ends = a.records[:0], a.values[:0], a.ends[:0]
	m := message{s: s, d: d, header: h, now: now, a: a, certain: true, generation: s.generation}
	end := h.octets
	if h.count > 0 {
		end = m.fixedRecords(msg)
	} else if h.templated() {
		for begin, n, _ := h.nextSet(msg, end); n > 0; begin, n, _ = h.nextSet(msg, end) {
			end = begin + n
			if err := m.set(binary.BigEndian.Uint16(msg[begin:]), msg[begin+setHeader:end]); err != nil {
				d.synced = false
				return nil, err
			}
		}
	}
	if end < len(msg) {
		s.stats.Ignored++ // octets after the last set or record
	}
	begin := 0
	for i, end := range a.ends {
		a.records[i].Values = a.values[begin:end:end]
		begin = end
	}
	switch {
	case h.v9():
		s.sequence(d, h.sequence, 1, true)
	case h.version == versionV1: // it has none
	default:
		s.sequence(d, h.sequence, uint32(len(a.records)), m.certain)
	}
	return a.records, nil
}

// templated reports whether messages of this version have sets.
func (h *header) templated() bool { return h.version >= versionV9 }

// check checks the lengths of all sets or records, before any of them counts.
func (h *header) check(msg []byte) *MalformedError {
	if !h.templated() {
		if need := h.octets + h.count*fixedFormats.of(h.version).octets; need > len(msg) {
			return malformed(CauseLength, "%d octets, and %d records take %d", len(msg), h.count, need)
		}
		return nil
	}
	for at := h.octets; ; {
		begin, n, err := h.nextSet(msg, at)
		if err != nil || n == 0 {
			return err
		}
		at = begin + n
	}
}

// nextSet returns where the set at or after an offset begins, and its length with its header, 0 at the end. What
// exporters leave after the last set is no set: zeros (Cisco ACI and PAN-OS fill messages up), and in NetFlow v9 up to
// three octets (MikroTik). So are zeros between sets, up to the next multiple of four.
func (h *header) nextSet(msg []byte, at int) (begin, n int, err *MalformedError) {
	b := msg[at:]
	if n, ok := setLength(b); ok {
		return at, n, nil
	}
	switch pad := (h.octets - at) & 3; {
	case zeros(b), h.v9() && len(b) < setHeader:
		return at, 0, nil
	case pad > 0 && pad < len(b) && zeros(b[:pad]):
		if n, ok := setLength(b[pad:]); ok {
			return at + pad, n, nil
		}
	}
	if len(b) < setHeader {
		return at, 0, malformed(CauseSet, "%d octets after the last set", len(b))
	}
	return at, 0, malformed(CauseSet, "a set of %d octets, where %d are left", binary.BigEndian.Uint16(b[2:]), len(b))
}

// setLength is the length that the header of a set says, if it can be.
func setLength(b []byte) (n int, ok bool) {
	if len(b) < setHeader {
		return 0, false
	}
	n = int(binary.BigEndian.Uint16(b[2:]))
	return n, n >= setHeader && n <= len(b)
}

func zeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// message is the one that is being decoded.
type message struct {
	header
	s          *Session
	d          *domain
	now        time.Time
	a          *arena
	certain    bool // every Data Record of it could be counted
	generation int  // of the names when it came; what it teaches holds for the next
}

func (m *message) set(id uint16, body []byte) *MalformedError {
	switch {
	case id >= firstDataSet:
		return m.data(id, body)
	case !m.v9() && (id == setTemplate || id == setOptionsTemplate):
		return m.templates(body, id == setOptionsTemplate)
	case m.v9() && (id == setTemplateV9 || id == setOptionsTemplateV9):
		return m.templates(body, id == setOptionsTemplateV9)
	}
	m.s.stats.Ignored++ // reserved
	return nil
}

func (m *message) templates(b []byte, options bool) *MalformedError {
	least := 4
	if options && m.v9() {
		least = 6
	}
	for len(b) >= least {
		if b[0] == 0 && b[1] == 0 && b[2] == 0 && b[3] == 0 {
			return nil // padding, more than allowed
		}
		t, id, n, err := m.s.parseTemplate(b, m.v9(), options)
		if err != nil {
			return err.(*MalformedError)
		}
		if t == nil {
			m.s.withdraw(m.d, id, options)
		} else {
			m.s.setTemplate(m.d, t, m.now)
		}
		b = b[n:]
	}
	return nil
}

func (m *message) data(id uint16, b []byte) *MalformedError {
	h := m.s.template(m.d, id, m.now)
	if h == nil {
		m.s.stats.UnknownSets++
		m.s.stats.UnknownOctets += uint64(len(b))
		m.certain = false
		return nil
	}
	if h.generation < m.generation && len(b) >= h.MinSize {
		h.Template, h.generation = m.s.renamed(h.Template), m.generation
	}
	t := h.Template
	if len(b) > 0 && len(b) < t.MinSize {
		m.s.stats.ShortSets++
		m.s.stats.ShortOctets += uint64(len(b))
		return nil
	}
	for len(b) >= t.MinSize { // less is padding
		begin := len(m.a.values)
		for i := range t.Fields {
			n := int(t.Fields[i].Length)
			if n == templates.Variable {
				var ok bool
				if n, b, ok = variable(b); !ok {
					return malformed(CauseRecord, "field %d of template %d ends in its length", i, id)
				}
			}
			if n > len(b) {
				return malformed(CauseRecord, "field %d of template %d has %d octets, where %d are left in the set", i, id, n, len(b))
			}
			m.a.values = append(m.a.values, b[:n:n])
			b = b[n:]
		}
		if t.types != nil {
			m.s.learn(t.types, m.a.values[begin:])
		}
		m.a.ends = append(m.a.ends, len(m.a.values))
		m.a.records = append(m.a.records, Record{
			From: m.s.cfg.Name, V9: m.v9(), Version: m.version, Domain: m.domain, ExportTime: m.exportTime, Boot: m.boot, Template: t, domain: m.d,
		})
	}
	return nil
}

// variable reads the length of a value of variable length (RFC 7011, section 7).
func variable(b []byte) (n int, rest []byte, ok bool) {
	switch {
	case len(b) == 0:
		return 0, b, false
	case b[0] < 255:
		return int(b[0]), b[1:], true
	case len(b) < 3:
		return 0, b, false
	}
	return int(binary.BigEndian.Uint16(b[1:])), b[3:], true
}
