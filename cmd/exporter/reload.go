package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/mattn/go-isatty"
	"github.com/spf13/pflag"

	"github.com/sockflow/sockflow/ipfix"
	"github.com/sockflow/sockflow/templates"
)

// given are the flags of the command line, to be read again together with what may have changed.
type given map[string][]string

// remember takes the flags that were set so far: those of the command line.
func remember(f *pflag.FlagSet) given {
	g := given{}
	f.Visit(func(fl *pflag.Flag) {
		if list, ok := fl.Value.(pflag.SliceValue); ok {
			g[fl.Name] = list.GetSlice()
		} else {
			g[fl.Name] = []string{fl.Value.String()}
		}
	})
	return g
}

// again reads the environment and the --config file once more.
func (g given) again() (*settings, error) {
	s := &settings{}
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	s.addFlags(f)
	for name, values := range g {
		for _, v := range values {
			if err := f.Set(name, v); err != nil {
				return nil, err
			}
		}
	}
	return s, s.load(f)
}

// fieldSetter is an exporter whose records can get other fields while it runs.
type fieldSetter interface {
	Name() string
	Fields() templates.Options
	SetFields(templates.Options) error
}

// followReload gives collectors, at each SIGHUP, the fields that the settings say by then: dialect, fields, direction, numbers, lengths.
// Everything else needs a restart. Run by hand in a terminal, the program ends with it, as any other.
func followReload(ctx context.Context, s *settings, exporters []exporter, log *slog.Logger) {
	if isatty.IsTerminal(os.Stdin.Fd()) {
		return
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		n, err := reload(s, exporters)
		if err != nil {
			log.Error("settings are as they were", "reason", err)
			continue
		}
		log.Info("settings are read again", "collectors_with_other_fields", n)
	}
}

// reload returns how many collectors get other fields. If anything is wrong none does.
func reload(old *settings, exporters []exporter) (int, error) {
	s, err := old.given.again()
	if err != nil {
		return 0, err
	}
	base, err := s.base()
	if err != nil {
		return 0, err
	}
	wanted := map[string]templates.Options{}
	for _, url := range s.collectors {
		if strings.HasPrefix(url, "json:") || strings.HasPrefix(url, "zmq:") {
			continue
		}
		cfg, err := ipfix.ParseURL(url, base)
		if err != nil {
			return 0, err
		}
		opt := cfg.Options
		opt.V9 = cfg.Protocol == ipfix.NetFlowV9
		if _, err := templates.New(opt); err != nil {
			return 0, usagef("collector %q: %w", url, err)
		}
		wanted[cfg.Name()] = cfg.Options
	}
	n := 0
	for _, x := range exporters {
		x, ok := x.(fieldSetter)
		if !ok {
			continue
		}
		if opt, ok := wanted[x.Name()]; ok && opt != x.Fields() {
			if err := x.SetFields(opt); err != nil {
				return n, err
			}
			n++
		}
	}
	return n, nil
}
