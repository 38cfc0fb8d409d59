package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
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
)

// needRoot and needTool skip a test, and fail it where CI promised that it can run.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		miss(t, "needs root")
	}
}

func needTool(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		miss(t, "needs "+name)
	}
}

func miss(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("REQUIRE_ROOT") == "1" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// fields is a decoded record: values by "pen:id", numbers in decimal.
type fields map[string]string

func (f fields) number(t *testing.T, key string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(f[key], 10, 64)
	if err != nil {
		t.Errorf("field %s: %q is no number", key, f[key])
	}
	return n
}

// udpSink receives datagrams, for decoders that want them in a file or in memory.
type udpSink struct {
	conn *net.UDPConn
	mu   sync.Mutex
	msgs [][]byte
}

func newUDPSink(t *testing.T) *udpSink {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadBuffer(8 << 20)
	s := &udpSink{conn: c}
	t.Cleanup(func() { c.Close() })
	go func() { // ends with c
		buf := make([]byte, 65536)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.msgs = append(s.msgs, bytes.Clone(buf[:n]))
			s.mu.Unlock()
		}
	}()
	return s
}

func (s *udpSink) port() int { return s.conn.LocalAddr().(*net.UDPAddr).Port }

func (s *udpSink) messages() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([][]byte(nil), s.msgs...)
}

// goflow2 decodes messages by the decoder of goflow2.
func goflow2(t *testing.T, msgs [][]byte) []fields {
	t.Helper()
	templates := netflow.CreateTemplateSystem()
	var recs []fields
	for i, m := range msgs {
		var v9 netflow.NFv9Packet
		var ipfix netflow.IPFIXPacket
		if err := netflow.DecodeMessageVersion(bytes.NewBuffer(m), templates, &v9, &ipfix); err != nil {
			t.Errorf("goflow2: message %d: %v", i, err)
			continue
		}
		for _, set := range append(v9.FlowSets, ipfix.FlowSets...) {
			data, ok := set.(netflow.DataFlowSet)
			if !ok {
				continue
			}
			for _, r := range data.Records {
				f := fields{}
				for _, v := range r.Values {
					pen := uint32(0)
					if v.PenProvided {
						pen = v.Pen
					}
					b := v.Value.([]byte)
					f[fmt.Sprintf("%d:%d", pen, v.Type)] = value(pen, v.Type, b)
				}
				recs = append(recs, f)
			}
		}
	}
	return recs
}

// texts are the elements of the records that are strings.
var texts = regexp.MustCompile(`^(35632:(169|372|374|376|377|379|556|557|558|559)|56506:.*|32473:(` + nativeTexts + `)|` +
	`0:(82|94|96|300|340|341|350|371|576(41|44|46|48|49|51)|578(4[4689]|51)|580[23].|300(` + nativeTexts + `)))$`)

const nativeTexts = `0?[3-8]|1[349]|14|2[03-9]|3[0-6]|4[125-9]|50|76|83|9[01]`

func value(pen uint32, id uint16, b []byte) string {
	switch {
	case texts.MatchString(fmt.Sprintf("%d:%d", pen, id)):
		return string(bytes.TrimRight(b, "\x00"))
	case pen == 0 && (id == 8 || id == 12 || id == 27 || id == 28):
		a, _ := netip.AddrFromSlice(b)
		return a.String()
	case len(b) > 8:
		return string(b)
	}
	n := uint64(0)
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return strconv.FormatUint(n, 10)
}

// sequence checks RFC 7011, section 3.1: each message carries the number of Data Records before it.
func sequence(t *testing.T, msgs [][]byte) int {
	t.Helper()
	next, records := uint32(0), 0
	fixed := map[uint16][]int{} // field lengths by template, -1 variable
	for i, m := range msgs {
		if got := binary.BigEndian.Uint32(m[8:]); got != next {
			t.Errorf("message %d: sequence %d, want %d", i, got, next)
			next = got
		}
		if int(binary.BigEndian.Uint16(m[2:])) != len(m) {
			t.Errorf("message %d: length %d of %d", i, binary.BigEndian.Uint16(m[2:]), len(m))
		}
		for b := m[16:]; len(b) >= 4; {
			id, n := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
			if n < 4 || n > len(b) {
				t.Fatalf("message %d: set of %d octets", i, n)
			}
			body := b[4:n]
			b = b[n:]
			if id == 2 || id == 3 {
				for len(body) >= 4 {
					tid, count := binary.BigEndian.Uint16(body), int(binary.BigEndian.Uint16(body[2:]))
					body = body[4:]
					if id == 3 {
						body = body[2:]
					}
					lengths := []int{}
					for range count {
						l := int(binary.BigEndian.Uint16(body[2:]))
						if l == 65535 {
							l = -1
						}
						lengths = append(lengths, l)
						if body[0]&0x80 != 0 {
							body = body[4:]
						}
						body = body[4:]
					}
					fixed[tid] = lengths
				}
				continue
			}
			lengths, ok := fixed[id]
			if !ok {
				t.Fatalf("message %d: data before template %d", i, id)
			}
			for len(body) > 0 {
				for _, l := range lengths {
					if l < 0 {
						l, body = int(body[0]), body[1:]
						if l == 255 {
							l, body = int(binary.BigEndian.Uint16(body)), body[2:]
						}
					}
					body = body[l:]
				}
				next++
				records++
			}
		}
	}
	return records
}

// tcpSink stores what a stream brings.
type tcpSink struct {
	l    net.Listener
	mu   sync.Mutex
	data bytes.Buffer
}

func newTCPSink(t *testing.T, addr string) *tcpSink {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &tcpSink{l: l}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 65536)
			for {
				n, err := c.Read(buf)
				s.mu.Lock()
				s.data.Write(buf[:n])
				s.mu.Unlock()
				if err != nil {
					break
				}
			}
			c.Close()
		}
	}()
	return s
}

func (s *tcpSink) bytes() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.data.Bytes())
}

var (
	dumpField = regexp.MustCompile(`^\t\((?:(\d+)/)?(\d+)\)\s*(?:\(S\)\s*)?(\S+) : (.*)$`)
	dumpText  = regexp.MustCompile(`^\(?len: \d+\)?\s*(.*)$`)
)

// ipfixDump decodes a stream by libfixbuf, which learns names and types from the type records.
func ipfixDump(t *testing.T, stream []byte) []fields {
	t.Helper()
	file := filepath.Join(t.TempDir(), "stream.ipfix")
	if err := os.WriteFile(file, stream, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ipfixDump", "--rfc5610", "--in", file).CombinedOutput()
	if err != nil {
		t.Fatalf("ipfixDump: %v\n%s", err, out)
	}
	if bytes.Contains(out, []byte("_alienInformationElement")) {
		t.Error("ipfixDump meets elements without a name")
	}
	var recs []fields
	for line := range strings.Lines(string(out)) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "--- ") {
			if strings.HasPrefix(line, "--- data record") {
				recs = append(recs, fields{})
			}
			continue
		}
		m := dumpField.FindStringSubmatch(line)
		if m == nil || len(recs) == 0 {
			continue
		}
		pen := m[1]
		if pen == "" {
			pen = "0"
		}
		v := m[4]
		if d := dumpText.FindStringSubmatch(v); d != nil {
			v = d[1]
		}
		recs[len(recs)-1][pen+":"+m[2]] = v
		recs[len(recs)-1][m[3]] = v
	}
	return recs
}

// nfcapd is a running nfcapd.
type nfcapd struct {
	t    *testing.T
	dir  string
	port int
	cmd  *exec.Cmd
	log  bytes.Buffer
}

// freePort returns a port that nobody has, below those that connections take.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 10000 + rand.IntN(20000)
		u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err != nil {
			continue
		}
		u.Close()
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		l.Close()
		return port
	}
	t.Fatal("no free port")
	return 0
}

func newNfcapd(t *testing.T) *nfcapd {
	t.Helper()
	needTool(t, "nfcapd")
	n := &nfcapd{t: t, dir: t.TempDir(), port: freePort(t)}
	n.cmd = exec.Command("nfcapd", "-w", n.dir, "-b", "127.0.0.1", "-p", strconv.Itoa(n.port), "-t", "3600", "-B", "8000000")
	n.cmd.Stdout, n.cmd.Stderr = &n.log, &n.log
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.cmd.Process.Kill(); n.cmd.Wait() })
	eventually(t, "nfcapd listens", func() bool {
		// Not by taking the port: nfcapd could find it taken.
		b, _ := os.ReadFile("/proc/net/udp")
		return strings.Contains(string(b), fmt.Sprintf("0100007F:%04X ", n.port))
	})
	return n
}

// flow is what nfdump prints of a record.
type nfFlow struct {
	First      string `json:"first"`
	Last       string `json:"last"`
	InPackets  uint64 `json:"in_packets"`
	InBytes    uint64 `json:"in_bytes"`
	OutPackets uint64 `json:"out_packets"`
	OutBytes   uint64 `json:"out_bytes"`
	Proto      int    `json:"proto"`
	SrcPort    uint16 `json:"src_port"`
	DstPort    uint16 `json:"dst_port"`
	Src4       string `json:"src4_addr"`
	Dst4       string `json:"dst4_addr"`
	Src6       string `json:"src6_addr"`
	Dst6       string `json:"dst6_addr"`
	Flags      string `json:"tcp_flags"`
}

// stop ends nfcapd and returns what nfdump reads.
func (n *nfcapd) stop() []nfFlow {
	n.t.Helper()
	time.Sleep(300 * time.Millisecond) // datagrams on their way
	n.cmd.Process.Signal(syscall.SIGTERM)
	n.cmd.Wait()
	out, err := exec.Command("nfdump", "-R", n.dir, "-q", "-o", "json").Output()
	if err != nil {
		n.t.Fatalf("nfdump: %v\n%s", err, n.log.String())
	}
	var flows []nfFlow
	out = bytes.TrimSpace(out)
	if len(out) > 0 && out[0] != '[' {
		out = append(append([]byte("["), out...), ']')
	}
	if err := json.Unmarshal(out, &flows); err != nil {
		n.t.Fatalf("nfdump: %v\n%s", err, out)
	}
	return flows
}

// tshark checks datagrams by Wireshark's dissector: nothing malformed, and returns its verbose text.
func tshark(t *testing.T, msgs [][]byte) string {
	t.Helper()
	var packets [][]byte
	for _, m := range msgs {
		h := binary.BigEndian.AppendUint16(ipHeader(17, 8+len(m)), 40000)
		h = binary.BigEndian.AppendUint16(h, 4739)
		h = binary.BigEndian.AppendUint16(h, uint16(8+len(m)))
		packets = append(packets, append(append(h, 0, 0), m...))
	}
	return tsharkPackets(t, packets, "udp.port==4739,cflow")
}

// ipHeader is that of an IPv4 packet on loopback.
func ipHeader(proto byte, payload int) []byte {
	h := binary.BigEndian.AppendUint16([]byte{0x45, 0}, uint16(20+payload))
	return append(h, 0, 0, 0, 0, 64, proto, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1)
}

// tcpSegment is an IPv4 packet with a segment of a stream.
func tcpSegment(src, dst uint16, seq uint32, payload []byte) []byte {
	h := binary.BigEndian.AppendUint16(ipHeader(6, 20+len(payload)), src)
	h = binary.BigEndian.AppendUint16(h, dst)
	h = binary.BigEndian.AppendUint32(h, seq)
	h = append(h, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0)
	return append(h, payload...)
}

// writePcap writes a capture of IPv4 packets, one a second.
func writePcap(b *bytes.Buffer, packets [][]byte) {
	le := binary.LittleEndian
	b.Write(le.AppendUint32(nil, 0xa1b2c3d4))
	b.Write([]byte{2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 101, 0, 0, 0}) // raw IP
	for i, p := range packets {
		h := le.AppendUint32(nil, uint32(1_700_000_000+i))
		h = le.AppendUint32(h, 0)
		h = le.AppendUint32(h, uint32(len(p)))
		h = le.AppendUint32(h, uint32(len(p)))
		b.Write(append(h, p...))
	}
}

// tsharkPackets dissects IPv4 packets.
func tsharkPackets(t *testing.T, packets [][]byte, decodeAs string) string {
	t.Helper()
	needTool(t, "tshark")
	var b bytes.Buffer
	writePcap(&b, packets)
	file := filepath.Join(t.TempDir(), "messages.pcap")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd := exec.Command("tshark", "-r", file, "-d", decodeAs, "-V", "-O", "cflow")
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, errs.String())
	}
	for _, bad := range []string{"Malformed", "Unexpected", "No template", "[Expert Info (Error", "[Expert Info (Warning"} {
		if i := strings.Index(string(out), bad); i >= 0 {
			t.Errorf("tshark: %s", out[i:min(len(out), i+200)])
		}
	}
	return string(out)
}

// patience is how long anything may take: ten seconds, and a minute in an emulated machine.
func patience() time.Duration {
	if os.Getenv("SOCKFLOW_EXPORTER") != "" {
		return time.Minute
	}
	return 10 * time.Second
}

// eventually waits for f.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience()); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not within %s: %s", patience(), what)
}

var built string

// buildExporter builds the program under test once.
func buildExporter(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("SOCKFLOW_EXPORTER"); path != "" {
		return path // where there is no Go
	}
	if built != "" {
		return built
	}
	dir, err := os.MkdirTemp("", "sockflow-test-")
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir, 0o755)
	path := filepath.Join(dir, "exporter")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	built = path
	return path
}

// running is the program under test.
type running struct {
	t      *testing.T
	cmd    *exec.Cmd
	out    syncBuffer
	errs   syncBuffer
	exited chan error
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// runExporter starts it and waits until it meters.
func runExporter(t *testing.T, args ...string) *running {
	t.Helper()
	r := &running{t: t, cmd: exec.Command(buildExporter(t), args...), exited: make(chan error, 1)}
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.errs
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { r.exited <- r.cmd.Wait() }() // ends with the program
	t.Cleanup(func() { r.cmd.Process.Kill() })
	eventually(t, "the exporter meters", func() bool { return strings.Contains(r.errs.String(), "metering by") })
	time.Sleep(300 * time.Millisecond) // the first pass
	return r
}

// stop ends it by SIGTERM: it must exit 0 within 2 s.
func (r *running) stop() {
	r.t.Helper()
	begin := time.Now()
	r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-r.exited:
		if err != nil {
			r.t.Errorf("exporter: %v\n%s", err, r.errs.String())
		}
	case <-time.After(patience()):
		r.cmd.Process.Signal(syscall.SIGQUIT)
		<-r.exited
		r.t.Fatalf("exporter does not end\n%s", r.errs.String())
	}
	if d := time.Since(begin); d > patience()/5 {
		r.t.Errorf("exporter took %s to end", d)
	}
}

// json returns the records that it printed.
func (r *running) json() []jsonRecord {
	r.t.Helper()
	var recs []jsonRecord
	d := json.NewDecoder(strings.NewReader(r.out.String()))
	for {
		var j jsonRecord
		if err := d.Decode(&j); err != nil {
			if err != io.EOF {
				r.t.Errorf("output is not JSON lines: %v", err)
			}
			return recs
		}
		if j.Start != "" { // else it is an interface
			recs = append(recs, j)
		}
	}
}
