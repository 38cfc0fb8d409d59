package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/netsampler/goflow2/v2/decoders/netflow"
)

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
