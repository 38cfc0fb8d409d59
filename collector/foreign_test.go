package collector

import (
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sockflow/sockflow/templates"
)

// message5 is a NetFlow v5 message of engine 1/2, an hour after boot, with records that differ in their source port.
func message5(seq uint32, sampling uint16, records int) []byte {
	b := octets(uint16(5), uint16(records), uint32(3_600_000), uint32(1_700_000_000), uint32(250_000_000), seq, uint16(0x0102), sampling)
	for i := range records {
		b = append(b, octets([]byte{192, 0, 2, 1}, []byte{198, 51, 100, 7}, []byte{203, 0, 113, 1}, uint16(3), uint16(4), uint32(10), uint32(1500), uint32(3_500_000), uint32(3_590_500),
			uint16(1000+i), uint16(443), uint8(0), uint8(0x1b), uint8(6), uint8(0x20), uint16(64500), uint16(64501), uint8(24), uint8(16), uint16(0))...)
	}
	return b
}

// TestNetFlow5 also reads v1 and v7, whose records differ in their last octets, and checks loss by the sequence, which
// counts flows.
func TestNetFlow5(t *testing.T) {
	s := session(t, Config{Datagrams: true})
	recs, err := s.Messages([][]byte{message5(100, 0, 2), message5(102, 0x8064, 1), message5(110, 0, 1)})
	if err != nil || len(recs) != 4 {
		t.Fatal(len(recs), err)
	}
	boot := time.Unix(1_700_000_000, 250_000_000).Add(-time.Hour)
	for i, r := range recs {
		if r.Version != 5 || r.Domain != 0x0102 || r.Addr("sourceIPv4Address") != netip.MustParseAddr("192.0.2.1") || r.Uint("octetDeltaCount") != 1500 ||
			r.Uint("packetDeltaCount") != 10 || r.Uint("sourceTransportPort") != []uint64{1000, 1001, 1000, 1000}[i] || r.Uint("protocolIdentifier") != 6 ||
			!r.Time("flowStartMilliseconds").Equal(boot.Add(3500*time.Second)) || !r.Time("flowEndMilliseconds").Equal(boot.Add(3590500*time.Millisecond)) {
			t.Errorf("record %d: %v", i, r.Map())
		}
		if r.Uint("samplingInterval") != []uint64{0, 0, 100, 0}[i] || r.Uint("samplingAlgorithm") != []uint64{0, 0, 2, 0}[i] {
			t.Errorf("record %d: sampled %v in %v", i, r.Get("samplingAlgorithm"), r.Get("samplingInterval"))
		}
	}
	const want = `"@protocol":"netflow5","@time":"2023-11-14T22:13:20Z","@domain":258,"sourceIPv4Address":"192.0.2.1","destinationIPv4Address":"198.51.100.7",` +
		`"ipNextHopIPv4Address":"203.0.113.1","ingressInterface":3,"egressInterface":4,"packetDeltaCount":10,"octetDeltaCount":1500,"flowStartSysUpTime":3500000,` +
		`"flowEndSysUpTime":3590500,"sourceTransportPort":1000,"destinationTransportPort":443,"tcpControlBits":27,"protocolIdentifier":6,"ipClassOfService":32,` +
		`"bgpSourceAsNumber":64500,"bgpDestinationAsNumber":64501,"sourceIPv4PrefixLength":24,"destinationIPv4PrefixLength":16,` +
		`"flowStartMilliseconds":"2023-11-14T22:11:40.250Z","flowEndMilliseconds":"2023-11-14T22:13:10.750Z"}`
	if js := string(recs[0].AppendJSON(nil)); !strings.HasSuffix(js, want) {
		t.Errorf("%s\nwant it to end with %s", js, want)
	}
	if st := s.Stats(); st.Lost != 7 || st.Gaps != 1 || st.Records != 4 || st.Ignored != 0 {
		t.Errorf("%+v", st)
	}

	record := func(rest ...any) []byte {
		return octets([]byte{192, 0, 2, 1}, []byte{198, 51, 100, 7}, []byte{203, 0, 113, 1}, uint16(3), uint16(4), uint32(10), uint32(1500), uint32(3_500_000), uint32(3_590_500),
			uint16(1000), uint16(443), octets(rest...))
	}
	v1 := octets(uint16(1), uint16(1), uint32(3_600_000), uint32(1_700_000_000), uint32(0), record(uint16(0), uint8(17), uint8(0x20), uint8(0x1b), []byte{9, 9, 9}, uint32(0)))
	v7 := octets(uint16(7), uint16(1), uint32(3_600_000), uint32(1_700_000_000), uint32(0), uint32(5), uint32(0),
		record(uint8(0), uint8(0x1b), uint8(17), uint8(0x20), uint16(64500), uint16(64501), uint8(24), uint8(16), uint16(0), []byte{192, 0, 2, 254}))
	recs, err = s.Messages([][]byte{v1, v7, append(v7, 0, 0)})
	if err != nil || len(recs) != 3 {
		t.Fatal(len(recs), err)
	}
	for i, r := range recs {
		if r.Uint("protocolIdentifier") != 17 || r.Uint("ipClassOfService") != 0x20 || r.Uint("tcpControlBits") != 0x1b || r.Version != []uint16{1, 7, 7}[i] ||
			i > 0 && r.Addr("ipv4RouterSc") != netip.MustParseAddr("192.0.2.254") || r.Uint("octetDeltaCount") != 1500 {
			t.Errorf("record %d: %v", i, r.Map())
		}
	}
	if st := s.Stats(); st.Ignored != 1 {
		t.Errorf("%+v", st)
	}
}

// TestFilledMessages: zeros after the last set, or before the next multiple of four, cost neither the message nor the
// template in it.
func TestFilledMessages(t *testing.T) {
	template9 := set(0, uint16(256), uint16(1), uint16(7), uint16(2))
	template10 := set(2, uint16(256), uint16(1), uint16(7), uint16(2))
	for _, n := range []int{0, 1, 2, 3, 4, 5, 7, 8, 100, 1220} {
		fill := make([]byte, n)
		s := session(t, Config{Datagrams: true})
		for _, msg := range [][]byte{message9(0, template9, fill), message9(1, set(256, uint16(80)), fill), message10(0, template10, fill), message10(0, set(256, uint16(80)), fill)} {
			if _, err := s.Decode(msg, time.Now()); err != nil {
				t.Errorf("%d zeros: %v", n, err)
			}
		}
		if st := s.Stats(); st.Records != 2 || st.Discarded() != 0 || (st.Ignored == 4) != (n > 0) {
			t.Errorf("%d zeros: %+v", n, st)
		}
	}
	// One to three octets of anything (NetFlow v9), or sets that begin at multiples of four though the one before says
	// less.
	s := session(t, Config{Datagrams: true})
	got := decode(t, s, message9(0, template9, []byte{1}), message9(1, set(256, uint16(80)), []byte{1, 2, 3}),
		message9(2, set(256, uint16(81)), []byte{0, 0}, template9, set(256, uint16(82))), message9(3, set(256, uint16(83)), []byte{0, 0}, set(256, uint16(84))))
	if len(got) != 5 || s.stats.Lost != 0 || s.stats.Ignored != 2 {
		t.Errorf("%v %+v", got, s.stats)
	}
	for _, msg := range [][]byte{message9(4, set(256, uint16(80)), []byte{0, 0, 1, 0, 0, 3}), message10(0, set(2, uint16(256), uint16(1), uint16(7), uint16(2)), []byte{0, 1})} {
		if _, err := s.Decode(msg, time.Now()); err == nil {
			t.Errorf("%x was accepted", msg)
		}
	}
}

// TestVariableLengthV9: a field of length 65535 has its length before each value, as IPFIX has it.
func TestVariableLengthV9(t *testing.T) {
	s := session(t, Config{Datagrams: true})
	got := decode(t, s, message9(0, set(0, uint16(256), uint16(2), uint16(82), v, uint16(7), uint16(2))),
		message9(1, set(256, uint8(2), "lo", uint16(80), uint8(255), uint16(3), "eth", uint16(81), []byte{0, 0})))
	check(t, got, []map[string]any{{"interfaceName": "lo", "sourceTransportPort": uint64(80)}, {"interfaceName": "eth", "sourceTransportPort": uint64(81)}})
}

// TestShortSets: a set that is shorter than one record of its template is counted.
func TestShortSets(t *testing.T) {
	s := session(t, Config{Datagrams: true})
	decode(t, s, message9(0, set(0, uint16(256), uint16(1), uint16(1), uint16(8))), message9(1, set(256, uint32(80))), message9(2, set(256)))
	if s.stats.ShortSets != 1 || s.stats.ShortOctets != 4 || s.stats.Records != 0 {
		t.Errorf("%+v", s.stats)
	}
}

// keys returns the names of a JSON object in order, and fails where one comes twice.
func keys(t *testing.T, js []byte) (names []string) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(string(js)))
	depth, seen := 0, map[string]bool{}
	isKey := true
	for {
		tok, err := d.Token()
		if err != nil {
			break
		}
		switch tok {
		case json.Delim('{'), json.Delim('['):
			depth++
			continue
		case json.Delim('}'), json.Delim(']'):
			if depth--; depth == 1 {
				isKey = true
			}
			continue
		}
		if depth != 1 {
			continue
		}
		if isKey {
			name := tok.(string)
			if seen[name] {
				t.Errorf("%s comes twice in %s", name, js)
			}
			seen[name] = true
			names = append(names, name)
			if d.More() {
				isKey = false
			}
			continue
		}
		isKey = true
	}
	return names
}

// TestNamesOnce: whatever a record has, and whatever its exporter calls it, each name comes once in JSON, and those of
// the message and of the registry are theirs.
func TestNamesOnce(t *testing.T) {
	both := session(t, Config{Datagrams: true})
	recs, err := both.Messages([][]byte{
		message9(0, set(0, uint16(256), uint16(4), uint16(22), uint16(4), uint16(21), uint16(4), uint16(152), uint16(8), uint16(22), uint16(4))),
		message9(1, set(256, uint32(1000), uint32(2000), uint64(1_600_000_000_000), uint32(3000))),
	})
	if err != nil || len(recs) != 1 {
		t.Fatal(err)
	}
	js := recs[0].AppendJSON(nil)
	names := strings.Join(keys(t, js)[4:], " ")
	if names != "@template flowStartSysUpTime flowEndSysUpTime flowStartMilliseconds flowStartSysUpTime#2 flowEndMilliseconds" || !strings.Contains(string(js), "2020-09-13") {
		t.Errorf("%s: %s", names, js)
	}

	types := set(3, uint16(400), uint16(4), uint16(2), uint16(346), uint16(4), uint16(303), uint16(2), uint16(339), uint16(1), uint16(341), v)
	typed := func(id uint16, name string) []byte {
		return set(400, uint32(4444), id, uint8(13), uint8(len(name)), name)
	}
	s := session(t, Config{})
	var fields []any
	for i := range uint16(6) {
		fields = append(fields, uint16(0x8001+i), v, uint32(4444))
	}
	fields = append(fields, uint16(8), uint16(4), uint16(82), v, uint16(82), v)
	recs, err = s.Messages([][]byte{
		message10(0, types, typed(1, "@from"), typed(2, "sourceIPv4Address"), typed(3, "interfaceName#2"), typed(4, "interfaceName"), typed(5, "a"), typed(6, "a")),
		message10(6, set(2, append([]any{uint16(256), uint16(9)}, fields...)...),
			set(256, uint8(1), "1", uint8(1), "2", uint8(1), "3", uint8(1), "4", uint8(1), "5", uint8(1), "6", []byte{192, 0, 2, 1}, uint8(2), "lo", uint8(3), "lo2")),
	})
	if err != nil || s.stats.Ignored != 1 {
		t.Fatal(err, s.stats)
	}
	r := &recs[len(recs)-1]
	js = r.AppendJSON(nil)
	want := "@from @protocol @time @domain @template 4444:1 sourceIPv4Address#2 interfaceName#2#1 interfaceName#3 a a#2 sourceIPv4Address interfaceName interfaceName#2"
	if names := strings.Join(keys(t, js), " "); names != want {
		t.Errorf("%s\nwant %s", names, want)
	}
	if a := r.Addr("sourceIPv4Address"); a != netip.MustParseAddr("192.0.2.1") || r.Text("interfaceName") != "lo" {
		t.Errorf("%v %q", a, r.Text("interfaceName"))
	}
}

var updateIANA = flag.String("update-iana", "", "write iana.txt anew from this `FILE`: ipfix.xml of www.iana.org/assignments/ipfix")

// maxAge is how old the copy of IANA's registry may become.
const maxAge = 18 * 30 * 24 * time.Hour

// TestRegistryAge fails when the copy of IANA's registry is old, and says what to do.
func TestRegistryAge(t *testing.T) {
	if *updateIANA != "" {
		b, err := os.ReadFile(*updateIANA)
		if err != nil {
			t.Fatal(err)
		}
		text, err := readIANA(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("iana.txt", text, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	first, _, _ := strings.Cut(iana, "\n")
	date, err := time.Parse(time.DateOnly, strings.TrimPrefix(first, datePrefix))
	if err != nil {
		t.Fatal(err)
	}
	if age := time.Since(date); age > maxAge {
		t.Errorf("iana.txt is of %s: fetch www.iana.org/assignments/ipfix/ipfix.xml, and go test -run TestRegistryAge ./collector -update-iana FILE", date.Format(time.DateOnly))
	}
}

// TestRegistryNames: numbers are in order and come once, and no two elements of the registry have one name unless they
// are the same in two dialects.
func TestRegistryNames(t *testing.T) {
	r, err := NewRegistry(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []uint16{533, 515, 491, 43} {
		if r.lookup(templates.Number{ID: id}) == nil {
			t.Errorf("no element %d", id)
		}
	}
	ours, err := templates.Elements()
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, e := range ours {
		named[e.Name] = true
	}
	by := map[string]templates.Number{}
	for n, e := range r.elements {
		if old, ok := by[e.Name]; ok && !named[e.Name] {
			t.Errorf("%s is %v and %v", e.Name, old, n)
		}
		by[e.Name] = n
	}
	for n, want := range map[templates.Number]string{
		{PEN: 35632, ID: 118}: "L7_PROTO", {PEN: 6871, ID: 14}: "initialTCPFlags", {PEN: 9, ID: 12235}: "ciscoApplicationHTTPHost", {PEN: 6876, ID: 880}: "tenantProtocol",
	} {
		if e := r.lookup(n); e == nil || e.Name != want {
			t.Errorf("%v is %+v, want %s", n, e, want)
		}
	}
	for id, want := range map[uint16]string{33002: "NF_F_FW_EXT_EVENT", 40000: "NF_F_USERNAME", 56701: "PANOS_APPID", 57472 + 118: "L7_PROTO", 57472 + 168: "sourceProcessId"} {
		if e := r.lookupV9(id); e == nil || e.Name != want {
			t.Errorf("%d is %+v, want %s", id, e, want)
		}
	}
}
