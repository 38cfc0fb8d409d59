// Package values reads JSON values (RFC 8259) one after the other from a stream, each bounded in size: one that is too long is skipped and costs no
// memory, and those after it are read.
package values

import (
	"bufio"
	"errors"
	"io"
	"unicode/utf8"
)

// Reader reads values. It does not check more of them than where they end.
type Reader struct {
	r    *bufio.Reader
	most int
	buf  []byte
	read int // octets of the value under way
}

// ErrTooLong says that a value was longer than it may be. It was skipped, and what follows can be read.
var ErrTooLong = errors.New("a value is too long")

// ErrEndless says that a value was so long that it was not read to its end.
var ErrEndless = errors.New("a value does not end")

// ErrSyntax says that the stream is not JSON.
var ErrSyntax = errors.New("not JSON")

// endless is how many times as long as a value may be is still skipped.
const endless = 64

// NewReader returns a Reader of values of at most most octets.
func NewReader(r io.Reader, most int) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, 32<<10), most: most}
}

// Next returns the octets of the next value, which are valid until the next call. The error is io.EOF where the stream ends between values,
// io.ErrUnexpectedEOF in the middle of one, ErrTooLong (with the beginning of the value), ErrEndless, ErrSyntax, or the reader's.
func (r *Reader) Next() ([]byte, error) {
	c, err := r.Peek()
	if err != nil {
		return nil, err
	}
	if cap(r.buf) > 1<<20 { // of a value of rare size
		r.buf = nil
	}
	r.buf, r.read = r.buf[:0], 0
	switch c {
	case '{', '[':
		err = r.nested()
	case '"':
		err = r.text()
	case '}', ']', ',', ':':
		return nil, ErrSyntax
	default:
		err = r.word()
	}
	switch {
	case errors.Is(err, io.EOF):
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	case r.read > r.most:
		return r.buf, ErrTooLong
	}
	return r.buf, nil
}

// Peek returns the first octet of what comes next, blanks left out.
func (r *Reader) Peek() (byte, error) {
	for {
		c, err := r.r.ReadByte()
		if err != nil {
			return 0, err
		}
		if c != ' ' && c != '\n' && c != '\t' && c != '\r' {
			return c, r.r.UnreadByte()
		}
	}
}

// Skip passes over the octet c, blanks before it left out, and reports whether it was there.
func (r *Reader) Skip(c byte) (bool, error) {
	got, err := r.Peek()
	if err != nil || got != c {
		return false, err
	}
	_, err = r.r.ReadByte()
	return true, err
}

func (r *Reader) octet() (byte, error) {
	c, err := r.r.ReadByte()
	if err != nil {
		return 0, err
	}
	if r.read++; r.read <= r.most {
		r.buf = append(r.buf, c)
	} else if r.read > endless*r.most {
		return 0, ErrEndless
	}
	return c, nil
}

// nested reads an object or an array.
func (r *Reader) nested() error {
	for depth := 0; ; {
		c, err := r.octet()
		if err != nil {
			return err
		}
		switch c {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return nil
			}
		case '"':
			if err := r.rest(); err != nil {
				return err
			}
		}
	}
}

func (r *Reader) text() error {
	if _, err := r.octet(); err != nil {
		return err
	}
	return r.rest()
}

// rest reads a string from behind its first quotation mark.
func (r *Reader) rest() error {
	for {
		c, err := r.octet()
		if err != nil {
			return err
		}
		switch c {
		case '"':
			return nil
		case '\\':
			if _, err := r.octet(); err != nil {
				return err
			}
		}
	}
}

// word reads a number, true, false or null.
func (r *Reader) word() error {
	for {
		c, err := r.r.ReadByte()
		if errors.Is(err, io.EOF) && r.read > 0 {
			return nil
		}
		if err != nil {
			return err
		}
		letter := c == '-' || c == '+' || c == '.' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c == 'E'
		if !letter || c >= utf8.RuneSelf {
			if r.read == 0 {
				return ErrSyntax
			}
			return r.r.UnreadByte()
		}
		if err := r.r.UnreadByte(); err != nil {
			return err
		}
		if _, err := r.octet(); err != nil {
			return err
		}
	}
}

// Array calls each with every value of the array that comes next. Of one that is too long each gets the beginning, and ErrTooLong. null is an empty
// array.
func (r *Reader) Array(each func(value []byte, err error) error) error {
	if ok, err := r.Skip('['); err != nil {
		return unexpected(err)
	} else if !ok {
		b, err := r.Next()
		if err == nil && string(b) == "null" {
			return nil
		}
		return ErrSyntax
	}
	for first := true; ; first = false {
		if end, err := r.Skip(']'); err != nil {
			return unexpected(err)
		} else if end {
			return nil
		}
		if !first {
			if ok, err := r.Skip(','); err != nil {
				return unexpected(err)
			} else if !ok {
				return ErrSyntax
			}
		}
		b, err := r.Next()
		if err != nil && !errors.Is(err, ErrTooLong) {
			return unexpected(err)
		}
		if err := each(b, err); err != nil {
			return err
		}
	}
}

// Object calls member with the name of each member of the object that comes next; it must read the value.
func (r *Reader) Object(member func(name string) error) error {
	if ok, err := r.Skip('{'); err != nil {
		return unexpected(err)
	} else if !ok {
		return ErrSyntax
	}
	for first := true; ; first = false {
		if end, err := r.Skip('}'); err != nil {
			return unexpected(err)
		} else if end {
			return nil
		}
		if !first {
			if ok, err := r.Skip(','); err != nil {
				return unexpected(err)
			} else if !ok {
				return ErrSyntax
			}
		}
		if c, err := r.Peek(); err != nil {
			return unexpected(err)
		} else if c != '"' {
			return ErrSyntax
		}
		b, err := r.Next()
		if err != nil {
			return unexpected(err)
		}
		name := string(b[1 : len(b)-1])
		if ok, err := r.Skip(':'); err != nil {
			return unexpected(err)
		} else if !ok {
			return ErrSyntax
		}
		if err := member(name); err != nil {
			return err
		}
	}
}

// unexpected is the error of a stream that ends in the middle.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
