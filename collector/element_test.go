package collector

import (
	"testing"

	"github.com/sockflow/sockflow/templates"
)

// TestRegistry holds iana.txt against what the exporter knows of the same elements, and finds everything that is exported.
func TestRegistry(t *testing.T) {
	r, err := NewRegistry(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	elements, err := templates.Elements()
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, o := range []templates.Options{{}, {Dialect: templates.Native}, {V9: true}, {V9: true, Dialect: templates.Native}} {
		for _, e := range elements {
			n, ok := e.Number(o)
			if !ok {
				continue
			}
			got := r.lookup(n)
			if o.V9 {
				got = r.lookupV9(n.ID)
			}
			if reverse := o.V9 && (n.ID == 23 || n.ID == 24); got == nil || !reverse && got.Name != e.Name || got.Type != e.Type {
				t.Errorf("%+v %v: %+v, the exporter has %s %v", o, n, got, e.Name, e.Type)
			}
			checked++
		}
	}
	if checked < 300 {
		t.Errorf("%d elements", checked)
	}
	for _, line := range []string{"", "1", "1 unsigned8", "x unsigned8 name", "40000 unsigned8 name", "1 nothing name", "1 string name more"} {
		if e, err := parseElement(line); err == nil {
			t.Errorf("%q: %+v", line, e)
		}
	}
}
