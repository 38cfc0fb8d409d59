package ipfix

import (
	"errors"
	"io"
	"os"
	"slices"
)

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

// spoil drops what is left of the segment that is being read, because the disk does not give it.
func (s *spool) spoil() {
	for _, seg := range s.segments {
		if seg.id == s.read.segment {
			s.settle(seg)
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

// settle counts as dropped the records of a segment that is read to its end and were not found: it was damaged since they were counted.
func (s *spool) settle(seg *segment) {
	s.dropped += seg.records - seg.read
	s.unread -= seg.records - seg.read
	seg.read = seg.records
}

func (s *spool) seek(p position) {
	if s.reader != nil && p.segment != s.read.segment {
		s.reader.Close()
		s.reader = nil
	}
	s.read, s.buf = p, s.buf[:0]
}

// next appends the next message to dst, and goes to the one after it; it passes over what is none. ok is false if there is no message.
func (s *spool) next(dst []byte) (msg []byte, ok bool, err error) {
	for _, seg := range s.segments {
		if seg.id < s.read.segment || seg.id == s.read.segment && s.read.offset >= seg.size {
			continue
		}
		if seg.id > s.read.segment {
			s.seek(position{seg.id, 0})
		}
		b, err := s.peek(seg, headerIPFIX)
		n := 0
		if err == nil {
			if n = messageLength(b); n > 0 {
				b, err = s.peek(seg, n)
			}
		}
		if err != nil && !errors.Is(err, errMalformed) {
			return dst, false, err
		}
		if err == nil && n > 0 && wellFormed(b[:n]) {
			s.read.offset += int64(n)
			return append(dst, b[:n]...), true, nil
		}
		whole := make([]byte, maxStream)
		offset, n, err := nextMessage(s.reader, s.read.offset, seg.size, whole)
		if err != nil {
			return dst, false, err
		}
		if n > 0 {
			s.read.offset = offset + int64(n)
			return append(dst, whole[:n]...), true, nil
		}
		s.read.offset = seg.size
		s.settle(seg)
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
		f, err := openPlain(s.path(seg.id), os.O_RDONLY)
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

// before returns messages with the templates and facts that precede the next message in its segment. A session that
// begins in the middle of a segment needs them.
func (s *spool) before() ([][]byte, error) {
	p := s.read
	i := slices.IndexFunc(s.segments, func(seg *segment) bool { return seg.id == p.segment })
	if i < 0 || p.offset >= s.segments[i].size { // a segment follows, which has all templates and facts
		return nil, nil
	}
	f, err := openPlain(s.path(p.segment), os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	known, b := newSession(), make([]byte, maxStream)
	var control [][]byte
	for at := int64(0); at < p.offset; {
		offset, n, err := nextMessage(f, at, p.offset, b)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		at = offset + int64(n)
		if out, _, err := known.admit(nil, b[:n], controlOnly); err == nil && known.news {
			control = append(control, out)
		}
	}
	return control, nil
}
