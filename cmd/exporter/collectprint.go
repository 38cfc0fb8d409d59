package main

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/sockflow/sockflow/collector"
	"github.com/sockflow/sockflow/flowcache"
)

// recordPrinter writes decoded records for people or programs.
type recordPrinter interface {
	print(records []collector.Record, options bool) error
}

// recordLines writes JSON lines.
type recordLines struct {
	w          *bufio.Writer
	b, escaped []byte
}

func newRecordLines(w io.Writer) *recordLines {
	return &recordLines{w: bufio.NewWriterSize(w, 64<<10)}
}

func (p *recordLines) print(records []collector.Record, options bool) error {
	for i := range records {
		if records[i].Template.Options && !options {
			continue
		}
		p.b = append(records[i].AppendJSON(p.b[:0]), '\n')
		p.escaped = appendEscaped(p.escaped[:0], p.b)
		if _, err := p.w.Write(p.escaped); err != nil {
			return err
		}
	}
	return p.w.Flush()
}

// recordTable writes flows as tableForm does, and other records as their names and values.
type recordTable struct {
	w       *bufio.Writer
	lines   int
	b, line []byte
}

func newRecordTable(w io.Writer) *recordTable { return &recordTable{w: bufio.NewWriter(w)} }

func (p *recordTable) print(records []collector.Record, options bool) error {
	for i := range records {
		r := &records[i]
		if r.Template.Options && !options {
			continue
		}
		if p.lines%headerEvery == 0 {
			p.b = appendTableHeader(p.b[:0])
			p.writeLine()
		}
		p.lines++
		if src := address(r, "source"); src.IsValid() && !r.Template.Options {
			p.b = fmt.Appendf(p.b[:0], tableFormat, endTime(r).Local().Format("15:04:05.000"), protocol(uint8(r.Uint("protocolIdentifier"))),
				netip.AddrPortFrom(src, uint16(r.Uint("sourceTransportPort"))),
				netip.AddrPortFrom(address(r, "destination"), uint16(r.Uint("destinationTransportPort"))),
				count(r, "transportOctetDeltaCount", "octetDeltaCount", "octetTotalCount", "initiatorOctets"),
				count(r, "reverseTransportOctetDeltaCount", "reverseOctetDeltaCount", "reverseOctetTotalCount", "postOctetDeltaCount", "responderOctets"),
				endReason(r), whoAt(r))
			p.writeLine()
			continue
		}
		what := "data"
		if r.Template.Options {
			what = "options"
		}
		p.b = fmt.Appendf(p.b[:0], "%-12s %-5s", r.ExportTime.Local().Format("15:04:05.000"), what)
		for j := range r.Values {
			p.b = fmt.Appendf(p.b, " %s=%s", r.Template.Fields[j].Name(), shown(r.Value(j)))
		}
		p.writeLine()
	}
	return p.w.Flush()
}

// writeLine writes b; the error is that of Flush.
func (p *recordTable) writeLine() {
	p.line = append(appendPrintable(p.line[:0], p.b), '\n')
	p.w.Write(p.line)
}

func address(r *collector.Record, side string) netip.Addr {
	if a := r.Addr(side + "IPv4Address"); a.IsValid() {
		return a
	}
	return r.Addr(side + "IPv6Address")
}

// endTime is the end of a flow, or when it was told where that is not known.
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
