package templates

import "github.com/sockflow/sockflow/flowcache"

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
	Unsigned8    Type = 1
	Unsigned16   Type = 2
	Unsigned32   Type = 3
	Unsigned64   Type = 4
	String       Type = 13
	Milliseconds Type = 15
	IPv4Address  Type = 18
	IPv6Address  Type = 19
)

func (t Type) octets() uint16 {
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
	DeltaCounter Semantics = 3
	Identifier   Semantics = 4
	Flags        Semantics = 5
)

// Units is informationElementUnits (RFC 5610, section 3.7).
type Units uint16

// Units in use.
const (
	NoUnits    Units = 0
	Octets     Units = 2
	Packets    Units = 3
	MilliUnits Units = 6
	MicroUnits Units = 7
)

// Number names an element: its id and whose registry that is in. The zero value is none.
type Number struct {
	PEN uint32
	ID  uint16
}

// element is a line of the registry: what a Record can tell, and under which numbers.
type element struct {
	name      string
	typ       Type
	semantics Semantics
	units     Units
	iana      uint16 // IANA's number, 0 none
	reverse   bool   // it is the reverse of the IANA element
	native    uint16 // the project's own number, 0 none
	known     Number // somebody else's that collectors know; zero: the native one
	v9        uint16 // NetFlow v9 type where it is not the IANA number
	v9Length  uint16 // of strings, octets

	number  func(*context) uint64
	text    func(*context) string
	address func(*context) *flowcache.Addr
}

// context is what the functions of the elements see.
type context struct {
	rec    *flowcache.Record
	node   string
	uptime int64 // Unix nanoseconds at which sysUptime was 0 (NetFlow v9)
}
