package main

import (
	"net"
	"os"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/flowcache"
)

// stepped returns what time.Now would have returned for t with a wall clock stepped by d.
func stepped(t *testing.T, at time.Time, d time.Duration) time.Time {
	t.Helper()
	was := at
	*(*uint64)(unsafe.Pointer(&at)) += uint64(d/time.Second) << 30 // package time: seconds, and 30 bits of nanoseconds
	if at.UnixNano()-was.UnixNano() != int64(d) || at.Sub(was) != 0 {
		t.Fatal("package time keeps its clocks in another way")
	}
	return at
}

// steps are where the wall clock goes, from where it is.
var steps = map[string]time.Duration{
	"back":      -time.Hour,
	"forward":   time.Hour,
	"from 1970": time.Since(time.Unix(60, 0)).Truncate(time.Second),
}

// keeper keeps what it is given, and when, and calls enough after so many records.
type keeper struct {
	wanted  int
	enough  func()
	records []flowcache.Record
	at      []int64
}

func (k *keeper) Offer(batch *flowcache.Records) bool {
	defer batch.Release()
	for _, r := range batch.List {
		k.records, k.at = append(k.records, r), append(k.at, flowcache.Now())
		if len(k.records) == k.wanted {
			k.enough()
		}
	}
	return true
}

// TestClockStep: a step of the wall clock moves no timeout and loses no count. Records that leave after it have the new
// time.
func TestClockStep(t *testing.T) {
	const idle, active = 300 * time.Millisecond, 500 * time.Millisecond
	for name, step := range steps {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cache, err := flowcache.New(flowcache.Config{IdleTimeout: idle, ActiveTimeout: active, PeerMemory: idle, Merge: true})
			if err != nil {
				t.Fatal(err)
			}
			cgroups := enrich.NewCGroups("/proc")
			processes := enrich.NewProcesses(enrich.ProcConfig{Proc: t.TempDir()}, cgroups)
			in := make(chan *flowcache.Batch)
			told := keeper{wanted: 4, enough: sync.OnceFunc(func() { close(in) })}
			defer time.AfterFunc(patience(), told.enough).Stop()
			var ahead time.Duration
			p := &pipeline{
				cache: cache, processes: processes, enricher: &enrich.Enricher{Processes: processes, CGroups: cgroups}, printers: []taker{&told},
				clock: func() time.Time { return stepped(t, time.Now(), ahead) },
			}
			if name == "from 1970" {
				ahead = -step
			}
			// In turn: a socket's datagrams, both ends of others', a live connection, one that has ended and waits for its peer.
			began := flowcache.Now()
			var batch flowcache.Batch
			observe := func(port uint16, proto uint8, event flowcache.Event, reverse bool) {
				o := flowcache.Observation{
					Key:    flowcache.Key{Src: flowcache.AddrFrom4([4]byte{10, 0, 0, 1}), Dst: flowcache.AddrFrom4([4]byte{10, 0, 0, 2}), SrcPort: port, DstPort: 99, Proto: proto, NetNS: 1},
					Cookie: uint64(port), Time: flowcache.Now(), First: began, Event: event, Delta: proto == flowcache.ProtoUDP, UID: flowcache.NoID,
					Role: flowcache.RoleInitiator, Out: flowcache.Counters{Payload: 100, Octets: 128, Packets: 1},
				}
				if event == flowcache.EventEnd {
					o.Conversation = uint64(port)
				}
				if reverse {
					o.Key, o.Cookie, o.Role = o.Key.Reverse(), o.Cookie+1000, flowcache.RoleResponder
					o.In, o.Out = o.Out, flowcache.Counters{}
				}
				batch.Observations = append(batch.Observations, o)
			}
			observe(1, flowcache.ProtoUDP, flowcache.EventUpdate, false)
			observe(2, flowcache.ProtoUDP, flowcache.EventUpdate, false)
			observe(2, flowcache.ProtoUDP, flowcache.EventUpdate, true)
			observe(3, flowcache.ProtoTCP, flowcache.EventUpdate, false)
			observe(4, flowcache.ProtoTCP, flowcache.EventEnd, false)
			p.take(&batch)
			ahead += step
			p.run(in)
			want := map[uint16]struct {
				reason flowcache.EndReason
				after  time.Duration
			}{1: {flowcache.EndIdle, idle}, 2: {flowcache.EndIdle, idle}, 3: {flowcache.EndActive, active}, 4: {flowcache.EndDetected, active}}
			for i, r := range told.records {
				w, ok := want[r.Key.SrcPort]
				if r.EndReason == flowcache.EndForced {
					continue // the live connection's
				}
				if !ok || r.EndReason != w.reason || r.Forward.Payload != 100 {
					t.Errorf("%+v", r)
				}
				delete(want, r.Key.SrcPort)
				if late := time.Duration(told.at[i]-began) - w.after; late < 0 || late > patience()/2 {
					t.Errorf("the record of port %d is %s late", r.Key.SrcPort, late)
				}
				if off := time.Duration(r.Start - began - int64(ahead)).Abs(); off > time.Millisecond || r.End < r.Start || r.End-r.Start > int64(time.Second) {
					t.Errorf("the record of port %d begins %s off, and lasts from %d to %d", r.Key.SrcPort, off, r.Start, r.End)
				}
			}
			if len(want) > 0 {
				t.Errorf("no record of %v", want)
			}
		})
	}
}

// TestClockStepped steps the clock of the machine, and so runs in a virtual machine only: make test-kernels.
func TestClockStepped(t *testing.T) {
	if os.Getenv("SOCKFLOW_STEP_CLOCK") == "" {
		t.Skip("would step the clock of this machine")
	}
	set := func(to time.Time) {
		ts := unix.NsecToTimespec(to.UnixNano())
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
			t.Fatal(err)
		}
	}
	day := time.Now()
	set(time.Unix(3600, 0)) // the kernel refuses a time before it was booted
	r := runExporter(t, "--idle-timeout", "3s", "--active-timeout", "4s")
	peer, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var sent uint64
	for _, to := range []time.Time{day, day.Add(-time.Hour), day.Add(time.Hour), day} {
		c, err := net.DialUDP("udp4", nil, peer.LocalAddr().(*net.UDPAddr))
		if err != nil {
			t.Fatal(err)
		}
		wrote := time.Now()
		c.Write([]byte("datagram"))
		conn.Write([]byte("segment"))
		sent += uint64(len("segment"))
		time.Sleep(1500 * time.Millisecond) // until both are in the cache
		before := time.Since(wrote)
		set(to)
		var rec jsonRecord
		eventually(t, "the datagram is told", func() bool {
			for _, j := range r.json() {
				if int(j.SourcePort) == c.LocalAddr().(*net.UDPAddr).Port {
					rec = j
				}
			}
			return rec.Start != ""
		})
		if took := time.Since(wrote); rec.Reason != "idle" || rec.Forward.Payload != 8 || took < 3*time.Second {
			t.Errorf("clock set to %s: told after %s: %+v", to, took, rec)
		}
		start, _ := time.Parse(time.RFC3339Nano, rec.Start)
		if off := start.Sub(to.Add(-before)).Abs(); off > time.Second {
			t.Errorf("clock set to %s: told as of %s, %s off", to, rec.Start, off)
		}
		c.Close()
	}
	conn.Close()
	time.Sleep(2 * time.Second)
	r.stop()
	var told uint64
	port := conn.LocalAddr().(*net.TCPAddr).Port
	for _, j := range r.json() {
		if int(j.SourcePort) == port {
			told += j.Forward.Payload
		}
		if j.SourceEnd != nil && j.SourceEnd.Started != "" && j.SourceEnd.PID == uint32(os.Getpid()) {
			if started, _ := time.Parse(time.RFC3339Nano, j.SourceEnd.Started); j.Start > "2000" && started.Before(day.Add(-2*time.Hour)) {
				t.Errorf("this process began at %s", j.SourceEnd.Started)
			}
		}
	}
	if told != sent {
		t.Errorf("%d octets told, %d were sent", told, sent)
	}
}
