package main

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sockflow/sockflow/flowcache"
)

// flowMetrics sums flows by pod, container or process, for users of Prometheus without a flow collector. The cache loop
// writes it and scrapes read it. There are never more than max series of a kind: when there are as many, those without
// a record for a while make room. Records without a free series are summed under the name "other".
type flowMetrics struct {
	by     string // pod, container or process
	max    int
	mu     sync.Mutex
	series map[flowLabels]*flowSums
	other  uint64 // records that found no room
}

type flowLabels struct{ namespace, pod, container, process string }

type flowSums struct {
	sent, received uint64
	ended, failed  uint64
	retransmitted  uint64
	rttSum         float64 // seconds
	rttCount       uint64
	last           int64
}

// flowMetricsAge is after how long a series may make room for another.
const flowMetricsAge = 10 * time.Minute

var (
	flowLabelNames = []string{"namespace", "pod", "container", "process"}
	flowOctets     = describe(prometheus.CounterValue, "flow_payload_octets_total", "Payload octets of flows by who they are of, with --flow-metrics.", append(flowLabelNames, "direction")...)
	flowEnds       = describe(prometheus.CounterValue, "flow_tcp_connections_total", "TCP connections that ended, by who they were of and whether they were ever made, with --flow-metrics.", append(flowLabelNames, "result")...)
	flowRetrans    = describe(prometheus.CounterValue, "flow_retransmitted_segments_total", "TCP segments sent again by whom, with --flow-metrics.", flowLabelNames...)
	flowRTT        = describe(prometheus.UntypedValue, "flow_rtt_seconds", "Smoothed round-trip times of TCP records by who they are of, with --flow-metrics.", flowLabelNames...)
	flowSeries     = describe(prometheus.GaugeValue, "flow_series", "Label sets of --flow-metrics in use.")
	flowOther      = describe(prometheus.CounterValue, "flow_series_overflow_total", "Ends of flows that are summed up as other, because --flow-metrics-max label sets are in use.")
)

// newFlowMetrics returns nil if none are wanted.
func newFlowMetrics(by string, max int) *flowMetrics {
	if by == "none" {
		return nil
	}
	return &flowMetrics{by: by, max: max, series: map[flowLabels]*flowSums{}}
}

// add sums up records. It does nothing on nil.
func (f *flowMetrics) add(recs []flowcache.Record) {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range recs {
		r := &recs[i]
		if r.Source.Local {
			f.end(r, &r.Source, &r.Forward, &r.Reverse)
		}
		if r.Dest.Local {
			f.end(r, &r.Dest, &r.Reverse, &r.Forward)
		}
	}
}

func (f *flowMetrics) end(r *flowcache.Record, e *flowcache.End, out, in *flowcache.Counters) {
	s := f.find(f.labels(e), r.End)
	s.last = max(s.last, r.End)
	s.sent += out.Payload
	s.received += in.Payload
	s.retransmitted += out.RetransPackets
	if !r.HasTCP {
		return
	}
	switch {
	case r.TCP.ConnectError != 0:
		s.failed++
	case r.Final:
		s.ended++
	}
	if r.TCP.SRTT != 0 {
		s.rttSum += float64(r.TCP.SRTT) / 1e6
		s.rttCount++
	}
}

func (f *flowMetrics) labels(e *flowcache.End) flowLabels {
	var l flowLabels
	if w := e.Container; w != nil {
		l.namespace, l.pod = printable(w.PodNamespace), printable(w.PodName)
		if f.by != "pod" {
			l.container = printable(containerOf(w))
		}
	}
	if f.by == "process" {
		l.process = printable(programName(e))
	}
	return l
}

func (f *flowMetrics) find(l flowLabels, now int64) *flowSums {
	if s := f.series[l]; s != nil {
		return s
	}
	if len(f.series) >= f.max {
		for k, s := range f.series {
			if now-s.last > int64(flowMetricsAge) {
				delete(f.series, k)
			}
		}
	}
	if len(f.series) >= f.max {
		f.other++
		l = flowLabels{process: "other", container: "other", pod: "other"}
		if s := f.series[l]; s != nil {
			return s
		}
	}
	s := &flowSums{}
	f.series[l] = s
	return s
}

// collect shows the sums.
func (f *flowMetrics) collect(out chan<- prometheus.Metric) {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	put := func(d description, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d.Desc, d.kind, float64(v), labels...)
	}
	for k, s := range f.series {
		l := []string{k.namespace, k.pod, k.container, k.process}
		put(flowOctets, s.sent, append(l, "sent")...)
		put(flowOctets, s.received, append(l, "received")...)
		put(flowEnds, s.ended, append(l, "ended")...)
		put(flowEnds, s.failed, append(l, "failed")...)
		put(flowRetrans, s.retransmitted, l...)
		out <- prometheus.MustNewConstSummary(flowRTT.Desc, s.rttCount, s.rttSum, nil, l...)
	}
	put(flowSeries, uint64(len(f.series)))
	put(flowOther, f.other)
}
