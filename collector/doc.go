// Package collector is the Collecting Process: it decodes IPFIX (RFC 7011, with biflows by RFC 5103, names by RFC 5610, structured data
// by RFC 6313 and files by RFC 5655) and NetFlow v9 (RFC 3954), v7, v5 and v1, and listens over UDP, TCP, TLS and DTLS.
//
// A Session decodes the messages of one Transport Session and needs no socket; a Collector owns sockets and their sessions. Whatever
// comes in, memory is bounded, every loss is counted with its cause, and no octets make either of them loop or panic.
package collector
