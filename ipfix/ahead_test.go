package ipfix

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/templates"
)

// TestTemplatesAhead: of datagrams the first message of a session comes alone, and no data, options data among it, are sent sooner than
// TemplateLead after their template, unless both are in one message. Nothing is lost for it.
func TestTemplatesAhead(t *testing.T) {
	for _, proto := range []Protocol{IPFIX, NetFlowV9} {
		var at time.Time
		var opened time.Time
		told := map[uint16]time.Time{}
		flows := 0
		e, err := NewEncoder(proto, templates.Options{}, 1, 1400, now.Add(-time.Hour), func(m []byte, _ int) error {
			if opened.IsZero() {
				opened = at
			} else if at.Before(opened.Add(TemplateLead)) {
				t.Errorf("another message %s after the first", at.Sub(opened))
			}
			here := map[uint16]bool{}
			for b := m[map[Protocol]int{IPFIX: headerIPFIX, NetFlowV9: headerV9}[proto]:]; len(b) >= 4; b = b[binary.BigEndian.Uint16(b[2:]):] {
				id, body := binary.BigEndian.Uint16(b), b[4:binary.BigEndian.Uint16(b[2:])]
				switch {
				case id < 256: // the first of the set is enough: it is known by the others' data
					id, l, _, err := templateRecord(setTemplate, body)
					if proto == NetFlowV9 || b[1] == setOptionsTemplate {
						id, err = binary.BigEndian.Uint16(body), nil
					}
					_ = l
					if err != nil {
						t.Fatal(err)
					}
					for rest := body; b[1] == setTemplate && proto == IPFIX && len(rest) > 0; {
						if id, _, rest, err = templateRecord(setTemplate, rest); err != nil {
							t.Fatal(err)
						}
						if here[id] = true; told[id].IsZero() {
							told[id] = at
						}
					}
					if here[id] = true; told[id].IsZero() {
						told[id] = at
					}
				case proto == IPFIX && told[id].IsZero():
					t.Errorf("data of %d before its template", id)
				case proto == IPFIX && !here[id] && at.Sub(told[id]) < TemplateLead:
					t.Errorf("data of %d %s after its template", id, at.Sub(told[id]))
				}
				if id >= templates.FirstID {
					flows++
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		e.SendAhead(TemplateLead)
		at = now
		if err := e.Templates(at); err != nil {
			t.Fatal(err)
		}
		want := 0
		for i := range 300 {
			at = at.Add(10 * time.Millisecond)
			if due := e.Due(); !due.IsZero() && !due.After(at) {
				if err := e.Release(at); err != nil {
					t.Fatal(err)
				}
			}
			r := *record(i)
			if i > 150 && i%2 == 0 { // a kind that is new in the middle
				r.Source.Container = &flowcache.Workload{ContainerID: "c0ffee"}
			}
			if err := e.Record(&r, at); err != nil {
				t.Fatal(err)
			}
			if err := e.Flush(at); err != nil {
				t.Fatal(err)
			}
			want++
		}
		for due := e.Due(); !due.IsZero(); due = e.Due() {
			at = due
			e.Release(at)
		}
		if flows != want || e.Held() != 0 {
			t.Errorf("protocol %d: %d sets of flow records, want %d; %d octets are held", proto, flows, want, e.Held())
		}
	}
}
