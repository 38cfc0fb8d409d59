// Package ipfix is the Exporting Process: IPFIX over UDP and TCP (RFC 7011, biflows by RFC 5103, type records by RFC 5610) and NetFlow
// v9 over UDP (RFC 3954). One Exporter per collector owns its encoder, sequence, template state and socket.
package ipfix
