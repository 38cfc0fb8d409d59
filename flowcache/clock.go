package flowcache

import "time"

// began is read from both clocks: the wall clock and CLOCK_MONOTONIC.
var began = time.Now()

// Now is the time by which sources tell and the cache lives, in Unix nanoseconds: the wall clock's when the program began, and from there
// CLOCK_MONOTONIC, which nobody steps and which is the clock of bpf_ktime_get_ns too. Whoever tells times to others moves them to the
// wall clock last.
func Now() int64 { return At(time.Now()) }

// At is Now at the time t, which time.Now returned.
func At(t time.Time) int64 { return began.UnixNano() + int64(t.Sub(began)) }
