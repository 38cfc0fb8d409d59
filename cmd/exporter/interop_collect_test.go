package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sockflow/sockflow/collector"
	"github.com/sockflow/sockflow/ipfix"
)

// collectColumn is our own collector: it is no oracle, and has its column so that one can see what it shows.
type collectColumn struct {
	t     *testing.T
	c     *collector.Collector
	stop  func()
	mu    sync.Mutex
	found map[string]sight
	dir   string // of files
	cert  string
}

func newCollectColumn(t *testing.T, cert, key string) *collectColumn {
	c := &collectColumn{t: t, found: map[string]sight{}, dir: t.TempDir(), cert: cert}
	var opt collector.Options
	files := "?cert=" + cert + "&key=" + key
	for _, url := range []string{"udp://127.0.0.1:0", "tcp://127.0.0.1:0", "tls://127.0.0.1:0" + files, "dtls://127.0.0.1:0" + files} {
		l, err := collector.ParseListener(url)
		if err != nil {
			t.Fatal(err)
		}
		opt.Listen = append(opt.Listen, l)
	}
	var err error
	if c.c, err = collector.New(opt); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.c.Run(ctx, c.take) }() // ends with ctx
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(c.stop)
	return c
}

func (c *collectColumn) take(recs []collector.Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range recs {
		if recs[i].Template.Options {
			continue
		}
		f := map[string]string{}
		d := json.NewDecoder(bytes.NewReader(recs[i].AppendJSON(nil)))
		d.UseNumber()
		m := map[string]any{}
		if err := d.Decode(&m); err != nil {
			c.t.Errorf("collect: %v", err)
		}
		for name, v := range m {
			f[name] = fmt.Sprint(v)
		}
		c.found[flowKey(f["sourceTransportPort"], f["destinationTransportPort"])] = namedFlow(c.t, f, time.RFC3339)
	}
	return nil
}

func (c *collectColumn) url(r *interopRow) string {
	if r.transport == "file" {
		return "file:" + filepath.Join(c.dir, fmt.Sprintf("%d.ipfix", r.index))
	}
	for _, a := range c.c.Addrs() {
		if strings.HasPrefix(a, r.transport+"://") {
			switch {
			case r.proto == ipfix.NetFlowV9:
				return "netflow9+" + a
			case r.transport == "tls" || r.transport == "dtls":
				return a + "?ca=" + c.cert
			}
			return a
		}
	}
	return ""
}

func (c *collectColumn) flows(rows []*interopRow) map[*interopRow]map[string]sight {
	for _, r := range rows {
		if r.transport == "file" {
			name := filepath.Join(c.dir, fmt.Sprintf("%d.ipfix", r.index))
			f, err := os.Open(name)
			if err != nil {
				c.t.Error(err)
				continue
			}
			if err := c.c.ReadStream(name, f, c.take); err != nil {
				c.t.Error(err)
			}
			f.Close()
		}
	}
	c.stop()
	if n := c.c.Counts(); n.Gaps+n.Late+n.UnknownSets+n.Discarded()+n.KernelDrops+n.Refused+n.Ignored != 0 {
		c.t.Errorf("collect: %+v", n)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return byRow(rows, c.found)
}
