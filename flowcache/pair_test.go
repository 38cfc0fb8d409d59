package flowcache

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestPairsSumToTotals is the property of merging: whatever the order in which the two ends are seen, and however late one of
// them, the records of a conversation sum to what each end sent, and once both have been seen there is one record for both.
func TestPairsSumToTotals(t *testing.T) {
	for seed := range uint64(400) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		c := newCache(t, Config{ActiveTimeout: 3 * time.Second, IdleTimeout: 2 * time.Second, Merge: true})
		type conversation struct {
			key        Key
			cookie     uint64 // of the initiator; the responder's is one more
			token      uint64
			sent       [2]uint64 // initiator, responder
			lag        [2]uint64 // not yet read by the other
			ended      [2]bool
			both, ends int
			sum        [2]uint64
		}
		var all []*conversation
		byPort := map[uint16]*conversation{}
		var recs []Record
		now := 1000 * second
		take := func() {
			for _, r := range recs {
				v := byPort[r.Key.SrcPort]
				if v == nil || r.Key != v.key && r.Key != func() Key { k := v.key; k.NetNS = 8; return k }() {
					t.Fatalf("seed %d: record of %+v", seed, r.Key)
				}
				v.sum[0] += r.Forward.Payload
				v.sum[1] += r.Reverse.Payload
				if r.Source.Local && r.Dest.Local {
					v.both++
					if r.Source.Cookie != v.cookie || r.Dest.Cookie != v.cookie+1 {
						t.Fatalf("seed %d: ends are the wrong way round: %+v", seed, r)
					}
				}
				if r.EndReason == EndDetected {
					v.ends++
				}
			}
			recs = recs[:0]
		}
		see := func(v *conversation, end int, ev Event, snapshot bool) {
			k, role, cookie := v.key, RoleInitiator, v.cookie
			if end == 1 {
				k, role, cookie = v.key.Reverse(), RoleResponder, v.cookie+1
				k.NetNS = 8
			}
			o := obs(k, cookie, now, ev, v.sent[end], v.sent[1-end]-v.lag[1-end])
			o.Role, o.Conversation, o.Snapshot = role, v.token, snapshot
			switch { // the end that closes last may or may not know
			case ev == EventEnd && !v.ended[1-end]:
				o.Peer = []Peer{PeerOpen, PeerUnknown}[rnd.IntN(2)]
			case ev == EventEnd:
				o.Peer = []Peer{PeerGone, PeerUnknown}[rnd.IntN(2)]
			}
			recs = c.Observe(recs, o)
		}
		for range 400 {
			now += rnd.Int64N(second / 5)
			if rnd.IntN(3) == 0 {
				n := len(all)
				v := &conversation{key: tcpKey(uint16(1000 + n)), cookie: uint64(2*n + 1)}
				if seed%2 == 0 {
					v.token = uint64(n + 1) // else they are paired by addresses
				}
				all = append(all, v)
				byPort[v.key.SrcPort] = v
			}
			if len(all) == 0 {
				continue
			}
			v := all[rnd.IntN(len(all))]
			end := rnd.IntN(2)
			switch {
			case v.ended[end]:
			case rnd.IntN(3) == 0:
				v.lag = [2]uint64{}
				v.ended[end] = true
				see(v, end, EventEnd, false)
			default:
				n := uint64(rnd.IntN(1000))
				v.sent[end] += n
				v.lag[end] = n
				see(v, end, EventUpdate, true)
			}
			if rnd.IntN(10) == 0 { // a pass
				for _, v := range all {
					for end := range 2 {
						if !v.ended[end] {
							see(v, end, EventUpdate, true)
						}
					}
				}
				recs = c.SnapshotDone(recs)
			}
			recs, _ = c.Expire(recs, now, 1+rnd.IntN(50))
			take()
		}
		for _, v := range all {
			for end := range 2 {
				if !v.ended[end] {
					v.lag = [2]uint64{}
					v.ended[end] = true
					see(v, end, EventEnd, false)
				}
			}
		}
		for more := true; more; {
			recs, more = c.Flush(recs, 7)
		}
		take()
		for _, v := range all {
			if v.sum != v.sent || v.both == 0 || v.ends > 2 {
				t.Fatalf("seed %d: %+v", seed, v)
			}
		}
		if st := c.Stats(); st.Live != 0 || int(st.Paired) != len(all) || len(c.unpaired) != 0 || len(c.index)+len(c.connections) != 0 {
			t.Fatalf("seed %d: %+v, %d unpaired, %d in the index", seed, st, len(c.unpaired), len(c.index)+len(c.connections))
		}
	}
}

// TestPairDatagrams lets two datagram sockets meet, and one of them close.
// TestLatePeer: the end of the other socket comes late. Where sockets of this host have its address it is waited for.
func TestLatePeer(t *testing.T) {
	for _, known := range []bool{true, false} {
		c := newCache(t, Config{Merge: true})
		now := 1000 * second
		k := tcpKey(1000)
		end := func(key Key, cookie uint64, role Role) []Record {
			o := obs(key, cookie, now, EventEnd, 5, 5)
			o.Role, o.Conversation = role, 77
			return c.Observe(nil, o)
		}
		if known {
			other := k.Reverse()
			other.SrcPort = 22
			c.Observe(nil, obs(other, 1, now, EventUpdate, 0, 0))
		}
		recs := end(k, 2, RoleInitiator)
		now += second / 5
		more, _ := c.Expire(recs, now, 10)
		recs = append(more, end(k.Reverse(), 3, RoleResponder)...)
		both := 0
		for _, r := range recs {
			if r.Source.Local && r.Dest.Local {
				both++
			}
		}
		if known && (len(recs) != 1 || both != 1) || !known && len(more) != 1 {
			t.Errorf("known %t: %d records, %d with both ends, %d before the second", known, len(recs), both, len(more))
		}
	}
}

func TestPairDatagrams(t *testing.T) {
	c := newCache(t, Config{Merge: true})
	k := tcpKey(5)
	k.Proto = ProtoUDP
	a := obs(k, 1, 1000*second, EventUpdate, 100, 0)
	b := obs(k.Reverse(), 2, 1000*second, EventUpdate, 0, 100)
	b.Key.NetNS, b.Role = 9, RoleResponder
	a.Delta, b.Delta = true, true
	recs := c.Observe(nil, a)
	recs = c.Observe(recs, b)
	recs = c.Observe(recs, &Observation{Event: EventOwner, Cookie: 2, Process: ProcessID{PID: 9}, UID: 5, GID: NoID, Time: 1000 * second})
	recs = c.Observe(recs, &Observation{Event: EventClose, Cookie: 1, Time: 1000 * second, UID: NoID})
	if len(recs) != 1 || recs[0].Forward.Payload != 100 || recs[0].Reverse.Payload != 0 || !recs[0].Dest.Local || recs[0].Dest.Process.PID != 9 || c.Stats().Live != 0 {
		t.Fatalf("%+v, %d live", recs, c.Stats().Live)
	}
	// One to many: each of them has its own.
	a.Key.Dst = AddrFrom4([4]byte{239, 1, 1, 1})
	b.Key.Src = a.Key.Dst
	recs = c.Observe(recs[:0], a)
	recs = c.Observe(recs, b)
	if recs, _ = c.Flush(recs, 9); len(recs) != 2 {
		t.Fatalf("%+v", recs)
	}
}

// TestPairTranslated lets two sockets meet that see different addresses: the record says what each sees.
func TestPairTranslated(t *testing.T) {
	near := tcpKey(5)
	far := near
	far.DstPort = 8080
	c := newCache(t, Config{Merge: true, Translate: func(k Key, _ int64) (Path, bool) {
		p := Path{near, far}
		p.Near.NetNS, p.Far.NetNS = 0, 0
		return p, k == near
	}})
	recs := c.Observe(nil, obs(near, 1, 1000*second, EventEnd, 10, 20))
	b := obs(far.Reverse(), 2, 1000*second, EventEnd, 20, 10)
	b.Role = RoleResponder
	recs = c.Observe(recs, b)
	if len(recs) != 1 || recs[0].Key != near || recs[0].Dest.Cookie != 2 || recs[0].Post != far.Translation() || recs[0].Pre != (Translation{}) {
		t.Fatalf("%+v", recs)
	}
}

// TestTranslate: a flow whose other end is elsewhere is asked for once, whichever end is here, and one with both ends here never.
func TestTranslate(t *testing.T) {
	near := tcpKey(5)
	far := near
	far.Src, far.DstPort = AddrFrom4([4]byte{203, 0, 113, 7}), 8080
	asked := map[Key]int{}
	cfg := Config{Merge: true, Translate: func(k Key, _ int64) (Path, bool) {
		asked[k]++
		p := Path{near, far}
		p.Near.NetNS, p.Far.NetNS = 0, 0
		return p, k == near || k == far.Reverse()
	}}
	c := newCache(t, cfg)
	ebpf := func(k Key, cookie uint64, at int64, e Event, n uint64, role Role) *Observation {
		o := obs(k, cookie, at, e, n, n)
		o.Origin, o.Conversation, o.Role = OriginEBPF, cookie, role
		return o
	}
	// The initiator is here: two records, one call of Translate.
	recs := c.Observe(nil, ebpf(near, 1, 1000*second, EventUpdate, 10, RoleInitiator))
	recs, _ = c.Expire(recs, 1100*second, 9)
	recs = c.Observe(recs, ebpf(near, 1, 1101*second, EventEnd, 20, RoleInitiator))
	recs, _ = c.Expire(recs, 1102*second, 9)
	if len(recs) != 2 || asked[near] != 1 {
		t.Fatalf("%d records, asked %v", len(recs), asked)
	}
	for _, r := range recs {
		if r.Key != near || r.Post != far.Translation() || r.Pre != (Translation{}) {
			t.Errorf("the initiator's: %+v", r)
		}
	}
	if n := recs[1].ForwardTotal.Payload; n != 20 || recs[1].Forward.Payload != 10 {
		t.Errorf("a total of %d", n)
	}
	// The responder is here.
	recs = c.Observe(recs[:0], ebpf(far.Reverse(), 2, 1200*second, EventEnd, 10, RoleResponder))
	recs, _ = c.Expire(recs, 1201*second, 9)
	if len(recs) != 1 || recs[0].Key != far || recs[0].Pre != near.Translation() || recs[0].Post != (Translation{}) || asked[far.Reverse()] != 1 {
		t.Fatalf("the responder's: %+v, asked %v", recs, asked)
	}
	// Both are.
	recs = c.Observe(recs[:0], ebpf(near, 3, 1300*second, EventEnd, 10, RoleInitiator))
	both := ebpf(far.Reverse(), 4, 1300*second, EventEnd, 10, RoleResponder)
	both.Conversation = 3
	recs = c.Observe(recs, both)
	if len(recs) != 1 || recs[0].Key != near || recs[0].Post != far.Translation() || asked[near] != 1 {
		t.Fatalf("both: %+v, asked %v", recs, asked)
	}
	// Nothing is kept of those that are gone, after a while.
	if recs, _ = c.Expire(recs[:0], 1310*second, 9); len(recs) != 0 || c.Stats().Live != 0 || len(c.translations)-1 != len(c.untranslated) {
		t.Errorf("%d live, %d translations, %d free", c.Stats().Live, len(c.translations), len(c.untranslated))
	}
	// Separate sockets, without a record of both.
	cfg.Merge = false
	c = newCache(t, cfg)
	recs = c.Observe(recs[:0], ebpf(near, 5, 1400*second, EventEnd, 10, RoleInitiator))
	recs = c.Observe(recs, ebpf(far.Reverse(), 6, 1400*second, EventEnd, 10, RoleResponder))
	if len(recs) != 2 || recs[0].Post != far.Translation() || recs[1].Pre != near.Translation() {
		t.Fatalf("separate: %+v", recs)
	}
}

// TestUnseenRequests: the datagrams that a socket sends are out of the source's sight (IPVS of its own host sends them on), and the answers are not.
// Connection tracking says who began, and the server, if it is here, what it received.
func TestUnseenRequests(t *testing.T) {
	near := tcpKey(5)
	near.Proto = ProtoUDP
	far := near
	far.Src, far.SrcPort, far.DstPort = AddrFrom4([4]byte{203, 0, 113, 7}), 999, 8080
	cfg := Config{Merge: true, Translate: func(k Key, _ int64) (Path, bool) {
		p := Path{near, far}
		p.Near.NetNS, p.Far.NetNS = 0, 0
		return p, k == near || k == far.Reverse()
	}}
	seen := func(k Key, cookie uint64, at int64, out, in uint64) *Observation {
		o := obs(k, cookie, at, EventUpdate, out, in)
		o.Delta, o.Role = true, RoleResponder
		return o
	}
	gone := func(cookie uint64) *Observation {
		return &Observation{Event: EventClose, Cookie: cookie, Time: 1003 * second, UID: NoID, GID: NoID}
	}
	for _, closed := range [][]uint64{{1, 2}, {2, 1}} {
		for _, first := range []int{0, 1} {
			for _, server := range []bool{true, false} {
				c := newCache(t, cfg)
				all := []*Observation{seen(near, 1, 1000*second, 0, 70), seen(far.Reverse(), 2, 1000*second, 70, 30)}
				var recs []Record
				for i := range all {
					if i^first == 0 || server {
						recs = c.Observe(recs, all[i^first])
					}
				}
				recs = c.Observe(recs, seen(near, 1, 1001*second, 0, 7))
				if server {
					recs = c.Observe(recs, seen(far.Reverse(), 2, 1001*second, 7, 3))
				}
				for _, cookie := range closed {
					recs = c.Observe(recs, gone(cookie))
				}
				recs, _ = c.Expire(recs, 1100*second, 9)
				want := uint64(33)
				if !server {
					want = 0
				}
				if len(recs) != 1 || recs[0].Key != near || recs[0].Forward.Payload != want || recs[0].Reverse.Payload != 77 || recs[0].Source.Cookie != 1 || recs[0].Dest.Local != server ||
					recs[0].Post != far.Translation() || c.Stats().Live != 0 {
					t.Errorf("first %d, closed %v, server %v: %+v", first, closed, server, recs)
				}
			}
		}
	}
	// Only its first was missed.
	c := newCache(t, cfg)
	recs := c.Observe(nil, seen(near, 1, 1000*second, 0, 70))
	recs = c.Observe(recs, seen(near, 1, 1001*second, 20, 7))
	recs = c.Observe(recs, gone(1))
	if len(recs) != 1 || recs[0].Key != near || recs[0].Forward.Payload != 20 || recs[0].Reverse.Payload != 77 {
		t.Errorf("%+v", recs)
	}
}

// TestDiverted: the translation of a datagram socket's addresses changes while it lives, as that of a service whose server is replaced. What it sends
// from then on is another conversation, with the other server.
func TestDiverted(t *testing.T) {
	near := tcpKey(5)
	near.Proto = ProtoUDP
	far := [2]Key{near, near}
	far[0].DstPort, far[1].DstPort = 8080, 8081
	said := func(server int, at int64, out, in uint64) *Observation {
		o := obs(near, 1, at, EventUpdate, out, in)
		o.Delta, o.Role, o.Path = true, RoleInitiator, Path{near, far[server]}
		o.Path.Near.NetNS, o.Path.Far.NetNS = 0, 0
		return o
	}
	heard := func(server int, at int64, out, in uint64) *Observation {
		o := obs(far[server].Reverse(), uint64(2+server), at, EventUpdate, out, in)
		o.Delta, o.Role = true, RoleResponder
		return o
	}
	for _, servers := range []bool{true, false} {
		c := newCache(t, Config{Merge: true})
		recs := c.Observe(nil, said(0, 1000*second, 300, 600))
		if servers {
			recs = c.Observe(recs, heard(0, 1000*second, 600, 300))
		}
		recs = c.Observe(recs, said(0, 1001*second, 1, 2))
		if servers {
			recs = c.Observe(recs, heard(0, 1001*second, 2, 1))
		}
		recs = c.Observe(recs, said(1, 1002*second, 210, 420))
		if servers {
			recs = c.Observe(recs, heard(1, 1002*second, 420, 210))
		}
		for cookie := range uint64(3) {
			recs = c.Observe(recs, &Observation{Event: EventClose, Cookie: 1 + cookie, Time: 1003 * second, UID: NoID, GID: NoID})
		}
		recs, _ = c.Expire(recs, 1100*second, 9)
		if len(recs) != 2 || c.Stats().Live != 0 {
			t.Fatalf("servers %v: %d records, %d live: %+v", servers, len(recs), c.Stats().Live, recs)
		}
		for i, want := range [][2]uint64{{301, 602}, {210, 420}} {
			if r := recs[i]; r.Key != near || r.Post != far[i].Translation() || r.Forward.Payload != want[0] || r.Reverse.Payload != want[1] || r.Source.Cookie != 1 || servers != (r.Dest.Cookie == uint64(2+i)) {
				t.Errorf("servers %v, record %d: %+v", servers, i, r)
			}
		}
	}
}

// TestSweep ends what a pass over all sockets did not show, once.
func TestSweep(t *testing.T) {
	c := newCache(t, Config{})
	o := obs(tcpKey(1), 1, 1000*second, EventUpdate, 10, 20)
	o.Snapshot = true
	recs := c.Observe(nil, o)
	if recs = c.Sweep(recs, 1000*second); len(recs) != 0 {
		t.Fatalf("ended while it was seen: %+v", recs)
	}
	recs = c.Sweep(recs, 1001*second)
	o.Event, o.Snapshot = EventEnd, false
	recs = c.Observe(recs, o) // late
	if len(recs) != 1 || recs[0].EndReason != EndDetected || c.Stats().Vanished != 1 || c.Stats().Stale != 1 || c.Stats().Live != 0 {
		t.Fatalf("%+v %+v", recs, c.Stats())
	}
}

// TestAudit: a connection that the source has not reported by its next passes was missed; one that is on its way was
// not.
func TestAudit(t *testing.T) {
	c := newCache(t, Config{})
	audit := func(port uint16, cookie uint64, at int64) *Observation {
		o := obs(tcpKey(port), cookie, at, EventUpdate, 10, 20)
		o.Snapshot, o.Audit, o.Origin = true, true, OriginNetlink
		return o
	}
	alive := obs(tcpKey(1), 1, 1000*second, EventUpdate, 7, 7)
	gone := obs(tcpKey(2), 2, 1000*second, EventUpdate, 7, 7)
	alive.Origin, gone.Origin = OriginEBPF, OriginEBPF
	recs := c.Observe(nil, alive)
	recs = c.Observe(recs, gone)
	for cookie := range uint64(4) { // 1 is known, 3 missed, 4 on its way
		if cookie != 1 {
			recs = c.Observe(recs, audit(uint16(cookie+1), cookie+1, 1001*second))
		}
	}
	c.AuditDone(1001 * second)
	recs = c.SnapshotDone(recs)
	recs = c.Observe(recs, obs(tcpKey(4), 4, 1002*second, EventEnd, 30, 40))
	if len(recs) != 1 || recs[0].Forward.Payload != 30 {
		t.Fatalf("%+v", recs)
	}
	recs = c.SnapshotDone(recs[:0])
	// The next audit sees 1 and 3.
	alive.Time = 1060 * second
	recs = c.Observe(recs, alive)
	recs = c.Observe(recs, audit(3, 3, 1061*second))
	c.AuditDone(1001 * second)
	recs = c.SnapshotDone(c.SnapshotDone(recs))
	st := c.Stats()
	if len(recs) != 1 || recs[0].Source.Cookie != 2 || st.Audited != 1 || st.Vanished != 1 || st.Live != 2 || st.Suspects != 0 {
		t.Fatalf("%+v %+v", recs, st)
	}
}

// TestPairBornTogether: the two ends of a connection are of one age. Where one was taken for older than the metering, by a first pass that
// met it a moment after its beginning, the other knows better: nothing is a baseline.
func TestPairBornTogether(t *testing.T) {
	for _, order := range [][2]int{{0, 1}, {1, 0}} {
		for _, older := range [][2]bool{{false, true}, {true, false}, {true, true}} {
			c := newCache(t, Config{Merge: true})
			ends := [2]*Observation{
				endOf(tcpKey(1), 1, 1000*second, 300, 50, RoleInitiator, PeerUnknown),
				endOf(tcpKey(1).Reverse(), 2, 1000*second, 50, 300, RoleUnknown, PeerUnknown),
			}
			var recs []Record
			for _, i := range order {
				o := *ends[i]
				o.Event, o.Preexisting, o.First = EventUpdate, older[i], 0
				if !older[i] {
					o.First = 999 * second
				}
				recs = c.Observe(recs, &o)
			}
			for _, i := range order {
				ends[i].Out.Payload += 7
				recs = c.Observe(recs, ends[i])
			}
			want, start := [2]uint64{307, 57}, int64(999*second)
			if older[0] && older[1] {
				want, start = [2]uint64{7, 7}, 1000*second
			}
			if len(recs) != 1 || recs[0].Forward.Payload != want[0] || recs[0].Reverse.Payload != want[1] || recs[0].Start != start || recs[0].Began != start {
				t.Errorf("order %v, older %v: %+v", order, older, recs)
			}
		}
	}
}

// BenchmarkShortPair is a short connection with both ends here: two observations and one record.
func BenchmarkShortPair(b *testing.B) {
	c := newCache(b, Config{Merge: true})
	one := obs(tcpKey(1), 1, 1000*second, EventEnd, 1, 2)
	other := obs(tcpKey(1).Reverse(), 2, 1000*second, EventEnd, 2, 1)
	one.Role, other.Role = RoleInitiator, RoleResponder
	dst := make([]Record, 0, 4)
	b.ReportAllocs()
	for b.Loop() {
		one.Cookie += 2
		other.Cookie += 2
		one.Key.SrcPort++
		other.Key.DstPort++
		one.Conversation += 1 << 17
		other.Conversation = one.Conversation
		if recs := c.Observe(c.Observe(dst, one), other); len(recs) != 1 {
			b.Fatal(len(recs))
		}
		if one.Cookie%100_000 == 1 {
			c.SnapshotDone(nil)
		}
	}
}
