package flowcache

import (
	"testing"
	"time"
)

// TestSetTimeouts: live flows are exported within the new timeout, each once, and nothing is counted twice.
func TestSetTimeouts(t *testing.T) {
	c, err := New(Config{ActiveTimeout: time.Hour, IdleTimeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	const n, start = 1000, int64(1_700_000_000e9)
	for i := range n {
		c.Observe(nil, &Observation{
			Key:    Key{Src: AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Dst: AddrFrom4([4]byte{10, 1, 0, 1}), SrcPort: uint16(i), DstPort: 53, Proto: ProtoUDP},
			Cookie: uint64(i + 1), Time: start, First: start, Delta: true, Role: RoleInitiator, Out: Counters{Payload: 7, Octets: 35, Packets: 1},
		})
	}
	now := start + int64(time.Minute)
	if err := c.SetTimeouts(0, time.Second, now); err == nil {
		t.Error("a timeout of 0 is taken")
	}
	if recs, _ := c.Expire(nil, now, 10*n); len(recs) != 0 {
		t.Fatalf("%d records before the change", len(recs))
	}
	if err := c.SetTimeouts(10*time.Second, time.Hour, now); err != nil {
		t.Fatal(err)
	}
	half, _ := c.Expire(nil, now+int64(5*time.Second), 10*n)
	rest, _ := c.Expire(nil, now+int64(10*time.Second)+20e6, 10*n)
	if len(half) < n/3 || len(half) > 2*n/3 || len(half)+len(rest) != n {
		t.Errorf("%d records in the first half of the timeout, %d in the second", len(half), len(rest))
	}
	var octets uint64
	for _, r := range append(half, rest...) {
		octets += r.Forward.Payload
		if r.EndReason != EndActive {
			t.Fatalf("end reason %s", r.EndReason)
		}
	}
	if octets != 7*n {
		t.Errorf("%d octets of %d", octets, 7*n)
	}
	// And to a short silence.
	if err := c.SetTimeouts(time.Hour, time.Second, now+int64(11*time.Second)); err != nil {
		t.Fatal(err)
	}
	c.Expire(nil, now+int64(12*time.Second), 10*n)
	if c.Stats().Live != 0 {
		t.Errorf("%d flows live on after the silence", c.Stats().Live)
	}
}
