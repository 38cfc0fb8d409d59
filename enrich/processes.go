package enrich

import (
	"iter"
	"maps"
	"strings"
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

// ProcConfig configures Processes. Its zero value is the documented default.
type ProcConfig struct {
	Proc        string        // where proc is mounted; default /proc
	CommandLine bool          // read command lines, which may hold secrets
	Max         int           // entries; default 262 144
	Linger      time.Duration // how long a process is remembered after its exit, beside its flows; default 60 s
}

// ProcStats counts what the table did.
type ProcStats struct {
	Entries  int
	Events   uint64 // reported by the kernel
	FromProc uint64 // read from /proc instead, in time
	Missed   uint64 // gone before its facts were known: only the PID is
	Overflow uint64 // forgotten early because the table was full
}

// Processes is the process table: facts of every process that flows belong to, and of their parents. It outlives the processes,
// until the last flow of each is reported. It belongs to one goroutine, and never waits for more than /proc.
type Processes struct {
	cfg     ProcConfig
	proc    procFS
	users   *users
	cgroups *CGroups
	v1      bool                             // there are hierarchies of cgroup v1, which the kernel's events do not report
	table   map[flowcache.ProcessID]*process // by the process, whatever program it runs
	boot    int64                            // when the machine was started, by the wall clock as it is now
	stats   ProcStats

	next    func() (flowcache.ProcessID, *process, bool) // goes on with the table where the last step of Sweep stopped; nil: at its begin
	looking chan lookedUp                                // what was found beside it; nil: nothing is looked for
}

// process is an entry. Facts are replaced, never changed: records share them.
type process struct {
	facts  *flowcache.Process   // of the program that it runs, or ran last
	before []*flowcache.Process // of the programs before
	as     []*flowcache.Process // of any of them, with other users
	flows  int
	exited int64 // when; 0 lives
}

// maxUsers bounds the other users, and maxPrograms the programs before the present one, of a process whose facts are kept.
const (
	maxUsers    = 8
	maxPrograms = 8
)

// NewProcesses returns an empty table. cgroups learns the paths of control groups from the processes in them.
func NewProcesses(cfg ProcConfig, cgroups *CGroups) *Processes {
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	if cfg.Max == 0 {
		cfg.Max = 1 << 18
	}
	if cfg.Linger == 0 {
		cfg.Linger = time.Minute
	}
	return &Processes{
		cfg: cfg, proc: procFS(cfg.Proc), cgroups: cgroups, v1: procFS(cfg.Proc).hasCGroupV1(),
		users: newUsers("/etc/passwd"),
		table: make(map[flowcache.ProcessID]*process), boot: bootTime(),
	}
}

// Stats returns the counts.
func (p *Processes) Stats() ProcStats {
	s := p.stats
	s.Entries = len(p.table)
	return s
}

// Seed reads the processes that exist. Those that vanish meanwhile are not missed.
func (p *Processes) Seed() {
	for _, pid := range p.proc.pids() {
		if f, ok := p.read(pid); ok {
			p.put(f)
		}
	}
}

// Apply takes over a step in the life of a process.
func (p *Processes) Apply(ev *flowcache.ProcessEvent) {
	p.stats.Events++
	switch ev.Kind {
	case flowcache.ProcessExit:
		if e := p.entry(ev.Process.ID); e != nil {
			e.exited = ev.Time
		}
		return
	case flowcache.ProcessFork:
		f := ev.Process
		if parent := p.find(ev.Parent); parent != nil {
			// Until it runs something else, it is its parent again.
			f.Path, f.CommandLine, f.CGroupPath = parent.Path, parent.CommandLine, parent.CGroupPath
			f.ParentPath, f.ParentUID = parent.Path, parent.UID
			if f.CGroup != parent.CGroup {
				f.CGroupPath = p.cgroups.path(f.CGroup)
			}
			if f.UID != parent.UID && f.UID != flowcache.NoID {
				// It begins with its parent's user, who has changed (setuid(2)) since that ran its program.
				now := *parent
				now.UID, now.GID, now.UserName = f.UID, f.GID, p.users.name(f.UID)
				p.put(&now)
				f.ParentUID = f.UID
			}
		}
		f.UserName = p.users.name(f.UID)
		p.put(&f)
	case flowcache.ProcessMove:
		p.cgroups.learn(ev.Process.CGroup, ev.Process.CGroupPath)
		if e := p.entry(ev.Process.ID); e != nil {
			f := *e.facts
			f.CGroup, f.CGroupPath = ev.Process.CGroup, ev.Process.CGroupPath
			p.settle(&f, flowcache.ProcessID{}) // the move may be in another hierarchy: then this one's path is as before
			p.put(&f)
		}
	case flowcache.ProcessExec:
		f := ev.Process
		if rest, cut := strings.CutPrefix(f.Path, "/..."); cut {
			// The kernel side does not follow so many names.
			if path := exe(p.proc.dir(f.ID.PID)); strings.HasSuffix(path, rest) {
				f.Path = path
			}
		}
		// The parent that started it may be gone, and init in its place: the parent that the fork reported stays.
		if old := p.entry(f.ID); old != nil && old.facts.ParentPID != 0 {
			f.ParentPID, f.ParentPath, f.ParentUID = old.facts.ParentPID, old.facts.ParentPath, old.facts.ParentUID
		} else if parent := p.find(ev.Parent); parent != nil {
			f.ParentPath, f.ParentUID = parent.Path, parent.UID
		}
		if p.cfg.CommandLine {
			f.CommandLine = commandLine(p.proc.dir(f.ID.PID))
		}
		f.UserName = p.users.name(f.UID)
		p.cgroups.learn(f.CGroup, f.CGroupPath)
		p.settle(&f, ev.Parent)
		if e := p.entry(f.ID); e != nil {
			e.ran(f.ID.Exec)
		}
		p.put(&f)
	}
}

// entry returns the entry of a process, whatever program it runs; nil if there is none.
func (p *Processes) entry(id flowcache.ProcessID) *process { return p.table[id.AnyProgram()] }

// ran keeps the facts of the program that runs, for another begins, the one that exec numbers.
func (e *process) ran(exec uint32) {
	old := *e.facts
	if old.ID.Exec == 0 {
		old.ID.Exec = exec - 1 // the kernel counts by one
	}
	if len(e.before) == maxPrograms {
		e.before = append(e.before[:0], e.before[1:]...)
	}
	e.before = append(e.before, &old)
}

// program returns the facts of the program that the process ran as id, or nil if they are not known (any more).
func (e *process) program(id flowcache.ProcessID) *flowcache.Process {
	if id.Exec == 0 || e.facts.ID.Exec == 0 || e.facts.ID.Exec == id.Exec {
		return e.facts
	}
	for _, f := range e.before {
		if f.ID.Exec == id.Exec {
			return f
		}
	}
	return nil
}

// As returns the facts of a process, shared and immutable, as it was with another user than it ran its program
// with: with the name of that user. A process changes its user without running another (setuid(2)), and only its
// sockets show when. Nil where Get is.
func (p *Processes) As(id flowcache.ProcessID, uid, gid uint32) *flowcache.Process {
	f := p.Get(id)
	if f == nil || f.UID == uid {
		return f
	}
	e := p.entry(id)
	for _, other := range e.as {
		if other.UID == uid && other.ID == f.ID {
			return other
		}
	}
	other := *f
	other.UID, other.GID, other.UserName = uid, gid, p.users.name(uid)
	if len(e.as) == maxUsers {
		e.as = append(e.as[:0], e.as[1:]...)
	}
	e.as = append(e.as, &other)
	return &other
}

// Get returns the facts of a process, shared and immutable, or nil. A process that the kernel did not report is looked
// for in /proc, where its start time must agree.
func (p *Processes) Get(id flowcache.ProcessID) *flowcache.Process {
	if e := p.entry(id); e != nil {
		if e.facts.StartTime != p.started(id) {
			f := *e.facts
			p.put(&f)
			for i, old := range e.before {
				f := *old
				f.StartTime = p.started(id)
				e.before[i] = &f
			}
		}
		f := e.program(id)
		if f == nil {
			// A program before those that are kept: no more than the process is known.
			f = &flowcache.Process{ID: id, StartTime: p.started(id), UID: flowcache.NoID, GID: flowcache.NoID, ParentUID: flowcache.NoID}
			e.before = append(e.before[:min(len(e.before), maxPrograms-1)], f)
		}
		return f
	}
	if id.PID == 0 {
		return nil
	}
	f, ok := p.read(id.PID)
	if !ok || f.ID != id.AnyProgram() {
		// Remembered as unknown, so that the next record does not look again.
		p.stats.Missed++
		f = &flowcache.Process{ID: id, UID: flowcache.NoID, GID: flowcache.NoID, ParentUID: flowcache.NoID}
		p.put(f)
		p.entry(id).exited = flowcache.Now()
		return f
	}
	p.stats.FromProc++
	p.put(f)
	return f
}

// Hold and Release count the flows of a process: while it has some it is not forgotten.
func (p *Processes) Hold(id flowcache.ProcessID) {
	if p.Get(id) != nil {
		p.entry(id).flows++
	}
}

// Release ends one Hold.
func (p *Processes) Release(id flowcache.ProcessID) {
	if e := p.entry(id); e != nil && e.flows > 0 {
		e.flows--
	}
}

// reset makes the starts of processes be by the wall clock as it is now: of each when it is asked for.
func (p *Processes) reset() { p.boot = bootTime() }

// sweepStep is how many processes a call of Sweep looks at: about a microsecond each, where they are not in the
// processor's cache.
const sweepStep = 2048

// Sweep takes a step through the table: it forgets processes that exited long before now and have no flows. Of
// those that exited unseen, and of users that were renamed, it finds out beside the caller, for that takes as long
// as proc takes. To be called about once a second.
func (p *Processes) Sweep(now int64) {
	if p.looking != nil {
		select {
		case found := <-p.looking:
			p.looking = nil
			for _, id := range found.gone {
				if e := p.table[id]; e != nil && e.exited == 0 && e.flows == 0 {
					e.exited = now
				}
			}
			if found.users != nil {
				p.users = found.users
			}
		default: // proc is slow
		}
	}
	silent := make([]flowcache.ProcessID, 0, sweepStep) // that may have exited unseen
	for range sweepStep {
		if p.next == nil {
			p.next, _ = iter.Pull2(maps.All(p.table))
		}
		id, e, more := p.next()
		if !more {
			p.next = nil
			break
		}
		switch {
		case e.flows != 0:
		case e.exited == 0:
			silent = append(silent, id)
		case now-e.exited > int64(p.cfg.Linger):
			delete(p.table, id)
		}
	}
	if p.looking != nil {
		return // these are for the next time
	}
	looking, users := make(chan lookedUp, 1), p.users
	p.looking = looking
	go func() { // ends when it has looked for them
		var found lookedUp
		for _, id := range silent {
			if !p.proc.alive(id) {
				found.gone = append(found.gone, id)
			}
		}
		found.users = users.changed()
		looking <- found
	}()
}

// lookedUp is what a step of Sweep found in files.
type lookedUp struct {
	gone  []flowcache.ProcessID
	users *users // nil: as before
}

// settle completes the place of a process where hierarchies of cgroup v1 are in use, of which the kernel's events
// say nothing: they have the path of cgroup2, which may be the root's, or a service manager's, while the process is
// in a container. The living are read from proc; of others what is known of them stays, or of the parent that they
// began with, unless cgroup2 says that they are elsewhere.
func (p *Processes) settle(f *flowcache.Process, parent flowcache.ProcessID) {
	if !p.v1 {
		return
	}
	if w, _ := parseCGroup(f.CGroupPath); w.ContainerID != "" {
		return
	}
	if path, _ := parseProcCGroup(cgroupLines(p.proc.dir(f.ID.PID))); path != "" {
		f.CGroupPath = p.cgroups.absolute(path)
		return
	}
	for _, id := range [...]flowcache.ProcessID{f.ID, parent} {
		if e := p.entry(id); e != nil && e.facts.CGroup == f.CGroup && e.facts.CGroupPath != "" {
			f.CGroupPath = e.facts.CGroupPath
			return
		}
	}
}

// find returns the facts of a parent.
func (p *Processes) find(id flowcache.ProcessID) *flowcache.Process {
	if e := p.entry(id); e != nil {
		return e.facts
	}
	if id.PID == 0 {
		return nil
	}
	if f, ok := p.read(id.PID); ok && f.ID == id.AnyProgram() {
		p.put(f)
		return f
	}
	return nil
}

// started is when a process began, by the wall clock as it is now.
func (p *Processes) started(id flowcache.ProcessID) int64 {
	return p.boot + int64(id.Start)*int64(tick)
}

func (p *Processes) put(f *flowcache.Process) {
	f.StartTime = p.started(f.ID)
	if e := p.entry(f.ID); e != nil {
		e.facts, e.as = f, nil
		return
	}
	if len(p.table) >= p.cfg.Max {
		p.makeRoom()
	}
	p.table[f.ID.AnyProgram()] = &process{facts: f}
}

// makeRoom forgets some process, an exited one without flows if a short look finds one.
func (p *Processes) makeRoom() {
	p.stats.Overflow++
	var victim flowcache.ProcessID
	looked := 0
	for id, e := range p.table {
		if e.flows == 0 {
			victim = id
			if e.exited != 0 {
				break
			}
		} else if victim.PID == 0 {
			victim = id
		}
		if looked++; looked == 64 {
			break
		}
	}
	delete(p.table, victim)
}

// read takes the facts of a living process from /proc.
func (p *Processes) read(pid uint32) (*flowcache.Process, bool) {
	st, ok := p.proc.stat(pid)
	if !ok {
		return nil, false
	}
	dir := p.proc.thread(pid, &st)
	f := &flowcache.Process{
		ID:        flowcache.ProcessID{PID: pid, Start: st.start},
		Name:      st.comm,
		Path:      exe(dir),
		ParentPID: st.ppid,
		ParentUID: flowcache.NoID,
	}
	f.UID, f.GID = ids(dir)
	f.UserName = p.users.name(f.UID)
	if p.cfg.CommandLine {
		f.CommandLine = commandLine(dir)
	}
	if st.ppid != 0 {
		parent := p.proc.dir(st.ppid)
		if f.ParentPath = exe(parent); f.ParentPath == "" {
			if st, ok := p.proc.stat(st.ppid); ok {
				parent = p.proc.thread(f.ParentPID, &st)
				f.ParentPath = exe(parent)
			}
		}
		f.ParentUID, _ = ids(parent)
	}
	path, v2 := parseProcCGroup(cgroupLines(dir))
	f.CGroupPath, f.CGroup = p.cgroups.absolute(path), p.cgroups.id(p.cgroups.absolute(v2))
	// Still the same process? Then everything read in between was its own.
	if again, ok := p.proc.stat(pid); !ok || again.start != st.start {
		return nil, false
	}
	return f, true
}
