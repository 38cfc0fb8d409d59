package enrich

import (
	"slices"
	"testing"

	"github.com/sockflow/sockflow/flowcache"
)

// message is one of a dump, with its attributes.
func message(kind uint16, attributes []byte) []byte {
	b := ne.AppendUint32(nil, uint32(nlmsgHeader+nfgenmsgLen+len(attributes)))
	b = ne.AppendUint16(b, kind)
	b = append(b, make([]byte, nlmsgHeader-6+nfgenmsgLen)...)
	return append(b, attributes...)
}

// oneWay is CTA_TUPLE_ORIG or CTA_TUPLE_REPLY of an entry that has a zone for that direction.
func oneWay(kind uint16, k flowcache.Key, zone byte) []byte {
	b := appendTuple(nil, kind, k)
	b = appendAttribute(b, ctaTupleZone, 0, zone)
	ne.PutUint16(b, uint16(len(b)))
	return b
}

func TestZonesOfDump(t *testing.T) {
	k := flowcache.Key{Src: flowcache.AddrFrom4([4]byte{10, 0, 0, 1}), Dst: flowcache.AddrFrom4([4]byte{10, 0, 0, 2}), SrcPort: 5, DstPort: 53, Proto: 17}
	dump := message(1<<8, answer(k, k.Reverse())) // zone 0 is not said
	dump = append(dump, message(1<<8, appendAttribute(answer(k, k.Reverse()), ctaZone, 255, 254))...)
	dump = append(dump, message(1<<8, append(oneWay(ctaTupleOrig, k, 7), appendTuple(nil, ctaTupleReply, k.Reverse())...))...)
	dump = append(dump, message(1<<8, append(appendTuple(nil, ctaTupleOrig, k), oneWay(ctaTupleReply, k.Reverse(), 8)...))...)
	var zones []uint16
	read := func(b []byte) bool {
		zones = nil
		return eachEntry(b, func(b []byte) { eachZone(b, func(z uint16) { zones = append(zones, z) }) })
	}
	if done, want := read(dump), []uint16{65534, 7, 8}; done || !slices.Equal(zones, want) {
		t.Errorf("zones %v, over %v; want %v, and more to come", zones, done, want)
	}
	for name, end := range map[string][]byte{"done": message(nlmsgDone, nil), "error": message(nlmsgError, nil), "cut": dump[:10], "no length": make([]byte, 20)} {
		if done := read(append(slices.Clone(dump), end...)); !done || len(zones) != 3 {
			t.Errorf("%s: zones %v, over %v", name, zones, done)
		}
	}
}
