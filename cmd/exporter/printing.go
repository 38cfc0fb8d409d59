package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
)

// printing is a destination that records are printed to: standard output or a file. As an exporter it has a queue, so
// that nothing waits for who reads the output, and counts what it drops.
type printing struct {
	name   string
	form   form
	queue  chan *flowcache.Records
	most   int64 // records in queue
	out    *patientWriter
	file   io.Closer // nil: standard output
	notify func(ok bool, line string)
	closed chan struct{} // the reader of the output has gone (EPIPE): nothing is printed any more

	tail   []byte // of a line that could be written in part
	buf    []byte
	failed atomic.Bool // the last write failed, which was logged

	waiting                                     atomic.Int64
	encoded, printed, droppedQueue, droppedSend atomic.Uint64
	made, writes, octets, errs                  atomic.Uint64
}

// form appends records and interfaces as lines.
type form interface {
	records(dst []byte, list []flowcache.Record) []byte
	interfaces(dst []byte, list []flowcache.Interface) []byte
}

const (
	printQueue = 1 << 16                 // records, as of an exporter
	printDrain = 1500 * time.Millisecond // for what waits at the end, as an exporter has
	keepBuffer = 1 << 20                 // octets of a buffer that is used again
)

func newPrinting(name string, f form, w io.Writer, file io.Closer, queue int, notify func(ok bool, line string)) *printing {
	return &printing{
		name: name, form: f, queue: make(chan *flowcache.Records, 4096), most: int64(queue), out: &patientWriter{w: w}, file: file, notify: notify,
		closed: make(chan struct{}),
	}
}

// Name is the destination as users write it.
func (p *printing) Name() string { return p.name }

// Healthy reports whether the last records could be written. Safe for concurrent use.
func (p *printing) Healthy() bool { return !p.failed.Load() }

// Offer gives records to be printed, and releases them. It never waits: when too many wait already they are dropped and
// counted.
func (p *printing) Offer(r *flowcache.Records) bool {
	if p.waiting.Add(int64(len(r.List))) <= p.most {
		select {
		case p.queue <- r:
			return true
		default:
		}
	}
	p.drop(r)
	return false
}

func (p *printing) drop(r *flowcache.Records) {
	n := len(r.List)
	p.waiting.Add(-int64(n))
	p.droppedQueue.Add(uint64(n))
	r.Release()
}

// Stats returns the counts so far. Safe for concurrent use.
func (p *printing) Stats() ipfix.Stats {
	return ipfix.Stats{
		Encoded: p.encoded.Load(), Waiting: uint64(max(0, p.waiting.Load())), DroppedQueue: p.droppedQueue.Load(),
		Made: p.made.Load(), Records: p.printed.Load(), DroppedSend: p.droppedSend.Load(),
		Messages: p.writes.Load(), Octets: p.octets.Load(), Errors: p.errs.Load(),
	}
}

// Run prints what is offered until ctx ends, then what waits, for at most 1.5 s, and closes the file.
func (p *printing) Run(ctx context.Context) error {
	late, done := make(chan struct{}), make(chan struct{})
	defer close(done)
	defer context.AfterFunc(ctx, func() { // ends with Run
		select {
		case <-time.After(printDrain):
			close(late)
		case <-done:
		}
	})()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case r := <-p.queue:
			p.print(r, late)
		}
	}
	for {
		select {
		case r := <-p.queue:
			select {
			case <-late:
				p.drop(r)
			default:
				p.print(r, late)
			}
			continue
		default:
		}
		break
	}
	if p.file != nil && !p.out.busy {
		return p.file.Close()
	}
	return nil
}

// print writes a batch, unless it cannot be written before late is closed.
func (p *printing) print(r *flowcache.Records, late <-chan struct{}) {
	n := len(r.List)
	select {
	case <-p.closed:
		p.drop(r)
		return
	default:
	}
	p.buf = p.form.records(append(p.buf[:0], p.tail...), r.List)
	p.buf = p.form.interfaces(p.buf, r.Interfaces)
	if lines := bytes.Count(p.buf[len(p.tail):], []byte("\n")); lines > 0 {
		p.write(lines, late)
	}
	p.encoded.Add(uint64(n))
	p.waiting.Add(-int64(n))
	r.Release()
	if cap(p.buf) > keepBuffer {
		p.buf = nil
	}
}

// write writes buf, which begins with tail. Of a write that fails in the middle of a line the rest of the line is
// written before anything else.
func (p *printing) write(lines int, late <-chan struct{}) {
	before := len(p.tail)
	n, err := p.out.write(p.buf, late)
	p.made.Add(uint64(lines))
	p.octets.Add(uint64(n))
	if err == nil {
		p.tail = p.tail[:0]
		p.writes.Add(1)
		p.printed.Add(uint64(lines))
		if p.failed.Swap(false) {
			p.notify(true, fmt.Sprintf("collector %s: takes records again", p.name))
		}
		return
	}
	p.errs.Add(1)
	done := p.remember(before, n)
	p.printed.Add(uint64(done))
	p.droppedSend.Add(uint64(lines - done))
	switch {
	case errors.Is(err, syscall.EPIPE):
		close(p.closed)
		p.notify(false, fmt.Sprintf("collector %s: its reader has gone; nothing is printed any more", p.name))
	case errors.Is(err, errLate):
	case !p.failed.Swap(true):
		p.notify(false, fmt.Sprintf("collector %s: %s; trying again", p.name, reasonOf(err)))
	}
}

// remember keeps the rest of a line that was written in part, and returns how many lines were written: that one counts.
// Of buf n octets were written; the first before octets are the rest of an earlier line.
func (p *printing) remember(before, n int) (lines int) {
	if n < before {
		p.tail = append(p.tail[:0], p.buf[n:before]...)
		return 0
	}
	p.tail = p.tail[:0]
	lines = bytes.Count(p.buf[before:n], []byte("\n"))
	if n > before && p.buf[n-1] != '\n' {
		rest := p.buf[n:]
		p.tail = append(p.tail, rest[:bytes.IndexByte(rest, '\n')+1]...)
		lines++
	}
	return lines
}

// readerGone reports whether standard output or a pipe is the only destination and its reader has seen enough.
func readerGone(exporters []exporter) <-chan struct{} {
	if len(exporters) == 1 {
		if p, ok := exporters[0].(*printing); ok {
			return p.closed
		}
	}
	return nil
}

// patientWriter writes to w in a goroutine of its own: a write that does not end, to a pipe that is not read or a
// terminal that was stopped, holds up who calls it no longer than it is willing to wait.
type patientWriter struct {
	w      io.Writer
	buf    []byte // of the write that is under way
	busy   bool   // it was given up, and has not ended
	result chan written
}

type written struct {
	n   int
	err error
}

// errLate is the error of a write that was given up.
var errLate = errors.New("nothing is read there")

// free reports whether no write is under way.
func (p *patientWriter) free() bool {
	if p.busy {
		select {
		case <-p.result:
			p.busy = false
		default:
		}
	}
	return !p.busy
}

// write writes b, which it copies, and waits until that is done or late is closed.
func (p *patientWriter) write(b []byte, late <-chan struct{}) (int, error) {
	if p.result == nil {
		p.result = make(chan written, 1)
	}
	if p.busy {
		select {
		case <-p.result:
		default:
			select {
			case <-p.result:
			case <-late:
				return 0, errLate
			}
		}
		p.busy = false
	}
	p.buf = append(p.buf[:0], b...)
	go func() { // ends with the write, which may be with the program
		n, err := p.w.Write(p.buf)
		p.result <- written{n, err}
	}()
	select {
	case r := <-p.result:
		if cap(p.buf) > keepBuffer {
			p.buf = nil
		}
		return r.n, r.err
	case <-late:
		p.busy = true
		return 0, errLate
	}
}

// untilDone is w for as long as ctx lives: a write that is under way when ctx ends is given up.
func untilDone(ctx context.Context, w io.Writer) io.Writer {
	return &untilDoneWriter{patientWriter{w: w}, ctx.Done()}
}

type untilDoneWriter struct {
	p    patientWriter
	done <-chan struct{}
}

func (u *untilDoneWriter) Write(b []byte) (int, error) { return u.p.write(b, u.done) }

// logWriter is where the log goes. A line that is not read within logPatience is dropped, and so are those that follow
// until there is a reader: the log holds nothing else up.
type logWriter struct {
	p     patientWriter
	lost  int
	under int // of these, the ones that are not lost if the write that was given up ends: it has a line, or says so
}

const logPatience = 100 * time.Millisecond

func newLogWriter(w io.Writer) *logWriter { return &logWriter{p: patientWriter{w: w}} }

// Write writes a line; its error is nil. One goroutine may write at a time.
func (l *logWriter) Write(line []byte) (int, error) {
	if !l.p.free() {
		l.lost++
		return len(line), nil
	}
	l.lost, l.under = l.lost-l.under, 0
	late := make(chan struct{})
	defer time.AfterFunc(logPatience, func() { close(late) }).Stop()
	out := line
	if l.lost > 0 {
		out = fmt.Appendf(nil, "level=WARN msg=\"lines of the log are lost: nobody read them\" lines=%d\n%s", l.lost, line)
	}
	if _, err := l.p.write(out, late); errors.Is(err, errLate) {
		l.lost++
		l.under = l.lost
	} else {
		l.lost = 0
	}
	return len(line), nil
}
