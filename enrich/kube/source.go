package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Stats counts what a Source did, by Kind.
type Stats struct {
	Lists, Watches, Changes, Bookmarks, Gone [kinds]uint64
	Refused, Failed, Malformed               [kinds]uint64 // answers 401 and 403; other failures; objects that could not be read
}

// Source tells of a cluster's pods, services and nodes.
type Source struct {
	cfg    Config
	client *client
	down   atomic.Int32 // kinds that cannot be read

	lists, watches, changes, bookmarks, gone, refused, failed, malformed [kinds]atomic.Uint64
}

const (
	pageSize = 500 // objects of a list that are asked for at once
	atOnce   = 256 // changes handed over together
	graced   = 30 * time.Second
)

// New finds the server and checks cfg. Nothing is asked yet.
func New(cfg Config) (*Source, error) {
	if cfg.BackoffMin <= 0 {
		cfg.BackoffMin = time.Second
	}
	if cfg.BackoffMax <= 0 {
		cfg.BackoffMax = time.Minute
	}
	if cfg.WatchTime <= 0 {
		cfg.WatchTime = 5 * time.Minute
	}
	if cfg.Notify == nil {
		cfg.Notify = func(bool, string) {}
	}
	a, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	c, err := newClient(a)
	if err != nil {
		return nil, err
	}
	return &Source{cfg: cfg, client: c}, nil
}

// Server is the URL of the API server.
func (s *Source) Server() string { return s.client.access.server.String() }

// Stats returns the counts so far. Safe for concurrent use.
func (s *Source) Stats() (st Stats) {
	for k := range kinds {
		st.Lists[k], st.Watches[k], st.Changes[k], st.Bookmarks[k] = s.lists[k].Load(), s.watches[k].Load(), s.changes[k].Load(), s.bookmarks[k].Load()
		st.Gone[k], st.Refused[k], st.Failed[k], st.Malformed[k] = s.gone[k].Load(), s.refused[k].Load(), s.failed[k].Load(), s.malformed[k].Load()
	}
	return st
}

// Run tells out of every change until ctx ends. Each kind is followed by itself: one that may not be read leaves the others alone.
func (s *Source) Run(ctx context.Context, out chan<- []Change) error {
	var wg sync.WaitGroup
	for k := range kinds {
		wg.Add(1)
		go func() { // ends with ctx
			defer wg.Done()
			f := follower{s: s, kind: k, out: out}
			f.run(ctx)
		}()
	}
	wg.Wait()
	s.client.http.CloseIdleConnections()
	return nil
}

// follower lists and watches one kind.
type follower struct {
	s       *Source
	kind    Kind
	out     chan<- []Change
	pending []Change
	version string        // of what is known; empty: nothing is
	wait    time.Duration // of the next failure
	broke   bool          // the last watch did, which had worked: servers restart, and proxies lose patience
	down    bool          // it fails
	refused bool          // that it is refused was told
}

func (f *follower) run(ctx context.Context) {
	f.wait = f.s.cfg.BackoffMin
	for ctx.Err() == nil {
		var err error
		if f.version == "" {
			err = f.list(ctx)
		}
		began := time.Now()
		if err == nil {
			err = f.watch(ctx)
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errGone):
			f.s.gone[f.kind].Add(1)
			f.version = ""
		case err == nil && time.Since(began) > f.s.cfg.BackoffMin:
			continue // its time was over
		case err != nil:
			f.fail(err)
		}
		f.pause(ctx, err)
	}
}

// fail counts a failure, and tells of the first: of a refusal for each kind, and else for all together.
func (f *follower) fail(err error) {
	var st *statusError
	if errors.As(err, &st) && (st.code == http.StatusUnauthorized || st.code == http.StatusForbidden) {
		f.s.refused[f.kind].Add(1)
		f.wait = f.s.cfg.BackoffMax // somebody has to do something first
		if !f.refused {
			f.refused = true
			f.s.cfg.Notify(false, fmt.Sprintf("kubernetes %s at %s cannot be read: %s; the token's account needs the verbs list and watch", f.kind, f.s.Server(), oneLine(err.Error())))
		}
		return
	}
	f.s.failed[f.kind].Add(1)
	var cut *brokenWatch
	if errors.As(err, &cut) && !f.broke {
		f.broke = true // told if the next one fails too
		return
	}
	if !f.down {
		f.down = true
		if f.s.down.Add(1) == 1 {
			f.s.cfg.Notify(false, fmt.Sprintf("kubernetes at %s cannot be read: %s: %s", f.s.Server(), f.kind, oneLine(err.Error())))
		}
	}
}

// works tells that it does, after it did not, and lets the next failure be followed by a short wait.
func (f *follower) works() {
	f.wait, f.broke = f.s.cfg.BackoffMin, false
	if f.refused {
		f.refused = false
		f.s.cfg.Notify(true, fmt.Sprintf("kubernetes %s at %s are read", f.kind, f.s.Server()))
	}
	if f.down {
		f.down = false
		if f.s.down.Add(-1) == 0 {
			f.s.cfg.Notify(true, fmt.Sprintf("kubernetes at %s is read again", f.s.Server()))
		}
	}
}

// pause waits before the next attempt: longer each time, and not all nodes of a cluster at one time.
func (f *follower) pause(ctx context.Context, err error) {
	d := f.wait/2 + rand.N(f.wait)
	var s *statusError
	if errors.As(err, &s) && s.after > 0 {
		d = min(s.after, f.s.cfg.BackoffMax) + rand.N(f.s.cfg.BackoffMin)
	}
	f.wait = min(2*f.wait, f.s.cfg.BackoffMax)
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// give hands over what is pending.
func (f *follower) give(ctx context.Context) error {
	if len(f.pending) == 0 {
		return nil
	}
	select {
	case f.out <- f.pending:
		f.pending = nil
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *follower) add(ctx context.Context, c Change) error {
	c.Object.Kind = f.kind
	f.pending = append(f.pending, c)
	if len(f.pending) >= atOnce {
		return f.give(ctx)
	}
	return nil
}

// query selects the objects that names can come from.
func (f *follower) query() url.Values {
	q := url.Values{}
	if f.kind == Pod {
		selector := "status.phase!=Succeeded,status.phase!=Failed"
		if f.s.cfg.Node != "" {
			selector += ",spec.nodeName=" + f.s.cfg.Node
		}
		q.Set("fieldSelector", selector)
	}
	return q
}

// list reads all objects, a page at a time.
func (f *follower) list(ctx context.Context) error {
	f.pending = nil
	f.s.lists[f.kind].Add(1)
	if err := f.add(ctx, Change{Step: Listing}); err != nil {
		return err
	}
	q := f.query()
	q.Set("limit", strconv.Itoa(pageSize))
	for {
		version, next, err := f.page(ctx, q)
		if err != nil {
			return err
		}
		if next == "" {
			if err := f.add(ctx, Change{Step: Listed}); err != nil {
				return err
			}
			f.version = version
			f.works()
			return f.give(ctx)
		}
		q.Set("continue", next)
	}
}

// pageTime bounds a page: 500 objects of 10 kB.
const pageTime = 2 * time.Minute

func (f *follower) page(ctx context.Context, q url.Values) (version, next string, err error) {
	ctx, cancel := context.WithTimeout(ctx, pageTime)
	defer cancel()
	body, err := f.s.client.get(ctx, f.kind.String(), q)
	if err != nil {
		return "", "", err
	}
	defer body.Close()
	return decodeList(body, func(it *item) error { return f.take(ctx, it, Set) }, func(error) { f.s.malformed[f.kind].Add(1) })
}

// take tells of an object.
func (f *follower) take(ctx context.Context, it *item, step Step) error {
	o, err := it.object(f.kind)
	if err != nil {
		f.s.malformed[f.kind].Add(1)
		return nil
	}
	f.s.changes[f.kind].Add(1)
	return f.add(ctx, Change{step, o})
}

// brokenWatch is a watch that had begun and broke off.
type brokenWatch struct{ err error }

func (b *brokenWatch) Error() string { return "watch: " + b.err.Error() }
func (b *brokenWatch) Unwrap() error { return b.err }

// watch tells of changes since f.version, until the server ends it or something fails.
func (f *follower) watch(ctx context.Context) error {
	f.s.watches[f.kind].Add(1)
	// Not all at one time.
	patience := f.s.cfg.WatchTime + rand.N(f.s.cfg.WatchTime)
	q := f.query()
	q.Set("watch", "1")
	q.Set("resourceVersion", f.version)
	q.Set("allowWatchBookmarks", "true")
	q.Set("timeoutSeconds", strconv.Itoa(int((patience+time.Second-1)/time.Second)))
	// The server should end it; if it does not, it hangs.
	ctx, cancel := context.WithTimeout(ctx, patience+graced)
	defer cancel()
	body, err := f.s.client.get(ctx, f.kind.String(), q)
	if err != nil {
		return err
	}
	defer body.Close()
	b := &budget{r: body}
	d := json.NewDecoder(b)
	for {
		b.renew()
		var e event
		switch err := d.Decode(&e); {
		case errors.Is(err, io.EOF) || err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
			f.works()
			return nil
		case err != nil:
			return &brokenWatch{err}
		}
		if err := f.event(ctx, &e); err != nil {
			return err
		}
		f.works()
	}
}

func (f *follower) event(ctx context.Context, e *event) error {
	if e.Type == "ERROR" {
		var s status
		if err := json.Unmarshal(e.Object, &s); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		return s.fail(0)
	}
	var it item
	var wrong *json.UnmarshalTypeError
	if err := json.Unmarshal(e.Object, &it); errors.As(err, &wrong) {
		f.s.malformed[f.kind].Add(1)
		return nil
	} else if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	var err error
	switch e.Type {
	case "BOOKMARK":
		f.s.bookmarks[f.kind].Add(1)
	case "ADDED", "MODIFIED":
		err = f.take(ctx, &it, Set)
	case "DELETED":
		err = f.take(ctx, &it, Delete)
	default:
		f.s.malformed[f.kind].Add(1)
		return nil
	}
	if err == nil {
		err = f.give(ctx)
	}
	if err == nil && it.Metadata.ResourceVersion != "" {
		f.version = it.Metadata.ResourceVersion
	}
	return err
}
