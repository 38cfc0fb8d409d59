package flowcache

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

const second = int64(time.Second)

func newCache(t testing.TB, cfg Config) *Cache {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func tcpKey(port uint16) Key {
	return Key{Src: AddrFrom4([4]byte{10, 0, 0, 1}), Dst: AddrFrom4([4]byte{10, 0, 0, 2}), SrcPort: port, DstPort: 80, Proto: ProtoTCP, NetNS: 7}
}

func totals(o, i uint64) (out, in Counters) {
	return Counters{Payload: o, Octets: o * 2, Packets: o / 10}, Counters{Payload: i, Octets: i * 2, Packets: i / 10}
}

func obs(key Key, cookie uint64, t int64, ev Event, o, i uint64) *Observation {
	ob := &Observation{Key: key, Cookie: cookie, Time: t, Event: ev, UID: NoID, GID: NoID, Role: RoleInitiator}
	ob.Out, ob.In = totals(o, i)
	return ob
}

// TestDeltasSumToTotals is the property the cache stands for: whatever the order and mix of events and snapshots, of
// expiry, eviction and flush, the records of a socket sum to its totals, and no octet is in two records.
func TestDeltasSumToTotals(t *testing.T) {
	for seed := range uint64(400) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		maxFlows := 1 + rnd.IntN(20)
		if seed%2 == 0 {
			maxFlows = 1000
		}
		c := newCache(t, Config{ActiveTimeout: 3 * time.Second, IdleTimeout: 2 * time.Second, MaxFlows: maxFlows})
		type socket struct {
			key     Key
			cookie  uint64
			udp     bool
			out, in uint64
			base    uint64 // of a socket older than the start
			ended   bool
		}
		var sockets []*socket
		sum := map[uint64]*[2]uint64{}
		finals := map[uint64]int{}
		var recs []Record
		take := func() {
			for _, r := range recs {
				cookie := r.Source.Cookie + r.Dest.Cookie
				s := sum[cookie]
				fwd, rev := r.Forward.Payload, r.Reverse.Payload
				if r.Dest.Local {
					fwd, rev = rev, fwd
				}
				s[0] += fwd
				s[1] += rev
				if r.EndReason == EndDetected {
					finals[cookie]++
				}
			}
			recs = recs[:0]
		}
		now := 1000 * second
		var stale []*Observation // of a pass under way
		for step := range 300 {
			now += rnd.Int64N(second / 3)
			switch n := rnd.IntN(10); {
			case n < 3:
				s := &socket{key: tcpKey(uint16(rnd.IntN(30))), cookie: uint64(len(sockets) + 1), udp: rnd.IntN(3) == 0}
				if s.udp {
					s.key.Proto = ProtoUDP
				} else if step < 5 {
					s.base = 500
					s.out = 500
				}
				sockets = append(sockets, s)
				sum[s.cookie] = &[2]uint64{}
				if s.base != 0 { // in the first pass
					o := obs(s.key, s.cookie, now, EventUpdate, s.out, 0)
					o.Preexisting = true
					recs = c.Observe(recs, o)
				}
			case n < 8 && len(sockets) > 0:
				s := sockets[rnd.IntN(len(sockets))]
				if s.ended {
					break
				}
				out, in := uint64(rnd.IntN(1000)), uint64(rnd.IntN(1000))
				s.out += out
				s.in += in
				o := obs(s.key, s.cookie, now, EventUpdate, s.out, s.in)
				o.Preexisting = s.base != 0
				if s.udp {
					o = obs(s.key, s.cookie, now, EventUpdate, out, in)
					o.Delta = true
				} else {
					o.Snapshot = true
					if rnd.IntN(3) == 0 {
						stale = append(stale, o) // read now, comes later
						break
					}
				}
				recs = c.Observe(recs, o)
			case n < 9 && len(sockets) > 0:
				s := sockets[rnd.IntN(len(sockets))]
				if s.ended {
					break
				}
				s.ended = true
				o := obs(s.key, s.cookie, now, EventEnd, s.out, s.in)
				o.Preexisting = s.base != 0
				if s.udp {
					o.Event = EventClose
				}
				recs = c.Observe(recs, o)
			default:
				rnd.Shuffle(len(stale), func(i, j int) { stale[i], stale[j] = stale[j], stale[i] })
				for _, o := range stale {
					recs = c.Observe(recs, o)
				}
				stale = stale[:0]
				recs = c.SnapshotDone(recs)
			}
			recs, _ = c.Expire(recs, now, 1+rnd.IntN(50))
			take()
		}
		for _, o := range stale {
			recs = c.Observe(recs, o)
		}
		for _, s := range sockets { // the last pass before the flush
			if !s.ended && !s.udp {
				o := obs(s.key, s.cookie, now, EventUpdate, s.out, s.in)
				o.Snapshot, o.Preexisting = true, s.base != 0
				recs = c.Observe(recs, o)
			}
		}
		for more := true; more; {
			recs, more = c.Flush(recs, 7)
		}
		take()
		for _, s := range sockets {
			if got, want := *sum[s.cookie], [2]uint64{s.out - s.base, s.in}; got != want {
				t.Fatalf("seed %d: socket %+v: records sum to %v, want %v", seed, s, got, want)
			}
			if !s.udp && s.ended && finals[s.cookie] != 1 {
				t.Fatalf("seed %d: socket %+v: %d records end it", seed, s, finals[s.cookie])
			}
		}
		if st := c.Stats(); st.Live != 0 || st.Observations != st.Created+st.Merged+st.Direct+st.Stale+st.Listening+st.Closed+st.Owners+st.Suspects {
			t.Fatalf("seed %d: %+v", seed, st)
		}
	}
}

func TestReasonsAndTimeouts(t *testing.T) {
	c := newCache(t, Config{ActiveTimeout: 10 * time.Second, IdleTimeout: 2 * time.Second})
	at := 1000 * second
	udp := tcpKey(1)
	udp.Proto = ProtoUDP
	u := obs(udp, 1, at, EventUpdate, 100, 200)
	u.Delta = true
	c.Observe(nil, u)
	c.Observe(nil, obs(tcpKey(2), 2, at, EventUpdate, 10, 20))
	for _, tc := range []struct {
		at   int64
		want []EndReason
	}{
		{at + 2*second - 1, nil},
		{at + 2*second, []EndReason{EndIdle}},
		{at + 10*second - 1, nil},
		{at + 10*second, []EndReason{EndActive}},
		{at + 20*second, nil}, // nothing happened since
	} {
		recs, more := c.Expire(nil, tc.at, 100)
		var got []EndReason
		for _, r := range recs {
			got = append(got, r.EndReason)
		}
		if !slices.Equal(got, tc.want) || more {
			t.Errorf("at %+d s: %v, want %v", (tc.at-at)/second, got, tc.want)
		}
	}
	c.Observe(nil, obs(tcpKey(2), 2, at+21*second, EventUpdate, 15, 20))
	recs, _ := c.Flush(nil, 10)
	if len(recs) != 1 || recs[0].EndReason != EndForced || !recs[0].Final || recs[0].Forward.Payload != 5 || recs[0].Start != at {
		t.Errorf("flush: %+v", recs)
	}
}

func TestIdentity(t *testing.T) {
	c := newCache(t, Config{})
	at := 1000 * second
	k := tcpKey(5)
	other := k
	other.NetNS = 8
	c.Observe(nil, obs(k, 1, at, EventUpdate, 1, 1))
	c.Observe(nil, obs(other, 2, at, EventUpdate, 1, 1)) // the same tuple in another namespace
	c.Observe(nil, obs(k, 3, at, EventUpdate, 1, 1))     // a new socket with the old tuple
	if n := c.Stats().Live; n != 3 {
		t.Errorf("%d flows, want 3", n)
	}
}

func TestOrientation(t *testing.T) {
	at := 1000 * second
	for _, tc := range []struct {
		name      string
		role      Role
		listens   bool
		responder bool
		arbitrary bool
	}{
		{"connect", RoleInitiator, true, false, false},
		{"accept", RoleResponder, false, true, false},
		{"listening port", RoleUnknown, true, true, false},
		{"nothing tells", RoleUnknown, false, false, true},
	} {
		c := newCache(t, Config{})
		k := tcpKey(5)
		if tc.listens {
			c.Observe(nil, &Observation{Event: EventListen, Key: Key{SrcPort: 5, Proto: ProtoTCP, NetNS: 7}})
		}
		o := obs(k, 1, at, EventEnd, 10, 30)
		o.Role = tc.role
		recs := c.Observe(nil, o)
		r := recs[0]
		if r.Dest.Local != tc.responder || r.Source.Local == tc.responder || r.Arbitrary != tc.arbitrary {
			t.Errorf("%s: %+v", tc.name, r)
		}
		want := k
		if tc.responder {
			want = k.Reverse()
		}
		if r.Key != want || tc.responder != (r.Forward.Payload == 30) {
			t.Errorf("%s: key %v, forward %d", tc.name, r.Key, r.Forward.Payload)
		}
	}
}

func TestLackOfResources(t *testing.T) {
	c := newCache(t, Config{MaxFlows: 2})
	var recs []Record
	for i := range uint64(5) {
		recs = c.Observe(recs, obs(tcpKey(uint16(i)), i+1, 1000*second+int64(i), EventUpdate, 10, 10))
	}
	if len(recs) != 3 || c.Stats().Live != 2 {
		t.Fatalf("%d records, %d flows", len(recs), c.Stats().Live)
	}
	for _, r := range recs {
		if r.EndReason != EndLack {
			t.Errorf("reason %s", r.EndReason)
		}
	}
}

func TestHoldAndRelease(t *testing.T) {
	held := map[ProcessID]int{}
	c := newCache(t, Config{MaxFlows: 3, Hold: func(p ProcessID) { held[p]++ }, Release: func(p ProcessID) { held[p]-- }})
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 500 {
		o := obs(tcpKey(uint16(rnd.IntN(5))), uint64(rnd.IntN(5)+1), int64(1000+i)*second, Event(rnd.IntN(2)), 1, 1)
		o.Process.PID = uint32(rnd.IntN(4))
		c.Observe(nil, o)
	}
	c.Flush(nil, 100)
	for p, n := range held {
		if n != 0 {
			t.Errorf("process %d held %d times too often", p.PID, n)
		}
	}
}

func TestObserveAllocatesNothing(t *testing.T) {
	c := newCache(t, Config{})
	o := obs(tcpKey(1), 1, 1000*second, EventUpdate, 1, 1)
	dst := make([]Record, 0, 4)
	c.Observe(dst, o)
	if n := testing.AllocsPerRun(1000, func() {
		o.Out.Payload++
		c.Observe(dst, o)
		c.Expire(dst, o.Time, 10)
	}); n != 0 {
		t.Errorf("%v allocations for a hit", n)
	}
}

func TestBadConfig(t *testing.T) {
	for _, cfg := range []Config{{ActiveTimeout: -1}, {IdleTimeout: -1}, {MaxFlows: -1}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
}

func BenchmarkObserveHit(b *testing.B) {
	c := newCache(b, Config{})
	const n = 100_000
	os := make([]*Observation, n)
	for i := range os {
		os[i] = obs(tcpKey(uint16(i)), uint64(i+1), 1000*second, EventUpdate, 1, 1)
		c.Observe(nil, os[i])
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		o := os[i%n]
		o.Out.Payload++
		c.Observe(nil, o)
		i++
	}
}

func BenchmarkShortConnection(b *testing.B) {
	c := newCache(b, Config{})
	o := obs(tcpKey(1), 1, 1000*second, EventEnd, 1, 1)
	dst := make([]Record, 0, 4)
	b.ReportAllocs()
	for b.Loop() {
		o.Cookie++
		c.Observe(dst, o)
		if o.Cookie%100_000 == 0 {
			c.SnapshotDone(nil)
		}
	}
}

// BenchmarkLateness prints how long after its deadline a record leaves, in real time. The first pass finds all flows
// live, and each is due within four seconds of it. The loop expires flows every 40 ms, between batches too, as the
// exporter does.
func BenchmarkLateness(b *testing.B) {
	const look = 40 * time.Millisecond
	for _, n := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			late := make([]time.Duration, 0, n)
			var spent time.Duration
			for b.Loop() {
				c := newCache(b, Config{ActiveTimeout: 4 * time.Second, MaxFlows: 2 * n})
				deadline := make([]int64, n)
				recs := make([]Record, 0, 2048)
				told := 0
				expire := func() {
					begin := time.Now()
					for more := true; more; {
						now := time.Now().UnixNano()
						recs, more = c.Expire(recs[:0], now, 1024)
						for i := range recs {
							late = append(late, time.Duration(now-deadline[recs[i].Source.Cookie-1]))
						}
						told += len(recs)
					}
					spent += time.Since(begin)
				}
				var now, next int64
				for i := range n {
					if i%BatchLen == 0 {
						if now = time.Now().UnixNano(); now >= next {
							next = now + int64(look)
							expire()
						}
					}
					o := obs(tcpKey(uint16(i)), uint64(i+1), now, EventUpdate, 10, 10)
					o.Preexisting, o.Snapshot = true, true
					c.Observe(nil, o)
					deadline[i] = c.at(c.lookup(&identity{o.Key, o.Cookie})).activeAt
				}
				for told < n {
					time.Sleep(look)
					expire()
				}
			}
			slices.Sort(late)
			b.ReportMetric(float64(late[len(late)*99/100])/1e6, "p99-ms")
			b.ReportMetric(float64(late[len(late)-1])/1e6, "max-ms")
			b.ReportMetric(float64(spent.Nanoseconds())/float64(len(late)), "ns/record")
		})
	}
}

// TestWait: nothing is due before Wait is over, and something soon after it.
func TestWait(t *testing.T) {
	c := newCache(t, Config{ActiveTimeout: 3 * time.Second})
	if got := c.Wait(1000*second, second); got != second {
		t.Errorf("empty: %d", got)
	}
	c.Observe(nil, obs(tcpKey(1), 1, 1000*second, EventUpdate, 1, 1))
	now := int64(1000 * second)
	for now < 1003*second {
		if recs, _ := c.Expire(nil, now, 10); len(recs) != 0 {
			t.Fatalf("early by %d ns", 1003*second-now)
		}
		now += max(c.Wait(now, second), tick)
	}
	if late := now - 1003*second; late > 2*tick {
		t.Errorf("late by %d ns", late)
	}
	if recs, _ := c.Expire(nil, now, 10); len(recs) != 1 {
		t.Errorf("%d records", len(recs))
	}
}

// TestDue: flows that are due and not yet exported can end or be evicted like others, and nothing waits before they are
// exported.
func TestDue(t *testing.T) {
	c := newCache(t, Config{ActiveTimeout: time.Second, MaxFlows: 5})
	var recs []Record
	for i := range 5 {
		recs = c.Observe(recs, obs(tcpKey(uint16(i)), uint64(i+1), 1000*second, EventUpdate, 10, 10))
	}
	now := int64(1001 * second)
	recs, more := c.Expire(recs, now, 1)
	if len(recs) != 1 || !more || c.Wait(now, second) != 0 {
		t.Fatalf("%d records, more %t, wait %d", len(recs), more, c.Wait(now, second))
	}
	recs = c.Observe(recs, obs(tcpKey(2), 3, now, EventEnd, 10, 10))    // one in the middle ends,
	recs = c.Observe(recs, obs(tcpKey(6), 7, now, EventUpdate, 10, 10)) // takes its place,
	recs = c.Observe(recs, obs(tcpKey(7), 8, now, EventUpdate, 10, 10)) // and one too many comes
	recs, more = c.Expire(recs, now, 10)
	reasons := map[EndReason]int{}
	seen := map[uint64]bool{}
	for _, r := range recs {
		reasons[r.EndReason]++
		seen[r.Source.Cookie] = true
	}
	if more || len(recs) != 5 || len(seen) != 5 || reasons[EndDetected] != 1 || reasons[EndLack] != 1 || reasons[EndActive] != 3 {
		t.Errorf("more %t, %v, of %v", more, reasons, seen)
	}
	if recs, _ = c.Expire(nil, now+second, 10); len(recs) != 2 {
		t.Errorf("%d records of the two that are new", len(recs))
	}
}
