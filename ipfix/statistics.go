package ipfix

import (
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

// SetMetering sets f as the source of the Metering Process's counts for options records. It must be called before Run,
// which calls f.
func (x *Exporter) SetMetering(f func() Metering) { x.metering = f }

// refresh resends, over UDP and DTLS, the templates and options records that a collector may have lost. They are
// written to a file once. The counts of a file are written when it begins, and its clock is another one
// (Config.complete).
func (x *Exporter) refresh(now time.Time) error {
	if x.conf().Network == "file" {
		return nil
	}
	return x.enc.Templates(now)
}

// facts are the counts for options records.
func (x *Exporter) facts() Facts {
	st := x.Stats()
	f := Facts{
		Messages: st.Messages, Octets: st.Octets, Flows: st.Records,
		NotSentFlows:   st.DroppedQueue + st.DroppedSend + st.DroppedSpool + st.DroppedBig,
		NotSentPackets: x.lostPackets.Load(), NotSentOctets: x.lostOctets.Load(),
	}
	if x.metering != nil {
		f.Metering = x.metering()
	}
	return f
}

// dropQueued counts records that were queued, or should have been, and releases them.
func (x *Exporter) dropQueued(r *flowcache.Records) {
	var packets, octets uint64
	for i := range r.List {
		f, v := &r.List[i].Forward, &r.List[i].Reverse
		packets += f.Packets + v.Packets
		octets += f.Octets + v.Octets
	}
	x.lostPackets.Add(packets)
	x.lostOctets.Add(octets)
	x.waiting.Add(-int64(len(r.List)))
	x.droppedQueue.Add(uint64(len(r.List)))
	r.Release()
}
