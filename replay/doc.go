// Package replay reads captures (pcap, pcapng) as a source: the packets' clock drives the same cache and exporters.
package replay
