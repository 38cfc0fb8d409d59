package ipfix

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// direct is a transport that has no memory: UDP, DTLS, a file. One goroutine calls it.
type direct interface {
	// open begins a Transport Session.
	open(ctx context.Context) error
	// limit is the largest message, in octets. It may change with any call of send or flush.
	limit() int
	// send takes a message with its number of flow records. It may keep it until flush.
	send(msg []byte, records int) error
	flush() error
	// renew looks, from time to time, whether the session should be another one.
	renew() (another bool)
	// address is the collector's; nil if it has none.
	address() net.Addr
	// dead is closed when the other side ends the session; nil if it cannot.
	dead() <-chan struct{}
	close() error
}

// runDirect encodes and sends.
func (x *Exporter) runDirect(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var flush time.Time // of the message under way, zero if there is none
	for ctx.Err() == nil {
		if !x.open && !x.connect(ctx) {
			select {
			case <-ctx.Done():
			case c := <-x.changes:
				x.changeDirect(c)
			case <-time.After(time.Until(x.nextTry)):
			}
			continue
		}
		now := time.Now()
		if !x.good && now.Sub(x.opened) >= steady {
			x.proved()
		}
		if now.Sub(x.looked) >= x.conf().TemplateRefresh {
			x.looked = now
			if x.direct.renew() {
				x.reopen()
				continue
			}
			if !x.looking && x.direct.address() != nil {
				x.looking = true
				go func(conf *Config, at net.Addr) { // ends with the answer, or dialTimeout
					x.moved <- moved(ctx, conf, at)
				}(x.conf(), x.direct.address())
			}
			x.failed(x.refresh(now))
			x.failed(x.direct.flush())
		}
		if x.retell > 0 && now.Sub(x.retold) >= toldAgain {
			if x.retell == retellTimes { // another program may listen now
				x.enc.Forget()
			}
			x.retell--
			x.retold = now
			x.failed(x.refresh(now))
			x.failed(x.direct.flush())
		}
		due := x.enc.Due()
		if !due.IsZero() && !due.After(now) {
			x.failed(x.enc.Release(now))
			x.failed(x.direct.flush())
			continue
		}
		wake := x.looked.Add(x.conf().TemplateRefresh)
		if !due.IsZero() && due.Before(wake) {
			wake = due
		}
		if good := x.opened.Add(steady); !x.good && good.Before(wake) {
			wake = good
		}
		if again := x.retold.Add(toldAgain); x.retell > 0 && again.Before(wake) {
			wake = again
		}
		switch {
		case !x.open:
			continue
		case x.enc.Waiting() == 0:
			flush = time.Time{}
		case flush.IsZero():
			flush = now.Add(flushInterval)
		case !now.Before(flush):
			x.failed(x.enc.Flush(now))
			x.failed(x.direct.flush())
			continue
		}
		if !flush.IsZero() && flush.Before(wake) {
			wake = flush
		}
		timer.Reset(time.Until(wake))
		queue := x.queue
		if x.enc.Held() >= heldLimit {
			queue = nil
		}
		select {
		case <-ctx.Done():
		case <-x.direct.dead():
			x.failed(ended{errClosed})
		case r := <-queue:
			x.encode(r)
			if len(x.queue) == 0 {
				x.failed(x.direct.flush())
			}
		case c := <-x.changes:
			x.changeDirect(c)
		case elsewhere := <-x.moved:
			if x.looking = false; elsewhere {
				x.reopen()
			}
		case <-timer.C:
		}
	}
	x.drainDirect()
}

// drainDirect sends what waits, at the end.
func (x *Exporter) drainDirect() {
	deadline := x.ending()
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	if !x.open {
		x.nextTry = time.Time{}
		x.connect(ctx)
	}
	for more := true; more; {
		select {
		case r := <-x.queue:
			if !x.open || time.Now().After(deadline) {
				x.dropQueued(r)
			} else {
				x.encode(r)
			}
		default:
			more = false
		}
	}
	x.failed(x.enc.Flush(time.Now()))
	for due := x.enc.Due(); x.open && !due.IsZero(); due = x.enc.Due() {
		if due.After(deadline) {
			break
		}
		x.failed(x.direct.flush())
		time.Sleep(time.Until(due))
		x.failed(x.enc.Release(time.Now()))
	}
	x.failed(x.enc.ReleaseAll(time.Now()))
	if x.open {
		x.failed(x.direct.flush())
	}
	if x.open {
		x.open = false
		x.direct.close()
	}
}

// connect begins a Transport Session of a direct transport once its time has come.
func (x *Exporter) connect(ctx context.Context) bool {
	if time.Now().Before(x.nextTry) {
		return false
	}
	if err := x.direct.open(ctx); err != nil {
		x.down(err)
		return false
	}
	x.open, x.looked = true, time.Now()
	x.connects.Add(1)
	if x.conf().Network == "dtls" {
		// The first messages of a session are easily lost while the other side accepts it: send templates twice.
		x.looked = x.looked.Add(min(toldAgain-x.conf().TemplateRefresh, 0))
	}
	x.enc.Restart()
	x.setLimit()
	x.opened, x.good = time.Now(), false
	if x.conf().Network != "dtls" { // there is no other side that could end it
		x.proved()
	}
	x.failed(x.enc.Templates(time.Now()))
	x.failed(x.direct.flush())
	return x.open
}

// proved notes that the session under way is a good one.
func (x *Exporter) proved() {
	x.good, x.nextTry = true, time.Time{}
	x.up("connected")
}

// setLimit follows the largest message of the transport. It reports whether it changed.
func (x *Exporter) setLimit() bool {
	n := x.direct.limit()
	if n == x.limit {
		return false
	}
	x.limit = n
	x.enc.SetMaxMessage(n)
	return true
}

// reopen ends a session in order; another one follows at once.
func (x *Exporter) reopen() {
	x.direct.flush()
	x.open = false
	x.direct.close()
}

// failed handles the error of a direct transport.
func (x *Exporter) failed(err error) {
	if x.direct == nil || !x.open {
		return
	}
	if x.setLimit() {
		// The path MTU has changed. Templates in messages that were too large may not have arrived.
		err = errors.Join(err, x.enc.Templates(time.Now()), x.direct.flush())
	}
	var end ended
	switch {
	case err == nil:
	case errors.Is(err, errRotated):
		x.reopen()
		x.connect(context.Background())
	case errors.As(err, &end):
		x.open = false
		x.direct.close()
		if x.good && time.Since(x.opened) > x.wait { // see stream.run
			x.wait = x.conf().ReconnectMin
		}
		x.down(err)
	default:
		x.errs.Add(1)
		x.refuse(err)
	}
}

// refuse notes that datagrams do not arrive. They go on being sent: who listens later gets them.
func (x *Exporter) refuse(err error) {
	x.refused = time.Now()
	x.retell = untold
	if !x.told.Swap(true) {
		x.conf().Notify(false, fmt.Sprintf("collector %s: %s; records go on being sent", x.Name(), reason(err)))
	}
}

// accept notes that a batch was sent without a refusal. The collector that listens now may be a new process without
// templates. A host reports refused datagrams once a second (icmp_ratelimit), so the absence of a refusal may come too
// early: templates are sent twice.
func (x *Exporter) accept() {
	if x.retell == untold {
		x.retell = retellTimes
	}
}

const (
	untold      = -1 // the last batch was refused
	retellTimes = 2

	// Octets of messages that wait for their templates, beyond which records wait in the queue.
	heldLimit = 1 << 20
)
