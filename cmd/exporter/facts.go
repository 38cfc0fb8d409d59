package main

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockflow/sockflow/bpf"
	"github.com/sockflow/sockflow/ipfix"
)

// metering is what the Metering Process counted, for the options records of exporters.
type metering struct {
	p    *pipeline
	ebpf *bpf.Source // nil in netlink mode
	done context.Context

	mu   sync.Mutex // exporters ask
	last ipfix.Metering
}

// patienceOfExporters is how long the cache loop may take to answer; then the last counts stand.
const patienceOfExporters = 100 * time.Millisecond

// tellMetering lets every exporter that makes options records ask for the counts of p.
func tellMetering(ctx context.Context, exporters []exporter, p *pipeline, ebpf *bpf.Source) {
	m := &metering{p: p, ebpf: ebpf, done: ctx}
	for _, x := range exporters {
		if x, ok := x.(*ipfix.Exporter); ok {
			x.SetMetering(m.counts)
		}
	}
}

func (m *metering) counts() ipfix.Metering {
	ctx, cancel := context.WithTimeout(m.done, patienceOfExporters)
	defer cancel()
	m.mu.Lock()
	defer m.mu.Unlock()
	if st, ok := m.p.ask(ctx); ok {
		m.last.Flows = st.cache.Created + st.cache.Direct
	}
	if m.ebpf != nil {
		st := m.ebpf.Stats()
		m.last.IgnoredPackets = st.LostSocket + st.LostDatagrams + st.LostRecursion
	}
	return m.last
}

// kernelRelease is what uname -r prints.
func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
