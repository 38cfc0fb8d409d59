package main

import (
	"bytes"
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

// clickHouse returns what puts a file that goflow2 wrote into the tables of the example, and asks them: lines of values, between tabs. The engine is
// chDB, ClickHouse's without the server, by `make test-collectors`. What goes through Kafka there comes from a file here.
func clickHouse(t *testing.T) func(file, query string) []byte {
	t.Helper()
	dir := os.Getenv("SOCKFLOW_TEST_COLLECTORS")
	if dir == "" {
		t.Skip("needs goflow2 and chDB: make test-collectors")
	}
	sql, err := os.ReadFile(clickhouseTables)
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	tables := filepath.Join(work, "tables.sql")
	// The times of some records are long ago: TTL would remove them.
	if err := os.WriteFile(tables, []byte(strings.Replace(string(sql), "INTERVAL 30 DAY", "INTERVAL 30 YEAR", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	const script = `const { Session } = require('chdb'); const fs = require('fs'); const [tables, flows, data, query, out] = process.argv.slice(1);
const s = new Session(data);
for (const q of fs.readFileSync(tables, 'utf8').split(';')) if (q.replace(/--.*/g, '').trim()) s.query(q);
s.query("INSERT INTO flows.flows FROM INFILE '" + flows + "' SETTINGS input_format_skip_unknown_fields = 1 FORMAT JSONEachRow");
s.query(query + " INTO OUTFILE '" + out + "' FORMAT TSV");
`
	return func(file, query string) []byte {
		t.Helper()
		data, out := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "out")
		node := exec.Command("node", "-e", script, tables, file, data, query, out)
		node.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(dir, "node_modules"))
		if b, err := node.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%.4000s", err, b)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

// TestClickHouse: the program goflow2 writes what ClickHouse takes into the tables of the example.
func TestClickHouse(t *testing.T) {
	ask := clickHouse(t)
	dir := os.Getenv("SOCKFLOW_TEST_COLLECTORS")
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
	out := ask(written, "SELECT any(source_process_path), any(source_container_name), any(bytes), min(source_process_id), "+
		"toYear(any(fromUnixTimestamp64Nano(toInt64(time_flow_end_ns)))) FROM flows.flows WHERE source_pod_name = 'web-1' AND dst_port = 443 AND bytes = 1500 GROUP BY source_pod_namespace")
	if got, want := string(out), "/usr/bin/curl\tweb\t1500\t4242\t2023\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
