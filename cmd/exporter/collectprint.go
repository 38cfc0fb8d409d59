package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sockflow/sockflow/collector"
	"github.com/sockflow/sockflow/flowcache"
)

// recordPrinter writes decoded records. Copies of them are formatted by as many goroutines as are of use, and written
// in their order by one more.
type recordPrinter struct {
	w       *bufio.Writer
	options bool // options data too

	free  chan *printJob // bounds what is under way
	work  chan *printJob // to be formatted
	order chan *printJob // to be written, in this order
	done  chan struct{}  // everything is written, or cannot be
	quit  <-chan struct{}

	mu     sync.Mutex // of what follows, and of sending
	closed bool
	err    error
}

// printJob is what a message gave.
type printJob struct {
	collector.Batch
	text  []byte
	ready chan struct{} // it is formatted
}

// recordFormat appends the text of records.
type recordFormat func(dst []byte, records []collector.Record) []byte

// keepText is how much memory a printJob keeps for the next message.
const keepText = 1 << 20

// newRecordPrinter returns a printer that formats in so many goroutines. When quit is closed it waits for w no longer.
func newRecordPrinter(w io.Writer, format recordFormat, workers int, options bool, quit <-chan struct{}) *recordPrinter {
	n := 4 * (workers + 1)
	p := &recordPrinter{
		w: bufio.NewWriterSize(w, 64<<10), options: options, free: make(chan *printJob, n), work: make(chan *printJob, n), order: make(chan *printJob, n),
		done: make(chan struct{}), quit: quit,
	}
	for range n {
		p.free <- &printJob{ready: make(chan struct{}, 1)}
	}
	for range workers {
		go func() { // ends when work is closed
			for b := range p.work {
				b.text = format(b.text[:0], b.Records)
				b.ready <- struct{}{}
			}
		}()
	}
	go p.write() // ends when order is closed; where w takes nothing, with the program
	return p
}

// write writes what is formatted. What waits meanwhile goes out together.
func (p *recordPrinter) write() {
	defer close(p.done)
	for b := range p.order {
		<-b.ready
		_, err := p.w.Write(b.text)
		if len(p.order) == 0 && err == nil {
			err = p.w.Flush()
		}
		if err != nil {
			p.mu.Lock()
			p.err = err
			p.mu.Unlock()
		}
		b.Reset()
		if cap(b.text) > keepText {
			b.text = nil
		}
		p.free <- b
	}
}

var errStopped = errors.New("it is over")

// print takes the records of a message. It returns the error of an earlier one that could not be written.
func (p *recordPrinter) print(records []collector.Record) error {
	var b *printJob
	select {
	case b = <-p.free:
	case <-p.quit:
		return errStopped
	}
	for i := range records {
		if !records[i].Template.Options || p.options {
			b.Append(&records[i])
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.err != nil || len(b.Records) == 0 {
		b.Reset()
		p.free <- b
		return p.err
	}
	p.order <- b // neither waits: there are no more than they have room for
	p.work <- b
	return nil
}

// close waits until everything is written, or quit is closed.
func (p *recordPrinter) close() error {
	p.mu.Lock()
	p.closed = true
	close(p.work)
	close(p.order)
	p.mu.Unlock()
	select {
	case <-p.done:
	case <-p.quit:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// formatLines makes JSON lines.
func formatLines(dst []byte, records []collector.Record) []byte {
	begin := len(dst)
	for i := range records {
		dst = append(records[i].AppendJSON(dst), '\n')
	}
	// Escaped behind it, and then moved to its place: without memory of its own.
	end := len(dst)
	dst = appendEscaped(dst, dst[begin:end])
	return append(dst[:begin], dst[end:]...)
}

// recordTable shows flows as tableForm does, and other records as their names and values.
type recordTable struct {
	lines int
	line  []byte
}

func (p *recordTable) format(dst []byte, records []collector.Record) []byte {
	for i := range records {
		r := &records[i]
		if p.lines%headerEvery == 0 {
			dst = append(appendTableHeader(dst), '\n')
		}
		p.lines++
		p.line = appendRecord(p.line[:0], r)
		dst = append(appendPrintable(dst, p.line), '\n')
	}
	return dst
}

// appendRecord appends the line of a record, as it was received.
func appendRecord(line []byte, r *collector.Record) []byte {
	if src, dst := addresses(r); src.IsValid() && !r.Template.Options {
		return fmt.Appendf(line, tableFormat, endTime(r).Local().Format("15:04:05.000"), protocol(uint8(r.Uint("protocolIdentifier"))),
			netip.AddrPortFrom(src, uint16(r.Uint("sourceTransportPort"))),
			netip.AddrPortFrom(dst, uint16(r.Uint("destinationTransportPort"))),
			count(r, "transportOctetDeltaCount", "octetDeltaCount", "octetTotalCount", "initiatorOctets"),
			count(r, "reverseTransportOctetDeltaCount", "reverseOctetDeltaCount", "reverseOctetTotalCount", "postOctetDeltaCount", "responderOctets"),
			endReason(r), whoAt(r))
	}
	what := "data"
	if r.Template.Options {
		what = "options"
	}
	line = fmt.Appendf(line, "%-12s %-5s", r.ExportTime.Local().Format("15:04:05.000"), what)
	for j := range r.Values {
		line = fmt.Appendf(line, " %s=%s", r.Template.Fields[j].Name(), shown(r.Value(j)))
	}
	return line
}

// addresses returns those of a flow. A template may have both families, and leave one of them at zero.
func addresses(r *collector.Record) (src, dst netip.Addr) {
	src, dst = r.Addr("sourceIPv4Address"), r.Addr("destinationIPv4Address")
	src6, dst6 := r.Addr("sourceIPv6Address"), r.Addr("destinationIPv6Address")
	known := func(a netip.Addr) bool { return a.IsValid() && !a.IsUnspecified() }
	if !src.IsValid() || !known(src) && !known(dst) && (known(src6) || known(dst6)) {
		return src6, dst6
	}
	return src, dst
}

// endTime returns the end of a flow, or its Export Time where the end is not known.
func endTime(r *collector.Record) time.Time {
	for _, name := range []string{"flowEndMilliseconds", "flowEndMicroseconds", "flowEndNanoseconds", "flowEndSeconds"} {
		if t := r.Time(name); !t.IsZero() {
			return t
		}
	}
	return r.ExportTime
}

// count shows the first of the counters that the record has.
func count(r *collector.Record, names ...string) string {
	for _, name := range names {
		if n, ok := r.Get(name).(uint64); ok {
			return octets(n)
		}
	}
	return "-"
}

func endReason(r *collector.Record) string {
	n, ok := r.Get("flowEndReason").(uint64)
	if !ok {
		return "-"
	}
	return flowcache.EndReason(n).String()
}

// whoAt names the ends of a flow as far as the record does.
func whoAt(r *collector.Record) string {
	source, dest := whoIsAt(r, "source"), whoIsAt(r, "destination")
	user := strings.TrimSpace(r.Text("userName") + " " + r.Text("virtualStationName"))
	switch {
	case source != "" && dest != "":
		return source + " → " + dest
	case dest != "":
		return "→ " + dest
	case source != "":
		return source + " →"
	}
	return user
}

func whoIsAt(r *collector.Record, side string) string {
	e := flowcache.End{UID: flowcache.NoID, Process: flowcache.ProcessID{PID: uint32(r.Uint(side + "ProcessId"))}}
	e.Who = &flowcache.Process{Path: r.Text(side + "ProcessPath"), Name: r.Text(side + "ProcessName"), UserName: r.Text(side + "UserName")}
	e.Container = &flowcache.Workload{
		ContainerID: r.Text(side + "ContainerId"), ContainerName: r.Text(side + "ContainerName"),
		PodName: r.Text(side + "PodName"), PodNamespace: r.Text(side + "PodNamespace"), ServiceUnit: r.Text(side + "ServiceUnit"),
	}
	if uid, ok := r.Get(side + "UserId").(uint64); ok {
		e.UID = uint32(uid)
	}
	if e.Process.PID == 0 && e.Who.Path == "" && e.Who.Name == "" && *e.Container == (flowcache.Workload{}) {
		return ""
	}
	return whoIs(&e)
}

// shown is a value for people.
func shown(v any) string {
	switch v := v.(type) {
	case string:
		return strconv.Quote(v)
	case []byte:
		return fmt.Sprintf("%x", v)
	case time.Time:
		return v.Format("2006-01-02T15:04:05.000Z07:00")
	case *collector.List:
		return fmt.Sprintf("%d×%s", len(v.Values), v.Field.Name())
	case *collector.Records:
		return fmt.Sprintf("%d records", len(v.List))
	}
	return fmt.Sprint(v)
}
