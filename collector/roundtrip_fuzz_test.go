package collector_test

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sockflow/sockflow/collector"
	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
	"github.com/sockflow/sockflow/templates"
)

// wellFormed is a string as it may be sent: NUL and what is not UTF-8 are U+FFFD.
func wellFormed(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r == 0 {
			r = utf8.RuneError
		}
		b.WriteRune(r)
	}
	return b.String()
}

// FuzzRoundTrip encodes a record in any layout and message size, decodes it, and compares every value. Strings may be cut, between runes.
func FuzzRoundTrip(f *testing.F) {
	f.Add(uint8(0), uint16(1400), []byte{192, 0, 2, 1}, []byte{198, 51, 100, 1}, uint32(40000<<16|443), uint8(6), uint64(1500), uint64(1<<40), "/usr/bin/curl", "root", "pod", uint32(4242), uint32(60_000), uint8(0x1b))
	f.Add(uint8(3), uint16(512), []byte("0123456789abcdef"), []byte("fedcba9876543210"), uint32(0), uint8(17), uint64(1<<64-1), uint64(0), strings.Repeat("é", 700), "\x00\xff", "", uint32(0), uint32(1<<31), uint8(0))
	f.Add(uint8(7), uint16(65535), []byte{1}, []byte{}, uint32(53), uint8(1), uint64(0), uint64(1), strings.Repeat("x", 254), strings.Repeat("y", 255), "日本", uint32(1), uint32(0), uint8(255))
	all := layouts()
	registry, err := collector.NewRegistry(0, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, which uint8, size uint16, src, dst []byte, ports uint32, proto uint8, forward, back uint64, path, user, pod string, pid, at uint32, flags uint8) {
		l := all[int(which)%len(all)]
		at %= 3_599_000 // before now
		r := flowcache.Record{
			Key:   flowcache.Key{Src: addr(src), Dst: addr(dst), SrcPort: uint16(ports >> 16), DstPort: uint16(ports), Proto: proto},
			Start: boot.UnixNano() + int64(at)*1e6, End: boot.UnixNano() + int64(at)*1e6 + int64(pid%1000)*1e6, EndReason: flowcache.EndReason(flags%5 + 1),
			Forward: flowcache.Counters{Octets: forward, Packets: back, Payload: forward ^ back}, Reverse: flowcache.Counters{Octets: back, Packets: forward, Payload: forward + back},
			Control: uint16(flags), ControlBack: uint16(^flags), HasTCP: proto == flowcache.ProtoTCP, Arbitrary: flags&1 != 0, Origin: flowcache.OriginEBPF,
			Source: flowcache.End{
				Local: true, Process: flowcache.ProcessID{PID: pid}, UID: pid, GID: pid, Cookie: forward,
				Who:       &flowcache.Process{Path: path, Name: user, CommandLine: pod, UserName: user, ParentPID: at, ParentPath: pod, UID: pid, GID: pid},
				Container: &flowcache.Workload{ContainerID: pod, PodName: pod, PodNamespace: user},
			},
			Dest: flowcache.End{UID: flowcache.NoID, GID: flowcache.NoID},
		}
		if r.Key.Is4() != (r.Key.Src.Is4() || r.Key.Dst.Is4()) {
			r.Key.Dst = r.Key.Src // no flow has two versions
		}
		switch {
		case hasPorts(proto):
		case proto == 1 || proto == 58:
			r.Key.SrcPort = 0 // type and code are in the port of who is spoken to
		default:
			r.Key.SrcPort, r.Key.DstPort = 0, 0
		}
		if pod == "" { // without a pod there is no namespace of it
			r.Source.Container.PodNamespace = ""
		}
		if flags&2 != 0 { // what is here may be at the other end
			r.Source, r.Dest = r.Dest, r.Source
		}
		size = max(size, 512)
		if l.proto == ipfix.NetFlowV9 {
			size = max(size, 1400) // fields give way to a record that fits
		}
		var msgs [][]byte
		e, err := ipfix.NewEncoder(l.proto, l.opt, uint32(which), int(size), boot, func(m []byte, _ int) error {
			msgs = append(msgs, bytes.Clone(m))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		e.Templates(now)
		tooBig := e.Record(&r, now) != nil
		e.Flush(now)
		s, err := collector.NewSession(collector.Config{Registry: registry, Datagrams: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range msgs {
			if len(m) > int(size) {
				t.Fatalf("a message of %d octets, where %d are allowed", len(m), size)
			}
		}
		got, err := s.Messages(msgs)
		if err != nil {
			t.Fatal(err)
		}
		got = flows(got)
		want := []flowcache.Record{r}
		if l.opt.Uniflow || l.opt.Dialect == templates.IANA {
			if r.Reverse.Octets != 0 || r.Reverse.Packets != 0 {
				want = append(want, opposite(r))
			}
		}
		if len(got) != len(want) && !tooBig {
			t.Fatalf("%v: %d records, want %d", l, len(got), len(want))
		}
		if tooBig {
			return // counted by the exporter; nothing else can be said of it
		}
		for i := range got {
			compareFuzzed(t, l, &got[i], &want[i])
		}
		if st := s.Stats(); st.Gaps+st.Late+st.Restarts+st.Ignored+st.UnknownSets+st.Refused != 0 {
			t.Fatalf("%+v", st)
		}
	})
}

func hasPorts(proto uint8) bool {
	return proto == flowcache.ProtoTCP || proto == flowcache.ProtoUDP || proto == flowcache.ProtoUDPLite || proto == 33 || proto == 132
}

// addr makes an address of octets.
func addr(b []byte) flowcache.Addr {
	var a flowcache.Addr
	if len(b) <= 4 {
		var v4 [4]byte
		copy(v4[:], b)
		return flowcache.AddrFrom4(v4)
	}
	copy(a[:], b)
	return a
}

func compareFuzzed(t *testing.T, l layout, got *collector.Record, r *flowcache.Record) {
	t.Helper()
	all := want(l, r)
	if !hasPorts(r.Key.Proto) {
		delete(all, "sourceTransportPort")
		delete(all, "destinationTransportPort")
		if v4 := r.Key.Is4(); v4 && r.Key.Proto == 1 || !v4 && r.Key.Proto == 58 {
			all["icmpTypeCodeIPv"+map[bool]string{true: "4", false: "6"}[v4]] = uint64(r.Key.SrcPort | r.Key.DstPort)
		}
	}
	for name, v := range all {
		g := got.Get(name)
		switch v := v.(type) {
		case string:
			w := wellFormed(v)
			s, _ := g.(string)
			whole := s == w || l.proto == ipfix.NetFlowV9 && s == strings.TrimRight(w, "\x00")
			if !whole && !(strings.HasPrefix(w, s) && len(w) > 16 && utf8.ValidString(s)) {
				t.Fatalf("%v: %s: %q, want %q", l, name, g, w)
			}
		case uint64:
			if n, _ := g.(uint64); n != v {
				t.Fatalf("%v: %s: %v, want %v in %s", l, name, g, v, got.AppendJSON(nil))
			}
		default:
			if g != v {
				t.Fatalf("%v: %s: %v, want %v in %s", l, name, g, v, got.AppendJSON(nil))
			}
		}
	}
	for name, ns := range map[string]int64{"flowStartMilliseconds": r.Start, "flowEndMilliseconds": r.End} {
		if g := got.Time(name); !g.Equal(time.Unix(0, ns-ns%1e6)) {
			t.Fatalf("%v: %s: %v, want %v", l, name, g, time.Unix(0, ns))
		}
	}
}
