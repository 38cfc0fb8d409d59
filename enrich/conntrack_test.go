package enrich

import (
	"testing"

	"github.com/sockflow/sockflow/flowcache"
)

// answer is the attributes of a conntrack entry as the kernel sends them.
func answer(orig, reply flowcache.Key) []byte {
	return appendTuple(appendTuple(nil, ctaTupleOrig, orig), ctaTupleReply, reply)
}

func TestConntrackMessage(t *testing.T) {
	for _, k := range []flowcache.Key{
		{Src: flowcache.AddrFrom4([4]byte{10, 0, 0, 1}), Dst: flowcache.AddrFrom4([4]byte{10, 0, 0, 2}), SrcPort: 5, DstPort: 53, Proto: 17},
		{Src: flowcache.Addr{0: 0xfd, 15: 1}, Dst: flowcache.Addr{0: 0xfd, 15: 2}, SrcPort: 5, DstPort: 53, Proto: 6},
	} {
		orig, back, err := parseConntrack(answer(k, k.Reverse()))
		if err != nil || orig != k || back != k.Reverse() {
			t.Errorf("%+v: %+v %+v %v", k, orig, back, err)
		}
	}
}

func FuzzConntrack(f *testing.F) {
	k := flowcache.Key{Src: flowcache.AddrFrom4([4]byte{10, 0, 0, 1}), Dst: flowcache.AddrFrom4([4]byte{10, 0, 0, 2}), Proto: 17}
	f.Add(answer(k, k.Reverse()))
	f.Fuzz(func(_ *testing.T, b []byte) {
		parseConntrack(b)
		eachEntry(b, func(b []byte) { eachZone(b, func(uint16) {}) })
	})
}

// BenchmarkTranslate is the cost of one flow that is looked up and not found. It asks the namespace it runs in, which must track connections.
func BenchmarkTranslate(b *testing.B) {
	c := NewConntrack(func() map[uint32]string { return map[uint32]string{1: ""} })
	defer c.Close()
	k := flowcache.Key{Src: flowcache.AddrFrom4([4]byte{10, 0, 0, 1}), Dst: flowcache.AddrFrom4([4]byte{10, 0, 0, 2}), Proto: 17, NetNS: 1}
	if c.Translate(k, 0); c.Stats().Lookups == 0 {
		b.Skip("no connections are tracked here")
	}
	b.ReportAllocs()
	for b.Loop() {
		k.SrcPort++
		c.Translate(k, 0)
	}
	if c.Stats().Errors > 0 {
		b.Error(c.Stats())
	}
}
