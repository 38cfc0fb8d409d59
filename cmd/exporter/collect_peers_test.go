package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/netsampler/goflow2/v2/decoders/netflow"

	"github.com/sockflow/sockflow/collector"
	"github.com/sockflow/sockflow/ipfix"
)

// decoded returns what our decoder makes of messages.
func decoded(t *testing.T, msgs [][]byte) []collector.Record {
	t.Helper()
	s, err := collector.NewSession(collector.Config{Datagrams: true})
	if err != nil {
		t.Fatal(err)
	}
	recs, err := s.Messages(msgs)
	if err != nil {
		t.Fatal(err)
	}
	return recs
}

// TestCollectAgainstGoflow2 compares the octets of every field of every record, options data included, with those that goflow2 finds
// in the same messages: ours and pmacct's.
func TestCollectAgainstGoflow2(t *testing.T) {
	for name, msgs := range map[string][][]byte{
		"ipfix": exported(t, ipfix.IPFIX), "netflow9": exported(t, ipfix.NetFlowV9), "pmacct ipfix": probed(t, 10), "pmacct netflow9": probed(t, 9),
	} {
		var ours, theirs []string
		for _, r := range decoded(t, msgs) {
			line := ""
			for i, f := range r.Template.Fields {
				line += fmt.Sprintf("%d:%d=%x ", f.PEN, f.ID, r.Values[i])
			}
			ours = append(ours, line)
		}
		known := netflow.CreateTemplateSystem()
		for i, m := range msgs {
			var v9 netflow.NFv9Packet
			var v10 netflow.IPFIXPacket
			if err := netflow.DecodeMessageVersion(bytes.NewBuffer(m), known, &v9, &v10); err != nil {
				t.Errorf("%s: goflow2: message %d: %v", name, i, err)
			}
			for _, set := range append(v9.FlowSets, v10.FlowSets...) {
				switch set := set.(type) {
				case netflow.DataFlowSet:
					for _, r := range set.Records {
						theirs = append(theirs, goflow2Line(r.Values))
					}
				case netflow.OptionsDataFlowSet:
					for _, r := range set.Records {
						theirs = append(theirs, goflow2Line(r.ScopesValues)+goflow2Line(r.OptionsValues))
					}
				}
			}
		}
		if d := cmp.Diff(theirs, ours); d != "" || len(ours) == 0 {
			t.Errorf("%s: %d records (-goflow2 +ours)\n%s", name, len(ours), d)
		}
	}
}

func goflow2Line(values []netflow.DataField) string {
	line := ""
	for _, v := range values {
		pen := uint32(0)
		if v.PenProvided {
			pen = v.Pen
			v.Type &= 0x7fff // of options it keeps the enterprise bit
		}
		line += fmt.Sprintf("%d:%d=%x ", pen, v.Type, v.Value)
	}
	return line
}

// TestCollectAgainstLibfixbuf compares names and values with those that ipfixDump prints of the same messages.
func TestCollectAgainstLibfixbuf(t *testing.T) {
	needTool(t, "ipfixDump")
	for name, msgs := range map[string][][]byte{"ours": exported(t, ipfix.IPFIX), "pmacct": probed(t, 10)} {
		theirs := ipfixDump(t, bytes.Join(msgs, nil))
		ours := decoded(t, msgs)
		if len(ours) != len(theirs) || len(ours) == 0 {
			t.Errorf("%s: %d records, libfixbuf %d", name, len(ours), len(theirs))
			continue
		}
		for i := range ours {
			for j, f := range ours[i].Template.Fields {
				their, ok := theirs[i][f.Name()]
				if !ok {
					t.Errorf("%s record %d: libfixbuf has no %s: %v", name, i, f.Name(), theirs[i])
				} else if our := dumped(ours[i].Value(j), their); our != their {
					t.Errorf("%s record %d: %s is %q, libfixbuf %q", name, i, f.Name(), our, their)
				}
			}
		}
	}
}

// dumped is a value as ipfixDump prints it.
func dumped(v any, their string) string {
	switch v := v.(type) {
	case time.Time:
		return v.Format("2006-01-02 15:04:05.000")
	case netip.Addr:
		if a, err := netip.ParseAddr(their); err == nil && a == v {
			return their
		}
		return v.String()
	case []byte:
		if their == "" { // it prints octets on request only
			return ""
		}
		return hex.EncodeToString(v)
	}
	return fmt.Sprint(v)
}

var probes map[int][][]byte // by version

// probed returns the messages of another exporter, nfprobe of pmacct, about six packets. It takes its time, and is asked once.
func probed(t *testing.T, version int) [][]byte {
	t.Helper()
	if probes[version] != nil {
		return probes[version]
	}
	needTool(t, "pmacctd")
	sinks := map[int]*udpSink{5: newUDPSink(t), 9: newUDPSink(t), 10: newUDPSink(t)}
	for version, sink := range sinks {
		dir := t.TempDir()
		var b bytes.Buffer
		writePcap(&b, probedPackets())
		for name, text := range map[string]string{"pcap": b.String(), "conf": fmt.Sprintf(`daemonize: false
pcap_savefile: %s/pcap
plugins: nfprobe
aggregate: src_host,dst_host,src_port,dst_port,proto,tos
nfprobe_receiver: 127.0.0.1:%d
nfprobe_version: %d
`, dir, sink.port(), version)} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		log, err := os.Create(filepath.Join(dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		cmd := exec.Command("pmacctd", "-f", filepath.Join(dir, "conf"))
		cmd.Stdout, cmd.Stderr = log, log // no pipe: its plugin outlives it for a moment
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); cmd.Wait() }()
	}
	eventually(t, "pmacctd exports", func() bool {
		return len(sinks[5].messages()) > 0 && len(sinks[9].messages()) > 0 && len(sinks[10].messages()) > 0
	})
	time.Sleep(100 * time.Millisecond)
	probes = map[int][][]byte{5: sinks[5].messages(), 9: sinks[9].messages(), 10: sinks[10].messages()}
	return probes[version]
}

// probedPackets are three segments there, two back, and a datagram.
func probedPackets() [][]byte {
	var packets [][]byte
	for i := range uint32(3) {
		packets = append(packets, tcpSegment(40000, 443, 1+100*i, make([]byte, 100)))
	}
	for i := range uint32(2) {
		packets = append(packets, tcpSegment(443, 40000, 1+1000*i, make([]byte, 1000)))
	}
	h := append(ipHeader(17, 8+50), 0x9c, 0x41, 0, 53, 0, 58, 0, 0)
	return append(packets, append(h, make([]byte, 50)...))
}

// TestCollectForeign is collect with another exporter: what it prints are the packets that this one saw.
func TestCollectForeign(t *testing.T) {
	r, addrs := runCollect(t, "--listen", "udp://127.0.0.1:0")
	conn, err := net.Dial("udp", addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	want := map[string][2]float64{"40000-443": {3 * 140, 3}, "443-40000": {2 * 1040, 2}, "40001-53": {78, 1}}
	for _, version := range []int{5, 9, 10} {
		for _, m := range probed(t, version) {
			if _, err := conn.Write(m); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "nine flows", func() bool { return strings.Count(r.out.String(), "\n") == 9 })
	r.stop()
	for line := range strings.Lines(r.out.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		w, ok := want[flowKey(m["sourceTransportPort"], m["destinationTransportPort"])]
		if !ok || m["octetDeltaCount"] != w[0] || m["packetDeltaCount"] != w[1] || m["sourceIPv4Address"] != "127.0.0.1" ||
			m["@protocol"] != "netflow5" && // whose clock does not reach back so far
				!strings.HasPrefix(fmt.Sprint(m["flowStartMilliseconds"]), "2023-11-14T22:13:2") {
			t.Errorf("%s", line)
		}
	}
}
