package ipfix

import (
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/sockflow/sockflow/selection"
	"github.com/sockflow/sockflow/templates"
)

// Name is the collector as users write it: scheme, host and port, and the number of a further one at the same address.
func (c *Config) Name() string {
	name := c.Network + "://" + c.Address
	switch {
	case c.Network == "file":
		name = "file:" + c.Address
	case c.Protocol == NetFlowV9:
		name = "netflow9+udp://" + c.Address
	}
	return name + ordinal(c.Number)
}

func ordinal(n int) string {
	if n < 2 {
		return ""
	}
	return fmt.Sprintf("#%d", n)
}

// change is another configuration, checked, and what was opened for it.
type change struct {
	cfg        *Config
	filter     *selection.Filter
	anonymizer *selection.Anonymizer
}

// selection opens what selects and changes records for this collector.
func (c *Config) selection() (f *selection.Filter, a *selection.Anonymizer, err error) {
	if c.Filter != "" {
		if f, err = selection.Parse(c.Filter); err != nil {
			return nil, nil, err
		}
	}
	if c.Anonymize != "" {
		key, err := selection.ReadKey(c.Anonymize)
		if err != nil {
			return nil, nil, err
		}
		if a, err = selection.NewAnonymizer(key); err != nil {
			return nil, nil, err
		}
	}
	return f, a, nil
}

// same reports whether two configurations are equal, but for what is of the program and not of the user.
func (c *Config) same(d *Config) bool {
	a, b := *c, *d
	for _, e := range []*Config{&a, &b} {
		e.Notify, e.resolver, e.stopBy, e.Boot = nil, nil, nil, time.Time{}
	}
	return reflect.DeepEqual(a, b)
}

// transport is the part of a configuration that a Transport Session is made by.
func (c *Config) transport() Config {
	t := *c
	t.Options, t.Filter, t.Anonymize, t.Queue, t.Spool, t.SpoolSize = templates.Options{}, "", "", 0, "", 0
	t.RotateSize, t.RotateTime, t.Keep, t.Sync = 0, 0, 0, 0
	return t
}

// Reconfigure gives the exporter another configuration of the same collector from about now on; nothing that waits is lost. An error says what
// cannot be had: then nothing changes but, where only the spool cannot change because records wait in it, all else. One goroutine may call it
// while the exporter runs.
func (x *Exporter) Reconfigure(cfg Config) error {
	old := x.conf()
	cfg.Notify, cfg.resolver, cfg.Boot = old.Notify, old.resolver, old.Boot
	if err := cfg.complete(); err != nil {
		return err
	}
	if cfg.Name() != old.Name() {
		return fmt.Errorf("%s is another collector", cfg.Name())
	}
	cfg.stopBy = old.stopBy
	c := &change{cfg: &cfg}
	check := cfg.Options
	check.V9 = cfg.Protocol == NetFlowV9
	if _, err := templates.New(check); err != nil {
		return err
	}
	if cfg.Network == "tls" || cfg.Network == "dtls" {
		if _, err := newCredentials(&cfg); err != nil {
			return err
		}
	}
	var err error
	if c.filter, c.anonymizer, err = cfg.selection(); err != nil {
		return err
	}
	if x.stream != nil {
		if err = x.stream.moveSpool(old, &cfg); err != nil {
			cfg.Spool, cfg.SpoolSize = old.Spool, old.SpoolSize
		}
	}
	if cfg.same(old) {
		return err
	}
	select {
	case <-x.changes: // one that was not taken yet
	default:
	}
	x.cfg.Store(&cfg)
	x.changes <- c
	return err
}

// moveSpool changes the spool, which must be empty if it is to be in another folder, or in none.
func (s *stream) moveSpool(old, cfg *Config) error {
	if old.Spool == cfg.Spool {
		s.backlog.resize(cfg.SpoolSize)
		return nil
	}
	var disk *spool
	var err error
	if cfg.Spool != "" {
		if disk, err = openSpool(cfg.spoolDir(), cfg.SpoolSize); err != nil {
			return fmt.Errorf("option spool: %w", err)
		}
		disk.report(cfg)
	}
	// What a collector has acknowledged and perhaps not read is known to be read when its connection has ended in order.
	for by := time.Now().Add(drainTime); !s.backlog.replace(disk); time.Sleep(ackInterval) {
		if !s.backlog.drained() || time.Now().After(by) {
			if disk != nil {
				disk.close()
			}
			return errors.New("option spool: records wait in the old one; it can change when they are sent")
		}
		signal(s.renew)
	}
	return nil
}

// take makes c the configuration, and reports whether records are encoded otherwise from now on. What was encoded before must have been flushed.
func (x *Exporter) take(c *change, old *encoding) (otherwise bool) {
	x.filter, x.anonymizer = c.filter, c.anonymizer
	now := encoding{c.cfg.Options, c.cfg.Domain}
	if now == *old {
		return false
	}
	*old = now
	x.enc.domain = c.cfg.Domain
	return x.enc.SetOptions(c.cfg.Options) == nil // it was checked
}

// encoding is what records are encoded by.
type encoding struct {
	options templates.Options
	domain  uint32
}

// changeStream applies a change where messages wait for a connection.
func (x *Exporter) changeStream(c *change, statistics *time.Ticker) {
	now := time.Now()
	x.enc.Flush(now)
	if x.take(c, &x.encodes) {
		x.stream.backlog.renew()
		x.enc.Templates(now)
	}
	statistics.Reset(c.cfg.TemplateRefresh)
	if t := c.cfg.transport(); !t.same(&x.session) {
		x.session = t
		signal(x.stream.renew)
	}
}

// changeDirect applies a change where messages are sent at once.
func (x *Exporter) changeDirect(c *change) {
	now := time.Now()
	x.failed(x.enc.Flush(now))
	x.failed(x.enc.ReleaseAll(now))
	if x.open {
		x.failed(x.direct.flush())
	}
	domain := x.encodes.domain
	otherwise := x.take(c, &x.encodes)
	t := c.cfg.transport()
	again := !t.same(&x.session) || domain != x.encodes.domain
	x.session = t
	switch {
	case !x.open:
		x.nextTry = time.Time{}
	case again:
		x.reopen()
	case otherwise:
		x.failed(x.enc.Templates(now))
		x.failed(x.direct.flush())
	}
}
