package ipfix

import (
	"bytes"
	"errors"
	"slices"
	"time"
)

// TemplateLead is how long before the first data that need it a template is sent as a datagram. A collector that decodes with several
// workers may otherwise take up the data first, which it then drops, though they came later (RFC 7011, section 8: templates SHOULD be sent
// prior to data, in a message of their own).
const TemplateLead = 250 * time.Millisecond

// ahead holds messages back until the collector has had time to read the templates that they need. The zero value holds nothing.
type ahead struct {
	lead       time.Duration
	opened     time.Time            // when the first message of the session was sent: it makes the collector's state, and comes alone
	since      map[uint16]time.Time // when a template was, or will be, first sent in the session, by its id
	controlDue time.Time            // until when messages of templates and options data wait: they stay in order
	held       []heldMessage        // in the order in which they were made
	octets     int                  // of held
}

type heldMessage struct {
	msg                  []byte
	records, data, flows int // see deliver
	due                  time.Time
	latest               int64 // of Encoder, with recordTimes
}

// SendAhead makes the encoder send templates this long before data that need them, and those of common kinds of records at the start of a
// session. What must wait is kept: see Held, Due and Release. It is for datagrams, and called before the first record.
func (e *Encoder) SendAhead(lead time.Duration) {
	e.lead = lead
	e.set.Common()
}

// Forget says that the collector may know no template any more, though the session goes on.
func (e *Encoder) Forget() { e.opened, e.since, e.controlDue = time.Time{}, nil, time.Time{} }

// Held is the octets of messages that wait.
func (e *Encoder) Held() int { return e.octets }

// Due is when a message that waits may be sent; the zero time if none does.
func (e *Encoder) Due() (t time.Time) {
	for i := range e.held {
		if due := e.held[i].due; t.IsZero() || due.Before(t) {
			t = due
		}
	}
	return t
}

// Release sends the messages that were due by now.
func (e *Encoder) Release(now time.Time) error {
	var err error
	still := e.held[:0]
	for _, m := range e.held {
		if m.due.After(now) {
			still = append(still, m)
			continue
		}
		e.octets -= len(m.msg)
		latest := e.latest
		e.latest = m.latest
		err = errors.Join(err, e.deliver(m.msg, m.records, m.data, m.flows, now))
		e.latest = latest
	}
	clear(e.held[len(still):])
	if e.held = still; err != nil {
		e.announced = announced{}
	}
	return err
}

// ReleaseAll sends all messages that wait.
func (e *Encoder) ReleaseAll(now time.Time) error {
	for i := range e.held {
		e.held[i].due = now
	}
	return e.Release(now)
}

// after is when data of template id may be sent.
func (e *Encoder) after(due time.Time, id uint16) time.Time {
	if at, ok := e.since[id]; ok && at.Add(e.lead).After(due) {
		return at.Add(e.lead)
	}
	return due
}

// opening is the earliest time for a message made now.
func (e *Encoder) opening(now time.Time) time.Time {
	if e.opened.IsZero() {
		e.opened, e.since = now, map[uint16]time.Time{}
		return now
	}
	if first := e.opened.Add(e.lead); first.After(now) {
		return first
	}
	return now
}

// postControl sends a message of templates and options data, or holds it.
func (e *Encoder) postControl(c *control) error {
	if e.lead == 0 {
		return e.deliver(c.msg, c.records, c.data, 0, c.now)
	}
	due := e.opening(c.now)
	if e.controlDue.After(due) {
		due = e.controlDue
	}
	for _, id := range c.uses {
		if !slices.Contains(c.brings, id) {
			due = e.after(due, id)
		}
	}
	for _, id := range c.brings {
		if _, ok := e.since[id]; !ok {
			e.since[id] = due
		}
	}
	e.controlDue = due
	return e.post(c.msg, c.records, c.data, 0, due, c.now)
}

// postData sends the message under way, or holds it.
func (e *Encoder) postData(now time.Time) error {
	due := now
	if e.lead > 0 {
		due = e.opening(now)
		for _, t := range e.using {
			due = e.after(due, t.ID)
		}
	}
	return e.post(e.msg, e.data, e.data, e.data, due, now)
}

func (e *Encoder) post(msg []byte, records, data, flows int, due, now time.Time) error {
	if !due.After(now) {
		return e.deliver(msg, records, data, flows, now)
	}
	e.held = append(e.held, heldMessage{bytes.Clone(msg), records, data, flows, due, e.latest})
	e.octets += len(msg)
	return nil
}
