package main

import (
	"context"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/ipfix"
)

// exporter gives records to one collector.
type exporter interface {
	Run(ctx context.Context) error
	Offer(r *flowcache.Records) bool
	Stats() ipfix.Stats
	Name() string
}

// newNtopng makes the exporter of a zmq: URL.
func newNtopng(url string, s *settings, node string, notify func(ok bool, line string)) (exporter, error) {
	cfg, err := ipfix.ParseNtopngURL(url, ipfix.NtopngConfig{
		SourceID: s.domain, Node: node, Version: version, ReconnectMin: s.reconnectMin, ReconnectMax: s.reconnectMax,
		ActiveTimeout: s.activeTimeout, IdleTimeout: s.idleTimeout, Notify: notify,
	})
	if err != nil {
		return nil, usageError{err}
	}
	x, err := ipfix.NewNtopng(cfg)
	if err != nil {
		return nil, usagef("collector %q: %w", url, err)
	}
	return x, nil
}
