package ipfix

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/netsampler/goflow2/v2/decoders/netflow"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/templates"
)

func record(i int) *flowcache.Record {
	r := &flowcache.Record{
		Key:   flowcache.Key{Src: flowcache.AddrFrom4([4]byte{192, 0, 2, 1}), Dst: flowcache.AddrFrom4([4]byte{192, 0, 2, 2}), SrcPort: uint16(i), DstPort: 443, Proto: 6, NetNS: 9},
		Start: 1_700_000_000e9, End: 1_700_000_001e9, EndReason: flowcache.EndDetected, Control: 0x1b, HasTCP: true,
		Forward: flowcache.Counters{Payload: uint64(i), Octets: 1500, Packets: 10},
		Reverse: flowcache.Counters{Payload: 2000, Octets: 2600, Packets: 12},
		Source: flowcache.End{Local: true, Process: flowcache.ProcessID{PID: 4242}, UID: 33, GID: 33,
			Who: &flowcache.Process{Path: "/usr/bin/curl", Name: "curl", UserName: "www-data"}},
		Dest: flowcache.End{UID: flowcache.NoID, GID: flowcache.NoID},
	}
	switch i % 4 {
	case 1:
		r.Key.Proto, r.HasTCP = 17, false
	case 2:
		r.Key.Src, r.Key.Dst = flowcache.Addr{0: 0x20, 1: 1, 15: 1}, flowcache.Addr{0: 0x20, 1: 1, 15: 2}
	case 3:
		r.Key.Src, r.Key.Dst = flowcache.Addr{0: 0x20, 1: 1, 15: 1}, flowcache.Addr{0: 0x20, 1: 1, 15: 2}
		r.Key.Proto, r.HasTCP = 17, false
	}
	return r
}

var now = time.Unix(1_700_000_002, 5e8)

// TestHundredThousand encodes 100 000 records and decodes them with goflow2: the sequence has no gap, no message is longer than
// allowed, and every record is there.
func TestHundredThousand(t *testing.T) {
	const n = 100_000
	for _, tc := range []struct {
		proto Protocol
		opt   templates.Options
		max   int
	}{
		{IPFIX, templates.Options{Node: "n"}, 1400},
		{IPFIX, templates.Options{Node: "n", Uniflow: true}, 65535},
		{NetFlowV9, templates.Options{Node: "n"}, 1400},
	} {
		dec := netflow.CreateTemplateSystem()
		want, records, messages := uint32(0), 0, uint32(0)
		seen := make([]bool, n)
		var e *Encoder
		e, err := NewEncoder(tc.proto, tc.opt, 7, tc.max, now.Add(-time.Hour), func(m []byte, data int) error {
			if len(m) > tc.max {
				t.Fatalf("message of %d octets", len(m))
			}
			var v9 netflow.NFv9Packet
			var x netflow.IPFIXPacket
			if err := netflow.DecodeMessageVersion(bytes.NewBuffer(m), dec, &v9, &x); err != nil {
				t.Fatal(err)
			}
			seq, domain := x.SequenceNumber, x.ObservationDomainId
			if tc.proto == NetFlowV9 {
				seq, domain = v9.SequenceNumber, v9.SourceId
				if seq != messages {
					t.Fatalf("v9 sequence %d, want %d", seq, messages)
				}
			} else if seq != want {
				t.Fatalf("sequence %d, want %d", seq, want)
			}
			if domain != 7 {
				t.Fatalf("domain %d", domain)
			}
			messages++
			inMessage := 0
			for _, set := range append(v9.FlowSets, x.FlowSets...) {
				switch set := set.(type) {
				case netflow.DataFlowSet:
					inMessage += len(set.Records)
					records += len(set.Records)
					for _, r := range set.Records {
						for _, f := range r.Values {
							if f.Type == 401 && !f.PenProvided {
								if i := binary.BigEndian.Uint64(f.Value.([]byte)); i < n {
									seen[i] = true
								}
							}
						}
					}
				case netflow.OptionsDataFlowSet:
					inMessage += len(set.Records)
				}
			}
			if inMessage != data {
				t.Fatalf("%d records in the message, told %d", inMessage, data)
			}
			want += uint32(inMessage)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Templates(now); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if err := e.Record(record(i), now); err != nil {
				t.Fatal(err)
			}
			if i%1000 == 999 {
				e.Flush(now)
			}
			if i == n/2 {
				e.Flush(now)
				e.Templates(now)
			}
		}
		e.Flush(now)
		if wantRecords := map[bool]int{false: n, true: 2 * n}[tc.opt.Uniflow]; records != wantRecords {
			t.Errorf("%d records, want %d", records, wantRecords)
		}
		for i, ok := range seen {
			if !ok {
				t.Fatalf("record %d is lost", i)
			}
		}
	}
}

// TestLongStrings: a record that does not fit has its strings cut, not lost.
func TestLongStrings(t *testing.T) {
	msgs := 0
	e, err := NewEncoder(IPFIX, templates.Options{}, 1, 512, now, func(m []byte, data int) error {
		if binary.BigEndian.Uint16(m[headerIPFIX:]) >= templates.FirstID {
			msgs++
		}
		if len(m) > 512 {
			t.Errorf("%d octets", len(m))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r := record(0)
	r.Source.Who = &flowcache.Process{Path: "/" + strings.Repeat("é", 400), ParentPath: "/" + strings.Repeat("x", 900)}
	for range 3 {
		if err := e.Record(r, now); err != nil {
			t.Error(err)
		}
	}
	e.Flush(now)
	if msgs != 3 || e.cut != 3 || e.sequence != uint32(3+e.told) {
		t.Errorf("%d messages, %d cut, sequence %d", msgs, e.cut, e.sequence)
	}
}

func TestV9Times(t *testing.T) {
	boot := now.Add(-time.Hour)
	e, err := NewEncoder(NetFlowV9, templates.Options{}, 1, 1400, boot, func(m []byte, _ int) error {
		abs := int64(binary.BigEndian.Uint32(m[8:]))*1000 - int64(binary.BigEndian.Uint32(m[4:]))
		if abs != boot.UnixMilli() {
			t.Errorf("boot at %d, want %d", abs, boot.UnixMilli())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	e.Record(record(0), now)
	e.Flush(now)
}

// TestV9ClockSteps: sysUptime goes on, whichever way the wall clock goes, and flows have their times by what it shows.
func TestV9ClockSteps(t *testing.T) {
	for name, step := range map[string]time.Duration{
		"back, to before the boot": -time.Hour, "forward": time.Hour, "from 1970": 55 * 365 * 24 * time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			at := time.Now()
			if step > 24*time.Hour {
				at = stepped(t, at, -step)
			}
			boot := at.Add(-time.Minute)
			system := netflow.CreateTemplateSystem()
			told := 0
			e, err := NewEncoder(NetFlowV9, templates.Options{}, 1, 1400, boot, func(m []byte, _ int) error {
				var p netflow.NFv9Packet
				if err := netflow.DecodeMessageVersion(bytes.NewBuffer(m), system, &p, nil); err != nil {
					t.Fatal(err)
				}
				if p.SystemUptime < 60_000 || p.SystemUptime > 62_000 {
					t.Errorf("sysUptime %d, want a minute", p.SystemUptime)
				}
				for _, set := range p.FlowSets {
					data, _ := set.(netflow.DataFlowSet)
					for _, r := range data.Records {
						told++
						for _, f := range r.Values {
							ago := map[uint16]time.Duration{netflow.NFV9_FIELD_FIRST_SWITCHED: 2 * time.Second, netflow.NFV9_FIELD_LAST_SWITCHED: time.Second}[f.Type]
							if ago == 0 {
								continue
							}
							ms := int64(p.UnixSeconds)*1000 - int64(p.SystemUptime) + int64(binary.BigEndian.Uint32(f.Value.([]byte)))
							if off := time.UnixMilli(ms).Sub(at.Add(-ago)).Abs(); off > 2*time.Millisecond {
								t.Errorf("field %d is %s off", f.Type, off)
							}
						}
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			tell := func() {
				r := record(0)
				r.Start, r.End = at.Add(-2*time.Second).UnixNano(), at.Add(-time.Second).UnixNano()
				e.Record(r, at)
			}
			tell()
			e.Flush(at)
			tell() // on its way when the clock steps
			at = stepped(t, at, step)
			e.Flush(at)
			tell()
			e.Flush(at)
			if told != 3 {
				t.Errorf("%d records", told)
			}
		})
	}
}

// stepped returns what time.Now would have returned for t with a wall clock stepped by d.
func stepped(t *testing.T, at time.Time, d time.Duration) time.Time {
	t.Helper()
	was := at
	*(*uint64)(unsafe.Pointer(&at)) += uint64(d/time.Second) << 30 // package time: seconds, and 30 bits of nanoseconds
	if at.UnixNano()-was.UnixNano() != int64(d) || at.Sub(was) != 0 {
		t.Fatal("package time keeps its clocks in another way")
	}
	return at
}

func TestParseURL(t *testing.T) {
	for _, tc := range []struct{ url, address, err string }{
		{"udp://collector", "collector:4739", ""},
		{"tcp://[::1]:99", "[::1]:99", ""},
		{"netflow9+udp://10.0.0.1", "10.0.0.1:2055", ""},
		{"udp://h?template-refresh=5s&application=process&mtu=1400&dialect=native&direction=uniflow&domain=9&pen=5&queue=10&v9-base=1000&string-length=20&reconnect-min=1s&reconnect-max=2s", "h:4739", ""},
		{"udp://h?application=name", "", "port or process"},
		{"udp://h?mtu=12", "", "576"},
		{"udp://h?mtu=1400&mtu=1500", "", "twice"},
		{"udp://h/path", "", "more than"},
		{"udp://u@h", "", "more than"},
		{"udp://:4739", "", "no host"},
		{"udp://h:0", "", "port"},
		{"gopher://h", "", "scheme"},
		{"h:4739", "", "scheme"},
		{"udp://h:4739:1", "", "collector"},
		{"udp://h?template-refresh=1", "", "duration"},
		{"tls://h?ca=/a&cert=/b&key=/c&server-name=x&spool=/s&spool-size=10M&send-timeout=3s", "h:4740", ""},
		{"dtls://h?session-time=1m&max-rate=100", "h:4740", ""},
		{"sctp://h", "h:4739", ""},
		{"file:/a/b.ipfix?rotate=10M&rotate=1h&fsync=1s&keep=3", "/a/b.ipfix", ""},
		{"file:what?.ipfix?keep=3", "what?.ipfix", ""},
		{"file:///a/b", "/a/b", ""},
		{"file:a?rotate=3", "", "rotate"},
		{"file:a?mtu=1400", "", "unknown"},
		{"file:", "", "no path"},
		{"file:a/", "", "no path"},
		{"file://host/a", "", "on this host"},
		{"udp://h?spool=/s", "", "unknown"},
		{"tcp://h?ca=/s", "", "unknown"},
		{"tcp://h?spool-size=10q", "", "no size"},
		{"tcp://h?spool-size=10k", "", "at least"},
		{"tls://h?ca=", "", "empty"},
	} {
		cfg, err := ParseURL(tc.url, Config{})
		if tc.err == "" && (err != nil || cfg.Address != tc.address) || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%s: %q, %v; want %q, %q", tc.url, cfg.Address, err, tc.address, tc.err)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	f.Add("udp://h:1?mtu=1400")
	f.Add("file:a?b?rotate=1h")
	f.Add("tls://h?spool=x&spool-size=1GiB")
	f.Add("netflow9+udp://]")
	f.Add("netflow9+udp://[fe80::1%25eth0]:2055")
	f.Fuzz(func(t *testing.T, s string) {
		cfg, err := ParseURL(s, Config{})
		if err != nil {
			return
		}
		if err := cfg.complete(); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
	})
}

// sink is a stream collector.
type sink struct {
	l    net.Listener
	mu   sync.Mutex
	data [][]byte // of each connection
	done int      // connections that have ended
	conn net.Conn
}

func listen(t *testing.T, addr string) *sink {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, l)
}

func (s *sink) accept() {
	for {
		c, err := s.l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		i := len(s.data)
		s.data = append(s.data, nil)
		s.conn = c
		s.mu.Unlock()
		go s.read(c, i) // ends with c
	}
}

func (s *sink) read(c net.Conn, i int) {
	defer c.Close()
	buf := make([]byte, 65536)
	for {
		n, err := c.Read(buf)
		s.mu.Lock()
		s.data[i] = append(s.data[i], buf[:n]...)
		s.mu.Unlock()
		if err != nil {
			s.mu.Lock()
			s.done++
			s.mu.Unlock()
			return
		}
	}
}

// all returns what every connection brought, once they have ended.
func (s *sink) all(t *testing.T) [][]byte {
	t.Helper()
	eventually(t, "connections end", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.done == len(s.data)
	})
	return s.streams()
}

func (s *sink) streams() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var l [][]byte
	for _, d := range s.data {
		l = append(l, bytes.Clone(d))
	}
	return l
}

// miss skips a test that needs what is not there; where all is to be there it fails.
func miss(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("REQUIRE_ROOT") == "1" {
		t.Fatal(what)
	}
	t.Skip(what)
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not within 10 s: %s", what)
}

// TestReconnect: each connection begins with templates and sequence 0; what was offered meanwhile follows.
func TestReconnect(t *testing.T) {
	s := listen(t, "127.0.0.1:0")
	addr := s.l.Addr().String()
	x := begin(t, "tcp://"+addr, Config{ReconnectMin: 100 * time.Millisecond, ReconnectMax: 200 * time.Millisecond})
	offer := func(i int) {
		r := flowcache.RecordPool(nil).Get()
		r.List = append(r.List, *record(i))
		r.List[0].Source.Who = &flowcache.Process{Path: "/marker-" + string(rune('a'+i))}
		x.Offer(r)
	}
	got := func(i int, marker string) func() bool {
		return func() bool { s := s.streams(); return len(s) > i && bytes.Contains(s[i], []byte(marker)) }
	}
	offer(0)
	eventually(t, "the first record", got(0, "/marker-a"))
	s.l.Close()
	s.conn.Close()
	eventually(t, "the loss is noticed", func() bool { return x.text() != "" })
	offer(1)
	first := s.streams()
	s = listen(t, addr)
	eventually(t, "the second record", got(0, "/marker-b"))
	offer(2)
	eventually(t, "the third record", got(0, "/marker-c"))
	x.stop()
	for _, stream := range append(first, s.streams()...) {
		if binary.BigEndian.Uint32(stream[8:]) != 0 || binary.BigEndian.Uint16(stream[16:]) != setOptionsTemplate {
			t.Errorf("a session begins with sequence %d, set %d", binary.BigEndian.Uint32(stream[8:]), binary.BigEndian.Uint16(stream[16:]))
		}
		ipfixDump(t, stream)
	}
	if st := x.Stats(); st.DroppedQueue+st.DroppedSend != 0 || st.Connects != 2 {
		t.Errorf("%+v", st)
	}
	if len(x.lines) != 2 {
		t.Errorf("%q", x.lines)
	}
}

func ipfixDump(t *testing.T, stream []byte) {
	t.Helper()
	if _, err := exec.LookPath("ipfixDump"); err != nil {
		if os.Getenv("REQUIRE_ROOT") == "1" {
			t.Fatal("needs ipfixDump")
		}
		return
	}
	file := filepath.Join(t.TempDir(), "s.ipfix")
	os.WriteFile(file, stream, 0o600)
	if out, err := exec.Command("ipfixDump", "--rfc5610", "--in", file).CombinedOutput(); err != nil || bytes.Contains(out, []byte("_alien")) {
		t.Errorf("ipfixDump: %v\n%s", err, out[:min(len(out), 500)])
	}
}

// TestQueueIsBounded: a collector that is away costs no more than its queue, and what is dropped is counted.
func TestQueueIsBounded(t *testing.T) {
	x, err := New(Config{Network: "tcp", Address: "127.0.0.1:1", Queue: 10})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 25 {
		r := flowcache.RecordPool(nil).Get()
		r.List = append(r.List, *record(i))
		if ok := x.Offer(r); ok != (i < 10) {
			t.Errorf("offer %d: %t", i, ok)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	x.Run(ctx)
	if st := x.Stats(); st.DroppedQueue != 15 || st.Encoded != 10 || st.DroppedSend < 10 || st.DroppedSend != st.Made {
		t.Errorf("%+v", st)
	}
}

// TestHungCollector: a collector that accepts and never reads does not hold up the end.
func TestHungCollector(t *testing.T) {
	t.Parallel()
	x, _, _ := idle(t, "", 0, Config{Queue: 1 << 20})
	const n = 1000
	for range n {
		r := flowcache.RecordPool(nil).Get()
		for i := range 100 {
			r.List = append(r.List, *record(i))
		}
		x.Offer(r)
	}
	eventually(t, "the stream is full", func() bool {
		a := x.Stats().Octets
		time.Sleep(200 * time.Millisecond)
		return a > 0 && x.Stats().Octets == a
	})
	begun := time.Now()
	if x.stop(); time.Since(begun) > 3*time.Second {
		t.Fatal("still running 3 s after the end")
	}
	st := x.Stats()
	types := x.enc.told // options records
	if got := st.Records + st.DroppedQueue + st.DroppedSend; got != n*100+types {
		t.Errorf("%d of %d records are accounted for: %+v", got, n*100+types, st)
	}
}

// TestRefused: datagrams that nobody takes are sent on, said once and counted.
func TestRefused(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := c.LocalAddr().String()
	c.Close()
	x := begin(t, "udp://"+addr, Config{TemplateRefresh: 100 * time.Millisecond})
	eventually(t, "errors are counted", func() bool { return x.Stats().Errors > 2 })
	x.stop()
	if len(x.lines) != 1 {
		t.Errorf("said %q", x.lines)
	}
}

// TestRefusedNoMore: a collector that is back over UDP is told the templates at once, not with the next refresh, and another time.
func TestRefusedNoMore(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := c.LocalAddr().String()
	c.Close()
	x := begin(t, "udp://"+addr, Config{TemplateRefresh: time.Hour})
	eventually(t, "it is refused", func() bool { x.give(1); return x.Stats().Errors > 1 })
	if c, err = net.ListenPacket("udp", addr); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	stop := make(chan struct{})
	defer func() { <-stop }()
	back := time.Now()
	go func() { // ends with its two seconds
		defer close(stop)
		for time.Since(back) < 2*time.Second {
			x.give(1)
			time.Sleep(20 * time.Millisecond)
		}
	}()
	var told []time.Duration
	buf := make([]byte, 65536)
	c.SetReadDeadline(back.Add(2 * time.Second))
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			break
		}
		tells := false
		eachSet(buf[:n], func(id uint16, set []byte) error { tells = tells || id == setTemplate; return nil })
		if tells {
			told = append(told, time.Since(back))
		}
	}
	if len(told) != 2 || told[0] > 500*time.Millisecond || told[1]-told[0] < toldAgain/2 {
		t.Errorf("templates of flow records are told after %v", told)
	}
}

func TestEncoderAllocatesNothing(t *testing.T) {
	e, err := NewEncoder(IPFIX, templates.Options{}, 1, 8192, now, func([]byte, int) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	r := record(0)
	e.Record(r, now)
	if n := testing.AllocsPerRun(1000, func() { e.Record(r, now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkEncoder makes messages of records of TCP over IPv4 with the default fields, the source local. "four-strings" is a process with
// path, name, user and parent's path; "all" has its unit, the node and the congestion control too; "pod" is one in a pod.
func BenchmarkEncoder(b *testing.B) {
	four := *record(0)
	four.Source.Who = &flowcache.Process{Path: "/usr/sbin/nginx", Name: "nginx", UserName: "www-data", ParentPath: "/usr/lib/systemd/systemd", ParentPID: 1, StartTime: 1_600_000_000e9}
	all := four
	all.TCP.CongestionControlName = [16]byte{'c', 'u', 'b', 'i', 'c'}
	all.Source.Container = &flowcache.Workload{ServiceUnit: "nginx.service"}
	pod := all
	pod.Source.Container = &flowcache.Workload{ContainerID: strings.Repeat("3f", 32), ContainerName: "web", ContainerImage: "docker.io/library/nginx:1.27", ContainerRuntime: "containerd",
		PodName: "web-5d4f8c7b9-x2x4z", PodNamespace: "default", PodUID: "6f1c0f0e-0001-4c6f-9b1e-000000000001"}
	for _, bc := range []struct {
		name  string
		proto Protocol
		size  int
		node  string
		rec   flowcache.Record
	}{
		{"four-strings/1400", IPFIX, 1400, "", four},
		{"four-strings/65535", IPFIX, 65535, "", four},
		{"all/1400", IPFIX, 1400, "node-1", all},
		{"all/65535", IPFIX, 65535, "node-1", all},
		{"pod/65535", IPFIX, 65535, "node-1", pod},
		{"v9/1400", NetFlowV9, 1400, "node-1", all},
	} {
		b.Run(bc.name, func(b *testing.B) {
			octets, n := 0, 0
			e, err := NewEncoder(bc.proto, templates.Options{Node: bc.node}, 1, bc.size, now, func(m []byte, _ int) error { octets += len(m); return nil })
			if err != nil {
				b.Fatal(err)
			}
			recs := make([]flowcache.Record, 256) // as a batch brings them
			for i := range recs {
				recs[i] = bc.rec
			}
			e.Record(&recs[0], now)
			e.Flush(now)
			octets = 0
			b.ReportAllocs()
			for b.Loop() {
				e.Record(&recs[n&255], now)
				n++
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "Mrecords/s")
			b.ReportMetric(float64(octets)/float64(n), "octets/record")
		})
	}
}
