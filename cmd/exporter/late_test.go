package main

import (
	"testing"
	"time"
)

// TestLate: of a minute in which the loop was busy for 1 s once, for 10 ms a hundred times and for 20 µs ten thousand times.
func TestLate(t *testing.T) {
	var l late
	at := time.Unix(1000, 0)
	if got := l.quantile(0.999, at); got != 0 {
		t.Errorf("%v before anything", got)
	}
	began := at
	step := func(d time.Duration, pause time.Duration) {
		l.add(at, at.Add(d))
		at = at.Add(d + pause)
	}
	step(time.Second, 0)
	for range 100 {
		step(10*time.Millisecond, 90*time.Millisecond)
	}
	for range 10000 {
		step(20*time.Microsecond, 4880*time.Microsecond)
	}
	total := at.Sub(began) // 60 s
	// Of 60 000 moments of 1 ms 1000 are in the long step: 60 of them wait for more than 940 ms.
	for q, want := range map[float64]time.Duration{0.999: 940 * time.Millisecond, 0.99: 400 * time.Millisecond, 0.5: 0, 1: time.Second} {
		got := l.quantile(q, began.Add(total))
		if diff := (got - want).Abs(); diff > want/5 {
			t.Errorf("quantile %v of %v: %v, want %v", q, total, got, want)
		}
	}
	if l.longest() != time.Second {
		t.Error(l.longest())
	}
	// Two minutes later nothing is left of it.
	for range 3 * 60 {
		step(time.Millisecond, time.Second)
	}
	if got := l.quantile(0.9999, at); got > time.Millisecond || l.longest() != time.Millisecond {
		t.Errorf("%v, longest %v", got, l.longest())
	}
	for c := range lateClasses {
		if got := lateClass(lateFrom(c)); got != c {
			t.Errorf("class %d begins at %v, of class %d", c, lateFrom(c), got)
		}
	}
}
