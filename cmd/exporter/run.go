package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/mattn/go-isatty"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
	"github.com/sockflow/sockflow/templates"
)

// run meters until a signal.
func run(s *settings, stdout, stderr io.Writer) error {
	log := newLogger(stderr, s.logLevel)
	exporters, err := destinations(s, stdout, log)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return meter(ctx, s, exporters, nil, log)
}

func newLogger(w io.Writer, level string) *slog.Logger {
	var l slog.Level
	l.UnmarshalText([]byte(level)) // checked by settings
	return slog.New(slog.NewTextHandler(newLogWriter(w), &slog.HandlerOptions{Level: l}))
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
			Dialect: dialect, PEN: s.pen, Uniflow: s.direction == "uniflow", CommandLine: s.cmdline, Aggregates: s.selecting.aggregatePorts != 0, Node: node, V9Base: s.v9Base,
		},
		Domain: s.domain, MTU: s.mtu, TemplateRefresh: s.templateRefresh, Version: version, Kernel: kernelRelease(),
		ReconnectMin: s.reconnectMin, ReconnectMax: s.reconnectMax, Boot: s.boot,
	}
	s.exporting.apply(&base)
	return base, nil
}

// destinations makes the exporters of the -c URLs, in their order. Without one, records are printed.
func destinations(s *settings, stdout io.Writer, log *slog.Logger) (exporters []exporter, err error) {
	peers, err := s.peers(func(c *ipfix.Config) {
		if s.exporting.doctor {
			c.Spool = ""
		}
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			closeAll(exporters)
		}
	}()
	notify := notifier(log)
	printed := map[string]bool{}
	for _, url := range s.collectors {
		if !strings.HasPrefix(url, "json:") {
			x, err := peers[0].open(notify)
			if err != nil {
				return exporters, err
			}
			exporters, peers = append(exporters, x), peers[1:]
			continue
		}
		x, err := openJSON(url, stdout, notify)
		if err != nil {
			return exporters, err
		}
		exporters = append(exporters, x)
		if printed[x.Name()] {
			return exporters, usagef("collector %q: given twice", url)
		}
		printed[x.Name()] = true
	}
	if len(s.collectors) == 0 {
		x := newPrinting("json:-", newJSONForm(), stdout, nil, printQueue, notify)
		if f, ok := stdout.(*os.File); ok && isatty.IsTerminal(f.Fd()) {
			x = newPrinting("table:-", &tableForm{}, stdout, nil, printQueue, notify)
		}
		exporters = append(exporters, x)
	}
	return exporters, nil
}

// closeAll closes what exporters opened that are not run: it may have the lock of a spool.
func closeAll(exporters []exporter) {
	for _, x := range exporters {
		switch x := x.(type) {
		case *ipfix.Exporter:
			x.Close()
		case *printing:
			if x.file != nil {
				x.file.Close()
			}
		}
	}
}

// onSignal calls f at each signal until ctx ends.
func onSignal(ctx context.Context, sig os.Signal, f func()) {
	came := make(chan os.Signal, 1)
	signal.Notify(came, sig)
	defer signal.Stop(came)
	for {
		select {
		case <-ctx.Done():
			return
		case <-came:
			f()
		}
	}
}

// logStatus logs one line of all counts.
func logStatus(ctx context.Context, m *metrics, log *slog.Logger) {
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
		slog.Any("processes", st.processes), slog.Any("conntrack", st.conntrack), slog.Any("containers", st.containers), slog.Any("held", st.held), slog.Any("late", st.late), slog.Any("selection", st.selection),
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

// summarize says what was not delivered.
func summarize(exporters []exporter, log *slog.Logger) (dropped uint64) {
	for _, x := range exporters {
		st := x.Stats()
		if n := st.DroppedQueue + st.DroppedSend + st.DroppedSpool + st.DroppedBig; n > 0 {
			dropped += n
			log.Warn("records were dropped", "collector", x.Name(), "queue", st.DroppedQueue, "send", st.DroppedSend, "spool", st.DroppedSpool, "too_big", st.DroppedBig)
		}
	}
	return dropped
}
