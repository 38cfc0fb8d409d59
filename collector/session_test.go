package collector

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

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

const v = uint16(65535)

func TestTypes(t *testing.T) {
	ip6 := netip.MustParseAddr("2001:db8::1")
	a16 := ip6.As16()
	got := decode(t, session(t, Config{}), message10(0,
		set(2, uint16(256), uint16(17),
			uint16(1), uint16(3), // octetDeltaCount, reduced
			uint16(8), uint16(4), uint16(27), uint16(16), uint16(56), uint16(6),
			uint16(150), uint16(4), uint16(152), uint16(8), uint16(154), uint16(8), uint16(156), uint16(8),
			uint16(276), uint16(1), // dataRecordsReliability
			uint16(320), uint16(8), uint16(321), uint16(4), // absoluteError, relativeError reduced to float32
			uint16(434), uint16(2), // mibObjectValueInteger, signed, reduced
			uint16(82), v, uint16(210), uint16(3),
			uint16(0x8000|1), uint16(8), uint32(29305), // reverseOctetDeltaCount
			uint16(0x8000|999), v, uint32(4444), // nobody's
			uint16(8), uint16(3), // an address that cannot be
		),
		set(256,
			uint8(1), uint8(2), uint8(3), []byte{192, 0, 2, 1}, a16[:], []byte{1, 2, 3, 4, 5, 6},
			uint32(1_700_000_000), uint64(1_700_000_000_123), uint32(1_700_000_000+2208988800), uint32(1<<31), uint32(100), uint32(0),
			uint8(2), uint64(0x3ff8000000000000), uint32(0xbfc00000), uint16(0xfffe),
			uint8(5), "eth0\x00", "abc", uint64(9), uint8(255), uint16(2), "\xca\xfe", "abc",
			[]byte{0, 0, 0}), // padding, shorter than any record
	))
	at := time.Unix(1_700_000_000, 0).UTC()
	check(t, got, []map[string]any{{
		"octetDeltaCount": uint64(0x010203), "sourceIPv4Address": netip.MustParseAddr("192.0.2.1"), "sourceIPv6Address": ip6,
		"sourceMacAddress": got[0]["sourceMacAddress"], "flowStartSeconds": at, "flowStartMilliseconds": at.Add(123 * time.Millisecond),
		"flowStartMicroseconds": at.Add(500 * time.Millisecond), "flowStartNanoseconds": time.Unix(100+1<<32-2208988800, 0).UTC(),
		"dataRecordsReliability": false, "absoluteError": 1.5, "relativeError": -1.5, "mibObjectValueInteger": int64(-2),
		"interfaceName": "eth0", "paddingOctets": []byte("abc"), "reverseOctetDeltaCount": uint64(9), "4444:999": []byte{0xca, 0xfe},
	}})
	if m := fmt.Sprint(got[0]["sourceMacAddress"]); m != "01:02:03:04:05:06" {
		t.Error(m)
	}
}

// TestPadding: JSON leaves paddingOctets out, wherever it is in a record.
func TestPadding(t *testing.T) {
	s := session(t, Config{})
	got, err := s.Messages([][]byte{message10(0,
		set(2, uint16(256), uint16(2), uint16(82), v, uint16(210), v),
		set(2, uint16(257), uint16(1), uint16(210), v),
		set(256, uint8(1), "a", uint8(2), []byte{0, 0}),
		set(257, uint8(1), []byte{0}),
	)})
	if err != nil || len(got) != 2 {
		t.Fatal(len(got), err)
	}
	for i, end := range []string{`"@template":256,"interfaceName":"a"}`, `"@template":257}`} {
		if js := string(got[i].AppendJSON(nil)); !strings.HasSuffix(js, end) {
			t.Errorf("%s, want it to end with %s", js, end)
		}
	}
}

func TestMalformed(t *testing.T) {
	good := set(2, uint16(256), uint16(1), uint16(82), v)
	for name, tc := range map[string]struct {
		msg  []byte
		want Cause
	}{
		"empty":                  {nil, CauseLength},
		"one octet":              {[]byte{10}, CauseLength},
		"version":                {octets(uint16(5), make([]byte, 22)), CauseVersion},
		"header":                 {message10(0)[:15], CauseLength},
		"header of v9":           {message9(0)[:19], CauseLength},
		"too short":              {message10(0, good)[:20], CauseLength},
		"too long":               {append(message10(0, good), 0), CauseLength},
		"set without end":        {message10(0, octets(uint16(2), uint16(3))), CauseSet},
		"set of no octets":       {message10(0, octets(uint16(256), uint16(0))), CauseSet},
		"set beyond":             {message10(0, octets(uint16(2), uint16(5))), CauseSet},
		"rest":                   {message10(0, good, []byte{0, 0}), CauseSet},
		"template id":            {message10(0, set(2, uint16(255), uint16(1), uint16(82), v)), CauseTemplate},
		"template too long":      {message10(0, set(2, uint16(256), uint16(2), uint16(82), v)), CauseTemplate},
		"enterprise cut":         {message10(0, set(2, uint16(256), uint16(1), uint16(0x8052), v)), CauseTemplate},
		"no octets":              {message10(0, set(2, uint16(256), uint16(1), uint16(82), uint16(0))), CauseTemplate},
		"mostly no octets":       {message10(0, set(2, uint16(256), uint16(3), uint16(4), uint16(1), uint16(82), uint16(0), uint16(83), uint16(0))), CauseTemplate},
		"no fields of v9":        {message9(0, set(0, uint16(256), uint16(0))), CauseTemplate},
		"no scope":               {message10(0, set(3, uint16(256), uint16(1), uint16(0), uint16(82), v)), CauseTemplate},
		"more scope than fields": {message10(0, set(3, uint16(256), uint16(1), uint16(2), uint16(82), v)), CauseTemplate},
		"options header":         {message10(0, set(3, uint16(256), uint16(1))), CauseTemplate},
		"value beyond":           {message10(0, good, set(256, uint8(3), "ab")), CauseRecord},
		"length cut":             {message10(0, good, set(256, uint8(255), uint8(0))), CauseRecord},
	} {
		s := session(t, Config{})
		recs, err := s.Decode(tc.msg, time.Now())
		var m *MalformedError
		if !errors.As(err, &m) || m.Cause != tc.want || recs != nil {
			t.Errorf("%s: %v, %v; want cause %v", name, recs, err, tc.want)
		}
		if st := s.Stats(); st.Malformed[tc.want] != 1 || st.Discarded() != 1 || st.Messages != 1 || st.Octets != uint64(len(tc.msg)) {
			t.Errorf("%s: %+v", name, st)
		}
	}
	// What comes before the fault in a message does not count (RFC 7011, section 9).
	s := session(t, Config{})
	if _, err := s.Messages([][]byte{message10(0, good, set(256, uint8(1), "a"), set(256, uint8(2), "b"))}); err == nil || s.Stats().Records != 0 {
		t.Errorf("%v %+v", err, s.Stats())
	}
}

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
	if s.memory != s.cfg.Memory-domainCost-s.domains[domainKey{id: 7}].templates[256].cost() {
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
	have := uint64(len(s.domains[domainKey{id: 7}].templates))
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
	s.Messages([][]byte{message10(9, set(256, uint8(1)), []byte{0})})
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
		set(0, uint16(256), uint16(5), uint16(8), uint16(4), uint16(22), uint16(4), uint16(57472+169), uint16(8), uint16(30000+25), uint16(4), uint16(40000), uint16(2)),
		set(1, uint16(257), uint16(8), uint16(4), uint16(1), uint16(4), uint16(2), uint16(4), uint16(82), uint16(4), []byte{0, 0}),
		set(256, []byte{192, 0, 2, 1}, uint32(60_000), "/bin/sh\x00", "web\x00", uint16(0xcafe)),
		set(257, uint32(1), uint32(2), "lo\x00\x00"),
	)})
	if err != nil {
		t.Fatal(err)
	}
	check(t, got[0].Map(), map[string]any{
		"sourceIPv4Address": netip.MustParseAddr("192.0.2.1"), "flowStartSysUpTime": uint64(60_000),
		"sourceProcessPath": "/bin/sh", "sourceContainerName": "web", "0:40000": []byte{0xca, 0xfe},
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

// TestTypeRecords learns names (RFC 5610), also of a template that came before.
func TestTypeRecords(t *testing.T) {
	types := set(3, uint16(400), uint16(4), uint16(2), uint16(346), uint16(4), uint16(303), uint16(2), uint16(339), uint16(1), uint16(341), v)
	tpl := set(2, uint16(256), uint16(1), uint16(0x8000|5), v, uint32(4444))
	typ := func(pen uint32, id uint16, typ uint8, name string) []byte {
		return set(400, pen, id, typ, uint8(len(name)), name)
	}
	data := set(256, uint8(1), "x")
	s := session(t, Config{})
	got, err := s.Messages([][]byte{
		message10(0, tpl, data),
		message10(1, types, typ(4444, 5, 13, "containerName")),
		message10(2, data),
		message10(3, typ(4444, 5, 0, "containerOctets")),
		message10(4, data, typ(0, 8, 13, "notTheirs"), typ(29305, 1, 13, "norThis"), typ(4444, 6, 13, "bad\x1b[31m"), typ(4444, 6, 13, "")),
	})
	if err != nil {
		t.Fatal(err)
	}
	var names []any
	for _, r := range flowsOf(got) {
		names = append(names, r.Template.Fields[0].Name(), r.Value(0))
	}
	check(t, names, []any{"4444:5", []byte("x"), "containerName", "x", "containerOctets", []byte("x")})
	if s.stats.Ignored != 4 || s.stats.Options != 6 {
		t.Errorf("%+v", s.stats)
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

// TestLists decodes structured data (RFC 6313), and leaves what it cannot decode as octets.
func TestLists(t *testing.T) {
	tpls := [][]byte{
		set(2, uint16(256), uint16(1), uint16(291), v), set(2, uint16(257), uint16(1), uint16(292), v), set(2, uint16(258), uint16(1), uint16(293), v),
		set(2, uint16(300), uint16(2), uint16(7), uint16(2), uint16(82), v),
	}
	list := func(id uint16, parts ...any) []byte {
		b := octets(parts...)
		return set(id, uint8(len(b)), b)
	}
	deep := octets(uint8(3), uint16(82), v, uint8(1), "x")
	for range 6 {
		deep = octets(uint8(3), uint16(291), v, uint8(len(deep)), deep)
	}
	s := session(t, Config{})
	msgs := [][]byte{message10(0, tpls...)}
	want := []string{
		`{"semantic":"allOf","interfaceName":["a","bc"]}`,
		`{"semantic":"ordered","reverseOctetDeltaCount":[258]}`,
		`{"semantic":"undefined","interfaceName":[]}`,
		`{"semantic":"exactlyOneOf","records":[{"sourceTransportPort":80,"interfaceName":"a"},{"sourceTransportPort":81,"interfaceName":""}]}`,
		`{"semantic":"noneOf","records":[{"sourceTransportPort":80,"interfaceName":"a"},{"sourceTransportPort":81,"interfaceName":""}]}`,
	}
	opaque := [][]byte{
		list(256), list(256, uint8(3)), list(256, uint8(3), uint16(82), v, uint8(5), "a"), list(256, uint8(3), uint16(82), uint16(0), "a"),
		list(256, uint8(3), uint16(0x8052), v), list(257, uint8(3), uint16(999), "abc"), list(257, uint8(3), uint16(300), "a"), list(257, uint8(3), uint8(1)),
		list(258, uint8(3), uint16(300), uint16(3)), list(258, uint8(3), uint16(300), uint16(99)), list(258, uint8(3), uint16(300)),
	}
	sets := append([][]byte{
		list(256, uint8(3), uint16(82), v, uint8(1), "a", uint8(2), "bc"),
		list(256, uint8(4), uint16(0x8001), uint16(2), uint32(29305), uint16(258)),
		list(256, uint8(255), uint16(82), v),
		list(257, uint8(1), uint16(300), uint16(80), uint8(1), "a", uint16(81), uint8(0)),
		list(258, uint8(0), uint16(300), uint16(8), uint16(80), uint8(1), "a", uint16(300), uint16(7), uint16(81), uint8(0)),
	}, opaque...)
	for i, set := range append(sets, list(256, deep)) {
		msgs = append(msgs, message10(uint32(i), set))
	}
	got, err := s.Messages(msgs)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		js := string(got[i].AppendJSON(nil))
		switch {
		case i < len(want):
			if !strings.Contains(js, want[i]) {
				t.Errorf("%d: %s, want %s", i, js, want[i])
			}
		case i < len(sets):
			if _, ok := got[i].Value(0).([]byte); !ok {
				t.Errorf("%d: %s", i, js)
			}
		default:
			if n := strings.Count(js, "semantic"); n != maxDepth {
				t.Errorf("%d lists deep: %s", n, js)
			}
		}
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

// TestNoFieldsNoLoop is a template that makes other decoders loop without end.
func TestNoFieldsNoLoop(t *testing.T) {
	s := session(t, Config{Datagrams: true})
	s.Messages([][]byte{message9(0, set(0, uint16(256), uint16(0)), set(256, uint32(0))), message10(0, set(2, uint16(256), uint16(0)), set(256, uint32(0)))})
	if st := s.Stats(); st.Messages != 2 || st.Records != 0 || st.Malformed[CauseTemplate] != 1 || st.UnknownSets != 1 {
		t.Errorf("%+v", st)
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
