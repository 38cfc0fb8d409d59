package collector

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"

	"github.com/sockflow/sockflow/templates"
)

// Abstract data types of RFC 7012 and RFC 6313, numbered as informationElementDataType (RFC 5610, section 3.1).
const (
	octetArray           templates.Type = 0
	unsigned8            templates.Type = 1
	unsigned64           templates.Type = 4
	signed8              templates.Type = 5
	signed64             templates.Type = 8
	float32Type          templates.Type = 9
	float64Type          templates.Type = 10
	boolean              templates.Type = 11
	macAddress           templates.Type = 12
	stringType           templates.Type = 13
	dateTimeSeconds      templates.Type = 14
	dateTimeMilliseconds templates.Type = 15
	dateTimeMicroseconds templates.Type = 16
	dateTimeNanoseconds  templates.Type = 17
	ipv4Address          templates.Type = 18
	ipv6Address          templates.Type = 19
	basicList            templates.Type = 20
	subTemplateList      templates.Type = 21
	subTemplateMultiList templates.Type = 22
	unsigned256          templates.Type = 23 // RFC 9740: sets of bits, and shown as octets
)

var typeNames = [...]string{
	"octetArray", "unsigned8", "unsigned16", "unsigned32", "unsigned64", "signed8", "signed16", "signed32", "signed64", "float32", "float64",
	"boolean", "macAddress", "string", "dateTimeSeconds", "dateTimeMilliseconds", "dateTimeMicroseconds", "dateTimeNanoseconds",
	"ipv4Address", "ipv6Address", "basicList", "subTemplateList", "subTemplateMultiList", "unsigned256",
}

// Element is an Information Element as the collector knows it.
type Element struct {
	templates.Number
	Name    string
	Type    templates.Type
	learned bool // by a type record
}

// Registry holds the elements that need no description on the wire: IANA's and their reverses (RFC 5103), those of
// other vendors that are well known, and those of package templates. It does not change, and sessions may share it.
type Registry struct {
	elements map[templates.Number]*Element
	v9Base   uint16
	pen      uint32
	fixed    map[uint16]*fixedFormat // of NetFlow v1, v5 and v7
}

// ntopV9 is where ntop's elements begin in NetFlow v9, which has no enterprise numbers.
const ntopV9 = 57472

// iana.txt is IANA's registry (www.iana.org/assignments/ipfix), number, type and name a line, after a line with its
// date.
//
//go:embed iana.txt
var iana string

// vendors.txt has the elements of other enterprises, in the same form with PEN/number. Those of enterprise 0 are field
// types of NetFlow v9 beyond the elements' numbers: Cisco's firewalls and Palo Alto's.
//
//go:embed vendors.txt
var vendors string

const datePrefix = "# updated "

// NewRegistry returns the registry in which pen is the enterprise of the native elements, and v9Base their first field type in NetFlow
// v9. Zero values stand for the defaults of package templates.
func NewRegistry(pen uint32, v9Base uint16) (*Registry, error) {
	if pen == 0 {
		pen = templates.PENExample
	}
	if v9Base == 0 {
		v9Base = 30000
	}
	r := &Registry{elements: map[templates.Number]*Element{}, v9Base: v9Base, pen: pen}
	for line := range strings.Lines(vendors) {
		e, err := parseElement(strings.TrimSpace(line))
		if err != nil {
			return nil, err
		}
		r.elements[e.Number] = e
	}
	for line := range strings.Lines(iana) {
		if strings.HasPrefix(line, datePrefix) {
			continue
		}
		e, err := parseElement(strings.TrimSpace(line))
		if err != nil {
			return nil, err
		}
		r.elements[e.Number] = e
		back := &Element{Number: templates.Number{PEN: templates.PENReverse, ID: e.ID}, Name: "reverse" + strings.ToUpper(e.Name[:1]) + e.Name[1:], Type: e.Type}
		r.elements[back.Number] = back
	}
	elements, err := templates.Elements()
	if err != nil {
		return nil, err
	}
	for _, dialect := range []templates.Dialect{templates.Known, templates.Native} {
		for _, e := range elements {
			n, ok := e.Number(templates.Options{Dialect: dialect, PEN: pen})
			if ok && n.PEN != templates.PENIANA && n.PEN != templates.PENReverse {
				r.elements[n] = &Element{Number: n, Name: e.Name, Type: e.Type}
			}
		}
	}
	r.fixed = map[uint16]*fixedFormat{}
	for i := range fixedFormats {
		r.fixed[fixedFormats[i].version] = r.fixedFormat(&fixedFormats[i])
	}
	return r, nil
}

// parseElement reads a line of iana.txt or vendors.txt: number or PEN/number, type, name.
func parseElement(line string) (*Element, error) {
	f := strings.Fields(line)
	if len(f) == 3 {
		first, number, ofVendor := strings.Cut(f[0], "/")
		bits, pen, err := 15, uint64(0), error(nil)
		if !ofVendor {
			number = first
		} else if pen, err = strconv.ParseUint(first, 10, 32); pen == 0 {
			bits = 16
		}
		if id, bad := strconv.ParseUint(number, 10, bits); bad == nil && err == nil {
			for t, name := range typeNames {
				if name == f[1] {
					return &Element{Number: templates.Number{PEN: uint32(pen), ID: uint16(id)}, Name: f[2], Type: templates.Type(t)}, nil
				}
			}
		}
	}
	return nil, fmt.Errorf("line %q: must be number, type and name of an element", line)
}

// lookup returns the element of a number in an IPFIX message, nil if it is not known.
func (r *Registry) lookup(n templates.Number) *Element { return r.elements[n] }

// lookupV9 returns the element of a NetFlow v9 field type. Small ones are IANA's; ntop, others and we have ranges of
// our own.
func (r *Registry) lookupV9(id uint16) *Element {
	if e := r.elements[templates.Number{ID: id}]; e != nil {
		return e
	}
	if id >= ntopV9 {
		return r.elements[templates.Number{PEN: templates.PENNtop, ID: id - ntopV9}]
	}
	if id > r.v9Base {
		return r.elements[templates.Number{PEN: r.pen, ID: id - r.v9Base}]
	}
	return nil
}

// scopeV9 are the scopes of NetFlow v9 options (RFC 3954, section 6.1), which are not numbers of elements.
var scopeV9 = [...]*Element{
	1: {Name: "scopeSystem", Type: octetArray},
	2: {Name: "scopeInterface", Type: unsigned64},
	3: {Name: "scopeLineCard", Type: unsigned64},
	4: {Name: "scopeCache", Type: octetArray},
	5: {Name: "scopeTemplate", Type: unsigned64},
}
