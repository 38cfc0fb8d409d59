package collector

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/sockflow/sockflow/templates"
)

// Field is a field of a Template.
type Field struct {
	templates.Number
	Length  uint16   // octets; templates.Variable: each value says its own
	Element *Element // nil where neither the registry nor a type record describes it
}

// Name is the element's name, or "PEN:number" of one that is not known.
func (f *Field) Name() string {
	if f.Element != nil {
		return f.Element.Name
	}
	return fmt.Sprintf("%d:%d", f.PEN, f.ID)
}

// Type is the element's abstract data type; that of one that is not known is octetArray.
func (f *Field) Type() templates.Type {
	if f.Element != nil {
		return f.Element.Type
	}
	return octetArray
}

// Template is a Template or an Options Template. It does not change: names that are learned later make a new one.
type Template struct {
	ID      uint16
	Options bool // its records are options data
	Scope   int  // of an Options Template, how many of the first fields are its scope
	Fields  []Field
	MinSize int // of a record, octets; never 0
	v9      bool
	types   *typeFields // where a type record (RFC 5610) has its fields; nil if it is none
	keys    []string    // see name
	// absolute says for each of uptimes that no field has the name of the time that is reckoned from it.
	absolute [len(uptimes)]bool
	// structured says that a field is a list (RFC 6313).
	structured bool
}

// Index returns the place of the first field of that name, -1 if there is none. Those that the registry names come
// first.
func (t *Template) Index(name string) int {
	learned := -1
	for i := range t.Fields {
		switch f := &t.Fields[i]; {
		case f.Element == nil && f.Name() == name, f.Element != nil && f.Element.Name == name && !f.Element.learned:
			return i
		case f.Element != nil && f.Element.Name == name && learned < 0:
			learned = i
		}
	}
	return learned
}

// held is a template of a session.
type held struct {
	*Template
	refreshed  time.Time
	generation int // of the names that its fields have
}

// cost is about what a template takes of memory, in octets.
func (t *Template) cost() int { return 160 + 80*len(t.Fields) }

// parseTemplate reads a Template Record or an Options Template Record (RFC 7011, section 3.4; RFC 3954, sections 5.2 and 6.1) at the
// begin of b, and how many octets it takes. A nil template with a number of octets is a withdrawal of id.
func (s *Session) parseTemplate(b []byte, v9, options bool) (t *Template, id uint16, octets int, err error) {
	bad := func(format string, args ...any) (*Template, uint16, int, error) {
		return nil, id, 0, malformed(CauseTemplate, format, args...)
	}
	id = binary.BigEndian.Uint16(b)
	count, at := int(binary.BigEndian.Uint16(b[2:])), 4
	scope := 0
	switch {
	case options && v9: // the lengths of the two groups in octets
		scope = count / 4
		count = scope + int(binary.BigEndian.Uint16(b[4:]))/4
		at = 6
	case count == 0 && !v9:
		return nil, id, at, nil
	case options:
		if len(b) < 6 {
			return bad("options template %d ends in its header", id)
		}
		scope, at = int(binary.BigEndian.Uint16(b[4:])), 6
		if scope == 0 || scope > count {
			return bad("options template %d has %d scope fields of %d", id, scope, count)
		}
	}
	if id < 256 {
		return bad("template id %d is less than 256", id)
	}
	if 4*count > len(b)-at {
		return bad("template %d of %d fields is longer than its set", id, count)
	}
	t = &Template{ID: id, Options: options, Scope: scope, Fields: make([]Field, count), v9: v9}
	empty := 0
	for i := range t.Fields {
		f := &t.Fields[i]
		if len(b)-at < 4 {
			return bad("template %d is longer than its set", id)
		}
		f.ID, f.Length = binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:])
		at += 4
		if f.ID&0x8000 != 0 && !v9 {
			if len(b)-at < 4 {
				return bad("template %d is longer than its set", id)
			}
			f.ID, f.PEN = f.ID&0x7fff, binary.BigEndian.Uint32(b[at:])
			at += 4
		}
		switch {
		case f.Length == templates.Variable: // in NetFlow v9 too, where it has no meaning: H3C sends it so
			t.MinSize++
		case f.Length == 0:
			empty++
		default:
			t.MinSize += int(f.Length)
		}
	}
	// Records without octets would have no end, and fields without octets could stand for any number of values.
	if t.MinSize == 0 || empty > t.MinSize {
		return bad("template %d has %d fields and %d octets", id, count, t.MinSize)
	}
	s.name(t)
	if options && !v9 {
		t.types = findTypeFields(t)
	}
	return t, id, at, nil
}

// name finds the elements of the fields.
func (s *Session) name(t *Template) {
	for i := range t.Fields {
		f := &t.Fields[i]
		switch {
		case t.v9 && i < t.Scope:
			f.Element = nil
			if int(f.ID) < len(scopeV9) {
				f.Element = scopeV9[f.ID]
			}
		case t.v9:
			f.Element = s.cfg.Registry.lookupV9(f.ID)
		default:
			f.Element = s.element(f.Number)
		}
	}
	t.name()
}

// element returns what is known of an element: what its own exporter says comes first. It is nil if nothing is.
func (s *Session) element(n templates.Number) *Element {
	if e := s.learned[n]; e != nil {
		return e
	}
	return s.cfg.Registry.lookup(n)
}

// renamed returns t with the names that are known now.
func (s *Session) renamed(t *Template) *Template {
	n := *t
	n.Fields = append([]Field(nil), t.Fields...)
	s.name(&n)
	return &n
}
