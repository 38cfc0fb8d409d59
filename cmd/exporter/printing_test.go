package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
)

// offered gives p n records, batch by batch, and returns how many those are.
func offered(p *printing, batches, each int) uint64 {
	for range batches {
		r := flowcache.RecordPool(nil).Get()
		for range each {
			r.List = append(r.List, *sampleRecord())
		}
		p.Offer(r)
	}
	return uint64(batches * each)
}

// identity is what must hold of a destination at any time: nothing is lost in silence.
func checkIdentity(t *testing.T, given uint64, st ipfix.Stats) {
	t.Helper()
	if st.Encoded+st.DroppedQueue+st.Waiting != given || st.Made != st.Records+st.DroppedSend {
		t.Errorf("%d records given, %+v", given, st)
	}
}

// TestPrintingUnread: of an output that nobody reads, what the queue does not hold is dropped and counted, nothing
// waits, and the end comes.
func TestPrintingUnread(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	w.Fd() // blocking, as standard output is
	p := newPrinting("json:-", newJSONForm(), w, nil, 1000, func(bool, string) {})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { p.Run(ctx); close(ended) }() // ends with ctx
	given := offered(p, 50, 100)
	eventually(t, "the queue is full", func() bool { given += offered(p, 1, 100); return p.Stats().DroppedQueue > 0 })
	begun := time.Now()
	stop()
	select {
	case <-ended:
	case <-time.After(patience()):
		t.Fatal("it does not end")
	}
	st := p.Stats()
	checkIdentity(t, given, st)
	t.Logf("ended after %s: %+v", time.Since(begun), st)
}

// fussy takes so many octets of each write as next says, and fails where that is less than there are.
type fussy struct {
	bytes.Buffer
	next func() int
}

func (f *fussy) Write(b []byte) (int, error) {
	n := min(f.next(), len(b))
	f.Buffer.Write(b[:n])
	if n < len(b) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

// TestPrintingTorn: a disk that is full, and has room again, leaves whole lines, as many as are counted.
func TestPrintingTorn(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		full := true
		out := &fussy{next: func() int {
			if !full || rnd.IntN(3) == 0 {
				return 1 << 30
			}
			return rnd.IntN(3000)
		}}
		var said []string
		p := newPrinting("json:x", newJSONForm(), out, nil, printQueue, func(ok bool, line string) { said = append(said, line) })
		ctx, stop := context.WithCancel(t.Context())
		given := offered(p, 20, 1+rnd.IntN(4))
		stop()
		p.Run(ctx)
		full = false
		given += offered(p, 1, 1)
		p.Run(ctx)
		st := p.Stats()
		checkIdentity(t, given, st)
		lines := 0
		for line := range strings.Lines(out.String()) {
			if !json.Valid([]byte(line)) || !strings.HasSuffix(line, "\n") {
				t.Fatalf("seed %d: torn: %q", seed, line)
			}
			lines++
		}
		if uint64(lines) != st.Records {
			t.Fatalf("seed %d: %d lines, %+v", seed, lines, st)
		}
		if st.Errors > 0 && !strings.Contains(strings.Join(said, "\n"), "no space left on device; trying again") {
			t.Errorf("%q", said)
		}
	}
}

// TestPrintingReaderGone: nothing is printed any more, which is said once and counted.
func TestPrintingReaderGone(t *testing.T) {
	said := 0
	p := newPrinting("json:-", newJSONForm(), writerFunc(func([]byte) (int, error) { return 0, &os.PathError{Err: syscall.EPIPE} }), nil, printQueue,
		func(bool, string) { said++ })
	ctx, stop := context.WithCancel(t.Context())
	given := offered(p, 3, 7)
	stop()
	p.Run(ctx)
	<-p.closed
	checkIdentity(t, given, p.Stats())
	if st := p.Stats(); said != 1 || st.DroppedSend != 7 || st.DroppedQueue != 14 {
		t.Errorf("said %d times, %+v", said, st)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// TestLogUnread: a log without a reader holds nothing up, and says how many lines it lost when it is read again.
func TestLogUnread(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	w.Fd()
	log := newLogger(w, "info")
	begun := time.Now()
	line := strings.Repeat("x", 1000)
	for range 2000 {
		log.Info(line)
	}
	if took := time.Since(begun); took > patience()/2 {
		t.Errorf("2000 lines took %s", took)
	}
	var got syncBuffer
	go io.Copy(&got, r) // ends with w
	eventually(t, "the log says what it lost, and goes on", func() bool {
		log.Info("last")
		return strings.Contains(got.String(), "lines of the log are lost") && strings.HasSuffix(got.String(), "msg=last\n")
	})
}

// TestLogLate: a line that takes longer than the log waits is not lost, if it is written in the end; of those that came meanwhile the next one says so.
func TestLogLate(t *testing.T) {
	var got syncBuffer
	begun, gate := make(chan struct{}, 10), make(chan struct{})
	log := newLogWriter(writerFunc(func(b []byte) (int, error) {
		begun <- struct{}{}
		<-gate
		return got.Write(b)
	}))
	log.Write([]byte("first\n"))
	<-begun
	log.Write([]byte("second\n"))
	close(gate)
	eventually(t, "the first is written", log.p.free)
	log.Write([]byte("third\n"))
	want := "first\nlevel=WARN msg=\"lines of the log are lost: nobody read them\" lines=1\nthird\n"
	eventually(t, "it is said what is lost", func() bool { return got.String() == want })
	log.p.free()
	if eventually(t, "nothing is under way", log.p.free); log.lost != log.under {
		t.Errorf("%d lines are lost", log.lost-log.under)
	}
}

// unread is a pipe that is not read, for standard output.
func unread(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096)
	return w
}

// TestBadDestination: standard output that nobody reads, a full disk and a pipe whose reader went harm themselves
// alone: a collector beside them gets every record, what they lost is counted, and SIGTERM ends the program.
func TestBadDestination(t *testing.T) {
	needRoot(t)
	const connections = 3000
	for _, tc := range []struct {
		name, url, said string
		broken          bool // the reader of standard output is gone
	}{
		{name: "unread", url: "json:-?queue=100", said: ""},
		{name: "full", url: "json:/dev/full", said: "no space left on device"},
		{name: "gone", url: "json:-", said: "its reader has gone", broken: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sink := newUDPSink(t)
			port := freePort(t)
			cmd := exec.Command(buildExporter(t), "--metrics", fmt.Sprintf("127.0.0.1:%d", port), "--snapshot-interval", "1s", "--interface-interval", "0",
				"--containerd", "none", "--docker", "none", "-c", tc.url, "-c", fmt.Sprintf("udp://127.0.0.1:%d", sink.port()))
			r := launchWith(t, cmd, unread(t), tc.broken)
			eventually(t, "the exporter meters", func() bool { return strings.Contains(r.errs.String(), "metering by") })
			srv := start(t, "bad-server", "", "server", "127.0.0.1", "10")
			tcp := strconv.Itoa(srv.next().TCP)
			cl := start(t, "bad-client", "", "client", "127.0.0.1", tcp, "0", strconv.Itoa(connections), "100")
			cl.end()
			srv.end()
			name, _, _ := strings.Cut(tc.url, "?")
			label := fmt.Sprintf(`collector="%s"`, name)
			lost := func(m map[string]float64) float64 {
				return sum(m, "sockflow_collector_records_total", label+`,fate="dropped`) + sum(m, "sockflow_collector_data_records_total", label+`,fate="dropped`)
			}
			var m map[string]float64
			eventually(t, "the loss is counted, and the collector has every connection", func() bool {
				m = scrape(t, port)
				return lost(m) > 0 && flowsTo(t, sink, tcp) >= connections
			})
			made := sum(m, "sockflow_records_total", "")
			for _, collector := range []string{label, `collector="udp`} {
				given := sum(m, "sockflow_collector_records_total", collector) + sum(m, "sockflow_collector_waiting_records", collector)
				if given > made || given == 0 {
					t.Errorf("%s: %v of %v records accounted for", collector, given, made)
				}
			}
			t.Logf("%v records, %v lost", made, lost(m))
			if !strings.Contains(r.errs.String(), tc.said) || strings.Count(r.errs.String(), name) > 1 {
				t.Errorf("the log says %q %d times\n%s", tc.said, strings.Count(r.errs.String(), name), r.errs.String())
			}
			r.stop()
			if !strings.Contains(r.errs.String(), "records were dropped") {
				t.Errorf("the end does not say what was lost\n%s", r.errs.String())
			}
		})
	}
}

// flowsTo counts the data of flows to a port that a sink has, by our decoder of another room.
func flowsTo(t *testing.T, sink *udpSink, port string) int {
	t.Helper()
	n := 0
	for _, f := range goflow2(t, sink.messages()) {
		if f["0:11"] == port {
			n++
		}
	}
	return n
}

// launchWith is launch with another standard output.
func launchWith(t *testing.T, cmd *exec.Cmd, out *os.File, broken bool) *running {
	t.Helper()
	r := &running{t: t, cmd: cmd, exited: make(chan error, 1)}
	cmd.Stdout, cmd.Stderr = out, &r.errs
	if broken {
		rd, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		rd.Close()
		defer w.Close()
		cmd.Stdout = w
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { r.exited <- cmd.Wait() }() // ends with the program
	t.Cleanup(func() { cmd.Process.Kill() })
	return r
}

// TestUnreadEnds: SIGTERM ends every command whose output nobody reads.
func TestUnreadEnds(t *testing.T) {
	needRoot(t)
	captures := captureFiles(t)
	var many []string
	for range 30 {
		many = append(many, captures...)
	}
	dump := filepath.Join(t.TempDir(), "flows.ipfix")
	replayed(t, append([]string{"-c", "file:" + dump}, many...)...)
	for name, args := range map[string][]string{
		"run":     {"run", "--metrics", "none", "--interface-interval", "100ms", "--snapshot-interval", "100ms", "--active-timeout", "100ms"},
		"replay":  append([]string{"replay"}, many...),
		"top":     {"top", "--batch", "--width", "400", "--interval", "100ms"},
		"collect": {"collect", dump},
	} {
		for _, lost := range []string{"stdout", "both"} {
			t.Run(name+"-"+lost, func(t *testing.T) {
				t.Parallel()
				out := unread(t)
				cmd := exec.Command(buildExporter(t), args...)
				cmd.Stdout = out
				if lost == "both" {
					cmd.Stderr = out
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				exited := make(chan error, 1)
				go func() { exited <- cmd.Wait() }() // ends with the program
				defer cmd.Process.Kill()
				fullPipe(t, out)
				cmd.Process.Signal(syscall.SIGUSR1)
				cmd.Process.Signal(syscall.SIGTERM)
				select {
				case err := <-exited:
					if err != nil {
						t.Error(err)
					}
				case <-time.After(patience()):
					t.Error("it does not end")
				}
			})
		}
	}
}

// fullPipe waits until no more fits into a pipe.
func fullPipe(t *testing.T, w *os.File) {
	t.Helper()
	raw, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pipe is full", func() bool {
		full := false
		raw.Control(func(fd uintptr) { full = !writable(int(fd)) })
		return full
	})
}

// TestReaderGone: a program whose only output has no reader any more has nothing to do.
func TestReaderGone(t *testing.T) {
	needRoot(t)
	captures := captureFiles(t)
	for name, args := range map[string][]string{
		"run":    {"run", "--metrics", "none", "--interface-interval", "100ms"},
		"replay": append([]string{"replay", "--log-level", "error"}, captures...),
		"list":   {"list"},
	} {
		t.Run(name, func(t *testing.T) {
			r := launchWith(t, exec.Command(buildExporter(t), args...), nil, true)
			select {
			case err := <-r.exited:
				if err != nil && !errors.Is(err, os.ErrProcessDone) {
					t.Errorf("%v\n%s", err, r.errs.String())
				}
			case <-time.After(patience()):
				t.Error("it does not end")
			}
		})
	}
}

// writable reports whether a write to fd would find room now.
func writable(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, _ := unix.Poll(p, 0)
	return n > 0 && p[0].Revents&unix.POLLOUT != 0
}
