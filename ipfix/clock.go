package ipfix

import (
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

// UseRecordTimes makes messages carry the time of the latest record so far, and not that of the day: for flows of a capture, which may be years old.
// NetFlow v9 could not represent their times otherwise: its clock counts at most 49 days. begin is the time before the
// first record. It must be called before Run.
func (x *Exporter) UseRecordTimes(begin time.Time) {
	x.enc.recordTimes, x.enc.latest, x.keepTimes = true, begin.UnixNano(), true
}

// sysUptime counts 49.7 days of milliseconds (RFC 3954, section 5.1). Before it wraps, the time of boot is moved on, or
// a flow around that moment would start after it ends.
const (
	maxUptime  = 40 * 24 * int64(time.Hour)
	uptimeStep = 20 * 24 * int64(time.Hour) // longer than a record
)

// keepUptime moves the time of boot on where sysUptime at the record's end would be more than maxUptime. The message
// under way goes out by the old one.
func (e *Encoder) keepUptime(r *flowcache.Record, now time.Time) error {
	steps := (r.End - e.zero - maxUptime + uptimeStep - 1) / uptimeStep
	if steps <= 0 {
		return nil
	}
	err := e.Flush(now)
	e.shift += steps * uptimeStep
	e.zero += steps * uptimeStep
	e.set.SetUptime(e.zero)
	return err
}
