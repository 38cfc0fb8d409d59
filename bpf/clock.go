package bpf

import (
	"time"

	"golang.org/x/sys/unix"
)

// clock turns the kernel's clocks into Unix time, once, here at the source.
type clock struct {
	monotonic int64 // CLOCK_REALTIME - CLOCK_MONOTONIC, ns
	boottime  int64 // CLOCK_REALTIME - CLOCK_BOOTTIME, ns
}

// set reads the clocks again: wall clocks are stepped.
func (c *clock) set() {
	var mono, boot unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono) // cannot fail with a valid clock
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot)
	now := time.Now().UnixNano()
	c.monotonic = now - mono.Nano()
	c.boottime = now - boot.Nano()
}

func (c *clock) wall(ns uint64) int64 { return int64(ns) + c.monotonic }
func (c *clock) boot(ns uint64) int64 { return int64(ns) + c.boottime }
