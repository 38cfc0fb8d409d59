package replay

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sockflow/sockflow/flowcache"
)

// usAt makes a packet of a capture of IP packets, with its time in microseconds.
func usAt(us int64, b []byte) Packet {
	p := at(0, b)
	p.Time += us * 1000
	return p
}

// TestSequences: octets that were never seen before count, each once, however segments come.
func TestSequences(t *testing.T) {
	const ab = "192.0.2.1>198.51.100.7:443 "
	established := func() *conversation {
		return talk().send(0, 999, syn, 0).answer(1, 4999, syn|ack, 0).send(2, 1000, ack, 0)
	}
	for _, c := range []struct {
		name string
		c    *conversation
		want []string
	}{
		{"two gaps, filled at once", established().send(3, 1000, ack, 100).send(3, 1200, ack, 100).send(3, 1400, ack, 100).
			send(4, 1100, ack, 100).send(4, 1300, ack, 100),
			[]string{ab + "forced +0-4ms 7/500:1/0 rtt=2000us late=2 state=1 flags=0x12"}},
		{"two gaps, filled late, the older one last", established().send(3, 1000, ack, 100).send(3, 1200, ack, 100).send(3, 1400, ack, 100).
			send(90, 1300, ack, 100).send(95, 1100, ack, 100).send(99, 1100, ack, 100),
			[]string{ab + "forced +0-99ms 8/500:1/0 rtt=2000us again=3/300 state=1 flags=0x12"}},
		{"a gap filled from its middle", established().send(3, 1000, ack, 10).send(3, 1040, ack, 10).send(3, 1020, ack, 10).send(4, 1010, ack, 10).
			send(4, 1030, ack, 10),
			[]string{ab + "forced +0-4ms 7/50:1/0 rtt=2000us late=3 state=1 flags=0x12"}},
		{"fills a gap and reaches beyond", established().send(3, 1000, ack, 100).send(3, 1200, ack, 100).send(9, 1100, ack, 250),
			[]string{ab + "forced +0-9ms 5/350:1/0 rtt=2000us again=1/200 state=1 flags=0x12"}},
		{"covers two gaps", established().send(3, 1000, ack, 10).send(3, 1020, ack, 10).send(3, 1040, ack, 10).send(9, 1000, ack, 60),
			[]string{ab + "forced +0-9ms 6/60:1/0 rtt=2000us again=1/50 state=1 flags=0x12"}},
		{"before the first that was captured", talk().send(0, 2000, ack, 100).send(1, 1800, ack, 100).send(50, 1900, ack, 100).send(60, 1800, ack, 300),
			[]string{ab + "forced +0-60ms 4/300:0/0 arbitrary again=2/400 late=1 state=1 flags=0x10"}},
		{"a new initial sequence number after a stray acknowledgment", talk().send(0, 999, syn, 0).answer(1, 900000, ack, 0).send(2, 77, rst, 0).
			send(1000, 999, syn, 0).answer(1001, 4999, syn|ack, 0).send(1002, 1000, ack, 0).answer(1003, 5000, psh|ack, 700),
			[]string{ab + "forced +0-1003ms 4/0:3/700 rtt=2000us+1000ms again=1/0 state=1 flags=0x1e"}},
		{"a new sequence after data of another", talk().answer(0, 900000, ack, 300).answer(1, 4999, syn|ack, 0).answer(2, 5000, ack, 700),
			[]string{ab + "forced +0-2ms 0/0:3/1000 state=3 flags=0x12"}},
		{"another sequence without SYN", talk().send(0, 100, ack, 50).send(1, 100+1<<31-1000, ack, 60).send(2, 160+1<<31-1000, ack, 60),
			[]string{ab + "forced +0-2ms 3/170:0/0 arbitrary state=1 flags=0x10"}},
		{"RST first", talk().answer(0, 0, rst|ack, 0).answer(1, 3_000_000_000, ack, 10).answer(2, 3_000_000_010, ack, 10),
			[]string{"198.51.100.7>192.0.2.1:40000 end +0-2ms 3/20:0/0 arbitrary state=7 flags=0x14"}},
		{"RST with a text, twice", established().send(3, 1000, ack, 10).send(4, 1010, rst|ack, 30).send(4, 1010, rst|ack, 30),
			[]string{ab + "end +0-4ms 5/40:1/0 rtt=2000us again=1/30 state=7 flags=0x16"}},
		{"SYN-ACK captured after the data", talk().send(0, 999, syn, 0).answer(1, 5000, ack, 10).answer(1, 4999, syn|ack, 0).answer(1, 5010, ack, 10),
			[]string{ab + "forced +0-1ms 1/0:3/20 late=1 state=3 flags=0x12"}},
		{"data in the SYN, sent again", talk().send(0, 999, syn, 20).send(1000, 999, syn, 20).answer(1001, 4999, syn|ack, 0).send(1002, 1020, ack, 5),
			[]string{ab + "forced +0-1002ms 3/25:1/0 rtt=2000us+1000ms again=1/20 state=1 flags=0x12"}},
		{"FIN in a gap", established().send(3, 1010, fin|ack, 0).send(4, 1000, ack, 10).send(900, 1000, fin|ack, 10),
			[]string{ab + "forced +0-900ms 5/10:1/0 rtt=2000us again=1/10 late=1 state=4 flags=0x13"}},
		{"every packet twice", talk().send(0, 999, syn, 0).answer(1, 4999, syn|ack, 0).send(2, 1000, fin|ack, 5).answer(3, 5000, fin|ack, 7).send(4, 1006, ack, 0).
			send(900, 999, syn, 0).answer(901, 4999, syn|ack, 0).send(902, 1000, fin|ack, 5).answer(903, 5000, fin|ack, 7).send(904, 1006, ack, 0),
			[]string{ab + "end +0-904ms 6/5:4/7 rtt=2000us again=4/12 state=7 flags=0x13"}},
		{"refused, and tried again", talk().send(0, 999, syn, 0).answer(1, 0, rst|ack, 0).send(500, 999, syn, 0).answer(501, 4999, syn|ack, 0).send(502, 1000, ack, 3),
			[]string{ab + "forced +0-502ms 3/3:2/0 rtt=2000us+500ms again=1/0 state=1 flags=0x16"}},
	} {
		records, _ := meter(t, Config{}, c.c.packets)
		if diff := cmp.Diff(c.want, summaries(records)); diff != "" {
			t.Errorf("%s:\n%s", c.name, diff)
		}
	}
}

// TestRoundTripTimes: neither a clock that is stepped back nor a gap in the sequence makes a round trip time of
// nothing.
func TestRoundTripTimes(t *testing.T) {
	client := func(us int64, seq uint32, flags uint8, n int) Packet {
		return usAt(us, ip(a4, b4, 6, tcp(40000, 443, seq, flags, make([]byte, n))))
	}
	server := func(us int64, seq uint32, flags uint8, n int) Packet {
		return usAt(us, ip(b4, a4, 6, tcp(443, 40000, seq, flags, make([]byte, n))))
	}
	for _, c := range []struct {
		name    string
		packets []Packet
		want    uint32
	}{
		{"in order", []Packet{client(0, 999, syn, 0), server(300, 4999, syn|ack, 0), client(400, 1000, ack, 0)}, 400},
		{"the clock is stepped back between", []Packet{client(100, 999, syn, 0), server(95, 4999, syn|ack, 0), client(90, 1000, ack, 0), client(300, 1000, ack, 10)}, 0},
		{"a gap behind the SYN-ACK", []Packet{client(0, 999, syn, 0), server(300, 4999, syn|ack, 0), client(700, 1100, ack, 10)}, 700},
		{"a gap, then the acknowledgment", []Packet{client(0, 999, syn, 0), client(10, 1100, 0, 10), server(300, 4999, syn|ack, 0), client(700, 1000, ack, 10)}, 700},
		{"an hour", []Packet{client(0, 999, syn, 0), server(3600e6, 4999, syn|ack, 0), client(3601e6, 1000, ack, 0)}, 0},
	} {
		records, _ := meter(t, Config{IdleTimeout: longest, ActiveTimeout: longest}, c.packets)
		if len(records) != 1 || records[0].TCP.MinRTT != c.want {
			t.Errorf("%s: %d us, want %d (%d records)", c.name, records[0].TCP.MinRTT, c.want, len(records))
		}
	}
	// A segment that fills its gap 1 ms before the gap was opened, by a clock that was stepped back, was overtaken.
	records, _ := meter(t, Config{}, []Packet{client(5000, 1000, ack, 10), client(5000, 1020, ack, 10), client(4000, 1010, ack, 10)})
	if records[0].Reordered != 1 || records[0].Forward.RetransPackets != 0 {
		t.Errorf("%d overtaken, %d retransmitted", records[0].Reordered, records[0].Forward.RetransPackets)
	}
}

// TestOctetsOnce compares payload counts with a set of all octets that were seen: random segments in random order, some
// repeated, some cut otherwise when they come again, over the wrap of the sequence.
func TestOctetsOnce(t *testing.T) {
	rnd := rand.New(rand.NewPCG(17, 2))
	for round := range 200 {
		const window = 3000
		base := rnd.Uint32()
		if round%3 == 0 {
			base = -uint32(rnd.IntN(window))
		}
		seen := map[uint32]bool{}
		c := talk()
		c.send(0, base-1, syn, 0)
		for i := range 400 {
			low := rnd.IntN(window) + i*5
			if rnd.IntN(4) == 0 {
				low = low / 50 * 50
			}
			n := 1 + rnd.IntN(80)
			for o := range n {
				seen[base+uint32(low+o)] = true
			}
			c.send(int64(i), base+uint32(low), ack, n)
		}
		records, st := meter(t, Config{}, c.packets)
		if len(records) != 1 || st.Gaps != 0 {
			t.Fatalf("%d records, %d gaps forgotten", len(records), st.Gaps)
		}
		if got := records[0].Forward.Payload; got != uint64(len(seen)) {
			t.Fatalf("round %d: %d octets, want %d", round, got, len(seen))
		}
	}
}

// TestGapsBounded: a sender that leaves gaps without end takes no more than its share, and what was forgotten is
// counted.
func TestGapsBounded(t *testing.T) {
	c := talk()
	const n = 5 * maxGaps
	for i := range n + 1 {
		c.send(int64(i), uint32(1000+20*i), ack, 10)
	}
	for i := range n {
		c.send(int64(n+i), uint32(1010+20*i), ack, 10)
	}
	records, st := meter(t, Config{}, c.packets)
	if st.Gaps != n-maxGaps {
		t.Errorf("%d gaps forgotten, want %d", st.Gaps, n-maxGaps)
	}
	if want := uint64(10*(n+1) + 10*maxGaps); records[0].Forward.Payload != want {
		t.Errorf("%d octets, want %d", records[0].Forward.Payload, want)
	}
	pool := gapPool{max: 3}
	var head uint32
	for i := range uint32(5) {
		pool.open(&head, i*20, i*20+10, 0)
	}
	if pool.forgotten != 2 || len(pool.all) != 4 {
		t.Errorf("%d forgotten of %d", pool.forgotten, len(pool.all))
	}
	if pool.clear(&head); head != 0 || pool.get() == 0 {
		t.Error("nothing came back")
	}
}

// TestLongConnection: sequence numbers wrap several times, and what is forgotten behind them does no harm.
func TestLongConnection(t *testing.T) {
	var d flow
	pool := gapPool{max: 100}
	seq := uint32(5)
	total, again := uint64(0), uint64(0)
	for i := range 40000 {
		if i%100 == 50 {
			seq += 1000 // never captured
		}
		p := packet{seq: seq, payload: 1 << 20, flags: flowcache.FlagACK, time: int64(i) * 1e6}
		again += uint64(d.tcp.sequence(&p, 0, false, &pool))
		total += 1 << 20
		seq += 1 << 20
	}
	if again != 0 {
		t.Errorf("%d of %d octets counted as seen before", again, total)
	}
	p := packet{seq: seq - 1<<20, payload: 1 << 20, flags: flowcache.FlagACK}
	if n := d.tcp.sequence(&p, 0, false, &pool); n != 1<<20 {
		t.Errorf("%d octets of a retransmission", n)
	}
	n := 0
	for i := d.tcp.gaps[0]; i != 0; i = pool.all[i].next {
		if n++; int32(pool.all[i].from-d.tcp.floor[0]) < 0 {
			t.Errorf("a gap below the floor")
		}
	}
	if n == 0 || n > 40 {
		t.Errorf("%d gaps are kept", n)
	}
}
