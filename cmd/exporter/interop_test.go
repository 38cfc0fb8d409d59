package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
	"github.com/sockflow/sockflow/templates"
)

var updateInterop = flag.Bool("update-interop", false, "write the table of docs/interop.md anew")

// interopRow is a way to send records: a line of the table.
type interopRow struct {
	index     int
	proto     ipfix.Protocol
	transport string // udp, tcp, tls, dtls, file
	dialect   templates.Dialect
	uniflow   bool
}

var dialectNames = map[templates.Dialect]string{templates.Known: "known", templates.Native: "native", templates.IANA: "iana"}

func (r *interopRow) cells() []string {
	proto, direction := "IPFIX", "biflow"
	if r.proto == ipfix.NetFlowV9 {
		proto = "v9"
	}
	if r.uniflow {
		direction = "uniflow"
	}
	return []string{proto, strings.ToUpper(r.transport), dialectNames[r.dialect], direction}
}

// interopRows: every protocol, transport, dialect and direction that there is. Dialect iana has no reverse elements, so it is uniflow.
func interopRows() []*interopRow {
	var rows []*interopRow
	add := func(proto ipfix.Protocol, transport string) {
		for _, d := range []templates.Dialect{templates.Known, templates.Native, templates.IANA} {
			for _, uniflow := range []bool{false, true} {
				if d != templates.IANA || uniflow {
					rows = append(rows, &interopRow{len(rows), proto, transport, d, uniflow})
				}
			}
		}
	}
	for _, transport := range interopTransports {
		add(ipfix.IPFIX, transport)
	}
	add(ipfix.NetFlowV9, "udp")
	return rows
}

// records are four flows of the row: TCP and UDP, IPv4 and IPv6. No other row has their ports.
func (r *interopRow) records(now time.Time) []flowcache.Record {
	var l []flowcache.Record
	for n := range 4 {
		src, dst := flowcache.AddrFrom4([4]byte{192, 0, 2, 1}), flowcache.AddrFrom4([4]byte{198, 51, 100, 1})
		if n&2 != 0 {
			src, dst = flowcache.Addr{0x20, 1, 0xd, 0xb8, 15: 1}, flowcache.Addr{0x20, 1, 0xd, 0xb8, 15: 2}
		}
		u := uint64(4*r.index + n)
		f := flowcache.Record{
			Key:   flowcache.Key{Src: src, Dst: dst, SrcPort: uint16(20000 + u), DstPort: 443, Proto: []uint8{6, 17}[n&1]},
			Start: now.Add(-time.Minute).UnixMilli()*1e6 + 123e6, End: now.Add(-time.Second).UnixMilli() * 1e6, EndReason: flowcache.EndDetected, Final: true,
			Forward: flowcache.Counters{Payload: 1000 + u, Octets: 5000 + u, Packets: 10 + u}, Reverse: flowcache.Counters{Payload: 2000 + u, Octets: 7000 + u, Packets: 300 + u},
			Source: flowcache.End{
				Local: true, Process: flowcache.ProcessID{PID: uint32(4000 + u)}, UID: 33, GID: 33, NetNS: 4026531840, CGroup: 77, Cookie: 1234 + u,
				Who: &flowcache.Process{
					ID: flowcache.ProcessID{PID: uint32(4000 + u)}, Path: "/usr/bin/curl", Name: "curl", UserName: "www-data", UID: 33, GID: 33, ParentPID: 7, ParentPath: "/bin/sh",
				},
				Container: &flowcache.Workload{ContainerID: strings.Repeat("0123456789abcdef", 4), ContainerName: "web", PodName: fmt.Sprint("pod-", u), PodNamespace: "default"},
			},
			Dest: flowcache.End{UID: flowcache.NoID, GID: flowcache.NoID},
		}
		if f.Key.Proto == flowcache.ProtoTCP {
			f.HasTCP, f.Control = true, 0x1b
		}
		l = append(l, f)
	}
	return l
}

// sight is what a collector shows of a flow, as text: octets, packets, reverseOctets, reversePackets, payload, start and end (Unix
// milliseconds), pid, path, user, container, pod; and the octets of those that it has no name for, in hexadecimal, as "hex pid".
type sight map[string]string

// flowKey is by what flows are found again.
func flowKey(srcPort, dstPort any) string { return fmt.Sprint(srcPort, "-", dstPort) }

// want is what should be shown of the row's records.
func (r *interopRow) want(records []flowcache.Record) map[string]sight {
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	all := map[string]sight{}
	for i := range records {
		f := &records[i]
		who := sight{
			"user": f.Source.Who.UserName, "pod": f.Source.Container.PodName, "start": number(uint64(f.Start / 1e6)), "end": number(uint64(f.End / 1e6)),
		}
		if r.dialect != templates.IANA {
			who["pid"], who["path"], who["container"] = number(uint64(f.Source.Process.PID)), f.Source.Who.Path, f.Source.Container.ContainerID
		}
		if f.Key.Is4() {
			who["family"] = "4"
		} else {
			who["family"] = "6"
		}
		one := func(c, back flowcache.Counters, reverse bool) sight {
			s := sight{"octets": number(c.Octets), "packets": number(c.Packets), "payload": number(c.Payload)}
			if reverse {
				s["reverseOctets"], s["reversePackets"] = number(back.Octets), number(back.Packets)
			}
			for k, v := range who {
				s[k] = v
			}
			return s
		}
		all[flowKey(f.Key.SrcPort, f.Key.DstPort)] = one(f.Forward, f.Reverse, !r.uniflow)
		if r.uniflow {
			all[flowKey(f.Key.DstPort, f.Key.SrcPort)] = one(f.Reverse, f.Forward, false)
		}
	}
	return all
}

// judge makes a cell: what is shown of the flows and true, for both versions of IP.
func judge(t *testing.T, where string, want map[string]sight, got map[string]sight) string {
	families := map[string]string{}
	for key, w := range want {
		g, ok := got[key]
		cell := "none"
		if ok {
			cell = judgeFlow(t, where+" "+key, w, g)
		}
		if before, seen := families[w["family"]]; seen && before != cell {
			t.Errorf("%s: %s and %s of the same kind of flow", where, before, cell)
		}
		families[w["family"]] = cell
	}
	if families["4"] == families["6"] {
		return families["4"]
	}
	return fmt.Sprintf("v4 %s, v6 %s", families["4"], families["6"])
}

// judgeFlow gives a letter for what is true, one with ! for what is wrong, and none for what is not shown.
func judgeFlow(t *testing.T, where string, want, got sight) string {
	cell := ""
	mark := func(letter string, names ...string) {
		for _, n := range names {
			if _, ok := got[n]; !ok {
				return
			}
		}
		for _, n := range names {
			if got[n] != want[n] {
				t.Logf("%s: %s %s, want %s", where, n, got[n], want[n])
				letter = "!" + letter
				break
			}
		}
		cell += letter
	}
	mark("C", "octets", "packets")
	if want["reverseOctets"] != "" {
		mark("R", "reverseOctets", "reversePackets")
	}
	mark("P", "payload")
	switch start, end := off(got["start"], want["start"]), off(got["end"], want["end"]); {
	case got["start"] == "":
	case start == 0 && end == 0:
		cell += "T"
	case max(start, -start) <= 1000 && max(end, -end) <= 1000:
		cell += "t"
	default:
		t.Logf("%s: start %s and end %s, want %s and %s", where, got["start"], got["end"], want["start"], want["end"])
		cell += "!T"
	}
	// Names: all by name, some, or but their octets.
	named, hex, wrong := 0, 0, 0
	all := 0
	for _, n := range []string{"pid", "path", "user", "container", "pod"} {
		w, ok := want[n]
		if !ok {
			continue
		}
		all++
		g, isNamed := got[n]
		h, isHex := got["hex "+n]
		switch {
		case isNamed && g == w:
			named++
		case isHex && hexIs(h, w):
			hex++
		case isNamed || isHex:
			t.Logf("%s: %s %s %s, want %s", where, n, g, h, w)
			wrong++
		}
	}
	switch {
	case wrong > 0:
		cell += "!W"
	case named == all:
		cell += "W"
	case named > 0:
		cell += "w"
	case hex > 0:
		cell += "x"
	}
	if _, bad := got["no JSON"]; bad {
		cell += "J"
	}
	if cell == "" {
		return "none"
	}
	return cell
}

// off is by how many milliseconds a time is off.
func off(got, want string) int64 {
	g, err1 := strconv.ParseInt(got, 10, 64)
	w, err2 := strconv.ParseInt(want, 10, 64)
	if err1 != nil || err2 != nil {
		return 1 << 40
	}
	return g - w
}

// hexIs says whether octets in hexadecimal are of a number or a text; they may be cut, and filled up with zeros.
func hexIs(h, want string) bool {
	h, cut := strings.CutSuffix(strings.ReplaceAll(h, " ", ""), "…")
	w := fmt.Sprintf("%x", want)
	if n, err := strconv.ParseUint(want, 10, 32); err == nil {
		w = fmt.Sprintf("%08x", n)
	}
	if cut {
		w += strings.Repeat("0", max(0, len(h)-len(w)))
		return strings.HasPrefix(w, h)
	}
	return strings.TrimRight(h, "0") == strings.TrimRight(w, "0")
}

// interopCollector is a column of the table.
type interopCollector interface {
	// url is where the records of a row go; empty if the collector does not take them.
	url(r *interopRow) string
	// flows ends it, and returns what it shows of each row.
	flows(rows []*interopRow) map[*interopRow]map[string]sight
}

// export sends a row's records to a collector by the Exporting Process itself.
func (r *interopRow) export(t *testing.T, url string, records []flowcache.Record, boot time.Time) {
	base := ipfix.Config{
		Options: templates.Options{Dialect: r.dialect, Uniflow: r.uniflow, Node: "node-1"}, Domain: uint32(100 + r.index), Boot: boot,
		ReconnectMin: 100 * time.Millisecond, ReconnectMax: time.Second, Version: "test", Kernel: "test",
	}
	cfg, err := ipfix.ParseURL(url, base)
	if err != nil {
		t.Error(err)
		return
	}
	x, err := ipfix.New(cfg)
	if err != nil {
		t.Error(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		x.Run(ctx)
	}()
	pool := make(flowcache.RecordPool, 1)
	batch := pool.Get()
	batch.List = append(batch.List, records...)
	x.Offer(batch)
	begin := time.Now()
	// Until the last message has left, which waits for others for 50 ms: when nothing was made and not sent for a while.
	for quiet, last := 0, uint64(0); quiet < 25; quiet++ {
		s := x.Stats()
		if s.Encoded < uint64(len(records)) || s.Records != s.Made || s.Made != last {
			quiet, last = 0, s.Made
		}
		if time.Since(begin) > 20*time.Second {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	<-done
	if s := x.Stats(); s.Encoded != uint64(len(records)) || s.DroppedQueue+s.DroppedSend+s.DroppedBig+s.Cut != 0 {
		t.Errorf("%s: %+v", url, s)
	}
}

// TestInterop fills the table of docs/interop.md: what each collector shows of our records, and that it is true. The table in the
// document must be the one that it finds; -update-interop writes it.
func TestInterop(t *testing.T) {
	names, collectors := interopCollectors(t)
	rows := interopRows()
	boot := time.Now().Add(-time.Hour)
	records := map[*interopRow][]flowcache.Record{}
	var wg sync.WaitGroup
	for _, r := range rows {
		list := r.records(time.Now())
		records[r] = list
		for _, c := range collectors {
			if url := c.url(r); url != "" {
				wg.Add(1)
				go func() { // ends when the records are sent
					defer wg.Done()
					r.export(t, url, list, boot)
				}()
			}
		}
	}
	wg.Wait()
	time.Sleep(300 * time.Millisecond) // what is in sockets
	cells := map[*interopRow][]string{}
	for _, r := range rows {
		cells[r] = make([]string, len(collectors))
	}
	for i, c := range slices.Backward(collectors) { // nfcapd, which does not report its progress, comes last
		var taken []*interopRow
		for _, r := range rows {
			if c.url(r) != "" {
				taken = append(taken, r)
			}
		}
		flows := c.flows(taken)
		for _, r := range rows {
			cell := "–"
			if slices.Contains(taken, r) {
				cell = judge(t, fmt.Sprint(names[i], r.cells()), r.want(records[r]), flows[r])
			}
			cells[r][i] = cell
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "| protocol | transport | dialect | direction | %s |\n|%s\n", strings.Join(names, " | "), strings.Repeat("---|", 4+len(names)))
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s |\n", strings.Join(r.cells(), " | "), strings.Join(cells[r], " | "))
	}
	const file, begin, end = "../../docs/interop.md", "<!-- table -->\n", "<!-- /table -->"
	doc, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(doc), begin)
	table, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the table", file)
	}
	if *updateInterop {
		if err := os.WriteFile(file, []byte(head+begin+b.String()+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(table, b.String()); d != "" {
		t.Errorf("docs/interop.md says otherwise (-document +found):\n%s", d)
	}
}
