package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// cluster1 is a Kubernetes API server with three objects that never change.
func cluster1(t *testing.T) string {
	t.Helper()
	lists := map[string]string{
		"/api/v1/pods": `{"metadata":{"name":"db-0","namespace":"shop","uid":"u1"},"spec":{"nodeName":"n7"},"status":{"phase":"Running","podIP":"10.99.0.77","podIPs":[{"ip":"10.99.0.77"}]}}`,
		"/api/v1/services": `{"metadata":{"name":"web","namespace":"shop","uid":"u2"},"spec":{"clusterIP":"10.98.0.1","ports":[{"port":17021,"protocol":"TCP"},{"port":17022,"protocol":"UDP"}]}},` +
			`{"metadata":{"name":"gone","namespace":"shop","uid":"u4"},"spec":{"clusterIP":"10.99.0.78","ports":[{"port":53,"protocol":"UDP"}]}}`,
		"/api/v1/nodes": `{"metadata":{"name":"n8","uid":"u3"},"status":{"addresses":[{"type":"InternalIP","address":"10.99.0.79"}]}}`,
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") == "" {
			fmt.Fprintf(w, `{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":[%s]}`, lists[r.URL.Path])
			return
		}
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.URL
}

// TestKube: names of ends that are not here, and of the service that one that is here was spoken to as.
func TestKube(t *testing.T) {
	ns, _ := netns(t)
	for _, last := range []string{"77", "78", "79"} { // nobody is there
		ip(t, "-n "+ns+" neigh add 10.99.0."+last+" lladdr 02:00:00:00:00:77 dev sfv0 nud permanent")
	}
	const tcp, udp = 17020, 17021
	a, b := router(t, ipv4, tcp, udp)
	needTool(t, "ipfixDump")
	port := freePort(t)
	collector := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	sink := newTCPSink(t, collector)
	r := runExporter(t, "--metrics", fmt.Sprintf("127.0.0.1:%d", port), "--kube", cluster1(t), "--idle-timeout", "1s", "-c", "json:-", "-c", "tcp://"+collector)
	metrics := func() string {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
		if err != nil {
			return "" // not yet
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return string(b)
	}
	eventually(t, "the cluster is known", func() bool {
		m := metrics()
		return strings.Contains(m, `sockflow_kube_objects{kind="pods"} 1`) && strings.Contains(m, `sockflow_kube_objects{kind="services"} 2`) && strings.Contains(m, `sockflow_kube_objects{kind="nodes"} 1`)
	})
	exec.Command("ip", "netns", "exec", ns, "bash", "-c", "for n in 77 78 79; do echo x >/dev/udp/10.99.0.$n/53; done").Run()
	srv := start(t, "charlie-server", b, "server", "10.98.1.2", "77", strconv.Itoa(tcp), strconv.Itoa(udp))
	srv.next()
	cr := start(t, "dog-client", a, "client", "10.98.0.1", strconv.Itoa(tcp+1), strconv.Itoa(udp+1), "1", "900").end()
	srv.end()
	time.Sleep(1500 * time.Millisecond)
	m := metrics()
	r.stop()
	got := map[string]int{}
	for _, j := range r.json() {
		switch d := j.DestEnd; {
		case strings.HasPrefix(j.Dest.String(), "10.99.0.7"):
			what := j.Dest.String()
			if d != nil {
				what += " " + d.Service + "@" + d.Node
				if d.Container != nil {
					what += " " + d.Container.Namespace + "/" + d.Container.Pod + " " + d.Container.PodUID
				}
				if d.PID != 0 || d.UID != nil || d.NetNS != 0 {
					t.Errorf("an end elsewhere: %+v", d)
				}
			}
			if j.SourceEnd == nil || j.SourceEnd.PID == 0 || j.SourceEnd.Service != "" {
				t.Errorf("the end here: %+v", j.SourceEnd)
			}
			got[what]++
		case j.SourceEnd != nil && int(j.SourceEnd.PID) == cr.PID:
			if d == nil || d.PID == 0 || d.Service != "shop/web" || d.Node != "" {
				t.Errorf("%s: %+v", j.Protocol, d)
			}
			got[j.Protocol]++
		}
	}
	want := map[string]int{"10.99.0.77 @n7 shop/db-0 u1": 1, "10.99.0.78 shop/gone@": 1, "10.99.0.79 @n8": 1, "tcp": 1, "udp": 1}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
	// And on the wire.
	wire := map[string]int{}
	for _, f := range ipfixDump(t, sink.bytes()) {
		switch to := f["destinationIPv4Address"]; {
		case strings.HasPrefix(to, "10.99.0.7"):
			wire[strings.Join([]string{to, f["destinationServiceName"], f["destinationNodeName"], f["destinationPodNamespace"], f["destinationPodName"]}, " ")]++
		case f["destinationServiceName"] == "shop/web":
			wire[strings.Join([]string{to, f["postNATDestinationIPv4Address"], f["postNAPTDestinationTransportPort"]}, " ")]++
		}
	}
	want = map[string]int{
		"10.99.0.77  n7 shop db-0": 1, "10.99.0.78 shop/gone   ": 1, "10.99.0.79  n8  ": 1, "10.98.0.1 10.98.1.2 17020": 1, "10.98.0.1 10.98.1.2 17021": 1,
	}
	if fmt.Sprint(wire) != fmt.Sprint(want) {
		t.Errorf("on the wire: %v, want %v", wire, want)
	}
	for _, line := range []string{`sockflow_kube_named_ends_total{kind="pods"} 1`, `sockflow_kube_named_ends_total{kind="services"} 3`, `sockflow_kube_errors_total{cause="failed",kind="pods"} 0`} {
		if !strings.Contains(m, line) {
			t.Errorf("no %s in the metrics", line)
		}
	}
	for _, args := range []string{"--kube /nonexistent", "--kube https://x --kube-pods some", "--kube-node x", "--kube http://10.0.0.1 --kube-token /dev/null"} {
		out, err := exec.Command(buildExporter(t), strings.Fields(args)...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), "--kube") {
			t.Errorf("%s: %v %s", args, err, out)
		}
	}
}
