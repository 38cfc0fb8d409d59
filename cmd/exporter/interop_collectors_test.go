package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/netsampler/goflow2/v2/decoders/netflow"
	"github.com/netsampler/goflow2/v2/producer"
	protoproducer "github.com/netsampler/goflow2/v2/producer/proto"

	"github.com/sockflow/sockflow/collector"
	"github.com/sockflow/sockflow/ipfix"
	"github.com/sockflow/sockflow/templates"
)

// interopTransports are those that IPFIX goes over.
var interopTransports = []string{"udp", "tcp", "tls", "dtls", "file"}

// selfSigned makes a certificate for this host, which is its own authority.
func selfSigned(t *testing.T) (cert, key string) {
	t.Helper()
	needTool(t, "openssl")
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	out, err := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
		"-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
	return cert, key
}

func interopCollectors(t *testing.T) ([]string, []interopCollector) {
	names := []string{"nfdump", "ipfixDump", "tshark", "goflow2", "nfacctd", "collect"}
	cert, key := selfSigned(t)
	return names, []interopCollector{
		&nfdumpColumn{newNfcapd(t)}, newDumpColumn(t, cert, key), &tsharkColumn{newSinks(t)}, &goflow2Column{newSinks(t)}, newNfacctd(t), newCollectColumn(t, cert, key),
	}
}

// whoNumber is the number of an element that names an end, as a dialect has it.
type whoNumber struct {
	what string
	pen  uint32
	id   uint16
}

// whoNumbers are those of both ends; in NetFlow v9 without an enterprise.
func (r *interopRow) whoNumbers() []whoNumber {
	v9 := r.proto == ipfix.NetFlowV9
	number := func(what string, pen uint32, id uint16) whoNumber {
		switch {
		case v9 && pen == templates.PENNtop:
			return whoNumber{what, 0, 57472 + id}
		case v9 && pen != 0:
			return whoNumber{what, 0, 30000 + id}
		}
		return whoNumber{what, pen, id}
	}
	const ntop, antrea, native = templates.PENNtop, templates.PENAntrea, templates.PENExample
	switch {
	case r.dialect == templates.IANA:
		return []whoNumber{number("user", 0, 371), number("pod", 0, 350)}
	case r.dialect == templates.Native:
		return []whoNumber{
			number("pid", native, 1), number("pid", native, 2), number("path", native, 3), number("path", native, 4), number("user", native, 13), number("user", native, 14),
			number("container", native, 23), number("container", native, 24), number("pod", native, 31), number("pod", native, 32),
		}
	}
	l := []whoNumber{
		number("pid", ntop, 168), number("pid", ntop, 375), number("path", ntop, 169), number("path", ntop, 376), number("user", ntop, 372), number("user", ntop, 377),
		number("container", ntop, 558), number("container", ntop, 559),
	}
	if v9 { // Antrea's have no place in NetFlow v9
		return append(l, number("pod", native, 31), number("pod", native, 32))
	}
	return append(l, number("pod", antrea, 101), number("pod", antrea, 103))
}

// allWhoNumbers are those of every row, each once.
func allWhoNumbers() []whoNumber {
	seen := map[whoNumber]bool{}
	var l []whoNumber
	for _, r := range interopRows() {
		for _, n := range r.whoNumbers() {
			if !seen[n] {
				seen[n] = true
				l = append(l, n)
			}
		}
	}
	return l
}

// byRow puts flows to the rows that they are of: their ports tell.
func byRow(rows []*interopRow, flows map[string]sight) map[*interopRow]map[string]sight {
	all := map[*interopRow]map[string]sight{}
	for _, r := range rows {
		all[r] = map[string]sight{}
		for n := range 4 {
			port := 20000 + 4*r.index + n
			for _, key := range []string{flowKey(port, 443), flowKey(443, port)} {
				if f, ok := flows[key]; ok {
					all[r][key] = f
				}
			}
		}
	}
	return all
}

// set puts what is shown into s, unless it is empty: the end that is elsewhere has no names.
func (s sight) set(what, value string) {
	if value != "" && value != "0" {
		s[what] = value
	}
}

// nfdumpColumn is nfcapd, which takes UDP, and nfdump.
type nfdumpColumn struct{ *nfcapd }

func (c *nfdumpColumn) url(r *interopRow) string { return udpURL(r, c.port) }

func udpURL(r *interopRow, port int) string {
	switch {
	case r.transport != "udp":
		return ""
	case r.proto == ipfix.NetFlowV9:
		return fmt.Sprintf("netflow9+udp://127.0.0.1:%d", port)
	}
	return fmt.Sprintf("udp://127.0.0.1:%d", port)
}

func (c *nfdumpColumn) flows(rows []*interopRow) map[*interopRow]map[string]sight {
	flows := map[string]sight{}
	for _, f := range c.stop() {
		s := sight{"octets": strconv.FormatUint(f.InBytes, 10), "packets": strconv.FormatUint(f.InPackets, 10)}
		s.set("reverseOctets", strconv.FormatUint(f.OutBytes, 10))
		s.set("reversePackets", strconv.FormatUint(f.OutPackets, 10))
		for what, v := range map[string]string{"start": f.First, "end": f.Last} {
			at, err := time.ParseInLocation("2006-01-02T15:04:05.000", v, time.Local)
			if err != nil {
				c.t.Error(err)
			}
			s[what] = strconv.FormatInt(at.UnixMilli(), 10)
		}
		flows[flowKey(f.SrcPort, f.DstPort)] = s
	}
	return byRow(rows, flows)
}

// sinks take what is sent to them, one for each row.
type sinks struct {
	t   *testing.T
	udp map[int]*udpSink
	tcp map[int]*tcpSink
}

func newSinks(t *testing.T) sinks {
	return sinks{t, map[int]*udpSink{}, map[int]*tcpSink{}}
}

func (s *sinks) udpURL(r *interopRow) string {
	if r.transport != "udp" {
		return ""
	}
	if s.udp[r.index] == nil {
		s.udp[r.index] = newUDPSink(s.t)
	}
	return udpURL(r, s.udp[r.index].port())
}

func (s *sinks) tcpURL(r *interopRow) string {
	if r.transport != "tcp" {
		return ""
	}
	if s.tcp[r.index] == nil {
		s.tcp[r.index] = newTCPSink(s.t, "127.0.0.1:0")
	}
	return "tcp://" + s.tcp[r.index].l.Addr().String()
}

// dumpColumn is ipfixDump, of libfixbuf, which reads streams and files. It has no TLS: OpenSSL takes it off.
type dumpColumn struct {
	sinks
	dir, cert, key string
	openssl        map[int]*opensslServer
}

func newDumpColumn(t *testing.T, cert, key string) *dumpColumn {
	return &dumpColumn{newSinks(t), t.TempDir(), cert, key, map[int]*opensslServer{}}
}

func (c *dumpColumn) file(r *interopRow) string {
	return filepath.Join(c.dir, fmt.Sprintf("%d.ipfix", r.index))
}

func (c *dumpColumn) url(r *interopRow) string {
	switch r.transport {
	case "file":
		return "file:" + c.file(r)
	case "tls", "dtls":
		if c.openssl[r.index] == nil {
			c.openssl[r.index] = newOpensslServer(c.t, r.transport, c.cert, c.key)
		}
		return fmt.Sprintf("%s://127.0.0.1:%d?ca=%s", r.transport, c.openssl[r.index].port, c.cert)
	}
	return c.tcpURL(r)
}

func (c *dumpColumn) flows(rows []*interopRow) map[*interopRow]map[string]sight {
	all := map[*interopRow]map[string]sight{}
	for _, r := range rows {
		var stream []byte
		switch r.transport {
		case "file":
			var err error
			if stream, err = os.ReadFile(c.file(r)); err != nil {
				c.t.Error(err)
			}
		case "tls", "dtls":
			stream = []byte(c.openssl[r.index].out.String())
		default:
			stream = c.tcp[r.index].bytes()
		}
		all[r] = map[string]sight{}
		for _, f := range ipfixDump(c.t, stream) {
			if f["sourceTransportPort"] != "" {
				all[r][flowKey(f["sourceTransportPort"], f["destinationTransportPort"])] = namedFlow(c.t, f, "2006-01-02 15:04:05.000")
			}
		}
	}
	return all
}

// opensslServer writes what comes by TLS or DTLS.
type opensslServer struct {
	port int
	out  syncBuffer
}

func newOpensslServer(t *testing.T, transport, cert, key string) *opensslServer {
	t.Helper()
	s := &opensslServer{port: freePort(t)}
	args := []string{"s_server", "-quiet", "-accept", fmt.Sprintf("127.0.0.1:%d", s.port), "-cert", cert, "-key", key}
	if transport == "dtls" {
		args = append(args, "-dtls1_2")
	}
	cmd := exec.Command("openssl", args...)
	in, err := cmd.StdinPipe() // open, or it ends
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = &s.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); in.Close() })
	return s
}

// namedFlow is a flow by the names of the Information Elements.
func namedFlow(t *testing.T, f map[string]string, layout string) sight {
	s := sight{}
	for what, names := range map[string][]string{
		"octets": {"octetDeltaCount"}, "packets": {"packetDeltaCount"}, "payload": {"transportOctetDeltaCount"},
		"reverseOctets": {"reverseOctetDeltaCount", "postOctetDeltaCount"}, "reversePackets": {"reversePacketDeltaCount", "postPacketDeltaCount"},
		"pid": {"sourceProcessId", "destinationProcessId"}, "path": {"sourceProcessPath", "destinationProcessPath"},
		"user": {"sourceUserName", "destinationUserName", "userName"}, "container": {"sourceContainerId", "destinationContainerId"},
		"pod": {"sourcePodName", "destinationPodName", "virtualStationName"},
	} {
		for _, n := range names {
			s.set(what, f[n])
		}
	}
	for what, n := range map[string]string{"start": "flowStartMilliseconds", "end": "flowEndMilliseconds"} {
		if at, err := time.Parse(layout, f[n]); err == nil {
			s[what] = strconv.FormatInt(at.UnixMilli(), 10)
		} else {
			t.Error(err)
		}
	}
	return s
}

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

// goflow2Column is the decoder and the producer of goflow2, configured by a mapping as its users do.
type goflow2Column struct{ sinks }

func (c *goflow2Column) url(r *interopRow) string { return c.udpURL(r) }

// goflow2Config maps what the records carry beyond goflow2's own fields.
func goflow2Config() *protoproducer.ProducerConfig {
	cfg := &protoproducer.ProducerConfig{}
	f := &cfg.Formatter
	f.Fields = []string{"bytes", "packets", "src_port", "dst_port", "time_flow_start_ns", "time_flow_end_ns"}
	f.Render = map[string]protoproducer.RendererID{}
	add := func(name, typ string) {
		f.Fields = append(f.Fields, name)
		f.Protobuf = append(f.Protobuf, protoproducer.ProtobufFormatterConfig{Name: name, Index: int32(1000 + len(f.Protobuf)), Type: typ})
		if typ == "string" {
			f.Render[name] = protoproducer.RendererString
		}
	}
	for _, name := range []string{"payload", "reverseOctets", "reversePackets", "pid"} {
		add(name, "varint")
	}
	for _, name := range []string{"path", "user", "container", "pod"} {
		add(name, "string")
	}
	ipfix := func(pen uint32, id uint16, to string) {
		cfg.IPFIX.Mapping = append(cfg.IPFIX.Mapping, protoproducer.NetFlowMapField{PenProvided: pen != 0, Pen: pen, Type: id, Destination: to})
	}
	v9 := func(id uint16, to string) {
		cfg.NetFlowV9.Mapping = append(cfg.NetFlowV9.Mapping, protoproducer.NetFlowMapField{Type: id, Destination: to})
	}
	ipfix(0, 401, "payload")
	ipfix(templates.PENReverse, 1, "reverseOctets")
	ipfix(templates.PENReverse, 2, "reversePackets")
	v9(401, "payload")
	for _, n := range allWhoNumbers() {
		ipfix(n.pen, n.id, n.what)
		if n.pen == 0 {
			v9(n.id, n.what)
		}
	}
	return cfg
}

func (c *goflow2Column) flows(rows []*interopRow) map[*interopRow]map[string]sight {
	mapped, err := goflow2Config().Compile()
	if err != nil {
		c.t.Fatal(err)
	}
	all := map[*interopRow]map[string]sight{}
	for _, r := range rows {
		all[r] = map[string]sight{}
		p, err := protoproducer.CreateProtoProducer(mapped, protoproducer.CreateSamplingSystem)
		if err != nil {
			c.t.Fatal(err)
		}
		known := netflow.CreateTemplateSystem()
		for _, m := range c.udp[r.index].messages() {
			var v9 netflow.NFv9Packet
			var v10 netflow.IPFIXPacket
			if err := netflow.DecodeMessageVersion(bytes.NewBuffer(m), known, &v9, &v10); err != nil {
				c.t.Errorf("goflow2: %v", err)
				continue
			}
			var packet any = &v10
			if r.proto == ipfix.NetFlowV9 {
				packet = &v9
			}
			made, err := p.Produce(packet, &producer.ProduceArgs{TimeReceived: time.Now(), SamplerAddress: netip.MustParseAddr("127.0.0.1")})
			if err != nil {
				c.t.Errorf("goflow2: %v", err)
			}
			for _, f := range made {
				c.flow(all[r], f)
			}
		}
	}
	return all
}

// flow adds what goflow2 writes of a flow.
func (c *goflow2Column) flow(flows map[string]sight, f producer.ProducerMessage) {
	line, err := f.(json.Marshaler).MarshalJSON()
	if err != nil {
		c.t.Errorf("goflow2: %v", err)
		return
	}
	s := sight{}
	if !json.Valid(line) {
		s["no JSON"] = ""
		line = bytes.ReplaceAll(line, []byte{0}, nil)
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	m := map[string]any{}
	if err := d.Decode(&m); err != nil {
		c.t.Errorf("goflow2: %v in %s", err, line)
		return
	}
	text := func(name string) string {
		if m[name] == nil {
			return ""
		}
		return fmt.Sprint(m[name])
	}
	s["octets"], s["packets"] = text("bytes"), text("packets")
	for _, what := range []string{"payload", "reverseOctets", "reversePackets", "pid", "path", "user", "container", "pod"} {
		s.set(what, text(what))
	}
	for what, name := range map[string]string{"start": "time_flow_start_ns", "end": "time_flow_end_ns"} {
		ns, _ := strconv.ParseInt(text(name), 10, 64)
		s[what] = strconv.FormatInt(ns/1e6, 10)
	}
	flows[flowKey(text("src_port"), text("dst_port"))] = s
}

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

// collectColumn is our own collector: it is no oracle, and has its column so that one can see what it shows.
type collectColumn struct {
	t     *testing.T
	c     *collector.Collector
	stop  func()
	mu    sync.Mutex
	found map[string]sight
	dir   string // of files
	cert  string
}

func newCollectColumn(t *testing.T, cert, key string) *collectColumn {
	c := &collectColumn{t: t, found: map[string]sight{}, dir: t.TempDir(), cert: cert}
	var opt collector.Options
	files := "?cert=" + cert + "&key=" + key
	for _, url := range []string{"udp://127.0.0.1:0", "tcp://127.0.0.1:0", "tls://127.0.0.1:0" + files, "dtls://127.0.0.1:0" + files} {
		l, err := collector.ParseListener(url)
		if err != nil {
			t.Fatal(err)
		}
		opt.Listen = append(opt.Listen, l)
	}
	var err error
	if c.c, err = collector.New(opt); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.c.Run(ctx, c.take) }() // ends with ctx
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(c.stop)
	return c
}

func (c *collectColumn) take(recs []collector.Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range recs {
		if recs[i].Template.Options {
			continue
		}
		f := map[string]string{}
		d := json.NewDecoder(bytes.NewReader(recs[i].AppendJSON(nil)))
		d.UseNumber()
		m := map[string]any{}
		if err := d.Decode(&m); err != nil {
			c.t.Errorf("collect: %v", err)
		}
		for name, v := range m {
			f[name] = fmt.Sprint(v)
		}
		c.found[flowKey(f["sourceTransportPort"], f["destinationTransportPort"])] = namedFlow(c.t, f, time.RFC3339)
	}
	return nil
}

func (c *collectColumn) url(r *interopRow) string {
	if r.transport == "file" {
		return "file:" + filepath.Join(c.dir, fmt.Sprintf("%d.ipfix", r.index))
	}
	for _, a := range c.c.Addrs() {
		if strings.HasPrefix(a, r.transport+"://") {
			switch {
			case r.proto == ipfix.NetFlowV9:
				return "netflow9+" + a
			case r.transport == "tls" || r.transport == "dtls":
				return a + "?ca=" + c.cert
			}
			return a
		}
	}
	return ""
}

func (c *collectColumn) flows(rows []*interopRow) map[*interopRow]map[string]sight {
	for _, r := range rows {
		if r.transport == "file" {
			name := filepath.Join(c.dir, fmt.Sprintf("%d.ipfix", r.index))
			f, err := os.Open(name)
			if err != nil {
				c.t.Error(err)
				continue
			}
			if err := c.c.ReadStream(name, f, c.take); err != nil {
				c.t.Error(err)
			}
			f.Close()
		}
	}
	c.stop()
	if n := c.c.Counts(); n.Gaps+n.Late+n.UnknownSets+n.Discarded()+n.KernelDrops+n.Refused+n.Ignored != 0 {
		c.t.Errorf("collect: %+v", n)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return byRow(rows, c.found)
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
