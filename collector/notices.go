package collector

import (
	"fmt"
	"sync"
	"time"
)

// notice is a kind of line for people: of each there is one a minute at most.
type notice uint8

const (
	noticeMalformed notice = iota // messages
	noticeFailed                  // connections and handshakes
	noticeRefused                 // connections
	notices
)

const noticeTime = time.Minute

// notifier passes lines on, one of each kind a minute. Those between are counted, and the next says how many there
// were.
type notifier struct {
	to func(line string)

	mu    sync.Mutex
	kinds [notices]struct {
		said  time.Time
		more  int
		last  string
		timer *time.Timer
	}
	over bool
}

// say passes a line on, or keeps it for the end of the minute.
func (n *notifier) say(k notice, format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := &n.kinds[k]
	wait := noticeTime - time.Since(s.said)
	switch {
	case n.over:
	case s.timer != nil:
		s.more++
		s.last = fmt.Sprintf(format, args...)
	case s.said.IsZero() || wait <= 0:
		s.said = time.Now()
		n.to(fmt.Sprintf(format, args...))
	default:
		s.more, s.last = 1, fmt.Sprintf(format, args...)
		s.timer = time.AfterFunc(wait, func() { n.flush(k) })
	}
}

// flush says how many lines of a kind were kept, and the last of them.
func (n *notifier) flush(k notice) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := &n.kinds[k]
	if s.timer == nil {
		return
	}
	s.timer.Stop()
	s.said, s.timer = time.Now(), nil
	line := s.last
	if s.more > 1 {
		line = fmt.Sprintf("%s (and %d more in a minute)", line, s.more-1)
	}
	n.to(line)
}

// end says what was kept, and nothing after that.
func (n *notifier) end() {
	for k := range notices {
		n.flush(k)
	}
	n.mu.Lock()
	n.over = true
	n.mu.Unlock()
}
