// Package templates holds the registry of Information Elements as data (RFC 7012, RFC 5103, RFC 5610) and compiles Templates:
// lists of fields that are appended to a message with no look-up, no reflection and no allocation per record.
package templates
