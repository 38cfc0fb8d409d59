package ipfix

import "github.com/sockflow/sockflow/templates"

// Name is the collector as users write it.
func (c *Config) Name() string {
	switch {
	case c.Network == "file":
		return "file:" + c.Address
	case c.Protocol == NetFlowV9:
		return "netflow9+udp://" + c.Address
	}
	return c.Network + "://" + c.Address
}

// Fields is what records carry by now. Safe for concurrent use.
func (x *Exporter) Fields() templates.Options { return *x.fields.Load() }

// SetFields changes what records carry from about now on. Over streams, templates that are no longer used are withdrawn. An error says
// what is wrong with opt, and nothing changes. One goroutine may call it while the exporter runs.
func (x *Exporter) SetFields(opt templates.Options) error {
	check := opt
	check.V9 = x.cfg.Protocol == NetFlowV9
	if _, err := templates.New(check); err != nil {
		return err
	}
	x.fields.Store(&opt)
	select {
	case <-x.layouts: // one that was not taken yet
	default:
	}
	x.layouts <- opt
	return nil
}
