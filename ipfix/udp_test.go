package ipfix

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/netsampler/goflow2/v2/decoders/netflow"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/templates"
)

// messages encodes records for a path of Ethernet's MTU: all of them alike, or of the kinds, programs and pods of a busy host.
func messages(tb testing.TB, alike bool) (l [][]byte) {
	e, err := NewEncoder(IPFIX, templates.Options{Node: "node-1", Padding: true}, 1, 1472, now, func(m []byte, _ int) error { l = append(l, bytes.Clone(m)); return nil })
	if err != nil {
		tb.Fatal(err)
	}
	e.Templates(now)
	programs := []flowcache.Process{
		{Path: "/usr/sbin/nginx", Name: "nginx", UserName: "www-data", ParentPath: "/usr/lib/systemd/systemd"},
		{Path: "/usr/lib/postgresql/16/bin/postgres", Name: "postgres", UserName: "postgres", ParentPath: "/usr/lib/postgresql/16/bin/postgres"},
		{Path: "/usr/bin/python3.11", Name: "gunicorn", UserName: "1000", ParentPath: "/usr/bin/containerd-shim-runc-v2"},
		{Path: "/usr/lib/jvm/java-21-openjdk-amd64/bin/java", Name: "java", UserName: "kafka", ParentPath: "/usr/bin/dash"},
		{Path: "/usr/bin/curl", Name: "curl", UserName: "root", ParentPath: "/usr/sbin/cron"},
	}
	random := rand.New(rand.NewPCG(1, 2))
	for begin, i := 0, 0; i < 4000; i++ {
		r := record(0)
		r.Source.Who = &programs[0]
		if !alike {
			r = record(random.IntN(4))
			n := random.IntN(len(programs))
			r.Source.Who = &programs[n]
			if n >= 2 && random.IntN(2) == 0 {
				r.Source.Container = &flowcache.Workload{ContainerID: strings.Repeat("3f", 32), ContainerName: "web", ContainerImage: "docker.io/library/nginx:1.27",
					ContainerRuntime: "containerd", PodName: fmt.Sprintf("web-%d-x2x4z", random.IntN(20)), PodNamespace: "default"}
			}
		}
		if err := e.Record(r, now); err != nil {
			tb.Fatal(err)
		}
		if i == 1000 { // the templates have been sent
			begin = len(l)
		}
		if i == 3999 {
			l = l[begin:]
		}
	}
	return l
}

// TestFill: full messages have one length, whatever room the last record left, and goflow2 reads their records.
func TestFill(t *testing.T) {
	const size = 1472
	dec := netflow.CreateTemplateSystem()
	var full []int
	records := 0
	e, err := NewEncoder(IPFIX, templates.Options{Padding: true}, 1, size, now, func(m []byte, _ int) error {
		var x netflow.IPFIXPacket
		if err := netflow.DecodeMessageVersion(bytes.NewBuffer(m), dec, nil, &x); err != nil {
			t.Fatal(err)
		}
		for _, set := range x.FlowSets {
			if set, ok := set.(netflow.DataFlowSet); ok {
				records += len(set.Records)
			}
		}
		if isFlowData(m) {
			full = append(full, len(m))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	long := record(1)
	long.Source.Who = &flowcache.Process{Path: strings.Repeat("x", 1000)}
	odd := 0
	for n := range 1000 {
		r := record(n)
		r.Source.Who = &flowcache.Process{Path: strings.Repeat("x", n)}
		for _, r := range []*flowcache.Record{r, long, long} {
			if err := e.Record(r, now); err != nil {
				t.Fatal(err)
			}
		}
		e.Flush(now)
		for _, got := range full[:len(full)-1] {
			switch got {
			case size:
			case size - 1, size - 2: // 255 and 256 octets more are no length of a field
				odd++
			default:
				t.Errorf("path of %d octets: message of %d", n, got)
			}
		}
		full = full[:0]
	}
	if records != 3000 || odd > 20 {
		t.Errorf("%d records of 3000, %d messages were not full", records, odd)
	}
}

// BenchmarkUDP compares what a message costs by Write, by sendmmsg alone, and by sendmmsg with UDP_SEGMENT, in batches of the default rate
// and without bound. Nobody reads: the receiver's cost is not the sender's.
func BenchmarkUDP(b *testing.B) {
	for _, bc := range []struct {
		name  string
		write bool
		whole bool
		alike bool
		rate  int
	}{
		{"alike/write", true, false, true, 0},
		{"alike/sendmmsg", false, true, true, 0},
		{"alike/segment", false, false, true, 0},
		{"mixed/write", true, false, false, 0},
		{"mixed/sendmmsg", false, true, false, 0},
		{"mixed/segment", false, false, false, 0},
		{"mixed/segment-32", false, false, false, 1 << 30},
	} {
		b.Run(bc.name, func(b *testing.B) {
			messages := messages(b, bc.alike)
			c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			cfg, err := ParseURL(fmt.Sprintf("udp://%s?mtu=1500&max-rate=%d", c.LocalAddr(), bc.rate), Config{})
			if err != nil {
				b.Fatal(err)
			}
			x, err := New(cfg)
			if err != nil {
				b.Fatal(err)
			}
			u := x.direct.(*udp)
			if err := u.open(context.Background()); err != nil {
				b.Fatal(err)
			}
			u.whole = bc.whole
			conn, err := net.Dial("udp", c.LocalAddr().String())
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				m := messages[i%len(messages)]
				i++
				if bc.write {
					conn.Write(m)
				} else {
					u.send(m, 5)
				}
			}
			u.flush()
			if u.whole != bc.whole {
				b.Fatal("this kernel has no UDP_SEGMENT")
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}

// TestPace: at the default rate nfcapd stores every record. Its receive buffer is 2 MB: the default one of the kernel, 208 KiB, is full in
// the time in which nfcapd writes a block of its file.
func TestPace(t *testing.T) {
	if _, err := exec.LookPath("nfcapd"); err != nil {
		miss(t, "needs nfcapd")
	}
	dir := t.TempDir()
	var c *net.UDPConn
	port := 0
	for c == nil { // below those that connections take
		port = 10000 + rand.IntN(20000)
		c, _ = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	}
	c.Close()
	nfcapd := exec.Command("nfcapd", "-w", dir, "-b", "127.0.0.1", "-p", strconv.Itoa(port), "-t", "3600", "-B", "2000000")
	var said strings.Builder
	nfcapd.Stdout, nfcapd.Stderr = &said, &said
	if err := nfcapd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nfcapd.Process.Kill(); nfcapd.Wait() })
	// Other tests run at the same time, and it must get a processor when it wants one. Without root it has to do without.
	syscall.Setpriority(syscall.PRIO_PROCESS, nfcapd.Process.Pid, -20)
	eventually(t, "nfcapd listens", func() bool {
		b, _ := os.ReadFile("/proc/thread-self/net/udp") // the first thread may be in the namespace of another test
		return strings.Contains(string(b), fmt.Sprintf("0100007F:%04X ", port))
	})
	rate := DefaultMaxRate
	if n, err := strconv.Atoi(os.Getenv("SOCKFLOW_RATE")); err == nil {
		rate = n
	}
	x := begin(t, fmt.Sprintf("udp://127.0.0.1:%d?mtu=1500&max-rate=%d", port, rate), Config{Queue: 1 << 20, TemplateRefresh: time.Hour})
	const n = 100_000
	begun := time.Now()
	x.give(n)
	for deadline := time.Now().Add(30 * time.Second); x.Stats().Encoded < n && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	st := x.Stats()
	t.Logf("%d messages of %d octets in %s: %.0f/s", st.Messages, st.Octets/st.Messages, time.Since(begun), float64(st.Messages)/time.Since(begun).Seconds())
	x.stop()
	time.Sleep(200 * time.Millisecond)
	nfcapd.Process.Signal(syscall.SIGTERM)
	nfcapd.Wait()
	out, err := exec.Command("nfdump", "-R", dir, "-I").CombinedOutput()
	if err != nil {
		t.Fatalf("%v %s", err, out)
	}
	flows, failures := 0, 0
	for line := range strings.Lines(string(out)) {
		fmt.Sscanf(line, "Flows: %d", &flows)
		fmt.Sscanf(line, "Sequence failures: %d", &failures)
	}
	// nfcapd does not count options records, which begin the session (RFC 7011, section 3.1).
	t.Logf("nfcapd stored %d records, and saw %d sequence failures", flows, failures)
	if flows != n {
		t.Errorf("%d records are stored, of %d: %s", flows, n, out)
	}
	if strings.Contains(strings.ToLower(said.String()), "error -") { // as of a field that goes beyond its set
		t.Errorf("nfcapd: %s", said.String())
	}
}
