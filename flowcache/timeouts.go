package flowcache

import (
	"errors"
	"time"
)

// SetTimeouts changes the timeouts of a cache in use, at a time now in Unix nanoseconds. A flow whose record would be due later than the new
// active timeout allows is due within it; those flows are spread over it. The error says that a timeout is not positive, and then
// nothing is changed.
func (c *Cache) SetTimeouts(active, idle time.Duration, now int64) error {
	if active <= 0 || idle <= 0 {
		return errors.New("timeouts must be positive")
	}
	c.cfg.ActiveTimeout, c.cfg.IdleTimeout = active, idle
	for i := range uint32(len(c.chunks)) * chunkLen {
		e := c.at(i)
		if !e.used || e.follows || e.ended || e.told {
			continue
		}
		if e.activeAt > now+int64(active) {
			e.activeAt = now + int64(uint64(i)*0x9E3779B97F4A7C15>>1)%int64(active)
		}
		c.cancel(i)
		c.set(i, c.next(e))
	}
	return nil
}
