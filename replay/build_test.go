package replay

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/sockflow/sockflow/flowcache"
)

// Packets for tests, built layer by layer: each function puts its header before what it carries.

func cat(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func u16be(v int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }

func ethernet(ether int, in []byte) []byte { return cat(make([]byte, 12), u16be(ether), in) }

// ip4 and ip6 choose the header by the addresses.
func ip(src, dst string, proto uint8, in []byte) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	if s.Is4() {
		h := make([]byte, 20)
		h[0], h[8], h[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(in)))
		copy(h[12:], s.AsSlice())
		copy(h[16:], d.AsSlice())
		return cat(h, in)
	}
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(in)))
	copy(h[8:], s.AsSlice())
	copy(h[24:], d.AsSlice())
	return cat(h, in)
}

func udp(src, dst int, in []byte) []byte {
	return cat(u16be(src), u16be(dst), u16be(8+len(in)), u16be(0), in)
}

func tcp(src, dst int, seq uint32, flags uint8, in []byte) []byte {
	h := make([]byte, 20)
	copy(h, cat(u16be(src), u16be(dst)))
	binary.BigEndian.PutUint32(h[4:], seq)
	h[12], h[13] = 5<<4, flags
	return cat(h, in)
}

// frag4 makes a fragment of an IPv4 packet: the octets of its payload from one place to another.
func frag4(packet []byte, id, from, to int) []byte {
	h := append([]byte{}, packet[:20]...)
	binary.BigEndian.PutUint16(h[4:], uint16(id))
	o := from / 8
	if to < len(packet)-20 {
		o |= 0x2000
	}
	binary.BigEndian.PutUint16(h[6:], uint16(o))
	binary.BigEndian.PutUint16(h[2:], uint16(20+to-from))
	return cat(h, packet[20+from:20+to])
}

// at makes a packet of a capture of IP packets.
func at(ms int64, b []byte) Packet {
	return Packet{Time: 1e18 + ms*1e6, Link: LinkRaw, Length: len(b), Data: b}
}

// meter runs packets through a Meter and returns its records and statistics.
func meter(t testing.TB, cfg Config, packets []Packet) ([]flowcache.Record, Stats) {
	t.Helper()
	m, err := NewMeter(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var records []flowcache.Record
	i := 0
	err = m.Run(func(p *Packet) error {
		if i == len(packets) {
			return errEnd
		}
		*p = packets[i]
		i++
		return nil
	}, func(r *flowcache.Records) error {
		records = append(records, r.List...)
		r.Release()
		return nil
	})
	if err != errEnd {
		t.Fatal(err)
	}
	return records, m.Stats()
}
