package ipfix

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
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
	sums     *os.File   // beside writer, or nil
	entries  int64      // of sums
	full     []*os.File // of segments before, not yet synced
	writes   *session   // of the segment being written: the templates and facts that it has
	epoch    *epoch     // of its messages: a segment has those of one configuration
	told     int        // of epoch.control, the number of messages that it has
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
	damage  damage // found when it was opened
}

type segment struct {
	id      uint64
	size    int64
	records uint64 // flow records
	read    uint64 // of these
}

// damage is what a spool has lost to octets that are no message.
type damage struct {
	places  int
	records uint64 // as far as they are known
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

// openSpool opens or makes the spool in dir, and mends what a sudden end has left: a message that was not written whole is cut off. Octets that
// are no message are passed over, and what was in them is counted as dropped.
func openSpool(dir string, size int64) (*spool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &spool{dir: dir, max: size, segmentMax: min(max(size/16, leastSegment), largestSegment)}
	var err error
	if s.lock, err = openPlain(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		s.lock.Close()
		return nil, fmt.Errorf("spool %s is in use by another exporter", dir)
	}
	if s.mark, err = openPlain(filepath.Join(dir, "taken"), os.O_CREATE|os.O_RDWR); err == nil {
		err = s.recover()
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// report says once what the spool has lost.
func (s *spool) report(c *Config) {
	if s.damage.places > 0 {
		c.Notify(false, fmt.Sprintf("collector %s: spool %s is damaged; %d records are dropped (places: %d)", c.Name(), s.dir, s.damage.records, s.damage.places))
	}
}

// openPlain opens a regular file: no symbolic link, which may lead anywhere, and no pipe or device.
func openPlain(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%s is a symbolic link", path)
	}
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	return f, nil
}

func (s *spool) path(id uint64) string {
	return filepath.Join(s.dir, fmt.Sprintf("%016d%s", id, segmentSuffix))
}

func (s *spool) recover() error {
	entries, err := os.ReadDir(s.dir) // sorted by name
	if err != nil {
		return err
	}
	var ids, summed []uint64
	for _, e := range entries {
		name := filepath.Join(s.dir, e.Name())
		id, err := strconv.ParseUint(strings.TrimSuffix(e.Name(), filepath.Ext(name)), 10, 64)
		switch {
		case err != nil:
		case name == s.path(id):
			ids = append(ids, id)
		case name == s.sumsPath(id):
			summed = append(summed, id)
		}
	}
	s.taken = s.readMark(ids)
	for _, id := range summed {
		switch {
		case slices.Contains(ids, id):
		case id < s.taken.segment:
			os.Remove(s.sumsPath(id))
		default:
			if err := s.orphan(id); err != nil {
				return err
			}
		}
	}
	for _, id := range ids {
		if id < s.taken.segment {
			os.Remove(s.sumsPath(id))
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
	s.read = s.taken
	s.dropped = s.damage.records
	return nil
}

const markOctets = 20

// readMark reads what was taken. Of a mark that is damaged nothing is believed: rather records come twice than not at all.
func (s *spool) readMark(ids []uint64) position {
	var b [markOctets]byte
	n, _ := s.mark.ReadAt(b[:], 0)
	p := position{binary.BigEndian.Uint64(b[:]), int64(binary.BigEndian.Uint64(b[8:]))}
	switch {
	case n == markOctets && crc32.ChecksumIEEE(b[:16]) == binary.BigEndian.Uint32(b[16:]):
	case n == 16 && slices.Contains(ids, p.segment): // as it was written without a checksum
	default:
		return position{}
	}
	return p
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
	if s.sums != nil { // without it the message is believed
		s.sums.WriteAt(appendSum(nil, sum{uint32(seg.size), uint32(len(out)), uint32(s.writes.flows), crc32.ChecksumIEEE(out)}), s.entries*sumOctets)
		s.entries++
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
	f, err := openPlain(s.path(id), os.O_CREATE|os.O_EXCL|os.O_RDWR)
	if err != nil {
		return err
	}
	if s.writer != nil {
		s.full = append(s.full, s.writer) // to be synced: that may take seconds
	}
	s.writer, s.writes, s.sequence, s.told, s.epoch = f, newSession(), 0, 0, nil
	s.closeSums()
	s.sums, _ = openPlain(s.sumsPath(id), os.O_CREATE|os.O_TRUNC|os.O_WRONLY)
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
	os.Remove(s.sumsPath(seg.id)) // first: sums without a segment are a loss
	os.Remove(s.path(seg.id))
	s.size -= seg.size
	s.segments = s.segments[1:]
	if len(s.segments) == 0 && s.writer != nil {
		s.writer.Close()
		s.writer = nil
		s.closeSums()
	}
}

// note records that everything before p was taken.
func (s *spool) note(p position) {
	s.taken = p
	var b [markOctets]byte
	binary.BigEndian.PutUint64(b[:], p.segment)
	binary.BigEndian.PutUint64(b[8:], uint64(p.offset))
	binary.BigEndian.PutUint32(b[16:], crc32.ChecksumIEEE(b[:16]))
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
	s.closeSums()
}

func (s *spool) closeSums() {
	if s.sums != nil {
		s.sums.Close()
	}
	s.sums, s.entries = nil, 0
}
