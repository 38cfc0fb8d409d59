package replay

import "encoding/binary"

// frameRelay reads Frame Relay, with the encapsulation of RFC 2427 or that of Cisco.
func frameRelay(b []byte) ([]byte, uint16, Fate) {
	n := 0
	for n < len(b) && n < 4 && b[n]&1 == 0 { // the address goes on
		n++
	}
	if n++; len(b) < n+2 {
		return nil, 0, Truncated
	}
	if b = b[n:]; b[0] != 3 {
		return tags(be16(b), b[2:])
	}
	if b = b[1:]; b[0] == 0 { // padding
		b = b[1:]
	}
	if len(b) == 0 {
		return nil, 0, Truncated
	}
	switch b[0] {
	case 0xcc:
		return b[1:], etherIPv4, Counted
	case 0x8e:
		return b[1:], etherIPv6, Counted
	case 0x80: // SNAP
		if len(b) < 6 {
			return nil, 0, Truncated
		}
		return tags(be16(b[4:]), b[6:])
	}
	return nil, 0, NotIP
}

// nflog reads what netfilter logged: attributes in the byte order of the host, which is little endian today.
func nflog(b []byte) ([]byte, uint16, Fate) {
	const payload = 9
	if len(b) < 4 {
		return nil, 0, Truncated
	}
	family := uint32(b[0])
	for b = b[4:]; len(b) >= 4; {
		n, kind := int(binary.LittleEndian.Uint16(b)), binary.LittleEndian.Uint16(b[2:])
		if n < 4 {
			return nil, 0, Malformed
		}
		if kind == payload {
			return families(family, b[4:min(n, len(b))])
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	return nil, 0, NotIP
}

// wlan reads a data frame of IEEE 802.11 that is not encrypted.
func wlan(b []byte) ([]byte, uint16, Fate) {
	if len(b) < 24 {
		return nil, 0, Truncated
	}
	if b[0]&0x0f != 8 || b[0]&0x40 != 0 || b[1]&0x40 != 0 { // not data, without data, protected
		return nil, 0, NotIP
	}
	n := 24
	if b[1]&3 == 3 {
		n += 6 // a fourth address
	}
	if b[0]&0x80 != 0 { // quality of service
		if len(b) >= n+2 && b[n]&0x80 != 0 {
			return nil, 0, NotIP // an aggregate
		}
		n += 2
		if b[1]&0x80 != 0 {
			n += 4
		}
	}
	if len(b) < n {
		return nil, 0, Truncated
	}
	return tags(etherLLC, b[n:])
}
