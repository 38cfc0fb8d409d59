package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/mattn/go-isatty"
	"github.com/spf13/pflag"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
	"github.com/sockflow/sockflow/templates"
)

// fleet are the exporters that run. Safe for concurrent use.
type fleet struct {
	mu      sync.Mutex
	members []*fleetMember
	gone    sync.WaitGroup
}

type fleetMember struct {
	exporter
	identity string
	stop     context.CancelFunc
}

// start runs exporters, in the order of their URLs, until ctx or their own stop.
func (f *fleet) start(ctx context.Context, s *settings, exporters []exporter) []*fleetMember {
	var started []*fleetMember
	urls := exporterURLs(s.collectors)
	for _, x := range exporters {
		id := x.Name()
		if _, prints := x.(*printing); !prints {
			id, _, _ = identity(urls[0], s) // it was parsed before
			urls = urls[1:]
		}
		m := &fleetMember{exporter: x, identity: id}
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

// identity is everything that an exporter is made of but the fields of its records, which can change while it runs.
func identity(url string, s *settings) (id string, fields templates.Options, err error) {
	base, err := s.base()
	if err != nil {
		return "", fields, err
	}
	if strings.HasPrefix(url, "zmq:") {
		return fmt.Sprint(url, s.domain, base.Options.Node, s.reconnectMin, s.reconnectMax), fields, nil
	}
	cfg, err := ipfix.ParseURL(url, base)
	if err != nil {
		return "", fields, usageError{err}
	}
	fields = cfg.Options
	cfg.Options, cfg.Notify = templates.Options{}, nil
	return fmt.Sprintf("%+v", cfg), fields, nil
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

// fieldSetter is an exporter whose records can get other fields while it runs.
type fieldSetter interface {
	Fields() templates.Options
	SetFields(templates.Options) error
}

// reloader applies --config again at each SIGHUP.
type reloader struct {
	s        *settings
	p        *pipeline
	fleet    *fleet
	begin    func(exporters []exporter) // told of new exporters before they run
	confined *confinement
	log      *slog.Logger
}

// run serves SIGHUP until ctx ends; exporters run until exportCtx does.
func (r *reloader) run(ctx, exportCtx context.Context) {
	if r.s.config == "" || isatty.IsTerminal(os.Stdin.Fd()) {
		return // run by hand in a terminal, the program ends with it, as any other
	}
	onSignal(ctx, syscall.SIGHUP, func() {
		notifyService(reloadingState())
		changed, refitted, err := r.reload(ctx, exportCtx)
		if err != nil {
			r.log.Error("settings are as they were", "reason", err)
		} else {
			r.log.Info("settings are read again", "changed", strings.Join(changed, " "), "collectors_with_other_fields", refitted)
		}
		notifyService(readyState)
	})
}

// reload changes everything that can be changed or, with an error, nothing.
func (r *reloader) reload(ctx, exportCtx context.Context) (changed []string, refitted int, err error) {
	n, err := r.s.again()
	if err != nil {
		return nil, 0, err
	}
	changed = r.s.changed(n)
	for _, name := range changed {
		if !slices.Contains(reloadable, name) {
			return nil, 0, fmt.Errorf("%s cannot change while the program runs; restart it", name)
		}
	}
	isJSON := func(url string) bool { return !strings.HasPrefix(url, "json:") }
	if (len(n.collectors) == 0) != (len(r.s.collectors) == 0) ||
		!slices.Equal(slices.DeleteFunc(slices.Clone(n.collectors), isJSON), slices.DeleteFunc(slices.Clone(r.s.collectors), isJSON)) {
		return nil, 0, fmt.Errorf("what is printed (json:) cannot change while the program runs; restart it")
	}
	for _, dir := range n.outputs() {
		if !r.confined.allows(dir) {
			return nil, 0, fmt.Errorf("files in %s cannot be written: that was given up at the start (--privileges); restart it", dir)
		}
	}
	filters, err := n.selecting.parse()
	if err != nil {
		return nil, 0, err
	}
	// What stays the same keeps its connection, its queue and its sequence, even if it gets other fields.
	r.fleet.mu.Lock()
	old := slices.Clone(r.fleet.members)
	r.fleet.mu.Unlock()
	fresh := *n
	fresh.collectors = nil
	members := make([]*fleetMember, 0, len(n.collectors))
	var refit []func() error
	for _, url := range exporterURLs(n.collectors) {
		id, fields, err := identity(url, n)
		if err != nil {
			return nil, 0, err
		}
		i := slices.IndexFunc(old, func(m *fleetMember) bool { return m.identity == id })
		if i < 0 {
			fresh.collectors = append(fresh.collectors, url)
			members = append(members, nil)
			continue
		}
		members = append(members, old[i])
		if x, ok := old[i].exporter.(fieldSetter); ok && x.Fields() != fields {
			if strings.HasPrefix(url, "netflow9") {
				fields.V9 = true
			}
			if _, err := templates.New(fields); err != nil {
				return nil, 0, usagef("collector %q: %w", url, err)
			}
			fields.V9 = false
			refit = append(refit, func() error { return x.SetFields(fields) })
		}
	}
	if len(fresh.collectors) > 0 {
		exporters, err := destinations(&fresh, nil, r.log)
		if err != nil {
			return nil, 0, err
		}
		r.begin(exporters)
		started := r.fleet.start(exportCtx, &fresh, exporters)
		for i := range members {
			if members[i] == nil {
				members[i], started = started[0], started[1:]
			}
		}
	}
	for _, f := range refit {
		if err := f(); err != nil {
			return nil, 0, err
		}
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
		return nil, 0, ctx.Err()
	}
	// Nothing is offered to these any more: they send what they have, and end.
	for _, m := range old {
		if !slices.Contains(members, m) {
			m.stop()
		}
	}
	r.s = n
	return changed, len(refit), err
}
