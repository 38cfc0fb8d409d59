package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockflow/sockflow/ipfix"
	"github.com/sockflow/sockflow/templates"
)

// nfacctd is pmacct's collector, with the elements that it does not know as primitives.
type nfacctd struct {
	t    *testing.T
	dir  string
	port int
	cmd  *exec.Cmd
	log  *os.File
	who  []whoNumber
}

func newNfacctd(t *testing.T) *nfacctd {
	t.Helper()
	needTool(t, "nfacctd")
	n := &nfacctd{t: t, dir: t.TempDir(), port: freePort(t), who: allWhoNumbers()}
	var primitives, keys strings.Builder
	add := func(name string, pen uint32, id uint16, length, semantics string) {
		field := strconv.Itoa(int(id))
		if pen != 0 {
			field = fmt.Sprintf("%d:%d", pen, id)
		}
		fmt.Fprintf(&primitives, "name=%s field_type=%s len=%s semantics=%s\n", name, field, length, semantics)
		keys.WriteString("," + name)
	}
	add("payload", 0, 401, "8", "u_int")
	add("roctets", templates.PENReverse, 1, "8", "u_int")
	add("rpackets", templates.PENReverse, 2, "8", "u_int")
	add("v9roctets", 0, 23, "8", "u_int")
	add("v9rpackets", 0, 24, "8", "u_int")
	for i, w := range n.who {
		switch name := fmt.Sprintf("w%d", i); {
		case w.what == "pid":
			add(name, w.pen, w.id, "4", "u_int")
		case w.id >= 30000: // of NetFlow v9: fixed length
			add(name, w.pen, w.id, "64", "str")
		default:
			add(name, w.pen, w.id, "vlen", "str")
		}
	}
	for name, text := range map[string]string{"primitives": primitives.String(), "conf": fmt.Sprintf(`daemonize: false
nfacctd_ip: 127.0.0.1
nfacctd_port: %d
plugins: print
print_output: json
print_refresh_time: 1
print_history: 1m
print_output_file: %[2]s/out
print_output_file_append: true
timestamps_since_epoch: true
aggregate_primitives: %[2]s/primitives
aggregate: src_host,dst_host,src_port,dst_port,proto,timestamp_start,timestamp_end%[3]s
`, n.port, n.dir, keys.String())} {
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if n.log, err = os.Create(filepath.Join(n.dir, "log")); err != nil {
		t.Fatal(err)
	}
	n.cmd = exec.Command("nfacctd", "-f", filepath.Join(n.dir, "conf"))
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it has a process for each plugin
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(-n.cmd.Process.Pid, syscall.SIGKILL); n.cmd.Wait(); n.log.Close() })
	eventually(t, "nfacctd listens", func() bool {
		b, _ := os.ReadFile(n.log.Name())
		return bytes.Contains(b, []byte("waiting for NetFlow/IPFIX data")) && bytes.Contains(b, []byte("Purging cache - END")) // both its processes
	})
	return n
}

func (n *nfacctd) url(r *interopRow) string { return udpURL(r, n.port) }

func (n *nfacctd) flows(rows []*interopRow) map[*interopRow]map[string]sight {
	want := 0
	for _, r := range rows {
		want += 4
		if r.uniflow {
			want += 4
		}
	}
	var lines []byte
	for range 200 {
		lines, _ = os.ReadFile(filepath.Join(n.dir, "out"))
		if bytes.Count(lines, []byte("\n")) >= want {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if log, _ := os.ReadFile(n.log.Name()); bytes.Count(lines, []byte("\n")) < want {
		n.t.Errorf("nfacctd: %d flows of %d\n%s\n%s", bytes.Count(lines, []byte("\n")), want, lines, log)
	}
	flows := map[string]sight{}
	for line := range bytes.Lines(lines) {
		d := json.NewDecoder(bytes.NewReader(line))
		d.UseNumber()
		m := map[string]any{}
		if err := d.Decode(&m); err != nil {
			n.t.Errorf("nfacctd: %v in %s", err, line)
			continue
		}
		text := func(name string) string { return fmt.Sprint(m[name]) }
		s := sight{"octets": text("bytes"), "packets": text("packets")}
		for what, names := range map[string][]string{
			"payload": {"payload"}, "reverseOctets": {"roctets", "v9roctets"}, "reversePackets": {"rpackets", "v9rpackets"},
		} {
			for _, name := range names {
				s.set(what, text(name))
			}
		}
		for i, w := range n.who {
			s.set(w.what, text(fmt.Sprintf("w%d", i)))
		}
		for what, name := range map[string]string{"start": "timestamp_start", "end": "timestamp_end"} {
			d, err := time.ParseDuration(text(name) + "s")
			if err != nil {
				n.t.Error(err)
			}
			s[what] = strconv.FormatInt(d.Milliseconds(), 10)
		}
		flows[flowKey(text("port_src"), text("port_dst"))] = s
	}
	return byRow(rows, flows)
}

// TestNfacctdExample: nfacctd with the example of deploy/collectors, of which only places and times are changed, shows who.
func TestNfacctdExample(t *testing.T) {
	needTool(t, "nfacctd")
	dir, port := t.TempDir(), freePort(t)
	b, err := os.ReadFile("../../deploy/collectors/nfacctd.conf")
	if err != nil {
		t.Fatal(err)
	}
	conf := string(b)
	for _, change := range [][2]string{
		{"nfacctd_port: 2100", fmt.Sprintf("nfacctd_ip: 127.0.0.1\nnfacctd_port: %d", port)},
		{"/var/lib/pmacct/", dir + "/"},
		{"/etc/pmacct/", dir + "/"},
		{"/var/log/pmacct/flows-%Y%m%d-%H%M.json", dir + "/out\nprint_output_file_append: true"},
		{"print_refresh_time: 60", "print_refresh_time: 1"},
	} {
		if !strings.Contains(conf, change[0]) {
			t.Fatalf("nfacctd.conf has no %q", change[0])
		}
		conf = strings.Replace(conf, change[0], change[1], 1)
	}
	var primitives, errs bytes.Buffer
	if status := execute([]string{"sockflow", "elements", "--format", "pmacct"}, &primitives, &errs); status != 0 {
		t.Fatal(errs.String())
	}
	for name, text := range map[string]string{"conf": conf, "sockflow.primitives": primitives.String()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var log syncBuffer
	cmd := exec.Command("nfacctd", "-f", filepath.Join(dir, "conf"))
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); cmd.Wait() })
	eventually(t, "nfacctd listens", func() bool {
		return strings.Contains(log.String(), "waiting for NetFlow/IPFIX data") && strings.Contains(log.String(), "Purging cache - END")
	})
	c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, m := range session(t, ipfix.IPFIX, templates.Options{}) {
		if _, err := c.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{"ip_src": "192.0.2.1", "ip_dst": "192.0.2.2", "port_src": "40000", "port_dst": "443", "ip_proto": "tcp", "bytes": "1500", "packets": "10",
		"source_process_path": "/usr/bin/curl", "source_process_id": "4242", "source_user_name": "www-data", "source_container_name": "web", "source_pod_name": "web-1",
		"source_pod_namespace": "shop"}
	var out []byte
	eventually(t, "nfacctd writes the flow with its names", func() bool {
		out, _ = os.ReadFile(filepath.Join(dir, "out"))
	next:
		for line := range bytes.Lines(out) {
			d := json.NewDecoder(bytes.NewReader(line))
			d.UseNumber()
			m := map[string]any{}
			if d.Decode(&m) != nil {
				continue // half of a line
			}
			for name, v := range want {
				if fmt.Sprint(m[name]) != v {
					continue next
				}
			}
			return true
		}
		return false
	})
}
