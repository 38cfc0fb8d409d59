package selection

import (
	"encoding/hex"
	"math/bits"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sockflow/sockflow/flowcache"
)

func parseAddr(s string) flowcache.Addr { return netip.MustParseAddr(s).As16() }

// TestCryptoPAn compares with what other implementations publish: the sample trace of the authors' reference implementation, and the
// documentation of yacryptopan.
func TestCryptoPAn(t *testing.T) {
	sample := []byte{21, 34, 23, 141, 51, 164, 207, 128, 19, 10, 91, 22, 73, 144, 125, 16, 216, 152, 143, 131, 121, 121, 101, 39, 98, 87, 76, 45, 42, 132, 34, 2}
	for _, tc := range []struct {
		key      []byte
		from, to string
	}{
		{sample, "128.11.68.132", "135.242.180.132"},
		{sample, "129.118.74.4", "134.136.186.123"},
		{sample, "130.132.252.244", "133.68.164.234"},
		{sample, "141.223.7.43", "141.167.8.160"},
		{sample, "24.0.250.221", "100.15.198.226"},
		{[]byte("32-char-str-for-AES-key-and-pad."), "192.0.2.1", "192.0.125.244"},
		{[]byte("32-char-str-for-AES-key-and-pad."), "2001:db8::1", "27fe:8bc7:fee:1e:1e1f:f0fe:f0e1:83fd"},
	} {
		a, err := NewAnonymizer(tc.key)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time it is remembered
			if got := a.Addr(parseAddr(tc.from)); got.Netip().String() != tc.to {
				t.Errorf("%s becomes %s, want %s", tc.from, got.Netip(), tc.to)
			}
		}
	}
}

// TestPrefixes: what two addresses have in common at the front they have in common afterwards, and no more.
func TestPrefixes(t *testing.T) {
	a, err := NewAnonymizer([]byte(strings.Repeat("k", keySize)))
	if err != nil {
		t.Fatal(err)
	}
	common := func(x, y flowcache.Addr) int {
		for i := range x {
			if d := x[i] ^ y[i]; d != 0 {
				return 8*i + bits.LeadingZeros8(d)
			}
		}
		return 128
	}
	for _, base := range []string{"10.20.30.40", "2001:db8:1:2:3:4:5:6"} {
		x := parseAddr(base)
		from := 0
		if x.Is4() {
			from = 96
		}
		for bit := from; bit < 128; bit++ {
			y := x
			y[bit/8] ^= 0x80 >> (bit % 8)
			if got := common(a.Addr(x), a.Addr(y)); got != bit {
				t.Errorf("%s: %d bits in common, want %d", base, got, bit)
			}
			if a.Addr(y).Is4() != y.Is4() {
				t.Errorf("%s changes its family", base)
			}
		}
	}
	for i := range 3 * maxKnown {
		a.Addr(flowcache.AddrFrom4([4]byte{byte(i >> 16), byte(i >> 8), byte(i), 1}))
	}
	if len(a.known) > maxKnown {
		t.Errorf("%d addresses are remembered", len(a.known))
	}
	r := flow()
	r.Post = flowcache.Translation{Src: r.Key.Dst, Dst: r.Key.Src}
	a.Record(r)
	if r.Key.Src != a.Addr(parseAddr("10.1.2.3")) || r.Post.Dst != r.Key.Src || r.Pre != (flowcache.Translation{}) {
		t.Errorf("%+v", r)
	}
}

func TestReadKey(t *testing.T) {
	raw := []byte("0123456789abcdefghijklmnopqrstuv")
	for name, tc := range map[string]struct {
		file string
		ok   bool
	}{
		"octets": {string(raw), true}, "line": {string(raw) + "\n", true}, "hex": {hex.EncodeToString(raw) + "\n", true}, "0x": {"0x" + hex.EncodeToString(raw), true},
		"short": {"abc", false}, "long": {string(raw) + "x", false}, "empty": {"", false},
	} {
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, []byte(tc.file), 0o600); err != nil {
			t.Fatal(err)
		}
		key, err := ReadKey(file)
		if (err == nil) != tc.ok || tc.ok && string(key) != string(raw) {
			t.Errorf("%s: %x, %v", name, key, err)
		}
		if err != nil && len(tc.file) > 3 && strings.Contains(err.Error(), tc.file) {
			t.Errorf("%s: the error tells the key", name)
		}
	}
}

func TestAggregator(t *testing.T) {
	g := NewAggregator(10)
	var out []flowcache.Record
	for i := range 5 {
		r := flow()
		r.Key.SrcPort = uint16(40000 + i)
		r.Start, r.End = int64(100-i), int64(200+i)
		r.Forward = flowcache.Counters{Payload: 10, Octets: 50, Packets: 1}
		r.Reverse = flowcache.Counters{Payload: 20, Octets: 60, Packets: 2}
		r.Source.Cookie, r.HasTCP, r.TCP.MinRTT, r.TCP.SRTT = uint64(i), true, uint32(9-i%3), uint32(i)
		r.First, r.Final, r.ForwardTotal.Payload = i != 1, true, 99 // one flow has been reported before
		switch i {
		case 1:
			r.ReverseTotal = r.Reverse // and is answered now
		case 3:
			r.Reverse = flowcache.Counters{} // one is not answered
		}
		out = g.Add(out, r)
	}
	if len(out) != 0 || g.Len() != 1 || g.Merged() != 4 {
		t.Fatalf("%d out, %d held, %d merged", len(out), g.Len(), g.Merged())
	}
	out = g.Flush(out)
	want := *flow()
	want.Key.SrcPort, want.Start, want.End = 0, 96, 204
	want.First, want.Flows, want.FlowsBack = true, 4, 4
	want.Forward = flowcache.Counters{Payload: 50, Octets: 250, Packets: 5}
	want.Reverse = flowcache.Counters{Payload: 80, Octets: 240, Packets: 8}
	want.Final, want.HasTCP, want.TCP.MinRTT, want.TCP.SRTT = true, true, 7, 4
	if d := cmp.Diff([]flowcache.Record{want}, out); d != "" {
		t.Error(d)
	}
	// These stay what they are: no ephemeral port, no known client, another process, a failure, no ports.
	out = out[:0]
	for i := range 7 {
		r := flow()
		r.First = true
		switch i {
		case 1:
			r.Key.SrcPort = 53
		case 2:
			r.Arbitrary = true
		case 3:
			r.Source.Process.PID = 9
		case 4:
			r.TCP.ConnectError = 111
		case 5:
			r.Key.Proto = 1
		case 6:
			r.EndReason = flowcache.EndActive
		}
		out = g.Add(out, r)
	}
	if len(out) != 3 || g.Len() != 3 {
		t.Errorf("%d out, %d held", len(out), g.Len())
	}
	out = g.Flush(out)
	if out[0].Flows != 1 || out[3].Flows != 2 {
		t.Errorf("%d and %d flows", out[0].Flows, out[3].Flows)
	}
	if r := out[3]; r.EndReason != flowcache.EndActive || r.Final {
		t.Errorf("one of its flows goes on: %s, %t", r.EndReason, r.Final)
	}
	// No more than it may hold.
	out = out[:0]
	for i := range 25 {
		r := flow()
		r.Key.DstPort = uint16(i + 1)
		out = g.Add(out, r)
		if g.Len() > 10 {
			t.Fatalf("%d held", g.Len())
		}
	}
	if len(g.Flush(out)) != 25 {
		t.Error("records are lost")
	}
}

// TestAggregatorByEnd: records that come in no order are kept apart by the interval in which they end.
func TestAggregatorByEnd(t *testing.T) {
	g := NewAggregator(10)
	g.ByEnd(1000, 100)
	var out []flowcache.Record
	for _, end := range []int64{1250, 1000, 1399, 1099, 1201, 1050} {
		r := flow()
		r.Start, r.End, r.First = end-5, end, true
		out = g.Add(out, r)
	}
	out = g.Flush(out)
	var got [][3]int64
	for _, r := range out {
		got = append(got, [3]int64{r.Start, r.End, int64(r.Flows)})
	}
	if d := cmp.Diff([][3]int64{{1196, 1250, 2}, {995, 1099, 3}, {1394, 1399, 1}}, got); d != "" {
		t.Error(d)
	}
}
