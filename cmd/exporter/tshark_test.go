package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

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
