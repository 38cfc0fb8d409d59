package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// scrape reads the metrics page: values by name and labels, as written.
func scrape(t *testing.T, port int) map[string]float64 {
	t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	m := map[string]float64{}
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		name, value, ok := strings.Cut(s.Text(), "} ")
		if ok {
			name += "}"
		} else {
			name, value, _ = strings.Cut(s.Text(), " ")
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil && !strings.HasPrefix(name, "#") {
			m[name] = v
		}
	}
	return m
}

// sum adds the series that begin with prefix and contain part.
func sum(m map[string]float64, prefix, part string) (n float64) {
	for name, v := range m {
		if strings.HasPrefix(name, prefix) && strings.Contains(name, part) {
			n += v
		}
	}
	return n
}

// unreachable is how many "destination unreachable" this host has sent.
func unreachable(t *testing.T) float64 {
	t.Helper()
	b, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if f[0] == "Icmp:" && names == nil {
			names = f
		} else if f[0] == "Icmp:" {
			for i, name := range names {
				if name == "OutDestUnreachs" {
					n, _ := strconv.ParseFloat(f[i], 64)
					return n
				}
			}
		}
	}
	t.Fatal("no OutDestUnreachs")
	return 0
}

// TestStatusLine: at SIGUSR1 every loss of the kernel side is logged by its cause.
func TestStatusLine(t *testing.T) {
	needRoot(t)
	r := runExporter(t, "--metrics", "none", "--source", "ebpf")
	r.cmd.Process.Signal(syscall.SIGUSR1)
	eventually(t, "the status", func() bool { return strings.Contains(r.errs.String(), "msg=status") })
	for _, loss := range []string{"LostSocket:", "LostProcess:", "LostDatagrams:", "LostStorage:", "Malformed:"} {
		if !strings.Contains(r.errs.String(), loss) {
			t.Errorf("no %s in %s", loss, r.errs.String())
		}
	}
	r.stop()
}

// TestLossIdentity forces every kind of loss, and finds each counted: what programs outside did equals what the records
// count plus what the metrics count as dropped, by its cause.
func TestLossIdentity(t *testing.T) {
	needRoot(t)
	port := freePort(t)
	closed := freePort(t) // nobody listens: a stream collector that is away
	sink := newUDPSink(t)
	r := runExporter(t, "--metrics", fmt.Sprintf("127.0.0.1:%d", port), "--max-flows", "2000", "--local-pairs", "separate", "--idle-timeout", "60s",
		"-c", fmt.Sprintf("tcp://127.0.0.1:%d?direction=biflow", closed),
		"-c", fmt.Sprintf("udp://127.0.0.1:%d?mtu=576", sink.port()))
	load := exec.Command("go", "run", "../../bench/load", "-rate", "0", "-count", "45000", "-duration", "60s", "-size", "10")
	base := scrape(t, port)
	r.cmd.Process.Signal(syscall.SIGSTOP) // the ring buffer fills up
	out, err := load.CombinedOutput()
	if err != nil || !strings.Contains(string(out), `"connections":45000,"failed":0`) {
		r.cmd.Process.Signal(syscall.SIGCONT)
		t.Fatalf("%v %s", err, out)
	}
	// More datagram flows than the map between two drains holds.
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	const datagrams = 70000
	answers := unreachable(t)
	for i := range datagrams {
		for {
			// Ports from 1000, where nothing listens, at addresses of the loopback.
			_, err := c.WriteToUDP([]byte("x"), &net.UDPAddr{IP: net.IPv4(127, 9, byte(i>>15), 1), Port: 1000 + i&0x7fff})
			if err == nil {
				break
			}
		}
	}
	r.cmd.Process.Signal(syscall.SIGCONT)
	time.Sleep(2500 * time.Millisecond)
	c.Close()
	time.Sleep(1500 * time.Millisecond)
	m := scrape(t, port)
	lost := sum(m, "sockflow_lost_total", `cause="ring_socket"`) - sum(base, "sockflow_lost_total", `cause="ring_socket"`)
	direct := m[`sockflow_observations_total{fate="direct"}`] - base[`sockflow_observations_total{fate="direct"}`]
	created := m[`sockflow_observations_total{fate="created"}`]
	mapFull := sum(m, "sockflow_lost_total", `cause="datagram_map"`)
	t.Logf("connections: %.0f ends told, %.0f lost in the ring buffer; datagrams: %.0f flows, %.0f lost in the map; %.0f left a full cache", direct, lost, created, mapFull, m[`sockflow_records_total{reason="lack"}`])
	if lost == 0 || direct+lost < 90000 || direct+lost > 90400 {
		t.Errorf("%.0f ends told and %.0f lost of the 90 000 of 45 000 connections (and a few others)", direct, lost)
	}
	// The kernel answers some of them (ICMP), and what it sends is counted and lost like the rest.
	if answers = unreachable(t) - answers; mapFull == 0 || created+mapFull < datagrams || created+mapFull > datagrams+answers+400 {
		t.Errorf("%.0f flows told and %.0f lost of %d datagrams and at most %.0f answers", created, mapFull, datagrams, answers)
	}
	if perCPU := sum(m, "sockflow_lost_total", `cpu="1"`); perCPU == 0 {
		t.Error("no loss on the second CPU")
	}
	if m[`sockflow_records_total{reason="lack"}`] == 0 {
		t.Error("no flow left a full cache")
	}
	// Every record is somewhere, at each collector.
	all := sum(m, "sockflow_records_total", "")
	for _, collector := range []string{fmt.Sprintf("tcp://127.0.0.1:%d", closed), fmt.Sprintf("udp://127.0.0.1:%d", sink.port())} {
		label := fmt.Sprintf("collector=%q", collector)
		got := sum(m, "sockflow_collector_records_total", label) + sum(m, "sockflow_collector_waiting_records", label)
		if got != all {
			t.Errorf("%s: %.0f records encoded, dropped or waiting, of %.0f", collector, got, all)
		}
	}
	if n := sum(m, "sockflow_collector_records_total", `fate="dropped_queue"`); n == 0 {
		t.Error("no record was dropped for the collector that is away")
	}
	// What the other collector was sent is what arrived.
	if resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", port)); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("healthz: %v", err)
	} else {
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != "ok\n" {
			t.Errorf("healthz: %q", b)
		}
	}
	r.stop()
	if !strings.Contains(r.errs.String(), "records were dropped") {
		t.Error("the end does not tell of drops")
	}
}

// bpfObjects returns the ids of the programs, maps and links that a process holds.
func bpfObjects(t *testing.T, pid int) map[string][]string {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string][]string{}
	for _, f := range files {
		b, _ := os.ReadFile(f) // closed meanwhile
		for line := range strings.Lines(string(b)) {
			name, id, _ := strings.Cut(strings.TrimSpace(line), ":")
			if kind, ok := strings.CutSuffix(name, "_id"); ok && (kind == "prog" || kind == "map" || kind == "link") {
				ids[kind] = append(ids[kind], strings.TrimSpace(id))
			}
		}
	}
	return ids
}

// TestKilled: after kill -9 nothing stays in the kernel, and the next start counts from there on.
func TestKilled(t *testing.T) {
	needRoot(t)
	srv := start(t, "oscar-server", "", "server", "127.0.0.1", "10")
	ports := srv.next()
	h := start(t, "papa-hold", "", "hold", "127.0.0.1", strconv.Itoa(ports.TCP))
	h.next()
	first := runExporter(t, "--metrics", "none", "--snapshot-interval", "200ms")
	h.advance()
	time.Sleep(500 * time.Millisecond)
	objects := bpfObjects(t, first.cmd.Process.Pid)
	for _, kind := range []string{"prog", "map", "link"} {
		if len(objects[kind]) == 0 {
			t.Fatalf("the exporter has no BPF %s", kind)
		}
	}
	first.cmd.Process.Kill()
	<-first.exited
	for kind, ids := range objects {
		for _, id := range ids {
			eventually(t, kind+" "+id+" is gone", func() bool {
				return exec.Command("bpftool", kind, "show", "id", id).Run() != nil
			})
		}
	}
	second := runExporter(t, "--metrics", "none", "--snapshot-interval", "200ms")
	h.advance()
	h.advance()
	hr := h.end()
	srv.end()
	time.Sleep(200 * time.Millisecond)
	second.stop()
	out, _, ends, _ := sumJSON(second.json(), hr.Flows[0])
	if out != 2000 || len(ends) == 0 || ends[0].Path != hr.Path {
		t.Errorf("%d octets after the restart, want 2000; %+v", out, ends)
	}
	if _, err := os.Stat("/sys/fs/bpf/sockflow"); err == nil {
		t.Error("something is pinned")
	}
}
