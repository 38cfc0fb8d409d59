package ipfix

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/templates"
)

// TestUptimeOfLongCaptures: over 300 days sysUptime never wraps, in no message and for no flow, and the times that a
// collector reckons by RFC 3954 (seconds of the header, less sysUptime, and FIRST_SWITCHED or LAST_SWITCHED) are those
// of the records.
func TestUptimeOfLongCaptures(t *testing.T) {
	begin := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	type place struct{ first, last, octets int } // of FIRST_SWITCHED and LAST_SWITCHED in a template
	places := map[uint16]*place{}
	var got [][2]int64
	e, err := NewEncoder(NetFlowV9, templates.Options{}, 1, 1400, begin.Add(-time.Hour), func(m []byte, _ int) error {
		m = bytes.Clone(m)
		uptime, seconds := int64(binary.BigEndian.Uint32(m[4:])), int64(binary.BigEndian.Uint32(m[8:]))
		boot := seconds*1000 - uptime
		for b := m[headerV9:]; len(b) >= 4; {
			id, n := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
			switch set := b[4:n]; {
			case id == 0:
				for len(set) >= 4 {
					id, fields := binary.BigEndian.Uint16(set), int(binary.BigEndian.Uint16(set[2:]))
					p := &place{}
					for f := set[4 : 4+4*fields]; len(f) > 0; f = f[4:] {
						switch binary.BigEndian.Uint16(f) {
						case 22:
							p.first = p.octets
						case 21:
							p.last = p.octets
						}
						p.octets += int(binary.BigEndian.Uint16(f[2:]))
					}
					places[id], set = p, set[4+4*fields:]
				}
			case places[id] != nil:
				for p := places[id]; len(set) >= p.octets; set = set[p.octets:] {
					first, last := int64(binary.BigEndian.Uint32(set[p.first:])), int64(binary.BigEndian.Uint32(set[p.last:]))
					got = append(got, [2]int64{boot + first, boot + last})
				}
			}
			b = b[n:]
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	e.recordTimes, e.latest = true, begin.UnixNano()
	var want [][2]int64
	for at := begin; at.Before(begin.AddDate(0, 0, 300)); at = at.Add(7 * time.Hour) {
		r := flowcache.Record{
			Key: flowcache.Key{Src: flowcache.AddrFrom4([4]byte{192, 0, 2, 1}), Dst: flowcache.AddrFrom4([4]byte{192, 0, 2, 2}), Proto: 6}, HasTCP: true,
			Start: at.Add(-time.Minute).UnixNano(), End: at.UnixNano(), Forward: flowcache.Counters{Packets: 1},
		}
		want = append(want, [2]int64{r.Start / 1e6, r.End / 1e6})
		if err := e.Record(&r, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Flush(time.Now()); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d records, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("record %d: from %d to %d, want from %d to %d", i, got[i][0], got[i][1], want[i][0], want[i][1])
		}
	}
}
