package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
	"github.com/sockflow/sockflow/templates"
)

// burstCollector is a real collector that takes many records.
type burstCollector struct {
	url string
	// records returns what its output has of each record, by octets: packets and source port.
	records func() map[uint64]burstSight
	ready   func(x burstExporter) bool // nil: at once
	check   func()                     // nil: nothing more
	output  string                     // file that grows while it works; empty: records is cheap
}

// written is how much of the output there is.
func (c *burstCollector) written() int64 {
	if st, err := os.Stat(c.output); err == nil {
		return st.Size()
	}
	return 0
}

type burstSight struct{ packets, port uint64 }

type burstExporter interface {
	Run(ctx context.Context) error
	Offer(r *flowcache.Records) bool
	Stats() ipfix.Stats
	Healthy() bool
}

const (
	burstBase        = 1_000_000 // octets of record 0: each has its own
	burstPerDatagram = 36        // records of one, at most on average
)

func burstWant(i int) burstSight { return burstSight{uint64(i%997 + 1), uint64(1024 + i%60000)} }

// burstRecord is record i of a mix of kinds: both versions of IP, TCP and UDP, processes, containers and pods at either end or at both, with texts
// of many lengths.
func burstRecord(i int, now time.Time) flowcache.Record {
	w := burstWant(i)
	r := flowcache.Record{
		Key:   flowcache.Key{Src: flowcache.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), Dst: flowcache.AddrFrom4([4]byte{192, 0, 2, byte(i % 7)}), SrcPort: uint16(w.port), DstPort: 443, Proto: 6},
		Start: now.Add(-time.Minute).UnixNano(), End: now.UnixNano(), EndReason: flowcache.EndDetected, Final: true,
		Forward: flowcache.Counters{Octets: uint64(burstBase + i), Packets: w.packets, Payload: uint64(i)}, Reverse: flowcache.Counters{Octets: 77, Packets: 1, Payload: 5},
		Dest: flowcache.End{UID: flowcache.NoID, GID: flowcache.NoID},
	}
	if i%5 == 0 {
		r.Key.Src, r.Key.Dst = flowcache.Addr{0x20, 1, 0xd, 0xb8, 12: byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}, flowcache.Addr{0x20, 1, 0xd, 0xb8, 15: 2}
	}
	if i%3 == 0 {
		r.Key.Proto = 17
	} else {
		r.HasTCP, r.Control = true, 0x1b
	}
	end := flowcache.End{
		Local: true, Process: flowcache.ProcessID{PID: uint32(1 + i%30000)}, UID: 33, GID: 33, NetNS: 4026531840, CGroup: 77, Cookie: uint64(i),
		Who: &flowcache.Process{Path: "/usr/bin/" + strings.Repeat("x", i%37), Name: "curl", UserName: "www-data", ParentPID: 7, ParentPath: "/bin/sh"},
	}
	switch i % 4 {
	case 1:
		end.Container = &flowcache.Workload{ContainerID: strings.Repeat("0123456789abcdef", 4), ContainerName: "web"}
	case 2:
		end.Container = &flowcache.Workload{ContainerID: strings.Repeat("fedcba9876543210", 4), ContainerName: "db", PodName: fmt.Sprint("pod-", i%100), PodNamespace: "shop"}
	}
	r.Source = end
	switch i % 11 {
	case 0, 1:
		r.Dest = end
	case 2:
		r.Source, r.Dest = r.Dest, end
	}
	return r
}

// load is for how long records follow the burst at 20 000/s; SOCKFLOW_LOAD says it, as 60s.
func load(t *testing.T) time.Duration {
	d, err := time.ParseDuration(os.Getenv("SOCKFLOW_LOAD"))
	if err != nil {
		return time.Second
	}
	t.Logf("for %s", d)
	return d
}

// TestBurst: a burst of 4 000 records of many kinds, the first that a collector sees, and then 20 000/s, in full messages: every record is in
// the collector's own output, by value.
func TestBurst(t *testing.T) {
	for _, tc := range []struct {
		name string
		new  func(*testing.T) *burstCollector
	}{{"nfdump", burstNfdump}, {"goflow2", burstGoflow2}, {"ClickHouse", burstClickHouse}, {"nfacctd", burstNfacctd}, {"ipfixDump", burstDump}, {"collect", burstCollect}, {"ZeroMQ", burstZMQ}} {
		t.Run(tc.name, func(t *testing.T) {
			c := tc.new(t)
			x := newBurstExporter(t, c.url)
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() { x.Run(ctx); close(done) }() // ends with ctx
			defer func() { cancel(); <-done }()
			if c.ready != nil {
				eventually(t, "it is ready", func() bool { return c.ready(x) })
			}
			pool := make(flowcache.RecordPool, 64)
			next := 0
			give := func(n int) {
				for n > 0 {
					r, now := pool.Get(), time.Now()
					for range min(n, 200) {
						r.List = append(r.List, burstRecord(next, now))
						next++
					}
					n -= len(r.List)
					x.Offer(r)
				}
			}
			give(4000)
			began, d := time.Now(), load(t)
			for ; time.Since(began) < d; time.Sleep(5 * time.Millisecond) {
				give(4000 + int(time.Since(began).Seconds()*20000) - next)
			}
			late := time.Now().Add(patience() + 2*d) // a collector may be slower than 20 000/s
			sent := func() bool {
				st := x.Stats()
				return st.Encoded+st.DroppedQueue == uint64(next) && st.Waiting == 0 && st.Backlog == 0 && (st.Made == 0 || st.Records == st.Made)
			}
			for !sent() {
				if time.Now().After(late) {
					t.Fatalf("not all is sent: %+v", x.Stats())
				}
				time.Sleep(20 * time.Millisecond)
			}
			time.Sleep(time.Second) // the last message
			cancel()
			<-done
			var got map[uint64]burstSight
			missing, first, wrong, lost := -1, 0, 0, 0
			grown := int64(-1)
			udpPort := 0
			if i := strings.LastIndexByte(c.url, ':'); strings.HasPrefix(c.url, "udp:") {
				udpPort, _ = strconv.Atoi(c.url[i+1:])
			}
			for late = time.Now().Add(patience() + 20*d); ; time.Sleep(time.Second) {
				over := time.Now().After(late)
				if size := c.written(); size != grown && !over { // to read it takes a processor from who writes it
					grown = size
					continue
				}
				before := missing
				if udpPort != 0 { // what its kernel drops, and counts: a busy host, and a program that asks for no larger buffer
					lost = udpDrops(udpPort)
				}
				got, missing, first, wrong = c.records(), 0, 0, 0
				for i := range next {
					s, ok := got[uint64(burstBase+i)]
					switch {
					case !ok && i < 4000:
						missing++
						first++
					case !ok:
						missing++
					case s != burstWant(i):
						wrong++
					}
				}
				if missing <= int(x.Stats().DroppedQueue)+lost*burstPerDatagram && (missing == before || missing == 0) || over {
					break
				}
			}
			counted := int(x.Stats().DroppedQueue) + lost*burstPerDatagram
			if lost > 0 {
				t.Logf("%d datagrams found its receive buffer full", lost)
			}
			if c.check != nil {
				c.check()
			}
			t.Logf("%d records, %d dropped and counted, %d missing, %d of them of the burst, %d wrong", next, x.Stats().DroppedQueue, missing, first, wrong)
			if missing > counted || wrong > 0 {
				t.Errorf("of %d records %d are missing and %d wrong: %+v", next, missing, wrong, x.Stats())
			}
		})
	}
}

func newBurstExporter(t *testing.T, url string) burstExporter {
	t.Helper()
	if strings.HasPrefix(url, "zmq:") {
		cfg, err := ipfix.ParseNtopngURL(url, ipfix.NtopngConfig{ReconnectMin: 100 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		x, err := ipfix.NewNtopng(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	cfg, err := ipfix.ParseURL(url, ipfix.Config{Options: templates.Options{Node: "node-1"}, Domain: 1, MaxRate: ipfix.DefaultMaxRate, ReconnectMin: 100 * time.Millisecond, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	x, err := ipfix.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// jsonSights reads one JSON object a line.
func jsonSights(b []byte, octets, packets, port string) map[uint64]burstSight {
	got := map[uint64]burstSight{}
	number := func(v any) uint64 {
		n, _ := strconv.ParseUint(fmt.Sprint(v), 10, 64)
		return n
	}
	for line := range bytes.Lines(b) {
		f, err := flat(line)
		if err != nil {
			continue
		}
		if n := number(f[octets]); n >= burstBase {
			got[n] = burstSight{number(f[packets]), number(f[port])}
		}
	}
	return got
}

func burstNfdump(t *testing.T) *burstCollector {
	n := newNfcapd(t)
	var got map[uint64]burstSight
	return &burstCollector{url: fmt.Sprintf("udp://127.0.0.1:%d", n.port), records: func() map[uint64]burstSight {
		if got == nil {
			got = map[uint64]burstSight{}
			for _, f := range n.stop() {
				got[f.InBytes] = burstSight{f.InPackets, uint64(f.SrcPort)}
			}
		}
		return got
	}}
}

// goflow2Program is goflow2 of the version that go.mod names.
func goflow2Program(t *testing.T) string {
	t.Helper()
	version, err := exec.Command("go", "list", "-m", "-f", "{{.Version}}", "github.com/netsampler/goflow2/v2").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := os.Getenv("SOCKFLOW_TEST_COLLECTORS")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Skip(err)
		}
		dir = filepath.Join(cache, "sockflow-test", strings.TrimSpace(string(version)))
	}
	program := filepath.Join(dir, "goflow2")
	if _, err := os.Stat(program); err == nil {
		return program
	}
	cmd := exec.Command("go", "install", "github.com/netsampler/goflow2/v2/cmd/goflow2@"+strings.TrimSpace(string(version)))
	cmd.Env, cmd.Dir = append(os.Environ(), "GOBIN="+dir, "GOFLAGS="), t.TempDir()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("goflow2 cannot be had here: %v\n%s", err, out)
	}
	return program
}

func burstGoflow2(t *testing.T) *burstCollector {
	program := goflow2Program(t)
	dir, port := t.TempDir(), freePort(t)
	mapping, written, page := filepath.Join(dir, "mapping.yaml"), filepath.Join(dir, "flows.json"), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	if err := os.WriteFile(mapping, []byte(elementsOut(t, "--format", "goflow2")), 0o600); err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	cmd := exec.Command(program, "-listen", fmt.Sprintf("netflow://127.0.0.1:%d", port), "-mapping", mapping, "-format", "json", "-produce", "sample",
		"-transport.file", written, "-addr", page)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%.2000s", log.String())
		}
	})
	awaitUDP(t, port)
	return &burstCollector{output: written, url: fmt.Sprintf("udp://127.0.0.1:%d", port), records: func() map[uint64]burstSight {
		b, _ := os.ReadFile(written)
		return jsonSights(b, "bytes", "packets", "src_port")
	}, check: func() {
		// Of a message that it cannot decode, or whose template it does not have, goflow2 counts an error.
		_, body := get(t, "http://"+page+"/metrics")
		for line := range strings.Lines(body) {
			if strings.Contains(line, "error") && !strings.HasPrefix(line, "#") && !strings.HasSuffix(line, " 0\n") {
				t.Errorf("goflow2: %s", line)
			}
		}
	}}
}

// burstClickHouse is the engine of ClickHouse behind goflow2: what the table of the example has.
func burstClickHouse(t *testing.T) *burstCollector {
	c := burstGoflow2(t)
	insertAll := clickHouse(t)
	c.records = func() map[uint64]burstSight {
		out := insertAll(c.output, "SELECT bytes, packets, src_port FROM flows.flows WHERE bytes >= "+strconv.Itoa(burstBase))
		got := map[uint64]burstSight{}
		for line := range bytes.Lines(out) {
			var octets uint64
			var s burstSight
			if _, err := fmt.Sscan(string(line), &octets, &s.packets, &s.port); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			got[octets] = s
		}
		return got
	}
	return c
}

// awaitUDP waits until a program has a UDP port.
func awaitUDP(t *testing.T, port int) {
	t.Helper()
	eventually(t, "it listens", func() bool {
		for _, file := range []string{"/proc/net/udp", "/proc/net/udp6"} {
			if b, _ := os.ReadFile(file); strings.Contains(string(b), fmt.Sprintf(":%04X ", port)) {
				return true
			}
		}
		return false
	})
}

func burstNfacctd(t *testing.T) *burstCollector {
	needTool(t, "nfacctd")
	dir, port := t.TempDir(), freePort(t)
	os.WriteFile(filepath.Join(dir, "primitives"), []byte(elementsOut(t, "--format", "pmacct")), 0o600)
	// Buffers between its two processes, and in the kernel, that hold a burst.
	config := fmt.Sprintf("aggregate: src_host, dst_host, src_port, dst_port, proto, source_process_id, source_process_path, source_pod_name, transport_octet_delta_count\n"+
		"aggregate_primitives: %s/primitives\nplugins: print\nprint_output: json\nprint_output_file: %s/flows\nprint_output_file_append: true\nprint_refresh_time: 1\n"+
		"print_cache_entries: 30011\nplugin_pipe_size: 104857600\nnfacctd_pipe_size: 8388608\n"+
		"nfacctd_ip: 127.0.0.1\nnfacctd_port: %d\nnfacctd_time_new: true\ndaemonize: false\n", dir, dir, port)
	os.WriteFile(filepath.Join(dir, "nfacctd.conf"), []byte(config), 0o600)
	var log syncBuffer
	cmd := exec.Command("nfacctd", "-f", filepath.Join(dir, "nfacctd.conf"))
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it has a process for each plugin
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
		if t.Failed() {
			t.Logf("%.30000s", log.String())
		}
	})
	for by := time.Now().Add(time.Minute); !strings.Contains(log.String(), "Purging cache - END"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(by) {
			t.Fatal("nfacctd does not work within a minute")
		}
	}
	if strings.Contains(log.String(), "WARN") {
		t.Errorf("nfacctd warns of its configuration: %.2000s", log.String())
	}
	return &burstCollector{output: filepath.Join(dir, "flows"), url: fmt.Sprintf("udp://127.0.0.1:%d", port), records: func() map[uint64]burstSight {
		b, _ := os.ReadFile(filepath.Join(dir, "flows"))
		return jsonSights(b, "bytes", "packets", "port_src")
	}}
}

// burstDump is ipfixDump, which reads what a TCP connection brought.
func burstDump(t *testing.T) *burstCollector {
	needTool(t, "ipfixDump")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	f, err := os.Create(filepath.Join(t.TempDir(), "stream.ipfix"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	go func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.Copy(f, c)
			c.Close()
		}
	}()
	return &burstCollector{url: "tcp://" + l.Addr().String(), records: func() map[uint64]burstSight {
		cmd := exec.Command("ipfixDump", "--rfc5610", "--in", f.Name())
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		got := map[uint64]burstSight{}
		var octets uint64
		var s burstSight
		keep := func() {
			if octets >= burstBase {
				got[octets] = s
			}
			octets, s = 0, burstSight{}
		}
		for lines := bufio.NewScanner(out); lines.Scan(); {
			line := lines.Bytes()
			if bytes.HasPrefix(line, []byte("--- ")) {
				keep()
				continue
			}
			m := dumpField.FindSubmatch(line)
			if m == nil {
				continue
			}
			n, _ := strconv.ParseUint(string(m[4]), 10, 64)
			switch string(m[3]) {
			case "octetDeltaCount":
				octets = n
			case "packetDeltaCount":
				s.packets = n
			case "sourceTransportPort":
				s.port = n
			}
		}
		keep()
		if err := cmd.Wait(); err != nil {
			t.Errorf("ipfixDump: %v", err)
		}
		return got
	}}
}

// burstCollect is `sockflow collect`, another process.
func burstCollect(t *testing.T) *burstCollector {
	port := freePort(t)
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(buildExporter(t), "collect", "--listen", fmt.Sprintf("udp://127.0.0.1:%d", port), "-o", "json")
	var log syncBuffer
	cmd.Stdout, cmd.Stderr = out, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		out.Close()
		if t.Failed() {
			t.Logf("%.2000s", log.String())
		}
	})
	awaitUDP(t, port)
	return &burstCollector{output: out.Name(), url: fmt.Sprintf("udp://127.0.0.1:%d", port), records: func() map[uint64]burstSight {
		b, _ := os.ReadFile(out.Name())
		return jsonSights(b, "octetDeltaCount", "packetDeltaCount", "sourceTransportPort")
	}}
}

// burstZMQ is libzmq in ntopng's place.
func burstZMQ(t *testing.T) *burstCollector {
	needTool(t, debianPython)
	if exec.Command(debianPython, "-c", "import zmq").Run() != nil {
		miss(t, "needs python3-zmq")
	}
	s := newZMQSubscriber(t, "bind")
	return &burstCollector{url: "zmq://127.0.0.1:" + s.port, ready: func(x burstExporter) bool { return x.Healthy() }, records: func() map[uint64]burstSight {
		got := map[uint64]burstSight{}
		number := func(v any) uint64 {
			n, _ := v.(json.Number)
			i, _ := n.Int64()
			return uint64(i)
		}
		for _, f := range s.flows(t) {
			if n := number(f["1"]); n >= burstBase {
				got[n] = burstSight{number(f["2"]), number(f["7"])}
			}
		}
		return got
	}}
}

// udpDrops is how many datagrams found the receive buffer of a port full.
func udpDrops(port int) (n int) {
	for _, file := range []string{"/proc/net/udp", "/proc/net/udp6"} {
		b, _ := os.ReadFile(file)
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 12 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
				drops, _ := strconv.Atoi(f[12])
				n += drops
			}
		}
	}
	return n
}
