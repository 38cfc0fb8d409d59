package ipfix

import (
	"encoding/binary"
	"testing"

	"github.com/sockflow/sockflow/templates"
)

// TestHistoryIsBounded: of what was acknowledged and perhaps not read when the connection ends, everything is sent again or counted as
// dropped, and no more than the bound stays in memory.
func TestHistoryIsBounded(t *testing.T) {
	for _, withDisk := range []bool{false, true} {
		var disk *spool
		if withDisk {
			var err error
			if disk, err = openSpool(t.TempDir(), 64<<20); err != nil {
				t.Fatal(err)
			}
		}
		b := newBacklog(disk, func(bool, error) {})
		e, err := NewEncoder(IPFIX, templates.Options{}, 1, maxStream, now, b.put)
		if err != nil {
			t.Fatal(err)
		}
		b.begin()
		written := uint64(0)
		for i := range 60_000 { // 11 MB
			e.Record(record(i), now)
			m, _, fromDisk, ok, err := b.next(nil)
			if err != nil {
				t.Fatal(err)
			}
			if ok {
				written += uint64(binary.BigEndian.Uint16(m.msg[2:]))
				b.wrote(fromDisk, m.flows, written)
				b.confirm(written, 0)
			}
			if b.old > historyLimit {
				t.Fatalf("%d octets are in memory", b.old)
			}
		}
		var st Stats
		if b.stats(&st); st.Records != st.Made {
			t.Fatalf("before the end: %+v", st)
		}
		b.end(false)
		st = Stats{}
		b.stats(&st)
		if st.Records != 0 || st.Backlog+st.DroppedSend != st.Made || st.Backlog < st.Made/2 || (st.DroppedSend == 0) != withDisk {
			t.Errorf("disk %t: %+v", withDisk, st)
		}
		b.close()
	}
}
