package templates

import (
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

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
	CommandLine bool   // command lines are known
	Aggregates  bool   // records may stand for several flows
	Node        string // name of this host
	V9          bool   // NetFlow v9: fixed lengths, no enterprise numbers
	V9Base      uint16 // first type of the native elements in v9; default 30000
	MaxString   int    // longest string in octets; default 1024, in v9 the element's own length
	Padding     bool   // records end with paddingOctets, so that messages can have one length; not in v9
	MaxRecord   int    // v9: longest record in octets, for its strings cannot be cut one by one; default 1372
	// Fields changes which fields records have: "+name,-name"; a name without its source or destination stands for both.
	Fields string
	// Programs makes applicationId stand for the programs at the ends of a flow, instead of the responder's port: see Set.Application.
	Programs bool
}

func (o Options) withDefaults() Options {
	if o.PEN == 0 {
		o.PEN = PENExample
	}
	if o.V9Base == 0 {
		o.V9Base = 30000
	}
	if o.MaxString == 0 && !o.V9 {
		o.MaxString = 1024
	}
	if o.MaxRecord == 0 && o.V9 {
		o.MaxRecord = 1372 // of a message of 1400
	}
	if o.Dialect == IANA {
		o.Uniflow = true // the reverse elements have an enterprise number
	}
	return o
}

// Field is a Field Specifier (RFC 7011, section 3.2).
type Field struct {
	Number
	Length  uint16 // octets, or Variable
	Element *Element
}

// Template is compiled: its fields and how to append each.
type Template struct {
	ID     uint16
	Fields []Field
	Keys   uint64 // flowKeyIndicator: bit n is set if field n is a Flow Key (RFC 7011, section 4.4)
	Fixed  int    // octets of a record beside the strings of variable length
	// The last field is paddingOctets, of variable length and empty.
	Padding bool
	steps   []step
}

// step appends one field, or the fields of a run.
type step struct {
	op      op
	octets  int
	put     func(*context, []byte, *flowcache.Record)
	number  func(*context, *flowcache.Record) uint64
	text    func(*context, *flowcache.Record) string
	texts   func([]byte, *flowcache.Record, int) []byte
	same    []byte // encoded
	address func(*flowcache.Record) *flowcache.Addr
}

type op uint8

const (
	opRun   op = iota // of fixed length
	opTexts           // a run of strings
	opText
	opSame // a string that is the same in every record
	opFixedText
	opNumber
	opIPv4
	opIPv6
)

// Set is the templates of one exporter, one for each kind of record that it met. It belongs to one goroutine.
type Set struct {
	opt     Options
	fields  []field // of every kind
	added   map[string]bool
	page    uint16
	layout  uint32 // a hash of the fields
	runs    []run
	kinds   [kinds]*Template
	list    []*Template
	ctx     context
	swapped flowcache.Record

	applications bool // some templates have applicationId
}

// MaxFields is what Wireshark takes in a template by default (preference cflow.max_template_fields).
const MaxFields = 60

// FirstID is the least id of a template of flow records; below are those of options records.
const FirstID = kinds

const pages = 65536/kinds - 1

// Follow makes the template ids of s others than those of a set before it in the same session, unless both have one layout. It is called before For.
func (s *Set) Follow(before *Set) {
	if s.layout != before.layout && s.page == before.page {
		s.page = FirstID + (s.page-FirstID+kinds)%(pages*kinds)
	}
}

// Page is a number, of 63, that differs from that of a set with another layout before it.
func (s *Set) Page() int { return int(s.page-FirstID) / kinds }

// New prepares the templates. Their ids are a function of their layout alone.
func New(opt Options) (*Set, error) {
	opt = opt.withDefaults()
	if opt.MaxString < 0 || opt.MaxString >= Variable {
		return nil, fmt.Errorf("string length %d: must be less than %d", opt.MaxString, Variable)
	}
	elements, err := Elements()
	if err != nil {
		return nil, err
	}
	byName := map[string]*Element{}
	for i := range elements {
		byName[elements[i].Name] = &elements[i]
	}
	s := &Set{opt: opt, runs: flowRuns(), ctx: context{node: opt.Node, programs: opt.Programs}, added: map[string]bool{}}
	all := flowFields()
	removed, err := s.changes(all)
	if err != nil {
		return nil, err
	}
	layout := fnv.New32a()
	fmt.Fprintln(layout, opt.MaxRecord)
	numbers := map[Number]string{}
	for _, f := range all {
		f.element = byName[f.name]
		if f.element == nil {
			return nil, fmt.Errorf("field %s is not in the registry", f.name)
		}
		n, ok := f.element.Number(opt)
		if !ok && s.added[f.name] {
			return nil, fmt.Errorf("field %s has no number in this dialect", f.name)
		}
		if !ok || removed[f.name] || !s.added[f.name] && !opt.has(f.on) {
			continue
		}
		if other, twice := numbers[n]; twice {
			return nil, fmt.Errorf("fields %s and %s are both number %d of enterprise %d", other, f.name, n.ID, n.PEN)
		}
		numbers[n] = f.name
		s.fields = append(s.fields, f)
		fmt.Fprintln(layout, f.name, n, f.element.Length(opt))
	}
	// Kinds have 1024 ids, so that no two collide; which ones changes with the layout, so that a collector that remembers
	// templates takes none for another.
	s.layout = layout.Sum32()
	s.page = FirstID + kinds*uint16(s.layout%pages)
	s.applications = s.Has("applicationId")
	return s, s.check()
}

// check makes sure that every kind can be compiled: those with the most fields can.
func (s *Set) check() error {
	for class := classTCP; class <= classOther; class++ {
		for _, v6 := range []bool{false, true} {
			t := s.compile(makeKind(v6, class, endPod, endPod, true))
			if len(t.Fields) > MaxFields {
				return fmt.Errorf("a record can have %d fields, and Wireshark takes %d: add fewer, or remove some", len(t.Fields), MaxFields)
			}
			for _, source := range []int{endNone, endKernel} {
				if t := s.compile(makeKind(v6, class, source, endNone, false)); len(t.Fields) == 0 {
					return errors.New("a record can be without fields: remove fewer")
				}
			}
		}
	}
	return nil
}

// has reports whether the options include fields of presence p that a collector's URL does not name.
func (o *Options) has(p presence) bool {
	switch p {
	case commandLine:
		return o.CommandLine
	case aggregates:
		return o.Aggregates
	case ianaOnly:
		return o.Dialect == IANA
	case application:
		return o.Dialect == IANA || o.Programs
	case v9Only:
		return o.V9
	case notV9:
		return !o.V9
	case biflow:
		return !o.Uniflow
	case padding:
		return o.Padding && !o.V9
	}
	return p == always
}

// changes reads Options.Fields into s.added and what is removed.
func (s *Set) changes(all []field) (removed map[string]bool, err error) {
	removed = map[string]bool{}
	for change := range strings.SplitSeq(s.opt.Fields, ",") {
		change = strings.TrimSpace(change)
		if change == "" {
			continue
		}
		name, remove := strings.CutPrefix(change, "-")
		name = strings.TrimPrefix(name, "+")
		found := false
		for _, f := range all {
			if f.name != name && !isEnd(f.name, name) {
				continue
			}
			found = true
			switch {
			case remove:
				removed[f.name] = true
				delete(s.added, f.name)
			case f.on == commandLine && !s.opt.CommandLine:
				return nil, fmt.Errorf("field %s needs --cmdline", f.name)
			case f.on == aggregates && !s.opt.Aggregates:
				return nil, fmt.Errorf("field %s needs --aggregate-ports", f.name)
			case (f.on == v9Only || f.on == notV9 || f.on == biflow || f.on == padding) && !s.opt.has(f.on):
				return nil, fmt.Errorf("field %s cannot be in these records", f.name)
			default:
				s.added[f.name] = true
				delete(removed, f.name)
			}
		}
		if !found {
			return nil, fmt.Errorf("field %q: no flow record has it", name)
		}
	}
	return removed, nil
}

// isEnd reports whether field is name with source or destination before it, as sourceProcessId is of processId.
func isEnd(field, name string) bool {
	for _, prefix := range []string{"source", "destination"} {
		if rest, ok := strings.CutPrefix(field, prefix); ok && strings.EqualFold(rest, name) {
			return true
		}
	}
	return false
}

// Templates returns the templates of the kinds of records met so far, in that order.
func (s *Set) Templates() []*Template { return s.list }

// GiveWay lists the fields that are left out of templates with more than MaxFields, first to last.
func GiveWay() []string { return slices.Clone(giveWay) }

// Options returns what the set was made of, with the defaults filled in.
func (s *Set) Options() Options { return s.opt }

// Has reports whether some template can have the named field.
func (s *Set) Has(name string) bool {
	return slices.ContainsFunc(s.fields, func(f field) bool { return f.name == name })
}

// SetUptime sets the time at which sysUptime was 0, in Unix nanoseconds (NetFlow v9 only).
func (s *Set) SetUptime(zero int64) { s.ctx.uptime = zero }

// For returns the template of a record.
func (s *Set) For(r *flowcache.Record) *Template {
	return s.of(kindOf(r))
}

func (s *Set) of(k kind) *Template {
	if s.opt.Dialect == IANA {
		k = k.fold()
	}
	if t := s.kinds[k]; t != nil {
		return t
	}
	t := s.compile(k)
	s.list = append(s.list, t)
	s.kinds[k] = t
	return t
}

// Common compiles the templates of kinds of records that nearly every host has: TCP and other ports over IPv4 and IPv6, with a process at one end
// or at both.
func (s *Set) Common() {
	for _, v6 := range []bool{false, true} {
		for _, class := range []int{classTCP, classPorts} {
			for _, ends := range [][2]int{{endHost, endNone}, {endNone, endHost}, {endHost, endHost}} {
				s.of(makeKind(v6, class, ends[0], ends[1], false))
			}
		}
	}
}

// Opposite returns the record of the other direction, if r has one and s makes a record for each direction. It is valid
// until the next call.
func (s *Set) Opposite(r *flowcache.Record) *flowcache.Record {
	if !s.opt.Uniflow || r.Reverse.Packets == 0 && r.Reverse.Octets == 0 {
		return nil
	}
	w := &s.swapped
	s.ctx.opposite = w
	*w = *r
	w.Key = r.Key.Reverse()
	w.Forward, w.Reverse = r.Reverse, r.Forward
	w.Control, w.ControlBack = r.ControlBack, r.Control
	w.Flows, w.FlowsBack = r.FlowsBack, r.Flows
	w.Reordered, w.ReverseReordered = r.ReverseReordered, r.Reordered
	w.Source, w.Dest = r.Dest, r.Source
	w.Post = flowcache.Translation{Src: r.Post.Dst, Dst: r.Post.Src, SrcPort: r.Post.DstPort, DstPort: r.Post.SrcPort}
	return w
}
