package templates

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"

	"github.com/sockflow/sockflow/flowcache"
)

// Dialect says whose numbers the enterprise fields carry.
type Dialect uint8

// Dialects.
const (
	Known  Dialect = iota // ntop's and Antrea's where they exist, the native ones otherwise
	Native                // the native ones
	IANA                  // no enterprise fields at all: for collectors that drop what they do not know
)

// ParseDialect returns the dialect of a name; "ntop" is another name of "known".
func ParseDialect(s string) (Dialect, error) {
	switch s {
	case "known", "ntop", "":
		return Known, nil
	case "native":
		return Native, nil
	case "iana":
		return IANA, nil
	}
	return 0, fmt.Errorf("dialect %q: must be known, native or iana", s)
}

// Options choose what a Set of templates carries. The zero value is the default.
type Options struct {
	Dialect     Dialect
	PEN         uint32 // of the native elements; default PENExample
	Uniflow     bool   // a record for each direction instead of RFC 5103 reverse elements
	CommandLine bool
	Node        string // name of this host
	V9          bool   // NetFlow v9: fixed lengths, no enterprise numbers
	V9Base      uint16 // first type of the native elements in v9; default 30000
	MaxString   int    // longest string in octets; default 1024, in v9 the field's own length
}

// Field is a Field Specifier (RFC 7011, section 3.2).
type Field struct {
	Number
	Length uint16 // octets, or Variable
	Name   string
}

// Template is compiled: its fields and how to append each.
type Template struct {
	ID      uint16
	Fields  []Field
	MinSize int // of a record, octets
	steps   []step
}

type step struct {
	op      op
	length  uint16
	number  func(*context) uint64
	text    func(*context) string
	address func(*context) *flowcache.Addr
}

type op uint8

const (
	op8 op = iota
	op16
	op32
	op64
	opIPv4
	opIPv6
	opString
	opFixed
)

// Set is the templates of one exporter: IPv4 and IPv6, TCP and other. It belongs to one goroutine.
type Set struct {
	opt       Options
	templates [4]Template
	described []Description
	ctx       context
	swapped   flowcache.Record
	limit     int // of strings, for a record that would not fit otherwise
}

// Description is what an RFC 5610 type record says of an enterprise element.
type Description struct {
	Number
	Name      string
	Type      Type
	Semantics Semantics
	Units     Units
}

// MaxFields is what Wireshark takes in a template by default (preference cflow.max_template_fields).
const MaxFields = 60

// ntopV9 is where ntop's elements begin in NetFlow v9, which has no enterprise numbers.
const ntopV9 = 57472

// New compiles the templates. Their ids are a function of their layout alone.
func New(opt Options) (*Set, error) {
	if opt.PEN == 0 {
		opt.PEN = PENExample
	}
	if opt.V9Base == 0 {
		opt.V9Base = 30000
	}
	if opt.MaxString == 0 {
		opt.MaxString = 1024
	}
	if opt.Dialect == IANA {
		opt.Uniflow = true // the reverse elements have an enterprise number
	}
	s := &Set{opt: opt, ctx: context{node: opt.Node}, limit: opt.MaxString}
	seen := map[Number]bool{}
	for kind := range s.templates {
		t := &s.templates[kind]
		t.ID = 256 + uint16(kind) + 4*uint16(opt.Dialect)
		if opt.Uniflow {
			t.ID += 16
		}
		if opt.CommandLine {
			t.ID += 32
		}
		used := map[Number]string{}
		for _, e := range s.elements(kind&1 == 0, kind&2 == 0) {
			n, ok := s.number(&e)
			if !ok {
				continue
			}
			if other, twice := used[n]; twice {
				return nil, fmt.Errorf("elements %s and %s are both number %d of enterprise %d", other, e.name, n.ID, n.PEN)
			}
			used[n] = e.name
			t.add(&e, n, opt)
			if n.PEN != PENIANA && n.PEN != PENReverse && !seen[n] {
				seen[n] = true
				s.described = append(s.described, Description{n, e.name, e.typ, e.semantics, e.units})
			}
		}
		if len(t.Fields) > MaxFields {
			return nil, fmt.Errorf("template %d has %d fields, more than %d", t.ID, len(t.Fields), MaxFields)
		}
	}
	return s, nil
}

// elements lists the elements of a template in order.
func (s *Set) elements(tcp, v4 bool) []element {
	l := []element{sourceIPv6, destIPv6}
	if v4 {
		l = []element{sourceIPv4, destIPv4}
	}
	l = append(l, common...)
	if s.opt.V9 {
		l = append(l, sinceBoot...)
	} else {
		l = append(l, milliseconds...)
	}
	if !s.opt.Uniflow {
		l = append(l, reverseDirection...)
	}
	l = append(l, biflowDirection)
	if tcp {
		l = append(l, tcpControlBits)
	}
	if s.opt.Dialect == IANA {
		return append(l, ianaNames...)
	}
	for i := range endElements {
		e := &endElements[i]
		if e.commandLine && !s.opt.CommandLine {
			continue
		}
		if s.opt.CommandLine && e.name == "ControlGroupId" {
			continue // its place under MaxFields goes to the command line
		}
		l = append(l, e.of(false), e.of(true))
	}
	if s.opt.Dialect == Known {
		l = append(l, nodeNames...)
	}
	if tcp {
		l = append(l, tcpElements...)
	}
	return append(l, observationSource)
}

// of makes the element of one end.
func (e *endElement) of(dest bool) element {
	el := element{name: "source" + e.name, typ: e.typ, semantics: e.semantics, native: e.native, known: e.knownSrc, v9Length: e.v9Length}
	end := func(c *context) *flowcache.End { return &c.rec.Source }
	if dest {
		el.name, el.native, el.known = "destination"+e.name, e.native+1, e.knownDst
		end = func(c *context) *flowcache.End { return &c.rec.Dest }
	}
	if e.number != nil {
		el.number = func(c *context) uint64 { return e.number(c, end(c)) }
	} else {
		el.text = func(c *context) string { return e.text(c, end(c)) }
	}
	return el
}

// number chooses the number of an element, and whether it has one at all.
func (s *Set) number(e *element) (Number, bool) {
	switch {
	case e.reverse && s.opt.V9:
		return Number{ID: e.v9}, e.v9 != 0
	case e.reverse:
		return Number{PENReverse, e.iana}, true
	case e.iana != 0:
		return Number{ID: e.iana}, true
	case s.opt.V9 && s.opt.Dialect == Known && e.known.PEN == PENNtop:
		return Number{ID: ntopV9 + e.known.ID}, true
	case s.opt.V9:
		return Number{ID: s.opt.V9Base + e.native}, e.native != 0
	case s.opt.Dialect == Known && e.known != Number{}:
		return e.known, true
	}
	return Number{s.opt.PEN, e.native}, e.native != 0
}

func (t *Template) add(e *element, n Number, opt Options) {
	st := step{length: e.typ.octets(), number: e.number, text: e.text, address: e.address}
	switch {
	case e.typ == String && opt.V9:
		st.op, st.length = opFixed, e.v9Length
	case e.typ == String:
		st.op, st.length = opString, uint16(min(opt.MaxString, Variable))
	case e.typ == IPv4Address:
		st.op = opIPv4
	case e.typ == IPv6Address:
		st.op = opIPv6
	default:
		st.op = map[uint16]op{1: op8, 2: op16, 4: op32, 8: op64}[st.length]
	}
	length := st.length
	if st.op == opString {
		length = Variable
		t.MinSize++
	} else {
		t.MinSize += int(length)
	}
	t.Fields = append(t.Fields, Field{n, length, e.name})
	t.steps = append(t.steps, st)
}

// Templates returns the compiled templates.
func (s *Set) Templates() []Template { return s.templates[:] }

// Descriptions returns the enterprise elements in use, for type records. None in NetFlow v9.
func (s *Set) Descriptions() []Description {
	if s.opt.V9 {
		return nil
	}
	return s.described
}

// Uniflow reports whether a record may need a second one, of the other direction.
func (s *Set) Uniflow() bool { return s.opt.Uniflow }

// SetUptime tells when sysUptime was 0, in Unix nanoseconds (NetFlow v9 only).
func (s *Set) SetUptime(zero int64) { s.ctx.uptime = zero }

// For returns the template of a record.
func (s *Set) For(r *flowcache.Record) *Template {
	kind := 0
	if r.Key.Proto != flowcache.ProtoTCP {
		kind = 1
	}
	if !r.Key.Is4() {
		kind |= 2
	}
	return &s.templates[kind]
}

// Opposite returns the record of the other direction, if r has one and s wants it told apart. It is valid until the next call.
func (s *Set) Opposite(r *flowcache.Record) *flowcache.Record {
	if !s.opt.Uniflow || r.Reverse.Packets == 0 && r.Reverse.Octets == 0 {
		return nil
	}
	w := &s.swapped
	*w = *r
	w.Key = r.Key.Reverse()
	w.Forward, w.Reverse = r.Reverse, r.Forward
	w.Source, w.Dest = r.Dest, r.Source
	return w
}

// AppendCut is Append with strings of at most limit octets.
func (s *Set) AppendCut(dst []byte, t *Template, r *flowcache.Record, limit int) []byte {
	s.limit = limit
	dst = s.Append(dst, t, r)
	s.limit = s.opt.MaxString
	return dst
}

// Append appends the Data Record of r in the layout of t.
func (s *Set) Append(dst []byte, t *Template, r *flowcache.Record) []byte {
	c := &s.ctx
	c.rec = r
	for i := range t.steps {
		st := &t.steps[i]
		switch st.op {
		case op8:
			dst = append(dst, byte(st.number(c)))
		case op16:
			dst = binary.BigEndian.AppendUint16(dst, uint16(st.number(c)))
		case op32:
			dst = binary.BigEndian.AppendUint32(dst, uint32(st.number(c)))
		case op64:
			dst = binary.BigEndian.AppendUint64(dst, st.number(c))
		case opIPv4:
			dst = append(dst, st.address(c)[12:]...)
		case opIPv6:
			dst = append(dst, st.address(c)[:]...)
		case opString:
			dst = AppendString(dst, st.text(c), min(int(st.length), s.limit))
		case opFixed:
			dst = appendFixed(dst, st.text(c), int(st.length))
		}
	}
	c.rec = nil
	return dst
}

// AppendString appends a string of variable length (RFC 7011, section 7): at most limit octets, well-formed UTF-8, no NUL. What
// is ill-formed, paths may be any octets, becomes U+FFFD.
func AppendString(dst []byte, s string, limit int) []byte {
	s = Cut(s, limit)
	if !clean(s) {
		s = Cut(scrub(s), limit)
	}
	if len(s) < 255 {
		dst = append(dst, byte(len(s)))
	} else {
		dst = append(dst, 255, byte(len(s)>>8), byte(len(s)))
	}
	return append(dst, s...)
}

// appendFixed appends a string of fixed length, filled up with NUL.
func appendFixed(dst []byte, s string, length int) []byte {
	s = Cut(s, length)
	if !clean(s) {
		s = Cut(scrub(s), length)
	}
	dst = append(dst, s...)
	for range length - len(s) {
		dst = append(dst, 0)
	}
	return dst
}

// Cut shortens s to at most limit octets, between two runes.
func Cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for i := 0; i < utf8.UTFMax && limit > 0 && !utf8.RuneStart(s[limit]); i++ {
		limit--
	}
	return s[:limit]
}

// clean reports whether s may be sent as it is.
func clean(s string) bool {
	for i := range len(s) {
		if c := s[i]; c == 0 || c >= utf8.RuneSelf {
			return c != 0 && utf8.ValidString(s) && !hasNUL(s[i:])
		}
	}
	return true
}

func hasNUL(s string) bool {
	for i := range len(s) {
		if s[i] == 0 {
			return true
		}
	}
	return false
}

// scrub replaces NUL and what is not UTF-8 by U+FFFD.
func scrub(s string) string {
	b := make([]rune, 0, len(s))
	for _, r := range s { // an ill-formed octet ranges as U+FFFD
		if r == 0 {
			r = utf8.RuneError
		}
		b = append(b, r)
	}
	return string(b)
}
