package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

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

// byRow assigns flows to their rows, by their ports.
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
