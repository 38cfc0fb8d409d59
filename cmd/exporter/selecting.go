package main

import (
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/selection"
)

// selecting has the flags that choose which records are exported, and how much of them.
type selecting struct {
	filters        []string
	anonymize      string
	aggregatePorts time.Duration
}

func (s *selecting) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&s.filters, "filter", nil, "tell only flows that this `EXPR` selects, as 'not net 10.0.0.0/8 and port 443' (repeatable: all of them must)")
	f.StringVar(&s.anonymize, "anonymize", "", "replace addresses by Crypto-PAn, with the key in this `FILE`")
	f.DurationVar(&s.aggregatePorts, "aggregate-ports", 0, "make one record of those of an interval that differ in the client's port alone; 0: do not")
	f.Lookup("aggregate-ports").NoOptDefVal = "1m"
}

func (s *selecting) check() error {
	for _, text := range s.filters {
		if _, err := selection.Parse(text); err != nil {
			return usagef("--%w", err)
		}
	}
	if s.aggregatePorts != 0 && s.aggregatePorts < 100*time.Millisecond {
		return usagef("--aggregate-ports %s: must be at least 100ms", s.aggregatePorts)
	}
	return nil
}

// maxAggregates are the records that an aggregator holds at most: about 40 MB.
const maxAggregates = 1 << 16

// selector does what the flags say. A nil selector does nothing.
type selector struct {
	filters    []*selection.Filter
	anonymizer *selection.Anonymizer
	aggregator *selection.Aggregator
	interval   *time.Ticker
	scratch    []flowcache.Record
	filtered   uint64
}

// parse returns the filters.
func (s *selecting) parse() ([]*selection.Filter, error) {
	var filters []*selection.Filter
	for _, text := range s.filters {
		f, err := selection.Parse(text)
		if err != nil {
			return nil, usagef("--%w", err)
		}
		filters = append(filters, f)
	}
	return filters, nil
}

// with returns a selector by other filters; what it holds and counted stays.
func (s *selector) with(filters []*selection.Filter) *selector {
	if s == nil {
		if len(filters) == 0 {
			return nil
		}
		s = &selector{}
	}
	s.filters = filters
	return s
}

// open returns nil if the flags ask for nothing.
func (s *selecting) open() (*selector, error) {
	if len(s.filters) == 0 && s.anonymize == "" && s.aggregatePorts == 0 {
		return nil, nil
	}
	sel := &selector{}
	var err error
	if sel.filters, err = s.parse(); err != nil {
		return nil, err
	}
	if s.anonymize != "" {
		key, err := selection.ReadKey(s.anonymize)
		if err != nil {
			return nil, fmt.Errorf("--anonymize: %w", err)
		}
		if sel.anonymizer, err = selection.NewAnonymizer(key); err != nil {
			return nil, fmt.Errorf("--anonymize: %w", err)
		}
	}
	if s.aggregatePorts != 0 {
		sel.aggregator = selection.NewAggregator(maxAggregates)
		sel.interval = time.NewTicker(s.aggregatePorts)
	}
	return sel, nil
}

// apply returns the records to export now. It changes recs.
func (s *selector) apply(recs []flowcache.Record) []flowcache.Record {
	if s == nil {
		return recs
	}
	kept := recs[:0]
	for i := range recs {
		if !s.selects(&recs[i]) {
			s.filtered++
			continue
		}
		if len(kept) < i {
			kept = append(kept, recs[i])
		} else {
			kept = recs[:i+1]
		}
	}
	if s.aggregator != nil {
		s.scratch = s.scratch[:0]
		for i := range kept {
			s.scratch = s.aggregator.Add(s.scratch, &kept[i])
		}
		kept = s.scratch
	}
	return s.anonymized(kept)
}

func (s *selector) selects(r *flowcache.Record) bool {
	for _, f := range s.filters {
		if !f.Match(r) {
			return false
		}
	}
	return true
}

func (s *selector) anonymized(recs []flowcache.Record) []flowcache.Record {
	if s.anonymizer != nil {
		for i := range recs {
			s.anonymizer.Record(&recs[i])
		}
	}
	return recs
}

// due returns a channel that delivers when aggregated records are to be exported.
func (s *selector) due() <-chan time.Time {
	if s == nil || s.interval == nil {
		return nil
	}
	return s.interval.C
}

// flush returns the aggregated records.
func (s *selector) flush() []flowcache.Record {
	if s == nil || s.aggregator == nil {
		return nil
	}
	s.scratch = s.aggregator.Flush(s.scratch[:0])
	return s.anonymized(s.scratch)
}

// selectorStats counts records.
type selectorStats struct {
	Filtered uint64 // that no filter selected
	Merged   uint64 // that went into others
	Held     uint64 // for the interval's end
}

func (s *selector) stats() selectorStats {
	if s == nil {
		return selectorStats{}
	}
	st := selectorStats{Filtered: s.filtered}
	if s.aggregator != nil {
		st.Merged, st.Held = s.aggregator.Merged(), uint64(s.aggregator.Len())
	}
	return st
}
