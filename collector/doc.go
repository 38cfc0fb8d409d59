// Package collector is the Collecting Process: the decoder of IPFIX and NetFlow v9 messages that the embedded collector and the
// test harness use.
package collector
