package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestReloadFields: at SIGHUP collectors get the fields that the file says by then. On a stream the old templates are withdrawn.
func TestReloadFields(t *testing.T) {
	needRoot(t)
	needTool(t, "ipfixDump")
	stream, ninth := newTCPSink(t, "127.0.0.1:0"), newUDPSink(t)
	config := filepath.Join(t.TempDir(), "sockflow.yaml")
	write := func(fields, dialect string) {
		t.Helper()
		if err := os.WriteFile(config, fmt.Appendf(nil, "collector:\n- json:-\n- tcp://%s%s\n- netflow9+udp://127.0.0.1:%d\ndialect: %s\n", stream.l.Addr(), fields, ninth.port(), dialect), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("", "known")
	r := runExporter(t, "--config", config)
	hup := func(says string) {
		t.Helper()
		n := strings.Count(r.errs.String(), says)
		r.cmd.Process.Signal(syscall.SIGHUP)
		eventually(t, says, func() bool { return strings.Count(r.errs.String(), says) > n })
	}
	srv := start(t, "reload-server", "", "server", "127.0.0.1", "10")
	ports := srv.next()
	talk := func(name string) {
		t.Helper()
		start(t, name, "", "client", "127.0.0.1", strconv.Itoa(ports.TCP), "0", "1", "100").end()
		eventually(t, "the record of "+name, func() bool {
			return strings.Contains(r.out.String(), name) && bytes.Contains(stream.bytes(), []byte(name))
		})
	}
	talk("before-reload")
	write("?fields=%2BobservationDomainName,-sourceProcessName", "native")
	hup("settings are read again")
	talk("after-reload")
	write("?fields=-nonsense", "native")
	hup("a setting stays as it was")
	hup("a setting stays as it was")
	talk("same-as-before")
	srv.end()
	r.stop()

	recs := ipfixDump(t, stream.bytes())
	for name, want := range map[string]bool{"before-reload": false, "after-reload": true, "same-as-before": true} {
		n := 0
		for _, f := range recs {
			if strings.HasSuffix(f["sourceProcessPath"], name) {
				n++
				if _, has := f["observationDomainName"]; has != want {
					t.Errorf("%s: %v", name, f)
				}
				if _, has := f["sourceProcessName"]; has == want {
					t.Errorf("%s: %v", name, f)
				}
			}
		}
		if n == 0 {
			t.Errorf("no record of %s", name)
		}
	}
	withdrawn := 0
	for b := stream.bytes(); len(b) >= 16; b = b[binary.BigEndian.Uint16(b[2:]):] {
		for m := b[16:binary.BigEndian.Uint16(b[2:])]; len(m) >= 8; m = m[binary.BigEndian.Uint16(m[2:]):] {
			if binary.BigEndian.Uint16(m) == 2 && binary.BigEndian.Uint16(m[6:]) == 0 {
				withdrawn++
			}
		}
	}
	if withdrawn == 0 {
		t.Error("nothing was withdrawn")
	}
	natives := 0
	for _, f := range goflow2(t, ninth.messages()) {
		if strings.HasSuffix(f["0:30003"], "after-reload") {
			natives++
		}
	}
	if natives == 0 {
		t.Error("netflow v9 did not follow")
	}
}
