package bpf

import (
	"testing"
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

// TestOwnersBounded: where nothing says that sockets are gone (the hook of their release could not be attached),
// passes do: the table of owners does not grow with every socket there ever was, and a new socket has its owner
// however many there were before. Sockets that live keep theirs.
func TestOwnersBounded(t *testing.T) {
	d := newDatagrams(nil, nil, nil)
	const each, passes = maxOwners / 8, 20
	idle, busy := uint64(1<<40), uint64(1<<40+1)
	o := owner{process: flowcache.ProcessID{PID: 7}}
	d.own(idle, o)
	d.own(busy, o) // which no pass shows
	next, most := uint64(1), 0
	for range passes {
		for range each {
			d.own(next, o)
			d.join(&flowcache.Observation{Cookie: 1<<50 + next, Key: flowcache.Key{NetNS: 1}}, time.Time{}, func(*flowcache.Observation) {})
			next++
		}
		for _, cookie := range []uint64{idle, next - 1} { // what the walk shows
			d.own(cookie, o)
		}
		d.join(&flowcache.Observation{Cookie: busy}, time.Time{}, func(*flowcache.Observation) {})
		d.passed()
		most = max(most, len(d.owners), len(d.nameless))
		for name, cookie := range map[string]uint64{"idle": idle, "busy": busy, "newest": next - 1} {
			if d.owners[cookie].process.PID != 7 {
				t.Fatalf("the %s socket has no owner after %d others", name, next)
			}
		}
	}
	if most > 3*each+2 {
		t.Errorf("%d entries at most; %d sockets a pass", most, each)
	}
	t.Logf("%d sockets, at most %d entries", next, most)
}
