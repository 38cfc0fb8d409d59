package sockdiag

import (
	"fmt"

	"github.com/sockflow/sockflow/flowcache"
)

// Numbers of include/uapi/linux/{rtnetlink,if_link,if,net_namespace}.h.
const (
	netlinkRoute = 0

	rtmNewLink = 16
	rtmGetLink = 18
	rtmNewNSID = 88
	rtmGetNSID = 90

	ifinfomsgLen = 16 // struct ifinfomsg

	iflaIfname      = 3
	iflaMTU         = 4
	iflaLinkInfo    = 18
	iflaStats64     = 23
	iflaLinkNetNSID = 37
	iflaInfoKind    = 1

	iffUp      = 1 << 0
	iffLowerUp = 1 << 16 // carrier; IFF_RUNNING follows it by up to a second

	netnsaNSID = 1
	netnsaFD   = 3

	stats64Len = 8 * 8 // the part of struct rtnl_link_stats64 that is read
)

// link is what RTM_NEWLINK reports of an interface.
type link struct {
	flowcache.Interface
	nsid      int32 // stands for the namespace of the other end of a veth
	elsewhere bool  // nsid is set: the other end is in another namespace
}

// parse reads struct ifinfomsg and the attributes behind it.
func (l *link) parse(b []byte) error {
	if len(b) < ifinfomsgLen {
		return fmt.Errorf("ifinfomsg of %d octets: %w", len(b), errTruncated)
	}
	*l = link{}
	l.Type = ne.Uint16(b[2:])
	l.Index = ne.Uint32(b[4:])
	flags := ne.Uint32(b[8:])
	l.Up = flags&iffUp != 0 && flags&iffLowerUp != 0
	return attributes(b[ifinfomsgLen:], func(kind uint16, v []byte) error {
		switch kind {
		case iflaIfname:
			l.Name = cString(v)
		case iflaMTU:
			l.MTU = number(v)
		case iflaLinkNetNSID:
			l.nsid, l.elsewhere = int32(number(v)), len(v) >= 4
		case iflaLinkInfo:
			return attributes(v, func(kind uint16, v []byte) error {
				if kind == iflaInfoKind {
					l.Kind = cString(v)
				}
				return nil
			})
		case iflaStats64:
			if len(v) < stats64Len {
				return fmt.Errorf("rtnl_link_stats64 of %d octets: %w", len(v), errTruncated)
			}
			at := func(i int) uint64 { return ne.Uint64(v[8*i:]) }
			l.In = flowcache.InterfaceCounters{Packets: at(0), Octets: at(2), Errors: at(4), Drops: at(6)}
			l.Out = flowcache.InterfaceCounters{Packets: at(1), Octets: at(3), Errors: at(5), Drops: at(7)}
		}
		return nil
	})
}

func number(v []byte) uint32 {
	if len(v) < 4 {
		return 0
	}
	return ne.Uint32(v)
}

func cString(v []byte) string {
	for i, c := range v {
		if c == 0 {
			return string(v[:i])
		}
	}
	return string(v)
}
