package ipfix

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestClosedInOrder: a collector that has read everything and closes has it once, and the next connection goes on.
func TestClosedInOrder(t *testing.T) {
	s := listen(t, "127.0.0.1:0")
	x := begin(t, "tcp://"+s.l.Addr().String(), Config{})
	for i := range 5 {
		x.give(1000)
		eventually(t, "records arrive", func() bool {
			l := s.streams()
			n := 0
			for _, b := range l {
				n += len(numbers(t, b))
			}
			return n == (i+1)*1000
		})
		s.mu.Lock()
		s.conn.Close()
		s.mu.Unlock()
	}
	x.stop()
	if n := inOrder(t, s.all(t), 0, x.next-1); n != 0 {
		t.Errorf("%d records came twice", n)
	}
	x.balance()
}

// TestLast: what waits when the program ends is sent, though nobody gets a processor at once: the collector is there.
func TestLast(t *testing.T) {
	s := listen(t, "127.0.0.1:0")
	var stop atomic.Bool
	defer stop.Store(true)
	for range 4 {
		go func() { // ends with stop
			for !stop.Load() {
			}
		}()
	}
	for range 10 {
		x := begin(t, "tcp://"+s.l.Addr().String(), Config{})
		x.give(500)
		x.stop()
		if st := x.Stats(); st.DroppedSend+st.DroppedQueue > 0 {
			t.Fatalf("%+v", st)
		}
	}
}

// TestReset: what a collector's kernel has acknowledged and its program has not read is sent again when the program dies.
func TestReset(t *testing.T) {
	x, l, c := idle(t, "", 0, Config{})
	x.give(150) // less than the receive buffer holds
	eventually(t, "the kernel has them", func() bool { return x.Stats().Backlog == 0 })
	time.Sleep(100 * time.Millisecond)
	c.Close() // with unread data: a reset
	s := serve(t, l)
	eventually(t, "they arrive", func() bool { l := s.streams(); return len(l) == 1 && len(numbers(t, l[0])) == x.next })
	x.stop()
	inOrder(t, s.all(t), 0, x.next-1)
	if st := x.Stats(); st.Resent < 150 {
		t.Errorf("%+v", st)
	}
	x.balance()
}

// TestResetAfterHang: a collector that hangs for however long before it dies has read nothing of what its kernel has acknowledged, though
// its window shows nothing of that.
func TestResetAfterHang(t *testing.T) {
	x, l, c := idle(t, "", 2<<20, Config{})
	x.give(3600) // 1 MB
	eventually(t, "the kernel has them", func() bool { return x.Stats().Backlog == 0 && x.Stats().Encoded == 3600 })
	time.Sleep(300 * time.Millisecond)
	c.Close() // with unread data: a reset
	s := serve(t, l)
	eventually(t, "they arrive", func() bool { l := s.streams(); return len(l) == 1 && len(numbers(t, l[0])) == x.next })
	x.stop()
	inOrder(t, s.all(t), 0, x.next-1)
	x.balance()
}

// TestSlowCollector: one that does not read holds nothing up. What it cannot take is on disk, and follows when it reads again.
func TestSlowCollector(t *testing.T) {
	x, l, c := idle(t, "", 0, Config{Spool: t.TempDir(), Queue: 1 << 20})
	x.give(100000) // 30 MB
	eventually(t, "they are on disk", func() bool { st := x.Stats(); return st.Waiting == 0 && st.Spooled > 50000 })
	s := &sink{l: l, data: [][]byte{nil}}
	go func() { // ends with c
		buf := make([]byte, 1<<20)
		for {
			n, err := c.Read(buf)
			s.mu.Lock()
			s.data[0] = append(s.data[0], buf[:n]...)
			s.mu.Unlock()
			if err != nil {
				s.mu.Lock()
				s.done++
				s.mu.Unlock()
				return
			}
		}
	}()
	eventually(t, "all is taken", func() bool { return x.Stats().Backlog == 0 })
	x.stop()
	if n := inOrder(t, s.all(t), 0, x.next-1); n != 0 {
		t.Errorf("%d records came twice", n)
	}
	if st := x.Stats(); st.SpoolOctets > leastSegment {
		t.Errorf("%d octets are left on disk", st.SpoolOctets)
	}
	x.balance()
}

// TestStalled: a collector that takes nothing for the send timeout is given up.
func TestStalled(t *testing.T) {
	t.Parallel()
	x, _, c := idle(t, "?send-timeout=500ms", 0, Config{Queue: 1 << 20})
	x.give(50000)
	eventually(t, "it is given up", func() bool { return x.Stats().Connects > 1 })
	c.Close() // not before: nor by the garbage collector
	if s := x.text(); !strings.Contains(s, "timed out") && !strings.Contains(s, "timeout") {
		t.Errorf("said %s", s)
	}
}

// TestSpoolSurvives: records that were given while the collector was away follow after a restart of the exporter, in order.
func TestSpoolSurvives(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr := freeAddress(t)
	next := 0
	for i := range 3 {
		x := begin(t, "tcp://"+addr, Config{Spool: dir})
		x.next = next
		x.give(2000)
		eventually(t, "they are on disk", func() bool { return x.Stats().Spooled >= uint64(2000*(i+1)) })
		if i == 2 {
			// The file is whole at any time.
			dumpAll(t, filepath.Join(dir, "tcp___127.0.0.1_"+strings.TrimPrefix(addr, "127.0.0.1:")))
		}
		next = x.next
		x.stop()
		x.next -= 2000 * i
		x.next = 2000
		x.balance()
	}
	s := listen(t, addr)
	x := begin(t, "tcp://"+addr, Config{Spool: dir})
	x.next = next
	x.give(1000)
	eventually(t, "all is taken", func() bool { st := x.Stats(); return st.Backlog == 0 && st.Waiting == 0 && st.Encoded == 1000 })
	x.stop()
	if n := inOrder(t, s.all(t), 0, x.next-1); n != 0 {
		t.Errorf("%d records came twice", n)
	}
	x.next = 1000
	x.balance()
}

// dumpAll reads every segment by libfixbuf.
func dumpAll(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	if err != nil || len(files) == 0 {
		t.Fatalf("no segments in %s: %v", dir, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		ipfixDump(t, b)
	}
}

// TestSpoolBound: beyond the bound the oldest records are dropped, and counted.
func TestSpoolBound(t *testing.T) {
	t.Parallel()
	addr := freeAddress(t)
	x := begin(t, "tcp://"+addr+"?spool-size=1M", Config{Spool: t.TempDir(), Queue: 1 << 20})
	x.give(20000) // 6 MB
	eventually(t, "some are dropped", func() bool { st := x.Stats(); return st.Waiting == 0 && st.Encoded == 20000 && st.DroppedSpool > 0 })
	time.Sleep(2 * flushInterval)
	st := x.Stats()
	if st.SpoolOctets > 1<<20+1<<18 {
		t.Errorf("%d octets on disk", st.SpoolOctets)
	}
	s := listen(t, addr)
	eventually(t, "the rest is taken", func() bool { return x.Stats().Backlog == 0 })
	x.stop()
	x.balance()
	got := 0
	for _, b := range s.all(t) {
		l := numbers(t, b)
		got += len(l)
		for i := range l {
			if l[i] != l[0]+i {
				t.Fatalf("record %d follows on %d", l[i], l[i-1])
			}
		}
		if n := len(l); n > 0 && l[n-1] != x.next-1 {
			t.Errorf("the last record is %d, want %d", l[n-1], x.next-1)
		}
	}
	dropped := int(x.Stats().DroppedSpool)
	if statistics := x.next - got - dropped; statistics > 0 || statistics < -10 {
		t.Errorf("%d arrived and %d were dropped, of %d", got, dropped, x.next)
	}
}

// TestSpoolMends: a message that was written in part, at the end, is cut off; a segment with garbage is used up to it.
func TestSpoolMends(t *testing.T) {
	dir := t.TempDir()
	x := begin(t, "tcp://127.0.0.1:1", Config{Spool: dir})
	x.give(3000)
	eventually(t, "they are on disk", func() bool { return x.Stats().Spooled >= 3000 })
	x.stop()
	before := x.Stats().Spooled
	sub := filepath.Join(dir, "tcp___127.0.0.1_1")
	files, _ := filepath.Glob(filepath.Join(sub, "*"+segmentSuffix))
	if len(files) == 0 {
		t.Fatal("no segments")
	}
	last := files[len(files)-1]
	whole, err := os.ReadFile(last)
	if err != nil {
		t.Fatal(err)
	}
	for _, tail := range []string{"", "\x00\x0a\x00\x40half a message", "garbage", "\x00\x0a\x00\x10", strings.Repeat("\x00", 5000)} {
		if err := os.WriteFile(last, append(bytes.Clone(whole), tail...), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := openSpool(sub, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if s.unread != before {
			t.Errorf("%q at the end: %d records, want %d", tail, s.unread, before)
		}
		if st, _ := os.Stat(last); st.Size() != int64(len(whole)) {
			t.Errorf("%q at the end: %d octets stay, want %d", tail, st.Size(), len(whole))
		}
		s.close()
	}
	for n := range 200 { // cut anywhere: nothing but whole messages
		if err := os.WriteFile(last, whole[:len(whole)*n/200], 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := openSpool(sub, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		s.close()
	}
}

// TestSpoolIsLocked: two exporters do not share a spool.
func TestSpoolIsLocked(t *testing.T) {
	dir := t.TempDir()
	s, err := openSpool(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openSpool(dir, 1<<20); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("%v", err)
	}
	s.close()
	if s, err = openSpool(dir, 1<<20); err != nil {
		t.Fatal(err)
	}
	s.close()
}

// TestSpoolOtherLayout: messages of another configuration follow in order, under their templates; those of another Observation Domain, whose ids
// and sequence are others, over a connection of their own.
func TestSpoolOtherLayout(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr := freeAddress(t)
	next := 0
	for _, option := range []string{"?pen=4711", "?domain=7", "?dialect=native"} {
		x := begin(t, "tcp://"+addr+option, Config{Spool: dir})
		x.next = next
		x.give(500)
		eventually(t, "they are on disk", func() bool { return x.Stats().Encoded == 500 && x.Stats().Waiting == 0 })
		next = x.next
		x.stop()
	}
	s := listen(t, addr)
	x := begin(t, "tcp://"+addr, Config{Spool: dir})
	x.next = next
	x.give(100)
	eventually(t, "all is taken", func() bool { st := x.Stats(); return st.Backlog == 0 && st.Waiting == 0 && st.Encoded == 100 })
	x.stop()
	if n := inOrder(t, s.all(t), 0, x.next-1); n != 0 {
		t.Errorf("%d records came twice", n)
	}
	if n := len(s.streams()); n < 2 {
		t.Errorf("%d connections", n)
	}
	for _, b := range s.streams() {
		ipfixDump(t, b)
	}
}

// TestFullDisk: where the disk takes nothing records are kept in memory, that is said, and they follow in order.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		miss(t, "needs root to mount")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		miss(t, "cannot mount: "+err.Error())
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	addr := freeAddress(t)
	x := begin(t, "tcp://"+addr, Config{Spool: dir})
	x.give(8000) // 2.4 MB
	x.said("no space left on device")
	eventually(t, "they are in memory", func() bool { st := x.Stats(); return st.Waiting == 0 && st.Backlog >= 8000 && st.SpoolFailed })
	s := listen(t, addr)
	eventually(t, "all is taken", func() bool { return x.Stats().Backlog == 0 })
	eventually(t, "all is read", func() bool { // or it would come again
		n := 0
		for _, b := range s.streams() {
			n += len(numbers(t, b))
		}
		return n == 8000
	})
	s.mu.Lock()
	s.conn.Close()
	s.l.Close()
	s.mu.Unlock()
	sessions := s.streams()
	x.give(100)
	x.said("the spool works again")
	s = listen(t, addr)
	eventually(t, "all is taken again", func() bool { st := x.Stats(); return st.Backlog == 0 && st.Waiting == 0 && st.Encoded == 8100 })
	x.stop()
	if n := inOrder(t, append(sessions, s.all(t)...), 0, x.next-1); n != 0 {
		t.Errorf("%d records came twice", n)
	}
	x.balance()
}

// TestTLS: TLS 1.2 and 1.3 with certificates on both ends.
func TestTLS(t *testing.T) {
	a := newAuthority(t)
	a.issue("server", "collector.test", time.Hour)
	a.issue("client", "exporter.test", time.Hour)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cfg := a.server("server")
		cfg.MaxVersion = version
		l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
		if err != nil {
			t.Fatal(err)
		}
		s := serve(t, l)
		x := begin(t, fmt.Sprintf("tls://%s?ca=%s&cert=%s&key=%s&server-name=collector.test", l.Addr(), a.path("ca.pem"), a.path("client.pem"), a.path("client.key")), Config{})
		x.give(5000)
		eventually(t, "all is taken", func() bool { st := x.Stats(); return st.Backlog == 0 && st.Encoded == 5000 })
		x.stop()
		eventually(t, "all is read", func() bool { return len(numbers(t, s.streams()[0])) == 5000 })
		if n := inOrder(t, s.all(t), 0, x.next-1); n != 0 {
			t.Errorf("%d records came twice", n)
		}
		ipfixDump(t, s.streams()[0])
		x.balance()
	}
}

// TestTLSRefuses: what is wrong with a certificate is said in one line, and put right without a restart.
func TestTLSRefuses(t *testing.T) {
	t.Parallel()
	a, other := newAuthority(t), newAuthority(t)
	a.issue("server", "collector.test", time.Hour)
	a.issue("client", "exporter.test", time.Hour)
	other.issue("stranger", "exporter.test", time.Hour)
	old := a.server("server")
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	for _, tc := range []struct {
		name, query, says string
		server            *tls.Config
		before, mend      func()
	}{
		{"other name", "&server-name=elsewhere.test&cert=C.pem&key=C.key", "not elsewhere.test", a.server("server"), nil, nil},
		{"address", "&cert=C.pem&key=C.key", "doesn't contain any IP SANs", a.server("server"), nil, nil},
		{"no certificate", "&server-name=collector.test", "certificate required", a.server("server"), nil, nil},
		{"strange certificate", "&server-name=collector.test&cert=S.pem&key=S.key", "certificate", a.server("server"), nil, nil},
		{"old TLS", "&server-name=collector.test&cert=C.pem&key=C.key", "protocol version", old, nil, nil},
		{"expired", "&server-name=collector.test&cert=C.pem&key=C.key", "expired", a.server("server"),
			func() { a.issue("server", "collector.test", -time.Hour) }, func() { a.issue("server", "collector.test", time.Hour) }},
		{"client expired", "&server-name=collector.test&cert=C.pem&key=C.key", "certificate", a.server("server"),
			func() { a.issue("client", "exporter.test", -time.Hour) }, func() { a.issue("client", "exporter.test", time.Hour) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.before != nil {
				tc.before()
			}
			l, err := tls.Listen("tcp", "127.0.0.1:0", tc.server)
			if err != nil {
				t.Fatal(err)
			}
			s := serve(t, l)
			query := strings.NewReplacer("C.", a.path("client."), "S.", other.path("stranger.")).Replace(tc.query)
			x := begin(t, fmt.Sprintf("tls://%s?ca=%s%s", l.Addr(), a.path("ca.pem"), query), Config{})
			x.give(10)
			x.said(tc.says)
			if tc.mend != nil {
				tc.mend()
				eventually(t, "all is taken", func() bool { st := x.Stats(); return st.Backlog == 0 && st.Encoded == 10 })
			}
			x.stop()
			if n := 0; tc.mend == nil {
				for _, b := range s.streams() {
					n += len(numbers(t, b))
				}
				if n > 0 {
					t.Errorf("%d records arrived", n)
				}
			}
			x.balance()
		})
	}
	for query, want := range map[string]string{
		"ca=/no/such/file":             "no such file",
		"ca=" + a.path("ca.key"):       "no PEM certificate",
		"cert=" + a.path("client.pem"): "go together",
		"cert=" + a.path("client.pem") + "&key=" + a.path("server.key"): "does not match",
	} {
		cfg, err := ParseURL("tls://h?"+query, Config{})
		if err == nil {
			_, err = New(cfg)
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: %v, want %s", query, err, want)
		}
	}
}

// TestNoSCTP: a kernel without SCTP says so in one line.
func TestNoSCTP(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, syscall.IPPROTO_TCP+126)
	if err == nil {
		syscall.Close(fd)
		t.Skip("this kernel has SCTP")
	}
	if !errors.Is(err, syscall.EPROTONOSUPPORT) {
		t.Fatal(err)
	}
	x := begin(t, "sctp://127.0.0.1:4739", Config{})
	x.said("this kernel has no such transport protocol")
}
