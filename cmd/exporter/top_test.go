package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gdamore/tcell/v2"
	"golang.org/x/sys/unix"

	"github.com/sockflow/sockflow/flowcache"
)

// terminal is a pseudo-terminal and what is to be seen on it.
type terminal struct {
	t      *testing.T
	master *os.File
	mu     sync.Mutex
	cells  [][]rune
	x, y   int
	raw    bytes.Buffer
}

// startTerminal runs a program on a pseudo-terminal of 80 by 24.
func startTerminal(t *testing.T, cmd *exec.Cmd) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	term := &terminal{t: t, master: master, cells: make([][]rune, 24)}
	for i := range term.cells {
		term.cells[i] = []rune(strings.Repeat(" ", 80))
	}
	t.Cleanup(func() { master.Close() })
	go func() { // ends with master or the program
		var rest []byte
		buf := make([]byte, 65536)
		for {
			n, err := master.Read(buf)
			term.mu.Lock()
			term.raw.Write(buf[:n])
			rest = term.show(append(rest, buf[:n]...))
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return term
}

// show obeys what a VT100 obeys of what tcell sends, and returns what is incomplete.
func (v *terminal) show(b []byte) []byte {
	for len(b) > 0 {
		switch c := b[0]; {
		case c == 0x1b && len(b) < 2:
			return b
		case c == 0x1b && b[1] == '[':
			end := 2
			for end < len(b) && (b[end] < 0x40 || b[end] > 0x7e) {
				end++
			}
			if end == len(b) {
				return b
			}
			v.control(string(b[2:end]), b[end])
			b = b[end+1:]
		case c == 0x1b && (b[1] == '(' || b[1] == ')'):
			if len(b) < 3 {
				return b
			}
			b = b[3:]
		case c == 0x1b:
			b = b[2:]
		case c == '\r':
			v.x, b = 0, b[1:]
		case c == '\n':
			v.y, b = min(v.y+1, 23), b[1:]
		case c < 0x20:
			b = b[1:]
		default:
			if !utf8.FullRune(b) {
				return b
			}
			r, n := utf8.DecodeRune(b)
			if v.x < 80 {
				v.cells[v.y][v.x] = r
				v.x++
			}
			b = b[n:]
		}
	}
	return nil
}

func (v *terminal) control(params string, final byte) {
	switch final {
	case 'H':
		y, x, _ := strings.Cut(params, ";")
		row, _ := strconv.Atoi(y)
		col, _ := strconv.Atoi(x)
		v.y, v.x = max(0, min(row-1, 23)), max(0, min(col-1, 79))
	case 'J':
		for y := v.y; y < 24; y++ {
			v.cells[y] = []rune(strings.Repeat(" ", 80))
		}
	case 'K':
		copy(v.cells[v.y][v.x:], []rune(strings.Repeat(" ", 80)))
	}
}

func (v *terminal) lines() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var lines []string
	for _, l := range v.cells {
		lines = append(lines, strings.TrimRight(string(l), " "))
	}
	return lines
}

func (v *terminal) screen() string { return strings.Join(v.lines(), "\n") }

// until waits until the screen shows what it should.
func (v *terminal) until(what string, ok func(screen string) bool) {
	v.t.Helper()
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok(v.screen()) {
			return
		}
	}
	v.t.Fatalf("the screen does not show %s:\n%s", what, v.screen())
}

func (v *terminal) shows(s string) {
	v.t.Helper()
	v.until(s, func(screen string) bool { return strings.Contains(screen, s) })
}

func (v *terminal) press(keys string) { v.master.Write([]byte(keys)) }

// TestTop: on a terminal without colours, with 80 by 24 characters.
func TestTop(t *testing.T) {
	needRoot(t)
	srv := start(t, "november-top", "", "server", "127.0.0.1", "0")
	ports := srv.next()
	var holds []*program
	for range 3 {
		h := start(t, "oscar-top", "", "hold", "127.0.0.1", strconv.Itoa(ports.TCP))
		h.next()
		holds = append(holds, h)
	}
	cmd := exec.Command(buildExporter(t), "top", "-d", "300ms")
	cmd.Env = append(os.Environ(), "TERM=vt100", "LANG=C.UTF-8", "LC_ALL=")
	term := startTerminal(t, cmd)
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }() // ends with the program
	t.Cleanup(func() { cmd.Process.Kill() })
	remote := "127.0.0.1:" + strconv.Itoa(ports.TCP)
	term.shows("q quit")
	term.press("/" + strconv.Itoa(ports.TCP) + "\r")
	term.until("the three flows", func(s string) bool { return strings.Count(s, " 127.0.0.1:") >= 6 && strings.Contains(s, "filter: ") })
	term.shows("DESTINATION")
	// The foot has the row under the cursor in full.
	term.until("both ends of one", func(s string) bool { return strings.Contains(s, "> ") && strings.Contains(s, remote) })
	term.press("\x1b")
	term.shows("1 flows 2 processes")
	// Processes; the server has three flows, each client one.
	term.press("2/-top\r")
	term.until("the processes", func(s string) bool {
		for l := range strings.Lines(s) {
			if f := strings.Fields(l); len(f) > 1 && strings.Contains(l, "november-top") && f[0] == strconv.Itoa(srv.cmd.Process.Pid) && f[1] == "3" {
				return strings.Count(s, "oscar-top") >= 3
			}
		}
		return false
	})
	// Drill down to the flows of the first, and back.
	term.press("\r")
	term.shows("flows of process ")
	term.press("\x1b")
	term.shows("processes  ")
	// The tree has the parents of both, with the children further in.
	term.press("t\x1b")
	term.until("the tree", func(s string) bool {
		for l := range strings.Lines(s) {
			if i := strings.Index(l, "november-top"); i > 0 && strings.HasSuffix(l[:i], "  ") {
				return true
			}
		}
		return false
	})
	term.press(" ")
	term.shows("FROZEN")
	term.press(" h")
	term.shows("reverse the order")
	term.press("x3")
	term.shows("CONTAINER")
	term.press("4")
	term.shows("POD")
	term.press("q")
	select {
	case err := <-exited:
		if err != nil {
			t.Errorf("%v\n%q", err, term.raw.String())
		}
	case <-time.After(5 * time.Second):
		t.Fatalf("top does not end:\n%s", term.screen())
	}
	for _, h := range holds {
		h.end()
	}
	srv.end()
}

// TestTopBatch: without a terminal, and without privileges.
func TestTopBatch(t *testing.T) {
	needRoot(t)
	srv := start(t, "november-batch", "", "server", "127.0.0.1", "0")
	ports := srv.next()
	h := start(t, "oscar-batch", "", "hold", "127.0.0.1", strconv.Itoa(ports.TCP))
	h.next()
	for _, user := range []uint32{0, 65534} {
		var stdout, stderr bytes.Buffer
		cmd := exec.Command(buildExporter(t), "top", "-b", "-n", "2", "-d", "400ms", "--filter-text", strconv.Itoa(ports.TCP))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil {
			t.Errorf("%d: %v\n%s", user, err, stderr.String())
		}
		out := stdout.String()
		if strings.Count(out, "sockflow top ") != 2 || !strings.Contains(out, "DESTINATION") || !strings.Contains(out, "127.0.0.1:"+strconv.Itoa(ports.TCP)) {
			t.Errorf("%d:\n%s", user, out)
		}
		if user == 0 && !strings.Contains(out, "oscar-batch") {
			t.Errorf("%s", out)
		}
	}
	var stderr bytes.Buffer
	cmd := exec.Command(buildExporter(t), "top")
	cmd.Stderr = &stderr
	if err := cmd.Run(); err == nil || !strings.Contains(stderr.String(), "top --batch") {
		t.Errorf("%v %s", err, stderr.String())
	}
	h.end()
	srv.end()
}

// topRecords are records of n flows between processes, of which some are in containers and pods.
func topRecords(n int) []flowcache.Record {
	var recs []flowcache.Record
	now := time.Now().UnixNano()
	for i := range n {
		r := flowcache.Record{
			Key: flowcache.Key{
				Src: flowcache.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), Dst: flowcache.AddrFrom4([4]byte{192, 0, 2, 1}), SrcPort: uint16(i), DstPort: 443, Proto: 6,
			},
			Start: now - 1e9, End: now, HasTCP: true, TCP: flowcache.TCPMetrics{SRTT: uint32(1000 + i)},
			Forward: flowcache.Counters{Payload: uint64(i)}, Reverse: flowcache.Counters{Payload: 10},
			Source: flowcache.End{
				Local: true, Process: flowcache.ProcessID{PID: uint32(100 + i%50)}, Cookie: uint64(i + 1), UID: 0, GID: 0,
				Who: &flowcache.Process{Path: fmt.Sprintf("/bin/prog%d", i%50), ParentPID: 1, ParentPath: "/sbin/init"},
			},
			Dest: flowcache.End{UID: flowcache.NoID, GID: flowcache.NoID},
		}
		if i%2 == 0 {
			r.Source.Container = &flowcache.Workload{ContainerID: "abc", ContainerName: fmt.Sprintf("web%d", i%4), PodName: fmt.Sprintf("pod%d", i%4), PodNamespace: "shop"}
		}
		recs = append(recs, r)
	}
	return recs
}

// give hands records to a model.
func give(m *topModel, recs []flowcache.Record) {
	r := flowcache.RecordPool(nil).Get()
	r.List = recs
	m.Offer(r)
}

// TestTopManyFlows: 10 000 flows on a small screen, and down from a pod to a flow.
func TestTopManyFlows(t *testing.T) {
	m := newTopModel(time.Second, t.TempDir())
	give(m, topRecords(10_000))
	screen := tcell.NewSimulationScreen("UTF-8")
	if err := screen.Init(); err != nil {
		t.Fatal(err)
	}
	defer screen.Fini()
	screen.SetSize(80, 24)
	u := &topUI{screen: screen, model: m, notes: &lastNotes{}, stack: []topLevel{{view: viewNamed("pods")}}, order: topOrder{column: -1}}
	line := func(y int) string {
		cells, w, _ := screen.GetContents()
		var s []rune
		for x := range w {
			s = append(s, cells[y*w+x].Runes[0])
		}
		return strings.TrimRight(string(s), " ")
	}
	see := func(y int, want string) {
		t.Helper()
		u.draw()
		if !strings.Contains(line(y), want) {
			t.Errorf("line %d is %q, want %q", y, line(y), want)
		}
	}
	press := func(k tcell.Key, r rune) { u.key(tcell.NewEventKey(k, r, 0)) }
	u.refresh()
	see(0, "pods  10000 flows of 50 processes")
	see(2, "shop/pod2") // of flows 2, 6, 10: more octets than pod0
	press(tcell.KeyEnter, 0)
	see(0, "containers of shop/pod2")
	see(2, "web2")
	press(tcell.KeyEnter, 0)
	see(0, "processes of shop/pod2 of web2")
	press(tcell.KeyEnter, 0)
	see(0, "flows of shop/pod2 of web2 of process ")
	see(2, "192.0.2.1:443")
	press(tcell.KeyEscape, 0)
	see(0, "processes of shop/pod2 of web2")
	press(tcell.KeyRune, '1')
	see(2, "10.0.39.15:99") // the fastest
	press(tcell.KeyEnd, 0)
	see(21, "10.0.0.0:0")
	press(tcell.KeyRune, 'r')
	press(tcell.KeyHome, 0)
	see(2, "10.0.0.0:0")
	press(tcell.KeyRune, '>')
	see(1, "PROT*")
	// A small terminal, and a tiny one.
	for _, size := range [][2]int{{40, 10}, {10, 3}, {1, 1}, {200, 60}} {
		screen.SetSize(size[0], size[1])
		u.refresh()
		u.draw()
	}
	// A flow that ended is shown again, and then gone.
	recs := topRecords(1)
	recs[0].Final = true
	give(m, recs)
	if n := len(m.snapshot(recs[0].End)); n != 10_000 {
		t.Errorf("%d flows", n)
	}
	if n := len(m.snapshot(recs[0].End + 3e9)); n != 9_999 {
		t.Errorf("%d flows", n)
	}
}

// TestTopRates: octets of a record in its time, nothing when it is old, sums by process in its own direction.
func TestTopRates(t *testing.T) {
	m := newTopModel(time.Second, t.TempDir())
	r := topRecords(1)[0]
	r.Start, r.End = 10e9, 14e9
	r.Forward.Payload, r.Reverse.Payload = 4000, 400
	r.Dest = r.Source
	r.Dest.Process.PID, r.Dest.Cookie = 7, 99
	give(m, []flowcache.Record{r})
	flows := m.snapshot(14e9)
	if f := flows[0]; f.out != 1000 || f.in != 100 || f.totalOut != 4000 {
		t.Errorf("%+v", f)
	}
	for _, row := range processRows(flows, topScope{}) {
		if want := map[string]float64{"100": 1000, "7": 100}[row.id]; row.out != want || row.flows != 1 {
			t.Errorf("%s sends %v, want %v", row.id, row.out, want)
		}
	}
	if f := m.snapshot(17e9)[0]; f.out != 0 || f.totalOut != 4000 {
		t.Errorf("%+v", f)
	}
}

func BenchmarkTop(b *testing.B) {
	m := newTopModel(time.Second, b.TempDir())
	recs := topRecords(10_000)
	v := viewNamed("flows")
	for b.Loop() {
		give(m, recs)
		v.arrange(m.snapshot(recs[0].End), topScope{}, "", topOrder{column: -1}, false, "")
	}
}
