package collector

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// StreamError is the end of a stream or file that cannot be read on.
type StreamError struct {
	Offset int64 // of the message, octets
	Err    error
}

func (e *StreamError) Error() string { return fmt.Sprintf("at octet %d: %v", e.Offset, e.Err) }
func (e *StreamError) Unwrap() error { return e.Err }

// Of a stream whose last messages were all malformed nothing good can come (RFC 7011, section 9).
const maxMalformed = 16

// ReadStream decodes the messages of a TCP connection or of a file (RFC 5655), one after the other, until the end or
// until handle returns an error. handle is called with the records of each message. Malformed messages are counted and
// skipped while it is known where the next one begins; else the error is a *StreamError.
func (s *Session) ReadStream(r io.Reader, handle func([]Record) error) error {
	return readMessages(r, func() {}, func(msg []byte) error { return s.decodeTo(msg, handle) }, s.discard)
}

// discard counts what came instead of a message.
func (s *Session) discard(octets int, err *MalformedError) {
	s.stats.Messages++
	s.stats.Octets += uint64(octets)
	s.stats.Malformed[err.Cause]++
}

// readMessages hands the messages of a stream to each. The octets are valid during the call. What is no message goes to
// discard. wait is called before each message of which nothing has come yet.
func readMessages(r io.Reader, wait func(), each func(msg []byte) error, discard func(octets int, err *MalformedError)) error {
	b := bufio.NewReaderSize(r, 65536) // the longest message is one octet less
	bad := 0
	for at := int64(0); ; {
		if b.Buffered() == 0 {
			wait()
		}
		head, err := b.Peek(4)
		n := 0
		switch {
		case err == nil:
			n = int(binary.BigEndian.Uint16(head[2:]))
		case !errors.Is(err, io.EOF):
			return &StreamError{at, err}
		case len(head) == 0:
			return nil
		}
		var wrong *MalformedError
		switch {
		case err != nil:
			wrong = malformed(CauseLength, "it ends in the header of a message")
		case binary.BigEndian.Uint16(head) != versionIPFIX:
			wrong = malformed(CauseVersion, "version %d is not IPFIX", binary.BigEndian.Uint16(head))
		case n < headerIPFIX:
			wrong = malformed(CauseLength, "a message of %d octets is less than its header", n)
		}
		var msg []byte
		if wrong == nil {
			if msg, err = b.Peek(n); errors.Is(err, io.EOF) {
				wrong = malformed(CauseLength, "it ends %d octets into a message of %d", len(msg), n)
			} else if err != nil {
				return &StreamError{at, err}
			}
		}
		if wrong != nil {
			discard(len(head)+max(0, len(msg)-4), wrong)
			return &StreamError{at, wrong}
		}
		err = each(msg)
		var m *MalformedError
		switch {
		case errors.As(err, &m):
			if bad++; bad == maxMalformed {
				return &StreamError{at, fmt.Errorf("%d malformed messages, the last one: %w", bad, err)}
			}
		case err != nil:
			return err
		default:
			bad = 0
		}
		b.Discard(n)
		at += int64(n)
	}
}
