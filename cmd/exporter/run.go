package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mattn/go-isatty"

	"github.com/sockflow/sockflow/bpf"
	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/enrich/runtimes"
	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
	"github.com/sockflow/sockflow/sockdiag"
	"github.com/sockflow/sockflow/templates"
)

// source is what run needs of a source.
type source interface {
	Run(ctx context.Context, out chan<- *flowcache.Batch) error
}

// run meters until a signal.
func run(s *settings, stdout, stderr io.Writer) error {
	log := newLogger(stderr, s.logLevel)
	exporters, printer, closePrinter, err := destinations(s, stdout, log)
	if err != nil {
		return err
	}
	defer closePrinter()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return meter(ctx, s, exporters, printer, log)
}

// meter meters until ctx ends, and then ends in order: sources, cache, exporters.
func meter(ctx context.Context, s *settings, exporters []exporter, printer printer, log *slog.Logger) error {
	beQuiet()
	selector, err := s.selecting.open()
	if err != nil {
		return err
	}
	namer, err := newNamer(s, log)
	if err != nil {
		return err
	}
	cluster, err := s.kube.open(s.nodeName, log)
	if err != nil {
		return err
	}
	cgroups := enrich.NewCGroups(s.proc)
	processes := enrich.NewProcesses(enrich.ProcConfig{Proc: s.proc, CommandLine: s.cmdline}, cgroups)
	conntrack := enrich.NewConntrack(func() map[uint32]string { return sockdiag.Namespaces(s.proc) })
	defer conntrack.Close()
	var ebpf *bpf.Source // nil in netlink mode
	cache, err := flowcache.New(flowcache.Config{
		ActiveTimeout: reportEvery(s), IdleTimeout: s.idleTimeout, MaxFlows: s.maxFlows,
		Merge: s.localPairs == "merge", PeerMemory: max(15*time.Second, 3*s.snapshotInterval), Translate: conntrack.Translate,
		Hold: processes.Hold, Release: processes.Release,
		Known: func(o *flowcache.Observation) {
			if ebpf != nil {
				ebpf.Known(o)
			}
		},
	})
	if err != nil {
		return usageError{err}
	}
	p := &pipeline{
		cache: cache, processes: processes,
		enricher:  &enrich.Enricher{Processes: processes, CGroups: cgroups, Nudge: namer.Nudge},
		conntrack: conntrack, cluster: cluster,
		exporters: newGroup(s.exporting.policy, exporters), printer: printer, selector: selector,
		flows:   newFlowMetrics(s.flowMetrics, s.flowMetricsMax),
		batches: make(flowcache.Batches, 64), pool: make(flowcache.RecordPool, 64),
		status: make(chan func(pipelineStatus)),
	}

	// Records must not be older than the timeout they are due by.
	interval := min(s.snapshotInterval, s.activeTimeout)
	var srcs []source
	srcs, ebpf, err = openSources(s, p, interval, log)
	if err != nil {
		return err
	}
	if ebpf != nil {
		defer ebpf.Close()
	}
	if s.wire.iface != "" {
		if p.wire, err = openWire(s, log); err != nil {
			return err
		}
		p.ends, p.endsFor = newEnds(s), s.activeTimeout+s.idleTimeout+time.Minute
		srcs = append(srcs, p.wire)
	}
	processes.Seed()
	confine(s.privileges, log)
	shedStart()
	if r, ok := printer.(interface{ start() }); ok {
		r.start()
	}

	exportCtx, stopExport := context.WithCancel(context.Background())
	defer stopExport()
	begin := func(exporters []exporter) { tellMetering(exportCtx, exporters, p, ebpf) }
	begin(exporters)
	sending := &fleet{}
	sending.set(sending.start(exportCtx, s, exporters))
	in := make(chan *flowcache.Batch, 16)
	srcCtx, stopSources := context.WithCancelCause(ctx)
	defer stopSources(nil)
	var observing sync.WaitGroup
	for _, src := range srcs {
		observing.Add(1)
		go func() { // ends with srcCtx
			defer observing.Done()
			if err := src.Run(srcCtx, in); err != nil {
				stopSources(err)
			}
		}()
	}
	go func() { // ends with the sources
		observing.Wait()
		close(in)
	}()
	names := make(chan *enrich.ContainerUpdate, 16)
	p.names = names
	observing.Add(1)
	go func() { // ends with srcCtx
		defer observing.Done()
		namer.Run(srcCtx, names)
	}()
	go cluster.follow(srcCtx) // ends with srcCtx
	interfaces, err := s.interfaces.open(s.proc)
	if err != nil {
		stopSources(err)
	}
	if interfaces != nil {
		p.readings = make(chan interfaceReading)
		go p.readInterfaces(srcCtx, interfaces, s.proc) // ends with srcCtx
	}
	m := &metrics{p: p, ebpf: ebpf, interfaces: interfaces, namer: namer, exporters: sending, done: srcCtx}
	for _, src := range srcs {
		if n, ok := src.(*sockdiag.Source); ok {
			m.netlink = n
		}
	}
	if s.metrics != "" && s.metrics != "none" {
		err := serveMetrics(ctx, s.metrics, s.pprof, m, log)
		switch {
		case err != nil && s.metrics == defaultMetrics: // another one runs
			log.Warn("metrics are not served", "reason", err)
		case err != nil:
			stopSources(err)
		}
	}
	go reportStatus(srcCtx, m, log) // ends with srcCtx
	go watchdog(srcCtx, m)          // ends with srcCtx
	again := &reloader{s: s, p: p, fleet: sending, begin: begin, log: log}
	reloading := make(chan struct{})
	go func() { // ends with srcCtx
		again.run(srcCtx, exportCtx)
		close(reloading)
	}()
	notifyService(readyState)
	context.AfterFunc(srcCtx, func() { notifyService(stoppingState) })

	err = p.run(in)
	if p.wire != nil {
		close(p.wire.gone)
	}
	stopSources(err)
	for b := range in { // a printer that failed: let the sources end
		p.batches.Put(b)
	}
	<-reloading // it may start exporters
	stopExport()
	sending.gone.Wait()
	summarize(sending.list(), log)
	if p.wire != nil && p.wire.live.Drops() > 0 {
		log.Warn("packets were dropped", "interface", s.wire.iface, "packets", p.wire.live.Drops())
	}
	if cause := context.Cause(srcCtx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	if errors.Is(err, syscall.EPIPE) {
		return nil // the reader of our output has seen enough
	}
	return err
}

// newNamer watches the container runtimes of the flags.
func newNamer(s *settings, log *slog.Logger) (*runtimes.Watcher, error) {
	cfg := s.runtimes
	cfg.Notify = notifier(log)
	w, err := runtimes.New(cfg)
	if err != nil {
		return nil, usageError{err}
	}
	return w, nil
}

func newLogger(w io.Writer, level string) *slog.Logger {
	var l slog.Level
	l.UnmarshalText([]byte(level)) // checked by settings
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l}))
}

// base is what every collector's URL changes.
func (s *settings) base() (ipfix.Config, error) {
	node := s.nodeName
	if node == "" {
		node, _ = os.Hostname()
	}
	dialect, err := templates.ParseDialect(s.dialect)
	if err != nil {
		return ipfix.Config{}, usageError{err}
	}
	base := ipfix.Config{
		Options: templates.Options{
			Dialect: dialect, PEN: s.pen, Uniflow: s.direction == "uniflow", CommandLine: s.cmdline, Node: node, V9Base: s.v9Base,
		},
		Domain: s.domain, MTU: s.mtu, TemplateRefresh: s.templateRefresh, Version: version, Kernel: kernelRelease(),
		ReconnectMin: s.reconnectMin, ReconnectMax: s.reconnectMax, Boot: s.boot,
	}
	s.exporting.apply(&base)
	return base, nil
}

// destinations makes the exporters and the printer of the -c URLs.
func destinations(s *settings, stdout io.Writer, log *slog.Logger) ([]exporter, printer, func(), error) {
	base, err := s.base()
	if err != nil {
		return nil, nil, nil, err
	}
	base.Notify = notifier(log)
	names := map[string]bool{}
	var exporters []exporter
	var out printer
	done := func() {}
	for _, url := range s.collectors {
		if strings.HasPrefix(url, "json:") {
			if out != nil {
				return nil, nil, nil, usagef("collector %q: only one json: destination", url)
			}
			if out, done, err = openJSON(url, stdout); err != nil {
				return nil, nil, nil, err
			}
			continue
		}
		if strings.HasPrefix(url, "zmq:") {
			x, err := newNtopng(url, s, base.Options.Node, base.Notify)
			if err != nil {
				return nil, nil, nil, err
			}
			exporters = append(exporters, x)
			continue
		}
		cfg, err := ipfix.ParseURL(url, base)
		if err != nil {
			return nil, nil, nil, usageError{err}
		}
		if s.exporting.doctor {
			cfg.Spool = ""
		}
		x, err := ipfix.New(cfg)
		if err != nil {
			return nil, nil, nil, usagef("collector %q: %w", url, err)
		}
		if names[x.Name()] {
			return nil, nil, nil, usagef("collector %q: given twice", url)
		}
		names[x.Name()] = true
		exporters = append(exporters, x)
	}
	if len(s.collectors) == 0 {
		out = newJSONPrinter(stdout)
		if f, ok := stdout.(*os.File); ok && isatty.IsTerminal(f.Fd()) {
			out = newTablePrinter(stdout)
		}
	}
	return exporters, out, done, nil
}

// openSources opens what --source asks for. auto tries eBPF, and says why it is not used.
func openSources(s *settings, p *pipeline, interval time.Duration, log *slog.Logger) ([]source, *bpf.Source, error) {
	if s.source == "none" {
		return nil, nil, nil
	}
	var srcs []source
	if s.source != "netlink" {
		b, err := bpf.New(bpf.Config{SnapshotInterval: interval, Proc: s.proc, Batches: p.batches, Without: s.withoutHooks})
		switch {
		case err == nil:
			missing, instead := b.Missing()
			for _, h := range missing {
				log.Warn("a hook is not attached", "hook", h.Target, "lost", h.Use, "reason", h.Err)
			}
			for _, h := range instead {
				log.Info("a hook of second choice is attached", "hook", h.Target, "for", h.Use)
			}
			srcs = append(srcs, b)
			if b.CanWalk() {
				audit, err := sockdiag.New(sockdiag.Config{
					Proc: s.proc, Interval: s.auditInterval, Batches: p.batches, Audit: true,
					Notify: func(line string) { log.Warn(line) },
				})
				if err != nil {
					b.Close()
					return nil, nil, err
				}
				log.Info("metering by eBPF socket events")
				return append(srcs, audit), b, nil
			}
			log.Warn("metering by eBPF socket events; sockets that existed before are read by netlink")
			n, err := openNetlink(s, p, interval, log)
			if err != nil {
				b.Close()
				return nil, nil, err
			}
			return append(srcs, n), b, nil
		case s.source == "ebpf" || !errors.Is(err, bpf.ErrUnsupported):
			return nil, nil, err
		default:
			log.Warn("metering by netlink snapshots, which miss short connections without CAP_NET_ADMIN and count no datagrams", "reason", err)
		}
	}
	if s.source == "netlink" {
		log.Info("metering by netlink snapshots")
	}
	n, err := openNetlink(s, p, interval, log)
	if err != nil {
		return nil, nil, err
	}
	return append(srcs, n), nil, nil
}

func openNetlink(s *settings, p *pipeline, interval time.Duration, log *slog.Logger) (source, error) {
	n, err := sockdiag.New(sockdiag.Config{
		Proc: s.proc, Interval: interval, Batches: p.batches,
		Notify: func(line string) { log.Warn(line) },
	})
	if err != nil {
		return nil, err
	}
	p.owners = enrich.NewOwners(s.proc)
	return n, nil
}

// reportStatus logs one line for each SIGUSR1.
func reportStatus(ctx context.Context, m *metrics, log *slog.Logger) {
	usr1 := make(chan os.Signal, 1)
	signal.Notify(usr1, syscall.SIGUSR1)
	defer signal.Stop(usr1)
	for {
		select {
		case <-ctx.Done():
			return
		case <-usr1:
		}
		st, ok := m.p.ask(ctx)
		if !ok {
			return
		}
		args := []any{
			slog.Group("cache", "flows", st.cache.Live, "observations", st.cache.Observations, "created", st.cache.Created, "merged", st.cache.Merged,
				"direct", st.cache.Direct, "stale", st.cache.Stale, "listening", st.cache.Listening, "closed", st.cache.Closed, "owners", st.cache.Owners,
				"suspects", st.cache.Suspects, "pairs", st.cache.Paired, "audit_added", st.cache.Audited, "audit_ended", st.cache.Vanished,
				"forgotten", st.cache.Forgotten),
			slog.Group("records", "idle", st.cache.Records[flowcache.EndIdle], "active", st.cache.Records[flowcache.EndActive],
				"end", st.cache.Records[flowcache.EndDetected], "forced", st.cache.Records[flowcache.EndForced], "lack", st.cache.Records[flowcache.EndLack]),
			slog.Any("processes", st.processes), slog.Any("conntrack", st.conntrack), slog.Any("containers", st.containers), slog.Any("held", st.held), slog.Any("selection", st.selection),
		}
		if w := m.p.wire; w != nil {
			args = append(args, slog.Any("packets", w.meter.Stats()), slog.Uint64("dropped_packets", w.live.Drops()))
		}
		for _, r := range m.namer.Stats() {
			args = append(args, slog.Any(r.Kind, r))
		}
		if cluster := m.p.cluster; cluster != nil {
			args = append(args, slog.Any("kube", cluster.source.Stats()), slog.Any("kube_index", st.kube))
		}
		if m.interfaces != nil {
			args = append(args, slog.Any("interfaces", m.interfaces.Stats()))
		}
		if m.ebpf != nil {
			args = append(args, slog.Any("ebpf", m.ebpf.Stats()))
		}
		if m.netlink != nil {
			args = append(args, slog.Any("netlink", m.netlink.Stats()))
		}
		for _, x := range m.exporters.list() {
			args = append(args, slog.Any(x.Name(), x.Stats()))
		}
		log.Info("status", args...)
	}
}

// summarize says what was not delivered.
func summarize(exporters []exporter, log *slog.Logger) {
	for _, x := range exporters {
		if st := x.Stats(); st.DroppedQueue+st.DroppedSend+st.DroppedSpool+st.DroppedBig > 0 {
			log.Warn("records were dropped", "collector", x.Name(), "queue", st.DroppedQueue, "send", st.DroppedSend, "spool", st.DroppedSpool, "too_big", st.DroppedBig)
		}
	}
}
