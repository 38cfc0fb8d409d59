package runtimes

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sockflow/sockflow/enrich"
	"github.com/sockflow/sockflow/flowcache"
)

// client speaks to one kind of runtime.
type client interface {
	// watch connects, reports every container, and then changes, until it fails or ctx ends.
	watch(ctx context.Context) error
}

// Stats are the counts of one runtime.
type Stats struct {
	Kind, Socket string
	Answering    bool
	Containers   int
	Events       uint64 // received from the runtime
	Connects     uint64 // times that it began to answer
	Errors       uint64 // times that it could not be reached, or did not answer in time
	Overflow     uint64 // containers too many to be followed
	TooLong      uint64 // containers and events that were skipped, because they were too long
	Malformed    uint64 // containers of which a part could not be read
}

// Error is a runtime that does not answer as it should.
type Error struct {
	Kind, Socket string
	Err          error
}

func (e *Error) Error() string { return e.Kind + " at " + e.Socket + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

var (
	errNotAbsolute = errors.New("the path of a socket must begin with a slash")
	errNotSocket   = errors.New("this is no socket")
	errSilent      = errors.New("no answer in time")
)

const (
	// A runtime that takes longer for an answer does not answer.
	patience = 3 * time.Second
	// How often a runtime that says nothing is asked whether it is there, and how often for everything it has, should something have
	// been missed.
	pingInterval = 5 * time.Second
	listInterval = time.Minute
	// Waits between two attempts; for a socket to appear.
	retryMin, retryMax = time.Second, 10 * time.Second
	appearInterval     = 2 * time.Second

	maxKnown  = 1 << 15
	batchSize = 128 // by weight
)

// endpoint is one socket.
type endpoint struct {
	kind, socket string
	chosen       bool // by a flag: its absence is worth a word
	labels       []string
	proc         string // where proc is mounted
	notify       func(ok bool, line string)
	client       client
	nudged       chan struct{}

	out     chan<- *enrich.ContainerUpdate
	owner   uint32 // of the socket
	up      bool
	said    bool // that it does not answer
	skipped bool // that something was too long was said
	asking  int64
	busy    bool  // there are containers to ask for
	gone    int64 // when something was removed last
	known   map[string]known
	pending []enrich.Container
	weights []int // of pending
	weight  int   // together

	root                              atomic.Pointer[string] // the control group of the container that the runtime runs in
	settled                           atomic.Bool            // it has reported all containers, or cannot
	answering, containers             atomic.Int64
	events, connects, fails, overflow atomic.Uint64
	tooLong, malformed                atomic.Uint64
}

// known is what must be kept of a container to report its end.
type known struct {
	path    string
	id      string
	created int64
	seen    uint64 // the list that showed it
	has     bool   // an address, or a published port
	extent  int    // how many of them it has had
	pod     string // of the infra container of a pod of podman: the pod's name

	connected int64 // to a network, before it started
	died      int64 // when it ran last
	started   bool  // it runs
}

func (e *endpoint) stats() Stats {
	return Stats{
		Kind: e.kind, Socket: e.socket, Answering: e.answering.Load() != 0, Containers: int(e.containers.Load()),
		Events: e.events.Load(), Connects: e.connects.Load(), Errors: e.fails.Load(), Overflow: e.overflow.Load(),
		TooLong: e.tooLong.Load(), Malformed: e.malformed.Load(),
	}
}

// run watches, and tries again, until ctx ends.
func (e *endpoint) run(ctx context.Context, out chan<- *enrich.ContainerUpdate) {
	e.out = out
	retry := retryMin
	for ctx.Err() == nil {
		st, err := os.Stat(e.socket)
		if err != nil {
			if e.chosen {
				e.away(ctx, err)
			}
			e.settled.Store(true)
			wait(ctx, appearInterval)
			continue
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			e.owner = sys.Uid
		}
		began := time.Now()
		// Until it has failed names may be expected of it.
		e.tell(ctx, &enrich.ContainerUpdate{Runtime: e.socket, Answering: !e.said})
		err = e.client.watch(ctx)
		if ctx.Err() != nil {
			return
		}
		e.fails.Add(1)
		if errors.Is(err, context.DeadlineExceeded) {
			err = errSilent
		}
		e.away(ctx, err)
		if time.Since(began) > 2*retryMax {
			retry = retryMin
		}
		wait(ctx, retry/2+rand.N(retry/2+1))
		retry = min(2*retry, retryMax)
	}
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func (e *endpoint) tell(ctx context.Context, u *enrich.ContainerUpdate) {
	u.Owner, u.Asking = e.owner, e.asking
	select {
	case e.out <- u:
	case <-ctx.Done():
	}
}

// away notes that the runtime does not answer. What it reported stays known: its containers run on without it.
func (e *endpoint) away(ctx context.Context, err error) {
	e.flush(ctx) // what is known is not said again
	e.up, e.asking = false, 0
	e.settled.Store(true)
	if e.answering.Swap(0) != 0 || !e.said {
		e.tell(ctx, &enrich.ContainerUpdate{Runtime: e.socket})
	}
	if !e.said {
		e.said = true
		e.notify(false, (&Error{e.kind, e.socket, err}).Error()+": new containers are not named until it answers")
	}
}

// tolerate keeps a connection on which an answer did not come in time: a runtime that is stopped or busy has not lost
// the events that it has yet to send. It returns any other error.
func (e *endpoint) tolerate(ctx context.Context, err error) error {
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, errSilent) || ctx.Err() != nil {
		return err
	}
	e.fails.Add(1)
	e.flush(ctx)
	e.away(ctx, errSilent)
	return nil
}

// answers notes that the runtime has reported all its containers.
func (e *endpoint) answers(ctx context.Context) {
	e.flush(ctx)
	if !e.busy {
		e.settled.Store(true)
	}
	if e.up {
		return
	}
	e.up, e.said = true, false
	e.connects.Add(1)
	e.answering.Store(1)
	e.tell(ctx, &enrich.ContainerUpdate{Runtime: e.socket, Answering: true})
	e.notify(true, fmt.Sprintf("%s at %s names containers; it has %d", e.kind, e.socket, len(e.known)))
}

// put reports a container. key is its name among those of this runtime; list is the number of the list that showed it,
// 0 if none did.
func (e *endpoint) put(ctx context.Context, key string, c enrich.Container, list uint64) {
	k, ok := e.known[key]
	if !ok && len(e.known) >= maxKnown {
		e.overflow.Add(1)
		return
	}
	if list == 0 {
		list = k.seen
	}
	if c.Workload.CGroupPath == "" {
		c.Workload.CGroupPath = k.path
	}
	if c.At != 0 {
		k.extent = max(k.extent, len(c.Addresses)+len(c.Published))
		k.has = len(c.Addresses)+len(c.Published) > 0
	}
	k.path, k.id, k.created, k.seen = c.Workload.CGroupPath, c.Workload.ContainerID, c.Created, list
	e.known[key] = k
	e.containers.Store(int64(len(e.known)))
	if e.pend(c, 1+k.extent/4); e.weight >= batchSize {
		e.flush(ctx)
	}
}

// release says that a container has no address and no published port any more.
func (e *endpoint) release(ctx context.Context, key string, at int64) {
	k, ok := e.known[key]
	if !ok {
		return
	}
	k.died, k.started, k.connected = at, false, 0
	e.known[key] = k
	if k.has {
		e.put(ctx, key, enrich.Container{Workload: flowcache.Workload{ContainerID: k.id, CGroupPath: k.path}, Created: k.created, At: at}, 0)
	}
}

// skip counts something that was too long, and says so the first time.
func (e *endpoint) skip(what string) {
	if e.tooLong.Add(1); !e.skipped {
		e.skipped = true
		e.notify(false, fmt.Sprintf("%s at %s: %s has more than %d octets: what is not read of it is not named; later ones are only counted", e.kind, e.socket, what, maxValue))
	}
}

// end reports that a container is gone.
func (e *endpoint) end(key string, at time.Time) {
	k, ok := e.known[key]
	if !ok {
		return
	}
	delete(e.known, key)
	e.gone = max(e.gone, at.UnixNano())
	e.containers.Store(int64(len(e.known)))
	e.pend(enrich.Container{Workload: flowcache.Workload{ContainerID: k.id, CGroupPath: k.path}, Created: k.created, Ended: at.UnixNano()}, 1+k.extent/4)
}

// listed ends the containers that a list, begun at the time began, does not show. It keeps those created since: events
// reported them after the list was made.
func (e *endpoint) listed(list uint64, began time.Time) {
	for key, k := range e.known {
		if k.seen != list && k.created < began.UnixNano() {
			e.end(key, began)
		}
	}
}

// pend has c sent by the next flush. Its weight is what of a batch it takes.
func (e *endpoint) pend(c enrich.Container, weight int) {
	e.pending, e.weights = append(e.pending, c), append(e.weights, weight)
	e.weight += weight
}

// flush sends what is waiting, in batches that do not hold up who takes them: a list may have ended thousands.
func (e *endpoint) flush(ctx context.Context) {
	for from := 0; from < len(e.pending); {
		to, weight := from, 0
		for ; to < len(e.pending) && weight < batchSize; to++ {
			weight += e.weights[to]
		}
		e.tell(ctx, &enrich.ContainerUpdate{Runtime: e.socket, Answering: e.up || !e.said, Containers: e.pending[from:to:to]})
		from = to
	}
	e.pending, e.weights, e.weight = nil, nil, 0
}

// ask notes since when containers may have addresses that are being asked for, 0: none is; who speaks to them waits.
func (e *endpoint) ask(ctx context.Context, since int64) {
	if since == e.asking {
		return
	}
	e.flush(ctx) // with what came of the question before
	e.asking = since
	e.tell(ctx, &enrich.ContainerUpdate{Runtime: e.socket, Answering: e.up || !e.said})
}

// pump reads a stream of events until ctx or the stream ends. failed receives the error of the stream.
func pump[T any](ctx context.Context, next func() (T, error)) (events <-chan T, failed <-chan error) {
	out, end := make(chan T), make(chan error, 1)
	go func() { // ends with ctx, or the stream
		for {
			ev, err := next()
			if err != nil {
				end <- err
				return
			}
			select {
			case out <- ev:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, end
}
