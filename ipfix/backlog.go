package ipfix

import (
	"bytes"
	"os"
	"sync"
	"time"
)

// backlog holds the messages of a stream collector between the encoder and the connection, in order: those in flight, those on disk if
// there is a spool, those in memory. A message stays until the collector has taken it, so that it can be sent again over another
// connection. The encoder puts and the sender takes; a lock is held for each message, not for each record.
type backlog struct {
	mu     sync.Mutex
	flight []inFlight // sent and not taken: first those on disk, then those in memory
	acked  int        // of flight, how many the collector's kernel has acknowledged
	disk   *spool     // nil without
	mem    []pending  // not sent
	octets int        // in memory: of mem, and of what is in flight and not acknowledged
	old    int        // in memory: of what is acknowledged and perhaps not read

	current *epoch   // of messages that are put now
	known   *session // what it announces
	away    bool     // there is no connection: what comes goes to disk
	reading bool     // the last message that was sent came from disk
	failed  error    // of the disk, while it does not work
	retry   time.Time
	scratch []byte

	more, room chan struct{} // signalled when there is a message; when there is room
	report     func(ok bool, err error)

	droppedSpool                                    uint64 // by a spool before this one
	recovered, waiting, made, sent, dropped, resent uint64 // Data Records of flows; waiting are not acknowledged, those on disk included
}

// epoch is what was announced for messages that were encoded under one configuration: messages of templates and facts, in order. A message
// is sent under the templates that it was encoded with, however late that is: it has its epoch, which is gone with the last of its messages.
type epoch struct{ control [][]byte }

type pending struct {
	msg     []byte
	records int    // Data Records
	flows   int    // of these, flow records
	epoch   *epoch // nil: of a message from disk, which comes with its own
	after   int    // messages of epoch.control that come before it
}

// control is what must be announced before m; the lock is held.
func (m *pending) control() [][]byte { return m.epoch.control[:m.after:m.after] }

// inFlight is a message that was written to the connection.
type inFlight struct {
	pending          // msg is nil if it is on disk, or gone
	gone    bool     // acknowledged, perhaps not read, and beyond what is kept
	place   position // where it ends on disk
	end     uint64   // octets of the connection up to its end
}

const (
	spillAt      = 2 << 20 // octets in memory beyond which a spool is used though the collector is there
	memoryLimit  = 4 << 20 // octets in memory beyond which records wait unencoded
	historyLimit = 8 << 20 // octets in memory that are acknowledged and perhaps not read
	diskRetry    = time.Second
)

// newBacklog returns an empty backlog, or one with what the spool holds. report is called when the disk fails and when
// it works again.
func newBacklog(disk *spool, report func(ok bool, err error)) *backlog {
	b := &backlog{disk: disk, current: &epoch{}, known: newSession(), away: true, more: make(chan struct{}, 1), room: make(chan struct{}, 1), report: report}
	if disk != nil {
		b.waiting, b.recovered = disk.unread, disk.unread+disk.dropped
	}
	return b
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// full reports whether records should wait: there is no room for their messages.
func (b *backlog) full() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.octets >= memoryLimit
}

// renew begins another epoch: what is put from now on was encoded under another configuration.
func (b *backlog) renew() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.current, b.known = &epoch{}, newSession()
}

// put takes a message of the encoder, of flow records alone or of templates and options data. What announces templates and facts is kept
// apart: each connection and segment gets it before the first message that comes after it.
func (b *backlog) put(msg []byte, flows int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	records := flows
	if flows == 0 {
		news, _, err := b.known.admit(b.scratch[:0], msg, controlOnly)
		if err != nil {
			return err
		}
		b.scratch = news
		if b.known.news {
			b.current.control = append(b.current.control, bytes.Clone(news))
		}
		if !b.known.data {
			return nil
		}
		if msg, records, err = b.known.admit(nil, msg, dataOnly); err != nil {
			return err
		}
	}
	b.made += uint64(flows)
	b.waiting += uint64(flows)
	signal(b.more)
	m := pending{msg, records, flows, b.current, len(b.current.control)}
	if b.disk != nil && (b.away || b.octets+len(msg) > spillAt || !b.disk.drained()) && b.spill() {
		if _, ok := b.toDisk(&m); ok {
			return nil
		}
	}
	m.msg = bytes.Clone(msg)
	b.mem = append(b.mem, m)
	b.octets += len(msg)
	return nil
}

// spill moves what is in memory to disk, in order. It reports whether all of it is there.
func (b *backlog) spill() bool {
	if b.failed != nil && time.Now().Before(b.retry) {
		return false
	}
	for i := range b.flight {
		f := &b.flight[i]
		if f.msg == nil {
			continue
		}
		after, ok := b.toDisk(&f.pending)
		if !ok {
			return false
		}
		b.disk.skip(after, f.flows)
		if i < b.acked {
			b.old -= len(f.msg)
		} else {
			b.octets -= len(f.msg)
		}
		f.msg, f.epoch, f.place = nil, nil, after
	}
	for i := range b.mem {
		m := &b.mem[i]
		if _, ok := b.toDisk(m); !ok {
			b.mem = append(b.mem[:0], b.mem[i:]...)
			return false
		}
		b.octets -= len(m.msg)
	}
	clear(b.mem)
	b.mem = b.mem[:0]
	b.wake()
	return true
}

func (b *backlog) toDisk(m *pending) (position, bool) {
	dropped := b.disk.dropped
	after, err := b.disk.append(m)
	b.waiting -= b.disk.dropped - dropped
	switch {
	case err != nil:
		b.retry = time.Now().Add(diskRetry)
		if b.failed == nil {
			b.report(false, err)
		}
		b.failed = err
	case b.failed != nil:
		b.failed = nil
		b.report(true, nil)
	}
	return after, err == nil
}

// wake lets records be encoded again if there is room.
func (b *backlog) wake() {
	if b.octets < memoryLimit {
		signal(b.room)
	}
}

// begin says that there is a connection, and returns what is announced before the first message: nothing yet if that is on disk.
func (b *backlog) begin() (*epoch, [][]byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away, b.reading = false, false
	switch {
	case b.disk != nil && !b.disk.drained():
		return nil, nil
	case len(b.mem) > 0:
		return b.mem[0].epoch, b.mem[0].control()
	}
	return b.current, b.current.control[:len(b.current.control):len(b.current.control)]
}

// news returns what was announced since, where no message waits.
func (b *backlog) news() (*epoch, [][]byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.mem) > 0 || b.disk != nil && !b.disk.drained() {
		return nil, nil
	}
	return b.current, b.current.control[:len(b.current.control):len(b.current.control)]
}

// next appends the next message to dst; from here on it is in flight, and wrote must follow. Of a message from disk the records are
// not known. Before it control must be sent: of one from memory what its epoch announces, of one from disk all that its segment announced
// before, if the one before did not come from disk. ok is false if there is none.
func (b *backlog) next(dst []byte) (m pending, control [][]byte, fromDisk, ok bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.disk != nil && !b.disk.drained() {
		m.msg = dst
		if !b.reading {
			if control, err = b.disk.before(); err != nil {
				return m, nil, true, false, err
			}
			b.reading = true
		}
		dropped := b.disk.dropped
		m.msg, ok, err = b.disk.next(dst)
		b.waiting -= b.disk.dropped - dropped
		if ok {
			b.flight = append(b.flight, inFlight{place: b.disk.read, end: unknownEnd})
		}
		return m, control, true, ok, err
	}
	b.reading = false
	if len(b.mem) == 0 {
		return pending{msg: dst}, nil, false, false, nil
	}
	b.flight = append(b.flight, inFlight{pending: b.mem[0], end: unknownEnd})
	b.mem[0] = pending{}
	b.mem = b.mem[1:]
	m = b.flight[len(b.flight)-1].pending
	control = m.control()
	m.msg = append(dst, m.msg...)
	return m, control, false, true, nil
}

const unknownEnd = ^uint64(0)

// wrote says that the message that next returned was written, and how many octets the connection has taken since it began. The records
// are those that session.admit saw.
func (b *backlog) wrote(fromDisk bool, flows int, end uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := &b.flight[len(b.flight)-1]
	f.end = end
	if fromDisk {
		f.flows = b.disk.didRead(f.place, flows)
	}
}

// confirm says how many octets of the connection the collector's kernel has acknowledged, and how many it has read for all that is known.
func (b *backlog) confirm(acked, read uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.acknowledge(acked)
	n := 0
	for n < b.acked && b.flight[n].end <= read {
		b.forget(&b.flight[n])
		n++
	}
	b.shift(n)
	b.bound()
	b.wake()
}

// bound keeps what is acknowledged and perhaps not read within historyLimit: it goes to disk, or the oldest is let go.
func (b *backlog) bound() {
	if b.old > historyLimit && b.disk != nil {
		b.spill()
	}
	for i := 0; b.old > historyLimit; i++ {
		if f := &b.flight[i]; f.msg != nil {
			b.old -= len(f.msg)
			f.msg, f.epoch, f.gone = nil, nil, true
		}
	}
}

func (b *backlog) acknowledge(octets uint64) {
	for b.acked < len(b.flight) && b.flight[b.acked].end <= octets {
		f := &b.flight[b.acked]
		b.sent += uint64(f.flows)
		b.waiting -= uint64(f.flows)
		b.octets -= len(f.msg)
		b.old += len(f.msg)
		b.acked++
	}
}

// forget lets go of a message that the collector has.
func (b *backlog) forget(f *inFlight) {
	switch {
	case f.gone:
	case f.msg == nil:
		b.disk.release(f.place)
	default:
		b.old -= len(f.msg)
	}
}

// shift removes the first n that are in flight.
func (b *backlog) shift(n int) {
	m := copy(b.flight, b.flight[n:])
	clear(b.flight[m:])
	b.flight, b.acked = b.flight[:m], b.acked-n
}

// end says that the connection has ended. Unless all that was acknowledged was read, what may not have been read goes back, and what
// was not acknowledged in any case: it will be sent again. What is gone counts as dropped.
func (b *backlog) end(read bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = true
	if read {
		for i := range b.acked {
			b.forget(&b.flight[i])
		}
		b.shift(b.acked)
	}
	if b.disk != nil {
		b.disk.rewind()
	}
	var again []pending
	for i := range b.flight {
		f := &b.flight[i]
		if f.gone {
			b.sent -= uint64(f.flows)
			b.dropped += uint64(f.flows)
			continue
		}
		if i < b.acked {
			b.sent -= uint64(f.flows)
			b.waiting += uint64(f.flows)
			b.octets += len(f.msg)
			b.old -= len(f.msg)
		}
		b.resent += uint64(f.flows)
		if f.msg != nil {
			again = append(again, f.pending)
		} else if !b.disk.putBack(f.place.segment, f.flows) {
			b.waiting -= uint64(f.flows) // dropped beyond the bound meanwhile
		}
	}
	b.mem = append(again, b.mem...)
	clear(b.flight)
	b.flight, b.acked = b.flight[:0], 0
	if b.disk != nil && len(b.mem) > 0 {
		b.spill()
	}
}

// spoil drops the message that next returned, or tried to, because it cannot be read; where the disk does not give it, the rest of its segment
// too. What is not found of a segment is counted at its end.
func (b *backlog) spoil(returned, fromDisk bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if returned {
		last := len(b.flight) - 1
		f := b.flight[last]
		b.flight = b.flight[:last]
		b.dropped += uint64(f.flows)
		b.waiting -= uint64(f.flows)
		b.octets -= len(f.msg)
		return
	}
	if fromDisk {
		dropped := b.disk.dropped
		b.disk.spoil()
		b.waiting -= b.disk.dropped - dropped
	}
}

// idle reports whether everything that was put was acknowledged.
func (b *backlog) idle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.acked == len(b.flight) && len(b.mem) == 0 && (b.disk == nil || b.disk.drained())
}

// resize changes the bound of the spool, if there is one.
func (b *backlog) resize(octets int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.disk != nil {
		b.disk.max = octets
	}
}

// drained reports whether nothing on disk waits to be sent, or to be acknowledged.
func (b *backlog) drained() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := b.acked; i < len(b.flight); i++ {
		if b.flight[i].msg == nil {
			return false
		}
	}
	return b.disk == nil || b.disk.drained()
}

// replace puts disk, or none, in the place of a spool that has nothing in it. It reports whether it could.
func (b *backlog) replace(disk *spool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.disk != nil {
		for i := range b.flight {
			if f := &b.flight[i]; f.msg == nil && !f.gone {
				return false
			}
		}
		if !b.disk.drained() {
			return false
		}
		b.disk.release(b.disk.read)
		b.droppedSpool += b.disk.dropped
		b.disk.close()
	}
	b.disk, b.failed, b.reading = disk, nil, false
	if disk != nil {
		b.waiting += disk.unread
		b.recovered += disk.unread + disk.dropped
	}
	return true
}

// close ends the use of the backlog: what waits goes to disk, or is dropped.
func (b *backlog) close() {
	b.end(true)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.mem {
		b.dropped += uint64(m.flows)
		b.waiting -= uint64(m.flows)
	}
	b.mem = nil
	if b.disk != nil {
		b.disk.close()
	}
}

// sync writes what is on disk through to the device; the lock is not held meanwhile. What a full disk did not take is tried again.
func (b *backlog) sync() {
	b.mu.Lock()
	var files []*os.File
	if b.disk != nil {
		if b.away && len(b.mem) > 0 {
			b.spill()
		}
		files = b.disk.forSync()
	}
	b.mu.Unlock()
	for _, f := range files {
		f.Sync()
		f.Close()
	}
}
