package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
	"github.com/sockflow/sockflow/replay"
)

// replaySettings are the flags that replay alone has.
type replaySettings struct {
	speed    float64
	decap    bool
	metadata string
}

// notOfReplay are flags of run that have no meaning for a capture.
var notOfReplay = []string{
	"snapshot-interval", "source", "audit-interval", "without-hook", "local-pairs", "proc", "metrics", "containerd", "docker", "cri", "podman", "labels",
	"interface", "promiscuous", "decap", "interface-interval", "kube", "kube-token", "kube-ca", "kube-pods", "kube-node", "kube-max",
	"flow-metrics", "flow-metrics-max", "pprof", "memory-limit",
}

func newReplayCommand(stdout, stderr io.Writer) *cobra.Command {
	var s settings
	var o replaySettings
	cmd := &cobra.Command{
		Use: "replay FILE... [-c URL]...", Short: "turn captures (pcap, pcapng) into flow records",
		Long: `Meters the packets of captures as if they passed now: the same records, templates and transports as run. Reads pcap and pcapng, also in
gzip or zstd; - is the standard input. The packets' own clock drives the timeouts, so the result is the same every time. Without -c, records
are printed: a table on a terminal, JSON lines otherwise.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("no capture; see %s replay --help", cmd.Root().Name())
			}
			return apartFromFlag(cmd, args)
		},
		RunE: func(cmd *cobra.Command, files []string) error {
			if err := s.load(cmd.Flags()); err != nil {
				return err
			}
			if !(o.speed >= 0) || math.IsInf(o.speed, 0) {
				return usagef("--speed %g: must be a number that is not negative", o.speed)
			}
			s.privileges = onlyIn(cmd.Context(), s.privileges)
			return replayFiles(&s, &o, files, stdout, stderr)
		},
	}
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	s.addFlags(all)
	all.VisitAll(func(f *pflag.Flag) {
		if !slices.Contains(notOfReplay, f.Name) {
			cmd.Flags().AddFlag(f)
		}
	})
	cmd.Flags().Lookup("idle-timeout").Usage = "end a flow after this silence"
	cmd.Flags().Lookup("max-flows").Usage = "most flows kept at once"
	f := cmd.Flags()
	f.SortFlags = false
	f.Float64Var(&o.speed, "speed", 0, "0: as fast as possible; 1: as fast as it was recorded; `N`: so many times faster")
	f.BoolVar(&o.decap, "decap", false, "meter what VXLAN, GRE, IP in IP and Geneve carry, not the tunnel itself")
	f.StringVar(&o.metadata, "metadata", "", "name processes and containers from this `FILE`: JSON lines of run, recorded while the capture was")
	return cmd
}

// replayFiles meters captures.
func replayFiles(s *settings, o *replaySettings, files []string, stdout, stderr io.Writer) error {
	log := newLogger(stderr, s.logLevel)
	begun := time.Now()
	if err := checkOutputs(s, files); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	in, err := openCaptures(ctx, files, o.speed, log)
	if err != nil {
		return err
	}
	defer in.close()
	// Late packets may be older than the first.
	s.boot = time.Unix(0, in.firstTime()).Add(-time.Hour).Truncate(time.Millisecond)
	var names *metadata
	if o.metadata != "" {
		if names, err = readMetadata(o.metadata); err != nil {
			return err
		}
	}
	exporters, err := destinations(s, stdout, log)
	if err != nil {
		return err
	}
	for _, x := range exporters {
		if x, ok := x.(*ipfix.Exporter); ok {
			x.UseRecordTimes(s.boot)
		}
	}
	selector, err := s.selecting.open()
	if err != nil {
		return err
	}
	if selector != nil && selector.aggregator != nil {
		selector.aggregator.ByEnd(in.firstTime(), s.selecting.aggregatePorts)
	}
	p := &pipeline{selector: selector, pool: make(flowcache.RecordPool, 64)}
	p.exporters, p.printers = newGroup(s.exporting.policy, exporters)
	m, err := replay.NewMeter(replay.Config{
		ActiveTimeout: s.activeTimeout, IdleTimeout: s.idleTimeout, MaxFlows: s.maxFlows, Decap: o.decap, Pool: make(flowcache.RecordPool, 64),
	})
	if err != nil {
		return usageError{err}
	}
	in.meter, in.idle = m, s.idleTimeout
	replayConfinement(s, files).confine(log)

	exportCtx, stopExport := context.WithCancel(context.Background())
	defer stopExport()
	var exporting sync.WaitGroup
	for _, x := range exporters {
		exporting.Add(1)
		go func() { // ends with exportCtx
			defer exporting.Done()
			x.Run(exportCtx)
		}()
	}
	bar := newProgress(stderr, in)
	err = m.Run(in.next, func(r *flowcache.Records) error {
		defer r.Release()
		if names != nil {
			for i := range r.List {
				names.name(&r.List[i])
			}
		}
		waitForRoom(ctx, exporters)
		select {
		case <-readerGone(exporters):
			return syscall.EPIPE
		default:
		}
		p.hand(r.List)
		return nil
	})
	if err == nil {
		p.tellRecords(p.selector.flush())
	}
	bar.stop()
	waitForAll(ctx, exporters)
	stopExport()
	exporting.Wait()
	if err == nil {
		select {
		case <-readerGone(exporters):
			err = syscall.EPIPE
		default:
		}
	}
	dropped := uint64(0)
	if !errors.Is(err, syscall.EPIPE) { // who has gone has seen enough
		dropped = summarize(exporters, log)
	}
	in.report(m.Stats(), time.Since(begun), names, log)
	switch {
	case err != nil:
		return err
	case in.failed != nil:
		return in.failed
	case dropped > 0 && ctx.Err() == nil: // at a signal they are given up
		return fmt.Errorf("%d records did not reach a collector", dropped)
	}
	return nil
}

// checkOutputs refuses to write to what is read.
func checkOutputs(s *settings, files []string) (err error) {
	s.eachCollector(func(url string, cfg *ipfix.Config) {
		path := jsonPath(url)
		if cfg != nil && cfg.Network == "file" {
			path = cfg.Address
		}
		out, statErr := os.Stat(path)
		if path == "" || statErr != nil || !out.Mode().IsRegular() {
			return
		}
		for _, name := range files {
			if st, statErr := os.Stat(name); statErr == nil && os.SameFile(st, out) {
				err = usagef("collector %q: is the capture %s", url, name)
			}
		}
	})
	return err
}

// replayConfinement leaves the captures, and what collectors need.
func replayConfinement(s *settings, files []string) *confinement {
	c := &confinement{mode: s.privileges, closed: true, alone: true, write: s.outputs(), calls: calls{seek: true}}
	c.calls.write = len(c.write) > 0
	for _, name := range files {
		if name != "-" {
			c.read = append(c.read, name)
		}
	}
	s.eachCollector(func(url string, cfg *ipfix.Config) {
		if cfg != nil && cfg.Network != "file" || strings.HasPrefix(url, "zmq:") {
			c.alone, c.calls.inet, c.calls.netlink = false, true, true
		}
	})
	if c.calls.inet {
		c.read = append(c.read, s.readable()...)
	}
	return c
}

const (
	// maxWaiting is how many records may wait for a collector before reading goes on: nothing is lost to a queue.
	maxWaiting = 1024
	// stuck is how long a collector may take nothing before its records are given up.
	stuck = 10 * time.Second
	// flushTime is more than what an exporter waits for a message to become full.
	flushTime = 80 * time.Millisecond
)

// waitForRoom waits until no collector has more than so many records before it, or one takes none for too long.
func waitForRoom(ctx context.Context, exporters []exporter) {
	for _, x := range exporters {
		waitFor(ctx, patienceWith(x), func() uint64 { return max(x.Stats().Waiting, maxWaiting) - maxWaiting })
	}
}

// waitForAll waits until collectors have all records, those included that wait for a connection or an acknowledgment.
func waitForAll(ctx context.Context, exporters []exporter) {
	for _, x := range exporters {
		waitFor(ctx, patienceWith(x), func() uint64 { return x.Stats().Waiting })
	}
	if len(exporters) > 0 && ctx.Err() == nil {
		time.Sleep(flushTime)
	}
	for _, x := range exporters {
		waitFor(ctx, patienceWith(x), func() uint64 { return x.Stats().Backlog })
	}
}

// patienceWith is how long an exporter may take nothing: who reads what is printed, perhaps a person with a pager, has all the time.
func patienceWith(x exporter) time.Duration {
	if _, prints := x.(*printing); prints {
		return math.MaxInt64
	}
	return stuck
}

// waitFor waits until left is 0, or has not become less for so long.
func waitFor(ctx context.Context, patience time.Duration, left func() uint64) {
	least, since := left(), time.Now()
	for n := least; n > 0 && ctx.Err() == nil && time.Since(since) < patience; n = left() {
		if n < least {
			least, since = n, time.Now()
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// report sums up.
func (c *captures) report(st replay.Stats, took time.Duration, names *metadata, log *slog.Logger) {
	args := []any{"files", c.opened, "packets", st.Packets}
	for f := replay.NotIP; f <= replay.UnknownLink; f++ {
		if st.Fates[f] > 0 {
			args = append(args, f.String(), st.Fates[f])
		}
	}
	if st.Fates[replay.UnknownLink] > 0 {
		args = append(args, "link_types", st.Unread.String())
	}
	var records uint64
	for _, n := range st.Records {
		records += n
	}
	args = append(args, "octets", st.Octets, "flows", st.Created, "records", records)
	if n := st.Records[flowcache.EndLack]; n > 0 {
		args = append(args, "left_early", n)
	}
	if st.Orphans > 0 {
		args = append(args, "fragments_without_ports", st.Orphans)
	}
	if st.Gaps > 0 {
		args = append(args, "gaps_forgotten", st.Gaps)
	}
	if names != nil {
		args = append(args, "named", names.named)
	}
	args = append(args, "of_time", time.Duration(st.Clock-st.First).Round(time.Millisecond), "took", took.Round(time.Millisecond))
	log.Info("replayed", args...)
}
