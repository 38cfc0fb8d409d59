package ipfix

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
)

// Messages that were encoded once may be sent in another Transport Session: after a reconnect, or from the spool of an exporter that
// is gone. This file has what that needs to know of a message (RFC 7011, section 3).

var (
	errMalformed = errors.New("malformed message")
	// errOtherLayout: a template id has another layout in this session, so the message needs a session of its own.
	errOtherLayout = errors.New("template id is in use with another layout")
)

// messageLength returns the length of the message at the begin of b, 0 if there is none.
func messageLength(b []byte) int {
	if len(b) < headerIPFIX || binary.BigEndian.Uint16(b) != 10 {
		return 0
	}
	if n := int(binary.BigEndian.Uint16(b[2:])); n >= headerIPFIX {
		return n
	}
	return 0
}

// nextMessage looks for the next message of r from octet at on, and reads it into b: one that is whole, of sets that fill it. It returns where
// it begins and its length; 0 if there is none before size.
func nextMessage(r io.ReaderAt, at, size int64, b []byte) (offset int64, n int, err error) {
	const step = 1 << 15
	for ; size-at >= headerIPFIX; at++ {
		if _, err := r.ReadAt(b[:headerIPFIX], at); err != nil {
			return at, 0, err
		}
		if n := messageLength(b[:headerIPFIX]); n > 0 && int64(n) <= size-at {
			if _, err := r.ReadAt(b[:n], at); err != nil {
				return at, 0, err
			}
			if wellFormed(b[:n]) {
				return at, n, nil
			}
		}
		// On to the next octets that a header can begin with.
		for size-at > headerIPFIX {
			part := b[:min(step, size-at-1)]
			if _, err := r.ReadAt(part, at+1); err != nil {
				return at, 0, err
			}
			if i := bytes.Index(part, []byte{0, 10}); i >= 0 {
				at += int64(i)
				break
			}
			at += int64(max(1, len(part)-1))
		}
	}
	return at, 0, nil
}

// wellFormed reports whether the sets of a message fill it.
func wellFormed(msg []byte) bool {
	return eachSet(msg, func(id uint16, _ []byte) error {
		if id != setTemplate && id != setOptionsTemplate && id < 256 {
			return errMalformed
		}
		return nil
	}) == nil
}

// eachSet calls f with the sets of a message, header and all.
func eachSet(msg []byte, f func(id uint16, set []byte) error) error {
	if messageLength(msg) != len(msg) {
		return errMalformed
	}
	for b := msg[headerIPFIX:]; len(b) > 0; {
		if len(b) < setHeader {
			return errMalformed
		}
		id, n := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
		if n < setHeader || n > len(b) {
			return errMalformed
		}
		if err := f(id, b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// Elements of options records that are no facts for a session: counters, and names of applications, which there may be any number of.
const (
	exportedMessageTotalCount   = 41
	applicationID               = 95
	observationTimeMilliseconds = 323
)

// layout is an announced template.
type layout struct {
	record  []byte // its Template Record, as sent
	set     uint16 // setTemplate or setOptionsTemplate
	lengths []int  // of its fields; -1 variable
	least   int    // octets of the shortest record
	facts   bool   // an Options Template of what holds for a session, such as type records (RFC 5610), and not of counters
}

// templateRecord reads the first Template Record of b, the body of a set; the rest follows it. A withdrawal has no fields.
func templateRecord(set uint16, b []byte) (id uint16, l layout, rest []byte, err error) {
	if len(b) < 4 {
		return 0, l, nil, errMalformed
	}
	id, l.set = binary.BigEndian.Uint16(b), set
	l.facts = set == setOptionsTemplate
	count, at := int(binary.BigEndian.Uint16(b[2:])), 4
	if count > 0 && set == setOptionsTemplate {
		if len(b) < 6 {
			return 0, l, nil, errMalformed
		}
		at = 6
	}
	l.lengths = make([]int, 0, min(count, len(b)/4))
	for range count {
		if len(b) < at+4 {
			return 0, l, nil, errMalformed
		}
		element, n := binary.BigEndian.Uint16(b[at:]), int(binary.BigEndian.Uint16(b[at+2:]))
		at += 4
		if element&0x8000 != 0 {
			at += 4
		} else if element == exportedMessageTotalCount || element == applicationID || element == observationTimeMilliseconds {
			l.facts = false
		}
		if len(b) < at {
			return 0, l, nil, errMalformed
		}
		if n == 65535 {
			l.least++
			n = -1
		} else {
			l.least += n
		}
		l.lengths = append(l.lengths, n)
	}
	if count > 0 && l.least == 0 {
		return 0, l, nil, errMalformed
	}
	l.record = b[:at]
	return id, l, b[at:], nil
}

// records counts the Data Records in the body of a set.
func (l *layout) records(b []byte) (int, error) {
	n := 0
	for len(b) >= l.least && len(b) > 0 { // less is padding
		for _, length := range l.lengths {
			if length < 0 {
				if len(b) < 1 {
					return n, errMalformed
				}
				length, b = int(b[0]), b[1:]
				if length == 255 {
					if len(b) < 2 {
						return n, errMalformed
					}
					length, b = int(binary.BigEndian.Uint16(b)), b[2:]
				}
			}
			if length > len(b) {
				return n, errMalformed
			}
			b = b[length:]
		}
		n++
	}
	return n, nil
}

// session is what a Transport Session has sent to its collector: templates, and type records.
type session struct {
	layouts map[uint16]*layout
	told    map[string]bool // sets of facts
	trust   bool            // Data Records of messages to come need not be counted, but for facts

	// Of the last message:
	news  bool // it announced something new
	flows int  // its flow records
	data  bool // it has other Data Records than facts
}

func newSession() *session { return &session{layouts: map[uint16]*layout{}, told: map[string]bool{}} }

// which sets of a message to take
type which uint8

const (
	everything  which = iota
	controlOnly       // templates and facts
	dataOnly          // what is neither
)

// admit appends to dst the message without the templates and facts that were sent already, and counts the Data Records
// that are left. If no set is left, it returns dst unchanged. The caller sets the sequence number.
func (s *session) admit(dst, msg []byte, what which) (out []byte, records int, err error) {
	begin := len(dst)
	s.news, s.flows, s.data = false, 0, false
	err = eachSet(msg, func(id uint16, set []byte) error {
		if len(dst) == begin {
			dst = append(dst, msg[:headerIPFIX]...)
		}
		if id == setTemplate || id == setOptionsTemplate {
			if what != dataOnly {
				dst, err = s.admitTemplates(dst, id, set)
			}
			return err
		}
		l := s.layouts[id]
		if l == nil {
			return errMalformed
		}
		n := 0
		if l.facts || !s.trust {
			if n, err = l.records(set[setHeader:]); err != nil {
				return err
			}
		}
		if l.set == setTemplate {
			s.flows += n
		}
		s.data = s.data || !l.facts
		switch {
		case l.facts && (what == dataOnly || s.told[string(set)]), !l.facts && what == controlOnly:
			return nil
		case l.facts:
			s.told[string(set)], s.news = true, true
		}
		records += n
		dst = append(dst, set...)
		return nil
	})
	if err != nil || len(dst) <= begin+headerIPFIX {
		return dst[:begin], 0, err
	}
	binary.BigEndian.PutUint16(dst[begin+2:], uint16(len(dst)-begin))
	return dst, records, nil
}

func (s *session) admitTemplates(dst []byte, id uint16, set []byte) ([]byte, error) {
	begin := len(dst)
	dst = append(dst, set[:setHeader]...)
	for b := set[setHeader:]; len(b) >= 4; { // less is padding
		tid, l, rest, err := templateRecord(id, b)
		if err != nil {
			return dst, err
		}
		old := s.layouts[tid]
		switch {
		case len(l.lengths) == 0 && tid == id: // a withdrawal of all of this kind (RFC 7011, section 8.1)
			for other, old := range s.layouts {
				if old.set == id {
					delete(s.layouts, other)
				}
			}
		case len(l.lengths) == 0:
			delete(s.layouts, tid)
		case old != nil && old.set == id && bytes.Equal(old.record, l.record):
			b = rest
			continue
		case old != nil:
			return dst, errOtherLayout
		default:
			known := l
			known.record = bytes.Clone(l.record)
			s.layouts[tid] = &known
		}
		s.news = true
		dst = append(dst, l.record...)
		b = rest
	}
	if len(dst) == begin+setHeader {
		return dst[:begin], nil
	}
	binary.BigEndian.PutUint16(dst[begin+2:], uint16(len(dst)-begin))
	return dst, nil
}

// withdrawals appends a message that withdraws all templates of the session (RFC 7011, section 8.1), after which it has announced nothing; dst
// as it was if there is none. head is the header of another message of the session.
func (s *session) withdrawals(dst, head []byte) []byte {
	begin := len(dst)
	for _, set := range []uint16{setTemplate, setOptionsTemplate} {
		var ids []uint16
		for id, l := range s.layouts {
			if l.set == set {
				ids = append(ids, id)
			}
		}
		if len(ids) == 0 {
			continue
		}
		if len(dst) == begin {
			dst = append(dst, head[:headerIPFIX]...)
		}
		slices.Sort(ids)
		dst = binary.BigEndian.AppendUint16(dst, set)
		dst = binary.BigEndian.AppendUint16(dst, uint16(setHeader+4*len(ids)))
		for _, id := range ids {
			dst = append(dst, byte(id>>8), byte(id), 0, 0)
		}
	}
	if len(dst) > begin {
		binary.BigEndian.PutUint16(dst[begin+2:], uint16(len(dst)-begin))
	}
	clear(s.layouts)
	clear(s.told)
	return dst
}
