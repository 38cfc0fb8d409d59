package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"github.com/sockflow/sockflow/bpf"
	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/enrich/runtimes"
	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/sockdiag"
)

// source is what a probe needs of a source.
type source interface {
	Run(ctx context.Context, out chan<- *flowcache.Batch) error
}

// probe is the Metering Process: the sources, and the pipeline that they feed.
type probe struct {
	s          *settings
	log        *slog.Logger
	p          *pipeline
	namer      *runtimes.Watcher
	maxFlows   int
	sources    []source
	ebpf       *bpf.Source          // nil in netlink mode
	netlink    *sockdiag.Source     // the netlink source, or the audit; nil if there is none
	owners     *enrich.Owners       // of the netlink source's sockets; nil where the source knows them
	interfaces *sockdiag.Interfaces // nil if they are not read
	confined   *confinement
}

// meter meters until ctx ends, and then ends in order: sources, cache, exporters. With a model it gets every record too.
func meter(ctx context.Context, s *settings, exporters []exporter, model *topModel, log *slog.Logger) error {
	beQuiet()
	x := &probe{s: s, log: log}
	defer x.close()
	if err := x.open(exporters); err != nil {
		return err
	}
	x.confined = x.confinement()
	x.confined.confine(log)
	shedStart()
	if model != nil {
		x.p.printers = append(x.p.printers, model)
		close(model.started)
	}
	return x.run(ctx, exporters)
}

// open opens all that takes privileges. With an error, some of it: close lets go of it.
func (x *probe) open(exporters []exporter) (err error) {
	s := x.s
	x.boundMemory()
	if err := x.newPipeline(exporters); err != nil {
		return err
	}
	if err := x.openSockets(); err != nil {
		return err
	}
	if s.wire.iface != "" {
		if x.p.wire, err = openWire(s, x.maxFlows, x.log); err != nil {
			return err
		}
		x.p.ends, x.p.endsFor = newEnds(s), s.activeTimeout+s.idleTimeout+time.Minute
		x.sources = append(x.sources, x.p.wire)
	}
	if x.interfaces, err = s.interfaces.open(s.proc); err != nil {
		return err
	}
	x.p.processes.Seed()
	return nil
}

// newPipeline makes the cache and what names its records.
func (x *probe) newPipeline(exporters []exporter) error {
	s := x.s
	selector, err := s.selecting.open()
	if err != nil {
		return err
	}
	if x.namer, err = newNamer(s, x.log); err != nil {
		return err
	}
	cluster, err := s.kube.open(s.nodeName, x.log)
	if err != nil {
		return err
	}
	cgroups := enrich.NewCGroups(s.proc)
	processes := enrich.NewProcesses(enrich.ProcConfig{Proc: s.proc, CommandLine: s.cmdline}, cgroups)
	conntrack := enrich.NewConntrack(func() map[uint32]string { return sockdiag.Namespaces(s.proc) })
	cache, err := flowcache.New(flowcache.Config{
		ActiveTimeout: reportEvery(s), IdleTimeout: s.idleTimeout, MaxFlows: x.maxFlows,
		Merge: s.localPairs == "merge", PeerMemory: max(15*time.Second, 3*s.snapshotInterval), Translate: conntrack.Translate,
		Hold: processes.Hold, Release: processes.Release, Full: func(recs []flowcache.Record) []flowcache.Record { return x.p.full(recs) },
		Known: func(o *flowcache.Observation) {
			if x.ebpf != nil {
				x.ebpf.Known(o)
			}
		},
	})
	if err != nil {
		return usageError{err}
	}
	x.p = &pipeline{
		cache: cache, processes: processes, clock: time.Now,
		enricher:  &enrich.Enricher{Processes: processes, CGroups: cgroups, Nudge: x.namer.Nudge},
		conntrack: conntrack, cluster: cluster,
		selector: selector,
		flows:    newFlowMetrics(s.flowMetrics, s.flowMetricsMax),
		batches:  make(flowcache.Batches, 64), pool: make(flowcache.RecordPool, 64),
		status: make(chan func(pipelineStatus)),
	}
	x.p.exporters, x.p.printers = newGroup(s.exporting.policy, exporters)
	return nil
}

// close lets go of what was opened. What reads it must have returned.
func (x *probe) close() {
	if x.p != nil {
		x.p.conntrack.Close()
		if x.p.wire != nil {
			x.p.wire.live.Close()
		}
	}
	if x.ebpf != nil {
		x.ebpf.Close()
	}
}

// run meters until ctx ends or something fails.
func (x *probe) run(ctx context.Context, exporters []exporter) error {
	srcCtx, stopSources := context.WithCancelCause(ctx)
	defer stopSources(nil)
	exportCtx, stopExport := context.WithCancel(context.Background())
	defer stopExport()
	begin := func(exporters []exporter) { tellMetering(exportCtx, exporters, x.p, x.ebpf) }
	begin(exporters)
	sending := &fleet{}
	sending.set(sending.start(exportCtx, exporters))
	x.p.room = func(ctx context.Context) { waitForRoom(ctx, sending.list()) }
	in := x.observe(srcCtx, stopSources)
	m := &metrics{p: x.p, ebpf: x.ebpf, netlink: x.netlink, interfaces: x.interfaces, namer: x.namer, maxFlows: x.maxFlows, exporters: sending, done: srcCtx}
	if err := x.serve(ctx, m); err != nil {
		stopSources(err)
	}
	go onSignal(srcCtx, syscall.SIGUSR1, func() { logStatus(srcCtx, m, x.log) }) // ends with srcCtx
	go watchdog(srcCtx, m)                                                       // ends with srcCtx
	again := &reloader{s: x.s, p: x.p, fleet: sending, begin: begin, confined: x.confined, log: x.log, notify: notifier(x.log)}
	reloading := make(chan struct{})
	go func() { // ends with srcCtx
		again.run(srcCtx, exportCtx)
		close(reloading)
	}()
	notifyService(readyState)
	context.AfterFunc(srcCtx, func() { notifyService(stoppingState) })

	if gone := readerGone(exporters); gone != nil {
		go func() { // ends with srcCtx
			select {
			case <-gone:
				stopSources(nil)
			case <-srcCtx.Done():
			}
		}()
	}

	x.p.run(in)
	if x.p.wire != nil {
		close(x.p.wire.gone)
	}
	stopSources(nil)
	<-reloading // it may start exporters
	stopExport()
	sending.gone.Wait()
	summarize(sending.list(), x.log)
	if x.p.wire != nil && x.p.wire.live.Drops() > 0 {
		x.log.Warn("packets were dropped", "interface", x.s.wire.iface, "packets", x.p.wire.live.Drops())
	}
	if cause := context.Cause(srcCtx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// observe runs everything that feeds the pipeline, until ctx ends; the first source that fails stops all. The channel
// that it returns is closed when sources and runtimes are done.
func (x *probe) observe(ctx context.Context, stop context.CancelCauseFunc) <-chan *flowcache.Batch {
	in := make(chan *flowcache.Batch, 16)
	observed := in
	if x.owners != nil {
		// To find them is to read all of proc, for which the cache loop does not wait.
		observed = make(chan *flowcache.Batch)
		go func() { // ends with the sources
			for b := range observed {
				x.owners.Name(b)
				in <- b
			}
			close(in)
		}()
	}
	names := make(chan *enrich.ContainerUpdate, 16)
	x.p.names = names
	var observing sync.WaitGroup
	for _, src := range x.sources {
		observing.Go(func() { // ends with ctx
			if err := src.Run(ctx, observed); err != nil {
				stop(err)
			}
		})
	}
	observing.Go(func() { x.namer.Run(ctx, names) }) // ends with ctx
	go func() {                                      // ends with the sources
		observing.Wait()
		close(observed)
	}()
	go x.p.cluster.follow(ctx) // ends with ctx
	if x.interfaces != nil {
		x.p.readings = make(chan interfaceReading)
		go x.p.readInterfaces(ctx, x.interfaces, x.s.proc) // ends with ctx
	}
	return in
}

// serve serves metrics until ctx ends. If another program has the default address, it logs a warning and returns no
// error.
func (x *probe) serve(ctx context.Context, m *metrics) error {
	if x.s.metrics == "" || x.s.metrics == "none" {
		return nil
	}
	err := serveMetrics(ctx, x.s.metrics, x.s.pprof, m, x.log)
	if err != nil && x.s.metrics == defaultMetrics {
		x.log.Warn("metrics are not served", "reason", err)
		return nil
	}
	return err
}

// newNamer watches the container runtimes of the flags.
func newNamer(s *settings, log *slog.Logger) (*runtimes.Watcher, error) {
	cfg := s.runtimes
	cfg.Proc = s.proc
	cfg.Notify = notifier(log)
	w, err := runtimes.New(cfg)
	if err != nil {
		return nil, usageError{err}
	}
	return w, nil
}

// openSockets opens what --source asks for. auto tries eBPF, and says why it is not used.
func (x *probe) openSockets() error {
	s, log := x.s, x.log
	if s.source == "none" {
		return nil
	}
	// Records must not be older than the timeout they are due by.
	interval := min(s.snapshotInterval, s.activeTimeout)
	if s.source != "netlink" {
		b, err := bpf.New(bpf.Config{SnapshotInterval: interval, Proc: s.proc, Batches: x.p.batches, Without: s.withoutHooks})
		switch {
		case err == nil:
			x.ebpf, x.sources, x.p.reap = b, append(x.sources, b), b.Reap
			missing, instead := b.Missing()
			for _, h := range missing {
				log.Warn("a hook is not attached", "hook", h.Target, "lost", h.Use, "reason", h.Err)
			}
			for _, h := range instead {
				log.Info("a hook of second choice is attached", "hook", h.Target, "for", h.Use)
			}
			if b.CanWalk() {
				log.Info("metering by eBPF socket events")
				return x.openNetlink(sockdiag.Config{Interval: s.auditInterval, Audit: true})
			}
			log.Warn("metering by eBPF socket events; sockets that existed before are read by netlink")
		case s.source == "ebpf" || !errors.Is(err, bpf.ErrUnsupported):
			return err
		default:
			log.Warn("metering by netlink snapshots, which miss short connections without CAP_NET_ADMIN and count no datagrams", "reason", err)
		}
	} else {
		log.Info("metering by netlink snapshots")
	}
	x.owners = enrich.NewOwners(s.proc)
	return x.openNetlink(sockdiag.Config{Interval: interval})
}

// openNetlink completes cfg, and adds its source.
func (x *probe) openNetlink(cfg sockdiag.Config) (err error) {
	cfg.Proc, cfg.Batches, cfg.Notify = x.s.proc, x.p.batches, func(line string) { x.log.Warn(line) }
	if x.netlink, err = sockdiag.New(cfg); err != nil {
		return err
	}
	x.sources = append(x.sources, x.netlink)
	return nil
}
