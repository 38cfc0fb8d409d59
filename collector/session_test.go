package collector

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

const v = uint16(65535)

func TestTemplates(t *testing.T) {
	name := set(2, uint16(256), uint16(1), uint16(82), v)
	port := set(2, uint16(256), uint16(1), uint16(7), uint16(2))
	options := set(3, uint16(300), uint16(2), uint16(1), uint16(10), uint16(4), uint16(82), v)
	data := set(256, uint8(0), uint8(1), "x")

	s := session(t, Config{})
	got := decode(t, s,
		message10(0, data), // not known yet
		message10(0, name, options, data),
		message10(2, set(300, uint32(5), uint8(2), "lo")),
		message10(3, set(2, uint16(256), uint16(0))), // withdrawn
		message10(3, data),
		message10(3, port, set(256, uint16(443))),
		message10(4, set(3, uint16(3), uint16(0))), // all Options Templates
		message10(4, set(300, uint32(5), uint8(2), "lo"), set(256, uint16(80))),
		message10(5, set(2, uint16(2), uint16(0))), // all Templates
		message10(5, set(256, uint16(80))),
		message10(5, set(2, uint16(256), uint16(0)), set(4, uint32(0)), set(255)), // nothing to withdraw; reserved sets
	)
	check(t, got, []map[string]any{
		{"interfaceName": ""}, {"interfaceName": "x"},
		{"ingressInterface": uint64(5), "interfaceName": "lo"},
		{"sourceTransportPort": uint64(443)}, {"sourceTransportPort": uint64(80)},
	})
	check(t, s.Stats(), Stats{
		Messages: 11, Octets: s.stats.Octets, Records: 5, Options: 1, Templates: 3, Withdrawn: 3, Ignored: 3,
		UnknownSets: 4, UnknownOctets: 3 + 3 + 7 + 2,
	})

	// Templates of one Observation Domain are not another's.
	other := message10(0, data)
	other[15] = 8
	before := s.stats.UnknownSets
	decode(t, s, message10(5, name), other)
	if s.stats.UnknownSets != before+1 {
		t.Error("a template of another domain was used")
	}
}

func TestDatagramTemplates(t *testing.T) {
	name := set(2, uint16(256), uint16(1), uint16(82), v)
	data := set(256, uint8(1), "x")
	s := session(t, Config{Datagrams: true, TemplateLifetime: time.Minute})
	at := time.Unix(1_700_000_000, 0)
	seq := uint32(0)
	count := func(after time.Duration, sets ...[]byte) int {
		t.Helper()
		at = at.Add(after)
		recs, err := s.Decode(message10(seq, sets...), at)
		if err != nil {
			t.Fatal(err)
		}
		seq += uint32(len(recs))
		return len(recs)
	}
	if count(0, name, data) != 1 || count(0, set(2, uint16(256), uint16(0)), data) != 1 || s.stats.Ignored != 1 {
		t.Error("a withdrawal counts over UDP")
	}
	if count(time.Minute, data) != 1 || count(time.Second, data) != 0 || s.stats.Expired != 1 || s.stats.UnknownSets != 1 {
		t.Errorf("%+v", s.stats)
	}
	if count(0, name, data) != 1 || count(50*time.Second, name) != 0 || count(50*time.Second, data) != 1 {
		t.Errorf("a refreshed template did not live on: %+v", s.stats)
	}
	if s.memory != s.cfg.Memory-domainCost-s.domains[domainKey{versionIPFIX, 7}].templates[256].cost() {
		t.Errorf("memory %d", s.memory)
	}
}

// TestMemory holds the bound of a session's memory.
func TestMemory(t *testing.T) {
	s := session(t, Config{Memory: 4096, Datagrams: true})
	seq := uint32(0)
	for id := range uint16(100) {
		decode(t, s, message10(seq, set(2, 256+id, uint16(1), uint16(7), uint16(2))))
	}
	have := uint64(len(s.domains[domainKey{versionIPFIX, 7}].templates))
	if have != (4096-domainCost)/(160+80) || s.stats.Refused != 100-have || s.memory < 0 {
		t.Errorf("%d templates, %+v, %d left", have, s.stats, s.memory)
	}
	// One that is known may be refreshed; another domain, or a name, is too much.
	decode(t, s, message10(0, set(2, uint16(256), uint16(1), uint16(7), uint16(2)), set(256, uint16(1))))
	if s.stats.Records != 1 {
		t.Error("a refresh was refused")
	}
	other := message10(0)
	other[15] = 9
	before := s.stats.Refused
	decode(t, s, other)
	if s.stats.Refused != before+1 {
		t.Error("a domain beyond the bound")
	}
	// When they are out of date there is room again.
	if _, err := s.Decode(message10(1, set(2, uint16(900), uint16(1), uint16(7), uint16(2)), set(900, uint16(1))), time.Now().Add(time.Hour)); err != nil || s.stats.Records != 2 {
		t.Errorf("%v %+v", err, s.stats)
	}
}

func TestSequence(t *testing.T) {
	tpl := set(2, uint16(256), uint16(1), uint16(7), uint16(2))
	three := set(256, uint16(1), uint16(2), uint16(3))
	feed := func(seqs ...uint32) Stats {
		s := session(t, Config{Datagrams: true})
		decode(t, s, message10(seqs[0], tpl))
		for _, seq := range seqs {
			decode(t, s, message10(seq, three))
		}
		return s.Stats()
	}
	for name, tc := range map[string]struct {
		seqs                       []uint32
		gaps, lost, late, restarts uint64
	}{
		"none":                   {[]uint32{5, 8, 11}, 0, 0, 0, 0},
		"wraps":                  {[]uint32{1<<32 - 3, 0, 3}, 0, 0, 0, 0},
		"lost":                   {[]uint32{0, 9, 12}, 1, 6, 0, 0},
		"late":                   {[]uint32{0, 6, 3, 9}, 1, 0, 1, 0},
		"twice":                  {[]uint32{0, 3, 3, 6}, 0, 0, 1, 0},
		"began anew":             {[]uint32{1_000_000, 0, 3}, 0, 0, 0, 1},
		"began anew, not far":    {[]uint32{60, 0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30}, 0, 0, 8, 1},
		"lost across the wrap":   {[]uint32{1<<32 - 6, 0, 3}, 1, 3, 0, 0},
		"late, and lost as ever": {[]uint32{0, 12, 6, 15}, 1, 6, 1, 0},
	} {
		st := feed(tc.seqs...)
		if st.Gaps != tc.gaps || st.Lost != tc.lost || st.Late != tc.late || st.Restarts != tc.restarts {
			t.Errorf("%s: %+v", name, st)
		}
	}
	// What could not be counted is no gap.
	s := session(t, Config{Datagrams: true})
	decode(t, s, message10(0, three), message10(3, tpl, three), message10(6, three))
	s.Messages([][]byte{message10(9, set(256, uint8(1)), []byte{1})})
	decode(t, s, message10(12, three), message10(15, three))
	if s.stats.Gaps+s.stats.Late+s.stats.Restarts != 0 {
		t.Errorf("%+v", s.stats)
	}
	// NetFlow v9 counts messages.
	s = session(t, Config{Datagrams: true})
	tpl9 := set(0, uint16(256), uint16(1), uint16(7), uint16(2))
	decode(t, s, message9(10, tpl9), message9(11, three), message9(14, three), message9(13, three))
	if s.stats.Gaps != 1 || s.stats.Lost != 1 || s.stats.Late != 1 {
		t.Errorf("%+v", s.stats)
	}
}

func TestNetFlow9(t *testing.T) {
	s := session(t, Config{Datagrams: true})
	got, err := s.Messages([][]byte{message9(0,
		set(0, uint16(256), uint16(5), uint16(8), uint16(4), uint16(22), uint16(4), uint16(57472+169), uint16(8), uint16(30000+25), uint16(4), uint16(41000), uint16(2)),
		set(1, uint16(257), uint16(8), uint16(4), uint16(1), uint16(4), uint16(2), uint16(4), uint16(82), uint16(4), []byte{0, 0}),
		set(256, []byte{192, 0, 2, 1}, uint32(60_000), "/bin/sh\x00", "web\x00", uint16(0xcafe)),
		set(257, uint32(1), uint32(2), "lo\x00\x00"),
	)})
	if err != nil {
		t.Fatal(err)
	}
	check(t, got[0].Map(), map[string]any{
		"sourceIPv4Address": netip.MustParseAddr("192.0.2.1"), "flowStartSysUpTime": uint64(60_000),
		"sourceProcessPath": "/bin/sh", "sourceContainerName": "web", "0:41000": []byte{0xca, 0xfe},
	})
	if at := got[0].Time("flowStartMilliseconds"); !at.Equal(time.Unix(1_700_000_000-3600+60, 0)) {
		t.Error(at)
	}
	check(t, got[1].Map(), map[string]any{"scopeSystem": []byte{0, 0, 0, 1}, "scopeInterface": uint64(2), "interfaceName": "lo"})
	// The clock of 32 bits went round between the flow and the message.
	r := got[0]
	r.Boot = r.ExportTime.Add(-time.Second)
	if at := r.sinceBoot(1<<32 - 1000); !at.Equal(r.ExportTime.Add(-2 * time.Second)) {
		t.Error(at)
	}
}

// TestClone keeps a record beyond the next message.
func TestClone(t *testing.T) {
	s := session(t, Config{})
	msg := message10(0, set(2, uint16(256), uint16(1), uint16(82), v), set(256, uint8(1), "x"))
	recs, err := s.Decode(msg, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	kept := recs[0].Clone()
	clear(msg)
	decode(t, s, message10(1, set(256, uint8(1), "y")))
	if kept.Text("interfaceName") != "x" || kept.Template.ID != 256 {
		t.Errorf("%+v", kept)
	}
}

func BenchmarkDecode(b *testing.B) {
	s := session(b, Config{})
	tpl := set(2, uint16(256), uint16(6), uint16(8), uint16(4), uint16(12), uint16(4), uint16(1), uint16(8), uint16(2), uint16(8), uint16(82), v, uint16(371), v)
	if _, err := s.Decode(message10(0, tpl), time.Now()); err != nil {
		b.Fatal(err)
	}
	var data []byte
	for range 20 {
		data = append(data, octets(uint32(1), uint32(2), uint64(3), uint64(4), uint8(4), "eth0", uint8(5), "alice")...)
	}
	msg, at, seq := message10(0, set(256, data)), time.Now(), uint32(0)
	b.ReportAllocs()
	b.SetBytes(int64(len(msg)))
	for b.Loop() {
		binary.BigEndian.PutUint32(msg[8:], seq)
		recs, err := s.Decode(msg, at)
		if err != nil || len(recs) != 20 {
			b.Fatal(err, len(recs))
		}
		seq += 20
	}
}
