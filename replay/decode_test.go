package replay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sockflow/sockflow/flowcache"
)

const a4, b4, a6, b6 = "192.0.2.1", "198.51.100.7", "2001:db8::1", "2001:db8::2"

// shape is a record as the tests of the decoder compare it: who, and how much.
func shape(r *flowcache.Record) string {
	k := r.Key
	return fmt.Sprintf("%d %s:%d>%s:%d %d/%d/%d", k.Proto, k.Src.Netip(), k.SrcPort, k.Dst.Netip(), k.DstPort,
		r.Forward.Packets, r.Forward.Octets, r.Forward.Payload)
}

func TestLinks(t *testing.T) {
	v4 := ip(a4, b4, 17, udp(1000, 53, []byte("query")))
	v6 := ip(a6, b6, 17, udp(1000, 53, []byte("query")))
	const want4, want6 = "17 192.0.2.1:1000>198.51.100.7:53 1/33/5", "17 2001:db8::1:1000>2001:db8::2:53 1/53/5"
	wlanHead := make([]byte, 24)
	wlanHead[0] = 0x08
	snap := cat([]byte{0xaa, 0xaa, 3, 0, 0, 0, 0x08, 0}, v4)
	for _, c := range []struct {
		name string
		link uint16
		data []byte
		want string
	}{
		{"ethernet 4", LinkEthernet, ethernet(etherIPv4, v4), want4},
		{"ethernet 6", LinkEthernet, ethernet(etherIPv6, v6), want6},
		{"padding", LinkEthernet, ethernet(etherIPv4, cat(v4, make([]byte, 20))), want4},
		{"vlan", LinkEthernet, ethernet(0x8100, cat(u16be(7), u16be(etherIPv4), v4)), want4},
		{"qinq", LinkEthernet, ethernet(0x88a8, cat(u16be(7), u16be(0x8100), u16be(8), u16be(etherIPv6), v6)), want6},
		{"mpls", LinkEthernet, ethernet(0x8847, cat([]byte{0, 1, 0x00, 64, 0, 2, 0x01, 64}, v4)), want4},
		{"mpls 6", LinkEthernet, ethernet(0x8848, cat([]byte{0, 1, 0x01, 64}, v6)), want6},
		{"pseudowire", LinkEthernet, ethernet(0x8847, cat([]byte{0, 1, 0x01, 64, 0, 0, 0, 0}, ethernet(etherIPv4, v4))), want4},
		{"pppoe", LinkEthernet, ethernet(0x8864, cat([]byte{0x11, 0, 0, 1, 0, 35, 0, 0x21}, v4)), want4},
		{"snap", LinkEthernet, ethernet(len(snap), snap), want4},
		{"provider bridge", LinkEthernet, ethernet(0x88e7, cat([]byte{0, 0, 0, 1}, ethernet(etherIPv4, v4))), want4},
		{"macsec", LinkEthernet, ethernet(0x88e5, cat([]byte{0, 0, 0, 0, 0, 1}, u16be(etherIPv4), v4, make([]byte, 16))), want4},
		{"nsh", LinkEthernet, ethernet(0x894f, cat([]byte{0, 2, 2, 1, 0, 0, 0, 1}, v4)), want4},
		{"cooked", LinkSLL, cat(make([]byte, 14), u16be(etherIPv4), v4), want4},
		{"cooked 2", LinkSLL2, cat(u16be(etherIPv6), make([]byte, 18), v6), want6},
		{"cooked vlan", LinkSLL, cat(make([]byte, 14), u16be(0x8100), u16be(1), u16be(etherIPv4), v4), want4},
		{"raw 4", LinkRaw, v4, want4},
		{"raw 6", LinkRaw, v6, want6},
		{"raw of BSD", 12, v4, want4},
		{"ipv4", LinkIPv4, v4, want4},
		{"ipv6", LinkIPv6, v6, want6},
		{"null little endian", LinkNull, cat([]byte{2, 0, 0, 0}, v4), want4},
		{"null big endian", LinkNull, cat([]byte{0, 0, 0, 2}, v4), want4},
		{"null, Darwin's IPv6", LinkNull, cat([]byte{30, 0, 0, 0}, v6), want6},
		{"loop", LinkLoop, cat([]byte{0, 0, 0, 24}, v6), want6},
		{"ppp", LinkPPP, cat([]byte{0xff, 3, 0, 0x21}, v4), want4},
		{"ppp compressed", LinkPPP, cat([]byte{0x57}, v6), want6},
		{"ppp mpls", LinkPPPHDLC, cat([]byte{0xff, 3, 2, 0x81, 0, 1, 1, 64}, v4), want4},
		{"ppp with direction", LinkPPPDir, cat([]byte{1, 0xff, 3, 0, 0x21}, v4), want4},
		{"pppoe link", LinkPPPoE, cat([]byte{0x11, 0, 0, 1, 0, 35, 0, 0x57}, v6), want6},
		{"cisco hdlc", LinkCiscoHD, cat([]byte{0x0f, 0, 8, 0}, v4), want4},
		{"frame relay", LinkFrameRelay, cat([]byte{0x18, 0x41, 3, 0xcc}, v4), want4},
		{"frame relay, cisco", LinkFrameRelay, cat([]byte{0x48, 0xe1, 0x86, 0xdd}, v6), want6},
		{"wlan", LinkWLAN, cat(wlanHead, snap), want4},
		{"radiotap", LinkRadiotap, cat([]byte{0, 0, 8, 0, 0, 0, 0, 0}, wlanHead, snap), want4},
		{"nflog", LinkNFLog, cat([]byte{2, 0, 0, 0, 5, 0, 10, 0, 'x', 0, 0, 0, byte(4 + len(v4)), 0, 9, 0}, v4), want4},
		{"arp", LinkEthernet, ethernet(0x0806, make([]byte, 28)), "not_ip"},
		{"spanning tree", LinkEthernet, ethernet(38, cat([]byte{0x42, 0x42, 3}, make([]byte, 40))), "not_ip"},
		{"short ethernet", LinkEthernet, make([]byte, 13), "truncated"},
		{"short vlan", LinkEthernet, ethernet(0x8100, []byte{0}), "truncated"},
		{"short ip", LinkEthernet, ethernet(etherIPv4, v4[:19]), "truncated"},
		{"short ipv6", LinkEthernet, ethernet(etherIPv6, v6[:39]), "truncated"},
		{"version", LinkEthernet, ethernet(etherIPv4, v6), "malformed"},
		{"header length", LinkRaw, cat([]byte{0x44}, v4[1:]), "malformed"},
		{"total length", LinkRaw, cat([]byte{0x45, 0, 0, 19}, v4[4:]), "malformed"},
		{"vlans without end", LinkEthernet, ethernet(0x8100, cat(repeat(cat(u16be(7), u16be(0x8100)), 40))), "malformed"},
		{"ppi, ethernet", LinkPPI, cat([]byte{0, 0, 8, 0, 1, 0, 0, 0}, ethernet(etherIPv4, v4)), want4},
		{"ppi, wlan, with fields", LinkPPI, cat([]byte{0, 0, 12, 0, 105, 0, 0, 0, 2, 0, 0, 0}, wlanHead, snap), want4},
		{"ppi in ppi", LinkPPI, cat([]byte{0, 0, 8, 0, 192, 0, 0, 0, 0, 0, 8, 0, 1, 0, 0, 0}, ethernet(etherIPv4, v4)), "unknown_link"},
		{"ppi shorter than itself", LinkPPI, cat([]byte{0, 0, 7, 0, 1, 0, 0, 0}, v4), "malformed"},
		{"ppi cut", LinkPPI, []byte{0, 0, 90, 0, 1, 0, 0, 0}, "truncated"},
		{"pktap, raw", LinkPKTAP, cat([]byte{108, 0, 0, 0, 1, 0, 0, 0, 12, 0, 0, 0}, make([]byte, 96), v6), want6},
		{"pktap without a packet", LinkPKTAP, cat([]byte{12, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0}, v4), "not_ip"},
		{"pktap, longer than memory", LinkPKTAP, cat([]byte{255, 255, 255, 255, 1, 0, 0, 0, 12, 0, 0, 0}, v4), "truncated"},
		{"unknown", 9999, v4, "unknown_link"},
	} {
		p := at(0, c.data)
		p.Link = c.link
		records, st := meter(t, Config{}, []Packet{p})
		got := ""
		if len(records) > 0 {
			got = shape(&records[0])
		} else {
			for f, n := range st.Fates {
				if n > 0 {
					got = Fate(f).String()
				}
			}
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func repeat(b []byte, n int) (all []byte) {
	for range n {
		all = append(all, b...)
	}
	return all
}

func TestHeaders(t *testing.T) {
	options := func(proto uint8, in []byte) []byte { // IPv4 with 8 octets of options
		b := ip(a4, b4, proto, cat(make([]byte, 8), in))
		b[0] = 0x47
		return b
	}
	ext := func(next uint8, in []byte) []byte { return cat([]byte{next, 0, 1, 4, 0, 0, 0, 0}, in) }
	offload := ip(a4, b4, 6, tcp(1, 2, 0, flowcache.FlagACK, make([]byte, 60000)))
	offload[2], offload[3] = 0, 0
	jumbogram := ip(a6, b6, 0, cat([]byte{17, 0, 0xc2, 4, 0, 1, 0x11, 0x70}, udp(1, 2, make([]byte, 70000-16))))
	jumbogram[4], jumbogram[5] = 0, 0
	cut := at(0, ip(a4, b4, 17, udp(1, 2, make([]byte, 1000))))
	cut.Data = cut.Data[:24]
	noPorts := at(0, cut.Data[:23])
	for _, c := range []struct {
		name string
		p    Packet
		want string
	}{
		{"options", at(0, options(17, udp(1, 2, []byte("abc")))), "17 192.0.2.1:1>198.51.100.7:2 1/39/3"},
		{"cut by the snapshot length", cut, "17 192.0.2.1:1>198.51.100.7:2 1/1028/1000"},
		{"cut before the ports", noPorts, "17 192.0.2.1:0>198.51.100.7:0 1/1028/1000"},
		{"segmentation offload", at(0, offload), "6 192.0.2.1:1>198.51.100.7:2 1/60040/60000"},
		{"jumbogram", at(0, jumbogram), "17 2001:db8::1:1>2001:db8::2:2 1/70040/69984"},
		{"extension headers", at(0, ip(a6, b6, 0, ext(43, ext(60, ext(6, tcp(1, 2, 0, 0, []byte("abcd"))))))), "6 2001:db8::1:1>2001:db8::2:2 1/88/4"},
		{"no next header", at(0, ip(a6, b6, 59, nil)), "59 2001:db8::1:0>2001:db8::2:0 1/40/0"},
		{"authentication header", at(0, ip(a4, b4, 51, cat([]byte{17, 4}, make([]byte, 22), udp(1, 2, nil)))), "17 192.0.2.1:1>198.51.100.7:2 1/52/0"},
		{"atomic fragment", at(0, ip(a6, b6, 44, cat([]byte{17, 0, 0, 0, 0, 0, 0, 9}, udp(1, 2, []byte("x"))))), "17 2001:db8::1:1>2001:db8::2:2 1/57/1"},
		{"echo", at(0, ip(a4, b4, 1, cat([]byte{8, 0}, make([]byte, 62)))), "1 192.0.2.1:0>198.51.100.7:2048 1/84/56"},
		{"unreachable", at(0, ip(a4, b4, 1, cat([]byte{3, 1}, make([]byte, 34)))), "1 192.0.2.1:0>198.51.100.7:769 1/56/28"},
		{"neighbour solicitation", at(0, ip(a6, b6, 58, cat([]byte{135, 0}, make([]byte, 22)))), "58 2001:db8::1:0>2001:db8::2:34560 1/64/16"},
		{"sctp", at(0, ip(a4, b4, 132, cat(u16be(1), u16be(2), make([]byte, 24)))), "132 192.0.2.1:1>198.51.100.7:2 1/48/16"},
		{"udp lite", at(0, ip(a4, b4, 136, udp(1, 2, nil))), "136 192.0.2.1:1>198.51.100.7:2 1/28/0"},
		{"gre", at(0, ip(a4, b4, 47, cat([]byte{0, 0, 8, 0}, ip(b4, a4, 17, udp(1, 2, nil))))), "47 192.0.2.1:0>198.51.100.7:0 1/52/32"},
		{"esp", at(0, ip(a4, b4, 50, make([]byte, 40))), "50 192.0.2.1:0>198.51.100.7:0 1/60/40"},
		{"ospf", at(0, ip(a4, "224.0.0.5", 89, make([]byte, 44))), "89 192.0.2.1:0>224.0.0.5:0 1/64/44"},
		{"tcp header too long", at(0, ip(a4, b4, 6, cat(tcp(1, 2, 0, 0, nil)[:12], []byte{0xf0}, make([]byte, 7)))), "6 192.0.2.1:1>198.51.100.7:2 1/40/0"},
	} {
		records, st := meter(t, Config{}, []Packet{c.p})
		if len(records) != 1 {
			t.Errorf("%s: %d records, %+v", c.name, len(records), st)
		} else if got := shape(&records[0]); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestTunnels(t *testing.T) {
	in4, in6 := ip(a4, b4, 17, udp(1, 2, []byte("abc"))), ip(a6, b6, 17, udp(1, 2, []byte("abc")))
	const want4, want6 = "17 192.0.2.1:1>198.51.100.7:2 1/31/3", "17 2001:db8::1:1>2001:db8::2:2 1/51/3"
	outer := func(proto uint8, in []byte) []byte { return ip("10.0.0.1", "10.0.0.2", proto, in) }
	vx := []byte{8, 0, 0, 0, 0, 0, 42, 0}
	for _, c := range []struct {
		name         string
		data         []byte
		outer, inner string
	}{
		{"vxlan", outer(17, udp(5, 4789, cat(vx, ethernet(etherIPv4, in4)))), "17 10.0.0.1:5>10.0.0.2:4789 1/81/53", want4},
		{"vxlan of Linux, vlan inside", outer(17, udp(5, 8472, cat(vx, ethernet(0x8100, cat(u16be(1), u16be(etherIPv6), in6))))), "", want6},
		{"vxlan of arp", outer(17, udp(5, 4789, cat(vx, ethernet(0x0806, make([]byte, 28))))), "", "17 10.0.0.1:5>10.0.0.2:4789 1/78/50"},
		{"geneve", outer(17, udp(5, 6081, cat([]byte{1, 0, 0x65, 0x58, 0, 0, 1, 0, 0, 0, 0, 0}, ethernet(etherIPv4, in4)))), "", want4},
		{"gre", outer(47, cat([]byte{0, 0, 0x86, 0xdd}, in6)), "", want6},
		{"gre with key and sequence", outer(47, cat([]byte{0x30, 0, 8, 0, 0, 0, 0, 1, 0, 0, 0, 2}, in4)), "", want4},
		{"pptp", outer(47, cat([]byte{0x30, 0x81, 0x88, 0x0b, 0, 35, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0x21}, in4)), "", want4},
		{"erspan", outer(47, cat([]byte{0x10, 0, 0x88, 0xbe, 0, 0, 0, 1}, make([]byte, 8), ethernet(etherIPv4, in4))), "", want4},
		{"ip in ip", outer(4, in4), "4 10.0.0.1:0>10.0.0.2:0 1/51/31", want4},
		{"6in4", outer(41, in6), "41 10.0.0.1:0>10.0.0.2:0 1/71/51", want6},
		{"gre in vxlan", outer(17, udp(5, 4789, cat(vx, ethernet(etherIPv4, outer(47, cat([]byte{0, 0, 8, 0}, in4)))))), "", want4},
		{"empty", outer(4, nil), "4 10.0.0.1:0>10.0.0.2:0 1/20/0", "4 10.0.0.1:0>10.0.0.2:0 1/20/0"},
	} {
		for decap, want := range map[bool]string{false: c.outer, true: c.inner} {
			records, _ := meter(t, Config{Decap: decap}, []Packet{at(0, c.data)})
			if want == "" {
				continue
			}
			if len(records) != 1 || shape(&records[0]) != want {
				t.Errorf("%s, decap %v: %d records, %s, want %s", c.name, decap, len(records), shape(&records[0]), want)
			}
		}
	}
}

func TestFragments(t *testing.T) {
	whole := ip(a4, b4, 17, udp(1000, 53, make([]byte, 2992)))
	first, second, third := frag4(whole, 7, 0, 1480), frag4(whole, 7, 1480, 2960), frag4(whole, 7, 2960, 3000)
	const want = "17 192.0.2.1:1000>198.51.100.7:53 3/3060/2992"
	for name, order := range map[string][][]byte{
		"in order": {first, second, third}, "last first": {third, second, first}, "first in the middle": {second, first, third},
	} {
		var packets []Packet
		for i, b := range order {
			packets = append(packets, at(int64(i), b))
		}
		records, st := meter(t, Config{}, packets)
		if len(records) != 1 || shape(&records[0]) != want {
			t.Errorf("%s: %d records, %s", name, len(records), shape(&records[0]))
		}
		if st.Orphans != 0 || st.Datagrams != 1 {
			t.Errorf("%s: %+v", name, st)
		}
	}

	// The first never comes, or a minute too late: they count without ports.
	records, st := meter(t, Config{}, []Packet{at(0, second), at(1, third)})
	if len(records) != 1 || shape(&records[0]) != "17 192.0.2.1:0>198.51.100.7:0 2/1560/1520" || st.Orphans != 2 {
		t.Errorf("no first: %s, %+v", shape(&records[0]), st)
	}
	records, _ = meter(t, Config{IdleTimeout: 1e12}, []Packet{at(0, second), at(61_000, first)})
	if len(records) != 2 {
		t.Errorf("first after a minute: %d records", len(records))
	}

	// IPv6: the upper protocol is in the first fragment only.
	six := func(offset, more int, in []byte) []byte {
		return ip(a6, b6, 44, cat([]byte{60, 0}, u16be(offset|more), []byte{0, 0, 0, 9}, in))
	}
	records, _ = meter(t, Config{}, []Packet{
		at(0, six(16, 0, make([]byte, 50))),
		at(1, six(0, 1, cat([]byte{17, 0, 1, 4, 0, 0, 0, 0}, udp(5, 6, nil)))),
	})
	if len(records) != 1 || shape(&records[0]) != "17 2001:db8::1:5>2001:db8::2:6 2/162/50" {
		t.Errorf("IPv6: %d records, %s", len(records), shape(&records[0]))
	}
}

// TestFragmentFlood holds the table of fragments to its bounds, and every fragment is counted.
func TestFragmentFlood(t *testing.T) {
	whole := ip(a4, b4, 17, udp(1, 2, make([]byte, 100)))
	n := 3 * maxDatagrams
	var packets []Packet
	for i := range n {
		b := frag4(whole, i, 16, 24)
		b[12], b[13] = byte(i>>24), byte(i>>16)
		packets = append(packets, at(0, b))
	}
	var m uint64
	records, st := meter(t, Config{}, packets)
	for i := range records {
		m += records[i].Forward.Packets
	}
	if m != uint64(n) || st.Orphans != uint64(n) {
		t.Errorf("%d of %d fragments, %d orphans", m, n, st.Orphans)
	}
	var d decoder
	var p packet
	for i := range packets {
		p = packet{}
		d.ip(packets[i].Data, etherIPv4, len(whole), &p)
		if d.frags.waiting > maxWaiting+1 || len(d.frags.known) > maxDatagrams {
			t.Fatalf("%d fragments of %d datagrams wait", d.frags.waiting, len(d.frags.known))
		}
		d.frags.ready = d.frags.ready[:0]
	}
}

func FuzzDecode(f *testing.F) {
	v4 := ip(a4, b4, 6, tcp(1, 2, 3, 2, []byte("abc")))
	f.Add(uint16(1), ethernet(etherIPv4, v4))
	f.Add(uint16(1), ethernet(etherIPv6, ip(a6, b6, 0, cat([]byte{44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 9}, udp(1, 2, nil)))))
	f.Add(uint16(101), ip(a4, b4, 17, udp(5, 4789, cat([]byte{8, 0, 0, 0, 0, 0, 42, 0}, ethernet(0x8847, cat([]byte{0, 1, 1, 64}, v4))))))
	f.Add(uint16(101), ip(a4, b4, 47, cat([]byte{0x30, 0x81, 0x88, 0x0b, 0, 35, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0x21}, v4)))
	f.Add(uint16(105), make([]byte, 40))
	f.Add(uint16(192), cat([]byte{0, 0, 8, 0, 101, 0, 0, 0}, v4))
	f.Add(uint16(258), cat([]byte{12, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0}, ethernet(etherIPv4, v4)))
	f.Add(uint16(101), ip(a4, b4, 47, cat([]byte{0, 0, 0x89, 0x09, 8, 0, 1, 1, 0, 1, 0, 7}, v4)))
	f.Add(uint16(101), ip(a4, b4, 47, cat([]byte{0, 0, 0x88, 0x3e, 0, 0, 0, 0}, v4)))
	f.Add(uint16(107), []byte{0x18, 0x41, 3, 0xcc, 0x45})
	f.Add(uint16(239), []byte{2, 0, 0, 0, 4, 0, 9, 0, 0x45})
	f.Fuzz(func(t *testing.T, link uint16, b []byte) {
		for _, decap := range []bool{false, true} {
			d := decoder{decap: decap}
			in, ether, fate := network(link, b)
			if fate != Counted {
				continue
			}
			p := packet{packets: 1}
			fate, waits := d.ip(in, ether, len(in), &p)
			if waits != (d.frags.waiting > 0) {
				t.Errorf("waits %v, %d wait", waits, d.frags.waiting)
			}
			if fate == Counted && !waits && p.payload > p.octets {
				t.Errorf("%d octets of payload in %d", p.payload, p.octets)
			}
		}
	})
}

// TestUnreadLinks: link types that are not read are named, however many there are.
func TestUnreadLinks(t *testing.T) {
	var packets []Packet
	add := func(link uint16, data []byte) {
		p := at(0, data)
		p.Link = link
		packets = append(packets, p)
	}
	add(147, nil)
	add(189, nil)
	add(147, nil)
	add(LinkPPI, []byte{0, 0, 8, 0, 189, 0, 0, 0})
	_, st := meter(t, Config{}, packets)
	if got := st.Unread.String(); got != "147 USER0: 2, 189 USB_LINUX: 2" {
		t.Error(got)
	}
	for i := range uint16(40) {
		add(20000+i, nil)
	}
	_, st = meter(t, Config{}, packets)
	if got := st.Unread.String(); !strings.HasSuffix(got, ", 20013: 1, others: 26") {
		t.Error(got)
	}
}

// TestMappedAddresses: IPv6 packets between IPv4-mapped addresses are flows of IPv6, apart from those of IPv4 with the
// same addresses and ports, and so are their fragments.
func TestMappedAddresses(t *testing.T) {
	const a, b = "::ffff:192.0.2.1", "::ffff:198.51.100.7"
	mapped := func(next uint8, in []byte) []byte {
		h := make([]byte, 40)
		h[0], h[6], h[7] = 0x60, next, 64
		binary.BigEndian.PutUint16(h[4:], uint16(len(in)))
		s, d := netip.MustParseAddr(a).As16(), netip.MustParseAddr(b).As16()
		copy(h[8:], s[:])
		copy(h[24:], d[:])
		return cat(h, in)
	}
	one := udp(1000, 53, make([]byte, 24))
	whole := ip(a4, b4, 17, one)
	records, _ := meter(t, Config{MaxFlows: 10}, []Packet{
		at(0, whole), at(1, mapped(17, one)), at(2, whole),
		at(3, frag4(whole, 7, 0, 16)), at(4, mapped(44, cat([]byte{17, 0, 0, 16, 0, 0, 0, 7}, one[16:]))), at(5, mapped(44, cat([]byte{17, 0, 0, 1, 0, 0, 0, 7}, one[:16]))),
	})
	var got []string
	for i := range records {
		src, _ := records[i].Key.Netip()
		got = append(got, fmt.Sprint(src, " ", records[i].Key.Is4(), " ", records[i].Forward.Packets))
	}
	slices.Sort(got)
	if d := cmp.Diff([]string{"192.0.2.1 true 3", a + " false 3"}, got); d != "" {
		t.Error(d)
	}
}
