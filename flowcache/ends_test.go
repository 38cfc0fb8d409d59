package flowcache

import (
	"testing"
	"time"
)

// endOf is the end of one socket of conversation 7.
func endOf(k Key, cookie uint64, at int64, out, in uint64, role Role, peer Peer) *Observation {
	o := obs(k, cookie, at, EventEnd, out, in)
	o.Origin, o.Conversation, o.Role, o.Peer = OriginEBPF, 7, role, peer
	return o
}

// TestPeerLate: an end that was told alone, because the other's acknowledgement was lost, say, is remembered: what it told is not told again.
func TestPeerLate(t *testing.T) {
	for _, tc := range []struct {
		peer     Peer
		after    time.Duration
		together bool // the other end's record knows of it
	}{
		{PeerUnknown, time.Second, true},
		{PeerUnknown, 9 * time.Second, false},
		{PeerOpen, 9 * time.Second, true},
		{PeerGone, 0, false}, // it was elsewhere, and this is another
	} {
		c := newCache(t, Config{Merge: true})
		at := 1000 * second
		recs := c.Observe(nil, endOf(tcpKey(1), 1, at, 10, 20, RoleInitiator, tc.peer))
		if want := tc.peer == PeerGone; (len(recs) == 1) != want {
			t.Fatalf("%v: %d records at once", tc, len(recs))
		}
		if tc.peer != PeerGone {
			if recs, _ = c.Expire(recs, at+second/10, 9); len(recs) != 1 {
				t.Fatalf("%v: %d records in time", tc, len(recs))
			}
		}
		late := at + int64(tc.after)
		recs, _ = c.Expire(recs, late, 9)
		recs = c.Observe(recs, endOf(tcpKey(1).Reverse(), 2, late, 20, 10, RoleResponder, PeerGone))
		if len(recs) != 2 || recs[0].Forward.Payload != 10 || recs[0].Reverse.Payload != 20 {
			t.Fatalf("%v: %+v", tc, recs)
		}
		if r := recs[1]; r.Source.Local != tc.together || (r.Forward == Counters{} && r.Reverse == Counters{}) != tc.together {
			t.Errorf("%v: the other end's record is %+v", tc, r)
		}
		if c.Expire(recs, late+60*second, 9); c.Live() != 0 {
			t.Errorf("%v: %d live", tc, c.Live())
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
	if len(recs) != 1 || recs[0].Forward.Payload != 10 || recs[0].Reverse != (Counters{}) || recs[0].ReverseTotal != (Counters{}) || recs[0].Dest.Cookie != 1 || recs[0].Source.Cookie != 1 {
		t.Fatalf("%+v", recs)
	}
}
