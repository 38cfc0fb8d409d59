package main

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// shows is what the output of a reader has to show, by how its command begins: what was sent has arrived.
var shows = map[string]*regexp.Regexp{
	"nfdump ":      regexp.MustCompile(`127\.0\.0\.1[.:0-9 ]* +-> +127\.0\.0\.1:(8000|9469.* curl>sockflow/root>root)`),
	"ipfixDump ":   regexp.MustCompile(`--- data record`),
	"curl 127.0.0": regexp.MustCompile(`sockflow_`),
}

func (s *sandbox) run(list []documented) {
	done := map[string]bool{}
	for i, c := range list {
		if i > 0 && c.block != list[i-1].block {
			s.endBlock()
		}
		alone := (i == 0 || list[i-1].block != c.block) && (i == len(list)-1 || list[i+1].block != c.block)
		if alone && done[c.text] {
			continue
		}
		done[c.text] = true
		s.command(c)
	}
	s.endBlock()
}

func (s *sandbox) endBlock() {
	for _, p := range slices.Backward(s.beside) {
		s.end(p, !ours[strings.Fields(p.line.text)[0]])
	}
	s.beside = nil
}

// command runs one command line, or checks one of those whose running is a matter of minutes.
func (s *sandbox) command(c documented) {
	s.t.Helper()
	text := comment.ReplaceAllString(assignment.ReplaceAllString(c.text, ""), "")
	for part := range strings.SplitSeq(text, "; ") {
		name := strings.Fields(part)[0]
		switch {
		case excusedCommand(part):
		case name == "make":
			s.targets(c, strings.Fields(part)[1:])
		case name == "go":
			s.goTest(c, part)
		case strings.HasSuffix(name, ".sh"):
			if out, err := exec.Command("bash", "-n", filepath.Join("../..", name)).CombinedOutput(); err != nil {
				s.t.Errorf("%s: %s: %v\n%s", c.where, name, err, out)
			}
		case strings.HasPrefix(part, "apt-get install "):
			s.packages(c, part)
		case part == "chmod 600 /etc/sockflow/key":
			s.once(c, part)
		case strings.HasPrefix(part, "setpriv ") || ours[name] || strings.Contains(part, "| sockflow "):
			s.ours(c, part)
		default:
			goesOn, ok := others[name]
			if !ok {
				s.t.Errorf("%s: %s: is it to be run? Say so in others or notRun", c.where, part)
				continue
			}
			needTool(s.t, name)
			if goesOn && !strings.Contains(part, " -D ") {
				s.background(c, part)
			} else {
				s.once(c, part)
			}
		}
	}
}

func excusedCommand(text string) bool {
	return slices.ContainsFunc(notRun, func(e struct{ begins, why string }) bool { return strings.HasPrefix(text, e.begins) })
}

// targets checks that a Makefile has what is to be made.
func (s *sandbox) targets(c documented, words []string) {
	b, err := os.ReadFile("../../Makefile")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, w := range words {
		if !strings.Contains(w, "=") && !bytes.Contains(b, []byte("\n"+w+":")) {
			s.t.Errorf("%s: the Makefile has no target %q", c.where, w)
		}
	}
}

var (
	goDir  = regexp.MustCompile(` \./(\S+)`)
	goName = regexp.MustCompile(`-(?:run|bench) '?\^?(\w+)`)
)

// goTest checks that there are the tests that are to be run: they take minutes, or are run anyway.
func (s *sandbox) goTest(c documented, text string) {
	dir := goDir.FindStringSubmatch(text)
	if dir == nil {
		s.t.Errorf("%s: %s: which package?", c.where, text)
		return
	}
	want := regexp.MustCompile(`flag\.Bool\("` + text[strings.LastIndex(text, "-")+1:] + `"`)
	if m := goName.FindStringSubmatch(text); m != nil {
		want = regexp.MustCompile(`(?m)^func (Test|Benchmark)?` + m[1])
	}
	files, _ := filepath.Glob(filepath.Join("../..", dir[1], "*_test.go"))
	for _, f := range files {
		if b, _ := os.ReadFile(f); want.Match(b) {
			return
		}
	}
	s.t.Errorf("%s: %s: no %s there", c.where, text, want)
}

// packages checks that the Debian packages are those that the tests have installed.
func (s *sandbox) packages(c documented, text string) {
	for _, p := range strings.Fields(text)[2:] {
		if strings.HasPrefix(p, "-") {
			continue
		}
		b, err := os.ReadFile("../../Makefile")
		if err != nil || !regexp.MustCompile(`(?m)^TEST_PACKAGES := .*\b`+regexp.QuoteMeta(p)+`\b`).Match(b) {
			s.t.Errorf("%s: %s is not among the packages of the tests", c.where, p)
		}
	}
}

// once runs a command to its end, again while a reader does not show yet what was sent.
func (s *sandbox) once(c documented, text string) {
	s.t.Helper()
	metrics := func(p string) bool { return strings.HasSuffix(p, ":24FD") } // 9469
	if (strings.Contains(text, ":9469/") || strings.Contains(text, "pidof")) && !slices.ContainsFunc(listening(), metrics) {
		s.background(documented{c.where, "sockflow -c json:/dev/null", c.block}, "sockflow -c json:/dev/null")
	}
	if strings.Contains(text, "/var/lib/sockflow/") { // what a collector that was away has not taken
		cmd := exec.Command("sh", "-c", "rm -rf /var/lib/sockflow/* && timeout 1 sockflow replay a.pcap -c tcp://collector.example --spool /var/lib/sockflow")
		cmd.Dir = s.dir
		if out, err := cmd.CombinedOutput(); err == nil {
			s.t.Errorf("a collector that is away took it:\n%s", out)
		}
	}
	var want *regexp.Regexp
	for begins, re := range shows {
		if strings.HasPrefix(text, begins) {
			want = re
		}
	}
	for begin := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		p := s.start(c, text)
		var err error
		select {
		case err = <-p.exited:
		case <-time.After(20 * time.Second):
			s.fail(p, "does not end")
			return
		}
		if err == nil && (want == nil || want.MatchString(p.out.String())) {
			return
		}
		if want == nil || time.Since(begin) > 15*time.Second {
			s.fail(p, "%v; to be shown: %v", err, want)
			return
		}
		if len(s.beside) > 0 && !slices.ContainsFunc(s.beside, func(p *process) bool { return ours[strings.Fields(p.line.text)[0]] }) {
			s.endBlock() // what waits for the end of its interval
		}
	}
}

// background starts what goes on until the end of the block, and waits until it listens, or meters.
func (s *sandbox) background(c documented, text string) {
	s.t.Helper()
	before := len(listening())
	p := s.start(documented{c.where, text, c.block}, strings.TrimSuffix(text, "&"))
	s.beside = append(s.beside, p)
	if ours[strings.Fields(text)[0]] {
		s.until(p, "it meters", func() bool { return strings.Contains(p.errs.String(), "metering by") })
		return
	}
	s.until(p, "it listens", func() bool { return len(listening()) > before })
}

// ours runs a command of this program: one that ends until it does, others until what they send or print has come, and then ends them as an
// administrator does.
func (s *sandbox) ours(c documented, text string) {
	s.t.Helper()
	sinks := s.receive(text)
	defer func() {
		for _, k := range sinks {
			k.close()
		}
	}()
	words := strings.Fields(text)
	sub := words[min(1, len(words)-1)]
	received := func() bool {
		anything := strings.Contains(text, "filter") || sub == "doctor"
		return !slices.ContainsFunc(sinks, func(k *sink) bool { return !k.satisfied(anything) })
	}
	switch {
	case strings.HasSuffix(text, "&"):
		s.background(c, text)
	case strings.Contains(text, "|"):
		p := s.start(c, text)
		if strings.HasPrefix(text, "nc ") {
			s.until(p, "nc listens", func() bool {
				return slices.ContainsFunc(listening(), func(p string) bool { return strings.HasSuffix(p, ":1283") })
			})
			s.feed(p)
			s.until(p, "it prints what came", func() bool { return strings.Contains(p.out.String(), "octetDeltaCount") })
		} else {
			s.until(p, "tcpdump listens", func() bool { return strings.Contains(p.errs.String(), "listening on") })
			s.traffic()
			time.Sleep(1200 * time.Millisecond) // tcpdump takes packets once a second
		}
		s.end(p, false)
		if p.out.String() == "" {
			s.fail(p, "prints nothing")
		}
	case slices.Contains([]string{"list", "doctor", "elements", "completion", "man", "replay"}, sub) || strings.Contains(text, "--help") || strings.Contains(text, ".ipfix") && sub == "collect":
		p := s.start(c, text)
		select {
		case err := <-p.exited:
			if err != nil {
				s.fail(p, "%v", err)
			}
		case <-time.After(20 * time.Second):
			s.fail(p, "does not end")
		}
		if p.out.String() == "" && len(sinks) == 0 && !strings.Contains(text, ">") {
			s.fail(p, "prints nothing")
		}
		s.until(p, "collectors have it", received)
	case sub == "collect":
		p := s.start(c, text)
		s.until(p, "it listens", func() bool { return strings.Contains(p.errs.String(), "msg=listening") })
		to := "udp://localhost"
		if m := regexp.MustCompile(`(\w+)://\*(:\d+)?`).FindStringSubmatch(text); m != nil {
			to = m[1] + "://localhost" + m[2] + "?ca=ca.pem&cert=host.pem&key=host.key"
			if m[1] == "udp" {
				to = m[1] + "://localhost" + m[2]
			}
		}
		sender := s.start(c, "sockflow replay a.pcap -c '"+to+"'")
		s.until(p, "it prints what came", func() bool { return strings.Contains(p.out.String(), "80") })
		<-sender.exited
		s.end(p, false)
	case sub == "top" && !strings.Contains(text, "--batch"):
		cmd := exec.Command("sh", "-c", text)
		v := startTerminal(s.t, cmd)
		v.shows("PROTO")
		v.press("q")
		if err := cmd.Wait(); err != nil {
			s.t.Errorf("%s: %s: %v", c.where, text, err)
		}
	default:
		p := s.start(c, text)
		if !s.until(p, "it meters", func() bool {
			return strings.Contains(p.errs.String(), "metering") || sub == "top" && p.out.String() != ""
		}) {
			return
		}
		told := func() bool {
			return received() && (p.out.String() != "" || strings.Contains(text, "-c ") || strings.Contains(text, "filter"))
		}
		for i := 0; i == 0 || i < 4 && !told(); i++ {
			s.traffic()
			time.Sleep(250 * time.Millisecond)
		}
		s.end(p, false) // and exports the rest
		s.until(p, "what it meters is told", told)
		if strings.Contains(p.errs.String(), "level=ERROR") {
			s.fail(p, "says that something is wrong")
		}
	}
}

// feed sends a file to who listens on port 4739.
func (s *sandbox) feed(p *process) {
	b, err := os.ReadFile(filepath.Join(s.dir, "flows.ipfix"))
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := net.Dial("tcp", "127.0.0.1:4739")
	if err != nil {
		s.fail(p, "%v", err)
		return
	}
	defer c.Close()
	c.Write(b)
}
