package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// runDoctor returns what doctor says and its exit status.
func runDoctor(t *testing.T, credential *syscall.Credential, args ...string) (checks map[string]check, out string, status int) {
	t.Helper()
	c := exec.Command(buildExporter(t), append([]string{"doctor", "--json"}, args...)...)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	b, err := c.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	var report struct {
		OK     bool
		Checks []check
	}
	if err := json.Unmarshal(b, &report); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	if report.OK != (status == 0) {
		t.Errorf("ok %t, exit status %d", report.OK, status)
	}
	checks = map[string]check{}
	for _, c := range report.Checks {
		checks[c.Group+"/"+c.Name] = c
		if c.Verdict == bad && c.Remedy == "" {
			t.Errorf("no remedy for %+v", c)
		}
	}
	return checks, string(b), status
}

func want(t *testing.T, checks map[string]check, name string, v verdict, detail string) {
	t.Helper()
	if c := checks[name]; c.Verdict != v || !strings.Contains(c.Detail, detail) {
		t.Errorf("%s is %+v, want %s %q", name, c, v, detail)
	}
}

func TestDoctor(t *testing.T) {
	needRoot(t)
	sink, stream := newUDPSink(t), newTCPSink(t, "127.0.0.1:0")
	address := "udp://127.0.0.1:" + strconv.Itoa(sink.port())
	// A sparse host may lack what is not essential: a collector and the source decide.
	checks, out, _ := runDoctor(t, nil, "-c", address, "-c", "tcp://"+stream.l.Addr().String(), "--test-flow")
	want(t, checks, "eBPF hooks/tp_btf/tcp_destroy_sock", good, "attached")
	want(t, checks, "eBPF hooks/iter/task_file", good, "attached")
	want(t, checks, "eBPF hooks/source", good, "")
	want(t, checks, "Privileges/CAP_NET_ADMIN", good, "")
	want(t, checks, "Netlink/sock_diag", good, "sockets in")
	want(t, checks, "Self-test/connection", good, "seen by eBPF, with its process")
	want(t, checks, "Collectors/"+address, good, "test flow")
	want(t, checks, "Collectors/path MTU", good, "octets to 127.0.0.1")
	want(t, checks, "Collectors/tcp://"+stream.l.Addr().String(), good, "test flow")
	if strings.Contains(out, "\\u003c") {
		t.Errorf("%s", out)
	}
	found := false
	for _, r := range goflow2(t, sink.messages()) {
		found = found || r["0:8"] == "192.0.2.1" && r["0:12"] == "192.0.2.2" && r["0:1"] == "29" && r["35632:169"] == "/sockflow-doctor"
	}
	if !found {
		t.Error("the collector has no test flow")
	}

	// What is missing is named, with what is lost and what helps.
	checks, _, status := runDoctor(t, nil, "--without-hook", "destroyed", "--without-hook", "count_in", "-c", "tcp://127.0.0.1:1", "-c", "udp://127.0.0.1:1")
	if status != 1 {
		t.Errorf("exit status %d", status)
	}
	want(t, checks, "eBPF hooks/tp_btf/tcp_destroy_sock", bad, "TCP connections")
	want(t, checks, "eBPF hooks/cgroup_skb/ingress", bad, "datagrams received")
	want(t, checks, "eBPF hooks/cgroup_skb/egress", good, "attached")
	want(t, checks, "eBPF hooks/source", bad, "netlink is used")
	want(t, checks, "Self-test/connection", good, "seen by netlink, with its process")
	want(t, checks, "Collectors/tcp://127.0.0.1:1", bad, "connection refused")
	want(t, checks, "Collectors/udp://127.0.0.1:1", bad, "connection refused")

	// Without privileges it works, and says what is missing.
	checks, _, status = runDoctor(t, &syscall.Credential{Uid: 65534, Gid: 65534})
	if status != 1 {
		t.Errorf("exit status %d", status)
	}
	want(t, checks, "Privileges/CAP_BPF", bad, "load eBPF programs")
	want(t, checks, "Privileges/CAP_SYS_ADMIN", reduced, "namespaces")
	want(t, checks, "eBPF hooks/source", bad, "netlink is used")
	want(t, checks, "Self-test/connection", good, "seen by netlink, with its process")
}

// TestDoctorKube: what the API server lets this host list.
func TestDoctorKube(t *testing.T) {
	refuses := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	defer refuses.Close()
	for server, what := range map[string]struct {
		verdict verdict
		detail  string
	}{
		cluster1(t):          {good, "are told"},
		refuses.URL:          {bad, "refused"},
		"http://127.0.0.1:1": {bad, "no answer"},
	} {
		s := settings{kube: kubeSettings{server: server, pods: "all", max: 100}}
		d := &doctor{settings: &s, group: "Kubernetes"}
		d.kubernetes()
		if len(d.checks) != 3 {
			t.Errorf("%s: %+v", server, d.checks)
		}
		for _, c := range d.checks {
			if c.Verdict != what.verdict || !strings.Contains(c.Detail, what.detail) {
				t.Errorf("%s: %+v, want %s %q", server, c, what.verdict, what.detail)
			}
		}
	}
}

// TestDoctorNotSeen: what no socket of this kernel has is named.
func TestDoctorNotSeen(t *testing.T) {
	dir := t.TempDir()
	write := func(file, text string) {
		t.Helper()
		os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755)
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("net/eth0/uevent", "INTERFACE=eth0\nIFINDEX=2\n")
	write("net/flannel.1/uevent", "DEVTYPE=vxlan\nINTERFACE=flannel.1\nIFINDEX=3\n")
	write("net/wg0/uevent", "DEVTYPE=wireguard\nINTERFACE=wg0\n")
	write("net/br0/uevent", "DEVTYPE=bridge\n")
	if d := cmp.Diff([]string{"flannel.1 (vxlan)", "wg0 (wireguard)"}, tunnelInterfaces(filepath.Join(dir, "net"))); d != "" {
		t.Error(d)
	}
	for pid, comm := range map[string]string{"1": "init", "7": "runsc-sandbox", "8": "qemu-system-x86", "9": "runsc-sandbox", "self": "runsc-sandbox"} {
		write("proc/"+pid+"/comm", comm+"\n")
	}
	if d := cmp.Diff([]string{"1 of QEMU", "2 of gVisor"}, guests(filepath.Join(dir, "proc"))); d != "" {
		t.Error(d)
	}
	write("proc/net/ip_vs", "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"+
		"TCP  0A600707:0050 rr\n  -> 0AF40002:1F90      Masq    1      0          0\nUDP  0A600707:0035 rr\n  -> 0AF40002:14E9      Masq    1      0          0\n")
	d := &doctor{settings: &settings{proc: filepath.Join(dir, "proc")}, group: "Not seen"}
	if d.unseen(); len(d.checks) != 4 || !strings.HasPrefix(d.checks[2].Detail, "services over UDP: 1;") || !strings.Contains(d.checks[3].Detail, "2 of gVisor") {
		t.Errorf("%+v", d.checks)
	}
}

// TestDoctorTable: every bad line is followed by its remedy.
func TestDoctorTable(t *testing.T) {
	var out strings.Builder
	d := &doctor{group: "Kernel"}
	d.say(good, "BTF", "there", "not needed")
	d.say(bad, "hook", "not\nthere", "do this")
	d.group = "Other"
	d.say(reduced, "third", "half", "do that")
	if err := d.report(&out, false); err != errUnwell {
		t.Errorf("%v", err)
	}
	want := strings.Join([]string{
		"Kernel",
		"  ✓ BTF                            there",
		"  ✗ hook                           not there",
		"                                   → do this",
		"Other",
		"  ! third                          half",
		"                                   → do that", "",
	}, "\n")
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	d.checks = d.checks[:1]
	if err := d.report(&out, true); err != nil {
		t.Errorf("%v", err)
	}
}
