package ipfix

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
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
	epoch    *epoch     // of its messages: a segment has those of one configuration
	told     int        // of epoch.control, what it tells
	sequence uint32
	scratch  []byte
	appended uint64 // messages
	synced   uint64 // of these

	read   position // the next message to send
	reader *os.File
	buf    []byte // of the reader: what was read ahead
	bufAt  int64  // offset of buf in its segment
	taken  position

	dropped uint64 // flow records
	unread  uint64 // flow records from read on
}

type segment struct {
	id      uint64
	size    int64
	records uint64 // flow records
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
		seg.records += uint64(known.flows)
		if seg.id == s.taken.segment && seg.size < s.taken.offset {
			seg.read += uint64(known.flows)
		}
		seg.size += int64(n)
	}
	return f.Truncate(seg.size)
}

// append writes a message, after what its epoch announces and the segment does not have yet; a segment begins with it all, and has messages
// of one epoch. It returns the place after it. After an error nothing of the message is there.
func (s *spool) append(m *pending) (position, error) {
	if s.writer == nil || s.epoch != m.epoch || s.segments[len(s.segments)-1].size+int64(len(m.msg)) > s.segmentMax {
		if err := s.begin(); err != nil {
			return position{}, err
		}
		s.epoch = m.epoch
	}
	seg := s.segments[len(s.segments)-1]
	for ; s.told < m.after; s.told++ {
		if err := s.write(seg, m.epoch.control[s.told]); err != nil {
			return position{}, err
		}
	}
	if err := s.write(seg, m.msg); err != nil {
		return position{}, err
	}
	s.unread += uint64(m.flows)
	seg.records += uint64(m.flows)
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
	s.writer, s.writes, s.sequence, s.told, s.epoch = f, newSession(), 0, 0, nil
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
