package enrich

import (
	"encoding/binary"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockflow/sockflow/flowcache"
)

// Connection tracking has zones (iptables -j CT --zone, Open vSwitch): a look-up is in one zone, and in zone 0 are only the entries that no rule
// puts elsewhere. Nothing but the entries says which zones there are, so they are walked now and then, when a flow is not found
// translated in the zones that are known. A zone may hold for one direction of an entry alone; the tuple of that direction is found in it.

const (
	// More zones than this of a namespace are not asked for one flow: those with the latest translations are.
	maxZones = 64
	// Walks for one flow take no longer, but for what the kernel does at once: it looks at every bucket of its table, which all namespaces share, and at
	// 100 ns for each entry. One that is not done then goes on with the next flow that is not found.
	walkTime = 20 * time.Millisecond
	// Of the whole time walks have one part in lookShare, and so much in advance.
	walkCredit = 100 * time.Millisecond
	walkBuffer = 32 << 10 // the most that the kernel hands over at once
)

// walk is a dump of a namespace's entries. It has a socket of its own, because a socket has one dump at a time.
type walk struct {
	*tracker
	began time.Time
	seen  map[uint16]struct{}
}

// learn looks for zones that are not known, after the flow that began at the time begin was not found translated in those that are. It reports
// whether there are new ones. The namespaces are those that were asked for the flow.
func (c *Conntrack) learn(own uint32, begin int64) (found bool) {
	start := time.Now()
	c.credit = min(c.credit+start.Sub(c.credited)/lookShare, walkCredit)
	c.credited = start
	end := start.Add(min(walkTime, c.credit))
	each := func(t *tracker) {
		now := time.Now()
		switch {
		case !now.Before(end):
			return
		case t.walk != nil:
		case t.walked.IsZero() || begin >= flowcache.At(t.walked) && (!c.met || now.Sub(t.walked) > listInterval):
			c.beginWalk(t, now) // of a flow that is tracked and not translated, like most, now and then only
		}
		if t.walk != nil {
			found = c.continueWalk(t, end) || found
		}
	}
	if t := c.open[own]; t != nil && t.entries > 0 {
		each(t)
	}
	for i, t := range c.busy {
		if i == maxConntrackNamespaces {
			break
		}
		if t.inode != own {
			each(t)
		}
	}
	c.credit -= time.Since(start)
	return found
}

// beginWalk asks for all entries of a namespace. If that fails, it is tried again as if it had been done.
func (c *Conntrack) beginWalk(t *tracker, now time.Time) {
	t.walked = now
	w, err := dialNetfilter(t.path)
	if err != nil {
		return // gone: LetGo finds out
	}
	c.begin(ctGet, 0)
	ne.PutUint16(c.request[6:], nlmRequest|nlmDump)
	ne.PutUint32(c.request, uint32(len(c.request)))
	if _, err := unix.Write(w.fd, c.request); err != nil {
		c.stats.Errors++
		w.conn.Close()
		return
	}
	t.walk = &walk{tracker: w, began: now, seen: map[uint16]struct{}{}}
}

// continueWalk reads on for a while. A zone that is new can be asked at once; those that a whole walk has not met are forgotten.
func (c *Conntrack) continueWalk(t *tracker, end time.Time) (found bool) {
	if c.dump == nil {
		c.dump = make([]byte, walkBuffer)
	}
	w := t.walk
	zone := func(z uint16) {
		if _, known := w.seen[z]; known || z == 0 {
			return
		}
		w.seen[z] = struct{}{}
		if !slices.Contains(t.zones, z) {
			t.zones = slices.Insert(t.zones, 0, z)
			found = true
		}
	}
	for {
		n, err := unix.Read(w.fd, c.dump)
		done := err != nil && err != unix.EAGAIN
		if err == nil {
			done = eachEntry(c.dump[:n], func(b []byte) { eachZone(b, zone) })
		} else if done {
			c.stats.Errors++
		}
		if done {
			if err == nil {
				t.zones = slices.DeleteFunc(t.zones, func(z uint16) bool { _, still := w.seen[z]; return !still })
			}
			t.walked = w.began
			w.conn.Close()
			t.walk = nil
			return found
		}
		if err != nil || time.Now().After(end) {
			return found
		}
	}
}

// eachEntry calls f for the attributes of each entry in messages of a dump, and reports whether the dump is over.
func eachEntry(b []byte, f func(b []byte)) (done bool) {
	for len(b) >= nlmsgHeader {
		n := int(ne.Uint32(b))
		if kind := ne.Uint16(b[4:]); n < nlmsgHeader || n > len(b) || kind == nlmsgDone || kind == nlmsgError {
			return true
		}
		if n >= nlmsgHeader+nfgenmsgLen {
			f(b[nlmsgHeader+nfgenmsgLen : n])
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return len(b) > 0
}

// eachZone calls f for each zone of an entry, from its attributes: that of both directions, or that of one.
func eachZone(b []byte, f func(zone uint16)) {
	eachAttribute(b, func(kind uint16, v []byte) {
		switch kind {
		case ctaZone:
			if len(v) == 2 {
				f(binary.BigEndian.Uint16(v))
			}
		case ctaTupleOrig, ctaTupleReply:
			eachAttribute(v, func(kind uint16, v []byte) {
				if kind == ctaTupleZone && len(v) == 2 {
					f(binary.BigEndian.Uint16(v))
				}
			})
		}
	})
}
