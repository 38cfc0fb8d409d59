package replay

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// ngSection is the state of a section of a pcapng file.
type ngSection struct {
	interfaces []ngInterface
	last       int64 // time of the latest packet, for packets without one
}

// ngInterface is what an Interface Description Block says.
type ngInterface struct {
	link    uint16
	snaplen uint32
	units   uint64 // of a second, as timestamps count
	offset  int64  // seconds to add
}

// Block types of pcapng.
const (
	ngSectionHeader  = 0x0a0d0d0a
	ngInterfaceBlock = 1
	ngPacketBlock    = 2 // obsolete
	ngSimplePacket   = 3
	ngEnhancedPacket = 6

	ngOrder    = 0x1a2b3c4d
	ngTsResol  = 9  // option if_tsresol
	ngTsOffset = 14 // option if_tsoffset
	maxIfs     = 1 << 16
)

func (r *Reader) nextNg(p *Packet) error {
	for {
		b, err := r.peek(12)
		if err != nil {
			if len(b) == 0 {
				return err
			}
			return r.cut(err)
		}
		kind := r.u32(b)
		if kind == ngSectionHeader { // a palindrome: the same in both byte orders
			if err := r.section(b); err != nil {
				return err
			}
			continue
		}
		length := int64(r.u32(b[4:]))
		if length < 12 {
			return fmt.Errorf("a block after packet %d is %d octets long: the file is damaged", r.read, length)
		}
		length = (length + 3) &^ 3 // some writers do not count the padding
		switch kind {
		case ngInterfaceBlock, ngPacketBlock, ngSimplePacket, ngEnhancedPacket:
		default:
			if err := r.skip(length); err != nil {
				return r.cut(err)
			}
			continue
		}
		if length > maxBlock {
			return fmt.Errorf("a block after packet %d is %d octets long, more than any packet: the file is damaged", r.read, length)
		}
		b, err = r.peek(int(length))
		if err != nil {
			return r.cut(err)
		}
		body := b[8 : length-4]
		if kind == ngInterfaceBlock {
			err = r.interfaceBlock(body)
		} else {
			err = r.packetBlock(kind, body, p)
		}
		if err != nil {
			return err
		}
		r.at += int(length)
		if kind != ngInterfaceBlock {
			return nil
		}
	}
}

// section begins a section. Its interfaces are numbered anew, and its byte order may differ.
func (r *Reader) section(b []byte) error {
	switch uint32(ngOrder) {
	case binary.BigEndian.Uint32(b[8:]):
		r.little = false
	case binary.LittleEndian.Uint32(b[8:]):
		r.little = true
	default:
		return fmt.Errorf("the section after packet %d has no byte order: the file is damaged", r.read)
	}
	length := int64(r.u32(b[4:]))
	if length < 28 {
		return fmt.Errorf("the section header after packet %d is %d octets long: the file is damaged", r.read, length)
	}
	head, err := r.peek(16)
	if err != nil {
		return r.cut(err)
	}
	if major := r.u16(head[12:]); major != 1 {
		return fmt.Errorf("it is pcapng of version %d.%d, not 1", major, r.u16(head[14:]))
	}
	r.ng.interfaces = r.ng.interfaces[:0]
	if err := r.skip((length + 3) &^ 3); err != nil {
		return r.cut(err)
	}
	return nil
}

func (r *Reader) interfaceBlock(b []byte) error {
	if len(b) < 8 {
		return fmt.Errorf("an interface after packet %d has no link type: the file is damaged", r.read)
	}
	if len(r.ng.interfaces) == maxIfs {
		return fmt.Errorf("more than %d interfaces: the file is damaged", maxIfs)
	}
	i := ngInterface{link: r.u16(b), snaplen: r.u32(b[4:]), units: 1e6}
	for b = b[8:]; len(b) >= 4; {
		code, n := r.u16(b), int(r.u16(b[2:]))
		if b = b[4:]; code == 0 || n > len(b) {
			break
		}
		switch {
		case code == ngTsResol && n == 1:
			if i.units = resolution(b[0]); i.units == 0 {
				return fmt.Errorf("an interface after packet %d has timestamps of resolution %#x, which no clock has", r.read, b[0])
			}
		case code == ngTsOffset && n == 8:
			if r.little {
				i.offset = int64(binary.LittleEndian.Uint64(b))
			} else {
				i.offset = int64(binary.BigEndian.Uint64(b))
			}
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	r.ng.interfaces = append(r.ng.interfaces, i)
	return nil
}

// resolution returns the units of a second for if_tsresol: a negative power of ten, or of two where the highest bit is set. 0 for
// what does not fit into 64 bits.
func resolution(v byte) uint64 {
	if v&0x80 != 0 {
		if v &= 0x7f; v > 63 {
			return 0
		}
		return 1 << v
	}
	if v > 19 {
		return 0
	}
	units := uint64(1)
	for range v {
		units *= 10
	}
	return units
}

// time turns a timestamp into Unix nanoseconds; what 64 bits cannot hold becomes the latest they can.
func (i *ngInterface) time(stamp uint64) int64 {
	const most = 1 << 62
	sec, rest := stamp/i.units, stamp%i.units
	hi, lo := bits.Mul64(rest, 1e9)
	ns, _ := bits.Div64(hi, lo, i.units)
	if sec += uint64(i.offset); sec >= most/1_000_000_000 {
		if i.offset < 0 && int64(sec) < 0 {
			return 0
		}
		return most
	}
	return int64(sec*1e9 + ns)
}

func (r *Reader) packetBlock(kind uint32, b []byte, p *Packet) error {
	head, id := 20, uint32(0)
	if kind == ngSimplePacket {
		head = 4
	}
	if len(b) < head {
		return fmt.Errorf("packet %d has no header: the file is damaged", r.read+1)
	}
	switch kind {
	case ngEnhancedPacket:
		id = r.u32(b)
	case ngPacketBlock:
		id = uint32(r.u16(b))
	}
	if int64(id) >= int64(len(r.ng.interfaces)) {
		return fmt.Errorf("packet %d is of interface %d, and the capture describes %d: the file is damaged", r.read+1, id, len(r.ng.interfaces))
	}
	i := &r.ng.interfaces[id]
	p.Link = i.link
	p.Segment = 0
	if kind == ngSimplePacket {
		// No time, and no captured length but the interface's snapshot length.
		p.Time, p.Length = r.ng.last, int(r.u32(b))
		captured := min(p.Length, len(b)-head)
		if i.snaplen != 0 {
			captured = min(captured, int(i.snaplen))
		}
		p.Data = b[head : head+captured]
		return nil
	}
	captured := int64(r.u32(b[12:]))
	if captured > int64(len(b)-head) {
		return fmt.Errorf("packet %d has %d octets in a block of %d: the file is damaged", r.read+1, captured, len(b)+12)
	}
	p.Time = i.time(uint64(r.u32(b[4:]))<<32 | uint64(r.u32(b[8:])))
	r.ng.last = p.Time
	p.Length = int(r.u32(b[16:]))
	p.Data = b[head : head+int(captured)]
	return nil
}
