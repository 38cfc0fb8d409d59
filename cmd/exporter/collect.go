package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"github.com/sockflow/sockflow/collector"
)

// collectSettings are the flags of collect.
type collectSettings struct {
	listen     []string
	output     string
	options    bool
	pen        uint32
	v9Base     uint16
	lifetime   time.Duration
	logLevel   string
	privileges string
}

func newCollectCommand(stdout, stderr io.Writer) *cobra.Command {
	var s collectSettings
	cmd := &cobra.Command{
		Use:   "collect [--listen URL]... [-o json|table] [FILE...|-]",
		Short: "embedded collector: decode IPFIX and NetFlow, and print",
		Long: `Listens for IPFIX and NetFlow v1, v5, v7 and v9, or reads IPFIX files (RFC 5655; - is the standard input), and prints each Data Record: as a line of
JSON, or in a table. kill -USR1 logs what came and what was lost, as the end does.

URLs: udp://[ADDRESS][:4739]  tcp://[ADDRESS][:4739]  tls://[ADDRESS][:4740]?cert=FILE&key=FILE[&ca=FILE]  dtls:// likewise
Without an address it is loopback; udp://*:4739 is every address. With ca, clients need a certificate of those authorities.`,
		Example: `  sockflow collect                                    # udp://:4739
  sockflow collect --listen tcp://*:4739 -o json
  sockflow collect --listen 'tls://*?cert=collector.pem&key=collector.key&ca=clients.pem'
  sockflow collect --options flows.ipfix`,
		RunE: func(cmd *cobra.Command, files []string) error {
			return s.run(cmd.Context(), files, stdout, stderr)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&s.listen, "listen", nil, "listen at this `URL`; repeatable (default udp://:4739, unless there are files)")
	f.StringVarP(&s.output, "output", "o", "", "json or table (default: a table on a terminal, JSON lines otherwise)")
	f.BoolVar(&s.options, "options", false, "show options data too")
	f.Uint32Var(&s.pen, "pen", 32473, "private enterprise number of the native elements")
	f.Uint16Var(&s.v9Base, "v9-base", 30000, "first NetFlow v9 field type of the native elements")
	f.DurationVar(&s.lifetime, "template-lifetime", 30*time.Minute, "forget templates that are not sent again for so long, over UDP and DTLS; close connections that are silent for so long")
	f.StringVar(&s.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&s.privileges, "privileges", privilegesDrop, "once all is open: drop everything, or keep")
	return cmd
}

func (s *collectSettings) run(parent context.Context, files []string, stdout, stderr io.Writer) error {
	if len(files) > 0 && len(s.listen) > 0 {
		return usagef("collect: either files or --listen")
	}
	format, workers := formatLines, runtime.GOMAXPROCS(0)
	switch f, ok := stdout.(*os.File); {
	case s.output == "table" || s.output == "" && ok && isatty.IsTerminal(f.Fd()):
		format, workers = new(recordTable).format, 1 // it counts lines
	case s.output == "json" || s.output == "":
	default:
		return usagef("--output %q: must be json or table", s.output)
	}
	switch s.logLevel {
	case "debug", "info", "warn", "error":
	default:
		return usagef("--log-level %q: must be debug, info, warn or error", s.logLevel)
	}
	if s.privileges != privilegesDrop && s.privileges != privilegesKeep {
		return usagef("--privileges %q: must be drop or keep", s.privileges)
	}
	if s.lifetime < time.Second {
		return usagef("--template-lifetime %s: must be at least 1s", s.lifetime)
	}
	if s.v9Base == 0 || s.v9Base >= 32768-100 {
		return usagef("--v9-base %d: must be from 1 to %d", s.v9Base, 32768-101)
	}
	registry, err := collector.NewRegistry(s.pen, s.v9Base)
	if err != nil {
		return usageError{err}
	}
	if len(files) == 0 && len(s.listen) == 0 {
		s.listen = []string{"udp://:4739"}
	}
	log := newLogger(stderr, s.logLevel)
	opt := collector.Options{Registry: registry, TemplateLifetime: s.lifetime, Notify: func(line string) { log.Warn(line) }}
	for _, url := range s.listen {
		l, err := collector.ParseListener(url)
		if err != nil {
			return usageError{err}
		}
		opt.Listen = append(opt.Listen, l)
	}
	c, err := collector.New(opt)
	if err != nil {
		return err
	}
	for _, a := range c.Addrs() {
		log.Info("listening", "at", a)
	}
	ctx, stop := signal.NotifyContext(parent, os.Interrupt, syscall.SIGTERM)
	defer stop()
	go onSignal(ctx, syscall.SIGUSR1, func() { logCounts(log, "status", c.Counts()) }) // ends with ctx
	confined := &confinement{mode: onlyIn(parent, s.privileges), closed: true, alone: true, calls: calls{listen: true, seek: true}}
	for _, name := range files {
		if name != "-" {
			confined.read = append(confined.read, name)
		}
	}
	confined.confine(log)
	over, giveUp := context.WithCancel(context.Background())
	defer giveUp()
	context.AfterFunc(ctx, func() { time.AfterFunc(printTime, giveUp) })
	printer := newRecordPrinter(stdout, format, workers, s.options, over.Done())
	if len(files) > 0 {
		err = readFiles(ctx, c, files, printer.print)
	} else {
		err = c.Run(ctx, printer.print)
	}
	c.Close()
	if bad := printer.close(); err == nil || errors.Is(err, errStopped) {
		err = bad
	}
	logCounts(log, "collected", c.Counts())
	return err
}

// printTime is how long after a signal the output may take what came before it.
const printTime = time.Second

// readFiles reads files one after the other, until a signal.
func readFiles(ctx context.Context, c *collector.Collector, files []string, show func([]collector.Record) error) error {
	done := make(chan error, 1)
	go func() { // ends with the files; after a signal, with the program: a read of a pipe cannot be ended
		var errs []error
		for _, name := range files {
			if err := readFile(c, name, show); err != nil {
				errs = append(errs, err)
			}
		}
		done <- errors.Join(errs...)
	}()
	select {
	case <-ctx.Done():
		return nil
	case err := <-done:
		return err
	}
}

func readFile(c *collector.Collector, name string, show func([]collector.Record) error) error {
	if name == "-" {
		if err := c.ReadStream("stdin", os.Stdin, show); err != nil {
			return fmt.Errorf("read standard input: %w", err)
		}
		return nil
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := c.ReadStream(name, f, show); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

func logCounts(log *slog.Logger, what string, n collector.Counts) {
	var causes []any
	for _, cause := range collector.Causes() {
		causes = append(causes, cause.String(), n.Malformed[cause])
	}
	log.Info(what, "messages", n.Messages, "octets", n.Octets, "records", n.Records, "options", n.Options,
		"sequence_gaps", n.Gaps, "lost", n.Lost, "late", n.Late, "restarts", n.Restarts, "unknown_template_sets", n.UnknownSets,
		"short_sets", n.ShortSets,
		slog.Group("malformed", causes...), "kernel_drops", n.KernelDrops, "ignored", n.Ignored, "refused", n.Refused,
		slog.Group("templates", "received", n.Templates, "withdrawn", n.Withdrawn, "expired", n.Expired),
		slog.Group("sessions", "now", n.Sessions, "opened", n.Opened, "forgotten", n.Forgotten, "refused", n.RefusedConn, "idle", n.Idle, "failed", n.Failed))
}
