package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/sockflow/sockflow/flowcache"
)

// TestList: the one-shot view shows sockets of other namespaces, with the processes of both ends, and what ss says of them.
func TestList(t *testing.T) {
	needRoot(t)
	needTool(t, "ss")
	a, b := netns(t)
	srv := start(t, "november-server", b, "server", "10.99.0.2", "0")
	ports := srv.next()
	h := start(t, "oscar-hold", a, "hold", "10.99.0.2", strconv.Itoa(ports.TCP))
	h.next()
	list := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(buildExporter(t), append([]string{"list"}, args...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	remote := "10.99.0.2:" + strconv.Itoa(ports.TCP)
	out := list("-a", "-o", "table")
	for _, want := range []string{"november-server", "oscar-hold", "LISTEN", "ESTAB", "UNCONN", remote} {
		if !strings.Contains(out, want) {
			t.Errorf("list does not show %s:\n%s", want, out)
		}
	}
	// The truth about the connection, which is idle.
	truth, err := exec.Command("ip", "netns", "exec", a, "ss", "-tinpH", "dst", "10.99.0.2").Output()
	if err != nil {
		t.Fatal(err)
	}
	rtt := regexp.MustCompile(`rtt:([0-9.]+)/([0-9.]+)`).FindSubmatch(truth)
	pid := regexp.MustCompile(`pid=([0-9]+)`).FindSubmatch(truth)
	cwnd := regexp.MustCompile(`cwnd:([0-9]+)`).FindSubmatch(truth)
	if rtt == nil || pid == nil || cwnd == nil {
		t.Fatalf("%s", truth)
	}
	port := fmt.Sprint(ports.TCP)
	var found []jsonSocket
	d := json.NewDecoder(strings.NewReader(list("-t", "--process", "oscar-*", "--port", port, "--address", "10.99.0.0/24", "--user", "root", "--state", "estab", "-o", "json")))
	for d.More() {
		var j jsonSocket
		if err := d.Decode(&j); err != nil {
			t.Fatal(err)
		}
		found = append(found, j)
	}
	if len(found) != 1 {
		t.Fatalf("%+v", found)
	}
	j := found[0]
	if want, _ := strconv.ParseFloat(string(rtt[1]), 64); float64(j.TCP.SRTT)/1000 != want {
		t.Errorf("RTT %d µs; ss says %s", j.TCP.SRTT, rtt[1])
	}
	if want, _ := strconv.ParseFloat(string(rtt[2]), 64); float64(j.TCP.RTTVar)/1000 != want {
		t.Errorf("RTT variance %d µs; ss says %s", j.TCP.RTTVar, rtt[2])
	}
	if fmt.Sprint(j.End.PID) != string(pid[1]) || fmt.Sprint(j.TCP.Window) != string(cwnd[1]) {
		t.Errorf("PID %d, cwnd %d; ss says %s", j.End.PID, j.TCP.Window, truth)
	}
	if j.Peer == nil || !strings.HasSuffix(j.Peer.Path, "/november-server") || j.End.ParentPID == 0 || j.Remote != "10.99.0.2" {
		t.Errorf("%+v; the peer is %+v", j, j.Peer)
	}
	if out := list("-t", "--process", "oscar-*"); !strings.Contains(out, "oscar-hold["+string(pid[1])+"] root → november-server[") {
		t.Errorf("%s", out)
	}
	rows, err := csv.NewReader(strings.NewReader(list("-o", "csv", "-p", string(pid[1])))).ReadAll()
	if err != nil || len(rows) != 2 || len(rows[0]) != len(columns) || rows[0][4] != "sent" || rows[1][3] != remote {
		t.Errorf("%v, %v", rows, err)
	}
	wide := strings.Split(list("-o", "wide", "-l", "-t", "--port", port), "\n")
	if len(wide) != 3 || !strings.Contains(wide[0], "PARENT") || !strings.Contains(wide[1], "november-server") {
		t.Errorf("%q", wide)
	}
	h.end()
	srv.end()
}

func TestListFilter(t *testing.T) {
	a := flowcache.AddrFrom4
	l := listed{
		o: flowcache.Observation{
			Key: flowcache.Key{Src: a([4]byte{10, 0, 0, 1}), Dst: a([4]byte{10, 0, 0, 2}), SrcPort: 4000, DstPort: 443, Proto: 6}, TCP: flowcache.TCPMetrics{State: flowcache.TCPEstablished},
		},
		end: &flowcache.End{
			UID: 33, Process: flowcache.ProcessID{PID: 7}, Who: &flowcache.Process{Path: "/usr/sbin/nginx", Name: "nginx", UserName: "www-data"},
			Container: &flowcache.Workload{ContainerID: "deadbeef", ContainerName: "web", PodName: "front-1", PodNamespace: "shop"},
		},
	}
	for _, tc := range []struct {
		args string
		want bool
	}{
		{"", true}, {"-l", false}, {"-a", true}, {"-t", true}, {"-u", false}, {"-t -u", true}, {"-4", true}, {"-6", false},
		{"--state ESTAB", true}, {"--state listen", false}, {"--state LISTEN,ESTAB", true},
		{"--port 443", true}, {"--port 4000", true}, {"--port 80", false}, {"--port 80 --port 443", true},
		{"--address 10.0.0.2", true}, {"--address 10.0.0.0/30", true}, {"--address 10.0.1.0/24,::1", false},
		{"-p 7", true}, {"-p 8", false}, {"--user www-data", true}, {"--user 33", true}, {"--user root", false},
		{"--process nginx", true}, {"--process ngin?", true}, {"--process ngin", false}, {"--process /usr/sbin/*", true}, {"--process /bin/*", false},
		{"--container web", true}, {"--container dead", true}, {"--container w*", true}, {"--container beef", false},
		{"--pod front-1", true}, {"--pod front-*", true}, {"--pod shop/front-1", true}, {"--pod bar/front-1", false}, {"--pod shop", false},
		{"--pod front-1 --port 80", false},
	} {
		cmd := newListCommand(nil, nil)
		var f listFilter
		cmd.ResetFlags()
		f.addFlags(cmd.Flags())
		if err := cmd.ParseFlags(strings.Fields(tc.args)); err != nil {
			t.Fatal(err)
		}
		if err := f.check(); err != nil || f.match(&l) != tc.want {
			t.Errorf("%s: %t, %v", tc.args, f.match(&l), err)
		}
	}
	for _, tc := range []string{"-4 -6", "--state GONE", "--port 70000", "--address here", "--process [", "--pod ["} {
		var stderr bytes.Buffer
		status := execute(append([]string{"exporter", "list"}, strings.Fields(tc)...), &bytes.Buffer{}, &stderr)
		if status != 2 || stderr.Len() == 0 {
			t.Errorf("%s: status %d, %q", tc, status, stderr.String())
		}
	}
}
