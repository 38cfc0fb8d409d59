package ipfix

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// spool keeps messages on disk while a stream collector is away or slow. It is a folder of segments, each a file of messages
// (RFC 5655) that begins with the templates it needs, and so can be read by itself. What the collector has taken is noted in the
// file "taken"; a segment that was taken whole is removed. Beyond the bound the oldest segment is dropped. It is not safe for
// concurrent use: its backlog holds a lock.
type spool struct {
	dir        string
	max        int64 // octets of all segments
	segmentMax int64
	lock, mark *os.File // lock is held while the spool is open; mark is the file "taken"

	segments []*segment // oldest first
	size     int64
	writer   *os.File   // of the last segment; nil before the first append of this run
	full     []*os.File // of segments before, not yet synced
	writes   *session   // of the segment being written: what it tells
	told     int        // of the messages of writes
	sequence uint32
	scratch  []byte
	appended uint64 // messages
	synced   uint64 // of these

	read   position // the next message to send
	reader *os.File
	buf    []byte // of the reader: what was read ahead
	bufAt  int64  // offset of buf in its segment
	taken  position

	dropped uint64 // Data Records
	unread  uint64 // Data Records from read on
}

type segment struct {
	id      uint64
	size    int64
	records uint64 // Data Records, but for messages that only tell templates and facts
	read    uint64 // of these
}

// position is a place in the spool: before the message at offset in the segment.
type position struct {
	segment uint64
	offset  int64
}

func (p position) before(q position) bool {
	return p.segment < q.segment || p.segment == q.segment && p.offset < q.offset
}

const (
	segmentSuffix  = ".ipfix"
	leastSpool     = 1 << 20
	leastSegment   = 1 << 18
	largestSegment = 16 << 20
	readAhead      = 1 << 18
)

// openSpool opens or makes the spool in dir, and mends what a sudden end has left: a message that was not written whole is cut off.
func openSpool(dir string, size int64) (*spool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &spool{dir: dir, max: size, segmentMax: min(max(size/16, leastSegment), largestSegment)}
	var err error
	if s.lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		s.lock.Close()
		return nil, fmt.Errorf("spool %s is in use by another exporter", dir)
	}
	if s.mark, err = os.OpenFile(filepath.Join(dir, "taken"), os.O_CREATE|os.O_RDWR, 0o600); err == nil {
		err = s.recover()
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *spool) path(id uint64) string {
	return filepath.Join(s.dir, fmt.Sprintf("%016d%s", id, segmentSuffix))
}

func (s *spool) recover() error {
	var b [16]byte
	if n, _ := s.mark.ReadAt(b[:], 0); n == len(b) {
		s.taken = position{binary.BigEndian.Uint64(b[:]), int64(binary.BigEndian.Uint64(b[8:]))}
	}
	entries, err := os.ReadDir(s.dir) // sorted by name
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, err := strconv.ParseUint(strings.TrimSuffix(e.Name(), segmentSuffix), 10, 64)
		if err != nil || !strings.HasSuffix(e.Name(), segmentSuffix) {
			continue
		}
		if id < s.taken.segment {
			if err := os.Remove(s.path(id)); err != nil {
				return err
			}
			continue
		}
		seg := &segment{id: id}
		if err := s.scan(seg); err != nil {
			return err
		}
		s.segments = append(s.segments, seg)
		s.size += seg.size
		s.unread += seg.records - seg.read
	}
	if len(s.segments) > 0 && s.taken.segment != s.segments[0].id {
		s.taken = position{s.segments[0].id, 0}
	}
	if len(s.segments) > 0 {
		s.taken.offset = min(s.taken.offset, s.segments[0].size)
	}
	s.read = s.taken
	return nil
}

// scan counts the records of a segment, and cuts off what is no message at its end.
func (s *spool) scan(seg *segment) error {
	f, err := os.OpenFile(s.path(seg.id), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	known, head, scratch := newSession(), make([]byte, 65536), []byte(nil)
	for {
		n := 0
		if _, err := f.ReadAt(head[:headerIPFIX], seg.size); err == nil {
			n = messageLength(head[:headerIPFIX])
		}
		if n == 0 {
			break
		}
		if _, err := f.ReadAt(head[:n], seg.size); err != nil {
			break
		}
		out, _, err := known.admit(scratch[:0], head[:n], everything)
		if err != nil {
			break
		}
		scratch = out
		seg.records += uint64(known.counted())
		if seg.id == s.taken.segment && seg.size < s.taken.offset {
			seg.read += uint64(known.counted())
		}
		seg.size += int64(n)
	}
	return f.Truncate(seg.size)
}

// append writes a message, after what is new of control, the messages that tell templates and facts; a segment begins with them all. It
// returns the place after it. After an error nothing of the message is there.
func (s *spool) append(msg []byte, records int, control [][]byte) (position, error) {
	if s.writer == nil || s.segments[len(s.segments)-1].size+int64(len(msg)) > s.segmentMax {
		if err := s.begin(); err != nil {
			return position{}, err
		}
	}
	seg := s.segments[len(s.segments)-1]
	for ; s.told < len(control); s.told++ {
		if err := s.write(seg, control[s.told]); err != nil {
			return position{}, err
		}
	}
	if err := s.write(seg, msg); err != nil {
		return position{}, err
	}
	s.unread += uint64(records)
	seg.records += uint64(records)
	for s.size > s.max && len(s.segments) > 1 {
		s.dropOldest()
	}
	return position{seg.id, seg.size}, nil
}

// write writes a message to the segment that is being written.
func (s *spool) write(seg *segment, msg []byte) error {
	out, records, err := s.writes.admit(s.scratch[:0], msg, everything)
	s.scratch = out
	if err != nil || len(out) == 0 {
		return err
	}
	binary.BigEndian.PutUint32(out[8:], s.sequence)
	if _, err := s.writer.WriteAt(out, seg.size); err != nil {
		s.writer.Truncate(seg.size)
		return err
	}
	s.appended++
	s.sequence += uint32(records)
	seg.size += int64(len(out))
	s.size += int64(len(out))
	return nil
}

// begin begins a segment.
func (s *spool) begin() error {
	id := max(s.taken.segment, s.read.segment) + 1
	if n := len(s.segments); n > 0 {
		id = max(id, s.segments[n-1].id+1)
	}
	f, err := os.OpenFile(s.path(id), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if s.writer != nil {
		s.full = append(s.full, s.writer) // to be synced: that may take seconds
	}
	s.writer, s.writes, s.sequence, s.told = f, newSession(), 0, 0
	s.segments = append(s.segments, &segment{id: id})
	if len(s.segments) == 1 {
		s.taken = position{id, 0}
		s.read = s.taken
	}
	return nil
}

func (s *spool) dropOldest() {
	seg := s.segments[0]
	s.dropped += seg.records - seg.read
	s.unread -= seg.records - seg.read
	s.remove()
	first := position{s.segments[0].id, 0}
	if s.read.before(first) {
		s.seek(first)
	}
	if s.taken.before(first) {
		s.note(first)
	}
}

// remove removes the oldest segment.
func (s *spool) remove() {
	seg := s.segments[0]
	if s.reader != nil && s.read.segment == seg.id { // or the disk would not be free
		s.reader.Close()
		s.reader = nil
	}
	os.Remove(s.path(seg.id))
	s.size -= seg.size
	s.segments = s.segments[1:]
	if len(s.segments) == 0 && s.writer != nil {
		s.writer.Close()
		s.writer = nil
	}
}

// note records that everything before p was taken.
func (s *spool) note(p position) {
	s.taken = p
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], p.segment)
	binary.BigEndian.PutUint64(b[8:], uint64(p.offset))
	s.mark.WriteAt(b[:], 0)
}

// release lets go of everything before p.
func (s *spool) release(p position) {
	if !s.taken.before(p) {
		return
	}
	s.note(p)
	for len(s.segments) > 0 && (s.segments[0].id < p.segment || s.segments[0].id == p.segment && s.segments[0].size <= p.offset) {
		s.remove()
	}
}

// rewind goes back to what was not taken; putBack must follow for each message that was read and not taken.
func (s *spool) rewind() { s.seek(s.taken) }

// putBack says that Data Records of a segment, which were read, are to be read again. It returns false if the segment was dropped, and
// they with it.
func (s *spool) putBack(segment uint64, records int) bool {
	for _, seg := range s.segments {
		if seg.id == segment {
			seg.read -= uint64(records)
			s.unread += uint64(records)
			return true
		}
	}
	s.dropped += uint64(records)
	return false
}

// skip goes on to after, past a message that was just appended and is known to be sent.
func (s *spool) skip(after position, records int) {
	s.seek(after)
	s.didRead(after, records)
}

// spoil drops what is left of the segment that is being read.
func (s *spool) spoil() {
	for _, seg := range s.segments {
		if seg.id == s.read.segment {
			s.dropped += seg.records - seg.read
			s.unread -= seg.records - seg.read
			seg.read = seg.records
			s.seek(position{seg.id, seg.size})
			return
		}
	}
	for _, seg := range s.segments {
		if seg.id > s.read.segment {
			s.seek(position{seg.id, 0})
			return
		}
	}
}

func (s *spool) seek(p position) {
	if s.reader != nil && p.segment != s.read.segment {
		s.reader.Close()
		s.reader = nil
	}
	s.read, s.buf = p, s.buf[:0]
}

// next appends the next message to dst, and goes to the one after it. ok is false if there is none.
func (s *spool) next(dst []byte) (msg []byte, ok bool, err error) {
	for _, seg := range s.segments {
		if seg.id < s.read.segment || seg.id == s.read.segment && s.read.offset >= seg.size {
			continue
		}
		if seg.id > s.read.segment {
			s.seek(position{seg.id, 0})
		}
		b, err := s.peek(seg, headerIPFIX)
		if err != nil {
			return dst, false, err
		}
		n := messageLength(b)
		if n == 0 {
			return dst, false, errMalformed
		}
		if b, err = s.peek(seg, n); err != nil {
			return dst, false, err
		}
		s.read.offset += int64(n)
		return append(dst, b[:n]...), true, nil
	}
	return dst, false, nil
}

// didRead counts the Data Records of the message that ends at after. It returns 0 if its segment was dropped meanwhile, and they with it.
func (s *spool) didRead(after position, records int) int {
	for _, seg := range s.segments {
		if seg.id == after.segment {
			seg.read += uint64(records)
			s.unread -= uint64(records)
			return records
		}
	}
	return 0
}

// peek returns at least n octets at the read position.
func (s *spool) peek(seg *segment, n int) ([]byte, error) {
	at := s.read.offset
	if at >= s.bufAt && at+int64(n) <= s.bufAt+int64(len(s.buf)) {
		return s.buf[at-s.bufAt:], nil
	}
	if s.reader == nil {
		f, err := os.Open(s.path(seg.id))
		if err != nil {
			return nil, err
		}
		s.reader = f
	}
	if cap(s.buf) == 0 {
		s.buf = make([]byte, readAhead)
	}
	s.buf = s.buf[:min(int64(cap(s.buf)), seg.size-at)]
	s.bufAt = at
	if _, err := s.reader.ReadAt(s.buf, at); err != nil && !errors.Is(err, io.EOF) {
		s.buf = s.buf[:0]
		return nil, err
	}
	if len(s.buf) < n {
		return nil, errMalformed
	}
	return s.buf, nil
}

// drained reports whether everything was read.
func (s *spool) drained() bool {
	n := len(s.segments)
	if n == 0 {
		return true
	}
	last := s.segments[n-1]
	return s.read.segment > last.id || s.read.segment == last.id && s.read.offset >= last.size
}

// before returns messages with what the segment told before the next message: a session that begins in the middle needs it.
func (s *spool) before() ([][]byte, error) {
	p := s.read
	i := slices.IndexFunc(s.segments, func(seg *segment) bool { return seg.id == p.segment })
	if i < 0 || p.offset >= s.segments[i].size { // a segment follows, which tells all
		return nil, nil
	}
	f, err := os.Open(s.path(p.segment))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	known, b := newSession(), make([]byte, 65536)
	var control [][]byte
	for at := int64(0); at < p.offset; {
		if _, err := f.ReadAt(b[:headerIPFIX], at); err != nil {
			return nil, err
		}
		n := messageLength(b[:headerIPFIX])
		if n == 0 {
			return nil, errMalformed
		}
		if _, err := f.ReadAt(b[:n], at); err != nil {
			return nil, err
		}
		at += int64(n)
		out, _, err := known.admit(nil, b[:n], controlOnly)
		if err != nil {
			return nil, err
		}
		if known.news {
			control = append(control, out)
		}
	}
	return control, nil
}

// forSync returns files to sync and close, of what was written since the last time.
func (s *spool) forSync() []*os.File {
	l := s.full
	s.full = nil
	if s.writer == nil || s.synced == s.appended {
		return l
	}
	fd, err := unix.FcntlInt(s.writer.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return l
	}
	s.synced = s.appended
	return append(l, os.NewFile(uintptr(fd), s.writer.Name()))
}

// close does not wait for the device: what is written outlives the program, and the system writes it through before it goes down.
func (s *spool) close() {
	for _, f := range append(s.full, s.writer, s.reader, s.mark, s.lock) {
		if f != nil {
			f.Close()
		}
	}
	s.full, s.writer, s.reader = nil, nil, nil
}
