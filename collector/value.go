package collector

import (
	"encoding/binary"
	"math"
	"net"
	"net/netip"
	"time"

	"github.com/sockflow/sockflow/templates"
)

// Semantic says how the members of a list belong together (RFC 6313, section 4.4).
type Semantic uint8

func (s Semantic) String() string {
	switch s {
	case 0:
		return "noneOf"
	case 1:
		return "exactlyOneOf"
	case 2:
		return "oneOrMoreOf"
	case 3:
		return "allOf"
	case 4:
		return "ordered"
	}
	return "undefined"
}

// List is a basicList: values of one element.
type List struct {
	Semantic Semantic
	Field    Field
	Values   []any
}

// Records is a subTemplateList or a subTemplateMultiList: records of one or more templates.
type Records struct {
	Semantic Semantic
	List     []Record
}

// maxDepth is of lists in lists.
const maxDepth = 4

// typed returns a value, and the octets themselves if they cannot be of that type.
func (r *Record) typed(t templates.Type, b []byte, depth int) any {
	switch {
	case t >= unsigned8 && t <= unsigned64:
		if n, ok := unsigned(b); ok {
			return n
		}
	case t >= signed8 && t <= signed64:
		if n, ok := unsigned(b); ok {
			shift := 64 - 8*len(b)
			return int64(n<<shift) >> shift
		}
	case t == stringType:
		return text(b)
	case t == ipv4Address && len(b) == 4, t == ipv6Address && len(b) == 16:
		a, _ := netip.AddrFromSlice(b)
		return a
	case t == macAddress && len(b) == 6:
		return net.HardwareAddr(b)
	case (t == float32Type || t == float64Type) && len(b) == 4:
		return float64(math.Float32frombits(binary.BigEndian.Uint32(b)))
	case t == float64Type && len(b) == 8:
		return math.Float64frombits(binary.BigEndian.Uint64(b))
	case t == boolean && len(b) == 1 && (b[0] == 1 || b[0] == 2): // RFC 7011, section 6.1.5
		return b[0] == 1
	case t == dateTimeSeconds && len(b) == 4:
		return time.Unix(int64(binary.BigEndian.Uint32(b)), 0).UTC()
	case t == dateTimeMilliseconds && len(b) == 8:
		if ms := binary.BigEndian.Uint64(b); ms < maxMilliseconds {
			return time.UnixMilli(int64(ms)).UTC()
		}
	case (t == dateTimeMicroseconds || t == dateTimeNanoseconds) && len(b) == 8:
		return ntp(binary.BigEndian.Uint64(b), t == dateTimeMicroseconds)
	case t >= basicList && t <= subTemplateMultiList && depth < maxDepth && len(b) > 0:
		if v := r.list(t, b, depth+1); v != nil {
			return v
		}
	}
	return b
}

// maxMilliseconds is the year 10000, which RFC 3339 cannot write.
const maxMilliseconds = 253402300800000

// unsigned reads a number of 1 to 8 octets: a shorter one than the type's is legal (RFC 7011, section 6.2).
func unsigned(b []byte) (uint64, bool) {
	if len(b) == 0 || len(b) > 8 {
		return 0, false
	}
	n := uint64(0)
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return n, true
}

// ntp reads a time of RFC 7011, sections 6.1.9 and 6.1.10: seconds since 1900 and a fraction. The era that begins in 2036 has the first
// bit clear (RFC 5905, section 6).
func ntp(n uint64, micro bool) time.Time {
	const since1900 = 2208988800
	seconds := int64(n >> 32)
	if n>>63 == 0 {
		seconds += 1 << 32
	}
	fraction := n & (1<<32 - 1)
	ns := int64(fraction * 1e9 >> 32)
	if micro {
		ns = int64((fraction*1e6+1<<31)>>32) * 1e3 // its low 11 bits are not sent
	}
	return time.Unix(seconds-since1900, ns).UTC()
}

// list decodes structured data (RFC 6313, section 4.5), nil if it cannot be.
func (r *Record) list(t templates.Type, b []byte, depth int) any {
	semantic := Semantic(b[0])
	b = b[1:]
	switch t {
	case basicList:
		return r.basicList(semantic, b, depth)
	case subTemplateList:
		if len(b) < 2 {
			return nil
		}
		if l, ok := r.records(nil, binary.BigEndian.Uint16(b), b[2:], depth); ok {
			return &Records{semantic, l}
		}
	case subTemplateMultiList:
		l := &Records{Semantic: semantic}
		for len(b) > 0 {
			if len(b) < 4 {
				return nil
			}
			n := int(binary.BigEndian.Uint16(b[2:]))
			if n < 4 || n > len(b) {
				return nil
			}
			var ok bool
			if l.List, ok = r.records(l.List, binary.BigEndian.Uint16(b), b[4:n], depth); !ok {
				return nil
			}
			b = b[n:]
		}
		return l
	}
	return nil
}

func (r *Record) basicList(semantic Semantic, b []byte, depth int) any {
	if len(b) < 4 {
		return nil
	}
	l := &List{Semantic: semantic}
	l.Field.ID, l.Field.Length = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	b = b[4:]
	if l.Field.ID&0x8000 != 0 {
		if len(b) < 4 {
			return nil
		}
		l.Field.ID, l.Field.PEN = l.Field.ID&0x7fff, binary.BigEndian.Uint32(b)
		b = b[4:]
	}
	l.Field.Element = r.domain.session.element(l.Field.Number)
	for len(b) > 0 {
		v, rest, ok := member(b, l.Field.Length)
		if !ok || len(rest) == len(b) { // without octets there is no end of members
			return nil
		}
		l.Values = append(l.Values, r.typed(l.Field.Type(), v, depth))
		b = rest
	}
	return l
}

// records appends the records of a template that b holds to l.
func (r *Record) records(l []Record, id uint16, b []byte, depth int) ([]Record, bool) {
	h := r.domain.templates[id]
	if h == nil || h.v9 {
		return nil, false
	}
	for len(b) > 0 {
		m := *r
		m.Template, m.Values, m.depth = h.Template, make([][]byte, 0, len(h.Fields)), depth
		for i := range h.Fields {
			v, rest, ok := member(b, h.Fields[i].Length)
			if !ok {
				return nil, false
			}
			m.Values = append(m.Values, v)
			b = rest
		}
		l = append(l, m)
	}
	return l, true
}

// member takes a value of the given length from the begin of b.
func member(b []byte, length uint16) (v, rest []byte, ok bool) {
	n := int(length)
	if length == templates.Variable {
		if n, b, ok = variable(b); !ok {
			return nil, b, false
		}
	}
	if n > len(b) {
		return nil, b, false
	}
	return b[:n:n], b[n:], true
}
