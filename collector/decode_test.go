package collector

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

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
		"version":                {octets(uint16(6), make([]byte, 22)), CauseVersion},
		"header":                 {message10(0)[:15], CauseLength},
		"header of v9":           {message9(0)[:19], CauseLength},
		"too short":              {message10(0, good)[:20], CauseLength},
		"too long":               {append(message10(0, good), 0), CauseLength},
		"set without end":        {message10(0, octets(uint16(2), uint16(3))), CauseSet},
		"set of no octets":       {message10(0, octets(uint16(256), uint16(0))), CauseSet},
		"set beyond":             {message10(0, octets(uint16(2), uint16(5))), CauseSet},
		"rest":                   {message10(0, good, []byte{0, 1}), CauseSet},
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
		"header of v5":           {message5(0, 0, 0)[:23], CauseLength},
		"fewer records of v5":    {message5(0, 0, 2)[:24+95], CauseLength},
		"fewer records of v1":    {octets(uint16(1), uint16(1), make([]byte, 12+47)), CauseLength},
		"header of v7":           {octets(uint16(7), uint16(0), make([]byte, 19)), CauseLength},
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

// TestNoFieldsNoLoop is a template that makes other decoders loop without end.
func TestNoFieldsNoLoop(t *testing.T) {
	s := session(t, Config{Datagrams: true})
	s.Messages([][]byte{message9(0, set(0, uint16(256), uint16(0)), set(256, uint32(0))), message10(0, set(2, uint16(256), uint16(0)), set(256, uint32(0)))})
	if st := s.Stats(); st.Messages != 2 || st.Records != 0 || st.Malformed[CauseTemplate] != 1 || st.UnknownSets != 1 {
		t.Errorf("%+v", st)
	}
}
