package main

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/sockflow/sockflow/collector"
	"github.com/sockflow/sockflow/flowcache"
)

// recordPrinter writes decoded records for people or programs.
type recordPrinter interface {
	print(records []collector.Record, options bool) error
}

// recordLines writes JSON lines.
type recordLines struct {
	w *bufio.Writer
	b []byte
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
		if _, err := p.w.Write(p.b); err != nil {
			return err
		}
	}
	return p.w.Flush()
}

// recordTable writes flows as tablePrinter does, and other records as their names and values.
type recordTable struct {
	w     *bufio.Writer
	lines int
}

func newRecordTable(w io.Writer) *recordTable { return &recordTable{w: bufio.NewWriter(w)} }

func (p *recordTable) print(records []collector.Record, options bool) error {
	for i := range records {
		r := &records[i]
		if r.Template.Options && !options {
			continue
		}
		if p.lines%headerEvery == 0 {
			fmt.Fprintf(p.w, tableFormat, "TIME", "PROTO", "SOURCE", "DESTINATION", "SENT", "RECEIVED", "END", "WHO")
		}
		p.lines++
		if src, dst := addresses(r); src.IsValid() && !r.Template.Options {
			fmt.Fprintf(p.w, tableFormat, endTime(r).Local().Format("15:04:05.000"), protocol(uint8(r.Uint("protocolIdentifier"))),
				netip.AddrPortFrom(src, uint16(r.Uint("sourceTransportPort"))),
				netip.AddrPortFrom(dst, uint16(r.Uint("destinationTransportPort"))),
				count(r, "transportOctetDeltaCount", "octetDeltaCount", "octetTotalCount", "initiatorOctets"),
				count(r, "reverseTransportOctetDeltaCount", "reverseOctetDeltaCount", "reverseOctetTotalCount", "postOctetDeltaCount", "responderOctets"),
				endReason(r), printable(whoAt(r)))
			continue
		}
		what := "data"
		if r.Template.Options {
			what = "options"
		}
		fmt.Fprintf(p.w, "%-12s %-5s", r.ExportTime.Local().Format("15:04:05.000"), what)
		for j := range r.Values {
			fmt.Fprintf(p.w, " %s=%s", r.Template.Fields[j].Name(), shown(r.Value(j)))
		}
		fmt.Fprintln(p.w)
	}
	return p.w.Flush()
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

// printable keeps what others wrote from moving the cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}
