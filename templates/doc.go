// Package templates holds the registry of Information Elements as data (RFC 7012, RFC 5610) and compiles Templates into append functions.
package templates
