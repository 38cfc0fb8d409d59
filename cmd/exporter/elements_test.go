package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"encoding/xml"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/netsampler/goflow2/v2/decoders/netflow"
	"github.com/netsampler/goflow2/v2/producer"
	protoproducer "github.com/netsampler/goflow2/v2/producer/proto"
	"go.yaml.in/yaml/v3"

	"github.com/sockflow/sockflow/ipfix"
	"github.com/sockflow/sockflow/templates"
)

var updateDocs = flag.Bool("update", false, "rewrite docs/elements.md")

// elementsOut is what the command prints.
func elementsOut(t *testing.T, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if code := execute(append([]string{"exporter", "elements"}, args...), &out, &errs); code != 0 {
		t.Fatalf("elements %q: exit status %d: %s", args, code, errs.String())
	}
	return out.String()
}

// TestElementsDoc keeps docs/elements.md what the command prints: go test ./cmd/exporter -run TestElementsDoc -update.
func TestElementsDoc(t *testing.T) {
	const file = "../../docs/elements.md"
	want := elementsOut(t, "--format", "markdown")
	if *updateDocs {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil || string(got) != want {
		t.Errorf("%s is not what elements --format markdown prints (%v); run this test with -update", file, err)
	}
}

func TestElementsUsage(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"--format nonsense", "must be one of table, csv"},
		{"--dialect nonsense", "must be known, native or iana"},
		{"--pen 0", "--pen 0"},
		{"--v9-base 40000", "from 1 to 32667"},
		{"--enterprise 5", "no element"},
		{"--format libfds", "give --enterprise, one of 35632, 32473, 56506"},
		{"more", "unknown command"},
	} {
		var out, errs bytes.Buffer
		code := execute(append([]string{"exporter", "elements"}, strings.Fields(tc.args)...), &out, &errs)
		if code != 2 || !strings.Contains(errs.String(), tc.want) || strings.Count(errs.String(), "\n") != 1 || out.Len() != 0 {
			t.Errorf("%s: exit status %d, %q, %q", tc.args, code, errs.String(), out.String())
		}
	}
}

// TestElementsTables: the forms for people and programs have the same contents.
func TestElementsTables(t *testing.T) {
	var list []jsonElement
	if err := json.Unmarshal([]byte(elementsOut(t, "--format", "json", "--pen", "4242", "--v9-base", "20000")), &list); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(strings.NewReader(elementsOut(t, "--format", "csv", "--pen", "4242", "--v9-base", "20000"))).ReadAll()
	if err != nil || len(rows) != len(list)+1 {
		t.Fatalf("%v: %d rows, %d objects", err, len(rows), len(list))
	}
	table := elementsOut(t, "--pen", "4242", "--v9-base", "20000")
	for i, e := range list {
		if r := rows[i+1]; r[0] != e.Name || r[1] != e.Type || r[4] != strconv.Itoa(int(e.Enterprise)) || r[5] != strconv.Itoa(int(e.Number)) || r[7] != e.Description {
			t.Errorf("%v, %+v", r, e)
		}
		number := fmt.Sprintf("%d:%d", e.Enterprise, e.Number)
		if e.Enterprise == 0 {
			number = strconv.Itoa(int(e.Number))
		}
		if !regexp.MustCompile(`(?m)^` + e.Name + ` +` + number + ` `).MatchString(table) {
			t.Errorf("the table has no %s %s", e.Name, number)
		}
	}
	for _, want := range []jsonElement{
		{Name: "sourceProcessId", Type: "unsigned32", Semantics: "identifier", Units: "none", Enterprise: 35632, Number: 168, NetFlow9: 57640},
		{Name: "sourceGroupId", Type: "unsigned32", Semantics: "identifier", Units: "none", Enterprise: 4242, Number: 15, NetFlow9: 20015},
		{Name: "reverseOctetDeltaCount", Type: "unsigned64", Semantics: "deltaCounter", Units: "octets", Enterprise: 29305, Number: 1, NetFlow9: 23},
	} {
		if !slices.ContainsFunc(list, func(e jsonElement) bool { e.Description = ""; return e == want }) {
			t.Errorf("no %+v", want)
		}
	}
	if out := elementsOut(t, "--dialect", "iana", "--format", "csv"); strings.Contains(out, "35632") || strings.Contains(out, "32473") || strings.Contains(out, "29305") {
		t.Error("dialect iana has elements of enterprises")
	}
}

// TestElementsXML: libfixbuf names every field by the file, without type records.
func TestElementsXML(t *testing.T) {
	needTool(t, "ipfixDump")
	for _, d := range []struct {
		name    string
		dialect templates.Dialect
	}{{"known", templates.Known}, {"native", templates.Native}} {
		dir := t.TempDir()
		os.WriteFile(filepath.Join(dir, "elements.xml"), []byte(elementsOut(t, "--format", "xml", "--dialect", d.name)), 0o600)
		os.WriteFile(filepath.Join(dir, "s.ipfix"), bytes.Join(session(t, ipfix.IPFIX, templates.Options{Dialect: d.dialect}), nil), 0o600)
		out, err := exec.Command("ipfixDump", "-e", filepath.Join(dir, "elements.xml"), "--in", filepath.Join(dir, "s.ipfix")).CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("_alien")) {
			t.Errorf("ipfixDump: %v\n%s", err, out[:min(len(out), 500)])
		}
		for _, want := range []string{"sourceProcessPath : (len: 13) /usr/bin/curl", "sourceProcessStartTime : 2020-09-13", "interfaceKind : (len: 4) veth"} {
			if !bytes.Contains(out, []byte(want)) {
				t.Errorf("dialect %s: ipfixDump does not show %q", d.name, want)
			}
		}
	}
}

// goflow2Mapping is our configuration for goflow2.
func goflow2Mapping(t *testing.T) *protoproducer.ProducerConfig {
	t.Helper()
	var cfg protoproducer.ProducerConfig
	dec := yaml.NewDecoder(strings.NewReader(elementsOut(t, "--format", "goflow2")))
	dec.KnownFields(true)
	if err := dec.Decode(&cfg); err != nil {
		t.Fatal(err)
	}
	return &cfg
}

// goflow2Flows is what goflow2's producer writes of messages with our mapping.
func goflow2Flows(t *testing.T, session [][]byte, proto ipfix.Protocol) (flows []map[string]any) {
	t.Helper()
	mapped, err := goflow2Mapping(t).Compile()
	if err != nil {
		t.Fatal(err)
	}
	p, err := protoproducer.CreateProtoProducer(mapped, protoproducer.CreateSamplingSystem)
	if err != nil {
		t.Fatal(err)
	}
	sys := netflow.CreateTemplateSystem()
	for _, m := range session {
		var v9 netflow.NFv9Packet
		var x netflow.IPFIXPacket
		if err := netflow.DecodeMessageVersion(bytes.NewBuffer(m), sys, &v9, &x); err != nil {
			t.Fatal(err)
		}
		var packet any = &x
		if proto == ipfix.NetFlowV9 {
			packet = &v9
		}
		msgs, err := p.Produce(packet, &producer.ProduceArgs{Src: netip.MustParseAddrPort("127.0.0.1:1"), TimeReceived: sessionTime})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range msgs {
			b, err := m.(*protoproducer.ProtoProducerMessage).MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			f, err := flat(b)
			if err != nil {
				t.Fatalf("%v: %s", err, b)
			}
			flows = append(flows, f)
		}
	}
	return flows
}

// TestElementsGoflow2 runs goflow2's producer with the mapping.
func TestElementsGoflow2(t *testing.T) {
	for _, proto := range []ipfix.Protocol{ipfix.IPFIX, ipfix.NetFlowV9} {
		flows := goflow2Flows(t, session(t, proto, templates.Options{Uniflow: true}), proto)
		checkNamed(t, fmt.Sprintf("goflow2, protocol %d", proto), flows, "bytes", "src_port", func(_ string, v any) bool {
			_, text := v.(string)
			return !text || proto == ipfix.IPFIX
		})
	}
	// Numbers of protobuf fields must stay: consumers know them.
	names := map[int32]string{}
	for _, f := range goflow2Mapping(t).Formatter.Protobuf {
		if f.Index < 1000 || f.Index >= 19000 || names[f.Index] != "" {
			t.Errorf("%s and %s have index %d", f.Name, names[f.Index], f.Index)
		}
		names[f.Index] = f.Name
	}
}

// flat is a JSON object with numbers as they are written.
func flat(b []byte) (map[string]any, error) {
	var f map[string]any
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return f, d.Decode(&f)
}

// named are values of a session of uniflows, under the names of the configurations, and how many records have them.
var named = []struct {
	times int
	want  map[string]any
}{
	{7, map[string]any{"octets": 1500, "source_process_id": 4242, "source_process_path": "/usr/bin/curl", "source_process_name": "curl", "source_user_id": 33, "source_group_id": 34,
		"source_user_name": "www-data", "source_parent_process_path": "/usr/bin/bash", "source_process_start_time": 1600000000123}},
	{6, map[string]any{"source_container_id": "c0ffee", "source_container_image": "nginx:1.27", "source_pod_name": "web-1", "source_pod_namespace": "shop", "source_pod_labels": "app=web,tier=front"}},
	{1, map[string]any{"octets": 1500, "destination_pod_name": "db-0", "destination_service_name": "data/db", "destination_node_name": "node-2"}},
	{2, map[string]any{"port": 443, "octets": 2600, "tcp_smoothed_round_trip_time_microseconds": 11, "destination_pod_name": "web-1", "destination_process_id": 4242}},
	{14, map[string]any{"observation_source": 1, "flow_end_reason": 3}},
	{7, map[string]any{"transport_octet_delta_count": 2000, "biflow_direction": 2}},
}

// checkNamed holds what a collector made of a session of uniflows against named.
func checkNamed(t *testing.T, what string, flows []map[string]any, octets, port string, has func(name string, v any) bool) {
	t.Helper()
	for _, tc := range named {
		n := 0
	next:
		for _, f := range flows {
			for k, v := range tc.want {
				if !has(k, v) {
					continue
				}
				switch k {
				case "octets":
					k = octets
				case "port":
					k = port
				}
				if strings.TrimRight(fmt.Sprint(f[k]), "\x00") != fmt.Sprint(v) {
					continue next
				}
			}
			n++
		}
		if n < tc.times {
			var sample []byte
			if len(flows) > 0 {
				sample, _ = json.Marshal(flows[0])
			}
			t.Errorf("%s: %v: %d times, want %d of %d; one is %s", what, tc.want, n, tc.times, len(flows), sample)
		}
	}
}

// TestElementsPmacct runs nfacctd with the primitives.
func TestElementsPmacct(t *testing.T) {
	needTool(t, "nfacctd")
	for _, tc := range []struct {
		proto ipfix.Protocol
		args  []string
	}{{ipfix.IPFIX, nil}, {ipfix.NetFlowV9, []string{"--netflow9"}}} {
		dir, port := t.TempDir(), freePort(t)
		primitives := elementsOut(t, append(tc.args, "--format", "pmacct")...)
		os.WriteFile(filepath.Join(dir, "primitives"), []byte(primitives), 0o600)
		config := "aggregate: src_host, dst_host, src_port, dst_port,"
		for _, n := range named {
			for name := range n.want {
				if strings.Contains(primitives, "name="+name+" ") && !strings.Contains(config, " "+name+",") {
					config += " " + name + ","
				}
			}
		}
		config += fmt.Sprintf(" proto\naggregate_primitives: %s/primitives\nplugins: print\nprint_output: json\nprint_output_file: %s/flows\nprint_output_file_append: true\nprint_refresh_time: 1\n"+
			"nfacctd_ip: 127.0.0.1\nnfacctd_port: %d\nnfacctd_time_new: true\ndaemonize: false\n", dir, dir, port)
		os.WriteFile(filepath.Join(dir, "nfacctd.conf"), []byte(config), 0o600)
		var log syncBuffer
		cmd := exec.Command("nfacctd", "-f", filepath.Join(dir, "nfacctd.conf"))
		cmd.Stdout, cmd.Stderr = &log, &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { cmd.Process.Signal(os.Interrupt); cmd.Wait() }()
		defer func() {
			if t.Failed() {
				t.Log(log.String())
			}
		}()
		// Its plugin loses what comes before it is there.
		eventually(t, "nfacctd works", func() bool { return strings.Contains(log.String(), "Purging cache - END") })
		c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range session(t, tc.proto, templates.Options{Uniflow: true}) {
			c.Write(m)
			time.Sleep(5 * time.Millisecond)
		}
		c.Close()
		var flows []map[string]any
		eventually(t, "nfacctd prints", func() bool {
			flows = nil
			b, _ := os.ReadFile(filepath.Join(dir, "flows"))
			for line := range strings.Lines(string(b)) {
				if f, err := flat([]byte(line)); err == nil {
					flows = append(flows, f)
				}
			}
			return len(flows) >= 14
		})
		checkNamed(t, fmt.Sprintf("nfacctd, protocol %d", tc.proto), flows, "bytes", "port_src", func(name string, _ any) bool {
			return strings.Contains(config, " "+name+",") || name == "octets" || name == "port"
		})
	}
}

// TestElementsOthers parses what is for collectors that are not at hand, in the form that each reads.
func TestElementsOthers(t *testing.T) {
	elements, err := templates.Elements()
	if err != nil {
		t.Fatal(err)
	}
	type def struct {
		id   templates.Number
		name string
	}
	strangers := map[def]templates.Element{} // of the dialect known
	for _, e := range elements {
		if n, _ := e.Number(templates.Options{}); n.PEN != 0 {
			strangers[def{n, e.Name}] = e
		}
	}
	t.Run("logstash", func(t *testing.T) {
		// PEN, id, [type, name], both as Ruby symbols; the types are those that both programs have.
		types := regexp.MustCompile(`^:(uint(8|16|32|64)|string|ip4_addr|ip6_addr)$`)
		// Enterprises that Logstash has definitions of. Its merge is shallow: one more of them here would take all of its own away.
		logstash := []uint32{0, 9, 637, 3054, 5951, 6871, 6876, 9789, 10704, 12326, 15397, 21373, 26866, 29305, 41916}
		for _, format := range []string{"logstash", "filebeat"} {
			for _, dialect := range []string{"known", "native", "iana"} {
				var f map[uint32]map[uint16][]string
				if err := yaml.Unmarshal([]byte(elementsOut(t, "--format", format, "--dialect", dialect)), &f); err != nil || f == nil {
					t.Fatalf("%s, dialect %s: %v, %v: not a mapping", format, dialect, err, f)
				}
				for pen, elements := range f {
					if pen == 0 || format == "logstash" && slices.Contains(logstash, pen) {
						t.Errorf("%s, dialect %s: enterprise %d, which it knows", format, dialect, pen)
					}
					for id, v := range elements {
						if len(v) != 2 || !types.MatchString(v[0]) || !regexp.MustCompile(`^:[a-zA-Z0-9]+$`).MatchString(v[1]) {
							t.Errorf("%s, dialect %s: %d:%d is %q", format, dialect, pen, id, v)
						}
					}
				}
				for d, e := range strangers {
					v := f[d.id.PEN][d.id.ID]
					if dialect == "known" && d.id.PEN != templates.PENReverse && (len(v) != 2 || v[1] != ":"+d.name || (v[0] == ":string") != (e.Type == templates.String)) {
						t.Errorf("%s: %+v is %q", format, d, v)
					}
				}
			}
		}
		var f map[uint16][]string
		if err := yaml.Unmarshal([]byte(elementsOut(t, "--format", "logstash", "--netflow9")), &f); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(f[57640], f[57641], f[30015]); got != "[:uint32 :sourceProcessId] [:string :sourceProcessPath] [:uint32 :sourceGroupId]" {
			t.Error(got)
		}
		var fb map[uint32]map[uint16][]string
		if err := yaml.Unmarshal([]byte(elementsOut(t, "--format", "filebeat", "--netflow9")), &fb); err != nil || len(fb) != 1 || fmt.Sprint(fb[0][57641]) != "[:string :sourceProcessPath]" {
			t.Error(err, fb)
		}
	})
	t.Run("telegraf", func(t *testing.T) {
		rows, err := csv.NewReader(strings.NewReader(elementsOut(t, "--format", "telegraf"))).ReadAll()
		if err != nil || len(rows) != len(strangers) {
			t.Fatalf("%v: %d rows, want %d", err, len(rows), len(strangers))
		}
		for _, r := range rows {
			if len(r) != 3 || !regexp.MustCompile(`^\d+\.\d+$`).MatchString(r[0]) || !slices.Contains([]string{"uint", "string", "hex", "ip"}, r[2]) {
				t.Errorf("%q", r)
			}
		}
		if !slices.ContainsFunc(rows, func(r []string) bool { return slices.Equal(r, []string{"35632.169", "source_process_path", "string"}) }) {
			t.Error("no 35632.169")
		}
	})
	t.Run("libfds", func(t *testing.T) {
		for _, pen := range []uint32{templates.PENNtop, templates.PENAntrea, templates.PENExample} {
			var x struct {
				XMLName xml.Name `xml:"ipfix-elements"`
				Scope   struct {
					PEN    uint32 `xml:"pen"`
					Name   string `xml:"name"`
					Biflow struct {
						Mode string `xml:"mode,attr"`
					} `xml:"biflow"`
				} `xml:"scope"`
				Elements []struct {
					ID   uint16 `xml:"id"`
					Name string `xml:"name"`
					Type string `xml:"dataType"`
				} `xml:"element"`
			}
			if err := xml.Unmarshal([]byte(elementsOut(t, "--format", "libfds", "--enterprise", fmt.Sprint(pen))), &x); err != nil {
				t.Fatal(err)
			}
			if x.Scope.PEN != pen || x.Scope.Name == "" || x.Scope.Biflow.Mode != "none" || len(x.Elements) == 0 {
				t.Errorf("%+v", x.Scope)
			}
			for _, e := range x.Elements {
				if el, ok := strangers[def{templates.Number{PEN: pen, ID: e.ID}, e.Name}]; !ok || el.Type.String() != e.Type {
					t.Errorf("%+v", e)
				}
			}
		}
	})
	t.Run("vflow", func(t *testing.T) {
		var f map[uint32]map[uint16][]string
		if err := yaml.Unmarshal([]byte(elementsOut(t, "--format", "vflow")), &f); err != nil {
			t.Fatal(err)
		}
		for d, e := range strangers {
			if v := f[d.id.PEN][d.id.ID]; len(v) != 2 || v[0] != d.name || v[1] != e.Type.String() {
				t.Errorf("%+v is %q", d, v)
			}
		}
	})
}
