package main

import (
	"math/bits"
	"time"
)

// late is how late the cache loop is: it does one thing after the other, and what comes meanwhile waits for as long as that takes. It is known of the last
// one to two minutes, for what comes at any moment: a step of one second is a second of moments, and not one step of many. The zero value is ready.
type late struct {
	now, before lateWindow
}

// lateWindow are the steps of a time, by how long they took.
type lateWindow struct {
	began   time.Time
	steps   [lateClasses]uint32
	busy    [lateClasses]time.Duration
	longest time.Duration
}

const (
	lateTime    = time.Minute // of a window
	lateClasses = 96          // four for each doubling: of microseconds, up to 16 s
)

// lateClass is the class of a step that took d.
func lateClass(d time.Duration) int {
	µs := uint64(max(d.Microseconds(), 0))
	if µs < 4 {
		return int(µs)
	}
	n := bits.Len64(µs)
	return min(4*(n-2)+int(µs>>(n-3)&3), lateClasses-1)
}

// lateFrom is the shortest time of a class.
func lateFrom(class int) time.Duration {
	if class < 4 {
		return time.Duration(class) * time.Microsecond
	}
	return time.Duration(4+class%4) << (class/4 - 1) * time.Microsecond
}

// add notes a step.
func (l *late) add(began, ended time.Time) {
	if l.now.began.IsZero() {
		l.now.began = began
	}
	if ended.Sub(l.now.began) > lateTime {
		l.before, l.now = l.now, lateWindow{began: began}
	}
	d := ended.Sub(began)
	c := lateClass(d)
	l.now.steps[c]++
	l.now.busy[c] += d
	l.now.longest = max(l.now.longest, d)
}

// longest is the longest step.
func (l *late) longest() time.Duration { return max(l.now.longest, l.before.longest) }

// quantile is the time that what comes at any moment until now waits no longer for, but for 1-q of the moments.
func (l *late) quantile(q float64, now time.Time) time.Duration {
	since := l.before.began
	if since.IsZero() {
		since = l.now.began
	}
	if since.IsZero() {
		return 0
	}
	beyond := time.Duration((1 - q) * float64(now.Sub(since)))
	// What comes in a step of d waits for more than x with d-x of its moments.
	steps, busy := time.Duration(0), time.Duration(0)
	upper := l.longest()
	for c := lateClasses - 1; c >= 0; c-- {
		steps += time.Duration(l.now.steps[c]) + time.Duration(l.before.steps[c])
		busy += l.now.busy[c] + l.before.busy[c]
		if from := lateFrom(c); steps > 0 {
			if busy-steps*from > beyond {
				return min(max((busy-beyond)/steps, from), upper)
			}
			upper = min(upper, from)
		}
	}
	return 0
}
