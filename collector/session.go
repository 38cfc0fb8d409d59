package collector

import (
	"errors"
	"fmt"
	"time"

	"github.com/sockflow/sockflow/templates"
)

// Config configures a Session. Its zero value is the documented default.
type Config struct {
	// Name says where messages come from. Each record has it (Record.From).
	Name string
	// Registry names elements; default: NewRegistry(0, 0).
	Registry *Registry
	// Datagrams says that messages may be lost and come in any order: templates expire, and withdrawals do not count (RFC 7011, section 8.4).
	Datagrams bool
	// TemplateLifetime is for how long a template lives without a refresh, where Datagrams; default 30 minutes (RFC 6728).
	TemplateLifetime time.Duration
	// Memory bounds the templates and names of the session, in octets; default 4 MiB. What is beyond is refused and counted.
	Memory int

	shared *shared // with other sessions of a Collector
	peer   *peer   // likewise; nil of files
}

// shared is what the sessions of a Collector have in common. Only one of them decodes at a time.
type shared struct {
	memory   int // octets left
	arena    arena
	sampling [3]byte // values of records of NetFlow v5: algorithm and interval
}

// arena holds what a message decodes to.
type arena struct {
	records []Record
	values  [][]byte
	ends    []int // of each record, in values
}

// keepValues: an arena that grew beyond this for one message does not stay.
const keepValues = 1 << 14

// Session decodes the messages of one Transport Session: a connection, a file, or the datagrams from one address and port. It belongs to
// one goroutine.
type Session struct {
	cfg        Config
	memory     int // octets left
	domains    map[domainKey]*domain
	learned    map[templates.Number]*Element
	generation int // of learned
	stats      Stats
	shared     *shared
	noted      bool // that it sends what is malformed
}

type domainKey struct {
	version uint16
	id      uint32
}

// domain is an Observation Domain (NetFlow v9: a Source ID; v5: an engine).
type domain struct {
	session   *Session
	templates map[uint16]*held
	expected  uint32 // sequence number of the next message
	synced    bool   // expected is known
	late      uint32 // what would follow the last message that came late
	lateRun   int    // messages that followed each other so
}

// NewSession returns a session that knows no template yet.
func NewSession(cfg Config) (*Session, error) {
	if cfg.Registry == nil {
		r, err := NewRegistry(0, 0)
		if err != nil {
			return nil, err
		}
		cfg.Registry = r
	}
	if cfg.TemplateLifetime == 0 {
		cfg.TemplateLifetime = 30 * time.Minute
	}
	if cfg.Memory == 0 {
		cfg.Memory = 4 << 20
	}
	if cfg.TemplateLifetime < 0 || cfg.Memory < 0 {
		return nil, errors.New("template lifetime and memory must not be negative")
	}
	s := &Session{cfg: cfg, memory: cfg.Memory, domains: map[domainKey]*domain{}, learned: map[templates.Number]*Element{}, shared: cfg.shared}
	if s.shared == nil {
		s.shared = &shared{memory: cfg.Memory}
	}
	return s, nil
}

// Stats returns the counts so far.
func (s *Session) Stats() Stats { return s.stats }

// take takes octets of the memory that is left, if there are.
func (s *Session) take(octets int) bool {
	p := s.cfg.peer
	if s.memory < octets || s.shared.memory < octets || p != nil && p.memory < octets {
		return false
	}
	s.give(-octets)
	return true
}

func (s *Session) give(octets int) {
	s.memory += octets
	s.shared.memory += octets
	if p := s.cfg.peer; p != nil {
		p.memory += octets
	}
}

// close gives back the memory of a session that is over.
func (s *Session) close() {
	s.give(s.cfg.Memory - s.memory)
	s.memory = 0
	s.domains, s.learned = nil, nil
}

const domainCost = 512

func (s *Session) domain(k domainKey) *domain {
	d := s.domains[k]
	if d == nil {
		if !s.take(domainCost) {
			s.stats.Refused++
			return nil
		}
		d = &domain{session: s, templates: map[uint16]*held{}}
		s.domains[k] = d
	}
	return d
}

// setTemplate puts a template in the place of the one that had its id.
func (s *Session) setTemplate(d *domain, t *Template, now time.Time) {
	s.stats.Templates++
	old := d.templates[t.ID]
	if old != nil {
		s.give(old.cost())
	}
	if !s.take(t.cost()) {
		s.expire(now)
		if !s.take(t.cost()) {
			delete(d.templates, t.ID)
			s.stats.Refused++
			return
		}
	}
	d.templates[t.ID] = &held{t, now, s.generation}
}

// expire removes the templates whose time is over.
func (s *Session) expire(now time.Time) {
	for _, d := range s.domains {
		for _, h := range d.templates {
			s.template(d, h.ID, now)
		}
	}
}

// template returns the template of a set, nil if there is none (any more).
func (s *Session) template(d *domain, id uint16, now time.Time) *held {
	h := d.templates[id]
	if h != nil && s.cfg.Datagrams && now.Sub(h.refreshed) > s.cfg.TemplateLifetime {
		s.give(h.cost())
		delete(d.templates, id)
		s.stats.Expired++
		return nil
	}
	return h
}

// withdraw handles a Template Withdrawal (RFC 7011, section 8.1): of one template, or of all of a kind, if id is that of the set.
func (s *Session) withdraw(d *domain, id uint16, options bool) {
	set := uint16(setTemplate)
	if options {
		set = setOptionsTemplate
	}
	if s.cfg.Datagrams || d.templates[id] == nil && id != set {
		s.stats.Ignored++
		return
	}
	for _, h := range d.templates {
		if h.ID == id || id == set && h.Options == options {
			s.give(h.cost())
			delete(d.templates, h.ID)
			s.stats.Withdrawn++
		}
	}
}

// Late messages: this far behind they are late, and further the exporter began anew; and so it did when so many followed each other.
const (
	lateWindow = 1 << 16
	lateRun    = 8
)

// sequence compares the sequence number of a message with what was expected. It stands for n Data Records (NetFlow v9: 1, itself); certain
// says that n is true.
func (s *Session) sequence(d *domain, seq, n uint32, certain bool) {
	if d.synced {
		switch diff := int32(seq - d.expected); {
		case diff == 0:
			d.lateRun = 0
		case diff > 0:
			s.stats.Gaps++
			s.stats.Lost += uint64(diff)
			d.lateRun = 0
		case diff > -lateWindow && (d.lateRun < lateRun || seq != d.late):
			s.stats.Late++
			s.stats.Lost -= min(s.stats.Lost, uint64(n)) // it was taken for lost
			if seq != d.late {
				d.lateRun = 0
			}
			d.late = seq + n
			d.lateRun++
			return
		default:
			s.stats.Restarts++
			d.lateRun = 0
		}
	}
	d.expected, d.synced = seq+n, certain
}

// Messages decodes messages in their order, as Decode does, and returns records that stay valid. It is for tests and tools: errors are
// joined, each with the number of its message, and do not stop it.
func (s *Session) Messages(msgs [][]byte) ([]Record, error) {
	var all []Record
	var errs []error
	for i, m := range msgs {
		recs, err := s.Decode(m, time.Now())
		if err != nil {
			errs = append(errs, fmt.Errorf("message %d: %w", i, err))
		}
		for j := range recs {
			all = append(all, recs[j].Clone())
		}
	}
	return all, errors.Join(errs...)
}
