package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
)

// TestLastRecords: more flows end with the program than a collector's queue holds, and it gets them all, as there is time.
func TestLastRecords(t *testing.T) {
	for _, tc := range []struct {
		network string
		flows   int
	}{{"tcp", 200_000}, {"udp", 90_000}} {
		t.Run(tc.network, func(t *testing.T) {
			cfg, err := ipfix.ParseURL(tc.network+"://"+discard(t, tc.network), ipfix.Config{MaxRate: ipfix.DefaultMaxRate, Queue: 4096})
			if err != nil {
				t.Fatal(err)
			}
			x, err := ipfix.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			cache, err := flowcache.New(flowcache.Config{})
			if err != nil {
				t.Fatal(err)
			}
			cgroups := enrich.NewCGroups("/proc")
			exporters := []exporter{x}
			p := &pipeline{
				cache: cache, clock: time.Now, enricher: &enrich.Enricher{Processes: enrich.NewProcesses(enrich.ProcConfig{Proc: "/proc"}, cgroups), CGroups: cgroups},
				pool: make(flowcache.RecordPool, 64), roomTime: time.Minute, room: func(ctx context.Context) { waitForRoom(ctx, exporters) },
			}
			p.exporters, _ = newGroup("all", exporters)
			now := flowcache.Now()
			for i := range tc.flows {
				cache.Observe(nil, &flowcache.Observation{
					Key: flowcache.Key{
						Src: flowcache.AddrFrom4([4]byte{10, 1, byte(i >> 16), byte(i >> 8)}), Dst: flowcache.AddrFrom4([4]byte{10, 2, 0, byte(i)}),
						SrcPort: 1000, DstPort: 53, Proto: 17,
					},
					Time: now, First: now, Delta: true, Out: flowcache.Counters{Payload: 10, Octets: 38, Packets: 1},
				})
			}
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { x.Run(ctx); close(done) }() // ends with ctx
			for x.Stats().Messages == 0 && tc.network == "udp" || x.Stats().Connects == 0 {
				time.Sleep(time.Millisecond)
			}
			begun := time.Now()
			p.flush()
			stop()
			<-done
			took, st := time.Since(begun), x.Stats()
			if st.Encoded != uint64(tc.flows) || st.DroppedQueue+st.DroppedSend > 0 {
				t.Errorf("after %s: %+v", took, st)
			}
		})
	}
}

// discard listens, and reads what comes. It returns the address.
func discard(t *testing.T, network string) string {
	t.Helper()
	if network == "udp" {
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		go io.Copy(io.Discard, c) // ends with c
		return fmt.Sprint(c.LocalAddr())
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with l, and the connection with the other side
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	return fmt.Sprint(l.Addr())
}
