package collector

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"
)

// FuzzDecode decodes octets as two messages of a session: nothing panics, loops or outgrows its bound, and what is decoded can be written as JSON.
func FuzzDecode(f *testing.F) {
	v := uint16(65535)
	types := set(3, uint16(400), uint16(4), uint16(2), uint16(346), uint16(4), uint16(303), uint16(2), uint16(339), uint16(1), uint16(341), v)
	lists := set(2, uint16(256), uint16(3), uint16(291), v, uint16(292), v, uint16(293), v)
	f.Add(message10(0, types, set(400, uint32(4444), uint16(5), uint8(13), uint8(4), "name"), set(2, uint16(256), uint16(2), uint16(0x8005), v, uint32(4444), uint16(8), uint16(4))),
		message10(1, set(256, uint8(1), "x", uint32(1))))
	f.Add(message10(0, lists), message10(0, set(256, uint8(7), uint8(3), uint16(291), v, uint8(1), "x", uint8(0), uint8(5), uint8(0), uint16(256), uint16(4))))
	f.Add(message10(0, set(2, uint16(256), uint16(1), uint16(150), uint16(4)), set(2, uint16(2), uint16(0))), message10(0, set(256, uint32(0))))
	f.Add(message9(0, set(1, uint16(257), uint16(4), uint16(4), uint16(1), uint16(4), uint16(82), uint16(4), []byte{0, 0})), message9(1, set(257, uint32(1), "lo\x00\x00")))
	f.Add(message9(0, set(0, uint16(256), uint16(2), uint16(22), uint16(4), uint16(21), uint16(8))), message9(1, set(256, uint32(1), uint64(1<<63))))
	f.Add(message5(1, 0x4010, 3), append(message5(4, 0, 1), 0, 0))
	f.Add(octets(uint16(1), uint16(1), make([]byte, 12+48)), octets(uint16(7), uint16(1), make([]byte, 20+52)))
	f.Add(message9(0, set(0, uint16(256), uint16(2), uint16(82), v, uint16(7), uint16(2)), make([]byte, 9)), message9(1, set(256, uint8(1), "x", uint16(1)), []byte{0}, set(256, uint8(0), uint16(2))))
	registry, err := NewRegistry(0, 0)
	if err != nil {
		f.Fatal(err)
	}
	at := time.Unix(1_700_000_000, 0)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		for _, datagrams := range []bool{false, true} {
			s := session(t, Config{Registry: registry, Datagrams: datagrams, Memory: 64 << 10})
			for _, msg := range [][]byte{a, b, a} {
				recs, err := s.Decode(msg, at)
				if err != nil && recs != nil {
					t.Fatal("records of a malformed message")
				}
				octets := 0
				for i := range recs {
					for _, v := range recs[i].Values {
						octets += len(v)
					}
					if js := recs[i].AppendJSON(nil); !json.Valid(js) {
						t.Fatalf("%s", js)
					} else {
						keys(t, js)
					}
					recs[i].Clone()
				}
				if octets > len(msg)+3*len(recs) { // of NetFlow v5 each has three octets of the header
					t.Fatalf("%d octets of values in %d", octets, len(msg))
				}
			}
			st := s.Stats()
			if s.memory < 0 || st.Messages != 3 || s.memory > s.cfg.Memory || st.Discarded() > 3 {
				t.Fatalf("%+v, %d octets left", st, s.memory)
			}
			s.close()
			if s.shared.memory != s.cfg.Memory {
				t.Fatalf("%d octets of memory did not come back", s.cfg.Memory-s.shared.memory)
			}
		}
	})
}

// FuzzStream reads octets as a file.
func FuzzStream(f *testing.F) {
	good := message10(0, set(2, uint16(256), uint16(1), uint16(82), uint16(65535)), set(256, uint8(1), "x"))
	f.Add(append(bytes.Clone(good), message10(1, set(256, uint8(0)))...))
	f.Add(good[:20])
	f.Add(append(bytes.Clone(good), 0, 9, 0, 4))
	registry, err := NewRegistry(0, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := session(t, Config{Registry: registry})
		n := uint64(0)
		err := s.ReadStream(bytes.NewReader(b), func(r []Record) error {
			n += uint64(len(r))
			return nil
		})
		if st := s.Stats(); st.Records != n || st.Octets > uint64(len(b)) || err == nil && st.Octets != uint64(len(b)) {
			t.Fatalf("%d octets, %d records: %+v, %v", len(b), n, st, err)
		}
	})
}
