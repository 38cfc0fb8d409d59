// Package replay meters packets: of captures (pcap, pcapng, plain or compressed) and of a live interface (AF_PACKET). A Meter decodes
// them, keeps their flows on the packets' own clock and gives out flow records, the same ones every time it sees the same packets.
//
// What follows a record (names, templates, transports) is the same as for sockets. The cache is not: a packet must find its flow
// in tens of nanoseconds and a flow must fit into three cache lines, where flowcache keeps the reports of sockets.
//
// Formats: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng. Flow Keys: RFC 5470; protocol numbers of IPv6 as RFC 8200 chains them.
package replay
