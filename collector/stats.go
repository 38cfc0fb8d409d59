package collector

import (
	"fmt"
)

// Cause is why a message was discarded.
type Cause uint8

// Causes.
const (
	CauseVersion  Cause = iota // neither IPFIX nor NetFlow v1, v5, v7 or v9
	CauseLength                // shorter than its header, or not as long as its header says
	CauseSet                   // a set shorter than its header or longer than its message
	CauseTemplate              // a template that cannot be
	CauseRecord                // a field that is longer than its set
	causes
)

var causeNames = [causes]string{"version", "length", "set", "template", "record"}

func (c Cause) String() string { return causeNames[c] }

// Causes returns all causes.
func Causes() []Cause {
	l := make([]Cause, causes)
	for i := range l {
		l[i] = Cause(i)
	}
	return l
}

// MalformedError says what is wrong with a message, which is discarded (RFC 7011, section 9).
type MalformedError struct {
	Cause Cause
	Text  string
}

func (e *MalformedError) Error() string { return "malformed message: " + e.Text }

func malformed(c Cause, format string, args ...any) *MalformedError {
	return &MalformedError{c, fmt.Sprintf(format, args...)}
}

// Stats counts what came in and what was lost. Every message is in Messages; those that are discarded are in Malformed too.
type Stats struct {
	Messages  uint64
	Octets    uint64
	Records   uint64 // Data Records, options data included
	Options   uint64 // Data Records that are options data
	Templates uint64 // Template Records, those of Options Templates included
	Withdrawn uint64 // templates
	Expired   uint64 // templates that were not refreshed in time, over UDP and DTLS

	UnknownSets   uint64 // sets of data whose template is not known
	UnknownOctets uint64 // in them
	ShortSets     uint64 // sets of data that are shorter than one record of their template
	ShortOctets   uint64 // in them
	Ignored       uint64 // sets of reserved numbers, withdrawals that do not count, type records that say nothing, octets after the last set
	Refused       uint64 // templates, domains and names beyond the bound of memory

	Gaps     uint64 // jumps of the sequence number
	Lost     uint64 // Data Records (NetFlow v9: messages) that they stand for
	Late     uint64 // messages out of order, or twice
	Restarts uint64 // of the sequence

	Malformed [causes]uint64
}

// Add adds other counts.
func (s *Stats) Add(o *Stats) {
	s.Messages += o.Messages
	s.Octets += o.Octets
	s.Records += o.Records
	s.Options += o.Options
	s.Templates += o.Templates
	s.Withdrawn += o.Withdrawn
	s.Expired += o.Expired
	s.UnknownSets += o.UnknownSets
	s.UnknownOctets += o.UnknownOctets
	s.ShortSets += o.ShortSets
	s.ShortOctets += o.ShortOctets
	s.Ignored += o.Ignored
	s.Refused += o.Refused
	s.Gaps += o.Gaps
	s.Lost += o.Lost
	s.Late += o.Late
	s.Restarts += o.Restarts
	for i := range s.Malformed {
		s.Malformed[i] += o.Malformed[i]
	}
}

// Discarded is the number of malformed messages.
func (s *Stats) Discarded() uint64 {
	n := uint64(0)
	for _, c := range s.Malformed {
		n += c
	}
	return n
}
