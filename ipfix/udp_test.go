package ipfix

import (
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
)

// BenchmarkUDP compares what a message of the path MTU of Ethernet costs by Write, by sendmmsg alone, and by sendmmsg with UDP_SEGMENT: of
// equal lengths, and of two lengths in turn. Nobody reads: the receiver's cost is not the sender's.
func BenchmarkUDP(b *testing.B) {
	for _, bc := range []struct {
		name    string
		write   bool
		whole   bool
		lengths []int
	}{
		{"write", true, false, []int{1452}},
		{"sendmmsg", false, true, []int{1452}},
		{"segment", false, false, []int{1452}},
		{"segment-mixed", false, false, []int{1452, 1437, 1401, 1450}},
		{"segment-pairs", false, false, []int{1452, 1400, 1440, 1440, 1380}},
	} {
		b.Run(bc.name, func(b *testing.B) {
			c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			cfg, err := ParseURL(fmt.Sprintf("udp://%s?mtu=1500&max-rate=0", c.LocalAddr()), Config{})
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
			msg := make([]byte, 1500)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				m := msg[:bc.lengths[i%len(bc.lengths)]]
				i++
				if bc.write {
					u.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
					u.conn.Write(m)
				} else {
					u.send(m, 5)
				}
			}
			u.flush()
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
}
