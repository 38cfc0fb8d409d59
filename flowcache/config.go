package flowcache

import (
	"errors"
	"time"
)

// Config configures a Cache. Its zero value is the documented default.
type Config struct {
	ActiveTimeout time.Duration // a live flow is reported at least this often; default 60 s
	IdleTimeout   time.Duration // a flow that is not TCP ends after this silence; default 15 s
	MaxFlows      int           // default 1 000 000

	// Merge makes one record of the two sockets of a conversation that has both its ends on this host.
	Merge bool
	// PeerWait is how long a connection that has ended waits for the end of its other socket, where nothing is known of that yet, and ten
	// times that where its address is one that sockets of this host have: on a busy machine the last segment may be late;
	// default 50 ms. PeerMemory is how long it is remembered after that, for a peer that had not closed, half as long for one
	// that may not know yet that it is to end, an eighth for one that ends with it, but all of it where its address is one of this host; default 15 s, and should be more than the time between two passes over all sockets.
	PeerWait, PeerMemory time.Duration
	// Translate, if set, returns how the addresses of a flow are translated (NAT) between its ends. k has the addresses
	// that the socket here sees, begin is when the flow began. It is called once per flow, and must be quick: at the begin
	// of the flow where the source knows no Conversation, else at its first record if the other end is not here. Where
	// both ends are here, their sockets show the translation.
	Translate func(k Key, begin int64) (Path, bool)

	// Known, if set, completes an audit's observation of a connection that the source did not report. It adds the owner
	// and the role where the source knows them.
	Known func(o *Observation)

	// Full, if set, is called when a call has made RecordsAtOnce records and has another, as when a socket with many
	// thousands of peers closes. It takes the records, and returns an empty slice to continue with. It must not call the
	// Cache.
	Full func([]Record) []Record

	// Hold and Release, if set, are called with the processes that live flows belong to, so that their names are kept.
	Hold, Release func(ProcessID)
}

// complete puts in the defaults. The error says what cannot be.
func (cfg *Config) complete() error {
	if cfg.ActiveTimeout == 0 {
		cfg.ActiveTimeout = time.Minute
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = 15 * time.Second
	}
	if cfg.MaxFlows == 0 {
		cfg.MaxFlows = 1_000_000
	}
	if cfg.PeerWait == 0 {
		cfg.PeerWait = 50 * time.Millisecond
	}
	if cfg.PeerMemory == 0 {
		cfg.PeerMemory = 15 * time.Second
	}
	if cfg.ActiveTimeout < 0 || cfg.IdleTimeout < 0 || cfg.MaxFlows < 0 {
		return errors.New("timeouts and the number of flows must be positive")
	}
	if cfg.Known == nil {
		cfg.Known = func(*Observation) {}
	}
	if cfg.Hold == nil {
		cfg.Hold = func(ProcessID) {}
	}
	if cfg.Release == nil {
		cfg.Release = func(ProcessID) {}
	}
	return nil
}

// SetTimeouts changes the timeouts of a cache in use, at the time now. A flow whose record would be due later than the new
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
