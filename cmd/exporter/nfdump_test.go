package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// nfcapd is a running nfcapd.
type nfcapd struct {
	t    *testing.T
	dir  string
	port int
	cmd  *exec.Cmd
	log  bytes.Buffer
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
	Flows      uint64 `json:"aggr_flows"`
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
