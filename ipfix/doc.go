// Package ipfix is the Exporting Process (RFC 7011, RFC 5103, RFC 5610; NetFlow v9 by RFC 3954): one Exporter per collector owns its encoder,
// sequence, template state and socket.
package ipfix
