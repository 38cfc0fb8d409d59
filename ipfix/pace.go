package ipfix

import (
	"sync/atomic"
	"time"
)

// pace holds datagrams to a rate, in bursts that a collector's receive buffer has room for. The zero value does not hold them.
type pace struct {
	rate  int // messages/s; 0 without bound
	burst int // messages at once
	sent  int // of the burst
	next  time.Time
}

const (
	// A receive buffer of the default size, 208 KiB, has room for 90 messages of 1472 octets, and a collector may be busy.
	paceBurst = 32
	// Octets that count as a message: a longer one, as over loopback, takes the room of several.
	paceOctets = 1472
)

// paced is how many messages one of this length counts as.
func paced(octets int) int { return max(1, (octets+paceOctets-1)/paceOctets) }

func newPace(rate int) pace {
	if rate == 0 {
		return pace{burst: 1 << 30}
	}
	return pace{rate: rate, burst: min(paceBurst, rate)}
}

// take says that n messages are about to be sent, and waits after each burst, but not beyond the time for what waits at the end of the
// program: what a collector's buffer has no room for is lost, and nobody counts it.
func (p *pace) take(n int, stopBy *atomic.Int64) {
	if p.rate == 0 {
		return
	}
	if p.sent += n; p.sent < p.burst {
		return
	}
	now := time.Now()
	if wait := p.next.Sub(now); wait > 0 {
		if by := stopBy.Load(); by != 0 {
			wait = min(wait, time.Unix(0, by).Sub(now))
		}
		time.Sleep(wait)
	} else {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(p.sent) * time.Second / time.Duration(p.rate))
	p.sent = 0
}
