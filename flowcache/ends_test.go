package flowcache

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// endOf is the end of one socket of conversation 7.
func endOf(k Key, cookie uint64, at int64, out, in uint64, role Role, peer Peer) *Observation {
	o := obs(k, cookie, at, EventEnd, out, in)
	o.Origin, o.Conversation, o.Role, o.Peer = OriginEBPF, 7, role, peer
	return o
}

// TestPeerLate: an end that was exported alone, for example because the other's acknowledgement was lost, is
// remembered. Its counters are not exported again.
func TestPeerLate(t *testing.T) {
	for _, tc := range []struct {
		peer     Peer
		here     bool // the other end's address is one of this host
		after    time.Duration
		together bool // the other end's record knows of it
	}{
		{PeerUnknown, false, time.Second, true},
		{PeerUnknown, false, 9 * time.Second, false},
		{PeerOpen, false, 9 * time.Second, true},
		{PeerGone, false, time.Second, true},
		{PeerGone, false, 3 * time.Second, false}, // it was elsewhere, and this is another
		// Where a processor stands still, what it reports, and what others report after it, is not read.
		{PeerUnknown, true, 12 * time.Second, true},
		{PeerGone, true, 12 * time.Second, true},
		{PeerOpen, true, 9 * time.Minute, true},
		{PeerGone, true, 20 * time.Second, false},
	} {
		c := newCache(t, Config{Merge: true})
		at := 1000 * second
		if tc.here {
			other := endOf(tcpKey(1).Reverse(), 3, at, 5, 5, RoleInitiator, PeerGone)
			other.Conversation = 8
			c.Observe(nil, other)
			c.Expire(nil, at+30*second, 9)
			at += 30 * second
		}
		recs := c.Observe(nil, endOf(tcpKey(1), 1, at, 10, 20, RoleInitiator, tc.peer))
		if len(recs) != 0 {
			t.Fatalf("%v: %d records at once", tc, len(recs))
		}
		if recs, _ = c.Expire(recs, at+second*6/10, 9); len(recs) != 1 {
			t.Fatalf("%v: %d records in time", tc, len(recs))
		}
		late := at + int64(tc.after)
		recs, _ = c.Expire(recs, late, 9)
		recs = c.Observe(recs, endOf(tcpKey(1).Reverse(), 2, late, 20, 10, RoleResponder, PeerGone))
		recs, _ = c.Expire(recs, late+second, 9)
		if len(recs) != 2 || recs[0].Forward.Payload != 10 || recs[0].Reverse.Payload != 20 {
			t.Fatalf("%v: %+v", tc, recs)
		}
		if r := recs[1]; r.Source.Local != tc.together || (r.Forward == Counters{} && r.Reverse == Counters{}) != tc.together {
			t.Errorf("%v: the other end's record is %+v", tc, r)
		}
		if c.Expire(recs, late+60*second, 9); c.Stats().Live != 0 {
			t.Errorf("%v: %d live", tc, c.Stats().Live)
		}
	}
}

// TestSimultaneousOpen: both ends connected, and are still one conversation.
func TestSimultaneousOpen(t *testing.T) {
	c := newCache(t, Config{Merge: true})
	recs := c.Observe(nil, endOf(tcpKey(1), 1, 1000*second, 10, 20, RoleInitiator, PeerUnknown))
	recs = c.Observe(recs, endOf(tcpKey(1).Reverse(), 2, 1000*second, 20, 10, RoleInitiator, PeerUnknown))
	if len(recs) != 1 || recs[0].Forward.Payload != 10 || recs[0].Reverse.Payload != 20 || !recs[0].Dest.Local {
		t.Fatalf("%+v", recs)
	}
}

// TestSelf: a socket that is connected to itself is both ends, and one direction.
func TestSelf(t *testing.T) {
	c := newCache(t, Config{Merge: true})
	k := tcpKey(1)
	k.Dst, k.DstPort = k.Src, k.SrcPort
	recs := c.Observe(nil, endOf(k, 1, 1000*second, 10, 10, RoleInitiator, PeerGone))
	recs, _ = c.Expire(recs, 1001*second, 9)
	if len(recs) != 1 || recs[0].Forward.Payload != 10 || recs[0].Reverse != (Counters{}) || recs[0].ReverseTotal != (Counters{}) || recs[0].Dest.Cookie != 1 || recs[0].Source.Cookie != 1 {
		t.Fatalf("%+v", recs)
	}
}

// TestPortAgain: several sockets that have the same port one after the other speak with one server, between two looks at the counters. The server's
// one flow with that port is shared out among them, in whatever order all of them are seen.
func TestPortAgain(t *testing.T) {
	k := tcpKey(5)
	k.Proto = ProtoUDP
	seen := func(cookie, out, in uint64) *Observation {
		o := obs(k, cookie, 1000*second, EventUpdate, out, in)
		o.Delta, o.Role = true, RoleInitiator
		if cookie == 9 {
			o.Key, o.Role = k.Reverse(), RoleResponder
		}
		return o
	}
	gone := func(cookie uint64) *Observation {
		return &Observation{Event: EventClose, Cookie: cookie, Time: 1000 * second, UID: NoID, GID: NoID}
	}
	for seed := range uint64(400) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		c := newCache(t, Config{Merge: true})
		all := []*Observation{seen(1, 50, 100), seen(2, 30, 70), seen(3, 10, 0), seen(9, 180, 90)} // 10 that the server sent were lost
		rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		ends := []uint64{1, 2, 3, 9}
		rnd.Shuffle(len(ends), func(i, j int) { ends[i], ends[j] = ends[j], ends[i] })
		if seed%2 == 0 { // most often the server stays
			ends = slices.DeleteFunc(ends, func(n uint64) bool { return n == 9 })
		}
		var recs []Record
		for _, o := range all {
			recs = c.Observe(recs, o)
		}
		for _, cookie := range ends {
			recs = c.Observe(recs, gone(cookie))
		}
		for _, at := range []int64{1001, 1100, 1200} {
			recs, _ = c.Expire(recs, at*second, 99)
		}
		var there, back uint64
		for _, r := range recs {
			there, back = there+r.Forward.Payload, back+r.Reverse.Payload
		}
		if there != 90 || back != 180 || c.Stats().Live != 0 || len(c.unpaired) != 0 {
			t.Fatalf("seed %d: %d octets there, %d back, %d live, %d unpaired", seed, there, back, c.Stats().Live, len(c.unpaired))
		}
	}
}

// TestAuditPeer: a connection that only an audit saw is paired with one that the source reported, though the two know
// it by different keys: addresses, and the Conversation.
func TestAuditPeer(t *testing.T) {
	c := newCache(t, Config{Merge: true, ActiveTimeout: time.Second, Known: func(o *Observation) { o.Role, o.Process.PID = RoleResponder, 77 }})
	at := 1000 * second
	a := endOf(tcpKey(1), 1, at, 50, 30, RoleInitiator, PeerUnknown)
	a.Event = EventUpdate
	recs := c.Observe(nil, a)
	recs, _ = c.Expire(recs, at+2*second, 9)
	b := obs(tcpKey(1).Reverse(), 2, at, EventUpdate, 30, 50)
	b.Origin, b.Audit, b.Snapshot, b.Role = OriginNetlink, true, true, RoleUnknown
	for range 2 { // the first may have seen one whose end was missed
		recs = c.Observe(recs, b)
		c.AuditDone(at)
		recs = c.SnapshotDone(c.SnapshotDone(recs))
	}
	recs = c.Observe(recs, endOf(tcpKey(1).Reverse(), 2, at+3*second, 35, 50, RoleResponder, PeerUnknown))
	recs = c.Observe(recs, endOf(tcpKey(1), 1, at+3*second, 50, 35, RoleInitiator, PeerGone))
	var there, back uint64
	for _, r := range recs {
		there, back = there+r.Forward.Payload, back+r.Reverse.Payload
	}
	if last := recs[len(recs)-1]; there != 50 || back != 35 || last.Dest.Process.PID != 77 || last.Source.Cookie != 1 || c.Stats().Live != 0 || c.Stats().Audited != 1 {
		t.Fatalf("%d octets there, %d back, %d live: %+v", there, back, c.Stats().Live, recs)
	}
}

// TestManySegments: the kernel counts segments in 32 bits, a long connection has more.
func TestManySegments(t *testing.T) {
	c := newCache(t, Config{})
	var recs []Record
	var packets, octets uint64
	const each, header, looks = 1_500_000_000, 52, 8
	for i := range uint64(looks + 1) {
		o := obs(tcpKey(1), 1, int64(1000+i)*second, EventUpdate, 0, 0)
		if i == looks {
			o.Event = EventEnd
		}
		sent := i * each
		o.Header = header
		o.Out = Counters{Payload: sent, Packets: sent & (1<<32 - 1), Octets: sent + sent&(1<<32-1)*header}
		recs = c.Observe(recs[:0], o)
	}
	for _, r := range recs {
		packets, octets = packets+r.Forward.Packets, octets+r.Forward.Octets
	}
	if packets != looks*each || octets != looks*each*(1+header) {
		t.Errorf("%d packets, %d octets, want %d, %d", packets, octets, uint64(looks*each), uint64(looks*each*(1+header)))
	}
}

// TestFull closes a socket that has spoken to many peers: its records come in parts, and each once.
func TestFull(t *testing.T) {
	const peers = 3 * RecordsAtOnce
	var told []Record
	parts := 0
	c := newCache(t, Config{Full: func(recs []Record) []Record {
		if len(recs) != RecordsAtOnce {
			t.Errorf("%d records at once", len(recs))
		}
		parts++
		told = append(told, recs...)
		return recs[:0]
	}})
	k := tcpKey(5)
	k.Proto = ProtoUDP
	for i := range peers {
		k.DstPort = uint16(1 + i)
		o := obs(k, 1, 1000*second, EventUpdate, 100, 0)
		o.Delta = true
		if recs := c.Observe(nil, o); len(recs) != 0 {
			t.Fatal(recs)
		}
	}
	rest := c.Observe(nil, &Observation{Event: EventClose, Cookie: 1, Time: 1000 * second, UID: NoID, GID: NoID})
	seen := map[uint16]bool{}
	for _, r := range append(told, rest...) {
		seen[r.Key.DstPort] = true
	}
	if len(told)+len(rest) != peers || len(seen) != peers || parts != 2 || cap(rest) > 2*RecordsAtOnce {
		t.Errorf("%d records of %d peers in %d parts, and %d at last in a buffer for %d", len(told), len(seen), parts, len(rest), cap(rest))
	}
}

// TestTail: what followed when the client's socket, which closed first, was gone. The server's end knows, before the client's is reported or after.
func TestTail(t *testing.T) {
	const header = 52
	elsewhere := Counters{Packets: 5, Octets: 5 * header}
	for _, tc := range []struct {
		name    string
		control uint16
		peer    Peer
		there   Counters // all that the client sent, of which its socket counted 4 packets
	}{
		{"its FIN", FlagFIN, PeerGone, Counters{Packets: 5, Octets: 5 * header}},
		{"its reset", FlagRST, PeerUnknown, Counters{Packets: 4, Octets: 4 * header}},
		{"data, answered by a reset", FlagRST, PeerGone, Counters{Packets: 5, Octets: 4*header + 40}},
	} {
		for _, late := range []int64{0, 2 * second} {
			c := newCache(t, Config{Merge: true})
			at := 1000 * second
			server := endOf(tcpKey(1).Reverse(), 2, at, 0, 0, RoleResponder, tc.peer)
			server.ControlOut, server.In, server.Out = tc.control, tc.there, Counters{Packets: 3, Octets: 3 * header}
			live := *server
			live.Event, live.ControlOut, live.Conversation = EventUpdate, 0, 0 // its address is this host's
			recs := c.Observe(nil, &live)
			client := endOf(tcpKey(1), 1, at, 0, 0, RoleInitiator, PeerOpen)
			client.Out, client.In, client.Header, client.Tail = Counters{Packets: 4, Octets: 4 * header}, Counters{Packets: 2, Octets: 2 * header}, header, true
			recs = c.Observe(recs, client)
			recs, _ = c.Expire(recs, at+late, 9)
			server.Time = at + late
			recs = c.Observe(recs, server)
			recs, _ = c.Expire(recs, at+late+second, 9)
			var there, back Counters
			for _, r := range recs {
				there.Add(&r.Forward)
				back.Add(&r.Reverse)
			}
			if there != tc.there || back != server.Out || len(recs) == 0 {
				t.Errorf("%s, after %d s: %+v and %+v in %d records, want %+v and %+v", tc.name, late/second, there, back, len(recs), tc.there, server.Out)
			}
		}
	}
	// Of a server elsewhere nothing is known.
	c := newCache(t, Config{Merge: true})
	client := endOf(tcpKey(1), 1, 1000*second, 0, 0, RoleInitiator, PeerOpen)
	client.Out, client.In, client.Header, client.Tail = Counters{Packets: 4, Octets: 4 * header}, Counters{Packets: 2, Octets: 2 * header}, header, true
	recs := c.Observe(nil, client)
	if recs, _ = c.Expire(recs, 1001*second, 9); len(recs) != 1 || recs[0].Forward != elsewhere || recs[0].Reverse.Packets != 3 {
		t.Errorf("%+v", recs)
	}
}

// TestEndWithoutAddress: a connection that ended without its local address is the live one of that socket, if a pass has seen it.
func TestEndWithoutAddress(t *testing.T) {
	for _, seen := range []bool{true, false} {
		c := newCache(t, Config{Merge: true})
		var recs []Record
		if seen {
			live := obs(tcpKey(1), 1, 1000*second, EventUpdate, 0, 0)
			live.Origin = OriginEBPF
			recs = c.Observe(recs, live)
		}
		o := obs(tcpKey(1), 1, 1001*second, EventEnd, 0, 0)
		o.Key.Src, o.Origin = Addr{}, OriginEBPF
		recs = c.Observe(recs, o)
		if len(recs) != 1 || (recs[0].Key == tcpKey(1)) != seen || c.Stats().Live != 0 {
			t.Errorf("seen %v: %+v, %d live", seen, recs, c.Stats().Live)
		}
	}
}
