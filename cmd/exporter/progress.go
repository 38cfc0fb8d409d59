package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mattn/go-isatty"
	"golang.org/x/sys/unix"
)

// readCount counts octets that were read.
type readCount = atomic.Int64

// countingReader counts what is read of a file.
type countingReader struct {
	f    *os.File
	n    *readCount
	quit *os.File // readable when reading is over, which may be while f is silent
}

func (r *countingReader) Read(b []byte) (int, error) {
	fds := []unix.PollFd{{Fd: int32(r.f.Fd()), Events: unix.POLLIN}, {Fd: int32(r.quit.Fd()), Events: unix.POLLIN}}
	for fds[0].Revents == 0 {
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return 0, os.NewSyscallError("poll", err)
		}
		if fds[1].Revents != 0 {
			return 0, io.EOF
		}
	}
	n, err := r.f.Read(b)
	r.n.Add(int64(n))
	return n, err
}

// progress shows on a terminal how much of the captures was read.
type progress struct{ quit, done chan struct{} }

// newProgress begins to show it if w is a terminal and the work lasts.
func newProgress(w io.Writer, c *captures) *progress {
	f, ok := w.(*os.File)
	if !ok || !isatty.IsTerminal(f.Fd()) {
		return nil
	}
	p := &progress{quit: make(chan struct{}), done: make(chan struct{})}
	go p.run(newLogWriter(f), c) // ends with stop
	return p
}

func (p *progress) stop() {
	if p != nil {
		close(p.quit)
		<-p.done
	}
}

func (p *progress) run(w io.Writer, c *captures) {
	const interval = 250 * time.Millisecond
	defer close(p.done)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	begun := time.Now()
	for shown := 0; ; {
		select {
		case <-p.quit:
			if shown > 0 {
				fmt.Fprintf(w, "\r%*s\r", shown, "")
			}
			return
		case <-tick.C:
		}
		line := progressLine(c.read.Load(), c.total, time.Since(begun), c.meter.Stats().Packets)
		fmt.Fprintf(w, "\r%-*s", shown, line)
		shown = len(line)
	}
}

// progressLine is a bar where the whole is known (total > 0).
func progressLine(read, total int64, took time.Duration, packets uint64) string {
	const width = 30
	rate := octets(uint64(float64(packets) / took.Seconds()))
	if total <= 0 {
		return fmt.Sprintf("%s packets, %s/s", octets(packets), rate)
	}
	part := min(1, float64(read)/float64(total))
	full := int(part * width)
	left := ""
	if part > 0.01 && part < 1 {
		left = fmt.Sprintf(", %s left", time.Duration(float64(took)/part*(1-part)).Round(time.Second))
	}
	return fmt.Sprintf("[%s%s] %3.0f%%, %s packets, %s/s%s", strings.Repeat("=", full), strings.Repeat(" ", width-full), 100*part, octets(packets), rate, left)
}
