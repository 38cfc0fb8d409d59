package flowcache

import "time"

// began is read from both clocks: the wall clock and CLOCK_MONOTONIC.
var began = time.Now()

// Now returns Unix nanoseconds: the wall time at the start of the program plus CLOCK_MONOTONIC since, which no step of
// the wall clock changes. bpf_ktime_get_ns reads the same clock. Sources and the cache use this time; exporters correct
// times to the wall clock last.
func Now() int64 { return At(time.Now()) }

// At is Now at the time t, which time.Now returned.
func At(t time.Time) int64 { return began.UnixNano() + int64(t.Sub(began)) }
