package main

import (
	"context"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sockflow/sockflow/bpf"
	"github.com/sockflow/sockflow/enrich/runtimes"
	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/replay"
	"github.com/sockflow/sockflow/sockdiag"
)

// metrics shows what became of everything that was observed. Two sums hold at any time, and docs/metrics.md explains them:
//
//	kernel events = events read + lost in the ring buffer;        observations = the sum over their fates
//	records       = per collector: encoded + dropped + waiting
type metrics struct {
	p          *pipeline
	ebpf       *bpf.Source      // nil in netlink mode
	netlink    *sockdiag.Source // the netlink source, or the audit; nil if there is none
	exporters  *fleet
	namer      *runtimes.Watcher
	maxFlows   int
	interfaces *sockdiag.Interfaces // nil if they are not read
	done       context.Context      // ends with the cache loop's sources
}

type description struct {
	*prometheus.Desc
	kind prometheus.ValueType
}

func describe(kind prometheus.ValueType, name, help string, labels ...string) description {
	return description{prometheus.NewDesc("sockflow_"+name, help, labels, nil), kind}
}

var (
	buildInfo      = describe(prometheus.GaugeValue, "build_info", "Always 1.", "version", "goversion", "source")
	hookAttached   = describe(prometheus.GaugeValue, "hook_attached", "Whether an eBPF hook is attached: 1, or 0 if it could not be.", "hook", "target")
	hookRuns       = describe(prometheus.CounterValue, "hook_runs_total", "Runs of an eBPF program; counted only with sysctl kernel.bpf_stats_enabled=1.", "hook")
	hookMisses     = describe(prometheus.CounterValue, "hook_recursion_misses_total", "Calls of an eBPF program that the kernel skipped, since the program ran on that CPU already. What a twin (destroyed, destroyed2) was not called for the other one saw: no loss.", "program")
	hookSeconds    = describe(prometheus.CounterValue, "hook_seconds_total", "Run time of an eBPF program; counted only with sysctl kernel.bpf_stats_enabled=1.", "hook")
	kernelEvents   = describe(prometheus.CounterValue, "events_total", "Events read from the ring buffer.")
	kernelLost     = describe(prometheus.CounterValue, "lost_total", "What the kernel side had to drop: ring_socket and ring_process: events, the ring buffer was full; datagram_map: datagrams, too many flows between two drains; storage: owners of sockets, no memory; abandoned_connect: connects for which there was no way, and connections whose socket was disconnected before a program saw their end; mptcp_subflow: ends of the first MPTCP connections; refused_datagram: datagrams counted as sent that were refused on their way out; unseen_end: connections that an audit found gone, whose end no program saw; recursion_PROGRAM: calls of a program that the kernel skipped, since it ran on that CPU already.", "cause", "cpu")
	malformed      = describe(prometheus.CounterValue, "malformed_events_total", "Events that could not be read.")
	shared         = describe(prometheus.CounterValue, "shared_sockets_total", "Sockets that other processes than the owner of their flow have used too.")
	passes         = describe(prometheus.CounterValue, "passes_total", "Passes over all sockets.", "source", "result")
	netlinkSockets = describe(prometheus.CounterValue, "netlink_sockets_total", "Sockets read by netlink.")
	netlinkEnds    = describe(prometheus.CounterValue, "netlink_ends_total", "Ends of sockets that netlink told.")
	netlinkOverrun = describe(prometheus.CounterValue, "netlink_overruns_total", "Times that netlink told more ends than could be read.")
	namespaces     = describe(prometheus.GaugeValue, "namespaces", "Network namespaces that netlink reads.")
	observations   = describe(prometheus.CounterValue, "observations_total", "Observations by what became of them: created a flow, merged into one, direct (a flow that began and ended in one), stale (of a connection that has ended since), listening, closed (a datagram socket), owner (of a datagram socket, known later), suspect (of an audit under way).", "fate")
	interfaceReads = describe(prometheus.CounterValue, "interface_readings_total", "Readings of the counters of all network interfaces.")
	interfacesRead = describe(prometheus.CounterValue, "interfaces_read_total", "Network interfaces in these readings.")
	interfaceFails = describe(prometheus.CounterValue, "interface_errors_total", "Network namespaces whose interfaces could not be read.")
	packets        = describe(prometheus.CounterValue, "packets_total", "With --interface: packets by what became of them: counted in a flow; not_ip, truncated, malformed, unknown_link; dropped (the kernel had no room in the ring).", "fate")
	packetGaps     = describe(prometheus.CounterValue, "packet_gaps_forgotten_total", "With --interface: gaps of TCP sequences for which there was no room; what fills one later counts as a retransmission.")
	packetFlows    = describe(prometheus.GaugeValue, "packet_flows", "With --interface: flows of packets in the table.")
	flows          = describe(prometheus.GaugeValue, "flows", "Flows in the cache.")
	flowsMax       = describe(prometheus.GaugeValue, "flows_max", "Most flows that the cache keeps: --max-flows, or fewer, as the memory limit has it.")
	pairs          = describe(prometheus.CounterValue, "pairs_total", "Conversations with both ends on this host.")
	audited        = describe(prometheus.CounterValue, "audit_corrections_total", "What audits corrected: added, a connection that the source had not seen; ended, one whose end it had not told.", "what")
	forgotten      = describe(prometheus.CounterValue, "forgotten_flows_total", "Flows that left a full cache and whose totals could not be kept: they may be counted again.")
	records        = describe(prometheus.CounterValue, "records_total", "Flow records by flowEndReason. lack: the cache was full, and they left early.", "reason")
	processes      = describe(prometheus.GaugeValue, "processes", "Processes in the table.")
	processFacts   = describe(prometheus.CounterValue, "process_facts_total", "Where facts of processes came from: event, proc; or missed (gone before anybody told), overflow (forgotten because the table was full).", "from")
	translations   = describe(prometheus.CounterValue, "conntrack_lookups_total", "Flows whose address translation was asked for, by result.", "result")
	runtimeUp      = describe(prometheus.GaugeValue, "runtime_up", "Whether a container runtime answers.", "runtime", "socket")
	runtimeEvents  = describe(prometheus.CounterValue, "runtime_events_total", "Events that a container runtime has told.", "runtime", "socket")
	runtimeErrors  = describe(prometheus.CounterValue, "runtime_errors_total", "Times that a container runtime could not be reached, or did not answer in time.", "runtime", "socket")
	runtimeKnown   = describe(prometheus.GaugeValue, "runtime_containers", "Containers that a runtime has, pods' sandboxes included.", "runtime", "socket")
	runtimeTooMany = describe(prometheus.CounterValue, "runtime_overflow_total", "Containers of a runtime that are not followed, because there are too many.", "runtime", "socket")
	runtimeSkipped = describe(prometheus.CounterValue, "runtime_skipped_total", "Containers and events of a runtime of which not all was read: too_long, more than 4 MB; malformed.", "runtime", "socket", "cause")
	containerEnds  = describe(prometheus.CounterValue, "container_ends_total", "Ends of records in a container: named by its runtime; unnamed, with no more than the id, because no runtime had told of it (yet); address, of no socket that was seen and named by the address.", "names")
	containerLate  = describe(prometheus.CounterValue, "container_late_total", "Containers whose names came after a record without them: later records have them.")
	containerHeld  = describe(prometheus.CounterValue, "held_records_total", "Last records of flows that waited for the names of new containers: for three seconds at most, or for ten while a runtime is asked for an address.")
	containerFull  = describe(prometheus.CounterValue, "container_overflow_total", "Containers that the table of names had no room for.")
	loopLate       = describe(prometheus.GaugeValue, "loop_late_seconds", "How late the loop that makes the records was for what came at any moment of the last one to two minutes, because it was busy: of that share of these moments at most; 1 is the longest that it was busy with one thing.", "share")
	selected       = describe(prometheus.CounterValue, "selection_records_total", "Flow records that are not told: filtered (no --filter selects them), merged (into others, by --aggregate-ports).", "fate")
	selectionHeld  = describe(prometheus.GaugeValue, "selection_held_records", "Aggregated flow records that wait for the end of their interval.")
	collected      = describe(prometheus.CounterValue, "collector_records_total", "Flow records by what became of them on the way to a collector: encoded, filtered (not for this collector), dropped_queue (it was away or slow for longer than queue and spool hold), dropped_too_big (no message can hold it).", "collector", "fate")
	waiting        = describe(prometheus.GaugeValue, "collector_waiting_records", "Flow records that wait for a collector.", "collector")
	dataRecords    = describe(prometheus.CounterValue, "collector_data_records_total", "Data Records of flows, both directions of a uniflow included, by what became of them: sent (over streams: acknowledged by the collector's host), dropped_send, dropped_spool (the oldest in a full spool).", "collector", "fate")
	dataMade       = describe(prometheus.CounterValue, "collector_made_records_total", "Data Records of flows: made, or recovered from the spool at the start.", "collector", "from")
	backlog        = describe(prometheus.GaugeValue, "collector_backlog_records", "Data Records made and not acknowledged: memory (in flight or waiting), spool (on disk, not sent).", "collector", "where")
	spoolOctets    = describe(prometheus.GaugeValue, "collector_spool_octets", "Octets of the spool on disk.", "collector")
	spoolWorks     = describe(prometheus.GaugeValue, "collector_spool_works", "Whether the disk takes messages: 1, or 0.", "collector")
	resent         = describe(prometheus.CounterValue, "collector_resent_records_total", "Data Records sent again over another connection, because they had not been acknowledged, or perhaps not read: they may have come twice.", "collector")
	messages       = describe(prometheus.CounterValue, "collector_messages_total", "Messages sent.", "collector")
	octetsSent     = describe(prometheus.CounterValue, "collector_octets_total", "Octets sent.", "collector")
	connects       = describe(prometheus.CounterValue, "collector_connects_total", "Transport sessions.", "collector")
	sendErrors     = describe(prometheus.CounterValue, "collector_errors_total", "Failed connects and sends.", "collector")
	stringsCut     = describe(prometheus.CounterValue, "collector_cut_records_total", "Records whose strings were cut to fit.", "collector")
)

// Describe sends nothing: the collector is unchecked, since some metrics depend on the source.
func (m *metrics) Describe(chan<- *prometheus.Desc) {}

// Collect reads every part once.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	put := func(d description, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d.Desc, d.kind, float64(v), labels...)
	}
	m.p.flows.collect(out)
	source := "netlink"
	if m.ebpf != nil {
		source = "ebpf"
		m.kernel(put)
		for name, n := range m.ebpf.RecursionMisses() {
			put(hookMisses, n, name)
		}
		for name, run := range m.ebpf.RunTime() {
			put(hookRuns, run.Count, name)
			out <- prometheus.MustNewConstMetric(hookSeconds.Desc, hookSeconds.kind, run.Time.Seconds(), name)
		}
	}
	put(buildInfo, 1, version, runtime.Version(), source)
	if m.netlink != nil {
		st := m.netlink.Stats()
		put(passes, st.Passes, "netlink", "done")
		put(passes, st.Errors, "netlink", "failed")
		put(netlinkSockets, st.Sockets)
		put(netlinkEnds, st.Destroyed)
		put(netlinkOverrun, st.Overruns)
		put(namespaces, uint64(st.Namespaces))
	}
	for _, r := range m.namer.Stats() {
		up := uint64(0)
		if r.Answering {
			up = 1
		}
		put(runtimeUp, up, r.Kind, r.Socket)
		put(runtimeEvents, r.Events, r.Kind, r.Socket)
		put(runtimeErrors, r.Errors, r.Kind, r.Socket)
		put(runtimeKnown, uint64(r.Containers), r.Kind, r.Socket)
		put(runtimeTooMany, r.Overflow, r.Kind, r.Socket)
		put(runtimeSkipped, r.TooLong, r.Kind, r.Socket, "too_long")
		put(runtimeSkipped, r.Malformed, r.Kind, r.Socket, "malformed")
	}
	if m.interfaces != nil {
		st := m.interfaces.Stats()
		put(interfaceReads, st.Readings)
		put(interfacesRead, st.Interfaces)
		put(interfaceFails, st.Errors)
	}
	// Collectors before the cache: what is under way between the two is then missing there, and not here.
	for _, x := range m.exporters.list() {
		st, name := x.Stats(), x.Name()
		put(collected, st.Encoded, name, "encoded")
		put(collected, st.Filtered, name, "filtered")
		put(collected, st.DroppedQueue, name, "dropped_queue")
		put(collected, st.DroppedBig, name, "dropped_too_big")
		put(waiting, st.Waiting, name)
		put(dataRecords, st.Records, name, "sent")
		put(dataRecords, st.DroppedSend, name, "dropped_send")
		put(dataRecords, st.DroppedSpool, name, "dropped_spool")
		put(dataMade, st.Made, name, "made")
		put(dataMade, st.Recovered, name, "recovered")
		put(backlog, st.Backlog-min(st.Backlog, st.Spooled), name, "memory")
		put(backlog, st.Spooled, name, "spool")
		put(spoolOctets, st.SpoolOctets, name)
		works := uint64(1)
		if st.SpoolFailed {
			works = 0
		}
		put(spoolWorks, works, name)
		put(resent, st.Resent, name)
		put(messages, st.Messages, name)
		put(octetsSent, st.Octets, name)
		put(connects, st.Connects, name)
		put(sendErrors, st.Errors, name)
		put(stringsCut, st.Cut, name)
	}
	st, ok := m.p.ask(m.done)
	if !ok {
		return // it ends
	}
	for q, d := range map[string]time.Duration{"0.99": st.late.Q99, "0.999": st.late.Q999, "1": st.late.Longest} {
		out <- prometheus.MustNewConstMetric(loopLate.Desc, loopLate.kind, d.Seconds(), q)
	}
	c := st.cache
	put(selected, st.selection.Filtered, "filtered")
	put(selected, st.selection.Merged, "merged")
	put(selectionHeld, st.selection.Held)
	for fate, n := range map[string]uint64{
		"created": c.Created, "merged": c.Merged, "direct": c.Direct, "stale": c.Stale, "listening": c.Listening,
		"closed": c.Closed, "owner": c.Owners, "suspect": c.Suspects,
	} {
		put(observations, n, fate)
	}
	told := c.Records
	if w := m.p.wire; w != nil {
		st := w.meter.Stats()
		for f, n := range st.Fates {
			put(packets, n, replay.Fate(f).String())
		}
		put(packets, w.live.Drops(), "dropped")
		put(packetGaps, st.Gaps)
		put(packetFlows, uint64(st.Live))
		told = st.Records // those of sockets only name them
	}
	put(flows, uint64(c.Live))
	put(flowsMax, uint64(m.maxFlows))
	put(pairs, c.Paired)
	put(audited, c.Audited, "added")
	put(audited, c.Vanished, "ended")
	put(forgotten, c.Forgotten)
	for reason := flowcache.EndIdle; reason <= flowcache.EndLack; reason++ {
		put(records, told[reason], reason.String())
	}
	put(processes, uint64(st.processes.Entries))
	for from, n := range map[string]uint64{
		"event": st.processes.Events, "proc": st.processes.FromProc, "missed": st.processes.Missed, "overflow": st.processes.Overflow,
	} {
		put(processFacts, n, from)
	}
	n := st.containers
	put(containerEnds, n.Named, "named")
	put(containerEnds, n.Unnamed, "unnamed")
	put(containerEnds, n.Peers, "address")
	put(containerLate, n.Late)
	put(containerFull, n.Overflow)
	put(containerHeld, st.held)
	m.p.cluster.collect(put, st.kube)
	put(translations, st.conntrack.Translated, "translated")
	put(translations, st.conntrack.Lookups-st.conntrack.Translated, "not_translated")
	put(translations, st.conntrack.Errors, "error")
	put(translations, st.conntrack.Skipped, "skipped")
}

// kernel shows the eBPF side.
func (m *metrics) kernel(put func(d description, v uint64, labels ...string)) {
	st := m.ebpf.Stats()
	put(kernelEvents, st.Events)
	put(malformed, st.Malformed)
	put(shared, st.Shared)
	put(passes, st.Snapshots, "ebpf", "done")
	put(passes, st.SnapshotErrors, "ebpf", "failed")
	for cause, perCPU := range m.ebpf.Lost() {
		for cpu, n := range perCPU {
			put(kernelLost, n, cause, strconv.Itoa(cpu))
		}
	}
	for _, h := range m.ebpf.Hooks() {
		if h.Spare {
			continue
		}
		attached := uint64(1)
		if h.Err != nil {
			attached = 0
		}
		put(hookAttached, attached, h.Name, h.Target)
	}
}
