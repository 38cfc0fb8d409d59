package ipfix

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

// TestMain is the collector of TestCollectorDies if SOCKFLOW_TEST_COLLECTOR is set: it writes the octets of each
// connection to a file.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SOCKFLOW_TEST_COLLECTOR"); dir != "" {
		collect(dir, os.Getenv("SOCKFLOW_TEST_ADDRESS"))
	}
	os.Exit(m.Run())
}

func collect(dir, addr string) {
	var l net.Listener
	var err error
	for range 500 { // the one before may not be gone yet
		if l, err = net.Listen("tcp", addr); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		panic(err)
	}
	l = peeking{l}
	if cert := os.Getenv("SOCKFLOW_TEST_CERT"); cert != "" {
		c, err := tls.LoadX509KeyPair(cert+".pem", cert+".key")
		if err != nil {
			panic(err)
		}
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{c}})
	}
	buf := make([]byte, 65536)
	for i := 0; ; i++ {
		c, err := l.Accept()
		if err != nil {
			panic(err)
		}
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%020d-%06d", time.Now().UnixNano(), i)))
		if err != nil {
			panic(err)
		}
		for {
			n, err := c.Read(buf)
			f.Write(buf[:n])
			if err != nil {
				break
			}
		}
		f.Close()
		c.Close()
		os.Rename(f.Name(), f.Name()+".whole")
	}
}

// peeking is a listener of connections that leave in the kernel what was read until the next Read: what a program that is killed has read
// and not written to its file is lost, and not the exporter's to know.
type peeking struct{ net.Listener }

func (l peeking) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &peekConn{TCPConn: c.(*net.TCPConn)}, nil
}

type peekConn struct {
	*net.TCPConn
	peeked []byte // what the Read before returned
}

func (c *peekConn) Read(b []byte) (n int, err error) {
	if _, err := io.ReadFull(c.TCPConn, c.peeked); err != nil {
		return 0, err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	peekErr := raw.Read(func(fd uintptr) bool {
		n, _, err = syscall.Recvfrom(int(fd), b, syscall.MSG_PEEK)
		return err != syscall.EAGAIN
	})
	if err = errors.Join(err, peekErr); err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, io.EOF
	}
	c.peeked = slices.Grow(c.peeked[:0], n)[:n]
	return n, nil
}

// soak is how long TestCollectorDies goes on.
func soak(t *testing.T) time.Duration {
	d, err := time.ParseDuration(os.Getenv("SOCKFLOW_SOAK"))
	if err != nil {
		return 4 * time.Second
	}
	t.Logf("for %s", d)
	return d
}

// TestCollectorDies kills and restarts a collector at random under 20 000 records/s, half the time after it has hung for a while: every record arrives, in order; what arrives twice
// are records of the last messages that the collector was sent and did not acknowledge or read. Memory does not grow.
func TestCollectorDies(t *testing.T) {
	for _, network := range []string{"tcp", "tls"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			addr := freeAddress(t)
			env := append(os.Environ(), "SOCKFLOW_TEST_COLLECTOR="+dir, "SOCKFLOW_TEST_ADDRESS="+addr)
			url := network + "://" + addr
			if network == "tls" {
				a := newAuthority(t)
				a.issue("server", "collector.test", time.Hour)
				env = append(env, "SOCKFLOW_TEST_CERT="+a.path("server"))
				url += "?server-name=collector.test&ca=" + a.path("ca.pem")
			}
			x := begin(t, url, Config{Spool: t.TempDir(), ReconnectMin: 100 * time.Millisecond, ReconnectMax: time.Second})
			var memory []uint64
			kills, hung := 0, false
			var collector *exec.Cmd
			var started time.Time      // the collector
			files := func() []string { // of connections, in their order
				all, _ := filepath.Glob(filepath.Join(dir, "*")) // sorted
				return all
			}
			restart := func() {
				started = time.Now()
				collector = exec.Command(os.Args[0])
				collector.Env, collector.Stderr = env, os.Stderr
				if err := collector.Start(); err != nil {
					t.Fatal(err)
				}
			}
			restart()
			t.Cleanup(func() { collector.Process.Kill(); collector.Wait() })
			begun, pool := time.Now(), make(flowcache.RecordPool, 64)
			event := time.Now().Add(time.Second)
			for d := soak(t); time.Since(begun) < d; time.Sleep(5 * time.Millisecond) {
				for want := int(time.Since(begun).Seconds() * 20000); x.next < want; {
					r := pool.Get()
					for range 100 {
						rec := *record(0)
						rec.Forward.Payload = uint64(x.next)
						r.List = append(r.List, rec)
						x.next++
					}
					x.Offer(r)
				}
				if time.Now().Before(event) {
					continue
				}
				if collector != nil {
					if !hung && rand.N(2) == 0 { // what its kernel goes on to acknowledge nobody reads
						collector.Process.Signal(syscall.SIGSTOP)
						hung = true
						event = time.Now().Add(rand.N(time.Second))
						continue
					}
					hung = false
					collector.Process.Signal(syscall.SIGKILL)
					collector.Wait()
					collector = nil
					kills++
					event = time.Now().Add(rand.N(time.Second))
					continue
				}
				restart()
				event = time.Now().Add(300*time.Millisecond + rand.N(2*time.Second))
				var m runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&m)
				memory = append(memory, m.HeapInuse)
			}
			if collector == nil {
				restart()
			}
			collector.Process.Signal(syscall.SIGCONT) // if it hangs
			eventually(t, "the last collector has a connection", func() bool {
				all := files()
				return len(all) > 0 && filepath.Base(all[len(all)-1]) >= fmt.Sprintf("%020d", started.UnixNano())
			})
			for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
				if st := x.Stats(); st.Backlog == 0 && st.Waiting == 0 && st.Encoded+st.DroppedQueue == uint64(x.next) {
					break
				}
			}
			x.stop()
			x.balance()
			eventually(t, "the last connection is read to its end", func() bool {
				all := files()
				return strings.HasSuffix(all[len(all)-1], ".whole")
			})
			seen := make([]uint8, x.next)
			repeated, most, last := 0, 0, -1
			for _, f := range files() {
				b, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				again := 0
				for i, n := range numbers(t, b) {
					if i == 0 && n > last+1 {
						t.Errorf("%s begins with record %d, and the last was %d", filepath.Base(f), n, last)
					} else if i > 0 && n != last+1 {
						t.Fatalf("record %d follows on %d", n, last)
					}
					if seen[n] > 0 {
						again++
					}
					seen[n]++
					last = n
				}
				repeated += again
				most = max(most, again)
			}
			lost := 0
			for _, n := range seen {
				if n == 0 {
					lost++
				}
			}
			st := x.Stats()
			t.Logf("%s: %d records, collector killed %d times in %s: %d lost, %d dropped and counted, %d came twice, at most %d at one restart; sent again %d",
				network, x.next, kills, time.Since(begun).Round(time.Second), lost, st.DroppedQueue+st.DroppedSpool+st.DroppedSend, repeated, most, st.Resent)
			if n := len(memory); n > 0 {
				t.Logf("heap: %d KB at first, %d KB at last, %d KB at most", memory[0]>>10, memory[n-1]>>10, slices.Max(memory)>>10)
			}
			if lost > int(st.DroppedQueue+st.DroppedSpool+st.DroppedSend) {
				t.Errorf("%d records are lost, and %d are counted", lost, st.DroppedQueue+st.DroppedSpool+st.DroppedSend)
			}
			if strings.Contains(x.text(), "spool") {
				t.Errorf("%q", x.text())
			}
		})
	}
}
