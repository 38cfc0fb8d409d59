package ipfix

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/netsampler/goflow2/v2/decoders/netflow"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/templates"
)

// sent is what an encoder sent in one session.
type sent struct {
	t    *testing.T
	msgs [][]byte
	fail bool // the next message is not taken
}

func (s *sent) send(m []byte, _ int) error {
	if s.fail {
		s.fail = false
		return errors.New("not taken")
	}
	s.msgs = append(s.msgs, bytes.Clone(m))
	return nil
}

// sets returns the ids of the sets of all messages, in order.
func (s *sent) sets() (l []uint16) {
	for _, m := range s.msgs {
		for b := m[headerIPFIX:]; len(b) >= 4; b = b[binary.BigEndian.Uint16(b[2:]):] {
			l = append(l, binary.BigEndian.Uint16(b))
		}
	}
	return l
}

// flows decodes the stream by goflow2, which refuses data before its template, and counts flow records.
func (s *sent) flows() int {
	s.t.Helper()
	sys := netflow.CreateTemplateSystem()
	n := 0
	for i, m := range s.msgs {
		var v9 netflow.NFv9Packet
		var x netflow.IPFIXPacket
		if err := netflow.DecodeMessageVersion(bytes.NewBuffer(m), sys, &v9, &x); err != nil {
			s.t.Fatalf("message %d: %v", i, err)
		}
		for _, set := range append(v9.FlowSets, x.FlowSets...) {
			switch set := set.(type) {
			case netflow.DataFlowSet:
				n += len(set.Records)
			case netflow.RawFlowSet:
				s.t.Errorf("message %d: data set %d before its template", i, set.Id)
			}
		}
	}
	return n
}

func newSent(t *testing.T, proto Protocol, opt templates.Options) (*Encoder, *sent) {
	t.Helper()
	s := &sent{t: t}
	e, err := NewEncoder(proto, opt, 1, 1400, now.Add(-time.Hour), s.send)
	if err != nil {
		t.Fatal(err)
	}
	return e, s
}

// TestTemplatesBeforeUse: a template is sent once it is needed, before the data, and never before that.
func TestTemplatesBeforeUse(t *testing.T) {
	for _, proto := range []Protocol{IPFIX, NetFlowV9} {
		e, s := newSent(t, proto, templates.Options{})
		e.Templates(now)
		if e.set.Templates() != nil {
			t.Errorf("%d templates without records", len(e.set.Templates()))
		}
		for i := range 40 {
			if err := e.Record(record(i), now); err != nil {
				t.Fatal(err)
			}
		}
		e.Flush(now)
		if n := s.flows(); n != 40 || len(e.set.Templates()) != 4 {
			t.Errorf("protocol %d: %d flows, %d templates", proto, n, len(e.set.Templates()))
		}
		if proto == NetFlowV9 {
			continue
		}
		if n := count(s.sets(), setTemplate); n > 4 {
			t.Errorf("%d template sets", n)
		}
		// A new session: all that is in use comes first, and nothing more when it is used.
		s.msgs = nil
		e.Restart()
		e.Templates(now)
		before := count(s.sets(), setTemplate)
		for i := range 40 {
			e.Record(record(i), now)
		}
		e.Flush(now)
		if n := s.flows(); n != 40 || before == 0 || count(s.sets(), setTemplate) != before || binary.BigEndian.Uint32(s.msgs[0][8:]) != 0 {
			t.Errorf("new session: %d flows, %d template sets first, %d in all, sequence %d", n, before, count(s.sets(), setTemplate), binary.BigEndian.Uint32(s.msgs[0][8:]))
		}
	}
}

func count(l []uint16, id uint16) (n int) {
	for _, i := range l {
		if i == id {
			n++
		}
	}
	return n
}

// TestTemplateLost: a template that was not taken is sent again before the next data.
func TestTemplateLost(t *testing.T) {
	e, s := newSent(t, IPFIX, templates.Options{})
	e.Record(record(0), now)
	s.fail = true // the announcement
	if e.Flush(now) == nil {
		t.Error("no error")
	}
	s.msgs = nil // nor the data, as far as it matters
	e.Record(record(0), now)
	if err := e.Flush(now); err != nil || s.flows() != 1 {
		t.Errorf("%v, %d flows", err, s.flows())
	}
}

// TestPathShrinks: when messages must be smaller, templates of NetFlow v9 change, and records that wait keep theirs.
func TestPathShrinks(t *testing.T) {
	e, s := newSent(t, NetFlowV9, templates.Options{})
	e.Templates(now)
	e.Record(record(0), now)
	if err := e.SetMaxMessage(512); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		if err := e.Record(record(i), now); err != nil {
			t.Fatal(err)
		}
	}
	e.Restart()
	e.Templates(now)
	e.Flush(now)
	if n := s.flows(); n != 9 {
		t.Errorf("%d flows, want 9", n)
	}
}

// FuzzEncoder: whatever a record holds, goflow2 decodes as many records as were encoded, with the counters and the texts that went in.
func FuzzEncoder(f *testing.F) {
	f.Add(uint16(0), uint8(6), "curl", "/usr/bin/curl", uint64(7), uint16(600))
	f.Add(uint16(0xffff), uint8(58), "\xff\x00é", "日本", uint64(1)<<63, uint16(513))
	f.Add(uint16(0x1234), uint8(17), "", string(bytes.Repeat([]byte("x"), 3000)), uint64(0), uint16(65535))
	f.Fuzz(func(t *testing.T, shape uint16, proto uint8, a, b string, n uint64, size uint16) {
		bit := func(i int) bool { return shape>>i&1 != 0 }
		opt := templates.Options{Dialect: templates.Dialect(shape % 3), Uniflow: bit(2), CommandLine: bit(3), Node: a}
		protocol := IPFIX
		if bit(4) {
			protocol = NetFlowV9
		}
		max := int(size)
		if max < 1500 {
			max = 1500
		}
		sys := netflow.CreateTemplateSystem()
		var got []map[string][]byte
		e, err := NewEncoder(protocol, opt, 1, max, now.Add(-time.Hour), func(m []byte, _ int) error {
			if len(m) > max {
				t.Fatalf("message of %d octets, of %d", len(m), max)
			}
			var v9 netflow.NFv9Packet
			var x netflow.IPFIXPacket
			if err := netflow.DecodeMessageVersion(bytes.NewBuffer(bytes.Clone(m)), sys, &v9, &x); err != nil {
				t.Fatal(err)
			}
			for _, set := range append(v9.FlowSets, x.FlowSets...) {
				if d, ok := set.(netflow.DataFlowSet); ok {
					for _, r := range d.Records {
						fields := map[string][]byte{}
						for _, v := range r.Values {
							fields[fmt.Sprintf("%d:%d", v.Pen, v.Type)] = v.Value.([]byte)
						}
						got = append(got, fields)
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		r := *record(int(shape))
		r.Key.Proto, r.HasTCP = proto, proto == 6
		r.Forward.Octets = n
		r.Source.Who = &flowcache.Process{Path: b, Name: a, UserName: a, ParentPath: b, CommandLine: b}
		if bit(5) {
			r.Source.Container = &flowcache.Workload{ContainerID: a, PodName: b, PodLabels: b, ServiceUnit: a}
		}
		if bit(6) {
			r.Dest = r.Source
		}
		if bit(7) {
			r.Dest.Service, r.Dest.Node = a, b
		}
		if bit(8) {
			r.Post = flowcache.Translation{Src: r.Key.Dst, Dst: r.Key.Src, SrcPort: 1}
		}
		r.Source.Kernel = bit(9)
		if bit(10) {
			r.Source.Local = false
		}
		want := 0
		for range 3 {
			err := e.Record(&r, now)
			if errors.Is(err, errTooBig) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			there, back := r.Forward.Packets != 0 || r.Forward.Octets != 0, r.Reverse.Packets != 0 || r.Reverse.Octets != 0
			if !e.set.Options().Uniflow || there || !back {
				want++
			}
			if e.set.Options().Uniflow && back {
				want++
			}
		}
		if err := e.Flush(now); err != nil {
			t.Fatal(err)
		}
		if len(got) != want {
			t.Fatalf("%d records, want %d", len(got), want)
		}
		if v := got[0]["0:1"]; len(v) != 8 || binary.BigEndian.Uint64(v) != n {
			t.Fatalf("octetDeltaCount %x, want %d", v, n)
		}
		if v, ok := got[0]["35632:169"]; ok && e.cut == 0 && protocol == IPFIX {
			if w := templates.AppendString(nil, b, 1024); !bytes.HasSuffix(w, v) {
				t.Fatalf("path %q, want %q", v, w)
			}
		}
	})
}

// isFlowData reports whether a message has flow records. Others have templates and options records.
func isFlowData(msg []byte) bool {
	return len(msg) > headerIPFIX+2 && binary.BigEndian.Uint16(msg[headerIPFIX:]) >= templates.FirstID
}
