package replay

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/sockflow/sockflow/flowcache"
)

const (
	syn, ack, fin, rst, psh = flowcache.FlagSYN, flowcache.FlagACK, flowcache.FlagFIN, flowcache.FlagRST, flowcache.FlagPSH
	seconds                 = int64(1000)
)

// conversation writes packets between a client and a server.
type conversation struct {
	client, server string
	cport, sport   int
	packets        []Packet
}

func talk() *conversation { return &conversation{a4, b4, 40000, 443, nil} }

func (c *conversation) send(ms int64, seq uint32, flags uint8, payload int) *conversation {
	c.packets = append(c.packets, at(ms, ip(c.client, c.server, 6, tcp(c.cport, c.sport, seq, flags, make([]byte, payload)))))
	return c
}

func (c *conversation) answer(ms int64, seq uint32, flags uint8, payload int) *conversation {
	c.packets = append(c.packets, at(ms, ip(c.server, c.client, 6, tcp(c.sport, c.cport, seq, flags, make([]byte, payload)))))
	return c
}

// summary is one line of what a record says.
func summary(r *flowcache.Record) string {
	s := fmt.Sprintf("%s>%s:%d %s +%d-%dms %d/%d:%d/%d", r.Key.Src.Netip(), r.Key.Dst.Netip(), r.Key.DstPort, r.EndReason,
		(r.Start-1e18)/1e6, (r.End-1e18)/1e6, r.Forward.Packets, r.Forward.Payload, r.Reverse.Packets, r.Reverse.Payload)
	if r.Arbitrary {
		s += " arbitrary"
	}
	if r.TCP.ConnectTime != 0 {
		s += fmt.Sprintf(" rtt=%dus", r.TCP.SRTT)
		if n := (r.TCP.ConnectTime - r.TCP.SRTT) / 1000; n > 0 {
			s += fmt.Sprintf("+%dms", n)
		}
	}
	if n := r.Forward.RetransPackets + r.Reverse.RetransPackets; n != 0 {
		s += fmt.Sprintf(" again=%d/%d", n, r.Forward.RetransOctets+r.Reverse.RetransOctets)
	}
	if n := r.Reordered + r.ReverseReordered; n != 0 {
		s += fmt.Sprintf(" late=%d", n)
	}
	if r.TCP.ConnectError != 0 {
		s += fmt.Sprintf(" errno=%d", r.TCP.ConnectError)
	}
	if r.HasTCP {
		s += fmt.Sprintf(" state=%d flags=%#x", r.TCP.State, r.Control|r.ControlBack)
	}
	return s
}

func summaries(records []flowcache.Record) (all []string) {
	for i := range records {
		all = append(all, summary(&records[i]))
	}
	return all
}

func TestConnections(t *testing.T) {
	const ab = "192.0.2.1>198.51.100.7:443 "
	for _, c := range []struct {
		name string
		c    *conversation
		want []string
	}{
		{"whole", talk().send(0, 100, syn, 0).answer(20, 900, syn|ack, 0).send(30, 101, ack, 0).send(31, 101, psh|ack, 50).
			answer(50, 901, psh|ack, 200).send(60, 151, fin|ack, 0).answer(70, 1101, fin|ack, 0).send(80, 152, ack, 0),
			[]string{ab + "end +0-80ms 5/50:3/200 rtt=30000us state=7 flags=0x1b"}},
		{"refused", talk().send(0, 100, syn, 0).answer(1, 0, rst|ack, 0),
			[]string{ab + "end +0-1ms 1/0:1/0 errno=111 state=7 flags=0x16"}},
		{"half open", talk().send(0, 100, syn, 0).send(1000, 100, syn, 0).send(3000, 100, syn, 0),
			[]string{ab + "forced +0-3000ms 3/0:0/0 again=2/0 state=2 flags=0x2"}},
		{"SYN sent again", talk().send(0, 100, syn, 0).send(1000, 100, syn, 0).answer(1001, 900, syn|ack, 0).send(1002, 101, ack, 0),
			[]string{ab + "forced +0-1002ms 3/0:1/0 rtt=2000us+1000ms again=1/0 state=1 flags=0x12"}},
		{"reset", talk().send(0, 100, syn, 0).answer(1, 900, syn|ack, 0).send(2, 101, ack, 0).send(3, 101, rst|ack, 0),
			[]string{ab + "end +0-3ms 3/0:1/0 rtt=2000us state=7 flags=0x16"}},
		{"found in the middle", talk().answer(0, 900, ack, 10).send(1, 100, ack, 20),
			[]string{"198.51.100.7>192.0.2.1:40000 forced +0-1ms 1/10:1/20 arbitrary state=1 flags=0x10"}},
		{"answer first", talk().answer(0, 900, syn|ack, 0).send(1, 101, ack, 0),
			[]string{ab + "forced +0-1ms 1/0:1/0 state=1 flags=0x12"}},
		{"answer before its question", talk().answer(0, 900, syn|ack, 0).send(1, 100, syn, 0).send(2, 101, ack, 0),
			[]string{ab + "forced +0-2ms 2/0:1/0 rtt=1000us state=1 flags=0x12"}},
		{"half closed", talk().send(0, 100, syn, 0).answer(1, 900, syn|ack, 0).send(2, 101, fin|ack, 0).answer(3, 901, ack, 9),
			[]string{ab + "forced +0-3ms 2/0:2/9 rtt=2000us state=4 flags=0x13"}},
		{"retransmitted", talk().send(0, 100, syn, 0).answer(1, 900, syn|ack, 0).send(2, 101, ack, 0).send(3, 101, ack, 100).
			send(300, 101, ack, 100).send(301, 151, ack, 100).answer(302, 901, ack, 0).send(303, 250, ack, 1),
			[]string{ab + "forced +0-303ms 6/150:2/0 rtt=2000us again=2/150 state=1 flags=0x12"}},
		{"out of order, and lost before", talk().send(0, 1, ack, 10).send(1, 21, ack, 10).send(2, 11, ack, 10).
			send(10, 41, ack, 10).send(200, 31, ack, 10),
			[]string{ab + "forced +0-200ms 5/50:0/0 arbitrary again=1/10 late=1 state=1 flags=0x10"}},
		{"sequence numbers wrap", talk().send(0, 1<<32-5, ack, 10).send(1, 5, ack, 10).send(2, 1<<32-5, ack, 10),
			[]string{ab + "forced +0-2ms 3/20:0/0 arbitrary again=1/10 state=1 flags=0x10"}},
		{"ports used again", talk().send(0, 100, syn, 0).answer(1, 0, rst|ack, 0).send(1000, 7000, syn, 0).answer(1001, 900, syn|ack, 0),
			[]string{ab + "end +0-1ms 1/0:1/0 errno=111 state=7 flags=0x16", ab + "forced +1000-1001ms 1/0:1/0 state=3 flags=0x12"}},
		{"ports used again by the other end", talk().send(0, 100, syn, 0).answer(1, 900, syn|ack, 0).answer(9, 5000, syn, 0),
			[]string{ab + "end +0-1ms 1/0:1/0 state=3 flags=0x12", "198.51.100.7>192.0.2.1:40000 forced +9-9ms 1/0:0/0 state=2 flags=0x2"}},
		{"silence", talk().send(0, 1, ack, 1).send(14*seconds, 2, ack, 1).send(30*seconds, 3, ack, 1),
			[]string{ab + "idle +0-14000ms 2/2:0/0 arbitrary state=1 flags=0x10", ab + "forced +30000-30000ms 1/1:0/0 arbitrary state=1 flags=0x10"}},
	} {
		records, _ := meter(t, Config{}, c.c.packets)
		if diff := cmp.Diff(c.want, summaries(records)); diff != "" {
			t.Errorf("%s:\n%s", c.name, diff)
		}
	}
}

func TestTimeouts(t *testing.T) {
	var packets []Packet
	for i := range int64(25) {
		packets = append(packets, at(i*10*seconds/2, ip(a4, b4, 17, udp(1, 443, []byte("x"))))) // every 5 s, for 120 s
	}
	packets = append(packets, at(1000*seconds, ip(b4, a4, 1, make([]byte, 8))))
	records, st := meter(t, Config{ActiveTimeout: 30 * time.Second, IdleTimeout: 10 * time.Second}, packets)
	const ab = "192.0.2.1>198.51.100.7:443 "
	want := []string{
		ab + "active +0-25000ms 6/6:0/0", ab + "active +30000-55000ms 6/6:0/0", ab + "active +60000-85000ms 6/6:0/0", ab + "active +90000-115000ms 6/6:0/0",
		ab + "idle +120000-120000ms 1/1:0/0", "198.51.100.7>192.0.2.1:0 forced +1000000-1000000ms 1/0:0/0",
	}
	if records[len(records)-1].Key.Proto == 1 { // an answer without a question: the one that is answered began
		want[5] = "192.0.2.1>198.51.100.7:2048 forced +1000000-1000000ms 0/0:1/0"
	}
	if diff := cmp.Diff(want, summaries(records)); diff != "" {
		t.Error(diff)
	}
	for i, r := range records[:5] {
		if n := r.ForwardTotal.Packets; n != uint64(min(25, 6*(i+1))) {
			t.Errorf("record %d has %d packets in total", i, n)
		}
		if r.Final != (i == 4) {
			t.Errorf("record %d: final %v", i, r.Final)
		}
	}
	if st.Created != 2 || st.Records[flowcache.EndActive] != 4 || st.Live != 0 {
		t.Errorf("%+v", st)
	}
}

// TestICMP: an echo and its answer are one flow, and the question's sender began it.
func TestICMP(t *testing.T) {
	records, _ := meter(t, Config{}, []Packet{
		at(0, ip(b4, a4, 1, cat([]byte{0, 0}, make([]byte, 62)))),
		at(1, ip(a4, b4, 1, cat([]byte{8, 0}, make([]byte, 62)))),
	})
	if diff := cmp.Diff([]string{"192.0.2.1>198.51.100.7:2048 forced +0-1ms 1/56:1/56"}, summaries(records)); diff != "" {
		t.Error(diff)
	}
}

// many makes packets of n flows.
func many(n, packets int, seed uint64) []Packet {
	rnd := rand.New(rand.NewPCG(seed, 1))
	var all []Packet
	for i := range packets {
		f := rnd.IntN(n)
		s, d := fmt.Sprintf("10.%d.%d.1", f>>8&255, f&255), "192.0.2.1"
		sp, dp := 1000+f%5000, 443
		if rnd.IntN(2) == 0 {
			s, d, sp, dp = d, s, dp, sp
		}
		in, proto := tcp(sp, dp, uint32(i), [...]uint8{syn, ack, ack, ack, ack, fin | ack, rst}[rnd.IntN(7)], make([]byte, rnd.IntN(9))), uint8(6)
		if f%3 == 0 {
			in, proto = udp(sp, dp, make([]byte, rnd.IntN(9))), 17
		}
		all = append(all, at(int64(i)*3+int64(rnd.IntN(50)), ip(s, d, proto, in)))
	}
	return all
}

// TestSameEveryTime also checks the sums: each packet is in one record, whatever the limits.
func TestSameEveryTime(t *testing.T) {
	packets := many(8000, 16000, 7)
	var octets uint64
	for i := range packets {
		octets += uint64(packets[i].Length)
	}
	for _, cfg := range []Config{{}, {MaxFlows: 100}, {MaxFlows: 1}, {MaxFlows: 1 << 14}, {ActiveTimeout: time.Second, IdleTimeout: time.Second}} {
		first, st := meter(t, cfg, packets)
		again, _ := meter(t, cfg, packets)
		if !slices.Equal(first, again) {
			t.Fatalf("%+v: not the same twice", cfg)
		}
		var sum flowcache.Counters
		for i := range first {
			sum.Add(&first[i].Forward)
			sum.Add(&first[i].Reverse)
		}
		if sum.Packets != uint64(len(packets)) || sum.Octets != octets || st.Octets != octets {
			t.Errorf("%+v: %d packets, %d octets; want %d, %d", cfg, sum.Packets, sum.Octets, len(packets), octets)
		}
	}
}

// TestBounded holds the table to its size, and its structures to each other.
func TestBounded(t *testing.T) {
	cfg := Config{ActiveTimeout: 20 * time.Second, IdleTimeout: 5 * time.Second, Linger: time.Second}
	var list []flowcache.Record
	s := newSeed()
	tab := newTable(&cfg, 1000, s, func(r *flowcache.Records) *flowcache.Records {
		if r != nil {
			list = append(list, r.List...)
		}
		return flowcache.RecordPool(nil).Get()
	})
	var d decoder
	n := 0
	for i, raw := range many(20000, 40000, 3) {
		p := packet{time: raw.Time, packets: 1}
		if fate, _ := d.ip(raw.Data, etherIPv4, raw.Length, &p); fate != Counted {
			t.Fatal(fate)
		}
		if p.order() {
			p.kind |= kindSwapped
		}
		p.hash = s.hash(&p.tuple)
		tab.addAll([]packet{p})
		n++
		if i%1000 == 0 {
			tab.expire(raw.Time)
			check(t, tab)
		}
	}
	check(t, tab)
	tab.expire(1e18 + 40000*3e6 + 4e9)
	check(t, tab)
	tab.flush()
	check(t, tab)
	list = append(list, tab.out.List...)
	var packets uint64
	for i := range list {
		packets += list[i].Forward.Packets + list[i].Reverse.Packets
	}
	if packets != uint64(n) || tab.used != 0 {
		t.Errorf("%d of %d packets, %d flows left", packets, n, tab.used)
	}
	if tab.records[flowcache.EndLack] == 0 || tab.records[flowcache.EndDetected] == 0 || tab.records[flowcache.EndIdle] == 0 {
		t.Errorf("records by reason: %v", tab.records)
	}
}

// check compares the index, the wheel and the list of unused flows of a table.
func check(t *testing.T, tab *table) {
	t.Helper()
	if tab.used > tab.max {
		t.Fatalf("%d flows, %d allowed", tab.used, tab.max)
	}
	indexed := 0
	for _, s := range tab.index {
		if s != 0 {
			indexed++
			f := tab.at(uint32(s))
			p := packet{tuple: f.tuple, hash: tab.seed.hash(&f.tuple)}
			if uint32(s>>32) != p.hash || tab.find(&p) != uint32(s) {
				t.Fatalf("flow %d is not found", uint32(s))
			}
		}
	}
	armed := 0
	for s, i := range tab.wheel.heads {
		if (i != 0) != (tab.wheel.filled[s/64]>>(s%64)&1 != 0) {
			t.Fatalf("slot %d of the wheel: flow %d, marked %v", s, i, i == 0)
		}
		for prev := uint32(0); i != 0; prev, i = i, tab.at(i).next {
			if armed++; tab.at(i).prev != prev || int(tab.at(i).slot) != s {
				t.Fatalf("flow %d is not linked", i)
			}
		}
	}
	unused := 0
	for i := tab.unused; i != 0; i = tab.at(i).next {
		unused++
	}
	if indexed != tab.used || armed != tab.used || unused != max(0, len(tab.chunks)*chunkLen-1)-tab.used {
		t.Fatalf("%d flows, %d in the index, %d in the wheel, %d unused", tab.used, indexed, armed, unused)
	}
}

func TestLeapsOfTime(t *testing.T) {
	one := ip(a4, b4, 17, udp(1, 2, nil))
	packets := []Packet{at(0, one), at(1<<33, one), at(0, one), at(1, one), at(1<<33+1, one)}
	packets = append(packets, Packet{Time: 1 << 62, Link: LinkRaw, Data: one, Length: len(one)}, Packet{Time: 0, Link: LinkRaw, Data: one, Length: len(one)})
	records, _ := meter(t, Config{ActiveTimeout: 1 << 62, IdleTimeout: 1 << 62}, packets)
	var n uint64
	for i := range records {
		n += records[i].Forward.Packets
	}
	if n != uint64(len(packets)) {
		t.Errorf("%d packets", n)
	}
}

func TestRestart(t *testing.T) {
	m, err := NewMeter(Config{})
	if err != nil {
		t.Fatal(err)
	}
	one := ip(a4, b4, 17, udp(1, 443, nil))
	i := 0
	var got []string
	err = m.Run(func(p *Packet) error {
		switch i++; i {
		case 1:
			*p = at(100*seconds, one)
		case 2:
			m.Restart()
			*p = at(0, one)
		default:
			return io.EOF
		}
		return nil
	}, func(r *flowcache.Records) error {
		got = append(got, summaries(r.List)...)
		r.Release()
		return nil
	})
	const ab = "192.0.2.1>198.51.100.7:443 "
	if diff := cmp.Diff([]string{ab + "forced +100000-100000ms 1/0:0/0", ab + "forced +0-0ms 1/0:0/0"}, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

// TestRunEnds: an error of either side ends a run, and no goroutine stays behind that would block.
func TestRunEnds(t *testing.T) {
	bad := errors.New("bad")
	packets := many(5000, 50000, 1)
	m, _ := NewMeter(Config{ActiveTimeout: time.Millisecond})
	i := 0
	next := func(p *Packet) error {
		*p = packets[i%len(packets)]
		i++
		return nil
	}
	if err := m.Run(next, func(r *flowcache.Records) error { r.Release(); return bad }); err != bad {
		t.Errorf("emit failed: %v", err)
	}
	m, _ = NewMeter(Config{})
	if err := m.Run(func(*Packet) error { return bad }, nil); err != bad {
		t.Errorf("next failed: %v", err)
	}
	idle := 0
	m, _ = NewMeter(Config{})
	var reasons []flowcache.EndReason
	err := m.Run(func(p *Packet) error {
		switch idle++; {
		case idle == 1:
			*p = packets[0]
			return nil
		case idle < 10:
			p.Time = packets[0].Time + int64(idle)*10e9
			return ErrIdle
		}
		return io.EOF
	}, func(r *flowcache.Records) error {
		for i := range r.List {
			reasons = append(reasons, r.List[i].EndReason)
		}
		return nil
	})
	if err != nil || len(reasons) != 1 || reasons[0] != flowcache.EndIdle {
		t.Errorf("idle: %v, %v", reasons, err)
	}
}

func TestNothingAllocated(t *testing.T) {
	packets := many(1000, 20000, 9)
	m, err := NewMeter(Config{MaxFlows: 2000})
	if err != nil {
		t.Fatal(err)
	}
	s := m.shards[0]
	pool := make(flowcache.RecordPool, 4)
	s.table.give = func(r *flowcache.Records) *flowcache.Records {
		r.Release()
		return pool.Get()
	}
	s.table.out = pool.Get()
	i := 0
	observe := func() {
		for range 100 {
			p := packets[i%len(packets)]
			p.Time = 1e18 + int64(i)*1e6
			m.observe(&p)
			i++
		}
		s.table.addAll(m.round.packets[0])
		s.table.expire(m.clock)
		m.round.packets[0] = m.round.packets[0][:0]
	}
	for range 400 {
		observe()
	}
	if n := testing.AllocsPerRun(500, observe); n > 0 {
		t.Errorf("%v allocations in 100 packets", n)
	}
}

func FuzzMeter(f *testing.F) {
	var seed []byte
	for _, p := range many(8, 40, 5) {
		seed = append(seed, byte(len(p.Data)), byte(p.Time/1e6))
		seed = append(seed, p.Data...)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		var packets []Packet
		var now int64
		for len(b) > 2 {
			n := min(int(b[0]), len(b)-2)
			now += int64(int8(b[1])) * 1e8
			p := at(0, b[2:2+n])
			p.Time += now
			packets = append(packets, p)
			b = b[2+n:]
		}
		records, st := meter(t, Config{MaxFlows: 4, Decap: true, ActiveTimeout: 10 * time.Second, IdleTimeout: 3 * time.Second}, packets)
		var n, octets uint64
		for i := range records {
			n += records[i].Forward.Packets + records[i].Reverse.Packets
			octets += records[i].Forward.Octets + records[i].Reverse.Octets
		}
		if n != st.Fates[Counted] || octets != st.Octets || st.Packets != uint64(len(packets)) {
			t.Errorf("%d packets and %d octets in records, %+v", n, octets, st)
		}
	})
}

func BenchmarkMeter(b *testing.B) {
	for _, flows := range []int{1000, 60000} {
		packets := many(flows, 1<<16, 1)
		b.Run(fmt.Sprint(flows), func(b *testing.B) {
			m, _ := NewMeter(Config{Pool: make(flowcache.RecordPool, 32)})
			i := 0
			b.ReportAllocs()
			m.Run(func(p *Packet) error {
				if i == b.N {
					return io.EOF
				}
				*p = packets[i&(1<<16-1)]
				i++
				return nil
			}, func(r *flowcache.Records) error { r.Release(); return nil })
		})
	}
}

// TestFlowSize: a flow is three cache lines.
func TestFlowSize(t *testing.T) {
	if n := unsafe.Sizeof(flow{}); n != 192 {
		t.Errorf("a flow takes %d octets", n)
	}
}
