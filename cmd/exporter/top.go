package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gdamore/tcell/v2"
	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// topOptions are the flags of top beyond those of run.
type topOptions struct {
	interval time.Duration
	batch    bool
	rounds   int
	width    int
	view     string
	filter   string
	tree     bool
}

// first returns the time from the start until there are flows to show: live flows are reported within the interval,
// spread over it.
func (o *topOptions) first() time.Duration { return o.interval + 700*time.Millisecond }

func newTopCommand(stdout, stderr io.Writer) *cobra.Command {
	var s settings
	var o topOptions
	cmd := &cobra.Command{
		Use:   "top",
		Short: "live flows, processes, containers and pods in the terminal",
		Long: `Shows live flows, processes, containers or pods with their rates, round-trip times and retransmissions, as run would meter them.
Rates are payload octets per second; RETR are segments sent again in the last interval.

Keys: 1-4 flows, processes, containers, pods   enter: what is in this line   esc: back   up, down, page up, page down: move
      < > order by another column   r: reverse   t: tree of processes   /: filter   space: freeze   h: help   q: quit`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.load(cmd.Flags()); err != nil {
				return err
			}
			return top(&s, &o, stdout)
		},
	}
	s.addFlags(cmd.Flags())
	cmd.Flags().DurationVarP(&o.interval, "interval", "d", 2*time.Second, "between two pictures")
	cmd.Flags().BoolVarP(&o.batch, "batch", "b", false, "print pictures one after another, for a file or another program")
	cmd.Flags().IntVarP(&o.rounds, "rounds", "n", 0, "end after this many pictures; 0: go on")
	cmd.Flags().IntVarP(&o.width, "width", "w", 160, "width of a line with --batch")
	cmd.Flags().StringVar(&o.view, "view", "flows", "flows, processes, containers or pods")
	cmd.Flags().StringVar(&o.filter, "filter-text", "", "only lines that contain this text")
	cmd.Flags().BoolVar(&o.tree, "tree", false, "processes below their parents")
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		switch f.Name {
		case "interval", "batch", "rounds", "width", "view", "filter-text", "tree", "source", "max-flows", "memory-limit", "proc", "config", "local-pairs", "containerd", "docker", "cri", "podman", "kube":
		default:
			f.Hidden = true
		}
	})
	return cmd
}

func top(s *settings, o *topOptions, stdout io.Writer) error {
	if o.interval < 100*time.Millisecond {
		return usagef("--interval %s: must be at least 100ms", o.interval)
	}
	if viewNamed(o.view) == nil {
		return usagef("--view %q: must be flows, processes, containers or pods", o.view)
	}
	if o.width < 40 || o.rounds < 0 {
		return usagef("--width must be at least 40, and --rounds not negative")
	}
	if f, ok := stdout.(*os.File); !o.batch && (!ok || !isatty.IsTerminal(f.Fd()) || !isatty.IsTerminal(os.Stdin.Fd())) {
		return usagef("top needs a terminal; to a file or another program: top --batch")
	}
	s.activeTimeout, s.metrics = o.interval, "none"
	s.snapshotInterval = min(s.snapshotInterval, o.interval)
	model := newTopModel(o.interval, s.proc)
	notes := &lastNotes{}
	log := slog.New(slog.NewTextHandler(notes, &slog.HandlerOptions{Level: slog.LevelWarn}))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	meterCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	var screen tcell.Screen
	if !o.batch { // before the metering gives up opening terminals
		var err error
		if screen, err = openScreen(); err != nil {
			return err
		}
		defer func() {
			done := make(chan struct{})
			go func() { screen.Fini(); close(done) }() // ends at once, unless the terminal takes nothing
			select {
			case <-done:
			case <-time.After(time.Second):
			}
		}()
	}
	metering := make(chan error, 1)
	go func() { metering <- meter(meterCtx, s, nil, model, log) }() // ends with meterCtx
	shown := make(chan error, 1)
	go func() { // ends with meterCtx, unless the terminal takes nothing
		if o.batch {
			shown <- topBatch(meterCtx, model, o, untilDone(meterCtx, stdout), metering)
		} else {
			shown <- topScreen(meterCtx, screen, model, o, notes, metering)
		}
	}()
	var err error
	select {
	case err = <-shown:
	case <-ctx.Done():
		select {
		case err = <-shown:
		case <-time.After(time.Second):
			return nil
		}
	}
	cancel()
	if err != nil && !errors.Is(err, errMeteringEnded) {
		<-metering
		return err
	}
	if err == nil {
		err = <-metering
	} else {
		err = errors.Unwrap(err)
	}
	return err
}

// errMeteringEnded wraps why the metering ended by itself.
var errMeteringEnded = errors.New("the metering ended")

type meteringEnded struct{ cause error }

func (e meteringEnded) Error() string        { return fmt.Sprint(errMeteringEnded, ": ", e.cause) }
func (e meteringEnded) Unwrap() error        { return e.cause }
func (e meteringEnded) Is(target error) bool { return target == errMeteringEnded }

// topBatch prints a picture each interval, as top -b does.
func topBatch(ctx context.Context, m *topModel, o *topOptions, stdout io.Writer, metering <-chan error) error {
	ready := m.started
	tick := time.NewTimer(time.Hour)
	defer tick.Stop()
	v := viewNamed(o.view)
	order := topOrder{column: -1}
	w := bufio.NewWriter(stdout)
	for n := 0; o.rounds == 0 || n < o.rounds; {
		select {
		case <-ctx.Done():
			return nil
		case err := <-metering:
			return meteringEnded{err}
		case <-ready:
			ready = nil
			tick.Reset(o.first())
			continue
		case <-tick.C:
			tick.Reset(o.interval)
		}
		now := time.Now()
		flows := m.snapshot(now.UnixNano())
		rows := v.arrange(flows, topScope{}, o.filter, order, o.tree, m.proc)
		if n++; n > 1 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "sockflow top %s  %s\n", now.Format("15:04:05"), summary(flows))
		widths := v.widths(o.width)
		fmt.Fprintln(w, v.line(nil, widths, order))
		for i := range rows {
			fmt.Fprintln(w, v.line(&rows[i], widths, order))
		}
		if err := w.Flush(); err != nil {
			if errors.Is(err, syscall.EPIPE) || errors.Is(err, errLate) {
				return nil
			}
			return err
		}
	}
	return nil
}

// lastNotes keeps the last line that was logged, for the foot of the screen.
type lastNotes struct {
	mu   sync.Mutex
	line string
}

func (l *lastNotes) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.line = string(bytes.TrimSpace(b))
	if _, after, ok := strings.Cut(l.line, "msg="); ok {
		l.line = after
	}
	return len(b), nil
}

func (l *lastNotes) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.line
}
