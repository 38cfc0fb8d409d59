package replay

import "encoding/binary"

// Link types (www.tcpdump.org/linktypes.html) that are read.
const (
	LinkNull       = 0 // BSD loopback: address family in the byte order of the host
	LinkEthernet   = 1
	LinkFDDI       = 10
	linkRawBSD     = 12
	linkRawOpen    = 14
	LinkPPP        = 9
	LinkPPPHDLC    = 50
	LinkPPPoE      = 51
	LinkATM        = 100 // RFC 2684 LLC
	LinkRaw        = 101
	LinkCiscoHD    = 104
	LinkWLAN       = 105
	LinkFrameRelay = 107
	LinkLoop       = 108 // OpenBSD loopback: address family in network byte order
	LinkENC        = 109 // OpenBSD IPsec
	LinkSLL        = 113 // Linux cooked
	LinkPFLog      = 117
	LinkRadiotap   = 127
	LinkPPPD       = 166
	LinkPPI        = 192 // per-packet information, which names the link type of the frame
	LinkPPPDir     = 204
	LinkIPNet      = 226 // Solaris
	LinkIPv4       = 228
	LinkIPv6       = 229
	LinkNFLog      = 239
	LinkIPoIB      = 242
	LinkPKTAP      = 258 // of Darwin, which names the link type too
	LinkSLL2       = 276
)

// Ethertypes, and what stands for one where there is none.
const (
	etherIPv4    = 0x0800
	etherIPv6    = 0x86dd
	etherBridged = 0x6558 // an Ethernet frame (RFC 1701)
	etherPPP     = 0x880b
	etherLLC     = 4 // of Linux cooked captures; any value below 1536 is a length
	etherLengths = 1536
)

// maxTags bounds the headers between a link and its IP packet, and tunnels within tunnels.
const maxTags = 16

// be16 and be32 read network byte order.
func be16(b []byte) uint16 { return binary.BigEndian.Uint16(b) }
func be32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }

// network skips the link layer of a packet. It returns the IP packet and the Ethertype, etherIPv4 or etherIPv6; ok is false for what
// is no IP, or is cut before it, and fate says which. Of UnknownLink ether is the link type.
func network(link uint16, b []byte) (ip []byte, ether uint16, fate Fate) {
	if link == LinkEthernet { // nearly all
		if len(b) < 14 {
			return nil, 0, Truncated
		}
		ether = be16(b[12:])
		b = b[14:]
		if ether == etherIPv4 || ether == etherIPv6 {
			return b, ether, Counted
		}
		return tags(ether, b)
	}
	need := func(n int) bool { return len(b) >= n }
	switch link {
	case LinkNull, LinkLoop, LinkENC:
		if !need(4) {
			return nil, 0, Truncated
		}
		family := be32(b)
		if family > 0xffff { // the other byte order; an address family is small
			family = binary.LittleEndian.Uint32(b)
		}
		if link == LinkENC {
			if b = b[min(len(b), 8):]; !need(4) {
				return nil, 0, Truncated
			}
		}
		return families(family, b[4:])
	case linkRawBSD, linkRawOpen, LinkRaw:
		return byVersion(b)
	case LinkIPv4:
		return b, etherIPv4, Counted
	case LinkIPv6:
		return b, etherIPv6, Counted
	case LinkSLL:
		if !need(16) {
			return nil, 0, Truncated
		}
		return tags(be16(b[14:]), b[16:])
	case LinkSLL2:
		if !need(20) {
			return nil, 0, Truncated
		}
		return tags(be16(b), b[20:])
	case LinkPPP, LinkPPPHDLC, LinkPPPD:
		return ppp(b)
	case LinkPPPDir:
		if !need(1) {
			return nil, 0, Truncated
		}
		return ppp(b[1:])
	case LinkPPPoE:
		return tags(0x8864, b)
	case LinkCiscoHD:
		if !need(4) {
			return nil, 0, Truncated
		}
		return tags(be16(b[2:]), b[4:])
	case LinkATM:
		return tags(etherLLC, b)
	case LinkFDDI:
		if !need(13) {
			return nil, 0, Truncated
		}
		return tags(etherLLC, b[13:])
	case LinkPFLog:
		if !need(4) {
			return nil, 0, Truncated
		}
		n := (int(b[0]) + 3) &^ 3
		if !need(n) {
			return nil, 0, Truncated
		}
		return families(uint32(b[1]), b[n:])
	case LinkFrameRelay:
		return frameRelay(b)
	case LinkIPNet:
		if !need(24) {
			return nil, 0, Truncated
		}
		return byVersion(b[24:])
	case LinkIPoIB:
		if !need(44) {
			return nil, 0, Truncated
		}
		return tags(be16(b[40:]), b[44:])
	case LinkNFLog:
		return nflog(b)
	case LinkRadiotap:
		if !need(4) {
			return nil, 0, Truncated
		}
		n := int(binary.LittleEndian.Uint16(b[2:]))
		if n < 8 || !need(n) {
			return nil, 0, Truncated
		}
		return wlan(b[n:])
	case LinkWLAN:
		return wlan(b)
	case LinkPPI, LinkPKTAP:
		return wrapped(link, b)
	}
	return nil, link, UnknownLink
}

// wrapped reads a header that names the link type of what follows: that of PPI (version, flags, length of 16 bits, link
// type), or of PKTAP (length, type of record, link type). Both are little endian.
func wrapped(link uint16, b []byte) ([]byte, uint16, Fate) {
	need := 8
	if link == LinkPKTAP {
		need = 12
	}
	if len(b) < need {
		return nil, 0, Truncated
	}
	n, inner := int(binary.LittleEndian.Uint16(b[2:])), binary.LittleEndian.Uint32(b[4:])
	if link == LinkPKTAP {
		n, inner = int(min(binary.LittleEndian.Uint32(b), 1<<16)), binary.LittleEndian.Uint32(b[8:])
		if binary.LittleEndian.Uint32(b[4:]) != 1 {
			return nil, 0, NotIP // no packet
		}
	}
	switch {
	case n < need:
		return nil, 0, Malformed
	case len(b) < n:
		return nil, 0, Truncated
	case inner > 0xffff || inner == LinkPPI || inner == LinkPKTAP:
		return nil, link, UnknownLink
	}
	return network(uint16(inner), b[n:])
}

// families returns the EtherType of IP for an address family: AF_INET is 2 everywhere, AF_INET6 differs.
func families(family uint32, b []byte) ([]byte, uint16, Fate) {
	switch family {
	case 2:
		return b, etherIPv4, Counted
	case 10, 24, 28, 30: // Linux, NetBSD and OpenBSD, FreeBSD, Darwin
		return b, etherIPv6, Counted
	}
	return nil, 0, NotIP
}

func byVersion(b []byte) ([]byte, uint16, Fate) {
	if len(b) == 0 {
		return nil, 0, Truncated
	}
	switch b[0] >> 4 {
	case 4:
		return b, etherIPv4, Counted
	case 6:
		return b, etherIPv6, Counted
	}
	return nil, 0, NotIP
}

// tags skips what may stand between an Ethertype and IP: VLAN tags (802.1Q, 802.1ad), MPLS labels, PPPoE, LLC and SNAP, bridged frames.
func tags(ether uint16, b []byte) ([]byte, uint16, Fate) {
	for range maxTags {
		n := 0 // octets of this header, the last two of which are the next Ethertype
		switch ether {
		case etherIPv4, etherIPv6:
			return b, ether, Counted
		case 0x8100, 0x88a8, 0x9100, 0x9200, 0x9300: // VLAN
			n = 4
		case 0x8926: // VN-Tag
			n = 6
		case 0x893f: // E-Tag, 802.1BR
			n = 8
		case 0x8909: // Cisco MetaData
			n = 8
		case etherBridged, 0x88e7: // 802.1ah: a service tag before the frame
			if ether == 0x88e7 {
				b = b[min(len(b), 4):]
			}
			n = 14
		case 0x8903: // Cisco FabricPath
			b, n = b[min(len(b), 2):], 14
		case 0x88e5: // MACsec (802.1AE), where it is not encrypted
			if len(b) < 6 {
				return nil, 0, Truncated
			}
			if b[0]&0x0c != 0 {
				return nil, 0, NotIP
			}
			if n = 8; b[0]&0x20 != 0 {
				n += 8
			}
		case 0x894f: // service chains (RFC 8300)
			if len(b) < 4 {
				return nil, 0, Truncated
			}
			n := int(b[1]&0x3f) * 4
			if n < 8 || len(b) < n {
				return nil, 0, Truncated
			}
			switch next := b[3]; next {
			case 1:
				ether = etherIPv4
			case 2:
				ether = etherIPv6
			case 3:
				ether = etherBridged
			default:
				return nil, 0, NotIP
			}
			b = b[n:]
			continue
		case 0x8847, 0x8848:
			var fate Fate
			if b, ether, fate = mpls(b); fate != Counted {
				return nil, 0, fate
			}
			continue
		case 0x8864: // PPPoE session (RFC 2516, section 4)
			if len(b) < 6 {
				return nil, 0, Truncated
			}
			return ppp(b[6:])
		case etherPPP:
			return ppp(b)
		default:
			if ether >= etherLengths {
				return nil, 0, NotIP
			}
			if len(b) < 3 {
				return nil, 0, Truncated
			}
			switch {
			case b[0] == 0x06 && b[1] == 0x06: // the service access point of IP
				return b[3:], etherIPv4, Counted
			case b[0]&0xfe != 0xaa || b[1]&0xfe != 0xaa || b[2] != 3:
				return nil, 0, NotIP
			}
			if len(b) < 8 {
				return nil, 0, Truncated
			}
			// SNAP (RFC 1042), or with 0000f8 a bridge's (802.1H).
			if oui := be32(b[2:]) & 0xffffff; oui != 0 && oui != 0xf8 {
				return nil, 0, NotIP
			}
			n = 8
		}
		if len(b) < n {
			return nil, 0, Truncated
		}
		ether = be16(b[n-2:])
		b = b[n:]
	}
	return nil, 0, Malformed
}

// mpls skips the label stack (RFC 3032). What follows has no type: an IP packet shows its version, and a zero nibble begins the
// control word of a bridged frame (RFC 4385).
func mpls(b []byte) ([]byte, uint16, Fate) {
	for range maxTags {
		if len(b) < 4 {
			return nil, 0, Truncated
		}
		bottom := b[2]&1 != 0
		b = b[4:]
		if !bottom {
			continue
		}
		if len(b) == 0 || b[0]>>4 != 0 {
			return byVersion(b)
		}
		if len(b) < 4 {
			return nil, 0, Truncated
		}
		return b[4:], etherBridged, Counted
	}
	return nil, 0, Malformed
}

// ppp reads PPP (RFC 1661), with or without HDLC-like framing (RFC 1662) and the compression of its fields.
func ppp(b []byte) ([]byte, uint16, Fate) {
	if len(b) >= 2 && b[0] == 0xff && b[1] == 3 || len(b) >= 2 && b[0] == 0x0f && b[1] == 0 {
		if b[0] == 0x0f { // Cisco HDLC
			if len(b) < 4 {
				return nil, 0, Truncated
			}
			return tags(be16(b[2:]), b[4:])
		}
		b = b[2:]
	}
	if len(b) < 1 {
		return nil, 0, Truncated
	}
	protocol, n := uint16(b[0]), 1
	if protocol&1 == 0 { // two octets; an odd first one is the whole number
		if len(b) < 2 {
			return nil, 0, Truncated
		}
		protocol, n = be16(b), 2
	}
	switch b = b[n:]; protocol {
	case 0x21:
		return b, etherIPv4, Counted
	case 0x57:
		return b, etherIPv6, Counted
	case 0x281, 0x283:
		ip, ether, fate := mpls(b)
		if fate != Counted {
			return nil, 0, fate
		}
		return tags(ether, ip)
	}
	return nil, 0, NotIP
}
