package bpf

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"github.com/sockflow/sockflow/flowcache"
)

// owner is what is known of a datagram socket beside its counters.
type owner struct {
	process  flowcache.ProcessID
	uid, gid uint32
	cgroup   uint64
	netns    uint32
	kernel   bool
}

// owned is an owner, and the last pass that showed the socket or before which it had datagrams.
type owned struct {
	owner
	pass uint32
}

// datagrams joins the counters of datagram flows, which the cgroup hooks count by socket cookie, with the owners, which
// the tracepoints report. Programs count into one of two maps; a drain swaps them and empties the other, so that every
// datagram is counted once and none is lost to a race.
type datagrams struct {
	outer   *ebpf.Map
	inner   [2]*ebpf.Map
	current int

	owners map[uint64]owned
	pass   uint32                  // passes over all sockets so far
	closed []flowcache.Observation // sockets that were released since the last drain
	// When the last drain was, and whether it found so many flows for its time that the next must not wait for as long.
	drained time.Time
	many    bool
	named   map[uint64]struct{} // sockets whose owner became known after they were reported without one
	// Reported without an owner, in the pass that is the value: first datagrams that no process has read yet.
	nameless map[uint64]uint32
	// Before Linux 6.2 the namespace is known with the owner only, and no flow without it: these wait.
	orphans map[uint64][]flowcache.Observation
	waiting map[uint64]time.Time

	keys   []programDatagramKey // buffers of a batch
	values []programDatagramValue
}

const (
	drainBatch = 1024
	// A second: a quarter of what a map holds.
	manyDatagrams = 1 << 14
	// The next walk of all sockets names what the tracepoints did not; after that nobody will.
	orphanPatience = 12 * time.Second
	maxOwners      = 1 << 20
	// More owners than this are looked through after a pass for sockets that are gone: those that no event has
	// ended, for the hook of their release could not be attached, or the ring buffer was full.
	manyOwners = 1 << 16
)

func newDatagrams(outer, a, b *ebpf.Map) *datagrams {
	return &datagrams{
		outer: outer, inner: [2]*ebpf.Map{a, b},
		owners:   make(map[uint64]owned),
		named:    make(map[uint64]struct{}),
		nameless: make(map[uint64]uint32),
		orphans:  make(map[uint64][]flowcache.Observation),
		waiting:  make(map[uint64]time.Time),
		keys:     make([]programDatagramKey, drainBatch),
		values:   make([]programDatagramValue, drainBatch),
	}
}

// own remembers the owner of a socket.
func (d *datagrams) own(cookie uint64, o owner) {
	if _, known := d.owners[cookie]; known || len(d.owners) < maxOwners {
		d.owners[cookie] = owned{o, d.pass}
	}
	if _, told := d.nameless[cookie]; told {
		delete(d.nameless, cookie)
		d.named[cookie] = struct{}{}
	}
}

// bound remembers who bound a socket, which is its owner as long as no process has used it.
func (d *datagrams) bound(cookie uint64, o owner) {
	if _, known := d.owners[cookie]; !known {
		d.own(cookie, o)
	}
}

// passed forgets the owners of sockets that are gone, after a whole pass over all sockets: those that neither this
// pass nor the one before it showed, and that had no datagram since. A socket that no process has in its
// descriptors (an io_uring's own) is in no pass: it loses its owner if it is silent for so long, on a host with so
// many others.
func (d *datagrams) passed() {
	d.pass++
	if len(d.owners) > manyOwners {
		for cookie, own := range d.owners {
			if d.pass-own.pass > 2 {
				delete(d.owners, cookie)
			}
		}
	}
	if len(d.nameless) > manyOwners {
		for cookie, pass := range d.nameless {
			if d.pass-pass > 2 {
				delete(d.nameless, cookie)
			}
		}
	}
}

// release remembers that a socket was closed at the time t by a process, which owns it if no other has used it.
func (d *datagrams) release(cookie uint64, t int64, by owner) {
	o := flowcache.Observation{Event: flowcache.EventClose, Cookie: cookie, Time: t, UID: flowcache.NoID, GID: flowcache.NoID, Origin: flowcache.OriginEBPF}
	if by.process.PID != 0 {
		o.Process, o.UID, o.GID = by.process, by.uid, by.gid
	}
	d.closed = append(d.closed, o)
}

// soon reports whether the next drain is due before its time.
func (d *datagrams) soon() bool { return d.many || len(d.closed) > 0 }

// drain hands over what was counted since the last drain, and then the ends of the sockets that closed. The last drain waits for
// no owner.
func (d *datagrams) drain(clk clock, now time.Time, last bool, emit func(*flowcache.Observation)) error {
	full := d.inner[d.current]
	d.current ^= 1
	// The update returns when no program uses the old map any more (synchronize_rcu in map_update_elem of a map of maps).
	if err := d.outer.Put(uint32(0), d.inner[d.current]); err != nil {
		d.current ^= 1
		return fmt.Errorf("swap datagram maps: %w", err)
	}
	closed := d.closed
	d.closed = nil
	var cursor ebpf.MapBatchCursor
	var o flowcache.Observation
	flows := 0
	for {
		n, err := full.BatchLookupAndDelete(&cursor, d.keys, d.values, nil)
		for i := range n {
			if v := &d.values[i]; v.Packets == [2]uint64{} {
				continue // refused, all that was to be sent
			}
			datagramObservation(&o, &d.keys[i], &d.values[i], clk)
			d.join(&o, now, emit)
		}
		flows += n
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			break
		}
		if err != nil {
			return fmt.Errorf("drain datagram map: %w", err)
		}
	}
	d.many = float64(flows) > manyDatagrams*now.Sub(d.drained).Seconds()
	d.drained = now
	for cookie := range d.named {
		o = flowcache.Observation{Event: flowcache.EventOwner, Cookie: cookie, Time: flowcache.At(now), Origin: flowcache.OriginEBPF}
		own := d.owners[cookie]
		own.complete(&o)
		emit(&o)
	}
	clear(d.named)
	for i := range closed { // before the ends: one may end another's conversation too
		c := &closed[i]
		if _, told := d.nameless[c.Cookie]; told && c.Process.PID != 0 {
			o = *c
			o.Event = flowcache.EventOwner
			emit(&o)
		}
	}
	for cookie, since := range d.waiting {
		if _, known := d.owners[cookie]; known || last || now.Sub(since) > orphanPatience {
			d.attach(cookie, emit)
		}
	}
	for i := range closed {
		c := &closed[i]
		if _, waits := d.waiting[c.Cookie]; waits {
			d.attach(c.Cookie, emit)
		}
		if own, known := d.owners[c.Cookie]; known {
			c.Process, c.UID, c.GID = own.process, own.uid, own.gid
		}
		delete(d.owners, c.Cookie)
		delete(d.nameless, c.Cookie)
		emit(c)
	}
	return nil
}

// join completes o by its owner and hands it over, or keeps it until the owner is known.
func (d *datagrams) join(o *flowcache.Observation, now time.Time, emit func(*flowcache.Observation)) {
	own, known := d.owners[o.Cookie]
	if !known && o.Key.NetNS != 0 {
		if len(d.nameless) < maxOwners {
			d.nameless[o.Cookie] = d.pass
		}
		emit(o)
		return
	}
	if !known {
		if _, waits := d.waiting[o.Cookie]; !waits {
			d.waiting[o.Cookie] = now
		}
		d.orphans[o.Cookie] = append(d.orphans[o.Cookie], *o)
		return
	}
	if own.pass != d.pass {
		own.pass = d.pass
		d.owners[o.Cookie] = own
	}
	own.complete(o)
	emit(o)
}

// attach emits the observations that waited for the owner of a socket.
func (d *datagrams) attach(cookie uint64, emit func(*flowcache.Observation)) {
	own, known := d.owners[cookie]
	for i := range d.orphans[cookie] {
		o := &d.orphans[cookie][i]
		if known {
			own.complete(o)
		}
		emit(o)
	}
	delete(d.orphans, cookie)
	delete(d.waiting, cookie)
}

func (own *owner) complete(o *flowcache.Observation) {
	o.Process, o.UID, o.GID, o.CGroup, o.Kernel = own.process, own.uid, own.gid, own.cgroup, own.kernel
	if o.Key.NetNS == 0 {
		o.Key.NetNS = own.netns
	}
}

func datagramObservation(o *flowcache.Observation, k *programDatagramKey, v *programDatagramValue, clk clock) {
	*o = flowcache.Observation{
		Key:    flowcache.Key{Src: k.Local, Dst: k.Remote, SrcPort: k.LocalPort, DstPort: k.RemotePort, Proto: k.Proto, NetNS: v.Netns},
		Cookie: k.Cookie,
		First:  clk.time(v.First),
		Time:   clk.time(v.Last),
		Out:    flowcache.Counters{Packets: v.Packets[0], Octets: v.Octets[0], Payload: v.Payload[0]},
		In:     flowcache.Counters{Packets: v.Packets[1], Octets: v.Octets[1], Payload: v.Payload[1]},
		Role:   flowcache.Role(v.Role),
		Kernel: v.Kernel != 0,
		Origin: flowcache.OriginEBPF,
		Delta:  true,
		UID:    flowcache.NoID,
		GID:    flowcache.NoID,
	}
	if v.Translated == 0 {
		return
	}
	near := flowcache.Key{Src: k.Local, Dst: k.Remote, SrcPort: k.LocalPort, DstPort: k.RemotePort, Proto: k.Proto}
	far := flowcache.Key{Src: v.FarLocal, Dst: v.FarRemote, SrcPort: v.FarLocalPort, DstPort: v.FarRemotePort, Proto: k.Proto}
	if o.Role == flowcache.RoleInitiator {
		o.Path = flowcache.Path{Near: near, Far: far}
	} else {
		o.Path = flowcache.Path{Near: far.Reverse(), Far: near.Reverse()}
	}
}
