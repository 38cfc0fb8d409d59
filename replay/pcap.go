package replay

import (
	"encoding/binary"
	"fmt"
)

// pcapFile is what the header of a pcap file says.
type pcapFile struct {
	link   uint16
	header int   // octets of a packet's header
	scale  int64 // nanoseconds in a unit of the fraction of a second
}

// Magic numbers of pcap, in the byte order of the file.
const (
	pcapMicro    = 0xa1b2c3d4
	pcapNano     = 0xa1b23c4d
	pcapModified = 0xa1b2cd34 // Kuznetzov's: packet headers have eight more octets
)

// u16 and u32 read in the byte order of the file.
func (r *Reader) u16(b []byte) uint16 {
	if r.little {
		return binary.LittleEndian.Uint16(b)
	}
	return binary.BigEndian.Uint16(b)
}

func (r *Reader) u32(b []byte) uint32 {
	if r.little {
		return binary.LittleEndian.Uint32(b)
	}
	return binary.BigEndian.Uint32(b)
}

// pcapHeader reads the header of the file, which begins with magic as read big endian.
func (r *Reader) pcapHeader(magic uint32) error {
	for _, known := range []uint32{pcapMicro, pcapNano, pcapModified} {
		swapped := known<<24 | known>>24 | known<<8&0xff0000 | known>>8&0xff00
		if magic != known && magic != swapped {
			continue
		}
		r.little = magic == swapped
		r.pcap.header, r.pcap.scale = 16, 1000
		switch known {
		case pcapNano:
			r.pcap.scale = 1
		case pcapModified:
			r.pcap.header = 24
		}
		b, err := r.peek(24)
		if err != nil {
			return r.cut(err)
		}
		if major := r.u16(b[4:]); major != 2 {
			return fmt.Errorf("it is pcap of version %d.%d, not 2", major, r.u16(b[6:]))
		}
		// The upper half of the word is the length of the frame check sequence.
		r.pcap.link = uint16(r.u32(b[20:]))
		r.at += 24
		return nil
	}
	return errNoCapture
}

func (r *Reader) nextPcap(p *Packet) error {
	h := r.pcap.header
	b, err := r.peek(h)
	if err != nil {
		if len(b) == 0 {
			return err // the end, or the error of reading
		}
		return r.cut(err)
	}
	captured := int(r.u32(b[8:]))
	if captured > maxPacket {
		return fmt.Errorf("packet %d has %d octets, more than the %d of any capture: the file is damaged", r.read+1, captured, maxPacket)
	}
	p.Time = int64(r.u32(b))*1e9 + int64(r.u32(b[4:]))*r.pcap.scale
	p.Length = int(r.u32(b[12:]))
	p.Link = r.pcap.link
	p.Segment = 0
	b, err = r.peek(h + captured)
	if err != nil {
		return r.cut(err)
	}
	r.at += h + captured
	p.Data = b[h:]
	return nil
}
