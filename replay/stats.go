package replay

// Fate is what became of a packet.
type Fate uint8

// Fates. Every packet has exactly one.
const (
	Counted     Fate = iota // in a flow
	NotIP                   // ARP, a spanning tree's, ...
	Truncated               // cut before the end of its IP header: nobody knows whose it is
	Malformed               // its IP header contradicts itself
	UnknownLink             // of a link type that is not read
	fates
)

func (f Fate) String() string {
	return [...]string{"counted", "not_ip", "truncated", "malformed", "unknown_link"}[f]
}

// Stats counts what a Meter did. Packets is the sum of Fates.
type Stats struct {
	Packets   uint64
	Fates     [fates]uint64
	Octets    uint64 // IP octets of counted packets
	Created   uint64 // flows
	Live      int    // flows in the table
	Records   [6]uint64
	Orphans   uint64 // fragments whose first was not seen: they count without ports
	Gaps      uint64 // gaps of TCP sequences for which there was no room: what fills one later counts as a retransmission
	First     int64  // time of the first packet; 0 if there was none
	Clock     int64  // the latest time of any packet
	Unread    Links  // packets of UnknownLink
	Datagrams uint64 // fragmented datagrams whose ports were remembered
}
