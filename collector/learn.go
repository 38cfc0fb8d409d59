package collector

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sockflow/sockflow/templates"
)

// typeFields says which fields of an Options Template make its records type records (RFC 5610, section 3.9).
type typeFields struct{ pen, id, typ, name int }

// Elements of type records.
const (
	informationElementID       = 303
	informationElementDataType = 339
	informationElementName     = 341
	privateEnterpriseNumber    = 346
)

// findTypeFields returns nil for a template of other records.
func findTypeFields(t *Template) *typeFields {
	f := typeFields{-1, -1, -1, -1}
	for i := range t.Fields {
		if t.Fields[i].PEN != 0 {
			continue
		}
		switch t.Fields[i].ID {
		case privateEnterpriseNumber:
			f.pen = i
		case informationElementID:
			f.id = i
		case informationElementDataType:
			f.typ = i
		case informationElementName:
			f.name = i
		}
	}
	if f.pen < 0 || f.id < 0 || f.typ < 0 || f.name < 0 {
		return nil
	}
	return &f
}

// maxName is of a learned name, octets.
const maxName = 128

// learn takes the name of an enterprise element from a type record. What IANA has named needs no other name.
func (s *Session) learn(at *typeFields, values [][]byte) {
	pen, ok1 := unsigned(values[at.pen])
	id, ok2 := unsigned(values[at.id])
	typ, ok3 := unsigned(values[at.typ])
	name := strings.TrimRight(string(values[at.name]), "\x00")
	n := templates.Number{PEN: uint32(pen), ID: uint16(id) & 0x7fff}
	if !ok1 || !ok2 || !ok3 || pen == 0 || pen > 1<<32-1 || pen == templates.PENReverse || id > 65535 || !goodName(name) {
		s.stats.Ignored++
		return
	}
	if typ >= uint64(len(typeNames)) {
		typ = uint64(octetArray)
	}
	e := Element{n, name, templates.Type(typ), true}
	old := s.learned[n]
	if old != nil && *old == e {
		return
	}
	if old == nil && !s.take(elementCost) {
		s.stats.Refused++
		return
	}
	s.learned[n] = &e
	s.generation++
}

const elementCost = 128 + maxName

// goodName says whether a name may stand in an output that people read. Those with @ are of the message.
func goodName(s string) bool {
	if s == "" || s[0] == '@' || len(s) > maxName || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}
