package replay

import (
	"fmt"
	"strings"
)

// Links counts packets by their link type. The last place counts those for which there is no place of their own.
type Links [17]struct {
	Link    uint16
	Packets uint64
}

func (l *Links) add(link uint16) {
	last := len(l) - 1
	for i := range l[:last] {
		if p := &l[i]; p.Packets == 0 || p.Link == link {
			p.Link = link
			p.Packets++
			return
		}
	}
	l[last].Packets++
}

// String lists the link types by number and name, with their packets.
func (l *Links) String() string {
	var all []string
	for i := range l {
		switch p := &l[i]; {
		case p.Packets == 0:
		case i == len(l)-1:
			all = append(all, fmt.Sprintf("others: %d", p.Packets))
		default:
			all = append(all, fmt.Sprintf("%s: %d", LinkName(p.Link), p.Packets))
		}
	}
	return strings.Join(all, ", ")
}

// LinkName is the number of a link type, and its name (www.tcpdump.org/linktypes.html, without LINKTYPE_) if it is one
// that captures are found with.
func LinkName(link uint16) string {
	if 147 <= link && link <= 162 {
		return fmt.Sprintf("%d USER%d", link, link-147)
	}
	if name := linkNames[link]; name != "" {
		return fmt.Sprintf("%d %s", link, name)
	}
	return fmt.Sprint(link)
}

var linkNames = map[uint16]string{
	3: "AX25", 6: "IEEE802_5", 7: "ARCNET_BSD", 8: "SLIP", 99: "SYMANTEC_FIREWALL", 119: "IEEE802_11_PRISM", 122: "IP_OVER_FC", 123: "SUNATM", 129: "ARCNET_LINUX",
	138: "APPLE_IP_OVER_IEEE1394", 139: "MTP2_WITH_PHDR", 140: "MTP2", 141: "MTP3", 142: "SCCP", 143: "DOCSIS", 144: "LINUX_IRDA", 163: "IEEE802_11_AVS",
	165: "BACNET_MS_TP", 169: "GPRS_LLC", 177: "LINUX_LAPD", 187: "BLUETOOTH_HCI_H4", 189: "USB_LINUX", 195: "IEEE802_15_4_WITHFCS", 197: "ERF",
	199: "IPMB_KONTRON", 201: "BLUETOOTH_HCI_H4_WITH_PHDR", 203: "LAPD", 209: "IPMB_LINUX", 210: "FLEXRAY", 212: "LIN", 215: "IEEE802_15_4_NONASK_PHY",
	220: "USB_LINUX_MMAPPED", 224: "FC_2", 227: "CAN_SOCKETCAN", 230: "IEEE802_15_4_NOFCS", 231: "DBUS", 240: "NETANALYZER", 243: "MPEG_2_TS", 245: "NFC_LLCP",
	248: "SCTP", 249: "USBPCAP", 250: "RTAC_SERIAL", 251: "BLUETOOTH_LE_LL", 252: "WIRESHARK_UPPER_PDU", 253: "NETLINK", 254: "BLUETOOTH_LINUX_MONITOR",
	256: "BLUETOOTH_LE_LL_WITH_PHDR", 264: "ISO_14443", 265: "RDS", 266: "USB_DARWIN", 270: "LORATAP", 271: "VSOCK", 272: "NORDIC_BLE", 273: "DOCSIS31_XRA31",
	274: "ETHERNET_MPACKET", 275: "DISPLAYPORT_AUX", 280: "ELEE", 283: "IEEE802_15_4_TAP", 288: "USB_2_0", 292: "ETW", 293: "NETANALYZER_NG", 294: "ZBOSS_NCP",
}
