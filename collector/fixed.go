package collector

import (
	"encoding/binary"
	"time"

	"github.com/sockflow/sockflow/templates"
)

// fixedFormat is a version of NetFlow that has one format and no templates (Cisco, NetFlow Export Datagram Format). Its
// records are given a Template, with id 0, so that they are read as all others.
type fixedFormat struct {
	version uint16
	header  int // octets
	octets  int // of a record
	fields  []Field

	plain   *Template // of fields
	sampled *Template // with samplingAlgorithm and samplingInterval, which the header has
}

type fixedFormatList [3]fixedFormat

// field is a field of a fixed format; id 210 is padding, and what is not known.
func field(id, length uint16) Field {
	return Field{Number: templates.Number{ID: id}, Length: length}
}

// fixedFormats: addresses, next hop, interfaces, packets, octets, first, last and ports are the same in all.
var fixedFormats = fixedFormatList{
	{version: versionV1, header: 16, octets: 48, fields: []Field{
		field(8, 4), field(12, 4), field(15, 4), field(10, 2), field(14, 2), field(2, 4), field(1, 4), field(22, 4), field(21, 4), field(7, 2), field(11, 2),
		field(210, 2), field(4, 1), field(5, 1), field(6, 1), field(210, 7),
	}},
	{version: versionV5, header: 24, octets: 48, fields: []Field{
		field(8, 4), field(12, 4), field(15, 4), field(10, 2), field(14, 2), field(2, 4), field(1, 4), field(22, 4), field(21, 4), field(7, 2), field(11, 2),
		field(210, 1), field(6, 1), field(4, 1), field(5, 1), field(16, 2), field(17, 2), field(9, 1), field(13, 1), field(210, 2),
	}},
	{version: versionV7, header: 24, octets: 52, fields: []Field{
		field(8, 4), field(12, 4), field(15, 4), field(10, 2), field(14, 2), field(2, 4), field(1, 4), field(22, 4), field(21, 4), field(7, 2), field(11, 2),
		field(210, 1), field(6, 1), field(4, 1), field(5, 1), field(16, 2), field(17, 2), field(9, 1), field(13, 1), field(210, 2), field(43, 4),
	}},
}

func (l *fixedFormatList) of(version uint16) *fixedFormat {
	for i := range l {
		if l[i].version == version {
			return &l[i]
		}
	}
	return nil
}

// fixedFormat returns f with its templates, whose elements are r's.
func (r *Registry) fixedFormat(f *fixedFormat) *fixedFormat {
	n := *f
	build := func(fields ...Field) *Template {
		t := &Template{Fields: append(append([]Field(nil), f.fields...), fields...), MinSize: f.octets}
		for i := range t.Fields {
			t.Fields[i].Element = r.lookup(t.Fields[i].Number)
		}
		t.name()
		return t
	}
	n.plain, n.sampled = build(), build(field(35, 1), field(34, 2))
	return &n
}

// fixed reads the header of a version with a fixed format. v1's has no sequence, and neither v1's nor v7's says how
// packets were sampled.
func (h header) fixed(msg []byte) (header, error) {
	f := fixedFormats.of(h.version)
	if len(msg) < f.header {
		return h, malformed(CauseLength, "%d octets, less than a NetFlow v%d header", len(msg), h.version)
	}
	h.count, h.octets = int(binary.BigEndian.Uint16(msg[2:])), f.header
	h.exportTime = time.Unix(int64(binary.BigEndian.Uint32(msg[8:])), int64(min(binary.BigEndian.Uint32(msg[12:]), 999_999_999)))
	h.boot = h.exportTime.Add(-time.Duration(binary.BigEndian.Uint32(msg[4:])) * time.Millisecond)
	if h.version != versionV1 {
		h.sequence = binary.BigEndian.Uint32(msg[16:])
	}
	if h.version == versionV5 {
		h.domain, h.sampling = uint32(binary.BigEndian.Uint16(msg[20:])), binary.BigEndian.Uint16(msg[22:])
	}
	return h, nil
}

// fixedRecords decodes all records of a message that was checked, and returns where they end.
func (m *message) fixedRecords(msg []byte) (end int) {
	f := m.s.cfg.Registry.fixed[m.version]
	t, at := f.plain, m.octets
	sampling := m.s.shared.sampling[:]
	if m.sampling&0x3fff > 1 { // else every packet counts
		t = f.sampled
		sampling[0] = byte(m.sampling >> 14)
		binary.BigEndian.PutUint16(sampling[1:], m.sampling&0x3fff)
	}
	for range m.count {
		for i := range f.fields {
			n := int(f.fields[i].Length)
			m.a.values = append(m.a.values, msg[at:at+n:at+n])
			at += n
		}
		if t == f.sampled {
			m.a.values = append(m.a.values, sampling[:1:1], sampling[1:3:3])
		}
		m.a.ends = append(m.a.ends, len(m.a.values))
		m.a.records = append(m.a.records, Record{
			From: m.s.cfg.Name, Version: m.version, Domain: m.domain, ExportTime: m.exportTime, Boot: m.boot, Template: t, domain: m.d,
		})
	}
	return at
}
