// Package testkit holds what tests and benchmarks of several packages share.
package testkit

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Steps measures a series of calls that is made in several rounds. Of each call it keeps the shortest processor time of the calling thread: other work
// on the machine, and the garbage collector, do not delay the same call in each round. The caller must keep its goroutine on one thread
// (runtime.LockOSThread).
type Steps struct {
	least []time.Duration
	next  int
}

// Restart begins the next round.
func (s *Steps) Restart() { s.next = 0 }

// Do makes the next call of the round.
func (s *Steps) Do(call func()) {
	began := threadTime()
	call()
	took := threadTime() - began
	if s.next == len(s.least) {
		s.least = append(s.least, took)
	}
	s.least[s.next] = min(s.least[s.next], took)
	s.next++
}

// Longest returns the time of the longest of the calls.
func (s *Steps) Longest() time.Duration { return slices.Max(s.least) }

// threadTime returns the processor time of the thread (CLOCK_THREAD_CPUTIME_ID), 0 where there is no such clock.
func threadTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
