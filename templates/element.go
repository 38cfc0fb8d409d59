package templates

import (
	"bytes"
	_ "embed"
	"encoding/csv"
	"fmt"
	"strconv"
	"strings"
	"sync"
)

// Private enterprise numbers.
const (
	PENIANA    = 0
	PENReverse = 29305 // reverse Information Elements, RFC 5103 section 6.1
	PENNtop    = 35632
	PENAntrea  = 56506
	PENExample = 32473 // RFC 5612: the native elements' until the project owns one
)

// Type is an abstract data type of RFC 7012, numbered as informationElementDataType (RFC 5610, section 3.1).
type Type uint8

// Types in use.
const (
	OctetArray   Type = 0
	Unsigned8    Type = 1
	Unsigned16   Type = 2
	Unsigned32   Type = 3
	Unsigned64   Type = 4
	String       Type = 13
	Milliseconds Type = 15
	IPv4Address  Type = 18
	IPv6Address  Type = 19
)

var typeNames = map[string]Type{
	"octetArray": OctetArray, "unsigned8": Unsigned8, "unsigned16": Unsigned16, "unsigned32": Unsigned32, "unsigned64": Unsigned64,
	"string": String, "dateTimeMilliseconds": Milliseconds, "ipv4Address": IPv4Address, "ipv6Address": IPv6Address,
}

// String returns the name of RFC 7012, section 3.1.
func (t Type) String() string { return nameOf(typeNames, t) }

// Octets is the length of a value in octets, or Variable.
func (t Type) Octets() uint16 {
	switch t {
	case Unsigned8:
		return 1
	case Unsigned16:
		return 2
	case Unsigned32, IPv4Address:
		return 4
	case Unsigned64, Milliseconds:
		return 8
	case IPv6Address:
		return 16
	}
	return Variable
}

// Variable is the field length that announces variable length (RFC 7011, section 7).
const Variable = 65535

// Semantics is informationElementSemantics (RFC 5610, section 3.6).
type Semantics uint8

// Semantics in use.
const (
	Default      Semantics = 0
	Quantity     Semantics = 1
	TotalCounter Semantics = 2
	DeltaCounter Semantics = 3
	Identifier   Semantics = 4
	Flags        Semantics = 5
)

var semanticsNames = map[string]Semantics{
	"default": Default, "quantity": Quantity, "totalCounter": TotalCounter, "deltaCounter": DeltaCounter, "identifier": Identifier, "flags": Flags,
}

// String returns the name of RFC 7012, section 3.2.
func (s Semantics) String() string { return nameOf(semanticsNames, s) }

// Units is informationElementUnits (RFC 5610, section 3.7).
type Units uint16

var unitNames = map[string]Units{
	"none": 0, "bits": 1, "octets": 2, "packets": 3, "flows": 4, "seconds": 5, "milliseconds": 6, "microseconds": 7, "messages": 10,
}

// String returns the name of IANA's registry of units.
func (u Units) String() string { return nameOf(unitNames, u) }

func nameOf[T comparable](names map[string]T, v T) string {
	for n, t := range names {
		if t == v {
			return n
		}
	}
	return fmt.Sprint("unknown ", any(v))
}

// Number names an element: its id and whose registry that is in. The zero value is none.
type Number struct {
	PEN uint32
	ID  uint16
}

// Element is a line of the registry, elements.csv: an Information Element, and its numbers.
type Element struct {
	Name        string
	Type        Type
	Semantics   Semantics
	Units       Units
	IANA        uint16 // IANA's number, 0 none
	Reverse     bool   // it is the reverse of the IANA element (RFC 5103)
	Native      uint16 // the project's own number, 0 none
	Known       Number // another enterprise's number that collectors know; zero: the native one
	V9          uint16 // NetFlow v9 field type where it is not the IANA number
	V9Octets    uint16 // NetFlow v9: length of a string
	Description string // one line of ASCII
}

// The registry is append-only: a number, once used, keeps its meaning.
//
//go:embed elements.csv
var elementsCSV []byte

var registry = sync.OnceValues(func() ([]Element, error) { return parseElements(elementsCSV) })

// Elements returns the registry.
func Elements() ([]Element, error) { return registry() }

func parseElements(data []byte) ([]Element, error) {
	rows, err := csv.NewReader(bytes.NewReader(data)).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("parse elements: %w", err)
	}
	l := make([]Element, 0, len(rows))
	for _, row := range rows[min(1, len(rows)):] {
		e, err := parseElement(row)
		if err != nil {
			return nil, fmt.Errorf("element %s: %w", row[0], err)
		}
		l = append(l, e)
	}
	return l, nil
}

func parseElement(row []string) (Element, error) {
	if len(row) != 10 {
		return Element{}, fmt.Errorf("%d columns, not 10", len(row))
	}
	e := Element{Name: row[0], Description: row[9]}
	var ok [3]bool
	e.Type, ok[0] = typeNames[row[1]]
	e.Semantics, ok[1] = semanticsNames[row[2]]
	e.Units, ok[2] = unitNames[row[3]]
	for i, name := range []string{"type", "semantics", "units"} {
		if !ok[i] {
			return e, fmt.Errorf("unknown %s %q", name, row[1+i])
		}
	}
	var err error
	number := func(s string, bits int) uint64 {
		if s == "" || err != nil {
			return 0
		}
		var n uint64
		n, err = strconv.ParseUint(s, 10, bits)
		return n
	}
	iana, reverse := strings.CutPrefix(row[4], "r")
	e.IANA, e.Reverse = uint16(number(iana, 15)), reverse
	e.Native = uint16(number(row[5], 15))
	if pen, id, found := strings.Cut(row[6], ":"); found {
		e.Known = Number{uint32(number(pen, 32)), uint16(number(id, 15))}
	} else if row[6] != "" {
		return e, fmt.Errorf("%q is not PEN:id", row[6])
	}
	e.V9 = uint16(number(row[7], 16))
	e.V9Octets = uint16(number(row[8], 16))
	if err == nil && e.IANA == 0 && e.Native == 0 {
		err = fmt.Errorf("no number")
	}
	return e, err
}

// NtopV9 is where ntop's elements begin in NetFlow v9, which has no enterprise numbers.
const NtopV9 = 57472

// Number is the element's number under opt, and whether it has one.
func (e *Element) Number(opt Options) (Number, bool) {
	opt = opt.withDefaults()
	switch {
	case opt.V9 && e.V9 >= NtopV9 && opt.Dialect != Known:
		return Number{}, false
	case opt.V9 && (e.Reverse || e.V9 != 0):
		return Number{ID: e.V9}, e.V9 != 0
	case e.Reverse:
		return Number{PENReverse, e.IANA}, opt.Dialect != IANA
	case e.IANA != 0:
		return Number{ID: e.IANA}, true
	case opt.Dialect == IANA:
		return Number{}, false
	case opt.V9 && opt.Dialect == Known && e.Known.PEN == PENNtop:
		return Number{ID: NtopV9 + e.Known.ID}, true
	case opt.V9:
		return Number{ID: opt.V9Base + e.Native}, true
	case opt.Dialect == Known && e.Known != Number{}:
		return e.Known, true
	}
	return Number{opt.PEN, e.Native}, true
}

// Length is the length of the element's field in octets under opt, or Variable.
func (e *Element) Length(opt Options) uint16 {
	switch {
	case e.Name == "paddingOctets" && !opt.V9:
		return Variable
	case e.Type == OctetArray: // applicationId
		return 4
	case e.Type == String && opt.V9:
		if opt.MaxString != 0 {
			return uint16(opt.MaxString)
		}
		return e.V9Octets
	case e.Name == "tcpControlBits" || e.Name == "reverseTcpControlBits":
		// One octet: pmacct reads 0 from two. Reduced-size encoding of unsigned16 is legal (RFC 7011, section 6.2).
		return 1
	}
	return e.Type.Octets()
}
