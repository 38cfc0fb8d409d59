package replay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Packet is a packet as it was captured.
type Packet struct {
	Time   int64  // Unix nanoseconds
	Link   uint16 // LINKTYPE_... of its first header
	Length int    // octets on the wire
	Data   []byte // what was captured of them; valid until the next packet is read
	// Segment is how much payload each packet of the wire has for which this one stands, as the kernel says of a live one
	// (segmentation offload); 0: it is one packet.
	Segment int
}

// Reader reads a capture. It belongs to one goroutine, and allocates nothing for a packet.
type Reader struct {
	in     io.Reader
	closer func()
	buf    []byte
	at     int // of what is not consumed yet
	end    int
	err    error // of in
	format format
	little bool // the byte order of the file, or of the section

	pcap pcapFile
	ng   ngSection
	read uint64 // packets
}

type format uint8

const (
	formatPcap format = iota
	formatNg
)

const (
	bufferLen = 1 << 20
	// maxPacket is what libpcap and Wireshark take at most of one packet (MAXIMUM_SNAPLEN).
	maxPacket = 256 << 10
	// maxBlock bounds a pcapng block that is read; blocks without packets may be longer, and are skipped.
	maxBlock = maxPacket + 64<<10
)

// errCut is wrapped by the error for a capture that ends in the middle of a packet: what came before it is good.
var errCut = errors.New("it is cut short")

// NewReader finds out which format in has. The error for what is no capture says so.
func NewReader(in io.Reader) (*Reader, error) {
	r := &Reader{in: in, buf: make([]byte, bufferLen), closer: func() {}}
	for range 3 { // a compressed file in a compressed file, at most
		magic, err := r.peek(4)
		if err != nil {
			if len(magic) == 0 && errors.Is(err, io.EOF) {
				return nil, errors.New("it is empty")
			}
			if !errors.Is(err, io.EOF) {
				return nil, err
			}
			return nil, errNoCapture
		}
		switch m := binary.BigEndian.Uint32(magic); {
		case m>>8 == 0x1f8b08:
			z, err := gzip.NewReader(r.rest())
			if err != nil {
				return nil, fmt.Errorf("read gzip: %w", err)
			}
			r.stack(z, func() { z.Close() })
		case m == 0x28b52ffd:
			z, err := zstd.NewReader(r.rest(), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
			if err != nil {
				return nil, fmt.Errorf("read zstd: %w", err)
			}
			r.stack(z, z.Close)
		case m == ngSectionHeader:
			r.format = formatNg
			return r, nil
		default:
			r.format = formatPcap
			return r, r.pcapHeader(m)
		}
	}
	return nil, errNoCapture
}

var errNoCapture = errors.New("it is neither pcap nor pcapng, nor one of them in gzip or zstd")

// rest is what is buffered and what follows.
func (r *Reader) rest() io.Reader {
	return io.MultiReader(bytes.NewReader(r.buf[r.at:r.end]), r.in)
}

// stack puts a decompressor between.
func (r *Reader) stack(z io.Reader, done func()) {
	r.in, r.closer = z, done
	r.buf = make([]byte, bufferLen) // the old one feeds the decompressor
	r.at, r.end, r.err = 0, 0, nil
}

// Close lets go of what decompression took.
func (r *Reader) Close() { r.closer() }

// peek returns the next n octets (at most the buffer's length) without consuming them; fewer with the error that ended the input.
func (r *Reader) peek(n int) ([]byte, error) {
	if r.end-r.at >= n {
		return r.buf[r.at : r.at+n], nil
	}
	if r.at > 0 {
		r.end = copy(r.buf, r.buf[r.at:r.end])
		r.at = 0
	}
	for empty := 0; r.end < n && r.err == nil; {
		var k int
		k, r.err = r.in.Read(r.buf[r.end:])
		r.end += k
		if k > 0 {
			empty = 0
		} else if empty++; empty > 100 && r.err == nil {
			r.err = io.ErrNoProgress
		}
	}
	if r.end < n {
		return r.buf[:r.end], r.err
	}
	return r.buf[:n], nil
}

// skip consumes n octets, however many.
func (r *Reader) skip(n int64) error {
	for n > 0 {
		step := min(n, int64(len(r.buf)))
		b, err := r.peek(int(min(step, int64(max(r.end-r.at, 1)))))
		if err != nil {
			return err
		}
		r.at += len(b)
		n -= int64(len(b))
	}
	return nil
}

// Next reads a packet into p. It returns io.EOF at the end, and an error that wraps errCut where the capture ends within a packet.
func (r *Reader) Next(p *Packet) error {
	var err error
	if r.format == formatPcap {
		err = r.nextPcap(p)
	} else {
		err = r.nextNg(p)
	}
	if err == nil {
		r.read++
	}
	return err
}

// cut is the error for an input that ended where it must not.
func (r *Reader) cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w in packet %d", errCut, r.read+1)
	}
	return fmt.Errorf("read packet %d: %w", r.read+1, err)
}
