package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sockflow/sockflow/collector"
)

var updateForeign = flag.Bool("update-foreign", false, "write the table of foreign exporters in docs/collect.md anew")

// box writes messages as an exporter of one vendor does.
type box struct {
	version   uint16 // 9 or 10
	sequence  uint32
	templates map[uint16]string
}

// fieldOf reads "8/4", "PEN.168/4" or "82/v", which has a variable length.
func fieldOf(s string) (pen uint64, id, length uint16) {
	number, size, _ := strings.Cut(s, "/")
	if p, n, ok := strings.Cut(number, "."); ok {
		pen, _ = strconv.ParseUint(p, 10, 32)
		number = n
	}
	n, _ := strconv.ParseUint(number, 10, 16)
	length = 65535
	if size != "v" {
		l, _ := strconv.ParseUint(size, 10, 16)
		length = uint16(l)
	}
	return pen, uint16(n), length
}

func (b *box) specs(fields string) (t []byte) {
	for _, f := range strings.Fields(fields) {
		pen, id, n := fieldOf(f)
		if pen != 0 {
			id |= 0x8000
		}
		t = binary.BigEndian.AppendUint16(t, id)
		t = binary.BigEndian.AppendUint16(t, n)
		if pen != 0 {
			t = binary.BigEndian.AppendUint32(t, uint32(pen))
		}
	}
	return t
}

func setOf(id uint16, body []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, id)
	return append(binary.BigEndian.AppendUint16(b, uint16(4+len(body))), body...)
}

// template returns a set with one template.
func (b *box) template(id uint16, fields string) []byte {
	b.templates[id] = fields
	t := binary.BigEndian.AppendUint16(nil, id)
	t = binary.BigEndian.AppendUint16(t, uint16(len(strings.Fields(fields))))
	set := uint16(2)
	if b.version == 9 {
		set = 0
	}
	return setOf(set, append(t, b.specs(fields)...))
}

// options returns a set with one options template; of version 9 the scope's numbers are those of RFC 3954.
func (b *box) options(id uint16, scope, fields string) []byte {
	b.templates[id] = scope + " " + fields
	s, f := b.specs(scope), b.specs(fields)
	t := binary.BigEndian.AppendUint16(nil, id)
	if b.version == 9 {
		t = binary.BigEndian.AppendUint16(t, uint16(len(s)))
		t = binary.BigEndian.AppendUint16(t, uint16(len(f)))
		t = append(append(t, s...), f...)
		return setOf(1, append(t, make([]byte, -len(t)&3)...))
	}
	n := len(strings.Fields(scope))
	t = binary.BigEndian.AppendUint16(t, uint16(n+len(strings.Fields(fields))))
	t = binary.BigEndian.AppendUint16(t, uint16(n))
	return setOf(3, append(append(t, s...), f...))
}

// record has a value for each field that depends on its number and on i. What is in with replaces it.
func (b *box) record(id uint16, i int, with map[string][]byte) (r []byte) {
	for _, f := range strings.Fields(b.templates[id]) {
		pen, number, length := fieldOf(f)
		v, ok := with[f]
		if !ok {
			v = valueOf(pen, number, int(length), i)
		}
		if length == 65535 {
			if len(v) < 255 {
				r = append(r, byte(len(v)))
			} else {
				r = binary.BigEndian.AppendUint16(append(r, 255), uint16(len(v)))
			}
		}
		r = append(r, v...)
	}
	return r
}

// data returns a set of records from i on; of version 9 it is filled up to four octets.
func (b *box) data(id uint16, i, records int) []byte {
	var body []byte
	for range records {
		body = append(body, b.record(id, i, nil)...)
		i++
	}
	if b.version == 9 {
		body = append(body, make([]byte, -len(body)&3)...)
	}
	return setOf(id, body)
}

func valueOf(pen uint64, id uint16, length, i int) []byte {
	number := func(n uint64) []byte {
		b := binary.BigEndian.AppendUint64(nil, n)
		if length < 8 {
			return b[8-length:]
		}
		return append(make([]byte, length-8), b...)
	}
	if length == 65535 {
		return fmt.Appendf(nil, "text-%d", i)
	}
	if pen == 0 {
		switch id {
		case 8, 225:
			return []byte{192, 0, 2, byte(i)}
		case 12, 226:
			return []byte{198, 51, 100, byte(i)}
		case 27, 28:
			return append([]byte{0x20, 1, 0x0d, 0xb8, 14: byte(id)}, byte(i))
		case 7, 227:
			return number(uint64(40000 + i))
		case 11, 228:
			return number(443)
		case 4:
			return number(6)
		case 6:
			return number(0x1b)
		case 1, 231, 85:
			return number(uint64(1500 * i))
		case 2, 86:
			return number(uint64(3 * i))
		case 22:
			return number(3_500_000)
		case 21:
			return number(uint64(3_590_000 + i))
		case 152, 153, 323:
			return number(1_699_999_900_000 + uint64(id)*100)
		}
	}
	if length >= 16 { // texts of fixed length are filled up with zeros
		return append(fmt.Appendf(nil, "text-%d", i), make([]byte, length-6)...)[:length]
	}
	return number(uint64(i))
}

// message puts the header before sets. Octets that are no set may be among them, as some boxes have it.
func (b *box) message(records int, sets ...[]byte) []byte {
	body := bytes.Join(sets, nil)
	m := binary.BigEndian.AppendUint16(nil, b.version)
	if b.version == 9 {
		m = binary.BigEndian.AppendUint16(m, uint16(len(sets)))
		m = binary.BigEndian.AppendUint32(m, 3_600_000)
	} else {
		m = binary.BigEndian.AppendUint16(m, uint16(16+len(body)))
	}
	m = binary.BigEndian.AppendUint32(m, 1_700_000_000)
	m = binary.BigEndian.AppendUint32(m, b.sequence)
	m = binary.BigEndian.AppendUint32(m, 7)
	if b.version == 9 {
		b.sequence++
	} else {
		b.sequence += uint32(records)
	}
	return append(m, body...)
}

// fixedMessage is one of NetFlow v1, v5 or v7.
func fixedMessage(version, sampling uint16, records int) []byte {
	be := binary.BigEndian
	m := be.AppendUint16(be.AppendUint16(nil, version), uint16(records))
	m = be.AppendUint32(be.AppendUint32(be.AppendUint32(m, 3_600_000), 1_700_000_000), 0)
	switch version {
	case 5:
		m = be.AppendUint16(append(be.AppendUint32(m, 1), 0, 1), sampling)
	case 7:
		m = be.AppendUint32(be.AppendUint32(m, 1), 0)
	}
	for i := 1; i <= records; i++ {
		var r []byte
		for _, f := range strings.Fields("8/4 12/4 15/4 10/2 14/2 2/4 1/4 22/4 21/4 7/2 11/2") {
			_, id, n := fieldOf(f)
			r = append(r, valueOf(0, id, int(n), i)...)
		}
		switch version {
		case 1:
			r = append(r, 0, 0, 6, 0, 0x1b, 0, 0, 0, 0, 0, 0, 0)
		case 5:
			r = append(r, 0, 0x1b, 6, 0, 0xfb, 0xf4, 0xfb, 0xf5, 24, 24, 0, 0)
		case 7:
			r = append(r, 0, 0x1b, 6, 0, 0xfb, 0xf4, 0xfb, 0xf5, 24, 24, 0, 0, 192, 0, 2, 254)
		}
		m = append(m, r...)
	}
	return m
}

// foreign is what one kind of exporter sends.
type foreign struct {
	vendor, form string
	records      int // options data included
	messages     [][]byte
}

// foreigners are in the order of the table.
func foreigners() []foreign {
	nine := func() *box { return &box{version: 9, templates: map[uint16]string{}} }
	ten := func() *box { return &box{version: 10, templates: map[uint16]string{}} }
	const v4, v6 = "8/4 12/4 ", "27/16 28/16 "
	var list []foreign
	add := func(vendor, form string, records int, messages ...[]byte) {
		list = append(list, foreign{vendor, form, records, messages})
	}

	add("Cisco IOS", "NetFlow v1", 2, fixedMessage(1, 0, 2))
	add("Cisco IOS, Juniper, softflowd", "NetFlow v5", 30, fixedMessage(5, 0, 30))
	add("Cisco IOS, sampled", "NetFlow v5, one of 100 in its header", 3, fixedMessage(5, 0x4064, 3))
	add("Cisco Catalyst", "NetFlow v7", 3, fixedMessage(7, 0, 3))

	b := nine()
	add("Cisco IOS", "v9; sampler, interfaces and applications as options", 8,
		b.message(0, b.template(256, v4+"15/4 10/4 14/4 2/4 1/4 22/4 21/4 7/2 11/2 4/1 5/1 6/1 9/1 13/1 16/2 17/2 48/1 51/1 95/4"),
			b.options(257, "1/4", "48/1 49/1 50/4 84/16"), b.options(258, "2/4", "82/32 83/64"), b.options(259, "1/4", "95/4 96/24 94/55")),
		b.message(0, b.data(257, 1, 1), b.data(258, 1, 2), b.data(259, 1, 2), b.data(256, 1, 3)))
	b = nine()
	add("Cisco ASA", "v9 (NSEL): events, translated addresses, users", 4,
		b.message(0, b.template(263, "148/4 "+v4+"7/2 11/2 10/2 14/2 4/1 176/1 177/1 225/4 226/4 227/2 228/2 233/1 33002/2 323/8 152/8 231/4 232/4 33000/12 33001/12 40000/20")),
		b.message(0, b.data(263, 1, 4)))
	b = nine()
	add("Cisco ACI", "v9, zeros after the last set", 3,
		b.message(0, b.template(256, v4+"7/2 11/2 4/1 6/1 10/4 14/4 1/8 2/8 21/4 22/4"), make([]byte, 1220)), b.message(0, b.data(256, 1, 3), make([]byte, 36)))
	b = nine()
	add("Palo Alto PAN-OS", "v9, both families, App-ID and User-ID; zeros after the last set", 5,
		b.message(0, b.template(256, v4+"1/8 2/8 7/2 11/2 4/1 6/1 10/4 14/4 21/4 22/4 32/2 61/1 148/8 233/1 136/1 346/4 56701/32 56702/64"),
			b.template(257, v6+"1/8 2/8 7/2 11/2 4/1 6/1 10/4 14/4 21/4 22/4 139/2 61/1 148/8 233/1 136/1 346/4 56701/32 56702/64"), make([]byte, 61)),
		b.message(0, b.data(256, 1, 3), make([]byte, 4)), b.message(0, b.data(257, 1, 2), make([]byte, 1)))
	b = nine()
	add("MikroTik RouterOS", "v9, one to three octets after the last set", 4,
		b.message(0, b.template(256, v4+"60/1 4/1 7/2 11/2 10/4 14/4 1/4 2/4 22/4 21/4 6/1 5/1 15/4 80/6 56/6 225/4 226/4 227/2 228/2"), []byte{0}),
		b.message(0, b.data(256, 1, 2), []byte{0, 0}), b.message(0, b.data(256, 3, 2), []byte{1, 2, 3}))
	b = ten()
	add("MikroTik RouterOS", "IPFIX, both families", 5,
		b.message(0, b.template(258, v4+"4/1 7/2 11/2 1/8 2/8 10/4 14/4 152/8 153/8 225/4 226/4 227/2 228/2"), b.template(259, v6+"4/1 7/2 11/2 1/8 2/8 10/4 14/4 152/8 153/8")),
		b.message(3, b.data(258, 1, 3)), b.message(2, b.data(259, 1, 2)))
	b = nine()
	add("H3C", "v9, a field of length 65535: a variable length", 3,
		b.message(0, b.template(256, v4+"7/2 11/2 4/1 1/8 2/8 22/4 21/4 82/v")), b.message(0, b.data(256, 1, 3)))
	b = nine()
	families := func(six bool) map[string][]byte {
		if six {
			return map[string][]byte{"8/4": make([]byte, 4), "12/4": make([]byte, 4)}
		}
		return map[string][]byte{"27/16": make([]byte, 16), "28/16": make([]byte, 16)}
	}
	b.templates[256] = v4 + v6 + "60/1 4/1 7/2 11/2 1/8 2/8 21/4 22/4 152/8 153/8"
	add("boxes with one template", "v9, both families and both kinds of times in each record", 4,
		b.message(0, b.template(256, b.templates[256])),
		b.message(0, setOf(256, bytes.Join([][]byte{b.record(256, 1, families(false)), b.record(256, 2, families(true)), b.record(256, 3, families(true)), b.record(256, 4, families(false))}, nil))))
	b = nine()
	add("Fortinet FortiGate", "v9, applications as options, translated addresses", 7,
		b.message(0, b.template(262, "1/8 23/8 2/4 24/4 22/4 21/4 10/4 14/4 7/2 11/2 95/9 65/2 89/1 4/1 136/1 61/1 "+v4+"225/4 226/4 227/2 228/2"), b.options(256, "1/4", "41/8 42/8 36/2 37/2"),
			b.options(257, "1/4", "95/9 96/64")),
		b.message(0, b.data(256, 1, 1), b.data(257, 1, 2), b.data(262, 1, 4)))
	b = nine()
	add("Huawei NetStream", "v9, sampled, interfaces in two octets", 3,
		b.message(0, b.template(1024, v4+"15/4 1/4 2/4 22/4 21/4 7/2 11/2 10/2 14/2 6/1 4/1 5/1 9/1 13/1 61/1 48/1 49/1 50/4 16/4 17/4")), b.message(0, b.data(1024, 1, 3)))
	b = ten()
	add("Juniper MX", "IPFIX, inline: the sampler as options, counters of 8 octets", 4,
		b.message(0, b.template(256, v4+"5/1 4/1 7/2 11/2 32/2 10/4 58/2 9/1 13/1 16/4 17/4 15/4 6/1 14/4 1/8 2/8 52/1 53/1 152/8 153/8 136/1 243/2 245/2 54/4"),
			b.options(512, "144/4", "41/8 42/8 160/8 130/4 34/4 35/1")),
		b.message(1, b.data(512, 1, 1)), b.message(3, b.data(256, 1, 3)))
	b = nine()
	add("ntop nProbe", "v9, types from 57472 on", 3,
		b.message(0, b.template(257, v4+"7/2 11/2 4/1 1/4 2/4 23/4 24/4 22/4 21/4 57590/2 57591/16 57595/4 57596/4 57640/4 57641/16 57652/32")), b.message(0, b.data(257, 1, 3)))
	b = ten()
	add("ntop nProbe", "IPFIX, enterprise 35632, reverse counters", 3,
		b.message(0, b.template(257, v4+"7/2 11/2 4/1 1/8 2/8 29305.1/8 29305.2/8 152/8 153/8 35632.118/2 35632.119/v 35632.123/4 35632.180/v")), b.message(3, b.data(257, 1, 3)))
	b = ten()
	types := b.options(400, "346/4 303/2", "339/1 344/1 341/v")
	typed := setOf(400, b.record(400, 0, map[string][]byte{"346/4": {0, 0, 0x1a, 0xd7}, "303/2": {0, 14}, "339/1": {2}, "344/1": {5}, "341/v": []byte("initialTCPFlags")}))
	b.templates[300] = v4 + "7/2 11/2 4/1 85/8 86/8 29305.85/8 29305.86/8 152/8 153/8 293/v"
	list4 := func(i int) []byte { // a subTemplateMultiList (RFC 6313, section 4.5.3) with one record of template 301
		in := b.record(301, i, nil)
		return append([]byte{3, 1, 45, 0, byte(4 + len(in))}, in...)
	}
	tcpTemplate := b.template(301, "184/4 6871.14/2 6871.15/2")
	add("CERT YAF", "IPFIX, enterprise 6871, lists, reverse counters, type records", 3,
		b.message(1, types, typed, b.template(300, b.templates[300]), tcpTemplate),
		b.message(2, setOf(300, append(b.record(300, 1, map[string][]byte{"293/v": list4(1)}), b.record(300, 2, map[string][]byte{"293/v": list4(2)})...))))
	b = ten()
	add("Citrix NetScaler", "IPFIX (AppFlow), enterprise 5951", 3,
		b.message(0, b.template(258, "148/8 "+v4+"7/2 11/2 4/1 1/8 2/8 154/8 155/8 5951.128/4 5951.133/4 5951.130/v 5951.142/v 5951.144/2")), b.message(3, b.data(258, 1, 3)))
	b = ten()
	add("VMware vDS", "IPFIX, enterprise 6876: the tenant's flow in the tunnel's", 3,
		b.message(0, b.template(264, v4+"1/8 2/8 152/8 153/8 7/2 11/2 10/4 14/4 4/1 136/1 6/1 192/1 61/1 351/8 6876.880/1 6876.881/4 6876.882/4 6876.886/2 6876.887/2")), b.message(3, b.data(264, 1, 3)))
	b = ten()
	add("Open vSwitch", "IPFIX, frames: MAC addresses, VLAN and tunnel", 3,
		b.message(0, b.template(256, "138/4 61/1 56/6 80/6 256/2 240/1 243/2 60/1 192/1 4/1 195/1 5/1 "+v4+"7/2 11/2 158/4 159/4 2/8 352/8 1/8 198/8 25/8 26/8")), b.message(3, b.data(256, 1, 3)))
	b = ten()
	add("Nokia SR OS", "IPFIX, translations: enterprise 637, times without octets", 3,
		b.message(0, b.template(300, "230/1 323/8 8/4 225/4 4/1 361/2 362/2 637.91/2 637.92/2 637.93/v")), b.message(3, b.data(300, 1, 3)))
	b = ten()
	add("Barracuda", "IPFIX, enterprise 10704, strings of variable length", 3,
		b.message(0, b.template(256, v4+"7/2 11/2 4/1 1/8 2/8 10704.1/4 10704.2/1 10704.4/v 10704.5/v 10704.6/4")), b.message(3, b.data(256, 1, 3)))
	b = nine()
	short := setOf(256, make([]byte, 6))
	add("a data set shorter than its records", "v9; counted as short_sets", 0, b.message(0, b.template(256, v4+"1/8")), b.message(0, short))
	return list
}

// compared are the elements whose values are compared, and what tshark calls them.
var compared = []struct {
	element, field string
}{
	{"sourceIPv4Address", "cflow.srcaddr"}, {"destinationIPv4Address", "cflow.dstaddr"}, {"sourceIPv6Address", "cflow.srcaddrv6"}, {"destinationIPv6Address", "cflow.dstaddrv6"},
	{"sourceTransportPort", "cflow.srcport"}, {"destinationTransportPort", "cflow.dstport"}, {"protocolIdentifier", "cflow.protocol"},
	{"octetDeltaCount", "cflow.octets"}, {"packetDeltaCount", "cflow.packets"},
}

// tsharkForeign returns the values of each field that tshark finds in the messages of each exporter, which have
// addresses of their own.
func tsharkForeign(t *testing.T, list []foreign) []map[string][]string {
	t.Helper()
	var packets [][]byte
	all := make([]map[string][]string, len(list))
	for i, f := range list {
		all[i] = map[string][]string{}
		for _, m := range f.messages {
			h := ipHeader(17, 8+len(m))
			h[15] = byte(i)
			h = binary.BigEndian.AppendUint16(h, 40000)
			h = binary.BigEndian.AppendUint16(h, 2055)
			h = binary.BigEndian.AppendUint16(h, uint16(8+len(m)))
			packets = append(packets, append(append(h, 0, 0), m...))
		}
	}
	var b bytes.Buffer
	writePcap(&b, packets)
	file := filepath.Join(t.TempDir(), "messages.pcap")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-n", "-r", file, "-d", "udp.port==2055,cflow", "-T", "fields", "-E", "separator=;", "-e", "ip.src"}
	for _, c := range compared {
		args = append(args, "-e", c.field)
	}
	out, err := exec.Command("tshark", args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		from, values, _ := strings.Cut(strings.TrimRight(line, "\n"), ";")
		n, err := strconv.Atoi(from[strings.LastIndexByte(from, '.')+1:])
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range strings.Split(values, ";") {
			if v != "" {
				all[n][compared[i].field] = append(all[n][compared[i].field], strings.Split(v, ",")...)
			}
		}
	}
	return all
}

// TestForeignExporters reads what others' exporters send, compares every address, port, protocol and counter with what
// tshark finds in the same messages, and holds the table in docs/collect.md to the result.
func TestForeignExporters(t *testing.T) {
	needTool(t, "tshark")
	table := "| vendor | template | records | differs from tshark |\n|---|---|---|---|\n"
	list := foreigners()
	byTshark := tsharkForeign(t, list)
	for i, f := range list {
		s, err := collector.NewSession(collector.Config{Datagrams: true})
		if err != nil {
			t.Fatal(err)
		}
		records, err := s.Messages(f.messages)
		if err != nil {
			t.Errorf("%s, %s: %v", f.vendor, f.form, err)
		}
		st := s.Stats()
		if len(records) != f.records || st.Discarded()+st.Lost+st.UnknownSets+st.Refused != 0 {
			t.Errorf("%s, %s: %d records, want %d: %+v", f.vendor, f.form, len(records), f.records, st)
		}
		ours := map[string][]string{}
		for i := range records {
			r := &records[i]
			if js := r.AppendJSON(nil); !json.Valid(js) || bytes.Contains(bytes.ReplaceAll(js, []byte(`"0:65"`), nil), []byte(`"0:`)) { // Fortinet's 65 has no name
				t.Errorf("%s, %s: %s", f.vendor, f.form, js)
			}
			for _, c := range compared {
				for _, name := range []string{c.element, "reverse" + strings.ToUpper(c.element[:1]) + c.element[1:]} { // one name for both in tshark
					if v := r.Get(name); v != nil && !r.Template.Options {
						ours[c.field] = append(ours[c.field], fmt.Sprint(v))
					}
				}
			}
		}
		theirs := byTshark[i]
		var differs []string
		for _, c := range compared {
			if a, b := ours[c.field], theirs[c.field]; len(a) != len(b) {
				differs = append(differs, fmt.Sprintf("%s: %d of %d", strings.TrimPrefix(c.field, "cflow."), len(b), len(a)))
			} else if d := cmp.Diff(b, a); d != "" {
				differs = append(differs, strings.TrimPrefix(c.field, "cflow."))
				t.Errorf("%s, %s: %s (-tshark +ours)\n%s", f.vendor, f.form, c.element, d)
			}
		}
		text := "nothing"
		switch {
		case len(theirs) == 0 && len(ours) > 0:
			text = "tshark finds no record"
		case len(differs) > 0:
			text = "tshark finds " + strings.Join(differs, ", ")
		}
		table += fmt.Sprintf("| %s | %s | %d | %s |\n", f.vendor, f.form, len(records), text)
	}
	const page, begin, end = "../../docs/collect.md", "<!-- foreign exporters: go test -run TestForeignExporters ./cmd/exporter -update-foreign -->\n", "<!-- end -->\n"
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(b), begin)
	have, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatal("docs/collect.md has no place for the table")
	}
	if *updateForeign {
		if err := os.WriteFile(page, []byte(head+begin+table+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(table, have); d != "" {
		t.Errorf("docs/collect.md (-what it is +what the page says); -update-foreign writes it\n%s", d)
	}
}

// TestTableOfBothFamilies: a template with addresses of both families has rows with those that are there.
func TestTableOfBothFamilies(t *testing.T) {
	for _, f := range foreigners() {
		if f.vendor != "boxes with one template" {
			continue
		}
		s, err := collector.NewSession(collector.Config{Datagrams: true})
		if err != nil {
			t.Fatal(err)
		}
		records, err := s.Messages(f.messages)
		if err != nil {
			t.Fatal(err)
		}
		text := string(new(recordTable).format(nil, records))
		for _, want := range []string{"192.0.2.1:40001", "[2001:db8::1b02]:40002", "[2001:db8::1c03]:443", "192.0.2.4:40004"} {
			if !strings.Contains(text, want) {
				t.Errorf("no %s in\n%s", want, text)
			}
		}
		if strings.Contains(text, "0.0.0.0") || strings.Contains(text, "[::]") {
			t.Error(text)
		}
	}
}
