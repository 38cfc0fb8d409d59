package ipfix

import "sync/atomic"

// Stats counts what became of what was given to an Exporter. Two sums hold:
//
//	records offered = Encoded + Filtered + DroppedQueue + DroppedBig + Waiting
//	Made + Recovered = Records + DroppedSend + DroppedSpool + Backlog
type Stats struct {
	// Flow Records.
	Encoded      uint64 // went into messages
	Waiting      uint64 // in the queue
	Filtered     uint64 // not for this collector
	DroppedQueue uint64 // the collector was away or slow for longer than queue and spool hold
	DroppedBig   uint64 // fit into no message
	Cut          uint64 // strings were cut to fit

	// Data Records of flows: both directions of a uniflow, and no options data.
	Made         uint64 // put into messages
	Recovered    uint64 // found in the spool at the start
	Records      uint64 // sent: handed to the kernel, or, over streams, acknowledged by the collector's
	Resent       uint64 // over streams: sent again over another connection, because they had not been acknowledged, or perhaps not read
	DroppedSend  uint64 // in messages that could not be sent, or perhaps were not read by a stream collector that was reset, and were not kept
	DroppedSpool uint64 // the oldest in the spool, beyond its bound
	Backlog      uint64 // over streams: not acknowledged; in memory and on disk
	Spooled      uint64 // of Backlog, those on disk that wait to be sent

	SpoolOctets uint64 // on disk
	SpoolFailed bool   // the disk does not take messages
	Messages    uint64 // sent
	Octets      uint64 // sent
	Connects    uint64 // Transport Sessions
	Errors      uint64 // failed connects and sends
}

type counters struct {
	encoded, filtered, droppedQueue, droppedBig, cut             atomic.Uint64
	lostPackets, lostOctets                                      atomic.Uint64 // of records in droppedQueue
	made, records, droppedSend, messages, octets, connects, errs atomic.Uint64
}

// Stats returns the counts so far. Safe for concurrent use.
func (x *Exporter) Stats() Stats {
	st := Stats{
		Encoded: x.encoded.Load(), Waiting: uint64(max(0, x.waiting.Load())), Filtered: x.filtered.Load(),
		DroppedQueue: x.droppedQueue.Load(), DroppedBig: x.droppedBig.Load(), Cut: x.cut.Load(),
		Made: x.made.Load(), Records: x.records.Load(), DroppedSend: x.droppedSend.Load(),
		Messages: x.messages.Load(), Octets: x.octets.Load(), Connects: x.connects.Load(), Errors: x.errs.Load(),
	}
	if x.stream != nil {
		x.stream.backlog.stats(&st)
	}
	return st
}

func (b *backlog) stats(st *Stats) {
	b.mu.Lock()
	defer b.mu.Unlock()
	st.Made += b.made
	st.Recovered = b.recovered
	st.Records += b.sent
	st.Resent = b.resent
	st.DroppedSend += b.dropped
	st.Backlog = b.waiting
	st.SpoolFailed = b.failed != nil
	st.DroppedSpool = b.droppedSpool
	if b.disk != nil {
		st.DroppedSpool, st.Spooled, st.SpoolOctets = b.droppedSpool+b.disk.dropped, b.disk.unread, uint64(b.disk.size)
	}
}
