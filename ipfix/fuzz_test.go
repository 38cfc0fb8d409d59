package ipfix

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/sockflow/sockflow/templates"
)

// sampleMessages returns the messages of a session: templates, facts, statistics and records.
func sampleMessages(t testing.TB) (msgs [][]byte) {
	t.Helper()
	e, err := NewEncoder(IPFIX, templates.Options{}, 1, 1400, now, func(m []byte, _ int) error {
		msgs = append(msgs, bytes.Clone(m))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	e.Describe(Info{Facts: func() Facts { return Facts{} }})
	e.Templates(now)
	for i := range 12 {
		e.Record(record(i), now)
	}
	e.Flush(now)
	return msgs
}

// FuzzAdmit: whatever a spool may hold, what a session lets through are whole messages that it does not let through twice in their
// templates and facts, and that it counts in the same way again.
func FuzzAdmit(f *testing.F) {
	msgs := sampleMessages(f)
	for _, m := range msgs {
		f.Add(m)
	}
	f.Add(bytes.Join(msgs, nil))
	f.Add([]byte("\x00\x0a\x00\x1c0000000000000000\x00\x02\x00\x0c\x01\x00\x00\x00\x01\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		s, again := newSession(), newSession()
		for len(stream) > 0 {
			n := messageLength(stream)
			if n == 0 || n > len(stream) {
				return
			}
			msg := stream[:n]
			stream = stream[n:]
			before := bytes.Clone(msg)
			out, records, err := s.admit(nil, msg, everything)
			if !bytes.Equal(msg, before) {
				t.Fatal("the message was changed")
			}
			if err != nil {
				return
			}
			if len(out) == 0 {
				continue
			}
			if messageLength(out) != len(out) || len(out) > len(msg) {
				t.Fatalf("%d octets of %d, and the header says %d", len(out), len(msg), binary.BigEndian.Uint16(out[2:]))
			}
			same, n2, err := again.admit(nil, out, everything)
			if err != nil || n2 != records || !bytes.Equal(same, out) {
				t.Fatalf("%d records, and then %d: %v", records, n2, err)
			}
		}
	})
}

// FuzzSpool: any file in a spool is read as far as it is one, and its messages come in order, once.
func FuzzSpool(f *testing.F) {
	msgs := sampleMessages(f)
	whole := bytes.Join(msgs, nil)
	f.Add(whole, uint16(0))
	f.Add(whole[:len(whole)-7], uint16(40))
	f.Add([]byte("\x00\x0a\x00\x10aaaaaaaaaaaa"), uint16(16))
	f.Fuzz(func(t *testing.T, b []byte, taken uint16) {
		dir := t.TempDir()
		name := filepath.Join(dir, "0000000000000007"+segmentSuffix)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		mark := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, 7), uint64(taken))
		if err := os.WriteFile(filepath.Join(dir, "taken"), mark, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := openSpool(dir, leastSpool)
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		read := 0
		for {
			msg, ok, err := s.next(nil)
			if err != nil {
				s.spoil()
				continue
			}
			if !ok {
				break
			}
			if read += len(msg); read > len(b) {
				t.Fatal("more than there is")
			}
		}
		if !s.drained() {
			t.Fatal("there is more")
		}
		if _, err := s.append(&pending{msg: bytes.Clone(msgs[0]), epoch: &epoch{}}); err != nil {
			t.Fatal(err)
		}
	})
}
