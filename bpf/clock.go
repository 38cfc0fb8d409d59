package bpf

import (
	"math"

	"golang.org/x/sys/unix"

	"github.com/sockflow/sockflow/flowcache"
)

// clock turns the kernel's times into those of flowcache.Now, once, here at the source. It is how far they are apart, in nanoseconds,
// which never changes.
type clock int64

func newClock() (c clock) {
	var before, after unix.Timespec
	least := int64(math.MaxInt64)
	for range 8 { // the quickest reading is the closest
		unix.ClockGettime(unix.CLOCK_MONOTONIC, &before) // cannot fail with a valid clock
		now := flowcache.Now()
		unix.ClockGettime(unix.CLOCK_MONOTONIC, &after)
		if took := after.Nano() - before.Nano(); took < least {
			c, least = clock(now-before.Nano()), took
		}
	}
	return c
}

// time returns the time of a bpf_ktime_get_ns.
func (c clock) time(ns uint64) int64 { return int64(ns) + int64(c) }
