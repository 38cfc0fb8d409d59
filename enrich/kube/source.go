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

	"github.com/sockflow/sockflow/enrich/values"
	"github.com/sockflow/sockflow/flowcache"
)

// Stats counts what a Source did, by Kind.
type Stats struct {
	Lists, Watches, Changes, Bookmarks, Gone [kinds]uint64
	Refused, Failed, Malformed               [kinds]uint64 // answers 401 and 403; other failures; objects that could not be read
	Large                                    [kinds]uint64 // objects that were left out, because they are too long or have too many addresses or ports
}

// Source follows a cluster's pods, services and nodes.
type Source struct {
	cfg    Config
	client *client
	down   atomic.Int32 // kinds that cannot be read
	relist [kinds]chan struct{}
	large  atomic.Bool // that an object was left out was said

	lists, watches, changes, bookmarks, gone, refused, failed, malformed, tooLarge [kinds]atomic.Uint64
}

const (
	pageSize = 500 // objects of a list that are asked for at once
	atOnce   = 128 // changes handed over together, by their weight: what takes them is not held up
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
	if cfg.Spread == 0 {
		cfg.Spread = 3 * time.Second
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
	s := &Source{cfg: cfg, client: c}
	for k := range s.relist {
		s.relist[k] = make(chan struct{}, 1)
	}
	return s, nil
}

// Relist asks for a new list of a kind. It does not wait. Safe for concurrent use.
func (s *Source) Relist(k Kind) {
	select {
	case s.relist[k] <- struct{}{}:
	default:
	}
}

// Server is the URL of the API server.
func (s *Source) Server() string { return s.client.access.server.String() }

// Stats returns the counts so far. Safe for concurrent use.
func (s *Source) Stats() (st Stats) {
	for k := range kinds {
		st.Lists[k], st.Watches[k], st.Changes[k], st.Bookmarks[k] = s.lists[k].Load(), s.watches[k].Load(), s.changes[k].Load(), s.bookmarks[k].Load()
		st.Gone[k], st.Refused[k], st.Failed[k], st.Malformed[k] = s.gone[k].Load(), s.refused[k].Load(), s.failed[k].Load(), s.malformed[k].Load()
		st.Large[k] = s.tooLarge[k].Load()
	}
	return st
}

// Run sends every change to out until ctx ends. Each kind is followed by itself: a kind that may not be read does not
// affect the others.
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
	s.client.close()
	return nil
}

// follower lists and watches one kind.
type follower struct {
	s       *Source
	kind    Kind
	out     chan<- []Change
	pending []Change
	weight  int           // of pending
	version string        // of what is known; empty: nothing is
	before  bool          // a list was read
	bound   int           // the weight of the objects that there may be
	wait    time.Duration // of the next failure
	again   time.Duration // of the next list, should this one not be remembered for long
	node    bool          // --kube-node is among the nodes
	missed  bool          // that it is not was said
	broke   bool          // a connection did, which had worked: servers restart, and proxies lose patience
	down    bool          // it fails
	refused bool          // that it is refused was reported
}

func (f *follower) run(ctx context.Context) {
	f.wait, f.again = f.s.cfg.BackoffMin, f.s.cfg.BackoffMin
	if f.s.cfg.Spread > 0 {
		pause(ctx, rand.N(f.s.cfg.Spread)) // all nodes of a cluster start at one time
	}
	var listed time.Time
	for ctx.Err() == nil {
		var err error
		if f.version == "" {
			if err = f.list(ctx); err == nil {
				listed = time.Now()
			}
		}
		began := time.Now()
		if err == nil {
			err = f.watch(ctx)
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errRelist):
			f.version = ""
			continue
		case errors.Is(err, errGone):
			f.s.gone[f.kind].Add(1)
			f.version = ""
			if time.Since(listed) > 4*f.again {
				f.again = f.s.cfg.BackoffMin
			}
			pause(ctx, f.again/2+rand.N(f.again))
			f.again = min(2*f.again, f.s.cfg.BackoffMax)
			continue
		case err == nil && time.Since(began) > f.s.cfg.BackoffMin:
			continue // its time was over
		case err != nil:
			f.fail(err)
		}
		f.pause(ctx, err)
	}
}

// errRelist says that a new list was asked for.
var errRelist = errors.New("a new list is wanted")

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// fail counts a failure, and reports the first one: a refusal once for each kind, other failures once for all kinds
// together.
func (f *follower) fail(err error) {
	var st *statusError
	if errors.As(err, &st) && (st.code == http.StatusUnauthorized || st.code == http.StatusForbidden) {
		f.s.refused[f.kind].Add(1)
		f.wait = f.s.cfg.BackoffMax // an administrator has to grant access first
		if !f.refused {
			f.refused = true
			f.s.cfg.Notify(false, fmt.Sprintf("kubernetes %s at %s cannot be read: %s; the token's account needs the verbs list and watch", f.kind, f.s.Server(), oneLine(err.Error())))
		}
		return
	}
	f.s.failed[f.kind].Add(1)
	// A connection that breaks, be it of the watch or when the next is asked for over it, is said if what follows fails too.
	if f.before && !f.broke && (st == nil || errors.As(err, new(*brokenWatch))) {
		f.broke = true
		return
	}
	if !f.down {
		f.down = true
		if f.s.down.Add(1) == 1 {
			f.s.cfg.Notify(false, fmt.Sprintf("kubernetes at %s cannot be read: %s: %s", f.s.Server(), f.kind, oneLine(err.Error())))
		}
	}
}

// works reports that a kind is read again after a failure, and resets the wait after the next failure.
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
	pause(ctx, d)
}

// give hands over what is pending.
func (f *follower) give(ctx context.Context) error {
	if len(f.pending) == 0 {
		return nil
	}
	select {
	case f.out <- f.pending:
		f.pending, f.weight = nil, 0
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *follower) add(ctx context.Context, c Change) error {
	c.Object.Kind = f.kind
	if c.At == 0 {
		c.At = flowcache.Now()
	}
	f.pending = append(f.pending, c)
	if f.weight += c.Object.weight(); f.weight >= atOnce {
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

// list reads all objects, a page at a time. The first is read from the server's memory (resourceVersion=0), which costs it least; one after it had
// forgotten is read as etcd has it, since its memory may be what is old.
func (f *follower) list(ctx context.Context) error {
	f.pending, f.weight = nil, 0
	f.s.lists[f.kind].Add(1)
	began := flowcache.Now()
	if err := f.add(ctx, Change{Step: Listing, At: began}); err != nil {
		return err
	}
	q := f.query()
	q.Set("limit", strconv.Itoa(pageSize))
	if !f.before {
		q.Set("resourceVersion", "0")
	}
	former := f.bound
	f.node = false
	for {
		version, next, err := f.page(ctx, q)
		if err != nil {
			return err
		}
		if next == "" {
			if err := f.give(ctx); err != nil {
				return err
			}
			for range f.bound/Sweep + 1 {
				if err := f.add(ctx, Change{Step: Listed, At: began}); err != nil {
					return err
				}
				if err := f.give(ctx); err != nil {
					return err
				}
			}
			f.bound -= former
			f.version, f.before = version, true
			f.works()
			f.checkNode()
			return nil
		}
		q.Del("resourceVersion")
		q.Set("continue", next)
	}
}

// checkNode says once that the node whose pods are asked for is none: then no pod is named.
func (f *follower) checkNode() {
	want := f.s.cfg.Node
	if f.kind != Node || want == "" || f.node == !f.missed {
		return
	}
	if f.missed = !f.node; f.missed {
		f.s.cfg.Notify(false, fmt.Sprintf("kubernetes at %s has no node %q: no pod is named (--kube-node)", f.s.Server(), want))
	} else {
		f.s.cfg.Notify(true, fmt.Sprintf("kubernetes at %s has the node %q", f.s.Server(), want))
	}
}

// pageTime bounds a page, which is all of the list where the server answers from memory.
const pageTime = 10 * time.Minute

func (f *follower) page(ctx context.Context, q url.Values) (version, next string, err error) {
	ctx, cancel := context.WithTimeout(ctx, pageTime)
	defer cancel()
	body, err := f.s.client.get(ctx, f.kind.String(), q)
	if err != nil {
		return "", "", err
	}
	defer body.Close()
	return decodeList(body, func(it *item, err error) error { return f.take(ctx, it, err, Set) })
}

// take passes on an object, or counts why it cannot.
func (f *follower) take(ctx context.Context, it *item, err error, step Step) error {
	var o Object
	if err == nil {
		if step == Delete { // whatever else is in it
			o = Object{UID: it.Metadata.UID}
		} else {
			o, err = it.object(f.kind)
		}
	}
	switch {
	case errors.Is(err, values.ErrTooLong) || errors.Is(err, errLarge):
		f.s.tooLarge[f.kind].Add(1)
		if !f.s.large.Swap(true) {
			f.s.cfg.Notify(false, fmt.Sprintf("kubernetes at %s: one of the %s is too large, and not named: more than %d octets, %d addresses or %d ports; others are only counted", f.s.Server(), f.kind, maxObject, maxAddrs, maxPorts))
		}
		if o.UID == "" {
			return nil
		}
		return f.add(ctx, Change{Step: Delete, Object: Object{UID: o.UID}}) // as it was before it does not hold
	case err != nil:
		f.s.malformed[f.kind].Add(1)
		return nil
	}
	f.s.changes[f.kind].Add(1)
	if step == Set {
		if f.bound += o.weight(); f.kind == Node && o.Name == f.s.cfg.Node {
			f.node = true
			if f.missed {
				f.checkNode()
			}
		}
	}
	return f.add(ctx, Change{Step: step, Object: o})
}

// brokenWatch is a watch that had begun and broke off.
type brokenWatch struct{ err error }

func (b *brokenWatch) Error() string { return "watch: " + b.err.Error() }
func (b *brokenWatch) Unwrap() error { return b.err }

// watch sends changes since f.version, until the server ends the watch or a read fails.
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
	var wanted atomic.Bool
	go func() { // ends with the watch
		select {
		case <-f.s.relist[f.kind]:
			wanted.Store(true)
			cancel()
		case <-ctx.Done():
		}
	}()
	body, err := f.s.client.get(ctx, f.kind.String(), q)
	if err != nil {
		if wanted.Load() {
			return errRelist
		}
		return err
	}
	defer body.Close()
	v := values.NewReader(body, maxObject)
	for {
		b, err := v.Next()
		var e event
		if err == nil {
			err = json.Unmarshal(b, &e)
		}
		switch {
		case wanted.Load():
			return errRelist
		case errors.Is(err, values.ErrTooLong):
			kind, uid := beginning(b)
			if err := f.take(ctx, nil, err, Set); err != nil {
				return err
			}
			if kind == "DELETED" && uid != "" {
				if err := f.take(ctx, &item{Metadata: metadata{UID: uid}}, nil, Delete); err != nil {
					return err
				}
			}
			if err := f.give(ctx); err != nil {
				return err
			}
			continue
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
	err := json.Unmarshal(e.Object, &it)
	if err != nil && !errors.As(err, &wrong) {
		return fmt.Errorf("watch: %w", err)
	}
	switch e.Type {
	case "BOOKMARK":
		f.s.bookmarks[f.kind].Add(1)
		err = nil
	case "ADDED", "MODIFIED":
		err = f.take(ctx, &it, err, Set)
	case "DELETED":
		if it.Metadata.UID != "" {
			err = nil
		}
		err = f.take(ctx, &it, err, Delete)
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
