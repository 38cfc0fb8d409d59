package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// threads returns the values of a line of status, of every thread of a process.
func threads(t *testing.T, pid int, line string) []string {
	t.Helper()
	files, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/status")
	if len(files) == 0 {
		t.Fatalf("%d has no threads", pid)
	}
	var values []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // a thread that ended
		}
		for l := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(l, line+":"); ok {
				values = append(values, strings.TrimSpace(v))
			}
		}
	}
	return values
}

func hexSet(caps ...uint) string {
	var n uint64
	for _, c := range caps {
		n |= 1 << c
	}
	s := strconv.FormatUint(n, 16)
	return strings.Repeat("0", 16-len(s)) + s
}

// TestPrivileges: every thread has what it needs and no more, and flows of other namespaces are still metered and audited.
func TestPrivileges(t *testing.T) {
	needRoot(t)
	least := hexSet(unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN)
	ambient := hexSet(unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN, unix.CAP_SYS_PTRACE)
	for _, tc := range []struct {
		mode, caps string
		ambient    bool // by a user with ambient capabilities, not root
	}{
		{"drop", hexSet(keptCapabilities...), false},
		{"least", least, false},
		{"drop", ambient, true},
	} {
		t.Run(tc.mode+map[bool]string{true: "-ambient"}[tc.ambient], func(t *testing.T) {
			args := []string{buildExporter(t), "--privileges", tc.mode, "--metrics", "none", "--snapshot-interval", "1s", "--containerd", "none", "--docker", "none"}
			if tc.ambient {
				needTool(t, "setpriv")
				caps := "+bpf,+perfmon,+net_admin,+sys_ptrace"
				args = append([]string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps", caps, "--ambient-caps", caps}, args...)
			}
			r := launch(t, exec.Command(args[0], args[1:]...))
			eventually(t, "metering by eBPF", func() bool { return strings.Contains(r.errs.String(), "metering by eBPF") })
			pid := r.cmd.Process.Pid
			eventually(t, "the filter", func() bool { return threads(t, pid, "Seccomp")[0] == "2" })
			for line, want := range map[string]string{"CapEff": tc.caps, "CapPrm": tc.caps, "CapInh": hexSet(), "CapAmb": hexSet(), "NoNewPrivs": "1", "Seccomp": "2"} {
				for _, got := range threads(t, pid, line) {
					if got != want && !(line == "CapInh" && tc.ambient) {
						t.Errorf("%s is %s, want %s", line, got, want)
					}
				}
			}
			srv := start(t, "papa-server", "", "server", "127.0.0.1", "100")
			ports := srv.next()
			cl := start(t, "quebec-client", "", "client", "127.0.0.1", strconv.Itoa(ports.TCP), strconv.Itoa(ports.UDP), "2", "1000")
			cl.end()
			srv.end()
			r.stop()
			found := 0
			for _, rec := range r.json() {
				if rec.DestPort == uint16(ports.TCP) && rec.SourceEnd != nil && rec.DestEnd != nil && strings.HasSuffix(rec.SourceEnd.Path, "/quebec-client") && strings.HasSuffix(rec.DestEnd.Path, "/papa-server") {
					found++
				}
			}
			if found == 0 {
				t.Errorf("no flow with both programs\n%s", r.errs.String())
			}
			if strings.Contains(r.errs.String(), "not given up") {
				t.Error(r.errs.String())
			}
		})
	}
}
