package ipfix

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// filledSpool makes a spool of so many records, whose collector is away. It returns the folder given, that of the collector and the segments.
func filledSpool(t *testing.T, records uint64) (dir, sub string, segments []string) {
	t.Helper()
	dir = t.TempDir()
	x := begin(t, "tcp://127.0.0.1:1", Config{Spool: dir})
	x.give(int(records))
	eventually(t, "they are on disk", func() bool { return x.Stats().Spooled == records })
	x.stop()
	sub = filepath.Join(dir, "tcp___127.0.0.1_1")
	segments, _ = filepath.Glob(filepath.Join(sub, "*"+segmentSuffix))
	return dir, sub, segments
}

// TestSpoolDamage: of a spool with bad octets all is sent but what these are in, and that is counted, and said once.
func TestSpoolDamage(t *testing.T) {
	const given = 20000
	dir, sub, files := filledSpool(t, given)
	if len(files) != 1 {
		t.Fatalf("%d segments", len(files))
	}
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	sums, err := os.ReadFile(strings.TrimSuffix(files[0], segmentSuffix) + ".sums")
	if err != nil {
		t.Fatal(err)
	}
	var at []int     // where messages of flow records begin
	var starts []int // and all messages
	var spoilt []int // octets of the sums
	control := 0     // the last message of templates before them
	for i := 0; i < len(whole); i += messageLength(whole[i:]) {
		starts = append(starts, i)
		if isFlowData(whole[i : i+messageLength(whole[i:])]) {
			at = append(at, i)
		} else if len(at) == 0 {
			control = i
		}
	}
	if len(at) < 50 {
		t.Fatalf("%d messages", len(at))
	}
	for _, tc := range []struct {
		name   string
		damage func(b []byte) []byte
		most   int // messages that are lost
	}{
		{"nothing", func(b []byte) []byte { return b }, 0},
		// Of the sums, which are not needed.
		{"sums: the first", func(b []byte) []byte { spoilt = []int{1}; return b }, 0},
		{"sums: the first three", func(b []byte) []byte { spoilt = []int{5, sumOctets, 2*sumOctets + 9}; return b }, 0},
		{"sums: one at 50 %", func(b []byte) []byte { spoilt = []int{len(sums)/2/sumOctets*sumOctets + 3}; return b }, 0},
		{"sums: the last", func(b []byte) []byte { spoilt = []int{len(sums) - 1}; return b }, 0},
		{"sums: all but one", func(b []byte) []byte {
			for i := 0; i < len(sums); i += sumOctets {
				if i/sumOctets != 7 {
					spoilt = append(spoilt, i)
				}
			}
			return b
		}, 0},
		{"sums, and the message before", func(b []byte) []byte {
			b[at[20]] ^= 0xff
			spoilt = []int{(slices.Index(starts, at[20]) + 1) * sumOctets}
			return b
		}, 1},
		{"sums, and octets too many before", func(b []byte) []byte {
			spoilt = []int{slices.Index(starts, at[20]) * sumOctets}
			return append(append(bytes.Clone(b[:at[3]]), "\x00\x0a\x00\x0anonsense"...), b[at[3]:]...)
		}, 0},
		{"a version at 10 %", func(b []byte) []byte { b[at[len(at)/10]] ^= 0xff; return b }, 1},
		{"a length at 10 %", func(b []byte) []byte { b[at[len(at)/10]+2] ^= 0x40; return b }, 1},
		{"the length of a set", func(b []byte) []byte { b[at[len(at)/2]+headerIPFIX+2] ^= 0x11; return b }, 1},
		{"the id of a set", func(b []byte) []byte { b[at[len(at)/2]+headerIPFIX] ^= 0x80; return b }, 1},
		{"a sequence number", func(b []byte) []byte { b[at[len(at)/2]+8] ^= 0xff; return b }, 1},
		{"an octet of a value", func(b []byte) []byte { b[at[len(at)/2]+3000] ^= 1; return b }, 1},
		{"a block of zeros", func(b []byte) []byte { clear(b[at[7]+100 : at[7]+100+4096]); return b }, 2},
		{"a block of ones", func(b []byte) []byte { copy(b[at[9]-10:], bytes.Repeat([]byte{0xff}, 200)); return b }, 2},
		{"many", func(b []byte) []byte {
			for i := 5; i < len(at); i += 10 {
				b[at[i]] = 7
			}
			return b
		}, len(at)/10 + 1},
		{"octets too many", func(b []byte) []byte {
			return append(append(bytes.Clone(b[:at[3]]), "\x00\x0a\x00\x0anonsense"...), b[at[3]:]...)
		}, 0},
		{"octets too few", func(b []byte) []byte { return append(b[:at[3]+50], b[at[3]+60:]...) }, 1},
		{"the last message", func(b []byte) []byte { b[at[len(at)-1]+headerIPFIX+2] ^= 0x11; return b }, 1},
		{"the first template", func(b []byte) []byte { b[control+2] ^= 0xff; return b }, len(at)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := os.RemoveAll(sub); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(sub, 0o700); err != nil {
				t.Fatal(err)
			}
			spoilt = nil
			segment, entries := tc.damage(bytes.Clone(whole)), bytes.Clone(sums)
			for _, i := range spoilt {
				entries[i] ^= 1
			}
			for name, b := range map[string][]byte{files[0]: segment, strings.TrimSuffix(files[0], segmentSuffix) + ".sums": entries} {
				if err := os.WriteFile(name, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s := listen(t, freeAddress(t))
			other := filepath.Join(dir, "tcp___"+strings.ReplaceAll(s.l.Addr().String(), ":", "_"))
			if err := os.Rename(sub, other); err != nil {
				t.Fatal(err)
			}
			// It is counted and said once, though it is opened again.
			var places int
			var found uint64
			for i := range 2 {
				again, err := openSpool(other, 64<<20)
				if err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					places, found = again.damage.places, again.damage.records
				} else if again.damage != (damage{}) {
					t.Errorf("damage %+v at the second time", again.damage)
				}
				again.close()
			}
			x := begin(t, "tcp://"+s.l.Addr().String(), Config{Spool: dir})
			eventually(t, "all is taken", func() bool { return x.Stats().Backlog == 0 && x.Stats().Connects > 0 })
			x.stop()
			next, arrived := 0, 0
			for _, b := range s.all(t) {
				for _, n := range numbers(t, b) {
					if n < next {
						t.Fatalf("record %d after %d", n, next-1)
					}
					next = n + 1
					arrived++
				}
			}
			st := x.Stats()
			t.Logf("%d of %d arrive, %d are counted as dropped", arrived, given, found)
			perMessage := given / len(at) * 11 / 10
			lost := given - arrived
			if lost > tc.most*perMessage {
				t.Errorf("%d records are lost, in at most %d messages of %d", lost, tc.most, perMessage)
			}
			if int(found) != lost || lost > 0 && places == 0 || st.DroppedSpool+st.DroppedSend > 0 {
				t.Errorf("%d records are lost, and %d are counted in %d places, %d later", lost, found, places, st.DroppedSpool+st.DroppedSend)
			}
			x.next = 0
			x.balance()
			if err := os.RemoveAll(other); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestSpoolOrphan: of a segment that is gone its sums say what is lost; of one that was taken they are a remainder.
func TestSpoolOrphan(t *testing.T) {
	const given = 3000
	_, sub, files := filledSpool(t, given)
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []damage{{places: len(files), records: given}, {}} {
		s, err := openSpool(sub, 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		if s.damage != want || s.dropped != want.records {
			t.Errorf("%+v, %d dropped, want %+v", s.damage, s.dropped, want)
		}
		s.close()
	}
	if left, _ := filepath.Glob(filepath.Join(sub, "*.sums")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestSpoolMark: a mark that is nonsense takes nothing away: rather records come twice.
func TestSpoolMark(t *testing.T) {
	dir := t.TempDir()
	x := begin(t, "tcp://127.0.0.1:1", Config{Spool: dir})
	x.give(3000)
	eventually(t, "they are on disk", func() bool { return x.Stats().Spooled == 3000 })
	x.stop()
	sub := filepath.Join(dir, "tcp___127.0.0.1_1")
	mark := func(segment, offset uint64) []byte {
		return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, segment), offset)
	}
	for name, b := range map[string][]byte{
		"far": mark(1<<40, 0), "far, with a checksum that is wrong": append(mark(1<<40, 0), 1, 2, 3, 4), "within a message": mark(1, 17), "beyond the end": mark(1, 1<<50),
		"short": {1, 2, 3}, "empty": {}, "text": []byte("what is this? no mark at all"),
	} {
		if err := os.WriteFile(filepath.Join(sub, "taken"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := openSpool(sub, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if s.unread != 3000 {
			t.Errorf("%s: %d records are left", name, s.unread)
		}
		s.close()
	}
}

// TestSpoolLinks: nothing in a spool is followed elsewhere.
func TestSpoolLinks(t *testing.T) {
	for _, name := range []string{"lock", "taken", "0000000000000001" + segmentSuffix} {
		dir := t.TempDir()
		victim := filepath.Join(t.TempDir(), "victim")
		if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(victim, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		s, err := openSpool(dir, 1<<20)
		if err == nil {
			s.close()
			t.Errorf("%s is followed", name)
		} else if !strings.Contains(err.Error(), "symbolic link") {
			t.Errorf("%s: %v", name, err)
		}
		if b, _ := os.ReadFile(victim); string(b) != "precious" {
			t.Errorf("%s: %q", name, b)
		}
	}
}

// TestSpoolDamageIsSaid: the exporter says in one line what its spool has lost, and counts it.
func TestSpoolDamageIsSaid(t *testing.T) {
	dir, addr := t.TempDir(), freeAddress(t)
	x := begin(t, "tcp://"+addr, Config{Spool: dir})
	x.give(3000)
	eventually(t, "they are on disk", func() bool { return x.Stats().Spooled == 3000 })
	x.stop()
	files, _ := filepath.Glob(filepath.Join(dir, "*", "*"+segmentSuffix))
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	s := listen(t, addr)
	y := begin(t, "tcp://"+addr, Config{Spool: dir})
	y.said("records are dropped (places: 1)")
	eventually(t, "all is taken", func() bool { return y.Stats().Backlog == 0 && y.Stats().Connects > 0 })
	y.stop()
	arrived := 0
	for _, b := range s.all(t) {
		arrived += len(numbers(t, b))
	}
	if st := y.Stats(); st.DroppedSpool == 0 || int(st.DroppedSpool)+arrived != 3000 || st.Recovered != 3000 {
		t.Errorf("%d arrive: %+v", arrived, st)
	}
	y.balance()
}
