package main

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sockflow/sockflow/templates"
)

// tsharkColumn is Wireshark's dissector.
type tsharkColumn struct{ sinks }

func (c *tsharkColumn) url(r *interopRow) string { return c.udpURL(r) + c.tcpURL(r) }

var (
	tsharkFlow   = regexp.MustCompile(`(?m)^ +Flow \d+.*$`)
	tsharkFrame  = regexp.MustCompile(`(?m)^Frame \d+`)
	tsharkLine   = regexp.MustCompile(`(?m)^ +(\[?[A-Za-z_ ]+): (.*)$`)
	tsharkNumber = regexp.MustCompile(`^(?:\(([^)]*)\) )?Type (\d+): Value \(hex bytes\): (.*)$`)
	tsharkPEN    = map[string]uint32{"ntop": templates.PENNtop, "Project Antrea": templates.PENAntrea, "Example Enterprise Number for Documentation Use": templates.PENExample}
)

func (c *tsharkColumn) flows(rows []*interopRow) map[*interopRow]map[string]sight {
	var datagrams [][]byte
	streams := map[int][]byte{}
	for _, r := range rows {
		if r.transport == "tcp" {
			streams[r.index] = c.tcp[r.index].bytes()
		} else {
			datagrams = append(datagrams, c.udp[r.index].messages()...)
		}
	}
	flows := map[string]sight{}
	numbers := allWhoNumbers()
	for _, out := range []string{tshark(c.t, datagrams), tsharkStreams(c.t, streams)} {
		for _, frame := range tsharkFrame.Split(out, -1) {
			boot := tsharkBoot(frame)
			for _, text := range tsharkFlow.Split(frame, -1)[1:] {
				if key, s := tsharkView(text, boot, numbers); key != "" {
					flows[key] = s
				}
			}
		}
	}
	return byRow(rows, flows)
}

// tsharkBoot is when the uptime of a NetFlow v9 message was 0, Unix milliseconds.
func tsharkBoot(frame string) int64 {
	f := map[string]string{}
	for _, m := range tsharkLine.FindAllStringSubmatch(frame, -1) {
		f[m[1]] = m[2]
	}
	up, err1 := time.ParseDuration(strings.TrimSuffix(f["SysUptime"], " seconds") + "s")
	at, err2 := strconv.ParseInt(f["CurrentSecs"], 10, 64)
	if err1 != nil || err2 != nil {
		return 0
	}
	return at*1000 - up.Milliseconds()
}

func tsharkView(text string, boot int64, numbers []whoNumber) (key string, s sight) {
	s = sight{}
	var src, dst string
	for _, m := range tsharkLine.FindAllStringSubmatch(text, -1) {
		name, v := m[1], m[2]
		bare, note, _ := strings.Cut(v, " (")
		reverse := strings.HasPrefix(note, "Reverse")
		switch name {
		case "SrcPort":
			src = v
		case "DstPort":
			dst = v
		case "Octets", "Packets":
			what := strings.ToLower(name)
			if reverse {
				what = "reverse" + name
			}
			s[what] = bare
		case "Post Octets", "Post Packets":
			s["reverse"+strings.TrimPrefix(name, "Post ")] = bare
		case "Transport_Octet_Delta_Count":
			if !reverse {
				s["payload"] = bare
			}
		case "StartTime", "EndTime":
			what := map[string]string{"StartTime": "start", "EndTime": "end"}[name]
			if at, err := time.Parse("Jan _2, 2006 15:04:05.000000000 MST", v); err == nil {
				s[what] = strconv.FormatInt(at.UnixMilli(), 10)
			} else if d, err := time.ParseDuration(strings.TrimSuffix(v, " seconds") + "s"); err == nil {
				s[what] = strconv.FormatInt(boot+d.Milliseconds(), 10)
			}
		case "Src process PID", "Dst process PID":
			s.set("pid", v)
		case "Src process name", "Dst process name":
			s.set("path", v)
		case "Src process user name", "Dst process user name", "User Name":
			s.set("user", v)
		case "Virtual Station Name":
			s.set("pod", v)
		case "Enterprise Private entry", "Unknown Field Type":
			n := tsharkNumber.FindStringSubmatch(v)
			if n == nil || strings.Trim(n[3], "0 …") == "" {
				continue
			}
			for _, w := range numbers {
				if w.pen == tsharkPEN[n[1]] && strconv.Itoa(int(w.id)) == n[2] {
					s["hex "+w.what] = n[3]
				}
			}
		}
	}
	if src == "" {
		return "", nil
	}
	return flowKey(src, dst), s
}

// tsharkStreams is tshark of TCP streams, each from a port of its own.
func tsharkStreams(t *testing.T, streams map[int][]byte) string {
	t.Helper()
	var packets [][]byte
	for i, b := range streams {
		seq := uint32(1)
		for len(b) > 0 {
			n := min(len(b), 32768)
			packets = append(packets, tcpSegment(uint16(40000+i), 4739, seq, b[:n]))
			seq, b = seq+uint32(n), b[n:]
		}
	}
	return tsharkPackets(t, packets, "tcp.port==4739,cflow")
}
