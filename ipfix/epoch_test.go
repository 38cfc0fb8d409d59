package ipfix

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sockflow/sockflow/templates"
)

// refit changes the fields of a running exporter, as SIGHUP does.
func (s *started) refit(opt templates.Options) {
	s.t.Helper()
	cfg := *s.conf()
	cfg.Options = opt
	if err := s.Reconfigure(cfg); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "the fields have changed", func() bool { return len(s.changes) == 0 })
}

// checkStream decodes a session by RFC 7011's rules: each template before its data, none redefined unless it was withdrawn before. It returns the
// ids of templates that were withdrawn, and how many flow records came.
func checkStream(t *testing.T, stream []byte) (withdrawn []uint16, flows int) {
	t.Helper()
	layouts := map[uint16]layout{}
	for len(stream) >= headerIPFIX {
		n := messageLength(stream)
		if n == 0 || n > len(stream) {
			break
		}
		err := eachSet(stream[:n], func(id uint16, set []byte) error {
			if id == setTemplate || id == setOptionsTemplate {
				for b := set[setHeader:]; len(b) >= 4; {
					tid, l, rest, err := templateRecord(id, b)
					if err != nil {
						return err
					}
					old, known := layouts[tid]
					switch {
					case len(l.lengths) == 0 && !known:
						t.Errorf("template %d is withdrawn, and was not announced", tid)
					case len(l.lengths) == 0:
						withdrawn = append(withdrawn, tid)
						delete(layouts, tid)
					case known && string(old.record) != string(l.record):
						t.Errorf("template %d is redefined without a withdrawal", tid)
					default:
						layouts[tid] = l
					}
					b = rest
				}
				return nil
			}
			l, known := layouts[id]
			if !known {
				return errors.New("data of a template that is not known")
			}
			n, err := l.records(set[setHeader:])
			if l.set == setTemplate {
				flows += n
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		stream = stream[n:]
	}
	return withdrawn, flows
}

// TestRefitWhileWaiting: records that wait in memory, or on disk, when the fields change go out under the templates that they were encoded with:
// before the first connection, to a slow collector, and to one that resets the connection.
func TestRefitWhileWaiting(t *testing.T) {
	for _, tc := range []string{"away", "away, with a spool", "slow", "slow, with a spool", "reset", "reset, with a spool"} {
		t.Run(tc, func(t *testing.T) {
			t.Parallel()
			var cfg Config
			if strings.HasSuffix(tc, "spool") {
				cfg.Spool = t.TempDir()
			}
			opt := func(fields string) templates.Options { return templates.Options{Fields: fields} }
			var s *sink
			var x *started
			encoded := func(n int) {
				t.Helper()
				x.give(n)
				eventually(t, "they are encoded", func() bool { st := x.Stats(); return st.Encoded == uint64(x.next) && st.Waiting == 0 })
			}
			change := func() {
				encoded(3000)
				x.refit(opt("-sourceProcessName"))
				encoded(3000)
				x.refit(templates.Options{Dialect: templates.Native})
				encoded(3000)
				x.refit(opt("")) // as at first
				encoded(1000)
			}
			switch {
			case strings.HasPrefix(tc, "away"):
				addr := freeAddress(t)
				x = begin(t, "tcp://"+addr, cfg)
				change()
				s = listen(t, addr)
			case strings.HasPrefix(tc, "slow"):
				var c interface{ Close() error }
				slow, l, conn := idle(t, "", 4096, cfg)
				x, c = slow, conn
				change()
				s = &sink{l: l, data: [][]byte{nil}, conn: conn}
				go s.accept()
				go s.read(conn, 0) // from here on it reads
				_ = c
			default:
				dead, l, conn := idle(t, "", 4096, cfg)
				x = dead
				change()
				conn.Close() // with unread data: a reset
				s = serve(t, l)
			}
			eventually(t, "all is taken", func() bool { return x.Stats().Backlog == 0 })
			x.stop()
			flows := 0
			for _, b := range s.all(t) {
				_, n := checkStream(t, b)
				flows += n
				ipfixDump(t, b)
			}
			inOrder(t, s.streams(), 0, x.next-1)
			x.balance()
			if st := x.Stats(); st.DroppedSend+st.DroppedQueue+st.DroppedSpool > 0 || flows < x.next {
				t.Errorf("%d flow records of %d: %+v", flows, x.next, st)
			}
		})
	}
}

// TestWithdrawal: on a stream, templates that are used no more are withdrawn before others come (RFC 7011, section 8.1), those of options data too.
func TestWithdrawal(t *testing.T) {
	s := listen(t, "127.0.0.1:0")
	x := begin(t, "tcp://"+s.l.Addr().String()+"?template-refresh=100ms", Config{})
	arrive := func(n int) {
		t.Helper()
		x.give(n)
		eventually(t, "records arrive", func() bool {
			l := s.streams()
			return len(l) == 1 && len(numbers(t, l[0])) == x.next
		})
	}
	arrive(10)
	x.refit(templates.Options{Fields: "-sourceProcessName"})
	arrive(10)
	x.refit(templates.Options{Dialect: templates.IANA})
	time.Sleep(300 * time.Millisecond) // templates are announced again by time
	x.give(10)
	eventually(t, "all is taken", func() bool { return x.Stats().Backlog == 0 && x.Stats().Encoded == 30 })
	x.stop()
	withdrawn, _ := checkStream(t, s.all(t)[0])
	flows := slices.ContainsFunc(withdrawn, func(id uint16) bool { return id >= templates.FirstID })
	options := slices.ContainsFunc(withdrawn, func(id uint16) bool { return id < templates.FirstID })
	if !flows || !options {
		t.Errorf("withdrawn: %d", withdrawn)
	}
	ipfixDump(t, s.streams()[0])
	if st := x.Stats(); st.Records != 40 || st.Made != 40 { // the last ten in both directions: dialect iana has no biflows
		t.Errorf("%+v: type records are no flow records", st)
	}
}

// TestExportTime: a message that waited has the time of its sending (RFC 7011, section 3.1), also from the spool.
func TestExportTime(t *testing.T) {
	dir, addr := t.TempDir(), freeAddress(t)
	x := begin(t, "tcp://"+addr, Config{Spool: dir})
	x.give(500)
	eventually(t, "they are on disk", func() bool { return x.Stats().Spooled == 500 })
	time.Sleep(2100 * time.Millisecond)
	connected := time.Now().Unix()
	s := listen(t, addr)
	eventually(t, "all is taken", func() bool { return x.Stats().Backlog == 0 })
	x.stop()
	for b := s.all(t)[0]; len(b) > 0; b = b[messageLength(b):] {
		if at := int64(binary.BigEndian.Uint32(b[4:])); at < connected {
			t.Errorf("Export Time %d, %d s before the connection", at, connected-at)
		}
	}
}
