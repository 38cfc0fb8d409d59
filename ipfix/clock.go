package ipfix

import "time"

// UseRecordTimes makes messages carry the time of the latest record so far, and not that of the day: for flows of a capture, which may be years old.
// NetFlow v9 could not tell their times otherwise, since its clock counts 49 days at most. begin is the time before the
// first record. It is called before Run.
func (x *Exporter) UseRecordTimes(begin time.Time) {
	x.enc.recordTimes, x.enc.latest, x.keepTimes = true, begin.UnixNano(), true
}
