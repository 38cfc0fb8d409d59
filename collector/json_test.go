package collector

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/sockflow/sockflow/templates"
)

func BenchmarkAppendJSON(b *testing.B) {
	s := session(b, Config{})
	fields := []any{uint16(256), uint16(18)}
	for _, f := range [][2]uint16{{8, 4}, {12, 4}, {7, 2}, {11, 2}, {4, 1}, {6, 1}, {5, 1}, {10, 4}, {14, 4}, {1, 8}, {2, 8}, {152, 8}, {153, 8}, {136, 1}, {239, 1}, {401, 8}, {82, v}, {371, v}} {
		fields = append(fields, f[0], f[1])
	}
	recs, err := s.Messages([][]byte{message10(0, set(2, fields...), set(256, []byte{192, 0, 2, 1, 198, 51, 100, 7}, uint16(40000), uint16(443), uint8(6), uint8(0x1b), uint8(0), uint32(1), uint32(2),
		uint64(123456), uint64(789), uint64(1700000000123), uint64(1700000001456), uint8(1), uint8(1), uint64(99999), uint8(4), "eth0", uint8(8), "www-data"))})
	if err != nil || len(recs) != 1 {
		b.Fatal(err)
	}
	var dst []byte
	for b.Loop() {
		dst = recs[0].AppendJSON(dst[:0])
	}
	b.SetBytes(int64(len(dst)))
}

// TestTimes compares with package time.
func TestTimes(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 9))
	for i := range 20000 {
		at := time.Unix(rnd.Int64N(maxMilliseconds/1000)-1e9, rnd.Int64N(1e9))
		if i == 0 {
			at = time.UnixMilli(maxMilliseconds - 1)
		}
		for typ, layout := range map[templates.Type]string{
			dateTimeSeconds: `"2006-01-02T15:04:05Z07:00"`, dateTimeMilliseconds: `"2006-01-02T15:04:05.000Z07:00"`,
			dateTimeMicroseconds: `"2006-01-02T15:04:05.000000Z07:00"`, dateTimeNanoseconds: `"2006-01-02T15:04:05.000000000Z07:00"`,
		} {
			if got, want := string(appendTime(nil, at, typ)), at.UTC().Format(layout); got != want {
				t.Fatalf("%s, want %s", got, want)
			}
		}
	}
}
