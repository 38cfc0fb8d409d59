package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sockflow/sockflow/ipfix"
	"github.com/sockflow/sockflow/templates"
)

const clickhouseTables = "../../deploy/collectors/clickhouse/tables.sql"

// TestClickHouseColumns: every column of the example is in what goflow2 writes of our records, by the same name, as a number or as a text.
func TestClickHouseColumns(t *testing.T) {
	b, err := os.ReadFile(clickhouseTables)
	if err != nil {
		t.Fatal(err)
	}
	columns := regexp.MustCompile(`(?m)^    (\w+) (UInt\d+|String),?$`).FindAllStringSubmatch(string(b), -1)
	if len(columns) < 20 {
		t.Fatalf("%d columns", len(columns))
	}
	flows := goflow2Flows(t, session(t, ipfix.IPFIX, templates.Options{Uniflow: true}), ipfix.IPFIX)
	for _, c := range columns {
		found := false
		for _, f := range flows {
			v, ok := f[c[1]]
			_, text := v.(string)
			found = found || ok && text == (c[2] == "String")
		}
		if !found {
			t.Errorf("goflow2 writes no %s that is a %s", c[1], c[2])
		}
	}
}

// TestClickHouse: the program goflow2 writes what ClickHouse (chDB, its engine without the server) takes into the tables of the example. Both come
// by `make test-collectors`. What goes through Kafka there comes from a file here.
func TestClickHouse(t *testing.T) {
	dir := os.Getenv("SOCKFLOW_TEST_COLLECTORS")
	if dir == "" {
		t.Skip("needs goflow2 and chDB: make test-collectors")
	}
	work, port := t.TempDir(), freePort(t)
	mapping, written := filepath.Join(work, "mapping.yaml"), filepath.Join(work, "flows.json")
	if err := os.WriteFile(mapping, []byte(elementsOut(t, "--format", "goflow2")), 0o600); err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	cmd := exec.Command(filepath.Join(dir, "goflow2"), "-listen", fmt.Sprintf("netflow://127.0.0.1:%d", port), "-mapping", mapping, "-format", "json", "-produce", "sample",
		"-transport.file", written, "-addr", fmt.Sprintf("127.0.0.1:%d", freePort(t)))
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	msgs := session(t, ipfix.IPFIX, templates.Options{Uniflow: true})
	var b []byte
	eventually(t, "goflow2 writes flows", func() bool {
		for _, m := range msgs { // again until it listens
			c.Write(m)
		}
		time.Sleep(200 * time.Millisecond)
		b, _ = os.ReadFile(written)
		return bytes.Contains(b, []byte(`"web-1"`)) && bytes.HasSuffix(b, []byte("\n"))
	})
	script := `const { Session } = require('chdb'); const fs = require('fs'); const s = new Session(process.argv[3]);
for (const q of fs.readFileSync(process.argv[1], 'utf8').split(';')) if (q.replace(/--.*/g, '').trim()) s.query(q);
s.query('INSERT INTO flows.flows SETTINGS input_format_skip_unknown_fields = 1 FORMAT JSONEachRow ' + fs.readFileSync(process.argv[2], 'utf8'));
console.log(s.query("SELECT any(source_process_path) AS path, any(source_container_name) AS container, toString(any(bytes)) AS octets, toString(min(source_process_id)) AS pid, " +
	"toString(toYear(any(fromUnixTimestamp64Nano(toInt64(time_flow_end_ns))))) AS year FROM flows.flows WHERE source_pod_name = 'web-1' AND dst_port = 443 AND bytes = 1500 GROUP BY source_pod_namespace", 'JSONEachRow'));`
	tables, err := filepath.Abs(clickhouseTables)
	if err != nil {
		t.Fatal(err)
	}
	// The time of the records is long ago: TTL removes them.
	sql, err := os.ReadFile(tables)
	if err != nil {
		t.Fatal(err)
	}
	tables = filepath.Join(work, "tables.sql")
	if err := os.WriteFile(tables, []byte(strings.Replace(string(sql), "INTERVAL 30 DAY", "INTERVAL 30 YEAR", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	node := exec.Command("node", "-e", script, tables, written, filepath.Join(work, "data"))
	node.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(dir, "node_modules"))
	out, err := node.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var got map[string]string
	if err := json.Unmarshal(bytes.TrimSpace(out), &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, want := range map[string]string{"path": "/usr/bin/curl", "container": "web", "octets": "1500", "pid": "4242", "year": "2023"} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
}
