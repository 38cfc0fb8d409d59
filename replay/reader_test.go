package replay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

var errEnd = errors.New("the test's packets are over")

// pcapOf writes a pcap file.
func pcapOf(order binary.AppendByteOrder, magic uint32, link uint32, packets ...Packet) []byte {
	b := order.AppendUint32(nil, magic)
	b = order.AppendUint16(b, 2)
	b = order.AppendUint16(b, 4)
	b = order.AppendUint32(b, 0)
	b = order.AppendUint32(b, 0)
	b = order.AppendUint32(b, 65535)
	b = order.AppendUint32(b, link)
	for _, p := range packets {
		fraction := p.Time % 1e9
		if magic != pcapNano {
			fraction /= 1000
		}
		b = order.AppendUint32(b, uint32(p.Time/1e9))
		b = order.AppendUint32(b, uint32(fraction))
		b = order.AppendUint32(b, uint32(len(p.Data)))
		b = order.AppendUint32(b, uint32(p.Length))
		if magic == pcapModified {
			b = append(b, make([]byte, 8)...)
		}
		b = append(b, p.Data...)
	}
	return b
}

// block writes a block of pcapng.
func block(order binary.AppendByteOrder, kind uint32, body []byte) []byte {
	for len(body)%4 != 0 {
		body = append(body, 0)
	}
	b := order.AppendUint32(nil, kind)
	b = order.AppendUint32(b, uint32(12+len(body)))
	b = append(b, body...)
	return order.AppendUint32(b, uint32(12+len(body)))
}

func sectionOf(order binary.AppendByteOrder) []byte {
	b := order.AppendUint32(nil, ngOrder)
	b = order.AppendUint16(b, 1)
	b = order.AppendUint16(b, 0)
	return block(order, ngSectionHeader, order.AppendUint64(b, 1<<64-1))
}

func interfaceOf(order binary.AppendByteOrder, link uint16, snaplen uint32, options ...[]byte) []byte {
	b := order.AppendUint16(nil, link)
	b = order.AppendUint16(b, 0)
	b = order.AppendUint32(b, snaplen)
	return block(order, ngInterfaceBlock, append(b, bytes.Join(options, nil)...))
}

func option(order binary.AppendByteOrder, code uint16, value []byte) []byte {
	b := order.AppendUint16(nil, code)
	b = order.AppendUint16(b, uint16(len(value)))
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func enhanced(order binary.AppendByteOrder, id uint32, stamp uint64, length int, data []byte) []byte {
	b := order.AppendUint32(nil, id)
	b = order.AppendUint32(b, uint32(stamp>>32))
	b = order.AppendUint32(b, uint32(stamp))
	b = order.AppendUint32(b, uint32(len(data)))
	b = order.AppendUint32(b, uint32(length))
	return block(order, ngEnhancedPacket, append(b, data...))
}

func readAll(in io.Reader) ([]Packet, error) {
	r, err := NewReader(in)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var all []Packet
	for {
		var p Packet
		if err := r.Next(&p); err != nil {
			if err == io.EOF {
				err = nil
			}
			return all, err
		}
		p.Data = bytes.Clone(p.Data)
		all = append(all, p)
	}
}

func samePackets(t *testing.T, got, want []Packet) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d packets, want %d", len(got), len(want))
	}
	for i := range got {
		g, w := got[i], want[i]
		if g.Time != w.Time || g.Link != w.Link || g.Length != w.Length || !bytes.Equal(g.Data, w.Data) {
			t.Errorf("packet %d: %+v, want %+v", i, g, w)
		}
	}
}

func TestPcap(t *testing.T) {
	want := []Packet{
		{Time: 1_700_000_000_123_456_000, Link: 1, Length: 1500, Data: []byte("cut")},
		{Time: 1_700_000_001_000_000_789, Link: 1, Length: 3, Data: []byte("abc")},
		{Time: 4_000_000_000_999_999_000, Link: 1, Length: 0, Data: []byte{}},
	}
	for _, magic := range []uint32{pcapMicro, pcapNano, pcapModified} {
		for _, order := range []binary.AppendByteOrder{binary.BigEndian, binary.LittleEndian} {
			want := append([]Packet{}, want...)
			if magic != pcapNano {
				want[1].Time -= 789
			}
			file := pcapOf(order, magic, 1|0xf4000000, want...) // with the length of a check sequence
			got, err := readAll(iotest.OneByteReader(bytes.NewReader(file)))
			if err != nil {
				t.Fatal(err)
			}
			samePackets(t, got, want)
		}
	}
}

func TestPcapNG(t *testing.T) {
	var file []byte
	var want []Packet
	for _, o := range []binary.AppendByteOrder{binary.BigEndian, binary.LittleEndian} {
		file = append(file, sectionOf(o)...)
		file = append(file, interfaceOf(o, 1, 0)...)
		file = append(file, interfaceOf(o, 101, 4, option(o, 1, []byte("a comment")), option(o, ngTsResol, []byte{9}),
			option(o, ngTsOffset, o.AppendUint64(nil, 100)), option(o, 0, nil))...)
		file = append(file, interfaceOf(o, 113, 0, option(o, ngTsResol, []byte{0x80 | 10}))...)
		file = append(file, block(o, 5, make([]byte, 20))...) // statistics
		file = append(file, block(o, 0x0bad, make([]byte, 3*bufferLen))...)
		file = append(file, enhanced(o, 0, 1_700_000_000_000_001, 99, []byte("micro"))...)
		file = append(file, enhanced(o, 1, 1_700_000_000_000_000_007, 5, []byte("nanos"))...)
		file = append(file, enhanced(o, 2, 1_700_000_000<<10|512, 6, []byte("halves"))...)
		file = append(file, block(o, ngSimplePacket, append(o.AppendUint32(nil, 6), "simple"...))...)
		old := o.AppendUint16(nil, 1)
		old = o.AppendUint16(old, 3) // drops
		const stamp = 1_600_000_000_000_000_000
		old = o.AppendUint32(old, uint32(stamp>>32))
		old = o.AppendUint32(old, uint32(stamp&0xffffffff))
		old = o.AppendUint32(old, 3)
		old = o.AppendUint32(old, 3)
		file = append(file, block(o, ngPacketBlock, append(old, "old"...))...)
		want = append(want,
			Packet{Time: 1_700_000_000_000_001_000, Link: 1, Length: 99, Data: []byte("micro")},
			Packet{Time: 1_700_000_100_000_000_007, Link: 101, Length: 5, Data: []byte("nanos")},
			Packet{Time: 1_700_000_000_500_000_000, Link: 113, Length: 6, Data: []byte("halves")},
			Packet{Time: 1_700_000_000_500_000_000, Link: 1, Length: 6, Data: []byte("simple")},
			Packet{Time: 1_600_000_100_000_000_000, Link: 101, Length: 3, Data: []byte("old")})
	}
	got, err := readAll(iotest.HalfReader(bytes.NewReader(file)))
	if err != nil {
		t.Fatal(err)
	}
	samePackets(t, got, want)
}

func TestCompressed(t *testing.T) {
	var want []Packet
	for i := range 3000 {
		want = append(want, Packet{Time: int64(i) * 1e9, Link: 1, Length: 1400, Data: bytes.Repeat([]byte{byte(i)}, 1400)})
	}
	file := pcapOf(binary.LittleEndian, pcapMicro, 1, want...)
	var gz, zs bytes.Buffer
	w := gzip.NewWriter(&gz)
	w.Write(file[:1000])
	w.Close()
	w.Reset(&gz) // two members, as gzip -c >> makes them
	w.Write(file[1000:])
	w.Close()
	z, _ := zstd.NewWriter(&zs)
	z.Write(file)
	z.Close()
	for name, b := range map[string][]byte{"gzip": gz.Bytes(), "zstd": zs.Bytes()} {
		got, err := readAll(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		samePackets(t, got, want)
		if got, err := readAll(bytes.NewReader(b[:len(b)/2])); err == nil || len(got) == 0 {
			t.Errorf("%s cut short: %d packets, %v", name, len(got), err)
		}
	}
}

func TestDamaged(t *testing.T) {
	o := binary.LittleEndian
	one := Packet{Link: 1, Length: 4, Data: []byte("abcd")}
	pcap := pcapOf(o, pcapMicro, 1, one, one)
	ng := append(sectionOf(o), interfaceOf(o, 1, 0)...)
	huge := append([]byte{}, pcap...)
	o.PutUint32(huge[24+8:], maxPacket+1)
	for _, c := range []struct {
		name    string
		file    []byte
		packets int
		want    string
	}{
		{"empty", nil, 0, "empty"},
		{"text", []byte("this is no capture"), 0, "neither pcap nor pcapng"},
		{"three octets", pcap[:3], 0, "neither"},
		{"header", pcap[:20], 0, "cut short in packet 1"},
		{"no packets", pcap[:24], 0, ""},
		{"packet header", pcap[:24+20+7], 1, "cut short in packet 2"},
		{"packet", pcap[:len(pcap)-1], 1, "cut short in packet 2"},
		{"huge", huge, 0, "damaged"},
		{"version", append(o.AppendUint32(nil, pcapMicro), make([]byte, 20)...), 0, "version 0.0"},
		{"no interface", append(sectionOf(o), enhanced(o, 0, 0, 1, []byte("a"))...), 0, "interface 0"},
		{"block length", append(ng, 6, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0), 0, "8 octets"},
		{"huge block", append(ng, 6, 0, 0, 0, 0, 0, 0, 0x7f, 0, 0, 0, 0), 0, "more than any packet"},
		{"cut block", append(ng, enhanced(o, 0, 0, 1, []byte("a"))[:20]...), 0, "cut short"},
		{"no order", append([]byte{0x0a, 0x0d, 0x0d, 0x0a}, make([]byte, 24)...), 0, "byte order"},
		{"bad resolution", append(sectionOf(o), interfaceOf(o, 1, 0, option(o, ngTsResol, []byte{20}))...), 0, "no clock"},
		{"long packet", append(ng, block(o, 6, append(o.AppendUint32(make([]byte, 12), 99), 0, 0, 0, 0))...), 0, "99 octets"},
	} {
		got, err := readAll(bytes.NewReader(c.file))
		if len(got) != c.packets {
			t.Errorf("%s: %d packets, want %d", c.name, len(got), c.packets)
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
		if strings.HasPrefix(c.want, "cut") && !errors.Is(err, errCut) {
			t.Errorf("%s: %v is not errCut", c.name, err)
		}
	}
}

func TestReadNothingAllocated(t *testing.T) {
	var packets []Packet
	for range 4000 {
		packets = append(packets, Packet{Length: 100, Data: make([]byte, 100)})
	}
	r, err := NewReader(bytes.NewReader(pcapOf(binary.LittleEndian, pcapMicro, 1, packets...)))
	if err != nil {
		t.Fatal(err)
	}
	var p Packet
	if n := testing.AllocsPerRun(3000, func() { r.Next(&p) }); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
}

func FuzzReader(f *testing.F) {
	o := binary.LittleEndian
	p := Packet{Time: 1e18, Length: 60, Data: ethernet(etherIPv4, ip("10.0.0.1", "10.0.0.2", 17, udp(1, 2, nil)))}
	f.Add(pcapOf(o, pcapMicro, 1, p))
	f.Add(pcapOf(binary.BigEndian, pcapModified, 1, p))
	ng := append(sectionOf(o), interfaceOf(o, 1, 0, option(o, ngTsResol, []byte{9}), option(o, ngTsOffset, make([]byte, 8)))...)
	f.Add(append(ng, enhanced(o, 0, 7, 60, p.Data)...))
	f.Add(append(ng, block(o, ngSimplePacket, append(o.AppendUint32(nil, 60), p.Data...))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, _ := readAll(bytes.NewReader(b))
		size := 0
		for _, p := range all {
			size += len(p.Data)
		}
		if len(b) > 4 && b[0] != 0x1f && b[0] != 0x28 && (size > len(b) || len(all) > len(b)/12) {
			t.Errorf("%d packets, %d octets of %d", len(all), size, len(b))
		}
	})
}
