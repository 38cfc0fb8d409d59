package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/mattn/go-isatty"
	"github.com/spf13/pflag"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
)

// fleet are the exporters that run. Safe for concurrent use.
type fleet struct {
	mu      sync.Mutex
	members []*fleetMember
	gone    sync.WaitGroup
}

type fleetMember struct {
	exporter
	stop context.CancelFunc
}

// start runs exporters until ctx or their own stop.
func (f *fleet) start(ctx context.Context, exporters []exporter) []*fleetMember {
	var started []*fleetMember
	for _, x := range exporters {
		m := &fleetMember{exporter: x}
		var runCtx context.Context
		runCtx, m.stop = context.WithCancel(ctx)
		f.gone.Add(1)
		go func() { // ends with runCtx
			defer f.gone.Done()
			m.Run(runCtx)
		}()
		started = append(started, m)
	}
	return started
}

func (f *fleet) set(members []*fleetMember) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.members = members
}

// list returns the exporters in use.
func (f *fleet) list() []exporter {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]exporter, len(f.members))
	for i, m := range f.members {
		list[i] = m.exporter
	}
	return list
}

// exporterURLs are the URLs of collectors; JSON is printed.
func exporterURLs(collectors []string) []string {
	return slices.DeleteFunc(slices.Clone(collectors), func(url string) bool { return strings.HasPrefix(url, "json:") })
}

// reloadable are the settings that may change while the program runs.
var reloadable = []string{
	"collector", "active-timeout", "idle-timeout", "filter", "policy", "max-rate", "send-timeout", "spool", "spool-size", "direction", "domain", "pen", "dialect",
	"v9-base", "fields", "string-length", "cmdline", "node-name", "mtu", "template-refresh", "reconnect-min", "reconnect-max",
}

// again reads the environment and the configuration file anew, under the same command line.
func (s *settings) again() (*settings, error) {
	n := &settings{boot: s.boot}
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	n.addFlags(f)
	for _, g := range s.given {
		fl := f.Lookup(g.name)
		if list, ok := fl.Value.(pflag.SliceValue); ok {
			if err := list.Replace(g.values); err != nil {
				return nil, err
			}
		} else if err := fl.Value.Set(g.values[0]); err != nil {
			return nil, err
		}
		fl.Changed = true
	}
	err := n.load(f)
	n.given = s.given
	return n, err
}

// given is a flag of the command line.
type given struct {
	name   string
	values []string
}

// remember keeps what the command line gave, before anything else is read.
func (s *settings) remember(f *pflag.FlagSet) {
	s.flags = f
	s.given = nil
	f.Visit(func(fl *pflag.Flag) {
		values := []string{fl.Value.String()}
		if list, ok := fl.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		s.given = append(s.given, given{fl.Name, values})
	})
}

// changed are the names of settings that n has otherwise.
func (s *settings) changed(n *settings) (names []string) {
	s.flags.VisitAll(func(fl *pflag.Flag) {
		if other := n.flags.Lookup(fl.Name); other != nil && other.Value.String() != fl.Value.String() {
			names = append(names, fl.Name)
		}
	})
	return names
}

// reloader applies --config again at each SIGHUP.
type reloader struct {
	s        *settings
	p        *pipeline
	fleet    *fleet
	begin    func(exporters []exporter) // called with new exporters before they run
	confined *confinement
	log      *slog.Logger

	notify func(ok bool, line string) // of new exporters
}

// run serves SIGHUP until ctx ends; exporters run until exportCtx does.
func (r *reloader) run(ctx, exportCtx context.Context) {
	if r.s.config == "" || isatty.IsTerminal(os.Stdin.Fd()) {
		return // run by hand in a terminal, the program ends with it, as any other
	}
	onSignal(ctx, syscall.SIGHUP, func() {
		notifyService(reloadingState())
		changed, refused, err := r.reload(ctx, exportCtx)
		for _, why := range refused {
			r.log.Error("a setting stays as it was", "reason", why)
		}
		if err != nil {
			r.log.Error("settings are as they were", "reason", err)
		} else {
			r.log.Info("settings are read again", "changed", strings.Join(changed, " "))
		}
		notifyService(readyState)
	})
}

// reload changes everything that can be changed, and says what is refused, each by its name; with an error, nothing is changed.
func (r *reloader) reload(ctx, exportCtx context.Context) (changed []string, refused []error, err error) {
	n, err := r.s.again()
	if err != nil {
		return nil, nil, err
	}
	for _, name := range r.s.changed(n) {
		if slices.Contains(reloadable, name) {
			changed = append(changed, name)
			continue
		}
		refused = append(refused, fmt.Errorf("%s cannot change while the program runs; restart it", name))
		if err := n.keep(name, r.s); err != nil {
			return nil, nil, err
		}
	}
	if err := r.keepPrinter(n); err != nil {
		refused = append(refused, err)
	}
	filters, err := n.selecting.parse()
	if err != nil {
		return nil, nil, err
	}
	peers, err := n.peers(nil)
	if err != nil {
		return nil, nil, err
	}
	// What stays keeps its connection, its queue and its sequence as far as its options do.
	r.fleet.mu.Lock()
	old := slices.Clone(r.fleet.members)
	r.fleet.mu.Unlock()
	members := make([]*fleetMember, 0, len(peers))
	for _, peer := range peers {
		if i := slices.IndexFunc(old, func(m *fleetMember) bool { return m.Name() == peer.name() }); i >= 0 {
			if err := r.reconfigure(peer, old[i].exporter); err != nil {
				refused = append(refused, fmt.Errorf("collector %s: %w", peer.name(), err))
			}
			members = append(members, old[i])
			continue
		}
		if err := r.mayWrite(peer); err != nil {
			refused = append(refused, fmt.Errorf("collector %s: %w", peer.name(), err))
			continue
		}
		x, err := peer.open(r.notify)
		if err != nil {
			refused = append(refused, err)
			continue
		}
		r.begin([]exporter{x})
		members = append(members, r.fleet.start(exportCtx, []exporter{x})...)
	}
	for _, m := range old { // what is printed stays
		if _, prints := m.exporter.(*printing); prints {
			members = append(members, m)
		}
	}
	r.fleet.set(members)
	group, printers := newGroup(n.exporting.policy, r.fleet.list())
	done := make(chan error, 1)
	swap := func(pipelineStatus) {
		r.p.exporters, r.p.printers, r.p.selector = group, printers, r.p.selector.with(filters)
		done <- r.p.cache.SetTimeouts(reportEvery(n), n.idleTimeout, flowcache.Now())
	}
	select {
	case r.p.status <- swap:
		err = <-done
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	// Nothing is offered to these any more: they send what they have, and end.
	for _, m := range old {
		if !slices.Contains(members, m) {
			m.stop()
		}
	}
	r.s = n
	return changed, refused, err
}

// reconfigure gives an exporter the options of p, but for a spool that it may not write.
func (r *reloader) reconfigure(p *peer, of exporter) error {
	var refused error
	if x, ok := of.(*ipfix.Exporter); ok {
		if now := x.Config(); p.ipfix.Spool != now.Spool {
			if refused = r.mayWrite(p); refused != nil {
				p.ipfix.Spool, p.ipfix.SpoolSize = now.Spool, now.SpoolSize
			}
		}
	}
	return errors.Join(refused, p.reconfigure(of))
}

// mayWrite reports whether what p has written can be: the privileges for it may have been given up, and the folder may
// not be one that root writes into.
func (r *reloader) mayWrite(p *peer) error {
	dir, file := p.writes()
	if dir == "" {
		return nil
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	what := "option spool"
	if file != "" {
		what = "file"
	}
	if !r.confined.allows(abs) {
		return fmt.Errorf("%s: files in %s cannot be written: that was given up at the start (--privileges); restart it", what, dir)
	}
	if err := checkFolder(dir, file); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// keep gives a setting the value that it has in old.
func (s *settings) keep(name string, old *settings) error {
	to, from := s.flags.Lookup(name), old.flags.Lookup(name)
	if list, ok := to.Value.(pflag.SliceValue); ok {
		return list.Replace(from.Value.(pflag.SliceValue).GetSlice())
	}
	return to.Value.Set(from.Value.String())
}

// keepPrinter keeps in n what is printed, which cannot change, and says so if it should have.
func (r *reloader) keepPrinter(n *settings) error {
	isJSON := func(url string) bool { return strings.HasPrefix(url, "json:") }
	other := func(url string) bool { return !isJSON(url) }
	was, is := slices.DeleteFunc(slices.Clone(r.s.collectors), other), slices.DeleteFunc(slices.Clone(n.collectors), other)
	switch {
	case (len(n.collectors) == 0) != (len(r.s.collectors) == 0):
		n.collectors = slices.Clone(r.s.collectors)
	case !slices.Equal(was, is):
		n.collectors = append(was, slices.DeleteFunc(slices.Clone(n.collectors), isJSON)...)
	default:
		return nil
	}
	return errors.New("collector: what is printed (json:) cannot change while the program runs; restart it")
}
