package collector

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// octets concatenates numbers by their size, and octets.
func octets(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case uint8:
			b = append(b, p)
		case uint16:
			b = binary.BigEndian.AppendUint16(b, p)
		case uint32:
			b = binary.BigEndian.AppendUint32(b, p)
		case uint64:
			b = binary.BigEndian.AppendUint64(b, p)
		case string:
			b = append(b, p...)
		case []byte:
			b = append(b, p...)
		default:
			panic(fmt.Sprintf("%T", p))
		}
	}
	return b
}

func set(id uint16, parts ...any) []byte {
	body := octets(parts...)
	return octets(id, uint16(4+len(body)), body)
}

// message10 is an IPFIX message of Observation Domain 7.
func message10(seq uint32, sets ...[]byte) []byte {
	n := 16
	for _, s := range sets {
		n += len(s)
	}
	b := octets(uint16(10), uint16(n), uint32(1_700_000_000), seq, uint32(7))
	for _, s := range sets {
		b = append(b, s...)
	}
	return b
}

// message9 is a NetFlow v9 message of Source ID 7, one hour after boot.
func message9(seq uint32, sets ...[]byte) []byte {
	b := octets(uint16(9), uint16(len(sets)), uint32(3_600_000), uint32(1_700_000_000), seq, uint32(7))
	for _, s := range sets {
		b = append(b, s...)
	}
	return b
}

func session(t testing.TB, cfg Config) *Session {
	t.Helper()
	s, err := NewSession(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// decode returns the records of messages by name, and fails if one is malformed.
func decode(t testing.TB, s *Session, msgs ...[]byte) []map[string]any {
	t.Helper()
	recs, err := s.Messages(msgs)
	if err != nil {
		t.Fatal(err)
	}
	var maps []map[string]any
	for i := range recs {
		maps = append(maps, recs[i].Map())
	}
	return maps
}

func check(t *testing.T, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func flowsOf(all []Record) []Record {
	var l []Record
	for _, r := range all {
		if !r.Template.Options {
			l = append(l, r)
		}
	}
	return l
}
