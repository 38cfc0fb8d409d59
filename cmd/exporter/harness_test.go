package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sockflow/sockflow/collector"
	"github.com/sockflow/sockflow/templates"
)

// The harness: every capture of testdata goes through replay and every transport to every collector that there is, and each shows the
// records of the golden file. The golden files are compared with what tshark says of the captures. make harness runs it alone.

var updateCaptures = flag.Bool("update-captures", false, "write the golden records of testdata/captures anew")

func captureFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../../testdata/captures/*.pcap*")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d captures, %v", len(files), err)
	}
	return files
}

func goldenOf(capture string) string {
	return filepath.Join(filepath.Dir(capture), "records", filepath.Base(capture)+".jsonl")
}

func replayed(t *testing.T, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if code := execute(append([]string{"exporter", "replay", "--node-name", "node"}, args...), &out, &errs); code != 0 {
		t.Fatalf("replay %v: exit status %d\n%s", args, code, errs.String())
	}
	return out.String()
}

func jsonLines(t *testing.T, lines string) (records []jsonRecord) {
	t.Helper()
	for line := range strings.Lines(lines) {
		var r jsonRecord
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		records = append(records, r)
	}
	return records
}

// seenFlow is what all collectors show of a record, in one line: protocol, ends, packets and octets both ways, times.
func seenFlow(proto uint8, src netip.Addr, sport uint16, dst netip.Addr, dport uint16, fp, fo, rp, ro uint64, start, end time.Time) string {
	const layout = "2006-01-02T15:04:05.000"
	return fmt.Sprintf("%d %s %s %d/%d %d/%d %s %s", proto, netip.AddrPortFrom(src.Unmap(), sport), netip.AddrPortFrom(dst.Unmap(), dport), fp, fo, rp, ro,
		start.UTC().Format(layout), end.UTC().Format(layout))
}

func (r *jsonRecord) seen(t *testing.T) string {
	t.Helper()
	proto, err := protocolNumber(r.Protocol)
	if err != nil {
		t.Fatal(err)
	}
	start, _ := time.Parse(time.RFC3339Nano, r.Start)
	end, _ := time.Parse(time.RFC3339Nano, r.End)
	return seenFlow(proto, r.Source, r.SourcePort, r.Dest, r.DestPort, r.Forward.Packets, r.Forward.Octets, r.Reverse.Packets, r.Reverse.Octets, start, end)
}

// TestCaptures holds replay to the golden records, and these to tshark.
func TestCaptures(t *testing.T) {
	for _, file := range captureFiles(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			got := replayed(t, file)
			golden := goldenOf(file)
			if *updateCaptures {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("not the golden records:\n%s", diff)
			}
			if again := replayed(t, file); again != got {
				t.Error("not the same twice")
			}
			needTool(t, "tshark")
			if diff := cmp.Diff(tsharkTuples(t, file), tuples(t, jsonLines(t, got))); diff != "" {
				t.Errorf("not what tshark counts, packets/octets by 5-tuple:\n%s", diff)
			}
			never := []string{"--idle-timeout", "10000h", "--active-timeout", "10000h"}
			if diff := cmp.Diff(tsharkConversations(t, file, "not vxlan"), streams(jsonLines(t, replayed(t, append(never, file)...)))); diff != "" {
				t.Errorf("not the TCP conversations of tshark -z conv,tcp:\n%s", diff)
			}
		})
	}
}

// TestDecap compares what a tunnel carries.
func TestDecap(t *testing.T) {
	needTool(t, "tshark")
	const file = "../../testdata/captures/vxlan.pcap"
	got := jsonLines(t, replayed(t, "--decap", file))
	if diff := cmp.Diff(tsharkConversations(t, file, "vxlan"), streams(got)); diff != "" || len(got) < 3 {
		t.Errorf("%d records\n%s", len(got), diff)
	}
	for _, r := range got {
		// What is no IP stays the tunnel's: ARP, 28 octets in 50 of headers.
		if r.DestPort == 4789 && r.Forward.Octets != 78*r.Forward.Packets {
			t.Errorf("the tunnel is there: %+v", r)
		}
	}
}

// TestHarness sends every capture by every transport and version.
func TestHarness(t *testing.T) {
	cert, key := selfSigned(t)
	var listen []collector.Listener
	for _, u := range []string{"udp://127.0.0.1:0", "tcp://127.0.0.1:0", "tls://127.0.0.1:0?cert=" + cert + "&key=" + key,
		"dtls://127.0.0.1:0?cert=" + cert + "&key=" + key, "netflow9+udp://127.0.0.1:0"} {
		l, err := collector.ParseListener(u)
		if err != nil {
			t.Fatal(err)
		}
		listen = append(listen, l)
	}
	ours, err := collector.New(collector.Options{Listen: listen})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	got := map[string][]string{} // by transport
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { // ends with ctx
		ended <- ours.Run(ctx, func(records []collector.Record) error {
			mu.Lock()
			defer mu.Unlock()
			for i := range records {
				if line, ok := collectedFlow(&records[i]); ok {
					name := strings.SplitN(records[i].From, "://", 2)[0]
					if records[i].V9 {
						name = "netflow9"
					}
					got[name] = append(got[name], line)
				}
			}
			return nil
		})
	}()
	addrs := ours.Addrs()
	nfIPFIX, nfV9 := newNfcapd(t), newNfcapd(t)
	theirIPFIX, theirsV9 := newUDPSink(t), newUDPSink(t)
	needTool(t, "ipfixDump")
	dir := t.TempDir()

	var want, dumped []string
	for _, file := range captureFiles(t) {
		golden, err := os.ReadFile(goldenOf(file))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range jsonLines(t, string(golden)) {
			want = append(want, r.seen(t))
		}
		path := filepath.Join(dir, filepath.Base(file)+".ipfix")
		args := []string{file, "--log-level", "error"}
		for _, url := range []string{
			addrs[0], addrs[1], addrs[2] + "?ca=" + cert, addrs[3] + "?ca=" + cert, "netflow9+" + addrs[4], "file:" + path,
			fmt.Sprintf("udp://127.0.0.1:%d", nfIPFIX.port), fmt.Sprintf("netflow9+udp://127.0.0.1:%d", nfV9.port),
			fmt.Sprintf("udp://127.0.0.1:%d", theirIPFIX.port()), fmt.Sprintf("netflow9+udp://127.0.0.1:%d", theirsV9.port()),
		} {
			args = append(args, "-c", url)
		}
		replayed(t, args...)
		stream, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range ipfixDump(t, stream) {
			if line, ok := f.seen(true); ok {
				dumped = append(dumped, line)
			}
		}
	}
	same := func(what string, want, got []string) {
		t.Helper()
		want, got = slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(got))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s:\n%.3000s", what, diff)
		}
	}
	transports := []string{"udp", "tcp", "tls", "dtls", "netflow9"}
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		for n, lines := range got {
			t.Logf("%s: %d of %d records", n, len(lines), len(want))
		}
		t.Logf("%+v", ours.Counts())
	})
	eventually(t, "every record by every transport", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return !slices.ContainsFunc(transports, func(n string) bool { return len(got[n]) < len(want) })
	})
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, n := range transports {
		same("our collector by "+n, want, got[n])
	}
	same("ipfixDump", want, dumped)
	var ipfix, v9 []string
	for _, f := range goflow2(t, theirIPFIX.messages()) {
		if line, ok := f.seen(true); ok {
			ipfix = append(ipfix, line)
		}
	}
	for _, f := range goflow2(t, theirsV9.messages()) {
		if line, ok := f.seen(false); ok {
			v9 = append(v9, line)
		}
	}
	same("goflow2, IPFIX", want, ipfix)
	same("goflow2, NetFlow v9, which tells times by the uptime", withoutTimes(want), withoutTimes(v9))
	same("nfcapd, IPFIX", withoutICMP(want), nfSeen(t, nfIPFIX.stop()))
	same("nfcapd, NetFlow v9", withoutICMP(want), nfSeen(t, nfV9.stop()))
}

// Records of ICMP have type and code in an element of their own, 32 or 139, and no ports.

// collectedFlow is what our collector shows of a flow record; ok is false for other records.
func collectedFlow(r *collector.Record) (string, bool) {
	n := func(number templates.Number) (v uint64) {
		for _, b := range r.Octets(number) {
			v = v<<8 | uint64(b)
		}
		return v
	}
	iana := func(id uint16) templates.Number { return templates.Number{ID: id} }
	reverse := func(id uint16) templates.Number { return templates.Number{PEN: templates.PENReverse, ID: id} }
	src, ok := netip.AddrFromSlice(r.Octets(iana(8)))
	dst, _ := netip.AddrFromSlice(r.Octets(iana(12)))
	if !ok {
		if src, ok = netip.AddrFromSlice(r.Octets(iana(27))); !ok {
			return "", false
		}
		dst, _ = netip.AddrFromSlice(r.Octets(iana(28)))
	}
	start, end := time.UnixMilli(int64(n(iana(152)))), time.UnixMilli(int64(n(iana(153))))
	rp, ro := n(reverse(2)), n(reverse(1))
	if r.V9 {
		start, end = r.Boot.Add(time.Duration(n(iana(22)))*time.Millisecond), r.Boot.Add(time.Duration(n(iana(21)))*time.Millisecond)
		rp, ro = n(iana(24)), n(iana(23))
	}
	return seenFlow(uint8(n(iana(4))), src, uint16(n(iana(7))), dst, uint16(n(iana(11))|n(iana(32))|n(iana(139))), n(iana(2)), n(iana(1)), rp, ro, start, end), true
}

// seen is what another decoder shows.
func (f fields) seen(ipfix bool) (string, bool) {
	src, dst := f["0:8"], f["0:12"]
	if src == "" {
		src, dst = f["0:27"], f["0:28"]
	}
	if src == "" {
		return "", false
	}
	n := func(key string) uint64 { v, _ := strconv.ParseUint(f[key], 10, 64); return v }
	when := func(key string) time.Time {
		if ms, err := strconv.ParseInt(f[key], 10, 64); err == nil {
			return time.UnixMilli(ms)
		}
		at, _ := time.Parse("2006-01-02 15:04:05.000", strings.Replace(f[key], "T", " ", 1))
		return at
	}
	rp, ro := n("29305:2"), n("29305:1")
	if !ipfix {
		rp, ro = n("0:24"), n("0:23")
	}
	return seenFlow(uint8(n("0:4")), netip.MustParseAddr(src), uint16(n("0:7")), netip.MustParseAddr(dst), uint16(n("0:11")|n("0:32")|n("0:139")),
		n("0:2"), n("0:1"), rp, ro, when("0:152"), when("0:153")), true
}

func withoutTimes(lines []string) (all []string) {
	for _, l := range lines {
		all = append(all, strings.Join(strings.Fields(l)[:5], " "))
	}
	return all
}

// withoutICMP takes type and code away, which nfdump shows in its own way.
func withoutICMP(lines []string) (all []string) {
	for _, l := range lines {
		f := strings.Fields(l)
		if f[0] == "1" || f[0] == "58" {
			f[1], f[2] = f[1][:strings.LastIndex(f[1], ":")], f[2][:strings.LastIndex(f[2], ":")]
		}
		all = append(all, strings.Join(f, " "))
	}
	return all
}

func nfSeen(t *testing.T, flows []nfFlow) []string {
	t.Helper()
	var all []string
	for i := range flows {
		f := &flows[i]
		when := func(s string) time.Time {
			at, err := time.ParseInLocation("2006-01-02T15:04:05.000", s, time.Local)
			if err != nil {
				t.Fatal(err)
			}
			return at
		}
		all = append(all, seenFlow(uint8(f.Proto), netip.MustParseAddr(f.Src4+f.Src6), f.SrcPort, netip.MustParseAddr(f.Dst4+f.Dst6), f.DstPort,
			f.InPackets, f.InBytes, f.OutPackets, f.OutBytes, when(f.First), when(f.Last)))
	}
	return withoutICMP(all)
}
