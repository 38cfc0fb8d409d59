package main

import (
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sockflow/sockflow/flowcache"
)

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

// TestFlowMetrics: the page has the flows of programs to the octet, promtool finds nothing wrong with it, and it
// reports health.
func TestFlowMetrics(t *testing.T) {
	needRoot(t)
	needTool(t, "promtool")
	page := fmt.Sprintf("http://127.0.0.1:%d", freePort(t))
	r := runExporter(t, "--metrics", strings.TrimPrefix(page, "http://"), "--flow-metrics", "process", "--pprof", "-c", "json:-", "--active-timeout", "1s")
	srv := start(t, "romeo-server", "", "server", "127.0.0.1", "2500")
	ports := srv.next()
	cl := start(t, "sierra-client", "", "client", "127.0.0.1", strconv.Itoa(ports.TCP), strconv.Itoa(ports.UDP), "6", "40000")
	counts := []*report{cl.end(), srv.end()}
	eventually(t, "it is ready", func() bool { code, body := get(t, page+"/readyz"); return code == 200 && body == "ready\n" })
	var sent, received uint64
	for _, f := range counts[0].Flows {
		sent, received = sent+f.Sent, received+f.Received
	}
	want := []string{
		fmt.Sprintf(`sockflow_flow_payload_octets_total{container="",direction="sent",namespace="",pod="",process="sierra-client"} %s`, promNumber(sent)),
		fmt.Sprintf(`sockflow_flow_payload_octets_total{container="",direction="received",namespace="",pod="",process="sierra-client"} %s`, promNumber(received)),
		`sockflow_flow_tcp_connections_total{container="",namespace="",pod="",process="romeo-server",result="ended"} `,
		`sockflow_flow_rtt_seconds_count{container="",namespace="",pod="",process="sierra-client"} `,
	}
	var body string
	eventually(t, "the octets that the program counted", func() bool {
		_, body = get(t, page+"/metrics")
		for _, w := range want {
			if !strings.Contains(body, w) {
				return false
			}
		}
		return true
	})
	check := exec.Command("promtool", "check", "metrics")
	check.Stdin = strings.NewReader(body)
	if out, err := check.CombinedOutput(); err != nil || len(strings.TrimSpace(string(out))) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}
	if !strings.Contains(body, "sockflow_build_info{goversion=") {
		t.Error("no build info")
	}
	if code, _ := get(t, page+"/debug/pprof/goroutine?debug=1"); code != 200 {
		t.Errorf("pprof: %d", code)
	}
	if code, _ := get(t, page+"/healthz"); code != 200 {
		t.Errorf("healthz: %d", code)
	}
	r.stop()
}

// promNumber is a count as Prometheus writes it.
func promNumber(n uint64) string { return strconv.FormatFloat(float64(n), 'g', -1, 64) }

// TestFlowMetricsBound: no more series than allowed; the rest is summed up, and old ones make room.
func TestFlowMetricsBound(t *testing.T) {
	f := newFlowMetrics("process", 10)
	rec := func(name string, at int64) []flowcache.Record {
		return []flowcache.Record{{
			End: at, HasTCP: true, Final: true, Forward: flowcache.Counters{Payload: 5},
			Source: flowcache.End{Local: true, Who: &flowcache.Process{Path: "/bin/" + name}},
		}}
	}
	now := time.Now().UnixNano()
	for i := range 1000 {
		f.add(rec(fmt.Sprint("p", i), now))
	}
	if len(f.series) > 11 || f.other != 990 || f.series[flowLabels{process: "other", container: "other", pod: "other"}].sent != 990*5 {
		t.Errorf("%d series, %d in others", len(f.series), f.other)
	}
	f.add(rec("late", now+2*int64(flowMetricsAge)))
	if f.series[flowLabels{process: "late"}] == nil || len(f.series) > 11 {
		t.Errorf("old series make no room: %d", len(f.series))
	}
	// Names that look the same when they are made fit to print are one series: two would break the page.
	f = newFlowMetrics("process", 10)
	f.add(rec("a\x01", now))
	f.add(rec("a\x02", now))
	out := make(chan prometheus.Metric, 100)
	f.collect(out)
	if len(out) != 6+2 {
		t.Errorf("%d metrics", len(out))
	}
	newFlowMetrics("none", 1).add(rec("x", now))
	pod := newFlowMetrics("pod", 10)
	pod.add([]flowcache.Record{{End: now, Source: flowcache.End{Local: true, Container: &flowcache.Workload{PodNamespace: "shop", PodName: "front", ContainerName: "web"}}}})
	if pod.series[flowLabels{namespace: "shop", pod: "front"}] == nil {
		t.Errorf("%v", pod.series)
	}
}
