package collector

import (
	"bytes"
	"net/netip"
	"slices"
	"time"

	"github.com/sockflow/sockflow/templates"
)

// Record is a Data Record.
type Record struct {
	From       string    // the session's name
	Version    uint16    // 10 of IPFIX, 9, 7, 5 or 1 of NetFlow
	V9         bool      // of NetFlow v9
	Domain     uint32    // Observation Domain Id; NetFlow v9: Source ID; v5: engine type * 256 + engine id
	ExportTime time.Time // of the message; to the second but of NetFlow v1, v5 and v7
	Boot       time.Time // NetFlow: when sysUptime was 0; else zero
	Template   *Template
	Values     [][]byte // the octets of each field of Template, in network byte order

	domain *domain // has the templates of lists
	depth  int     // of the list that it is in
	lists  []any   // of a copy: the values of its fields that are lists, which need templates of the domain as they were
}

// Clone returns a copy that stays valid.
func (r *Record) Clone() Record {
	var b Batch
	b.Append(r)
	return b.Records[0]
}

// Batch holds copies of records. They are valid until Reset, and any one goroutine may have them. Its zero value is
// empty.
type Batch struct {
	Records []Record
	values  [][]byte
	octets  []byte
}

// Reset empties a Batch, and keeps what it has of memory.
func (b *Batch) Reset() {
	clear(b.Records)
	b.Records, b.values, b.octets = b.Records[:0], b.values[:0], b.octets[:0]
}

// Append appends a copy. It is called where the record came from, before the next message is decoded.
func (b *Batch) Append(r *Record) {
	begin, n := len(b.values), 0
	for _, v := range r.Values {
		n += len(v)
	}
	b.octets = slices.Grow(b.octets, n) // the octets of earlier records stay where they are
	for _, v := range r.Values {
		at := len(b.octets)
		b.octets = append(b.octets, v...)
		b.values = append(b.values, b.octets[at:len(b.octets):len(b.octets)])
	}
	c := *r
	c.Values = b.values[begin:len(b.values):len(b.values)]
	if r.Template.structured {
		lists := make([]any, len(c.Values))
		for i := range c.Values {
			if t := c.Template.Fields[i].Type(); t >= basicList && t <= subTemplateMultiList {
				lists[i] = c.typed(t, c.Values[i], c.depth)
			}
		}
		c.lists = lists
	}
	b.Records = append(b.Records, c)
}

// Value returns the value of field i: uint64, int64, float64, bool, string, netip.Addr, net.HardwareAddr, time.Time, []byte, *List or
// *Records, as its type is. Octets that cannot be of that type are []byte.
func (r *Record) Value(i int) any {
	if r.lists != nil && r.lists[i] != nil {
		return r.lists[i]
	}
	return r.typed(r.Template.Fields[i].Type(), r.Values[i], r.depth)
}

// Get returns the value of the first field of that name, nil if there is none.
func (r *Record) Get(name string) any {
	if i := r.Template.Index(name); i >= 0 {
		return r.Value(i)
	}
	return nil
}

// Octets returns the octets of the first field of that number, nil if there is none.
func (r *Record) Octets(n templates.Number) []byte {
	for i := range r.Template.Fields {
		if r.Template.Fields[i].Number == n && !(r.V9 && i < r.Template.Scope) {
			return r.Values[i]
		}
	}
	return nil
}

// Uint returns the value of a field that is an unsigned number, and 0 if there is none.
func (r *Record) Uint(name string) uint64 {
	n, _ := r.Get(name).(uint64)
	return n
}

// Text returns the value of a field that is a string, and an empty one if there is none.
func (r *Record) Text(name string) string {
	s, _ := r.Get(name).(string)
	return s
}

// Addr returns the address of a field, the zero address if there is none.
func (r *Record) Addr(name string) netip.Addr {
	a, _ := r.Get(name).(netip.Addr)
	return a
}

// Time returns the time of a field, the zero time if there is none. NetFlow has but times of its sysUptime clock: where
// flowStartMilliseconds or flowEndMilliseconds are asked for they are computed.
func (r *Record) Time(name string) time.Time {
	if t, ok := r.Get(name).(time.Time); ok {
		return t
	}
	if !r.Boot.IsZero() {
		for _, u := range uptimes {
			if name == u.absolute {
				if n, ok := r.Get(u.name).(uint64); ok {
					return r.sinceBoot(n)
				}
			}
		}
	}
	return time.Time{}
}

// uptimes are the times of NetFlow, and what they are called where they are absolute.
var uptimes = [...]struct {
	id             uint16
	name, absolute string
}{
	{22, "flowStartSysUpTime", "flowStartMilliseconds"},
	{21, "flowEndSysUpTime", "flowEndMilliseconds"},
}

// sinceBoot is the time of an uptime in milliseconds. The clock has 32 bits: a time after the message's is of the round before.
func (r *Record) sinceBoot(ms uint64) time.Time {
	t := r.Boot.Add(time.Duration(ms) * time.Millisecond)
	if t.Sub(r.ExportTime) > time.Hour {
		t = t.Add(-(1 << 32) * time.Millisecond)
	}
	return t
}

// Map returns all values by name. Of fields with one name the first counts.
func (r *Record) Map() map[string]any {
	m := make(map[string]any, len(r.Values))
	for i := range r.Values {
		name := r.Template.Fields[i].Name()
		if _, twice := m[name]; !twice {
			m[name] = r.Value(i)
		}
	}
	return m
}

// text is a string as it should have been sent: without the NULs of fixed length, and well-formed.
func text(b []byte) string {
	return string(bytes.ToValidUTF8(bytes.TrimRight(b, "\x00"), []byte("\uFFFD")))
}
