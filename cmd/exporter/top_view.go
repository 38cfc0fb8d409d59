package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/sockflow/sockflow/flowcache"
)

// topColumn is a column of a view of top. Those without a width share what the others leave.
type topColumn struct {
	title string
	width int // 0: what is left
	left  bool
	text  func(r *topRow) string
	less  func(a, b *topRow) int // the order that is shown first
}

func byText(f func(r *topRow) string) topColumn {
	return topColumn{left: true, text: f, less: func(a, b *topRow) int { return cmp.Compare(f(a), f(b)) }}
}

func titled(title string, c topColumn) topColumn {
	c.title = title
	return c
}

func byNumber[N cmp.Ordered](title string, width int, number func(r *topRow) N, text func(n N) string) topColumn {
	return topColumn{title, width, false, func(r *topRow) string { return text(number(r)) }, func(a, b *topRow) int { return cmp.Compare(number(b), number(a)) }}
}

func rate(f float64) string { return octets(uint64(f + 0.5)) }

func orBlank(f float64) string {
	if f == 0 {
		return ""
	}
	return fmt.Sprintf("%.3g", f)
}

func nonzero[N int | uint32 | uint64](n N) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

var (
	outColumn     = byNumber("OUT/S", 7, func(r *topRow) float64 { return r.out }, rate)
	inColumn      = byNumber("IN/S", 7, func(r *topRow) float64 { return r.in }, rate)
	rttColumn     = byNumber("RTT-MS", 6, func(r *topRow) float64 { return r.rtt }, orBlank)
	retransColumn = byNumber("RETR", 4, func(r *topRow) uint64 { return r.retrans }, nonzero)
	flowsColumn   = byNumber("FLOWS", 5, func(r *topRow) int { return r.flows }, nonzero)
	endContainer  = titled("CONTAINER", byText(func(r *topRow) string { return containerName(r.end) }))
	endPod        = titled("POD", byText(func(r *topRow) string { return podName(r.end.Container) }))
)

// topView is what top shows: a line for each of something.
type topView struct {
	name    string
	rows    func(flows []topFlow, scope topScope) []topRow
	columns []topColumn
	inner   string // the view that a line of this one opens
}

var topViews = []topView{
	{"flows", flowRows, []topColumn{
		titled("PROTO", byNumber("", 5, func(r *topRow) uint8 { return r.flow.key.Proto }, protocol)), outColumn, inColumn, rttColumn, retransColumn,
		titled("SOURCE", byText(func(r *topRow) string { return endpoint(r.flow.key.Src, r.flow.key.SrcPort) })),
		titled("DESTINATION", byText(func(r *topRow) string { return endpoint(r.flow.key.Dst, r.flow.key.DstPort) })),
		titled("WHO", byText(func(r *topRow) string { return who(&r.flow.src, &r.flow.dst) })),
	}, ""},
	{"processes", processRows, []topColumn{
		byNumber("PID", 7, func(r *topRow) uint32 { return r.end.Process.PID }, nonzero), flowsColumn, outColumn, inColumn, rttColumn, retransColumn,
		titled("PROGRAM", byText(func(r *topRow) string { return strings.Repeat("  ", r.depth) + programName(r.end) })),
		{"USER", 8, true, func(r *topRow) string { return userOf(r.end) }, func(a, b *topRow) int { return cmp.Compare(userOf(a.end), userOf(b.end)) }}, endContainer,
	}, "flows"},
	{"containers", containerRows, []topColumn{flowsColumn, outColumn, inColumn, rttColumn, retransColumn, endContainer, endPod}, "processes"},
	{"pods", podRows, []topColumn{flowsColumn, outColumn, inColumn, rttColumn, retransColumn, endPod}, "containers"},
}

func viewNamed(name string) *topView {
	i := slices.IndexFunc(topViews, func(v topView) bool { return v.name == name })
	if i < 0 {
		return nil
	}
	return &topViews[i]
}

// topOrder is how rows are sorted: by a column of the view (-1: the sum of both rates), perhaps the other way round.
type topOrder struct {
	column  int
	reverse bool
}

// arrange makes the lines of a view: of the scope, those that contain filter, in order.
func (v *topView) arrange(flows []topFlow, scope topScope, filter string, order topOrder, asTree bool, proc string) []topRow {
	rows := v.rows(flows, scope)
	if filter != "" {
		filter = strings.ToLower(filter)
		rows = slices.DeleteFunc(rows, func(r topRow) bool {
			return !slices.ContainsFunc(v.columns, func(c topColumn) bool { return strings.Contains(strings.ToLower(c.text(&r)), filter) })
		})
	}
	slices.SortFunc(rows, func(a, b topRow) int {
		var n int
		if order.column < 0 || order.column >= len(v.columns) {
			n = cmp.Compare(b.out+b.in, a.out+a.in)
		} else {
			n = v.columns[order.column].less(&a, &b)
		}
		if order.reverse {
			n = -n
		}
		return cmp.Or(n, cmp.Compare(a.id, b.id))
	})
	if asTree && v.name == "processes" {
		rows = tree(rows, proc)
	}
	return rows
}

// widths shares the width of a line among the columns.
func (v *topView) widths(width int) []int {
	w := make([]int, len(v.columns))
	left, texts := width, 0
	for i, c := range v.columns {
		if w[i] = c.width; c.width == 0 {
			texts++
		}
		left -= c.width + 1
	}
	for i, c := range v.columns {
		if c.width == 0 {
			w[i] = max(left/texts, 4)
			left -= w[i]
			texts--
		}
	}
	return w
}

// line formats a row, or the titles if r is nil, to the widths.
func (v *topView) line(r *topRow, widths []int, order topOrder) string {
	var b strings.Builder
	for i, c := range v.columns {
		var s string
		if r != nil {
			s = printable(c.text(r))
		} else if s = c.title; i == order.column {
			s = s[:min(len(s), widths[i]-1)] + "*"
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(fit(s, widths[i], !c.left))
	}
	return strings.TrimRight(b.String(), " ")
}

// fit makes a text exactly as wide as its column.
func fit(s string, width int, right bool) string {
	runes := []rune(s)
	if len(runes) > width {
		return string(runes[:width-1]) + "~"
	}
	pad := strings.Repeat(" ", width-len(runes))
	if right {
		return pad + s
	}
	return s + pad
}

// detail returns the full text of a row, for the foot of the screen.
func (r *topRow) detail() string {
	if f := r.flow; f != nil {
		return fmt.Sprintf("%s %s > %s  %s out, %s in  %s", protocol(f.key.Proto), endpoint(f.key.Src, f.key.SrcPort), endpoint(f.key.Dst, f.key.DstPort),
			octets(f.totalOut), octets(f.totalIn), who(&f.src, &f.dst))
	}
	s := whoIs(r.end)
	if p := r.end.Who; p != nil {
		s += "  " + p.Path
		if p.ParentPID != 0 {
			s += fmt.Sprintf("  child of %s[%d]", p.ParentPath, p.ParentPID)
		}
	}
	return s
}

// summary is the first line of the screen.
func summary(flows []topFlow) string {
	var out, in float64
	processes := map[flowcache.ProcessID]bool{}
	for i := range flows {
		f := &flows[i]
		out += f.out
		in += f.in
		for _, e := range []*flowcache.End{&f.src, &f.dst} {
			if e.Local && e.Process.PID != 0 {
				processes[e.Process] = true
			}
		}
	}
	return fmt.Sprintf("%d flows of %d processes, %s octets/s", len(flows), len(processes), rate(out+in))
}
