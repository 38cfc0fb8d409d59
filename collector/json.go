package collector

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/sockflow/sockflow/templates"
)

// AppendJSON appends the record as one JSON object: the names of its elements and their values in the order of the
// template. The names of the message's properties begin with @. Times are RFC 3339, octets are in hexadecimal, and a
// repeated element has a number after its name.
func (r *Record) AppendJSON(dst []byte) []byte {
	dst = append(dst, `{"@from":`...)
	dst = appendString(dst, r.From)
	dst = append(dst, `,"@protocol":"`...)
	if r.Version == versionIPFIX {
		dst = append(dst, "ipfix"...)
	} else {
		dst = strconv.AppendUint(append(dst, "netflow"...), uint64(r.Version), 10)
	}
	dst = append(dst, `","@time":`...)
	dst = appendTime(dst, r.ExportTime, dateTimeSeconds)
	dst = append(dst, `,"@domain":`...)
	dst = strconv.AppendUint(dst, uint64(r.Domain), 10)
	if r.Template.ID != 0 {
		dst = append(dst, `,"@template":`...)
		dst = strconv.AppendUint(dst, uint64(r.Template.ID), 10)
	}
	if r.Template.Options {
		dst = append(dst, `,"@scope":[`...)
		for i := range r.Template.Scope {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendString(dst, r.Template.Fields[i].Name())
		}
		dst = append(dst, ']')
	}
	if fields := r.appendFields(append(dst, ',')); len(fields) > len(dst)+1 {
		dst = fields
	}
	if !r.Boot.IsZero() {
		for i, u := range uptimes {
			if !r.Template.absolute[i] {
				continue
			}
			if n, ok := unsigned(r.Octets(templates.Number{ID: u.id})); ok {
				dst = append(dst, `,"`...)
				dst = append(dst, u.absolute...)
				dst = append(dst, `":`...)
				dst = appendTime(dst, r.sinceBoot(n), dateTimeMilliseconds)
			}
		}
	}
	return append(dst, '}')
}

// paddingOctets has no information.
var paddingOctets = templates.Number{ID: 210}

// appendFields appends all fields but padding as members of a JSON object, without its braces.
func (r *Record) appendFields(dst []byte) []byte {
	t, begin := r.Template, len(dst)
	for i := range t.Fields {
		if t.Fields[i].Number == paddingOctets {
			continue
		}
		if len(dst) > begin {
			dst = append(dst, ',')
		}
		dst = append(dst, t.keys[i]...)
		dst = append(dst, ':')
		dst = r.appendField(dst, i)
	}
	return dst
}

// appendField writes what is in most records without a detour through an interface.
func (r *Record) appendField(dst []byte, i int) []byte {
	t, b := r.Template.Fields[i].Type(), r.Values[i]
	switch {
	case t >= unsigned8 && t <= unsigned64:
		if n, ok := unsigned(b); ok {
			return strconv.AppendUint(dst, n, 10)
		}
	case t == stringType && plain(b):
		return append(append(append(dst, '"'), b...), '"')
	case t == ipv4Address && len(b) == 4:
		return append(netip.AddrFrom4([4]byte(b)).AppendTo(append(dst, '"')), '"')
	case t == dateTimeMilliseconds && len(b) == 8:
		if ms := binary.BigEndian.Uint64(b); ms < maxMilliseconds {
			return appendTime(dst, time.UnixMilli(int64(ms)), t)
		}
	}
	return appendValue(dst, r.Value(i), t)
}

// plain reports whether octets may stand in JSON as they are.
func plain[T string | []byte](s T) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// name gives the fields their keys: their names as JSON strings, each different. One that comes again has a number
// after it, and what the exporter has named itself comes after what the registry names, and takes no name of those.
func (t *Template) name() {
	used := make(map[string]bool, len(t.Fields))
	times := make(map[string]int, len(t.Fields))
	t.keys = make([]string, len(t.Fields))
	for _, learned := range []bool{false, true} {
		for i := range t.Fields {
			f := &t.Fields[i]
			if (f.Element != nil && f.Element.learned) != learned {
				continue
			}
			name := f.Name()
			key := name
			for used[key] || times[name] > 0 && key == name {
				times[name]++
				key = name + "#" + strconv.Itoa(times[name])
			}
			if times[name] == 0 {
				times[name] = 1
			}
			used[key] = true
			t.keys[i] = string(appendString(nil, key))
		}
	}
	for i, u := range uptimes {
		t.absolute[i] = !used[u.absolute]
	}
	t.structured = slices.ContainsFunc(t.Fields, func(f Field) bool { return f.Type() >= basicList && f.Type() <= subTemplateMultiList })
}

func appendValue(dst []byte, v any, t templates.Type) []byte {
	switch v := v.(type) {
	case uint64:
		return strconv.AppendUint(dst, v, 10)
	case int64:
		return strconv.AppendInt(dst, v, 10)
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return append(dst, "null"...) // JSON has no such numbers
		}
		return strconv.AppendFloat(dst, v, 'g', -1, 64)
	case bool:
		return strconv.AppendBool(dst, v)
	case string:
		return appendString(dst, v)
	case netip.Addr:
		return append(v.AppendTo(append(dst, '"')), '"')
	case net.HardwareAddr:
		return appendString(dst, v.String())
	case time.Time:
		return appendTime(dst, v, t)
	case []byte:
		return append(hex.AppendEncode(append(dst, '"'), v), '"')
	case *List:
		dst = append(dst, `{"semantic":"`...)
		dst = append(dst, v.Semantic.String()...)
		dst = append(dst, `",`...)
		name := v.Field.Name()
		if name == "semantic" {
			name += "#2"
		}
		dst = appendString(dst, name)
		dst = append(dst, ":["...)
		for i := range v.Values {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendValue(dst, v.Values[i], v.Field.Type())
		}
		return append(dst, "]}"...)
	case *Records:
		dst = append(dst, `{"semantic":"`...)
		dst = append(dst, v.Semantic.String()...)
		dst = append(dst, `","records":[`...)
		for i := range v.List {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(v.List[i].appendFields(append(dst, '{')), '}')
		}
		return append(dst, "]}"...)
	}
	return append(dst, "null"...)
}

// appendTime writes a time as exactly as its type has it, in the form of time.RFC3339, which takes five times as long.
func appendTime(dst []byte, t time.Time, typ templates.Type) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	if year < 0 || year > 9999 {
		return append(dst, "null"...)
	}
	dst = append(digits(append(dst, '"'), year, 4), '-')
	dst = append(digits(dst, int(month), 2), '-')
	dst = append(digits(dst, day, 2), 'T')
	dst = append(digits(dst, hour, 2), ':')
	dst = append(digits(dst, minute, 2), ':')
	dst = digits(dst, second, 2)
	switch ns := t.Nanosecond(); typ {
	case dateTimeSeconds:
	case dateTimeMicroseconds:
		dst = digits(append(dst, '.'), ns/1000, 6)
	case dateTimeNanoseconds:
		dst = digits(append(dst, '.'), ns, 9)
	default:
		dst = digits(append(dst, '.'), ns/1e6, 3)
	}
	return append(dst, 'Z', '"')
}

// digits appends a number that has so many digits or fewer.
func digits(dst []byte, n, width int) []byte {
	at := len(dst)
	dst = append(dst, "000000000"[:width]...)
	for i := at + width - 1; n > 0; i-- {
		dst[i] = byte('0' + n%10)
		n /= 10
	}
	return dst
}

func appendString(dst []byte, s string) []byte {
	if plain(s) {
		return append(append(append(dst, '"'), s...), '"')
	}
	b, _ := json.Marshal(s) // a string always can be
	return append(dst, b...)
}
