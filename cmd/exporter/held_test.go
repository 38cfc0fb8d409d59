package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/flowcache"
)

// TestHeldRecords: records that wait for names are looked at a part at a time, are handed over once each when the names have come, and all at the end, though
// a runtime is still being asked.
func TestHeldRecords(t *testing.T) {
	cache, err := flowcache.New(flowcache.Config{IdleTimeout: time.Second, ActiveTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	cgroups := enrich.NewCGroups("/proc")
	k := &keeper{}
	p := &pipeline{
		cache: cache, clock: time.Now, pool: make(flowcache.RecordPool, 64), printers: []taker{k},
		enricher: &enrich.Enricher{Processes: enrich.NewProcesses(enrich.ProcConfig{Proc: "/proc"}, cgroups), CGroups: cgroups},
	}
	now := time.Now().UnixNano()
	const near = "\x0a\x01\x00"
	addr := func(n byte) flowcache.Addr { return flowcache.AddrFrom4([4]byte{near[0], near[1], near[2], n}) }
	tell := func(asking int64, containers ...enrich.Container) {
		cgroups.Apply(&enrich.ContainerUpdate{Runtime: "/run/r.sock", Answering: true, Asking: asking, Containers: containers})
	}
	container := func(id string, a flowcache.Addr) enrich.Container {
		return enrich.Container{
			Workload: flowcache.Workload{ContainerID: id, ContainerName: id, CGroupPath: "/x/" + id}, Created: 1, At: 1, Addresses: []flowcache.Addr{a},
		}
	}
	tell(now-1, container("other", addr(9)))
	const many = maxHeld / 2
	for i := range many {
		a := addr(2)
		if i%2 == 1 {
			a = addr(3)
		}
		p.give([]flowcache.Record{{Final: true, Start: flowcache.Now(), Key: flowcache.Key{Dst: a, SrcPort: uint16(i), Proto: 17}, Forward: flowcache.Counters{Packets: 1}}})
	}
	if len(p.held) != many || len(k.records) != 0 {
		t.Fatalf("%d records wait, %d are handed over", len(p.held), len(k.records))
	}
	// Who had one of the two addresses becomes known.
	tell(now-1, container("web", addr(2)))
	steps := 0
	for ; len(p.held) > many/2 && steps < 100; steps++ {
		before := len(p.held)
		if p.retry(); before-len(p.held) > retryAtOnce {
			t.Fatalf("%d were looked at in one step", before-len(p.held))
		}
	}
	if len(p.held) != many/2 || steps < many/retryAtOnce-1 {
		t.Errorf("%d wait after %d steps", len(p.held), steps)
	}
	p.flush()
	seen := map[uint16]string{}
	for _, r := range k.records {
		name := ""
		if r.Dest.Container != nil {
			name = r.Dest.Container.ContainerName
		}
		if _, twice := seen[r.Key.SrcPort]; twice {
			t.Errorf("record %d was handed over twice", r.Key.SrcPort)
		}
		seen[r.Key.SrcPort] = name
	}
	for i := range many {
		want := "web"
		if i%2 == 1 {
			want = ""
		}
		if name, ok := seen[uint16(i)]; !ok || name != want {
			t.Fatalf("record %d: %q, handed over %v, want %q", i, name, ok, want)
		}
	}
}

// BenchmarkHeldRecords is what one look at records that wait costs the loop, when an update has changed who is who.
func BenchmarkHeldRecords(b *testing.B) {
	cgroups := enrich.NewCGroups("/proc")
	processes := enrich.NewProcesses(enrich.ProcConfig{Proc: b.TempDir()}, cgroups)
	p := &pipeline{clock: time.Now, enricher: &enrich.Enricher{Processes: processes, CGroups: cgroups}}
	now := time.Now().UnixNano()
	update := func(i int) {
		cgroups.Apply(&enrich.ContainerUpdate{Runtime: "/run/r.sock", Answering: true, Asking: now - 1, Containers: []enrich.Container{{
			Workload: flowcache.Workload{ContainerID: fmt.Sprintf("%064x", i%1000)}, Created: 1, At: 1, Addresses: []flowcache.Addr{flowcache.AddrFrom4([4]byte{10, 1, 0, 9})},
		}}})
	}
	update(0)
	for i := range maxHeld {
		id := flowcache.ProcessID{PID: uint32(i + 1), Start: 1}
		processes.Apply(&flowcache.ProcessEvent{Kind: flowcache.ProcessExec, Process: flowcache.Process{ID: id, Path: "/bin/pod", CGroup: uint64(i + 1), CGroupPath: fmt.Sprintf("/kubepods/burstable/x/docker/%064x", i+1<<20)}})
		p.held = append(p.held, flowcache.Record{Final: true, Start: flowcache.Now(), Source: flowcache.End{Local: true, Process: id}, Key: flowcache.Key{Dst: flowcache.AddrFrom4([4]byte{10, 1, 0, 2}), Proto: 17}})
	}
	p.clock = func() time.Time { return time.Unix(0, now) } // they wait for ever
	b.ReportAllocs()
	for i := 1; b.Loop(); i++ {
		update(i)
		p.retry()
	}
	if len(p.held) != maxHeld {
		b.Errorf("%d wait", len(p.held))
	}
}
