package ipfix

import (
	"testing"

	"github.com/sockflow/sockflow/flowcache"
)

// member counts what it is offered.
type member struct {
	sick       bool
	got        map[uint16]bool
	records    int
	interfaces int
}

func (m *member) Healthy() bool { return !m.sick }

func (m *member) Offer(r *flowcache.Records) bool {
	for i := range r.List {
		m.got[r.List[i].Key.SrcPort] = true
	}
	m.records += len(r.List)
	m.interfaces += len(r.Interfaces)
	r.Release()
	return true
}

func TestPolicy(t *testing.T) {
	for name, tc := range map[string]struct {
		sick       []int
		interfaces []int
		counts     func(n []int) bool
	}{
		"all":                  {[]int{0}, []int{2, 2, 2}, func(n []int) bool { return n[0] == 2000 && n[1] == 2000 && n[2] == 2000 }},
		"failover":             {nil, []int{2, 0, 0}, func(n []int) bool { return n[0] == 2000 && n[1] == 0 && n[2] == 0 }},
		"failover, first sick": {[]int{0}, []int{0, 2, 0}, func(n []int) bool { return n[0] == 0 && n[1] == 2000 && n[2] == 0 }},
		"failover, all sick":   {[]int{0, 1, 2}, []int{2, 0, 0}, func(n []int) bool { return n[0] == 2000 }},
		"hash":                 {nil, []int{2, 0, 0}, func(n []int) bool { return n[0] > 500 && n[1] > 500 && n[2] > 500 && n[0]+n[1]+n[2] == 2000 }},
		"hash, one sick":       {[]int{1}, []int{2, 0, 0}, func(n []int) bool { return n[0] > 800 && n[1] == 0 && n[2] > 800 && n[0]+n[2] == 2000 }},
		"hash, all sick":       {[]int{0, 1, 2}, []int{2, 0, 0}, func(n []int) bool { return n[0] > 500 && n[1] > 500 && n[2] > 500 }},
	} {
		word := name
		for i, c := range name {
			if c == ',' {
				word = name[:i]
			}
		}
		p, err := ParsePolicy(word)
		if err != nil {
			t.Fatal(err)
		}
		members := []*member{{got: map[uint16]bool{}}, {got: map[uint16]bool{}}, {got: map[uint16]bool{}}}
		for _, i := range tc.sick {
			members[i].sick = true
		}
		g := NewGroup(p, []Member{members[0], members[1], members[2]})
		pool := make(flowcache.RecordPool, 4)
		for _, swap := range []bool{false, true} {
			r := pool.Get()
			for i := range 1000 {
				rec := *record(0)
				rec.Key.SrcPort, rec.Key.DstPort = uint16(20000+i), uint16(20000+i)
				if swap {
					rec.Key = rec.Key.Reverse()
				}
				r.List = append(r.List, rec)
			}
			r.Interfaces = append(r.Interfaces, flowcache.Interface{})
			g.Offer(r)
		}
		var n []int
		for i, m := range members {
			n = append(n, m.records)
			if m.interfaces != tc.interfaces[i] {
				t.Errorf("%s: member %d has %d interfaces", name, i, m.interfaces)
			}
			if word == "hash" && m.records != 2*len(m.got) {
				t.Errorf("%s: the directions of a flow are with different members", name)
			}
		}
		if !tc.counts(n) {
			t.Errorf("%s: %v", name, n)
		}
	}
	if NewGroup(All, nil) != nil {
		t.Error("a group of nobody")
	}
}
