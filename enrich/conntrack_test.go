package enrich

import (
	"testing"

	"github.com/sockflow/sockflow/flowcache"
)

func TestConntrackMessage(t *testing.T) {
	for _, k := range []flowcache.Key{
		{Src: flowcache.AddrFrom4([4]byte{10, 0, 0, 1}), Dst: flowcache.AddrFrom4([4]byte{10, 0, 0, 2}), SrcPort: 5, DstPort: 53, Proto: 17},
		{Src: flowcache.Addr{0: 0xfd, 15: 1}, Dst: flowcache.Addr{0: 0xfd, 15: 2}, SrcPort: 5, DstPort: 53, Proto: 6},
	} {
		b, err := appendTuple(k)
		if err != nil {
			t.Fatal(err)
		}
		// An answer has the tuple of the other direction as well.
		r, _ := appendTuple(k.Reverse())
		reply := append([]byte(nil), r[nfgenmsgLen:]...)
		reply[2] = reply[2]&0xf0 | ctaTupleReply
		orig, back, err := parseConntrack(append(b[nfgenmsgLen:], reply...))
		if err != nil || orig != k || back != k.Reverse() {
			t.Errorf("%+v: %+v %+v %v", k, orig, back, err)
		}
	}
}

func FuzzConntrack(f *testing.F) {
	b, _ := appendTuple(flowcache.Key{Src: flowcache.AddrFrom4([4]byte{10, 0, 0, 1}), Dst: flowcache.AddrFrom4([4]byte{10, 0, 0, 2}), Proto: 17})
	f.Add(b[nfgenmsgLen:])
	f.Fuzz(func(_ *testing.T, b []byte) { parseConntrack(b) })
}
