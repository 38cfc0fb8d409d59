package ipfix

import (
	"bytes"
	"context"
	"encoding/binary"
	"maps"
	"net"
	"testing"
	"time"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/templates"
)

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
	x.said("connected")
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
	if got := st.Records + st.DroppedQueue + st.DroppedSend; got != n*100 {
		t.Errorf("%d of %d records are accounted for: %+v", got, n*100, st)
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

// TestRefusedNoMore: a collector that is back over UDP is sent the templates at once, before the next refresh, and once
// more.
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
	var tellings []map[uint16]bool // ids of templates of flow records
	var first, last, data time.Duration
	buf := make([]byte, 65536)
	c.SetReadDeadline(back.Add(2 * time.Second))
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			break
		}
		now := time.Since(back)
		eachSet(buf[:n], func(id uint16, set []byte) error {
			if id >= templates.FirstID && data == 0 && first > 0 {
				data = now
			}
			if id != setTemplate {
				return nil
			}
			if len(tellings) == 0 || now-last > toldAgain/2 {
				tellings = append(tellings, map[uint16]bool{})
			}
			if last = now; first == 0 {
				first = now
			}
			for b := set[setHeader:]; len(b) > 0; {
				id, _, rest, err := templateRecord(setTemplate, b)
				if err != nil {
					return err
				}
				tellings[len(tellings)-1][id], b = true, rest
			}
			return nil
		})
	}
	if len(tellings) != 2 || first > 500*time.Millisecond || !maps.Equal(tellings[0], tellings[1]) {
		t.Errorf("templates of flow records are told %d times, first after %s: %v", len(tellings), first, tellings)
	}
	if data < first+TemplateLead/2 {
		t.Errorf("data after %s, templates after %s", data, first)
	}
}
