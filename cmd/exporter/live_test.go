package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sockflow/sockflow/flowcache"
)

// TestInterface meters the packets of an interface, alone and named by sockets: each counts what tcpdump does. Then the records name the flows of
// tcpdump's capture.
func TestInterface(t *testing.T) {
	a, b := netns(t)
	for _, tool := range []string{"nsenter", "tcpdump", "tshark", "nc.openbsd"} {
		needTool(t, tool)
	}
	enter := func(ns, name string, args ...string) *exec.Cmd {
		return exec.Command("nsenter", append([]string{"--net=/run/netns/" + ns, name}, args...)...)
	}
	for _, source := range []string{"none", "auto"} {
		t.Run(source, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "wire.pcap")
			dump := enter(a, "tcpdump", "-n", "--immediate-mode", "-s", "128", "-i", "sfv0", "-w", file, "port 7000 or port 7001 or icmp")
			var said syncBuffer
			dump.Stderr = &said
			if err := dump.Start(); err != nil {
				t.Fatal(err)
			}
			defer dump.Process.Kill()
			r := launch(t, enter(a, buildExporter(t), "run", "--interface", "sfv0", "--source", source, "--metrics", "none", "--interface-interval", "0", "-c", "json:-"))
			eventually(t, "both capture", func() bool {
				return strings.Contains(r.errs.String(), "metering the packets") && strings.Contains(said.String(), "listening")
			})

			server := enter(b, "nc.openbsd", "-l", "7000")
			if err := server.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { server.Process.Kill(); server.Wait() }()
			var client *exec.Cmd
			eventually(t, "a connection", func() bool {
				client = enter(a, "nc.openbsd", "-N", "10.99.0.2", "7000")
				client.Stdin = bytes.NewReader(make([]byte, 300_000))
				return client.Run() == nil
			})
			datagrams := enter(a, "nc.openbsd", "-u", "-w", "1", "fd99::2", "7001")
			datagrams.Stdin = strings.NewReader("hello")
			datagrams.Run()
			enter(a, "ping", "-c", "2", "-i", "0.2", "10.99.0.2").Run()
			time.Sleep(500 * time.Millisecond) // packets on their way, and the reports of sockets
			dump.Process.Signal(syscall.SIGINT)
			dump.Wait()
			r.stop()

			var records []jsonRecord
			var lines []string
			for _, j := range r.json() {
				if j.DestPort == 7000 || j.DestPort == 7001 || j.Protocol == "icmp" {
					records = append(records, j)
					line, _ := json.Marshal(j)
					lines = append(lines, string(line))
				}
			}
			if diff := cmp.Diff(tsharkTuples(t, file), tuples(t, records)); diff != "" {
				t.Errorf("not what tcpdump saw:\n%s\n%s", diff, r.errs.String())
			}
			named := func(records []jsonRecord) {
				t.Helper()
				for i := range records {
					j := &records[i]
					if j.DestPort != 7000 || j.Reason != "end" || j.Forward.Payload != 300_000 {
						continue
					}
					if j.SourceEnd == nil || j.DestEnd == nil || j.SourceEnd.PID != uint32(client.Process.Pid) || j.DestEnd.PID != uint32(server.Process.Pid) ||
						filepath.Base(j.SourceEnd.Path) != "nc.openbsd" {
						t.Errorf("ends %+v, %+v; want processes %d and %d", j.SourceEnd, j.DestEnd, client.Process.Pid, server.Process.Pid)
					}
					return
				}
				t.Errorf("no record of the connection in %d", len(records))
			}
			if source == "none" {
				return
			}
			named(records)
			metadata := filepath.Join(t.TempDir(), "run.jsonl")
			if err := os.WriteFile(metadata, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
				t.Fatal(err)
			}
			named(jsonLines(t, replayed(t, "--metadata", metadata, file)))
		})
	}
}

// TestMetadata: an end is named by the socket that was there at the time, and bad lines are reported by number.
func TestMetadata(t *testing.T) {
	line := func(start, end string, pid string) string {
		return `{"flowStart":"2026-01-01T` + start + `Z","flowEnd":"2026-01-01T` + end + `Z","protocol":"udp","sourceAddress":"10.77.0.1","sourcePort":1000,` +
			`"destinationAddress":"10.77.0.2","destinationPort":53,"source":{"pid":` + pid + `,"path":"/bin/x` + pid + `","uid":0,"container":{"id":"c","pod":"p"}}}`
	}
	m, err := parseMetadata(strings.NewReader(line("10:00:00", "10:00:10", "1") + "\n\n" + line("10:00:20", "10:00:40", "2") + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]uint32{"10:00:05": 1, "10:00:11": 1, "10:00:30": 2, "10:00:19": 2, "10:05:00": 0} {
		var j jsonRecord
		if err := json.Unmarshal([]byte(line(at, at, "9")), &j); err != nil {
			t.Fatal(err)
		}
		start, _ := time.Parse(time.RFC3339Nano, j.Start)
		r := recordOf(j, start.UnixNano())
		m.name(&r)
		if r.Source.Process.PID != want || want != 0 && (r.Source.Container == nil || r.Source.Container.PodName != "p" || r.Source.GID != 1<<32-1) {
			t.Errorf("at %s: %+v, want process %d", at, r.Source, want)
		}
	}
	for bad, want := range map[string]string{
		"\n{": "line 2", `{"protocol":"tcp"}`: "no protocol or address", strings.Repeat("x", maxLine+1): "longer",
		`{"protocol":"udp","sourceAddress":"1.1.1.1","destinationAddress":"1.1.1.1","flowStart":"now"}`: "line 1",
	} {
		if _, err := parseMetadata(strings.NewReader(bad)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", bad, err, want)
		}
	}
}

func FuzzMetadata(f *testing.F) {
	f.Add([]byte(`{"flowStart":"2026-01-01T10:00:00Z","flowEnd":"2026-01-01T10:00:01Z","protocol":"tcp","sourceAddress":"1.1.1.1","destinationAddress":"::1","source":{"pid":1}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseMetadata(bytes.NewReader(b)); err == nil && m.ends.Len() > bytes.Count(b, []byte("\n"))*2+2 {
			t.Errorf("%d ends", m.ends.Len())
		}
	})
}

// TestReplayErrors: one line, what failed, and the exit status.
func TestReplayErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, err := os.ReadFile("../../testdata/captures/dns.pcap")
	if err != nil {
		t.Fatal(err)
	}
	cut, itself, link := write("cut.pcap", good[:len(good)-5]), write("itself.pcap", good), filepath.Join(dir, "link")
	if err := os.Symlink(itself, link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   []string
		code   int
		want   string
		output bool
	}{
		{nil, 2, "no capture", false},
		{[]string{"x", "--speed", "-1"}, 2, "must be a number that is not negative", false},
		{[]string{filepath.Join(dir, "none")}, 1, "no such file", false},
		{[]string{dir}, 1, "directory", false},
		{[]string{write("empty", nil)}, 1, "it is empty", false},
		{[]string{write("text", []byte("this is no capture"))}, 1, "neither pcap nor pcapng", false},
		{[]string{cut}, 1, "cut short in packet", true},
		{[]string{cut, "../../testdata/captures/dns.pcap"}, 1, "cut short in packet", true},
		{[]string{write("no.pcap", good[:24])}, 0, "packets=0", false},
		{[]string{"../../testdata/captures/dns.pcap", "--metadata", filepath.Join(dir, "text")}, 1, "text: line 1", false},
		{[]string{"../../testdata/captures/dns.pcap", "--source", "none"}, 2, "unknown flag", false},
		{[]string{itself, "-c", "json:" + itself}, 2, "is the capture", false},
		{[]string{itself, "-c", "file:" + link}, 2, "is the capture", false},
		{[]string{"../../testdata/captures/dns.pcap", "-c", "json:/dev/full"}, 1, "did not reach a collector", false},
		{[]string{"../../testdata/captures/dns.pcap", "-c", "file:/dev/full"}, 1, "did not reach a collector", false},
	} {
		var out, errs bytes.Buffer
		code := execute(append([]string{"exporter", "replay"}, c.args...), &out, &errs)
		if code != c.code || !strings.Contains(errs.String(), c.want) || (out.Len() > 0) != c.output {
			t.Errorf("%v: status %d, want %d; %q, want %q; %d octets of output", c.args, code, c.code, errs.String(), c.want, out.Len())
		}
	}
}

// TestReplaySpeed replays half a second of packets at twice their speed.
func TestReplaySpeed(t *testing.T) {
	begin := time.Now()
	fast := replayed(t, "../../testdata/captures/icmp.pcap")
	quick := time.Since(begin)
	begin = time.Now()
	slow := replayed(t, "../../testdata/captures/icmp.pcap", "--speed", "2")
	if d := time.Since(begin); d < quick || d < 500*time.Millisecond {
		t.Errorf("took %s", d)
	}
	if diff := cmp.Diff(fast, slow); diff != "" {
		t.Errorf("other records:\n%s", diff)
	}
}

func TestProgress(t *testing.T) {
	for want, got := range map[string]string{
		"[===============               ]  50%, 10k packets, 10k/s, 1s left": progressLine(500, 1000, time.Second, 10_000),
		"[==============================] 100%, 10k packets, 10k/s":          progressLine(1000, 1000, time.Second, 10_000),
		"20k packets, 10k/s": progressLine(7, -1, 2*time.Second, 20_000),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func recordOf(j jsonRecord, at int64) (r flowcache.Record) {
	r.Key = flowcache.Key{Src: mappedAddr(j.Source), Dst: mappedAddr(j.Dest), SrcPort: j.SourcePort, DstPort: j.DestPort, Proto: flowcache.ProtoUDP}
	r.Start, r.End = at, at
	return r
}
