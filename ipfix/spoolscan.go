package ipfix

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
)

// Beside each segment is a file of sums: what its messages were when they were written, so that what a disk, or a loss of power, has made of
// them since is not sent as records, and what is lost is counted. It is not needed to read the segment: a message whose entry is damaged, or was
// never written, is believed.

// sum is an entry: a message's place, its flow records and its CRC-32 (IEEE).
type sum struct{ offset, length, flows, crc uint32 }

// sumOctets is the length of an entry: the four numbers, and their own CRC-32.
const sumOctets = 20

func appendSum(b []byte, e sum) []byte {
	at := len(b)
	for _, n := range []uint32{e.offset, e.length, e.flows, e.crc} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[at:]))
}

func (s *spool) sumsPath(id uint64) string {
	return filepath.Join(s.dir, fmt.Sprintf("%016d.sums", id))
}

// readSums returns the sound entries of a segment, in order.
func (s *spool) readSums(id uint64) (l []sum) {
	f, err := openPlain(s.sumsPath(id), os.O_RDONLY)
	if err != nil {
		return nil
	}
	defer f.Close()
	end := int64(0)
	b := make([]byte, sumOctets)
	for at := int64(0); ; at += sumOctets {
		if _, err := f.ReadAt(b, at); err != nil {
			return l
		}
		if crc32.ChecksumIEEE(b[:16]) != binary.BigEndian.Uint32(b[16:]) {
			continue
		}
		e := sum{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])}
		if int64(e.offset) < end || e.length < headerIPFIX || e.length > maxStream {
			continue
		}
		end = int64(e.offset) + int64(e.length)
		l = append(l, e)
	}
}

// scan finds the messages of a segment and counts their records. One that is damaged is taken out, and octets that are no message; what was not
// written whole is cut off.
func (s *spool) scan(seg *segment) error {
	f, err := openPlain(s.path(seg.id), os.O_RDWR)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	c := scanner{f: f, size: st.Size(), known: newSession(), b: make([]byte, maxStream), taken: -1}
	if seg.id == s.taken.segment {
		c.taken = s.taken.offset
	}
	if err := c.scan(s.readSums(seg.id)); err != nil {
		return err
	}
	seg.records, seg.size, seg.read = c.records, c.size-c.cut, c.read
	if c.taken >= 0 && !c.boundary {
		s.taken.offset, seg.read = 0, 0
	}
	s.damage.places += c.places
	s.damage.records += c.lost
	if c.places > 0 && s.mend(seg, &c) == nil {
		return nil
	}
	return f.Truncate(seg.size)
}

// scanner is a scan under way.
type scanner struct {
	f          *os.File
	size       int64
	end        int64 // of the last message
	known      *session
	b, scratch []byte
	good       []span // messages

	records, read uint64 // flow records; of these, before taken
	taken         int64  // in this segment; else -1
	boundary      bool   // a message begins at taken, or the last one ends there
	cut           int64  // octets at the end that are no message

	bySequence bool // there are no sums: gaps of the sequence are losses
	sequence   uint64
	places     int
	bad        bool // the last octets were a place
	lost       uint64
}

// span is a sound message.
type span struct {
	offset, length int64
	flows          uint32
}

// damaged notes a place with so many flow records.
func (c *scanner) damaged(flows uint64) {
	if c.lost += flows; !c.bad {
		c.places++
	}
	c.bad = true
}

// message takes a message that is whole, at offset; flows is what it had when it was written, if that is known.
func (c *scanner) message(msg []byte, offset int64, flows uint64) {
	out, all, err := c.known.admit(c.scratch[:0], msg, everything)
	c.scratch = out
	if err != nil {
		c.damaged(flows) // its template is lost
		return
	}
	number := uint64(binary.BigEndian.Uint32(msg[8:]))
	if before := number - c.sequence; c.bySequence && before <= uint64(offset) { // a number that cannot be is ignored
		c.lost += before
	}
	c.sequence, c.bad = number+uint64(all), false
	c.boundary = c.boundary || offset == c.taken
	if offset < c.taken {
		c.read += uint64(c.known.flows)
	}
	c.records += uint64(c.known.flows)
	c.good = append(c.good, span{offset, int64(len(msg)), uint32(c.known.flows)})
	c.boundary = c.boundary || offset+int64(len(msg)) == c.taken
}

// scan looks for messages. Where there are sums, each must be one of them, in their order, or lie where none is: those before it are lost.
func (c *scanner) scan(sums []sum) error {
	c.bySequence = len(sums) == 0
	c.boundary = c.taken == 0
	index := make(map[uint32]int, len(sums))
	for i, e := range sums {
		index[e.crc] = i
	}
	next := 0 // of sums
	lose := func(to int) {
		for ; next < to; next++ {
			c.damaged(uint64(sums[next].flows))
		}
	}
	shift := int64(0) // of the messages against the sums: octets were put in, or taken out
	for at := int64(0); ; {
		offset, n, err := nextMessage(c.f, at, c.size, c.b)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		i, known := index[crc32.ChecksumIEEE(c.b[:n])]
		flows := uint64(1)
		if known = known && i >= next; known {
			lose(i)
			shift = offset - int64(sums[i].offset)
			flows, next = uint64(sums[i].flows), i+1
		} else {
			to, ok := between(sums, next, offset-shift, int64(n))
			if !ok { // damaged, or made of octets within another one
				at = offset + 1
				continue
			}
			lose(to)
		}
		if offset > c.end {
			c.damaged(0)
		}
		c.message(c.b[:n], offset, flows)
		at = offset + int64(n)
		c.end = at
	}
	lose(len(sums))
	c.cut = c.size - c.end
	return nil
}

// between returns which of the sums, from next on, is the first behind a message of n octets that begins at offset, and whether it lies in none of them.
func between(sums []sum, next int, offset, n int64) (int, bool) {
	for next < len(sums) && int64(sums[next].offset)+int64(sums[next].length) <= offset {
		next++
	}
	return next, next == len(sums) || offset+n <= int64(sums[next].offset)
}

// orphan counts the records of a segment that is gone, by its sums, and removes these.
func (s *spool) orphan(id uint64) error {
	for _, e := range s.readSums(id) {
		if id > s.taken.segment || int64(e.offset) >= s.taken.offset {
			s.damage.records += uint64(e.flows)
		}
	}
	s.damage.places++
	return os.Remove(s.sumsPath(id))
}

// mend writes the segment anew, of its sound messages alone.
func (s *spool) mend(seg *segment, c *scanner) error {
	name := s.path(seg.id)
	f, err := openPlain(name+".new", os.O_CREATE|os.O_TRUNC|os.O_RDWR)
	if err != nil {
		return err
	}
	defer f.Close()
	size, taken := int64(0), int64(0)
	var sums []byte
	for _, m := range c.good {
		msg := c.b[:m.length]
		if _, err = c.f.ReadAt(msg, m.offset); err == nil {
			_, err = f.WriteAt(msg, size)
		}
		if err != nil {
			break
		}
		sums = appendSum(sums, sum{uint32(size), uint32(m.length), m.flows, crc32.ChecksumIEEE(msg)})
		if size += m.length; m.offset < s.taken.offset {
			taken = size
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil { // sums of messages that are not there would look like a loss
		os.Remove(s.sumsPath(seg.id))
		err = os.Rename(name+".new", name)
	}
	if err != nil {
		os.Remove(name + ".new")
		return err
	}
	if f, err := openPlain(s.sumsPath(seg.id), os.O_CREATE|os.O_TRUNC|os.O_WRONLY); err == nil {
		f.Write(sums)
		f.Close()
	}
	if seg.size = size; seg.id == s.taken.segment {
		s.note(position{seg.id, taken})
	}
	return nil
}
