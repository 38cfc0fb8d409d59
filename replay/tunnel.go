package replay

// Ports of tunnels over UDP.
const (
	portVXLAN  = 4789
	portVXLAN0 = 8472 // Linux's own, older than the assignment
	portGeneve = 6081
)

// tunnel returns the packet that a tunnel carries (nil if it is none), the Ethertype that says what it is, and how long the headers before it are. b is
// what was captured above IP.
func tunnel(b []byte, proto uint8, p *packet) (in []byte, ether uint16, headers int) {
	switch proto {
	case protoIPIP:
		return b, etherIPv4, 0
	case protoIPv6:
		return b, etherIPv6, 0
	case protoGRE:
		return gre(b)
	case protoUDP:
		if len(b) < 16 {
			return nil, 0, 0
		}
		switch be16(b[2:]) {
		case portVXLAN, portVXLAN0: // RFC 7348, section 5
			if b[8]&0x08 == 0 {
				return nil, 0, 0
			}
			return b[16:], etherBridged, 16
		case portGeneve: // RFC 8926, section 3.4
			n := 16 + int(b[8]&0x3f)*4
			if b[8]>>6 != 0 || len(b) < n {
				return nil, 0, 0
			}
			return b[n:], be16(b[10:]), n
		}
	}
	return nil, 0, 0
}

// gre reads GRE (RFC 2784, RFC 2890), that of PPTP (RFC 2637), ERSPAN, WCCP and Cisco metadata.
func gre(b []byte) ([]byte, uint16, int) {
	if len(b) < 4 {
		return nil, 0, 0
	}
	ether, n := be16(b[2:]), 4
	if b[0]&0xc0 != 0 { // checksum, or routing
		n += 4
	}
	if b[0]&0x40 != 0 {
		return nil, 0, 0 // source routes: nobody uses them (RFC 2784 took them out)
	}
	if b[0]&0x20 != 0 { // key
		n += 4
	}
	sequence := b[0]&0x10 != 0
	if sequence {
		n += 4
	}
	if b[1]&7 == 1 && b[1]&0x80 != 0 { // version 1 has an acknowledgment
		n += 4
	}
	switch ether {
	case 0x8909: // Cisco metadata; here its Ethertype comes first (draft-smith-kandula-sxp, section 6)
		if len(b) < n+8 {
			return nil, 0, 0
		}
		ether = be16(b[n:])
		n += 8
	case 0x883e: // WCCP: IPv4, after a redirect header in version 2
		if ether = etherIPv4; len(b) > n && b[n]>>4 != 4 {
			n += 4
		}
	case 0x88be: // ERSPAN; without a sequence number it is type I, which has no header
		ether = etherBridged
		if sequence {
			n += 8
		}
	case 0x22eb: // ERSPAN type III
		if ether = etherBridged; len(b) >= n+12 && b[n+11]&1 != 0 {
			n += 8 // a subheader
		}
		n += 12
	}
	if len(b) < n {
		return nil, 0, 0
	}
	return b[n:], ether, n
}

// nested decodes what a tunnel carries; wire is its length with its link header.
func (d *decoder) nested(b []byte, ether uint16, wire int, p *packet, depth int) (Fate, bool) {
	ip, ether, fate := tags(ether, b)
	if fate != Counted {
		return fate, false
	}
	return d.ipAt(ip, ether, wire-(len(b)-len(ip)), p, depth)
}
